"""Instructions per call, held to a budget: ``make budget`` fails when one grew by 5 %.

Instructions of the pure machines are counted by callgrind, so neither a busy machine nor its speed matters.
What is held is their ratio to a fixed loop that is counted beside them, so that another build of the same
Python may do. Budgets stand in ``budget.json``, by the minor version of Python.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import counting
from benchmarks.workloads import WORKLOADS

BUDGETS = Path(__file__).with_suffix(".json")
REFERENCE = "reference"
GROWTH = 0.05
"""What a ratio may grow by: runs differ by up to 0.3 %, builds of one minor version by up to 4 %."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One workload: its ratio to the reference now, and as recorded (None: it is new)."""

    name: str
    ratio: float
    budget: float | None

    @property
    def growth(self) -> float:
        """How much it grew, as a fraction; negative when it shrank, 0.0 when it is new."""
        return self.ratio / self.budget - 1.0 if self.budget else 0.0

    @property
    def is_over(self) -> bool:
        """Whether it is over its budget."""
        return self.growth > GROWTH


def ratios(counted: dict[str, int]) -> dict[str, float]:
    """Return how many turns of the reference loop one unit of each workload costs."""
    turn = counted[REFERENCE] / WORKLOADS[REFERENCE].n
    return {name: count / WORKLOADS[name].n / turn for name, count in counted.items() if name != REFERENCE}


def compare(found: dict[str, float], budgets: dict[str, float]) -> list[Finding]:
    """Return each workload beside its budget."""
    return [Finding(name, ratio, budgets.get(name)) for name, ratio in found.items()]


def version() -> str:
    """Return the minor version of this Python, as 3.11: bytecode differs from one to the next."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def why_not(recorded: dict[str, Any]) -> str:
    """Return why there is nothing to compare here, or ''."""
    if reason := counting.why_not():
        return reason
    if version() not in recorded:
        return f"no budgets are recorded for Python {version()}: record them with --record"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Count, compare, print the table; return the exit code: 0, or 1 when something is over its budget, or
    2 when nothing could be counted where that is wrong (CI)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budget", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write what is counted as the new budgets")
    options = parser.parse_args(arguments)
    recorded: dict[str, Any] = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    reason = counting.why_not() if options.record else why_not(recorded)
    if reason:
        return counting.excuse(f"no budget was checked: {reason}")
    counted = counting.count("benchmarks.workloads")
    found = ratios(counted)
    findings = compare(found, recorded.get(version(), {}).get("ratios", {}))
    _print(counted, findings)
    if options.record:
        recorded[version()] = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "instructions": {name: round(count / WORKLOADS[name].n) for name, count in counted.items()},
            "ratios": {name: round(ratio, 4) for name, ratio in found.items()},
        }
        BUDGETS.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
        print(f"recorded for Python {version()}")
        return 0
    over = [finding.name for finding in findings if finding.is_over]
    if over:
        print(f"over budget: {', '.join(over)}. If that is its worth: python -m benchmarks.budget --record")
    return 1 if over else 0


def _print(counted: dict[str, int], findings: list[Finding]) -> None:
    turn = counted[REFERENCE] / WORKLOADS[REFERENCE].n
    print(
        f"Python {platform.python_version()}, {platform.machine()}; the reference is {turn:,.0f} instructions"
    )
    print(f"{'':10} {'instructions':>12} {'ratio':>8} {'budget':>8} {'growth':>8}")
    for finding in findings:
        instructions = counted[finding.name] / WORKLOADS[finding.name].n
        budget, growth = f"{'–':>8}", f"{'new':>8}"
        if finding.budget is not None:
            budget, growth = f"{finding.budget:8.3f}", f"{finding.growth:+8.1%}"
        verdict = "OVER" if finding.is_over else ""
        print(
            f"{finding.name:10} {instructions:12,.0f} {finding.ratio:8.3f} {budget} {growth} {verdict:4}"
            f"  {WORKLOADS[finding.name].text}"
        )


if __name__ == "__main__":
    sys.exit(main())
