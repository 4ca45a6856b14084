"""The processes of one system: started, asked, watched, and ended by their own pid."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from select import select
from types import TracebackType
from typing import Any, Self

from benchmarks import environments
from benchmarks.system import Place, System, Unavailable

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PATIENCE_S = 60.0
"""A process that says nothing for so long after a job was to be done is stuck."""
SETTLE_S = 2.0
"""How long one-way messages may pause before the rest is taken for lost."""

PAUSE_S = 0.2
"""After so long without a message none is on its way any more."""


def free_ports(n: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on, below those the kernel gives to connections: one
    who tries again and again to connect to a port up there may in the end meet himself."""
    found: list[int] = []
    while len(found) < n:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            if port not in found:
                found.append(port)
    return found


class Party:
    """One process, with those that it started itself. Raises Unavailable when it cannot do its part."""

    def __init__(self, role: str, command: Sequence[str], environ: dict[str, str], log: Path) -> None:
        self.role = role
        # Whether it minds its standard input: then it ends with it, in its own time.
        self.minds_input = True
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=environments.ROOT,
                env={**os.environ, **environ},
                # Ctrl-C is ours: we end the others, in an order that lets them.
                process_group=0,
            )
        self.pid = self._process.pid

    def wait_until_ready(self) -> dict[str, Any]:
        """Wait until it says that it can do its part; return what it says."""
        said = self.hear()
        if not said["ready"]:
            raise Unavailable(said["reason"])
        return said

    def wait_until_listening(self, port: int) -> None:
        """Wait until a program that says and hears nothing takes connections."""
        self.minds_input = False
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return
            time.sleep(0.005)
        raise Unavailable(f"the {self.role} does not listen: {self._last_words()}")

    def tell(self, job: dict[str, Any]) -> None:
        """Give it a job."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise Unavailable(f"the {self.role} ended: {self._last_words()}") from error

    def hear(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for its answer."""
        assert self._process.stdout is not None
        readable, _, _ = select([self._process.stdout], [], [], patience_s)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            raise Unavailable(f"the {self.role} {'ended' if readable else 'is stuck'}: {self._last_words()}")
        return json.loads(line)  # type: ignore[no-any-return]

    def ask(self, **job: Any) -> dict[str, Any]:
        """Give it a job and wait for the answer."""
        self.tell(job)
        return self.hear(PATIENCE_S + job.get("seconds", 0.0))

    def cpu_s(self) -> float:
        """Return the CPU seconds used so far, by all threads, in user space and kernel."""
        return sum(int(ticks) for pid in self._pids() for ticks in _stat(pid)[11:13]) / TICKS

    def rss_mib(self) -> float:
        """Return the resident memory."""
        return sum(int(_stat(pid)[21]) for pid in self._pids()) * PAGE / 2**20

    def stop(self) -> None:
        """End it, and those that it started: by its standard input, by a signal, or by force."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pids = self._pids()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if not (self.minds_input and self._has_ended(1.0)):
            self._process.terminate()
        if not self._has_ended(2.0):
            # Those whose parent does not end orderly, too: they would stay and be heard in later figures.
            for pid in reversed(pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()

    def _has_ended(self, patience_s: float) -> bool:
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _pids(self) -> list[int]:
        """Return the process and its descendants."""
        found = [self.pid]
        for pid in found:
            with suppress(OSError):  # it has ended meanwhile
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def _last_words(self) -> str:
        self._process.poll()
        return environments.reason(self._log.read_text(errors="replace"))


def _stat(pid: int) -> list[str]:
    """Return what the kernel says of a process, from its state on; zeros when it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["0"] * 50


