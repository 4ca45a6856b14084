"""A real Mongrel2 for tests: its own directory, free loopback ports, ended by its id."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from gevent import socket

from tests.programs import do_without
from tests.waiting import wait_for
from tests.web.fronts import Site

UUID = "f400bf85-4538-4f7a-8908-67e313d515c2"
SENDER = "34f9ceee-cd52-4b7f-b197-88bf2f0ec378"
SETTINGS: dict[str, Any] = {
    "server.daemonize": 0,
    "limits.content_length": 1048576,
    "limits.buffer_size": 16384,
    "limits.min_ping": 0,
    "upload.temp_store": "tmp/upload.XXXXXX",
    "upload.temp_store_mode": "0600",
    "download.flow_control": 1,
}


NOTICE_S = 0.005
"""libzmq looks for news of its peers no more than once a millisecond, and nothing tells us when it has: what
is pushed to one that has just closed is lost."""


class Mongrel2(Site):
    """A server in ``directory``; ``handlers`` is how many Handlers it has, at ``/``, ``/h1/`` …"""

    def __init__(
        self, directory: Path, *, protocol: str = "tnetstring", handlers: int = 1, **settings: Any
    ) -> None:
        needs_mongrel2()
        self.directory = directory
        self.store = directory / "tmp"
        for name in ("run", "log", "tmp"):
            (directory / name).mkdir(exist_ok=True)
        self.port, *ports = free_ports(1 + 2 * handlers)
        self.specs = [
            (f"tcp://127.0.0.1:{ports[2 * n]}", f"tcp://127.0.0.1:{ports[2 * n + 1]}")
            for n in range(handlers)
        ]
        self._configure(protocol, {**SETTINGS, **{k.replace("__", "."): v for k, v in settings.items()}})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it listens."""
        # Its pid file would keep the next one from starting while anything has that id.
        (self.directory / "run" / "mongrel2.pid").unlink(missing_ok=True)
        with (self.directory / "out.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["mongrel2", "run/config.sqlite", UUID],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for(self._listens, 20.0)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, by this signal first."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5.0)

    def forget_handlers(self) -> None:
        """Wait until it knows that no handler is there, so that the next request waits for one."""
        ports = {int(send.rpartition(":")[2]) for send, _ in self.specs}
        wait_for(lambda: not ports & _connected_ports())
        gevent.sleep(NOTICE_S)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "out.log").read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def _configure(self, protocol: str, settings: dict[str, Any]) -> None:
        handlers, routes = [], {}
        for number, (send, recv) in enumerate(self.specs):
            sender = SENDER[:-1] + str(number)
            handlers.append(
                f"h{number} = Handler(send_spec='{send}', send_ident='{sender}', recv_spec='{recv}', "
                f"recv_ident='', protocol='{protocol}')"
            )
            routes[f"/h{number}/" if number else "/"] = f"h{number}"
        table = ", ".join(f"'{path}': {name}" for path, name in routes.items())
        lines = [
            *handlers,
            f"host = Host(name='localhost', routes={{{table}}})",
            f"s = Server(uuid='{UUID}', access_log='log/access.log', error_log='log/error.log', "
            "pid_file='run/mongrel2.pid', control_port='ipc://run/control', default_host='localhost', "
            f"name='mesh', bind_addr='127.0.0.1', port={self.port}, hosts=[host])",
            "settings = {" + ", ".join(f'"{k}": {v!r}'.replace("'", '"') for k, v in settings.items()) + "}",
            "servers = [s]",
        ]
        (self.directory / "mesh.conf").write_text("\n".join(lines) + "\n")
        subprocess.run(
            ["m2sh", "load", "-config", "mesh.conf", "-db", "run/config.sqlite"],
            cwd=self.directory,
            env={**os.environ, "LOGNAME": "mesh"},
            check=True,
            capture_output=True,
            timeout=30,
        )


def needs_mongrel2() -> None:
    """Skip the test where there is no Mongrel2, but fail it in CI."""
    if shutil.which("mongrel2") is None or shutil.which("m2sh") is None:
        do_without("mongrel2 and m2sh (Debian's mongrel2-core)")


@contextlib.contextmanager
def running(directory: Path, **options: Any) -> Iterator[Mongrel2]:
    """Run a server; ``options`` are Mongrel2's, settings among them (``limits__buffer_size=4096``)."""
    server = Mongrel2(directory, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _connected_ports() -> set[int]:
    """Return the loopback ports that have connections."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return {int(local.rpartition(":")[2], 16) for _, local, _, state, *_ in fields if state == "01"}


def free_ports(number: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
