"""Calls/s, latency and CPU per call of every form of the mesh, measured side by side.

Forms take turns, round by round, so that a busy moment of the machine hits all of them; what is printed
is the median over the rounds. CPU is what the kernel charged each process, its threads included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TICKS = os.sysconf("SC_CLK_TCK")


class Party:
    """One process of a form."""

    def __init__(self, role: str, *options: str) -> None:
        self.role = role
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.parties", role, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._read() != "ready":
            raise SystemExit(f"the {role} did not start")

    def cpu_s(self) -> float:
        """Return the CPU seconds that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_mib(self) -> float:
        """Return the memory that the process has resident."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def ask(self, job: dict[str, Any]) -> dict[str, float]:
        """Give a client a job and wait for its result."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        result: dict[str, float] = json.loads(self._read())
        return result

    def stop(self) -> None:
        """End it; by force if need be."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def _endpoints(scheme: str, directory: str, n: int) -> list[str]:
    if scheme == "ipc":
        return [f"ipc://{directory}/{i}.sock" for i in range(n)]
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    found = [f"tcp://127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return found


@contextmanager
def _form(name: str) -> Iterator[list[Party]]:
    """Start the processes of a form, client last."""
    what, _, scheme = name.partition(" ")
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        front, back = _endpoints(scheme, directory, 2)
        if what == "router":
            plan = [("router", front, back), ("service", back), ("client", front)]
        elif what == "handlers":
            plan = [("router", front, back), ("handlers", back), ("client", front)]
        elif what == "brokerless":
            plan = [("bound", front), ("client", front)]
        else:
            plan = [("embedding", front), ("service", front)]
        parties = []
        for role, *options in plan:
            party = Party(role, *options)
            stack.callback(party.stop)
            parties.append(party)
        # The one that calls is last.
        parties.sort(key=lambda party: party.role in ("client", "embedding"))
        yield parties


FORMS = ["router tcp", "router ipc", "handlers tcp", "brokerless tcp", "brokerless ipc", "embedded tcp"]
JOBS = [(100, 1), (100, 64), (100, 512), (1024, 1), (1024, 64), (1024, 512)]


def main() -> None:
    """Measure, print the table, and write the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one measurement")
    parser.add_argument("--form", action="append", choices=FORMS, help="only this form (repeatable)")
    parser.add_argument("--jobs", type=int, default=len(JOBS), help="only the first N jobs")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    found: dict[tuple[str, int, int], list[dict[str, float]]] = defaultdict(list)
    for _ in range(options.rounds):
        for form in options.form or FORMS:
            with _form(form) as parties:
                client = parties[-1]
                client.ask({"size": 100, "in_flight": 64, "seconds": 0.3})
                for size, in_flight in JOBS[: options.jobs]:
                    before = [party.cpu_s() for party in parties]
                    result = client.ask({"size": size, "in_flight": in_flight, "seconds": options.seconds})
                    for party, cpu_s in zip(parties, before, strict=True):
                        result[f"{party.role}_us"] = (party.cpu_s() - cpu_s) / result["calls"] * 1e6
                        result[f"{party.role}_mib"] = party.rss_mib()
                    result["cpu_us"] = sum(
                        value for name, value in result.items() if name.endswith("_us") and name[0] != "p"
                    ) - (result["client_us"] if client.role == "embedding" else 0.0)
                    found[form, size, in_flight].append(result)
    _print(found)
    if options.json:
        rows = [
            {"form": form, "size": size, "in_flight": in_flight, "rounds": rounds}
            for (form, size, in_flight), rounds in found.items()
        ]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _print(found: dict[tuple[str, int, int], list[dict[str, float]]]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; medians"
    )
    table = Table("form", "bytes", "in flight", "calls/s (range)", "p50 µs", "p99 µs", "CPU µs", "of which")
    for (form, size, in_flight), rounds in found.items():

        def median(name: str, rounds: list[dict[str, float]] = rounds) -> float:
            return statistics.median(result[name] for result in rounds)

        rates = sorted(result["rate"] for result in rounds)
        roles = [name[:-4] for name in rounds[0] if name.endswith("_mib")]
        table.add_row(
            form,
            str(size),
            str(in_flight),
            f"{median('rate'):,.0f} ({rates[0]:,.0f}–{rates[-1]:,.0f})",
            f"{median('p50_us'):.0f}",
            f"{median('p99_us'):.0f}",
            f"{median('cpu_us'):.1f}",
            ", ".join(f"{role} {median(f'{role}_us'):.1f}" for role in roles),
        )
    console.print(table)


if __name__ == "__main__":
    main()
