"""Ourselves over RabbitMQ beside pika alone, nameko and celery, on one broker: ``make rabbitmq``.

Rounds, in which every system takes its turn with 1 and with 64 calls in flight (100 B of JSON); all stand by
from the beginning to the end, and ratios are taken within rounds. "Durable" requests go to a quorum queue and
are done when the broker has confirmed them. The broker is a node of its own with one scheduler. CPU is that
of client and worker. ``QUICK=1`` in the environment is enough for a first look, in a minute.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import environments, report
from benchmarks.figures import Case, Figures
from benchmarks.parties import Meeting
from benchmarks.system import System, Unavailable
from benchmarks.systems import celery, nameko, pika, rabbitmq
from benchmarks.systems.rabbitmq import BROKER
from benchmarks.targets import Target, Verdict, judge

SYSTEMS: list[System] = [
    rabbitmq.SYSTEMS[0],
    pika.SYSTEMS[0],
    *nameko.SYSTEMS,
    *celery.SYSTEMS,
    rabbitmq.SYSTEMS[1],
    pika.SYSTEMS[1],
]
CASES = [Case(in_flight=1), Case(in_flight=64)]
WARM_UP_S = 0.3
OURS, OURS_DURABLE = (each.name for each in rabbitmq.SYSTEMS)
TARGETS = [
    Target(
        f"{case.in_flight} in flight: {what}/s, to {peer}",
        "rate",
        at_least=bound,
        against=(peer,),
        case=case,
        system=ours,
    )
    for what, ours, peer, bound in (
        ("calls", OURS, "bare pika", 0.8),
        ("calls", OURS, "nameko", 5),
        ("calls", OURS, "celery", 5),
        ("stored", OURS_DURABLE, "bare pika durable", 0.8),
    )
    for case in CASES
]


def measure(figures: Figures, systems: Sequence[System], rounds: int, seconds: float) -> None:
    """Let every system take its turn in every round."""
    with ExitStack() as stack:
        open_: dict[str, Meeting] = {}
        for system in systems:
            try:
                _say(f"starting {system.name}")
                open_[system.name] = meeting = stack.enter_context(Meeting(system))
                meeting.load(100, 64, WARM_UP_S)
            except Unavailable as error:
                _leave_out(figures, open_, system.name, error)
        began = time.monotonic()
        for turn in range(rounds):
            # There and back: what grows or fades while a round lasts favours nobody in the end.
            for name, meeting in list(open_.items())[:: 1 if turn % 2 == 0 else -1]:
                _say(f"{time.monotonic() - began:4.0f} s  round {turn + 1} of {rounds}  {name}")
                try:
                    for case in CASES:
                        figures.add(name, case, turn, meeting.load(case.size, case.in_flight, seconds))
                        if meeting.system.form == "durable":
                            # Confirmed and not served yet: it would be heard in the next figures.
                            meeting.settle()
                except Unavailable as error:
                    _leave_out(figures, open_, name, error)


def verdicts(figures: Figures) -> list[Verdict]:
    """Return a verdict on every target."""
    return judge(figures, TARGETS)


def show(figures: Figures, machine: report.Machine) -> None:
    """Print everything to the terminal."""
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(f"{machine}; medians over the rounds, lowest and highest in brackets\n")
    for case in figures.cases():
        table = Table("system", title=str(case), title_justify="left")
        for column in ("a second", "p50 ms", "p99 ms", "CPU µs, client", "CPU µs, worker"):
            table.add_column(column, justify="right")
        for name in figures.systems(case):
            middle = {
                figure: figures.spread(name, case, figure).median
                for figure in ("p50_us", "p99_us", "client_us", "worker_us")
            }
            table.add_row(
                name,
                str(figures.spread(name, case, "rate")),
                *(f"{middle[figure] / 1e3:,.1f}" for figure in ("p50_us", "p99_us")),
                *(f"{middle[figure]:,.0f}" for figure in ("client_us", "worker_us")),
            )
        console.print(table)
    console.print(report.target_table(verdicts(figures)))
    for name, reason in figures.absent.items():
        console.print(f"left out: {name}: {reason}", markup=False)


def main() -> None:
    """Measure, and tell."""
    is_quick = os.environ.get("QUICK", "0") not in ("", "0")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rabbitmq", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5 if is_quick else 15)
    # Short turns and many: what disturbs one system then disturbs its neighbours, too.
    parser.add_argument("--seconds", type=float, default=0.4 if is_quick else 0.6, help="of one measurement")
    parser.add_argument("--only", action="append", metavar="SYSTEM", help="those whose name begins so")
    options = parser.parse_args()
    systems = [each for each in SYSTEMS if each.name.startswith(tuple(options.only or [""]))]
    if not systems:
        parser.error("no such system; there are: " + ", ".join(each.name for each in SYSTEMS))
    figures = Figures()
    # Before the broker: an installation would be heard in the figures.
    for system in list(systems):
        try:
            environments.python(system.requires)
        except Unavailable as error:
            _leave_out(figures, {}, system.name, error)
            systems.remove(system)

    from butler_mesh.errors import MeshError
    from butler_mesh.operations.rabbitmq import Cluster

    with tempfile.TemporaryDirectory(prefix="rabbitmq-") as directory:
        try:
            cluster = Cluster.create(Path(directory, "node"))
        except MeshError as error:
            sys.exit(str(error))
        try:
            cluster.start()
            os.environ[BROKER] = cluster.secret_endpoint
            measure(figures, systems, options.rounds, options.seconds)
        except MeshError as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            sys.exit("interrupted")
        finally:
            cluster.stop()
    show(figures, report.Machine.here([each.requires for each in systems]))


def _leave_out(figures: Figures, open_: dict[str, Meeting], name: str, error: Unavailable) -> None:
    open_.pop(name, None)
    figures.absent[name] = str(error)
    _say(f"left out: {name}: {error}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
