"""How the router's cost grows with what it knows: ``make scale``.

Counted on the pure machine, as instructions per call: from one service, instance, client or waiting request
to thousands. Messages have equally many records along a row, for that is what a call's cost depends on most.
What is done by the clock and not by the call (heartbeats, judging health) is counted apart, and so is what
happens when peers come and go. ``--processes`` measures a real router and real sockets instead.

Fails when the costliest of a row is over the cheapest by more than 20 %.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

from benchmarks import counting
from benchmarks.crowd import SPARE, Crowd, Turn

CALLS = 2048
"""Counted of each size: they take less than the quarter second after which the router judges health."""
WARM_UP = 128
FLAT_WITHIN = 0.20


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that there may be many of, and what else there is."""

    what: str
    sizes: tuple[int, ...]
    others: dict[str, int] = field(default_factory=dict)

    def crowd(self, size: int) -> Crowd:
        """Return a router that knows so many of it."""
        return Crowd(**{**self.others, self.what: size})


ROWS = [
    Row("services", (1, 30, 1000), {"at_once": 32}),
    Row("clients", (1, 70, 5000), {"at_once": 32}),
    # Calls go round: each message to one of many instances has one record.
    Row("instances", (1, 70, 5000), {"at_once": 1}),
    # Their clients are served in turn: as above.
    Row("queued", (100, 3000, 100_000), {"at_once": 1, "clients": 100}),
]


def is_flat(costs: list[float]) -> bool:
    """Tell whether the costs of a row are one and the same, within 20 %."""
    return max(costs) <= min(costs) * (1.0 + FLAT_WITHIN)


@dataclass(frozen=True, slots=True)
class Chore:
    """What is not a call's. ``act`` gets a crowd of ``size`` to itself; ``a_second`` is how often it is done,
    0 where that is up to the peers."""

    text: str
    crowd: Callable[[int], Crowd]
    size: int
    act: Callable[[Crowd], object]
    a_second: float = 0.0


def _tick_after(seconds: float) -> Callable[[Crowd], object]:
    return lambda crowd: crowd.hub.turn([], crowd.now + seconds)


def _lose_one(crowd: Crowd) -> None:
    """A connection breaks: what follows at once, and after its ten milliseconds."""
    hub = crowd.hub
    hub.machine.connection_lost(hub.machine.doors[0], crowd.now)
    hub.turn([], crowd.now)
    hub.turn([], crowd.now + 0.011)


def _clients(n: int) -> Crowd:
    return Crowd(clients=n)


def _instances(n: int) -> Crowd:
    return Crowd(instances=n)


def _services(n: int) -> Crowd:
    return Crowd(services=n)


def _full(n: int) -> Crowd:
    """Each of so many clients has a request in the queue, and there is no room for another's."""
    crowd = Crowd(clients=n, queued=n)
    crowd.greet(b"new")
    for i in range(SPARE):
        _ask(crowd, crowd.clients[i % n])
    return crowd


def _ask(crowd: Crowd, client: bytes, target: bytes = b"bench.0") -> None:
    crowd.turn(client, crowd.requests(target, 1))


def _last_instance_leaves(crowd: Crowd) -> None:
    crowd.leave(crowd.instances[0][-1])


CHORES = [
    Chore("judge the health of 5 000 clients", _clients, 5000, _tick_after(0.25), 4.0),
    Chore("judge the health of 5 000 instances", _instances, 5000, _tick_after(0.25), 4.0),
    Chore("look after 1 000 services", _services, 1000, _tick_after(0.25), 4.0),
    Chore("that, and a heartbeat to 5 000 clients", _clients, 5000, _tick_after(1.0), 1.0),
    Chore("that, and a heartbeat to 5 000 instances", _instances, 5000, _tick_after(1.0), 1.0),
    Chore("one of 5 000 connections breaks", _clients, 5000, _lose_one),
    Chore("a client comes to 5 000", _clients, 5000, lambda crowd: crowd.greet(b"new")),
    Chore("a client leaves 5 000", _clients, 5000, lambda crowd: crowd.leave(crowd.clients[-1])),
    Chore("an instance comes to 5 000", _instances, 5000, lambda crowd: crowd.enlist(b"new")),
    Chore("an instance leaves 5 000", _instances, 5000, _last_instance_leaves),
    Chore("an instance comes to 1 000 services", _services, 1000, lambda crowd: crowd.enlist(b"new")),
    Chore("a request refused by a queue of 5 000 clients", _full, 5000, lambda crowd: _ask(crowd, b"new")),
    Chore(
        "mmi.status of 5 000 instances",
        _instances,
        5000,
        lambda crowd: _ask(crowd, crowd.clients[0], b"mmi.status"),
    ),
]


