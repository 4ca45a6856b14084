"""Large bodies: how fast they pass, what they cost, and what small calls feel of them. ``make large``.

Bodies are bytes, which pass as they are. A *flood* is a reader of a stream whose parts are large, as fast
as they come; a *stall* is a client that was stopped with large replies on their way to it.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import gevent
from rich.console import Console
from rich.table import Table

from benchmarks.harness import attend_greenlets
from benchmarks.parties import Party, free_ports
from butler_mesh import Client, Router, Service

MB = 1_000_000
LIMIT = 64 * 2**20
SIZES = [MB, 50 * MB]
PART = MB
"""Of the flood's stream, and of a stalled client's replies."""
STALLED = 200
PAUSE_S = 0.5
"""How long a stalled client's replies are held back, so that it is stopped before the first."""
CREDIT = 2 * STALLED
"""Those that are held back must not keep the small calls of the same instance waiting."""
FORMS = ["router", "brokerless"]


# --- the processes --------------------------------------------------------------------------------


def serve(service: Service) -> None:
    """Answer until standard input ends."""

    @service.function
    def give(size: int, pause_s: float = 0.0) -> bytes:
        gevent.sleep(pause_s)
        return bytes(size)

    @service.function
    def take(body: bytes) -> int:
        return len(body)

    @service.function
    def flow(size: int) -> Iterator[bytes]:
        while True:
            yield bytes(size)

    @service.function
    def ping() -> str:
        return "pong"

    with service:
        assert service.wait_until_registered(10)
        attend_greenlets()


def router(endpoint: str) -> None:
    """Be a router until standard input ends."""
    with Router(max_body_bytes=LIMIT) as node:
        node.bind(endpoint)
        attend_greenlets()


def instance(endpoint: str, name: str) -> None:
    """Be an instance behind a router."""
    serve(Service(endpoint, name, credit=CREDIT))


def bound(endpoint: str, name: str) -> None:
    """Be an instance that clients connect to."""
    with Router(max_body_bytes=LIMIT) as node:
        node.frontend.bind(endpoint)
        serve(Service(node, name, credit=CREDIT))


def client(endpoint: str) -> None:
    """Do the jobs that come."""
    with Client(endpoint, timeout=60) as caller:
        caller.request("mmi.status")
        attend_greenlets(lambda job: JOBS[job.pop("job")](caller, **job))


def _pass(caller: Client, service: str, direction: str, size: int, seconds: float) -> dict[str, float]:
    """Send or fetch bodies, one after the other, for so long."""
    body = bytes(size) if direction == "request" else None
    n, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        if body is None:
            assert len(caller.request(service, "/give", {"size": size}).body) == size
        else:
            assert caller.request(service, "/take", body=body).body == size
        n += 1
    return {"mb": n * size / MB, "took_s": time.perf_counter() - began}


