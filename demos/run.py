"""The demo in one command: router (or RabbitMQ), service and web page as own processes, until Ctrl-C.

    python demos/run.py            # http://127.0.0.1:6767/; DEMO_PORT=8080 for another port, 0 for any
    FRONT=mongrel2 python demos/run.py            # the same page behind a Mongrel2 server
    ENGINE=rabbitmq python demos/run.py           # the same with a RabbitMQ in the router's place

The mesh listens on free loopback ports. Whatever ends this program, short of kill -9, ends all of it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from importlib import import_module
from pathlib import Path
from typing import Any

import gevent
from gevent import socket, subprocess
from gevent.event import Event
from mongrel2_server import Mongrel2
from rich.console import Console
from rich.text import Text

from butler_mesh import Client
from butler_mesh.errors import UsageError
from butler_mesh.operations.rabbitmq import Cluster, check_programs

HOST = "127.0.0.1"
PORT = "6767"
PASSWORD = "BUTLER_MESH_AMQP_PASSWORD"  # where an address names a user alone
SERVICE = "slow"
FRONTS = ("wsgi", "mongrel2")
ENGINES = ("mesh", "rabbitmq")
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
    """One process of the demo, in a process group of its own; its log comes out with its name in front.

    But that of one with a ``log`` file: it is not shown, unless the process dies.
    """

    def __init__(
        self,
        name: str,
        style: str,
        command: list[str],
        environment: dict[str, str],
        directory: Path | None = None,
        log: Path | None = None,
    ) -> None:
        self.name = name
        self.style = style
        self.log = log
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.process = subprocess.Popen(
            command,
            cwd=directory,
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
        if self.log is not None and self.log.exists():
            self.last_lines.extend(map(clean, self.log.read_bytes().splitlines()))
        return list(self.last_lines)

    def _read(self) -> None:
        for raw in self.process.stdout:
            line = clean(raw)
            self.last_lines.append(line)
            if self.log is None:
                console.print(Text.assemble((f"{self.name:>8} │ ", self.style), line))


class Demo:
    """All processes, from the first to the last."""

    def __init__(self, port: int, front: str, engine: str) -> None:
        self.port = port
        self.front = front
        self.engine = engine
        self.children: list[Child] = []
        self.mongrel2: Mongrel2 | None = None
        self.rabbitmq: Cluster | None = None
        self.is_stopping = Event()

    def start(self) -> None:
        """Start one after the other, each when the one before is ready; raises Failure."""
        if self.front == "mongrel2":
            # Before there are children: from then on gevent reaps all of them, m2sh too.
            self.mongrel2 = self._configure_mongrel2()
        mesh = self._start_rabbitmq() if self.engine == "rabbitmq" else self._start_router()
        self._start("service", "yellow", python(HERE / "demo_service.py"), mesh)
        with Client(mesh["BUTLER_MESH_FRONTEND"], timeout=1.0) as client:
            self._wait(lambda: has_service(client))
        # Mongrel2 before the page: so it ends after it, and what the page still answers reaches the browser.
        where = ["--port", str(self.port)]
        if self.mongrel2 is not None:
            where = self._start_mongrel2(self.mongrel2)
        self._start("web", "green", python(HERE / "demo_service_client.py", *where), mesh)
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
        if self.mongrel2 is not None:
            self.mongrel2.remove()
        if self.rabbitmq is not None:
            self.rabbitmq.stop()
            self.rabbitmq.remove()

    def on_signal(self) -> None:
        if self.is_stopping.is_set():  # the second time: now
            for child in self.children:
                child.signal(signal.SIGKILL)
        self.is_stopping.set()

    def _start_router(self) -> dict[str, str]:
        """Start a router; return the environment that leads to it."""
        frontend, backend = (f"tcp://{HOST}:{port}" for port in free_ports(2))
        options = ["-m", "butler_mesh", "router", "--frontend", frontend, "--backend", backend]
        self._start("router", "cyan", python(*options), {})
        with Client(frontend, timeout=1.0) as client:
            self._wait(lambda: client.request("mmi.status").is_success)
        return {"BUTLER_MESH_FRONTEND": frontend, "BUTLER_MESH_BACKEND": backend}

    def _start_rabbitmq(self) -> dict[str, str]:
        """Start a broker; return the environment that leads to it. Addresses are without the password."""
        self.rabbitmq = Cluster.create(Path(tempfile.mkdtemp(prefix="butler-mesh-demo-")))  # mode 0700
        (node,) = self.rabbitmq.nodes
        console.print("starting RabbitMQ …")  # for some seconds there is nothing else to see
        self._start("rabbitmq", "cyan", node.command, node.environment, node.home, node.home / "out.log")
        self._wait(node.is_ready)
        # Ours, for the client below wants it, too; whatever else is named there is another broker's.
        os.environ.pop(f"{PASSWORD}_FILE", None)
        os.environ[PASSWORD] = self.rabbitmq.password
        return {"BUTLER_MESH_FRONTEND": node.endpoint, "BUTLER_MESH_BACKEND": node.endpoint}

    def _configure_mongrel2(self) -> Mongrel2:
        try:
            return Mongrel2(self.port, *free_ports(2))
        except (OSError, subprocess.SubprocessError) as error:
            raise Failure(f"cannot set up Mongrel2: {error}") from error

    def _start_mongrel2(self, server: Mongrel2) -> list[str]:
        """Start it; return what tells the page where it is."""
        self._start("mongrel2", "magenta", server.command, {}, server.directory, server.log)
        self._wait(lambda: is_open(self.port))
        specs = ["--send-spec", server.send_spec, "--recv-spec", server.recv_spec]
        return ["--front", "mongrel2", *specs, "--upload-store", str(server.store)]

    def _start(self, *arguments: Any) -> None:
        """Start a child, made of these arguments."""
        if not self.is_stopping.is_set():
            self.children.append(Child(*arguments))

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


def python(*arguments: object) -> list[str]:
    """Return the command that runs this Python with arguments."""
    return [sys.executable, *map(str, arguments)]


def clean(raw: bytes) -> str:
    """Return a line of a log as text that does nothing to a terminal."""
    return raw.decode(errors="replace").rstrip().replace("\x1b", "?")


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


def front_named(text: str) -> str:
    """Return which front is meant; raises Failure with exit status 2 where there is none such."""
    if text not in FRONTS:
        raise Failure(f"FRONT is {' or '.join(FRONTS)}, not {text!r}", 2)
    if text == "mongrel2" and not Mongrel2.is_installed():
        raise Failure(
            "FRONT=mongrel2 needs mongrel2 and m2sh: 'apt install mongrel2-core' on Debian 12 and Ubuntu "
            "24.04, 'brew install mongrel2' on macOS; 'butler-mesh doctor' says what else is missing",
            2,
        )
    return text


def engine_named(text: str) -> str:
    """Return which engine is meant; raises Failure with exit status 2 where it is none or missing."""
    if text not in ENGINES:
        raise Failure(f"ENGINE is {' or '.join(ENGINES)}, not {text!r}", 2)
    if text == "rabbitmq":
        try:
            check_programs()
            import_module("pika")
        except ImportError as error:
            raise Failure("ENGINE=rabbitmq needs pika: pip install 'pika>=1.4,<2'", 2) from error
        except UsageError as error:
            advice = "'butler-mesh doctor' says what else is missing"
            raise Failure(f"ENGINE=rabbitmq: {error}; {advice}", 2) from error
    return text


def is_open(port: int) -> bool:
    """Tell whether somebody listens on the port."""
    try:
        socket.create_connection((HOST, port), timeout=2.0).close()
    except OSError:
        return False
    return True


def has_service(client: Client) -> bool:
    """Tell whether the service is there: it says what it offers."""
    return client.request(SERVICE, "/", method="options").is_success


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
        front = front_named(os.environ.get("FRONT") or FRONTS[0])
        engine = engine_named(os.environ.get("ENGINE") or ENGINES[0])
        demo = Demo(page_port(os.environ.get("DEMO_PORT") or PORT), front, engine)
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
    except UsageError as error:  # of an address, or of what the environment says
        print(f"demo: {error}", file=sys.stderr)
        return 2
    finally:
        demo.stop()
        for watcher in watchers:
            watcher.cancel()
    return 0


if __name__ == "__main__":
    sys.exit(main())
