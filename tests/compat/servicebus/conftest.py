"""Nodes on real brokers: two that know nothing of each other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gevent
import pytest
from gevent.server import StreamServer

from butler_mesh.compat.servicebus.configuration import Configuration, message_service, service_name
from butler_mesh.compat.servicebus.sender import Sender
from butler_mesh.compat.servicebus.service import ServiceBus
from butler_mesh.connections.amqp.dead import DeadLetters
from tests.brokers import Broker

PATIENCE_S = 10.0
SECRET = "secret token"

pytest.register_assert_rewrite("tests.compat.servicebus.services")


class Bench:
    """Makes configurations, agents and senders for the node ``NODE-01``."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._opened: list[Any] = []
        self._buses: list[ServiceBus] = []

    def configuration(self, *hosts: str, **options: Any) -> Configuration:
        here = f"127.0.0.1:{self.broker.port}"
        return Configuration(
            {
                "hosts": hosts or [here],
                "user": self.broker.user,
                "password": self.broker.password,
                "node_name": "NODE-01",
                "secret_token": SECRET,
                **options,
            }
        )

    def bus(self, *hosts: str, queue_len: int = 100, **options: Any) -> ServiceBus:
        """Return an agent that is not started; it is stopped in the end."""
        bus = ServiceBus(self.configuration(*hosts, **options), queue_len)
        self._opened.append(bus.stop)
        self._buses.append(bus)
        return bus

    def start(self, bus: ServiceBus) -> ServiceBus:
        """Start it, and wait until it reads what it is sent."""
        bus.run_services(join=False)
        assert bus.wait_until_registered(PATIENCE_S)
        return bus

    def sender(self, *hosts: str, smart_route: bool = True, **options: Any) -> Sender:
        sender = Sender(self.configuration(*hosts, **options), smart_route)
        self._opened.append(sender.close)
        return sender

    def close(self) -> None:
        for close in reversed(self._opened):
            close()
        self.broker.delete_queues(self._queues())

    def dead(self, category: str, name: str) -> DeadLetters:
        """Return the messages that a service could not work on."""
        return DeadLetters([self.broker.endpoint], message_service("NODE-01", category, name))

    def _queues(self) -> set[str]:
        names = {"NODE-01", service_name("NODE-01")}
        for bus in self._buses:
            node = bus.configuration.node_name
            names |= {node, service_name(node)}
            for key in bus.message_services:
                queue = message_service(node, *key.split("."))
                names |= {queue, f"{queue}:durable", f"{queue}:dead"}
        return names


@pytest.fixture
def bench(broker: Broker) -> Iterator[Bench]:
    made = Bench(broker)
    yield made
    made.close()


@pytest.fixture
def silent() -> Iterator[str]:
    """A host that takes connections and says nothing."""
    with closing(StreamServer(("127.0.0.1", 0), lambda *_: gevent.sleep(60.0))) as server:
        server.start()
        yield f"127.0.0.1:{server.server_port}"
        server.stop(0.0)


@pytest.fixture(autouse=True)
def _logs_no_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A test that provokes an error looks at it, and calls ``caplog.clear()``."""
    yield
    errors = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    assert not errors, caplog.text
