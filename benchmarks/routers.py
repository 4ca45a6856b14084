"""What several routers behind one list of endpoints give: ``make routers``.

As many services and clients as routers; each service is registered with all of them, each client draws one
by lot, and all of them call at the same time. On two cores more routers give more calls only as far as cores
were idle; what must not grow is what a call costs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import attend_greenlets
from benchmarks.parties import Party, free_ports
from benchmarks.systems.butler_mesh import SERVICE, keep_calling

IN_FLIGHT = 64


def router(front: str, back: str) -> None:
    """Be a router."""
    from butler_mesh import Router

    with Router() as running:
        running.frontend.bind(front)
        running.backend.bind(back)
        attend_greenlets()


def service(*backs: str) -> None:
    """Be an instance at all routers."""
    from butler_mesh import Service

    with Service(backs, SERVICE) as running:
        running.register_function(lambda text: {"text": text}, "echo")
        attend_greenlets()


def client(*fronts: str) -> None:
    """Call through one of the routers."""
    keep_calling(fronts)


ROLES: dict[str, Callable[..., None]] = {"router": router, "service": service, "client": client}


@contextmanager
def mesh(n: int) -> Iterator[list[Party]]:
    """Run so many routers, services and clients."""
    ports = [f"tcp://127.0.0.1:{port}" for port in free_ports(2 * n)]
    fronts, backs = ports[:n], ports[n:]
    with ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
        parties: list[Party] = []

        def start(role: str, *endpoints: str) -> None:
            party = Party(role, [sys.executable, "-m", "benchmarks.routers", role, *endpoints], {}, log)
            stack.callback(party.stop)
            party.wait_until_ready()
            parties.append(party)

        for front, back in zip(fronts, backs, strict=True):
            start("router", front, back)
        for role, endpoints in (("service", backs), ("client", fronts)):
            for _ in range(n):
                start(role, *endpoints)
        yield parties


def measure(n: int, seconds: float) -> dict[str, float]:
    """Return calls/s of all clients together and CPU microseconds a call, by role and in all."""
    with mesh(n) as parties:
        clients = [party for party in parties if party.role == "client"]
        for party in clients:
            party.ask(job="first", size=100)
        before = [party.cpu_s() for party in parties]
        for party in clients:
            party.tell({"job": "load", "size": 100, "in_flight": IN_FLIGHT, "seconds": seconds})
        answers: list[dict[str, Any]] = [party.hear() for party in clients]
        calls = sum(answer["calls"] for answer in answers)
        rate = sum(answer["calls"] / answer["elapsed_s"] for answer in answers)
        found = {"rate": rate, **dict.fromkeys(ROLES, 0.0)}
        for party, cpu_s in zip(parties, before, strict=True):
            found[party.role] += (party.cpu_s() - cpu_s) / calls * 1e6
        return found


def main() -> None:
    """Measure one and two routers in turns, or be one of the processes."""
    if len(sys.argv) > 1 and sys.argv[1] in ROLES:
        ROLES[sys.argv[1]](*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for n, rounds in found.items():
            rounds.append(measure(n, options.seconds))
    table = Table("routers, services, clients", "calls/s", "CPU µs", *ROLES)
    for n, rounds in found.items():
        middle = {name: median(each[name] for each in rounds) for name in rounds[0]}
        total = sum(middle[role] for role in ROLES)
        parts = [f"{middle[role]:.1f}" for role in ROLES]
        table.add_row(f"{n}, {n}, {n}", f"{middle['rate']:,.0f}", f"{total:.1f}", *parts)
    Console(width=None if sys.stdout.isatty() else 100).print(table)


if __name__ == "__main__":
    main()
