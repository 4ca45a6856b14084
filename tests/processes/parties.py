"""Real processes for the tests: started as programs, waited for by what they print, ended by their pid.

``Parties.start`` runs a role of ``roles.py``. What a process prints goes to a file of its own, which the
fixture shows when the test fails.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from butler_mesh import Client
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
START_S = 20.0
"""A process starts in half a second, on a machine with nothing else to do."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on, below those the kernel gives to connections: one
    who connects again and again to a port up there, where nobody listens, may in the end meet himself."""
    for _ in range(100):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise AssertionError("no port is free")


def rss_mib(pid: int) -> float:
    """Return the memory that a process has resident."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Party:
    """One process."""

    def __init__(self, name: str, argv: list[str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                argv,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        self.pid = self.process.pid

    @property
    def output(self) -> str:
        """Everything it has printed."""
        return self.log.read_text(errors="replace")

    @property
    def rss_mib(self) -> float:
        """The memory it has resident."""
        return rss_mib(self.pid)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def wait_for_line(self, start: str, timeout_s: float = START_S, n: int = 1) -> str:
        """Return the n-th line that begins so, once it is there, without what it begins with."""

        def line() -> list[str]:
            lines = [line for line in self.output.splitlines() if line.startswith(start)]
            assert len(lines) >= n or self.is_running, f"{self.name} has ended:\n{self.output}"
            return lines[n - 1 : n]

        return wait_for(line, timeout_s)[0][len(start) :].strip()

    def wait_for_result(self, timeout_s: float) -> Any:
        """Return the JSON value that it prints after the word ``result``."""
        return json.loads(self.wait_for_line("result", timeout_s))

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it as the kernel would for want of memory: without a word to anybody."""
        self.process.kill()
        self.process.wait()

    def wait(self, timeout_s: float) -> int:
        """Wait until it ends; return its exit code."""
        wait_for(lambda: not self.is_running, timeout_s)
        return self.process.wait()


class Parties:
    """The processes and clients of one test; all are gone when it ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[Party] = []
        self._clients: list[Client] = []

    def start(self, role: str, *args: object, is_patched: bool = False) -> Party:
        """Run a role; strings are passed as they are, all else as JSON."""
        own = ["-m", "gevent.monkey", "--module"] if is_patched else ["-m"]
        texts = [arg if isinstance(arg, str) else json.dumps(arg) for arg in args]
        name = f"{role}-{len(self._started)}"
        party = Party(
            name,
            [sys.executable, *own, "tests.processes.roles", role, *texts],
            self._directory / f"{name}.log",
        )
        self._started.append(party)
        return party

    def router(self, endpoint: str = "", **options: Any) -> tuple[Party, str]:
        """Start a router for clients and services; return it and its endpoint once it listens."""
        endpoint = endpoint or f"tcp://127.0.0.1:{free_port()}"
        party = self.start("router", endpoint, options)
        party.wait_for_line("ready")
        return party, endpoint

    def service(self, endpoint: str, name: str = "svc", **options: Any) -> Party:
        """Start an instance, in a process patched as ``butler-mesh serve`` does it; registered on return."""
        party = self.start("service", endpoint, name, options, is_patched=True)
        party.wait_for_line("ready")
        return party

    def client(self, endpoint: str, **options: Any) -> Client:
        """Return a client in this process."""
        client = Client(endpoint, **options)
        self._clients.append(client)
        return client

    def stop(self) -> None:
        """End all that was started, each by its pid, and show what they printed."""
        for client in self._clients:
            client.close(0.2)
        for party in self._started:
            if party.is_running:
                party.signal(signal.SIGCONT)
                party.kill()
        for party in self._started:
            sys.stdout.write(f"--- {party.name} (pid {party.pid}, exit {party.process.returncode})\n")
            sys.stdout.write(party.output[-8000:])


def status(client: Client) -> dict[str, Any]:
    """Return what mmi.status answers."""
    response = client.request("mmi.status", timeout=5)
    assert response.status_code == 200, response
    body = response.body
    assert isinstance(body, dict)
    return body


def instances(client: Client, service: str = "svc") -> dict[int, dict[str, Any]]:
    """Return what mmi.status says of a service's instances, by their pid."""
    pool = status(client)["services"].get(service, {"instances": []})
    return {instance["pid"]: instance for instance in pool["instances"]}
