"""The demo in one command: router, service and web page as processes of their own, until Ctrl-C.

    python demos/run.py            # http://127.0.0.1:6767/; DEMO_PORT=8080 for another port, 0 for any

The mesh listens on free loopback ports. Whatever ends this program, short of kill -9, ends all of it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import gevent
from gevent import socket, subprocess
from gevent.event import Event
from rich.console import Console
from rich.text import Text

from butler_mesh import Client

HOST = "127.0.0.1"
PORT = "6767"
SERVICE = "slow"
HERE = Path(__file__).parent

READY_WITHIN_S = 30.0  # a cold start of one process takes a second, on a busy machine several
STOP_WITHIN_S = 10.0  # the slow service finishes what it has begun, five seconds at most
LAST_LINES = 15  # of a process that died: a traceback's end

console = Console(highlight=False, soft_wrap=True)


class Failure(Exception):
    """Ends the demo with a message and an exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Child:
    """One process of the demo, in a process group of its own; its log comes out with its name in front."""

    def __init__(self, name: str, style: str, arguments: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.style = style
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal is for us; we stop them in order
        )
        self._reader = gevent.spawn(self._read)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """Ask it to finish and wait; kill it if it does not."""
        if self.is_running:
            self.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_WITHIN_S)
        self.kill()
        self._reader.join(1.0)
        self._reader.kill()

    def kill(self) -> None:
        if self.is_running:
            self.signal(signal.SIGKILL)
            self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)  # the leader of its group: the ids are the same

    def drain_log(self) -> list[str]:
        """Return the last lines of a process that has ended."""
        self._reader.join(1.0)
        return list(self.last_lines)

    def _read(self) -> None:
        for raw in self.process.stdout:
            line = raw.decode(errors="replace").rstrip().replace("\x1b", "?")
            self.last_lines.append(line)
            console.print(Text.assemble((f"{self.name:>8} │ ", self.style), line))


class Demo:
    """All processes, from the first to the last."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.children: list[Child] = []
        self.is_stopping = Event()

    def start(self) -> None:
        """Start one after the other, each when the one before is ready; raises Failure."""
        frontend, backend = (f"tcp://{HOST}:{port}" for port in free_ports(2))
        mesh = {"BUTLER_MESH_FRONTEND": frontend, "BUTLER_MESH_BACKEND": backend}
        with Client(frontend, timeout=1.0) as client:
            options = ["-m", "butler_mesh", "router", "--frontend", frontend, "--backend", backend]
            self._start("router", "cyan", options, {})
            self._wait(lambda: client.request("mmi.status").is_success)
            self._start("service", "yellow", [str(HERE / "demo_service.py")], mesh)
            self._wait(lambda: client.request("mmi.service", "/", {"service": SERVICE}).is_success)
        page = [str(HERE / "demo_service_client.py"), "--port", str(self.port)]
        self._start("web", "green", page, mesh)
        self._wait(lambda: has_page(self.port))

    def run(self) -> None:
        """Wait until somebody ends the demo; raises Failure when one of its processes does."""
        while not self.is_stopping.wait(0.1):
            self._check()

    def stop(self) -> None:
        """Stop them all, the last first: the page takes no more, then the service, then the router."""
        while self.children:
            self.children[-1].stop()
            self.children.pop()

    def on_signal(self) -> None:
        if self.is_stopping.is_set():  # the second time: now
            for child in self.children:
                child.signal(signal.SIGKILL)
        self.is_stopping.set()

    def _start(self, name: str, style: str, arguments: list[str], environment: dict[str, str]) -> None:
        if not self.is_stopping.is_set():
            self.children.append(Child(name, style, arguments, environment))

    def _wait(self, is_ready: Callable[[], bool]) -> None:
        """Wait for the child that was started last."""
        try:
            with gevent.Timeout(READY_WITHIN_S):
                while not self.is_stopping.is_set() and not is_ready():
                    self._check()
                    gevent.sleep(0.05)
        except gevent.Timeout as error:
            name = self.children[-1].name
            raise Failure(f"the {name} process was not ready in {READY_WITHIN_S:.0f} s") from error
        self._check()

    def _check(self) -> None:
        if self.is_stopping.is_set():
            return
        for child in self.children:
            if not child.is_running:
                lines = "\n".join(f"    {line}" for line in child.drain_log()) or "    (nothing)"
                status = child.process.returncode
                raise Failure(
                    f"the {child.name} process ended with status {status}; its last lines:\n{lines}"
                )


def free_ports(number: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    listeners = [socket.create_server((HOST, 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def page_port(text: str) -> int:
    """Return the page's port, which must be free; raises Failure with exit status 2."""
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise Failure(f"DEMO_PORT is a number from 0 to 65535, not {text!r}", 2)
    port = int(text)
    if port == 0:
        return free_ports(1)[0]
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise Failure(f"cannot use port {port} ({reason}); DEMO_PORT=… takes another one", 2) from error
    return port


def has_page(port: int) -> bool:
    """Tell whether the page answers with 200."""
    connection = HTTPConnection(HOST, port)
    try:
        connection.sock = socket.create_connection((HOST, port), timeout=2.0)  # gevent's: logs go on
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def main() -> int:
    try:
        demo = Demo(page_port(os.environ.get("DEMO_PORT") or PORT))
    except Failure as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return failure.status
    watchers = [
        gevent.signal_handler(n, demo.on_signal) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ]
    try:
        demo.start()
        if not demo.is_stopping.is_set():
            console.print(f"\n[bold]The demo is at http://{HOST}:{demo.port}/[/bold]   Ctrl-C ends it\n")
        demo.run()
        console.print("stopping …")
    except Failure as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return failure.status
    finally:
        demo.stop()
        for watcher in watchers:
            watcher.cancel()
    return 0


if __name__ == "__main__":
    sys.exit(main())
