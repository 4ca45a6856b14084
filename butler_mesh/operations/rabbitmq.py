"""RabbitMQ nodes to develop and test with: started by hand, in one private directory, on loopback alone.

::

    DIRECTORY/cluster.json   the port of the nodes' own name server, and each node's two ports
              password       of the user "mesh", who may do everything
              home/          with the cookie by which nodes and rabbitmqctl know each other
              1/ 2/ 3/       a node: its configuration, its data, its pid, and out.log

A distribution's wrappers change user and directory; what they wrap does not. Nothing here touches the
system's own service, its files or its ports. No cluster for production: all its nodes die with one machine.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import gevent

from butler_mesh.errors import MeshError, UsageError

HOST = "127.0.0.1"
USER = "mesh"
DEBIAN = Path("/usr/lib/rabbitmq/bin")
"""Its wrappers on PATH become the user rabbitmq and change to its directory; the programs here do not."""
START_S = 60.0
"""A node needs four seconds on a quiet machine, six more as a member of a cluster."""
ALONE_S = 8.0
"""Then the next one is started, too: after a crash of all a node may wait for those that knew more."""
STOP_S = 30.0
EPMD_S = 5.0
"""It learns that a node has ended a moment after that."""
LOOK_S = 0.05
LAST_LINES = 5
"""Of the log of a node that did not start."""
CONFIGURATION = """\
listeners.tcp.1 = {host}:{port}
default_user = {user}
default_pass = {password}
loopback_users.{user} = true
log.console = true
log.file = false
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 50MB
{more}"""
MEMBER = """\
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = {first}
cluster_formation.classic_config.nodes.2 = {name}
cluster_formation.discovery_retry_limit = 3
"""
"""A node that is started first finds nobody and is a cluster by itself; the others join the first."""


def programs() -> Path | None:
    """Return the directory of RabbitMQ's programs; None where it, or Erlang, is not installed."""
    if shutil.which("erl") is None:
        return None
    if (DEBIAN / "rabbitmq-server").exists():
        return DEBIAN
    found = shutil.which("rabbitmq-server")
    return Path(found).resolve().parent if found else None


def check_programs() -> Path:
    """Return the directory of RabbitMQ's programs; raises UsageError, with advice, where there is none."""
    found = programs()
    if found is None:
        raise UsageError(
            "rabbitmq-server is not installed: 'apt install rabbitmq-server' on Debian and Ubuntu"
        )
    return found


