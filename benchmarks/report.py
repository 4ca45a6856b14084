"""What was measured, told: tables for the terminal, JSON, a table in reStructuredText, a chart in SVG."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from rich.console import Console
from rich.table import Table

from benchmarks import environments
from benchmarks.figures import HEADLINE, Case, Figures
from benchmarks.targets import LATENCY, ONE_WAY, Verdict, judge

BASE = "python and gevent"
"""The row of what Python and gevent take to start; it makes no calls."""


class Machine(NamedTuple):
    """Where and when it was measured, and with what."""

    date: str
    cpu: str
    cores: int
    python: str
    versions: dict[str, dict[str, str]]  # by environment, by package

    @classmethod
    def here(cls, used: Iterable[tuple[str, ...]] = ()) -> Machine:
        """Describe this machine, now, and the environments that were used on it."""
        versions = {environments.name(each): environments.versions(each) for each in dict.fromkeys(used)}
        versions["programs"] = environments.program_versions()
        date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return cls(date, _cpu(), os.cpu_count() or 1, platform.python_version(), versions)

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, Python {self.python}, {self.date}"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


# --- terminal ---------------------------------------------------------------------------------


def show(figures: Figures, machine: Machine) -> None:
    """Print everything to the terminal."""
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(f"{machine}; medians over the rounds, lowest and highest in brackets\n")
    for case in figures.cases():
        console.print(_case_table(figures, case))
    console.print(_process_table(figures))
    console.print(target_table(judge(figures)))
    for system, reason in figures.absent.items():
        console.print(f"left out: {system}: {reason}", markup=False)


def _case_table(figures: Figures, case: Case) -> Table:
    table = Table("system", title=str(case), title_justify="left")
    columns = ["calls/s", "p50 µs", "p99 µs"] if case.in_flight else ["messages/s", "lost"]
    for column in (*columns, "CPU µs", "of which"):
        table.add_column(column, justify="left" if column == "of which" else "right")
    for system in _in_order(figures, case):
        names = ["p50_us", "p99_us"] if case.in_flight else ["lost"]
        table.add_row(
            system,
            str(figures.spread(system, case, "rate")),
            *(f"{figures.spread(system, case, name).median:,.0f}" for name in names),
            f"{figures.spread(system, case, 'cpu_us').median:,.1f}",
            ", ".join(f"{role} {cost:,.1f}" for role, cost in _by_role(figures, system, case, "us")),
        )
    return table


def _process_table(figures: Figures) -> Table:
    table = Table("system", title="start-up and memory", title_justify="left")
    for column in ("first call s", "of which importing s", "resident MiB"):
        table.add_column(column, justify="right")
    for system in figures.systems(HEADLINE):
        table.add_row(
            system,
            _median(figures, system, "start_s"),
            _median(figures, system, "importing_s"),
            ", ".join(f"{role} {mib:.0f}" for role, mib in _by_role(figures, system, HEADLINE, "mib")),
        )
    return table


def _median(figures: Figures, system: str, name: str) -> str:
    return (
        f"{figures.spread(system, HEADLINE, name).median:.3f}" if figures.has(system, HEADLINE, name) else ""
    )


def target_table(verdicts: list[Verdict]) -> Table:
    """Return a table of verdicts."""
    table = Table("target", title="targets", title_justify="left")
    for column in ("wanted", "measured", ""):
        table.add_column(column, justify="right")
    for verdict in verdicts:
        color = {True: "green", False: "red", None: "dim"}[verdict.is_met]
        table.add_row(verdict.target.text, wanted(verdict), measured(verdict), f"[{color}]{word(verdict)}")
    return table


def wanted(verdict: Verdict) -> str:
    """Return a target's bound as it is read."""
    least, most = verdict.target.at_least, verdict.target.at_most
    return f"≥ {least:,g}" if least is not None else f"≤ {most:,g}"


def measured(verdict: Verdict) -> str:
    """Return what was measured, with as many digits as mean something."""
    if verdict.value is None:
        return "–"
    return f"{verdict.value:,.0f}" if verdict.value >= 100 else f"{verdict.value:.3g}"


def word(verdict: Verdict) -> str:
    """Return the verdict itself."""
    return {True: "met", False: "not met", None: "not measured"}[verdict.is_met]


def _in_order(figures: Figures, case: Case) -> list[str]:
    """Return the systems of a case that were measured, the fastest first."""
    present = [system for system in figures.systems(case) if figures.has(system, case, "rate")]
    return sorted(present, key=lambda system: -figures.spread(system, case, "rate").median)


