"""What a call adds to a page, behind each front, and what large bodies take on their way. ``make fronts``.

Pages: rounds, in which every front serves the same page without and with a call (100 B of JSON, through a
router), and Flask one that calls zerorpc, to wrk's 64 connections; ratios are taken within rounds. Bodies:
50 MB up and down, each in processes of its own. ``QUICK=1`` in the environment is enough for a first look, in
half a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from benchmarks import page_loads, report, uploads, wrk
from benchmarks.figures import HEADLINE, Figures, Spread
from benchmarks.large import MB
from benchmarks.page_loads import OURS, THEIRS, by_turns, with_call
from benchmarks.pages import PART
from benchmarks.sites import FLASK, Process, Site, Sites
from benchmarks.system import Unavailable
from benchmarks.targets import Verdict

WARM_UP_S = 1
ROLES = ("mongrel2", "front", "router", "service")


# --- rounds ---------------------------------------------------------------------------------------


def measure_pages(figures: Figures, fronts: Sequence[str], rounds: int, seconds: int) -> None:
    """Let every front take its turn in every round; all stand by from the beginning to the end."""
    with Sites() as sites:
        open_: dict[str, Site] = {}
        behind: list[Process] = []
        for front in fronts:
            try:
                if front != THEIRS and not behind:
                    behind = sites.mesh()
                site = page_loads.start(sites, front, behind)
                for path in page_loads.pages(front).values():
                    page_loads.check(site, path)
                    wrk.run(site.url(path), WARM_UP_S)
                open_[front] = site
            except Unavailable as error:
                _leave_out(figures, front, error)
        began = time.monotonic()
        for turn in range(rounds):
            for front in by_turns(open_, turn):
                _say(began, f"round {turn + 1} of {rounds}  {front}")
                try:
                    page_loads.take_turn(figures, front, open_[front], turn, seconds)
                except Unavailable as error:
                    _leave_out(figures, front, error)
                    del open_[front]


def measure_bodies(figures: Figures, ways: Sequence[uploads.Way], rounds: int) -> None:
    """Let a large body take every way in every round."""
    began = time.monotonic()
    for turn in range(rounds):
        for way in by_turns(ways, turn):
            if way.text in figures.absent:
                continue
            _say(began, f"round {turn + 1} of {rounds}  {way.text}")
            try:
                figures.add(way.text, uploads.CASE, turn, uploads.measure(way))
            except Unavailable as error:
                _leave_out(figures, way.text, error)


def _leave_out(figures: Figures, name: str, error: Unavailable) -> None:
    figures.absent[name] = str(error)
    print(f"left out: {name}: {error}", file=sys.stderr)


def _say(began: float, text: str) -> None:
    print(f"{time.monotonic() - began:4.0f} s  {text}", file=sys.stderr, flush=True)


# --- what is told ---------------------------------------------------------------------------------


def show(figures: Figures, machine: report.Machine) -> None:
    """Print everything to the terminal."""
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(f"{machine}; medians over the rounds, lowest and highest in brackets\n")
    for table in (_page_table(figures), _call_table(figures), _body_table(figures), _target_table(figures)):
        if table.row_count:
            console.print(table)
    loud = [row["others"] for row in figures.rows() if "others" in row]
    if loud:
        console.print(f"cores that other programs used beside the pages: {_precise(Spread.of(loud))}")
    for name, reason in figures.absent.items():
        console.print(f"left out: {name}: {reason}", markup=False)


def _page_table(figures: Figures) -> Table:
    title = f"pages, {wrk.CONNECTIONS} connections of wrk"
    table = Table("page", title=title, title_justify="left")
    for column in ("requests/s", "p50 ms", "p99 ms", "CPU µs", "of which"):
        table.add_column(column, justify="left" if column == "of which" else "right")
    for front in (*OURS, THEIRS):
        for name in (front, with_call(front)):
            if not figures.has(name, HEADLINE, "rate"):
                continue
            table.add_row(
                name,
                str(figures.spread(name, HEADLINE, "rate")),
                *(f"{_middle(figures, name, each) / 1e3:,.1f}" for each in ("p50_us", "p99_us")),
                f"{_middle(figures, name, 'cpu_us'):,.0f}",
                _by_role(figures, name),
            )
    return table


def _call_table(figures: Figures) -> Table:
    table = Table("front", title="what the call adds to a page", title_justify="left")
    for column in ("time µs", "to zerorpc's", "CPU µs", "to zerorpc's"):
        table.add_column(column, justify="right")
    for front in (*OURS, THEIRS):
        name = with_call(front)
        if figures.has(name, HEADLINE, "added_us"):
            table.add_row(
                front,
                *(
                    cell
                    for each in ("added_us", "added_cpu_us")
                    for cell in (str(figures.spread(name, HEADLINE, each)), _to_theirs(figures, name, each))
                ),
            )
    return table


def _body_table(figures: Figures) -> Table:
    title = f"{uploads.WHOLE // MB} MB, in parts of {PART // 1024} KiB"
    table = Table("way", title=title, title_justify="left")
    for column in ("MB/s", "MiB over an idle run", "of which"):
        table.add_column(column, justify="left" if column == "of which" else "right")
    for name in figures.systems(uploads.CASE):
        spread = figures.spread(name, uploads.CASE, "grown_mib")
        of_which = (
            f"{role} {figures.spread(name, uploads.CASE, f'{role}_mib').median:.1f}"
            for role in ROLES
            if figures.has(name, uploads.CASE, f"{role}_mib")
        )
        table.add_row(
            name,
            str(figures.spread(name, uploads.CASE, "rate")),
            _precise(spread, 1),
            ", ".join(of_which),
        )
    return table


def _target_table(figures: Figures) -> Table:
    table = Table("target", title="targets", title_justify="left")
    for column in ("wanted", "measured", ""):
        table.add_column(column, justify="right")
    for verdict in verdicts(figures):
        color = {True: "green", False: "red", None: "dim"}[verdict.is_met]
        wanted = f"< {verdict.target.at_most:g}"
        table.add_row(
            verdict.target.text, wanted, report.measured(verdict), f"[{color}]{report.word(verdict)}"
        )
    return table


def verdicts(figures: Figures) -> list[Verdict]:
    """Return a verdict on every target."""
    return [*page_loads.judge(figures), *uploads.judge(figures)]


def as_json(figures: Figures, machine: report.Machine) -> str:
    """Return every figure of every round, and what is needed to judge them."""
    whole = {
        "machine": machine._asdict(),
        "absent": figures.absent,
        "targets": [
            {
                "target": each.target.text,
                "below": each.target.at_most,
                "value": each.value,
                "is_met": each.is_met,
            }
            for each in verdicts(figures)
        ],
        "rows": list(figures.rows()),
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _middle(figures: Figures, name: str, figure: str) -> float:
    return figures.spread(name, HEADLINE, figure).median


def _by_role(figures: Figures, name: str) -> str:
    return ", ".join(
        f"{role} {_middle(figures, name, f'{role}_us'):,.0f}"
        for role in ROLES
        if figures.has(name, HEADLINE, f"{role}_us")
    )


def _to_theirs(figures: Figures, name: str, figure: str) -> str:
    ratio = figures.ratio(name, [with_call(THEIRS)], HEADLINE, figure, best=min)
    return "–" if ratio is None else _precise(ratio)


def _precise(spread: Spread, digits: int = 2) -> str:
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}–{spread.high:.{digits}f})"


def main() -> None:
    """Measure, and print the tables."""
    is_quick = os.environ.get("QUICK", "0") not in ("", "0")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fronts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2 if is_quick else 7)
    parser.add_argument("--seconds", type=int, default=1 if is_quick else 2, help="of one page, whole ones")
    parser.add_argument("--only", choices=("pages", "bodies"), help="one half of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds < 1:
        parser.error("it takes a round, and a second")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    figures = Figures()
    try:
        if options.only != "bodies":
            wrk.find()
            measure_pages(figures, [*OURS, THEIRS], options.rounds, options.seconds)
        if options.only != "pages":
            measure_bodies(figures, uploads.WAYS, 1 if is_quick else 3)
    except Unavailable as error:
        sys.exit(f"fronts: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    machine = report.Machine.here([() if name != THEIRS else FLASK for name in figures.systems(HEADLINE)])
    show(figures, machine)
    if options.json:
        options.json.write_text(as_json(figures, machine), encoding="utf-8")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