class Meeting:
    """All processes of one system. Raises Unavailable when they cannot meet."""

    def __init__(self, system: System, workers: int = 1) -> None:
        self.system = system
        self._stack = ExitStack()
        # What start-up took: see ``_first_call``.
        self.start: dict[str, float] = {}
        self.parties: list[Party] = []
        try:
            self._directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-"))
            front, back, *listening = free_ports(2 + workers)
            self._place = Place(self._directory, front, back, listening)
            others = [self._spawn(role) for role in system.roles if role != "worker"]
            for party in others:
                self._await(party)
            (self.client,) = (party for party in others if party.role == "client")
            self.workers = self._first_call(workers)
        except BaseException:
            self._stack.close()
            raise

    def load(self, size: int, in_flight: int, seconds: float, clients: int = 1) -> dict[str, float]:
        """Keep calls in flight; return rate, latencies, and what a call costs each role."""
        before = self._cpu_s()
        job = {"size": size, "in_flight": in_flight, "seconds": seconds, "clients": clients}
        answer = self.client.ask(job="load", **job)
        return {
            "rate": answer["calls"] / answer["elapsed_s"],
            "p50_us": answer["p50_us"],
            "p99_us": answer["p99_us"],
            **self._costs(before, answer["calls"]),
        }

    def notes(self, size: int, seconds: float) -> dict[str, float]:
        """Send one-way messages; return their rate until the last one has been received."""
        before, received_before = self._cpu_s(), self._received()[0]
        answer = self.client.ask(job="notes", size=size, seconds=seconds)
        received, settled = 0, time.monotonic()
        while received < answer["sent"] and time.monotonic() < settled + SETTLE_S:
            time.sleep(0.02)
            total, at = self._received()
            if total - received_before > received:
                received, settled = total - received_before, time.monotonic()
        if not received:
            raise Unavailable("no one-way message arrived")
        return {
            "rate": received / (at - answer["began"]),
            "lost": answer["sent"] - received,
            **self._costs(before, received),
        }

    def settle(self) -> None:
        """Wait until the workers have received what was sent."""
        received, settled = -1, time.monotonic()
        while time.monotonic() < settled + PAUSE_S:
            time.sleep(0.02)
            total, _ = self._received()
            if total != received:
                received, settled = total, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _spawn(self, role: str, turn: int = 0) -> Party:
        system, place = self.system, self._place._replace(turn=turn)
        module = import_module(f"benchmarks.systems.{system.module}")
        program = getattr(module, "program", None)
        command = program(role, system.form, place) if program else None
        if command is None:
            task = {
                "module": system.module,
                "form": system.form,
                "role": role,
                "place": place,
                "imports": system.imports,
                "spawned": time.monotonic(),
            }
            interpreter = environments.python(system.requires)
            command = [interpreter, "-m", "benchmarks.harness", json.dumps(task)]
        log = Path(self._directory, f"{role}-{turn}.log")
        party = Party(role, command, dict(system.environ), log)
        self.parties.append(party)
        self._stack.callback(party.stop)
        return party

    def _await(self, party: Party) -> dict[str, Any]:
        if party.role in self.system.silent:
            party.wait_until_listening(self._place.front)
            return {}
        return party.wait_until_ready()

    def _first_call(self, workers: int) -> list[Party]:
        """Start the workers while the client tries to call one: that is how start-up is measured."""
        self.client.tell({"job": "first", "size": 100})
        spawned = time.monotonic()
        started = [self._spawn("worker", turn) for turn in range(workers)]
        said = [self._await(party) for party in started]
        self.start = {
            "start_s": self.client.hear()["at"] - spawned,
            "importing_s": max(each.get("importing_s", 0.0) for each in said),
        }
        return started

    def _received(self) -> tuple[int, float]:
        answers = [party.ask(job="tally") for party in self.workers]
        return sum(answer["n"] for answer in answers), max(answer["at"] for answer in answers)

    def _cpu_s(self) -> list[float]:
        return [party.cpu_s() for party in self.parties]

    def _costs(self, before: list[float], calls: int) -> dict[str, float]:
        """Return microseconds a call and resident memory of each role; of several workers the sum."""
        costs: dict[str, float] = {"cpu_us": 0.0}
        for party, cpu_s in zip(self.parties, before, strict=True):
            used_us = (party.cpu_s() - cpu_s) / calls * 1e6
            costs["cpu_us"] += used_us
            for name, value in ((f"{party.role}_us", used_us), (f"{party.role}_mib", party.rss_mib())):
                costs[name] = costs.get(name, 0.0) + value
        return costs