def _by_role(figures: Figures, system: str, case: Case, unit: str) -> Iterator[tuple[str, float]]:
    for role in ("client", "broker", "worker"):
        if figures.has(system, case, f"{role}_{unit}"):
            yield role, figures.spread(system, case, f"{role}_{unit}").median


# --- files ------------------------------------------------------------------------------------


def as_json(figures: Figures, machine: Machine) -> str:
    """Return every figure of every round, and what is needed to judge them."""
    verdicts = [
        {"target": each.target.text, "wanted": wanted(each), "value": each.value, "is_met": each.is_met}
        for each in judge(figures)
    ]
    whole = {
        "machine": machine._asdict(),
        "absent": figures.absent,
        "targets": verdicts,
        "rows": list(figures.rows()),
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


RST_COLUMNS: list[tuple[str, Case, str, str]] = [
    ("calls/s", HEADLINE, "rate", ",.0f"),
    ("CPU µs", HEADLINE, "cpu_us", ",.0f"),
    ("1 KiB", Case(size=1024), "rate", ",.0f"),
    ("100 KiB", Case(size=102_400), "rate", ",.0f"),
    ("p50 µs, 1 in flight", LATENCY, "p50_us", ",.0f"),
    ("one-way/s", ONE_WAY, "rate", ",.0f"),
    ("start-up s", HEADLINE, "start_s", ".2f"),
]


def as_rst(figures: Figures, machine: Machine) -> str:
    """Return a table of the medians in reStructuredText."""
    rows = [["system", *(title for title, *_ in RST_COLUMNS)]]
    for system in _in_order(figures, HEADLINE):
        cells = [
            format(figures.spread(system, case, name).median, shape)
            if figures.has(system, case, name)
            else "–"
            for _, case, name, shape in RST_COLUMNS
        ]
        rows.append([system, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    head, *body = (
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    absent = "".join(f"\nLeft out: {name}: {reason}\n" for name, reason in figures.absent.items())
    return "\n".join([rule, head, rule, *body, rule]) + f"\n\n{machine}.\n{absent}"


BAR = 22
"""Height of a row of the chart."""
CHART_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .title { font-weight: 600; }
  .quiet { fill: #57606a; }
  rect { fill: #8c959f; }
  .ours { fill: #0969da; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .quiet { fill: #9198a1; }
    rect { fill: #6e7681; }
    .ours { fill: #4493f8; }
  }
"""


def as_svg(figures: Figures) -> str:
    """Return a bar chart: calls a second and CPU per call in the headline case.

    Text stays text, colors follow the reader's theme, the ground is transparent.
    """
    ordered = _in_order(figures, HEADLINE)
    # Without JSON, in C, bars are ten times as long: they would make dots of all others.
    beyond = [system for system in ordered if system.endswith("(bytes)")]
    systems = [system for system in ordered if system not in beyond]
    bottom = 40 + BAR * len(systems)
    height = bottom + 20 * len(beyond) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 {height}" role="img">',
        f"<title>calls a second, and CPU per call: {escape(str(HEADLINE))}</title>",
        f"<style>{CHART_STYLE}</style>",
    ]
    for left, width, name, title in (
        (230, 300, "rate", f"calls a second ({HEADLINE})"),
        (640, 240, "cpu_us", "CPU per call, µs (all processes)"),
    ):
        medians = {system: figures.spread(system, HEADLINE, name).median for system in systems}
        most = max(medians.values(), default=1.0)
        parts.append(f'<text class="title" x="{left}" y="24">{title}</text>')
        for i, (system, value) in enumerate(medians.items()):
            y = 40 + BAR * i
            bar = max(1.0, width * value / most)
            kind = ' class="ours"' if system.startswith("butler_mesh") else ""
            if name == "rate":
                parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(system)}</text>')
            parts.append(f'<rect{kind} x="{left}" y="{y + 3}" width="{bar:.1f}" height="{BAR - 6}" rx="2"/>')
            parts.append(f'<text class="quiet" x="{left + bar + 6:.1f}" y="{y + 14}">{value:,.0f}</text>')
    for i, system in enumerate(beyond):
        said = f"off the scale, without JSON: {system} {figures.spread(system, HEADLINE, 'rate').median:,.0f}"
        parts.append(f'<text class="quiet" x="230" y="{bottom + 20 + 20 * i}">{escape(said)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
