"""A real RabbitMQ for the tests, as ``butler-mesh rabbitmq`` runs it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from signal import SIGTERM, Signals

import pika
import pytest

from butler_mesh.operations import rabbitmq
from butler_mesh.operations.rabbitmq import HOST, USER, Cluster, Node, free_ports, programs


def free_port() -> int:
    """Return a port of loopback that nobody uses."""
    return free_ports(1)[0]


def connect(node: Node, password: str, user: str = USER) -> pika.BlockingConnection:
    """Return a connection that does not know of gevent: for some milliseconds, with the hub waiting."""
    credentials = pika.PlainCredentials(user, password)
    return pika.BlockingConnection(pika.ConnectionParameters(HOST, node.port, credentials=credentials))


class Broker:
    """One node, which may be ended and started again."""

    def __init__(self, cluster: Cluster, user: str = USER, password: str = "") -> None:
        self.cluster = cluster
        self.node = cluster.nodes[0]
        self.port = self.node.port
        self.user = user
        self.password = password or cluster.password

    @property
    def endpoint(self) -> str:
        """Where it listens, with user and password."""
        return f"amqp://{self.user}:{self.password}@{HOST}:{self.port}"

    def start(self) -> None:
        """Start the node and wait until it takes connections; gives way to other greenlets meanwhile."""
        self.node.start()

    def stop(self, how: Signals = SIGTERM) -> None:
        """End the node; with SIGKILL as a crash would."""
        self.node.stop(how)

    def signal(self, number: Signals) -> None:
        """Send the node a signal: SIGSTOP freezes it, SIGCONT lets it go on."""
        self.node.signal(number)

    def control(self, *words: str) -> str:
        """Run a command of rabbitmqctl (half a second) and return what it says; hub and all wait."""
        return self.node.control(*words)

    def connect(self) -> pika.BlockingConnection:
        """Return a connection that does not know of gevent: for some milliseconds, with the hub waiting."""
        return connect(self.node, self.password, self.user)

    def delete_queues(self, names: Iterable[str]) -> None:
        """Delete queues, those that are there."""
        with closing(self.connect()) as connection:
            for name in names:
                connection.channel().queue_delete(name)


def needs_rabbitmq() -> None:
    """Skip the test where RabbitMQ is missing, or fail where CI=true says that nothing may be skipped."""
    if programs() is None:
        reason = "needs RabbitMQ: apt-get install rabbitmq-server"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def fake(bin_: Path, program: str, text: str) -> None:
    """Write a shell script of this name, which is found before the real program."""
    bin_.mkdir(exist_ok=True)
    (bin_ / program).write_text(f"#!/bin/sh\n{text}\n")
    (bin_ / program).chmod(0o755)


def fake_rabbitmq(monkeypatch: pytest.MonkeyPatch, bin_: Path, text: str) -> None:
    """Have nodes be this shell script, in the environment of real ones."""
    fake(bin_, "rabbitmq-server", text)
    monkeypatch.setattr(rabbitmq, "DEBIAN", bin_)
    monkeypatch.setattr(rabbitmq.shutil, "which", lambda program: program)


@contextmanager
def running_cluster(home: Path, nodes: int, more: str = "", *, port: int = 0) -> Iterator[Cluster]:
    """Run some nodes."""
    needs_rabbitmq()
    cluster = Cluster.create(home, nodes, port=port, more=more)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@contextmanager
def running_broker(
    home: Path, more: str = "", *, port: int = 0, user: str = USER, password: str = ""
) -> Iterator[Broker]:
    """Run one node, with a user and password of one's own where they are given."""
    # Of what is said twice the last counts.
    more += f"\ndefault_user = {user}\nloopback_users.{user} = true\n" if user != USER else ""
    more += f"\ndefault_pass = {password}\n" if password else ""
    with running_cluster(home, 1, more, port=port) as cluster:
        yield Broker(cluster, user, password)
