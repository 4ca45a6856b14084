"""A real RabbitMQ for the tests: one node, started by hand in a private directory, on loopback alone.

Debian's own wrappers change user and directory; what they wrap does not. Nothing here touches the system
service, its files or its ports.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gevent
import pika
import pytest

BIN = Path("/usr/lib/rabbitmq/bin")
START_S = 60.0
"""A node needs four seconds on a quiet machine."""
USER = "mesh"


def free_port() -> int:
    """Return a port of loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Broker:
    """One node. ``start`` and ``stop`` (or ``kill``) may alternate: its ports and its data stay."""

    def __init__(
        self, home: Path, lines: str = "", *, port: int = 0, user: str = USER, password: str = ""
    ) -> None:
        self.home = home
        self.port, self._distribution_port, self._epmd_port = (free_port() for _ in range(3))
        self.port = port or self.port
        self.user = user
        self.password = password or secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        home.joinpath("home").mkdir(parents=True)
        # The cookie is what lets rabbitmqctl in.
        cookie = home / "home" / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        home.joinpath("plugins").write_text("[].")
        home.joinpath("advanced.config").write_text("[].")
        home.joinpath("rabbitmq.conf").write_text(
            f"""listeners.tcp.1 = 127.0.0.1:{self.port}
default_user = {user}
default_pass = {self.password}
loopback_users.{user} = true
log.console = true
log.file = false
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 50MB
{lines}"""
        )

    @property
    def endpoint(self) -> str:
        """Where it listens, with user and password."""
        return f"amqp://{self.user}:{self.password}@127.0.0.1:{self.port}"

    @property
    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOME": str(self.home / "home"),
            "LANG": "C.UTF-8",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.home / "log"),
            "RABBITMQ_PID_FILE": str(self.home / "pid"),
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            # One scheduler that does not spin: the machine belongs to the tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none"
            ),
        }

    def start(self) -> None:
        """Start the node and wait until it takes connections; gives way to other greenlets meanwhile."""
        with self.home.joinpath("out.log").open("ab") as out:
            self._process = subprocess.Popen(
                [str(BIN / "rabbitmq-server")],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        until = time.monotonic() + START_S
        while not self._takes_connections():
            assert self._process.poll() is None, self.home.joinpath("out.log").read_text()
            assert time.monotonic() < until, "the node did not start"
            gevent.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the node; with SIGKILL as a crash would."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            # The shell that was started waits for the machine whose number this file holds.
            os.kill(int(self.home.joinpath("pid").read_text()), how)
        except (OSError, ValueError):
            process.kill()
        until = time.monotonic() + START_S
        while process.poll() is None:
            assert time.monotonic() < until, "the node did not stop"
            gevent.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send the node a signal: SIGSTOP freezes it, SIGCONT lets it go on."""
        os.kill(int(self.home.joinpath("pid").read_text()), number)

    def control(self, *words: str) -> str:
        """Run a command of rabbitmqctl (half a second) and return what it says; hub and all wait."""
        command = [str(BIN / "rabbitmqctl"), "--quiet", *words]
        run = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def connect(self) -> pika.BlockingConnection:
        """Return a connection that does not know of gevent: for some milliseconds, with the hub waiting."""
        credentials = pika.PlainCredentials(self.user, self.password)
        return pika.BlockingConnection(
            pika.ConnectionParameters("127.0.0.1", self.port, credentials=credentials)
        )

    def delete_queues(self, names: Iterable[str]) -> None:
        """Delete queues, those that are there."""
        with closing(self.connect()) as connection:
            for name in names:
                connection.channel().queue_delete(name)

    def close(self) -> None:
        """End the node and the port mapper that came with it."""
        self.stop()
        names = subprocess.run(
            ["epmd", "-port", str(self._epmd_port), "-kill"],
            env=self._environment,
            capture_output=True,
            timeout=10,
            check=False,
        )
        assert names.returncode == 0 or b"Cannot connect" in names.stdout + names.stderr, names

    def _takes_connections(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as probe:
                # A node that is starting accepts and closes; one that is ready waits for our greeting.
                probe.sendall(b"AMQP\0\0\x09\x01")
                return bool(probe.recv(1))
        except OSError:
            return False


@contextmanager
def running_broker(home: Path, lines: str = "", **options: Any) -> Iterator[Broker]:
    """Run a node; without RabbitMQ skip the test, or fail where CI=true says that nothing may be skipped."""
    if not (BIN / "rabbitmq-server").exists() or shutil.which("epmd") is None:
        reason = "needs RabbitMQ: apt-get install rabbitmq-server"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    broker = Broker(home, lines, **options)
    broker.start()
    try:
        yield broker
    finally:
        broker.close()