def _ping(caller: Client, service: str, seconds: float) -> dict[str, float]:
    """Make small calls, one after the other, for so long."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        assert caller.request(service, "/ping").body == "pong"
        times.append(time.perf_counter() - began)
    times.sort()
    return {
        "calls": len(times),
        "p50_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[len(times) * 99 // 100] * 1e3,
        "max_ms": times[-1] * 1e3,
    }


def _flood(caller: Client, service: str, seconds: float) -> dict[str, float]:
    """Read a stream of large parts for so long."""
    n, began = 0, time.perf_counter()
    for part in caller.request_stream(service, "/flow", {"size": PART}):
        n += len(part)
        if time.perf_counter() - began > seconds:
            break
    return {"mb": n / MB, "took_s": time.perf_counter() - began}


def _ask(caller: Client, service: str) -> dict[str, float]:
    """Ask for large replies, to be stopped before they come."""
    for _ in range(STALLED):
        caller.request_lazy(service, "/give", {"size": PART, "pause_s": PAUSE_S})
    caller.request("mmi.status")
    return {}


JOBS: dict[str, Callable[..., dict[str, float]]] = {
    "pass": _pass,
    "ping": _ping,
    "flood": _flood,
    "ask": _ask,
}
ROLES: dict[str, Callable[..., None]] = {each.__name__: each for each in (router, instance, bound, client)}


# --- those who measure ----------------------------------------------------------------------------


class Watched(Party):
    """A party that can be stopped for a while, and whose peak of memory is looked at."""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def forget_peak(self) -> None:
        """Let its peak begin anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak_mb(self) -> float:
        """Return the most memory it had resident."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith("VmHWM"))

    def stop(self) -> None:
        """End it, also where it was stopped."""
        self.signal(signal.SIGCONT)
        super().stop()


@contextmanager
def mesh(form: str, clients: int) -> Iterator[tuple[list[Watched], list[Watched], str, str]]:
    """Start a form; give those that listen, its clients, and the names of the large and the small service."""
    with ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"

        def start(role: str, *options: str) -> Watched:
            command = [sys.executable, "-m", "benchmarks.large", "--role", role, *options]
            party = Watched(role, command, {}, log)
            stack.callback(party.stop)
            party.wait_until_ready()
            return party

        endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}"
        if form == "router":
            # Two processes, for the small calls are to feel the router and not each other's handlers.
            parties = [start("router", endpoint), start("instance", endpoint, "large")]
            start("instance", endpoint, "small")
            large, small = "large", "small"
        else:
            parties = [start("bound", endpoint, "both")]
            large = small = "both"
        yield parties, [start("client", endpoint) for _ in range(clients)], large, small


def throughput(form: str, size: int, direction: str, seconds: float) -> dict[str, float]:
    """Return MB/s, each role's CPU milliseconds a MB, and the peak of the first in multiples of a body."""
    with mesh(form, 1) as (parties, [caller], large, _):
        job = {"job": "pass", "service": large, "direction": direction, "size": size}
        caller.ask(**job, seconds=0.0)
        parties[0].forget_peak()
        idle_mb = parties[0].peak_mb()
        before = [party.cpu_s() for party in (*parties, caller)]
        found = caller.ask(**job, seconds=seconds)
        costs = {
            party.role: (party.cpu_s() - cpu_s) / found["mb"] * 1e3
            for party, cpu_s in zip((*parties, caller), before, strict=True)
        }
        peak = (parties[0].peak_mb() - idle_mb) / (size / MB)
        return {"rate": found["mb"] / found["took_s"], "peak": peak, **costs}


def latency(form: str, company: str, seconds: float) -> dict[str, float]:
    """Return what a small call takes in such company, and the peak of whoever routes it."""
    with mesh(form, 2) as (parties, [caller, other], large, small):
        caller.ask(job="ping", service=small, seconds=0.2)
        parties[0].forget_peak()
        if company == "flood":
            other.tell({"job": "flood", "service": large, "seconds": seconds + 0.5})
        elif company == "stall":
            other.ask(job="ask", service=large)
            other.signal(signal.SIGSTOP)
        found = caller.ask(job="ping", service=small, seconds=seconds)
        found["peak_mb"] = parties[0].peak_mb()
        if company == "flood":
            flood = other.hear()
            found["flood"] = flood["mb"] / flood["took_s"]
        return found


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def main() -> None:
    """Measure, and print two tables; or be one of the processes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        ROLES[options.role[0]](*options.role[1:])
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; medians"
    )
    rounds = range(options.rounds)
    table = Table("form", "body", "as", "MB/s", "CPU ms a MB", "of which", "peak, bodies")
    for form in FORMS:
        for size in SIZES:
            for direction in ("request", "reply"):
                found = _medians([throughput(form, size, direction, options.seconds) for _ in rounds])
                rate, peak = found.pop("rate"), found.pop("peak")
                table.add_row(
                    form,
                    f"{size // MB} MB",
                    direction,
                    f"{rate:,.0f}",
                    f"{sum(found.values()):.2f}",
                    ", ".join(f"{role} {ms:.2f}" for role, ms in found.items()),
                    f"{peak:.1f}",
                )
    console.print(table)
    table = Table("form", "small calls beside", "p50 ms", "p99 ms", "max ms", "peak MB", "flood MB/s")
    for form in FORMS:
        for company in ("nobody", "flood", "stall"):
            found = _medians([latency(form, company, options.seconds) for _ in rounds])
            figures = [f"{found[name]:.2f}" for name in ("p50_ms", "p99_ms", "max_ms")]
            flood = f"{found['flood']:,.0f}" if "flood" in found else ""
            table.add_row(form, company, *figures, f"{found['peak_mb']:.0f}", flood)
    console.print(table)


if __name__ == "__main__":
    main()
