"""Sites: a web front, what is behind it, and the processes of both, each looked at by itself.

Raises Unavailable where something is not installed or does not start; the reason fits into one line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks import environments
from benchmarks.parties import Party, free_ports
from benchmarks.system import Place, Unavailable
from demos.mongrel2_server import Mongrel2

FLASK = ("flask==3.1.3", "gunicorn==27.0.1", "gevent", "packaging", "zerorpc==0.6.3")
ANSWER_S = 60.0


class Process(Party):
    """A party whose peak of memory can be asked for."""

    def peak_mib(self) -> float:
        """Return the most memory it had resident since it began."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


@dataclass(frozen=True, slots=True)
class Site:
    """A front's port, and every process that has a part in its pages: the front's, and those behind it."""

    port: int
    processes: list[Process]

    def url(self, path: str) -> str:
        """Return a page's address."""
        return f"http://127.0.0.1:{self.port}{path}"

    def ask(self, method: str, path: str, sent: Any = None, headers: dict[str, str] | None = None) -> bytes:
        """Return what it answers, read whole."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        try:
            connection.request(method, path, sent, headers or {})
            response = connection.getresponse()
            answer = response.read()
        except OSError as error:
            raise Unavailable(f"{method} {path}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise Unavailable(f"{method} {path}: {response.status} {answer[:80]!r}")
        return answer

    def cpu_s(self) -> list[float]:
        """Return the CPU seconds that each process has used."""
        return [process.cpu_s() for process in self.processes]


class Sites:
    """Starts processes, and ends them at the end of ``with``, the latest first."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fronts-"))
        front, back, *workers = free_ports(3)
        self._place = Place(self._directory, front, back, workers)

    # --- behind the fronts --------------------------------------------------------------------

    @property
    def router(self) -> str:
        """Where clients find the router."""
        return self._place.tcp(self._place.front)

    def mesh(self, *service: str) -> list[Process]:
        """Start a router and a service: the echo, or ``python *service ENDPOINT``."""
        router = self._play("butler_mesh", "broker", "router", form="router tcp")
        if service:
            backend = self._place.tcp(self._place.back)
            worker = self._spawn("service", [sys.executable, *service, backend])
            worker.wait_until_ready()
        else:
            worker = self._play("butler_mesh", "worker", "service", form="router tcp")
        return [router, worker]

    def zerorpc(self) -> list[Process]:
        """Start zerorpc's echo server."""
        # What comes one-way has a port of its own there; here nothing does.
        place = self._place._replace(back=free_ports(1)[0])
        return [self._play("zerorpc", "worker", "service", requires=FLASK, place=place)]

    # --- fronts -------------------------------------------------------------------------------

    def pywsgi(self, behind: Sequence[Process]) -> Site:
        """Start our own server."""
        (port,) = free_ports(1)
        front = self._pages("pywsgi", self.router, str(port))
        front.wait_until_ready()
        return Site(port, [front, *behind])

    def gunicorn(self, behind: Sequence[Process]) -> Site:
        """Start gunicorn with one worker, and our application in it."""
        return self._gunicorn((), f"benchmarks.pages:wsgi({self.router!r})", behind)

    def flask(self, behind: Sequence[Process]) -> Site:
        """Start gunicorn with one worker, and Flask in it."""
        endpoint = self._place.tcp(self._place.workers[0])
        return self._gunicorn(FLASK, f"benchmarks.flask_pages:wsgi({endpoint!r})", behind)

    def mongrel2(self, behind: Sequence[Process]) -> Site:
        """Start a Mongrel2, and the handler that it passes requests to."""
        if not Mongrel2.is_installed():
            raise Unavailable("mongrel2 is not installed (Debian's mongrel2-core)")
        port, *ports = free_ports(3)
        try:
            made = Mongrel2(port, *ports)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"mongrel2 cannot be configured: {error}") from error
        self._stack.callback(made.remove)
        # Its files are relative to the directory where it starts; env becomes the server, under its own id.
        server = self._spawn("mongrel2", ["env", "-C", str(made.directory), *made.command])
        server.wait_until_listening(port)
        front = self._pages("mongrel2", self.router, made.send_spec, made.recv_spec, str(made.store))
        front.wait_until_ready()
        return Site(port, [server, front, *behind])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # --- within -------------------------------------------------------------------------------

    def _gunicorn(self, requires: tuple[str, ...], target: str, behind: Sequence[Process]) -> Site:
        (port,) = free_ports(1)
        front = self._spawn(
            "front",
            [
                *(environments.python(requires), "-m", "gunicorn", "--no-control-socket"),
                *("--worker-class", "gevent", "--workers", "1", "--bind", f"127.0.0.1:{port}"),
                *("--keep-alive", "60", "--graceful-timeout", "1", "--log-level", "error", target),
            ],
        )
        front.wait_until_listening(port)
        return Site(port, [front, *behind])

    def _pages(self, role: str, *options: str) -> Process:
        return self._spawn("front", [sys.executable, "-m", "benchmarks.pages", role, *options])

    def _play(
        self,
        module: str,
        task: str,
        role: str,
        form: str = "",
        requires: tuple[str, ...] = (),
        place: Place | None = None,
    ) -> Process:
        """Start a process of the comparison's."""
        job = {
            "module": module,
            "form": form,
            "role": task,
            "place": place or self._place,
            "imports": (),
            "spawned": time.monotonic(),
        }
        interpreter = environments.python(requires)
        process = self._spawn(role, [interpreter, "-m", "benchmarks.harness", json.dumps(job)])
        process.wait_until_ready()
        return process

    def _spawn(self, role: str, command: Sequence[str]) -> Process:
        log = Path(tempfile.mkstemp(dir=self._directory, suffix=".log")[1])
        process = Process(role, command, {}, log)
        self._stack.callback(process.stop)
        return process
