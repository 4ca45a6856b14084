"""Workers of arpc's face, inside the process and behind a real broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent.event import Event

from butler_mesh.compat.arpc import mq
from tests.brokers import Broker
from tests.waiting import wait_for

KEY = "example"
QUEUES = (KEY, f"{KEY}:durable", f"{KEY}:dead")

Operations = Callable[..., mq.AMQPOperations]
Start = Callable[..., mq.Server]


class ExampleService:
    """arpc's example, and methods that fail, or tell what they were given."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.gate = Event()

    def c_add(self, req: Any) -> Any:
        return {"res": req["x"] + req["y"]}

    def c_fail(self, req: Any) -> Any:
        raise KeyError("no such thing")

    def c_note(self, req: Any) -> None:
        self.seen.append(req)

    def c_wait(self, req: Any) -> Any:
        self.gate.wait(30.0)
        return {}

    def helper(self, req: Any) -> Any:
        """Is not exposed."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test opens, the latest first."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["memory", "amqp"])
def operations(request: pytest.FixtureRequest, stack: ExitStack) -> Iterator[Operations]:
    """Makes AMQPOperations for each engine."""
    broker: Broker | None = request.getfixturevalue("broker") if request.param == "amqp" else None
    address = "memory://arpc" if broker is None else broker.endpoint
    yield lambda **options: stack.enter_context(mq.AMQPOperations(address=address, **options))
    stack.close()
    if broker is not None:
        broker.delete_queues(QUEUES)


@pytest.fixture
def start(operations: Operations, stack: ExitStack) -> Start:
    """Starts workers of ``example`` in greenlets, and waits until they are known."""

    def start(
        obj: object, codec: Any = None, *, prepare: Callable[[mq.Server], object] = id, **options: Any
    ) -> mq.Server:
        own = ("useack", "persistent", "passphrase")
        amqp = operations(**{name: options.pop(name) for name in own if name in options})
        server = mq.make_server(amqp, KEY, obj, codec, **options)
        server.service.grace = 0.1
        prepare(server)
        running = gevent.spawn(server.loop)
        stack.callback(running.join, 10.0)
        stack.callback(server.stop)
        wait_for(lambda: bool(server.wid) and server.service.wait_until_registered(1.0), 20.0)
        return server

    return start
