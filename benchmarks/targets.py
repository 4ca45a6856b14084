"""What we want to be, as data: each target is a figure of ours, alone or as a ratio to somebody else's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.figures import HEADLINE, Case, Figures

ROUTED = "butler_mesh router tcp"
LATENCY = Case(in_flight=1)
ONE_WAY = Case(in_flight=0)


class Target(NamedTuple):
    """A bound on a figure of one system, or on its ratio to the best of several."""

    text: str
    figure: str  # as in benchmarks.figures: rate, p50_us, cpu_us, start_beyond_s
    at_least: float | None = None
    at_most: float | None = None
    against: tuple[str, ...] = ()
    case: Case = HEADLINE
    system: str = ROUTED


class Verdict(NamedTuple):
    """What came of a target; ``is_met`` is None when a side of it was not measured."""

    target: Target
    value: float | None
    is_met: bool | None


# Ratios are within rounds. Unless another case is named: 100 B, 64 in flight, through a router by TCP.
TARGETS = [
    Target("calls/s, to zerorpc", "rate", at_least=20, against=("zerorpc",)),
    Target("calls/s, to majortomo", "rate", at_least=12, against=("majortomo",)),
    Target("calls/s, to the better grpcio", "rate", at_least=8, against=("grpcio sync", "grpcio aio")),
    Target("calls/s, to nats-py uvloop", "rate", at_least=2.5, against=("nats-py uvloop",)),
    Target("calls/s, to pyzmq over the C proxy", "rate", at_least=2, against=("pyzmq, C proxy",)),
    Target("calls/s, to the C MDP router", "rate", at_least=0.35, against=("C MDP router (bytes)",)),
    Target("CPU of all processes, µs a call", "cpu_us", at_most=40),
    Target(
        "1 KiB: calls/s, to nats-py uvloop",
        "rate",
        at_least=1.5,
        against=("nats-py uvloop",),
        case=Case(size=1024),
    ),
    Target(
        "100 KiB: calls/s, to pyzmq over the C proxy",
        "rate",
        at_least=0.9,
        against=("pyzmq, C proxy",),
        case=Case(size=102_400),
    ),
    Target("1 in flight: p50, to nats-py", "p50_us", at_most=1, against=("nats-py",), case=LATENCY),
    Target(
        "1 in flight: p50, to the C MDP router",
        "p50_us",
        at_most=2,
        against=("C MDP router (bytes)",),
        case=LATENCY,
    ),
    Target(
        "brokerless: calls/s, to routed",
        "rate",
        at_least=1.5,
        against=(ROUTED,),
        system="butler_mesh brokerless tcp",
    ),
    Target(
        "embedded: calls/s, to routed",
        "rate",
        at_least=1.5,
        against=(ROUTED,),
        system="butler_mesh embedded tcp",
    ),
    Target("one-way messages/s", "rate", at_least=100_000, case=ONE_WAY),
    Target("start to first call, beyond Python and gevent, s", "start_beyond_s", at_most=0.3),
]


def judge(figures: Figures, targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """Return a verdict on every target."""
    return [_judge(figures, target) for target in targets]


def _judge(figures: Figures, target: Target) -> Verdict:
    value: float | None = None
    if target.against:
        # The best is the highest of rates and the lowest of everything else.
        best = max if target.figure == "rate" else min
        spread = figures.ratio(target.system, target.against, target.case, target.figure, best=best)
        value = None if spread is None else spread.median
    elif figures.has(target.system, target.case, target.figure):
        value = figures.spread(target.system, target.case, target.figure).median
    if value is None:
        return Verdict(target, None, None)
    is_met = (target.at_least is None or value >= target.at_least) and (
        target.at_most is None or value <= target.at_most
    )
    return Verdict(target, value, is_met)
