"""Ourselves and the others, side by side: ``make compare``.

Rounds, in which every system takes its turn, so that a busy moment of the machine hits all of them; printed
are medians over the rounds, and ratios within rounds. CPU is what the kernel charged the processes of a
system, their threads included. ``QUICK=1`` in the environment is enough for a first look, in three minutes.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from types import FrameType

from benchmarks import environments, report
from benchmarks.figures import HEADLINE, Case, Figures
from benchmarks.parties import Meeting
from benchmarks.system import System, Unavailable
from benchmarks.systems import butler_mesh, grpcio, http, limit, majortomo, nats, pyro, pyzmq, rpyc, zerorpc

# In this order they take their turns, so that those whom we must know best stand close to us.
SYSTEMS: list[System] = [
    *limit.SYSTEMS,
    *pyzmq.SYSTEMS,
    *nats.SYSTEMS,
    *butler_mesh.SYSTEMS,
    *majortomo.SYSTEMS,
    *zerorpc.SYSTEMS,
    *grpcio.SYSTEMS,
    *pyro.SYSTEMS,
    *rpyc.SYSTEMS,
    *http.SYSTEMS,
]

ONE_WAY = Case(in_flight=0)
QUICK = [HEADLINE, Case(in_flight=1), Case(size=1024), Case(size=102_400), ONE_WAY]
FULL = [
    HEADLINE,
    *(
        case
        for size in (100, 1024, 102_400)
        for in_flight in (1, 64, 512)
        if (case := Case(size, in_flight)) != HEADLINE
    ),
    ONE_WAY,
    Case(in_flight=200, clients=200),
    *(Case(size=size, workers=workers) for workers in (2, 4) for size in (100, 1024)),
]
WARM_UP_S = 0.15


def main() -> None:
    """Measure, and write what was asked for."""
    is_quick = os.environ.get("QUICK", "0") not in ("", "0")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3 if is_quick else 5)
    parser.add_argument("--seconds", type=float, default=0.6 if is_quick else 1.5, help="of one measurement")
    parser.add_argument(
        "--only", action="append", metavar="SYSTEM", help="those whose name begins so (repeatable)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write a chart")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="write the table of a README")
    options = parser.parse_args()
    systems = [each for each in SYSTEMS if each.name.startswith(tuple(options.only or [""]))]
    if not systems:
        parser.error("no such system; there are: " + ", ".join(each.name for each in SYSTEMS))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    figures = Figures()
    try:
        measure(figures, systems, QUICK if is_quick else FULL, options.rounds, options.seconds, is_quick)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    machine = report.Machine.here([each.requires for each in systems if each.name not in figures.absent])
    report.show(figures, machine)
    if options.json:
        options.json.write_text(report.as_json(figures, machine), encoding="utf-8")
    if options.svg:
        options.svg.write_text(report.as_svg(figures), encoding="utf-8")
    if options.rst:
        options.rst.write_text(report.as_rst(figures, machine), encoding="utf-8")


def measure(
    figures: Figures,
    systems: Sequence[System],
    cases: Sequence[Case],
    rounds: int,
    seconds: float,
    only_headline_again: bool = False,
) -> None:
    """Let every system take its turn in every round; the later rounds may be of the headline alone."""
    for system in systems:
        # Before the first round: an installation would be heard in the figures of the others.
        try:
            environments.python(system.requires)
        except Unavailable as error:
            figures.absent[system.name] = str(error)
    began = time.monotonic()
    for turn in range(rounds):
        base_s = importing_s()
        figures.add(report.BASE, HEADLINE, turn, {"importing_s": base_s})
        # There and back: what grows or fades while a round lasts favours nobody in the end.
        for system in systems if turn % 2 == 0 else systems[::-1]:
            if system.name in figures.absent:
                continue
            after = f"{time.monotonic() - began:4.0f} s"
            print(f"{after}  round {turn + 1} of {rounds}  {system.name}", file=sys.stderr, flush=True)
            todo = [HEADLINE] if turn and only_headline_again else cases
            for _, group in groupby(
                (case for case in todo if can(system, case)), key=lambda case: case.workers
            ):
                try:
                    take_turn(figures, system, list(group), turn, seconds, base_s)
                except Unavailable as error:
                    figures.absent[system.name] = str(error)
                    print(f"{after}  {system.name}: {error}", file=sys.stderr)
                    break


def take_turn(
    figures: Figures, system: System, cases: Sequence[Case], turn: int, seconds: float, base_s: float
) -> None:
    """Measure one system in some cases that have the same number of workers.

    ``base_s`` is what Python and gevent take to start in this round.
    """
    with Meeting(system, cases[0].workers) as meeting:
        meeting.load(100, min(64, system.max_in_flight), WARM_UP_S)
        for case in cases:
            if case.in_flight > 64:
                # More connections than so far: their making is no part of a call.
                meeting.load(case.size, case.in_flight, WARM_UP_S, case.clients)
            if case.in_flight:
                found = meeting.load(case.size, case.in_flight, seconds, case.clients)
            else:
                # Sending is the shorter part of it.
                found = meeting.notes(case.size, seconds / 2)
            if case == HEADLINE:
                found |= meeting.start
                found["start_beyond_s"] = meeting.start["start_s"] - base_s
            figures.add(system.name, case, turn, found)


def can(system: System, case: Case) -> bool:
    """Tell whether a case means anything for a system."""
    return (
        case.in_flight <= system.max_in_flight
        and (bool(case.in_flight) or system.can_notify)
        and (case.workers == 1 or system.can_share)
        and (case.clients == 1 or system.can_crowd)
    )


def importing_s() -> float:
    """Return how long Python takes to start and to import gevent: what nobody of us can go below."""
    program = "import time, gevent; print(time.monotonic())"
    spawned = time.monotonic()
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(run.stdout) - spawned


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