def count_all() -> None:
    """Have every row and every chore counted: the counted half."""
    for row in ROWS:
        for size in row.sizes:
            crowd = row.crowd(size)
            crowd.play(crowd.prepare(WARM_UP))
            counting.measure(f"{row.what}={size}", partial(_play, crowd, crowd.prepare(CALLS)))
    # What a child does to a crowd is not seen here: the next may have the same.
    crowd_of = cache(lambda make, size: make(size))
    for i, chore in enumerate(CHORES):
        chore.act(chore.crowd(WARM_UP))
        counting.measure(f"chore={i}", partial(chore.act, crowd_of(chore.crowd, chore.size)))


def _play(crowd: Crowd, turns: list[Turn]) -> None:
    if crowd.play(turns) != len(turns):
        raise AssertionError("some calls were not done")


def show_rows(counted: dict[str, int]) -> bool:
    """Print what a call costs along each row; tell whether all are flat."""
    are_flat = True
    print(f"instructions of the router per call; flat is within {FLAT_WITHIN:.0%}")
    for row in ROWS:
        costs = [counted[f"{row.what}={size}"] / CALLS for size in row.sizes]
        verdict = "" if is_flat(costs) else "NOT FLAT"
        are_flat = are_flat and not verdict
        sizes = "  ".join(f"{size:>7,}: {cost:7,.0f}" for size, cost in zip(row.sizes, costs, strict=True))
        growth = max(costs) / min(costs) - 1.0
        print(
            f"  {row.what:10} {row.others['at_once']:>2} records a message  {sizes}  {growth:+6.1%} {verdict}"
        )
    return are_flat


def show_chores(counted: dict[str, int]) -> None:
    """Print what is not a call's: its instructions, its time here, and its share of a second."""
    print("beside the calls, with everybody present")
    for i, chore in enumerate(CHORES):
        times: list[float] = []
        for _ in range(3):
            crowd = chore.crowd(chore.size)
            gc.collect()
            began = time.perf_counter()
            chore.act(crowd)
            times.append(time.perf_counter() - began)
        share = f"{min(times) * chore.a_second:7.2%} of a second" if chore.a_second else ""
        print(f"  {chore.text:46} {counted[f'chore={i}']:13,} {min(times) * 1e6:10,.0f} µs  {share}")


def show_memory() -> None:
    """Print what the router's machine holds for each peer and each call, as Python counts it."""
    print("bytes of the router's machine; a real connection's sockets come on top")
    for what, least, most in (("clients", 1, 5000), ("instances", 1, 5000), ("queued", 100, 20_000)):
        held = [_held(what, size) for size in (least, most)]
        print(f"  {what:10} {(held[1] - held[0]) / (most - least):7,.0f} each")


def _held(what: str, size: int) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        crowd = Crowd(**{what: size})
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        del crowd
        return held
    finally:
        tracemalloc.stop()


def main(arguments: list[str] | None = None) -> int:
    """Count, measure, print; return the exit code: 1 when a row is not flat."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--processes", action="store_true", help="a real router and real sockets, instead")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement of processes")
    options = parser.parse_args(arguments)
    if options.counted:
        count_all()
        return 0
    print(f"Python {platform.python_version()}, {platform.machine()}")
    if options.processes:
        from benchmarks import swarm  # the only part with sockets

        swarm.show(options.seconds)
        return 0
    if reason := counting.why_not():
        return counting.excuse(f"nothing was counted: {reason}")
    counted = counting.count("benchmarks.scale", "--counted")
    are_flat = show_rows(counted)
    show_chores(counted)
    show_memory()
    return 0 if are_flat else 1


if __name__ == "__main__":
    sys.exit(main())