def free_ports(number: int) -> list[int]:
    """Return ports of loopback that nobody uses."""
    probes = [socket.create_server((HOST, 0)) for _ in range(number)]
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Node:
    """One node. ``start`` and ``stop`` may alternate: its ports and its data stay."""

    def __init__(self, home: Path, name: str, port: int, environment: dict[str, str]) -> None:
        self.home = home
        self.name = name
        self.port = port
        self.environment = {
            **os.environ,
            **environment,
            "LANG": "C.UTF-8",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            # By this a process is known as this node; it removes the file long before it ends.
            "RABBITMQ_PID_FILE": str(home / "rabbitmq.pid"),
            "RABBITMQ_NODENAME": name,
            # The shell becomes Erlang, and does not wait for it: one process, which takes signals itself.
            "RUNNING_UNDER_SYSTEMD": "true",
            # One scheduler that does not spin: the machine belongs to those who develop on it.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none"
            ),
        }
        # Its process, if we started it and it has not ended: ended, it is ours to bury.
        self._child: int | None = None

    @property
    def endpoint(self) -> str:
        """Where it listens, without the password."""
        return f"amqp://{USER}@{HOST}:{self.port}"

    @property
    def command(self) -> list[str]:
        """What starts it, with its ``environment``; raises UsageError where RabbitMQ is not installed."""
        return [str(check_programs() / "rabbitmq-server")]

    @property
    def pid(self) -> int | None:
        """The id of its process, whoever started it; None when it does not run."""
        if self.is_own:
            return self._child
        try:
            pid = int((self.home / "pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if self._is_ours(pid) else None

    @property
    def is_own(self) -> bool:
        """Whether this object has started it, and it runs."""
        return not self._has_child_ended()

    def start(self, within_s: float = START_S) -> None:
        """Start it and wait until it takes connections; other greenlets go on. MeshError if it does not."""
        self.launch()
        if not self.wait_until_ready(within_s):
            raise MeshError(f"{self.name} was not ready in {within_s:.0f} s: {self.last_words()}")

    def launch(self) -> None:
        """Start it, unless it runs, and do not wait; raises UsageError where its port is taken."""
        if self.pid is not None:
            return
        with suppress(OSError):
            socket.create_connection((HOST, self.port), timeout=1.0).close()
            raise UsageError(f"{HOST}:{self.port} is in use by another process")
        program, *arguments = self.command
        out = os.open(self.home / "out.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # Not subprocess, which wants to see the end of what it has started.
            self._child = os.posix_spawn(
                program,
                [program, *arguments],
                self.environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, out, 1),
                    (os.POSIX_SPAWN_DUP2, out, 2),
                ],
                setsid=True,  # a Ctrl-C is for whoever started it
            )
            (self.home / "pid").write_text(str(self._child))
        finally:
            os.close(out)

    def wait_until_ready(self, within_s: float) -> bool:
        """Tell whether it takes connections within so long; raises MeshError when its process has ended."""

        def is_ready() -> bool:
            if self._child is not None and self._has_child_ended():
                raise MeshError(f"{self.name} ended: {self.last_words()}")
            return self.is_ready()

        return _wait(is_ready, within_s)

    def is_ready(self) -> bool:
        """Tell whether it takes connections."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as probe:
                # A node that is starting accepts and closes; one that is ready waits for our greeting.
                probe.sendall(b"AMQP\0\0\x09\x01")
                return bool(probe.recv(1))
        except OSError:
            return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it; with SIGKILL as a crash would. A frozen one is killed in the end. Other greenlets go on."""
        pid, is_own = self.pid, self.is_own
        if pid is None:
            return

        def has_ended() -> bool:
            return self._has_child_ended() if is_own else not self._is_ours(pid)

        for number in (how, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            if _wait(has_ended, STOP_S):
                return
        raise MeshError(f"{self.name} does not end")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs: SIGSTOP freezes it, SIGCONT lets it go on."""
        pid = self.pid
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def control(self, *words: str, program: str = "rabbitmqctl") -> str:
        """Run a command of rabbitmqctl (half a second) and return what it says; the hub waits, too."""
        run = subprocess.run(
            [str(check_programs() / program), "--quiet", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        if run.returncode:
            raise MeshError(f"{program} {words[0]}: {run.stderr.strip()}")
        return run.stdout

    def _has_child_ended(self) -> bool:
        if self._child is not None:
            try:
                ended, _ = os.waitpid(self._child, os.WNOHANG)
            except ChildProcessError:  # buried by somebody who buries all: gevent, where it has children
                ended = self._child
            if ended:
                self._child = None
        return self._child is None

    def _is_ours(self, pid: int) -> bool:
        """Tell whether a process is this node: not all that has its number is."""
        return _has_in_environment(pid, f"RABBITMQ_PID_FILE={self.home}/rabbitmq.pid")

    def last_words(self) -> str:
        """Return the last lines of its log."""
        try:
            lines = (self.home / "out.log").read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        said = [line.strip() for line in lines if line.strip()]
        return " | ".join(said[-LAST_LINES:]) or "it says nothing"


class Cluster:
    """Some nodes, one at least, in a directory: what ``create`` wrote there, ``open`` reads."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()  # so it is known by whatever way it is named
        written = json.loads((home / "cluster.json").read_text())
        self.password = (home / "password").read_text()
        self._epmd_port: int = written["epmd_port"]
        self.nodes = [
            Node(
                self.home / str(number),
                _name(number),
                port,
                {
                    "HOME": str(self.home / "home"),
                    "ERL_EPMD_PORT": str(self._epmd_port),
                    "ERL_EPMD_ADDRESS": HOST,
                    "RABBITMQ_DIST_PORT": str(distribution_port),
                },
            )
            for number, (port, distribution_port) in enumerate(written["ports"], 1)
        ]

    @classmethod
    def create(cls, home: Path, nodes: int = 1, *, port: int = 0, more: str = "") -> Self:
        """Write what nodes need into a new directory. They listen at ``port`` and those after it, or where
        it is free; ``more`` is what their configuration has besides. UsageError where something is there."""
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(home.iterdir()):
                raise UsageError(f"{home} is not empty")
            home.chmod(0o700)  # it may have been there, for all to read
            (home / "home").mkdir()
            password = secrets.token_hex(16)
            _write_private(home / "password", password, 0o400)
            _write_private(home / "home" / ".erlang.cookie", secrets.token_hex(16), 0o400)
            epmd_port, *free = free_ports(1 + 2 * nodes)
            ports = list(range(port, port + nodes)) if port else free[:nodes]
            for number, its in enumerate(ports, 1):
                place = home / str(number)
                place.mkdir()
                extra = MEMBER.format(first=_name(1), name=_name(number)) if number > 1 else ""
                text = CONFIGURATION.format(
                    host=HOST, port=its, user=USER, password=password, more=extra + more
                )
                _write_private(place / "rabbitmq.conf", text, 0o600)
                (place / "plugins").write_text("[].")
                (place / "advanced.config").write_text("[].")
            pairs = list(zip(ports, free[nodes:], strict=True))
            # Last: a directory with this file has all the others.
            (home / "cluster.json").write_text(json.dumps({"epmd_port": epmd_port, "ports": pairs}))
        except OSError as error:
            raise UsageError(f"cannot write to {home}: {error}") from error
        return cls(home)

    @classmethod
    def open(cls, home: Path) -> Self:
        """Return the cluster of a directory; raises UsageError where there is none."""
        try:
            return cls(home)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"there is no cluster in {home}") from error

    @property
    def endpoint(self) -> str:
        """Where it listens, without the password, which is in the file ``password``."""
        return f"amqp://{USER}@{self._hosts}"

    @property
    def secret_endpoint(self) -> str:
        """Where it listens, with the password."""
        return f"amqp://{USER}:{self.password}@{self._hosts}"

    def start(self) -> None:
        """Start those that do not run, one after the other, and wait until all take connections.

        UsageError where RabbitMQ is missing or a port is taken, MeshError with the last lines of the log of
        a node that fails. Those that run by then go on.
        """
        # Nodes that start together may meet half-made versions of each other, and crash (seen in 3.10).
        for node in self.nodes:
            node.launch()
            node.wait_until_ready(ALONE_S)
        for node in self.nodes:
            node.start()

    def stop(self, *, only_own: bool = False) -> None:
        """End all nodes, or ``only_own``, which this object has started; the first one last, and with the
        last one their name server. MeshError for one that does not end.

        A node waits at its start for those that ended after it: so the first one waits for nobody.
        """
        for node in reversed(self.nodes):
            if node.is_own or not only_own:
                node.stop()
        if all(node.pid is None for node in self.nodes):
            _wait(self._has_no_epmd, EPMD_S)

    def remove(self) -> None:
        """Remove the directory, when all have ended."""
        shutil.rmtree(self.home)

    def _has_no_epmd(self) -> bool:
        """End the nodes' name server, unless one of them is with it still; tell whether it has ended."""
        if not self._has_epmd():
            # Whoever listens on its port now is somebody else.
            return True
        with suppress(OSError), socket.create_connection((HOST, self._epmd_port), timeout=1.0) as epmd:
            epmd.sendall(b"\0\1k")  # "kill", in its own language
            epmd.recv(2)
        return False

    def _has_epmd(self) -> bool:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if (process / "comm").read_text() == "epmd\n" and _has_in_environment(
                    process.name, f"HOME={self.home}/home"
                ):
                    return True
        return False

    @property
    def _hosts(self) -> str:
        return ",".join(f"{HOST}:{node.port}" for node in self.nodes)


def _name(number: int) -> str:
    return f"mesh{number}@localhost"


def _write_private(path: Path, text: str, mode: int) -> None:
    """Write a new file, which at no time is anybody else's to read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)


def _has_in_environment(pid: int | str, entry: str) -> bool:
    """Tell whether a process was started with this; False for those that are other users'."""
    try:
        return entry.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _wait(condition: Callable[[], bool], within_s: float) -> bool:
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            return False
        gevent.sleep(LOOK_S)
    return True
