"""A request that came over AMQP, in the hands of a handler."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from pika import BasicProperties

from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp import delivery as amqp_delivery
from butler_mesh.connections.amqp import messages
from butler_mesh.connections.amqp.clocks import Clocks
from butler_mesh.connections.amqp.delivery import AmqpDelivery
from butler_mesh.errors import Stopped
from butler_mesh.protocol.mesh import DURABLE, ONE_WAY, STREAM
from butler_mesh.protocol.wheel import NEVER
from tests.waiting import wait_for


class FakeInstance:
    unsent_bytes = 0

    def __init__(self) -> None:
        self.clocks = Clocks()
        self.replies: list[Any] = []

    def reply(self, job: AmqpDelivery, code: int, envelope: bytes, flags: int, *, final: bool) -> None:
        self.replies.append((code, envelope, flags, final))


@pytest.fixture
def instance() -> FakeInstance:
    return FakeInstance()


def a_delivery(instance: FakeInstance, flags: int = 0, *, window: int = 0) -> AmqpDelivery:
    properties = messages.request_properties("me.1", "/a/b", "/a", flags, 3000, 0, window)
    return AmqpDelivery(instance, properties, "/a", b"{}", 1, 1, monotonic())


def test_it_is_what_was_sent(instance: FakeInstance) -> None:
    delivery = a_delivery(instance)
    assert (delivery.id, delivery.target, delivery.queue, delivery.envelope) == ("me.1", "/a/b", "/a", b"{}")
    assert 2.0 < delivery.deadline - monotonic() <= 3.0
    assert not delivery.patience_s
    delivery.reply(200, b"done", flags=16)
    delivery.reply(200, b"part", final=False)
    assert instance.replies == [(200, b"done", 16, True), (200, b"part", 0, False)]


def test_a_stored_request_has_its_handlers_time_from_now(instance: FakeInstance) -> None:
    delivery = a_delivery(instance, DURABLE | ONE_WAY)
    assert delivery.flags == DURABLE | ONE_WAY
    assert 2.0 < delivery.deadline - monotonic() <= 3.0


def test_what_says_nothing_of_time_has_all_of_it(instance: FakeInstance) -> None:
    assert AmqpDelivery(instance, BasicProperties(), "svc", b"", 1, 1, monotonic()).deadline == NEVER


def test_a_stream_waits_for_its_window(instance: FakeInstance) -> None:
    delivery = a_delivery(instance, STREAM, window=1)
    delivery.wait_for_window()
    delivery.window = 0
    waiting = gevent.spawn(delivery.wait_for_window)
    wait_for(lambda: delivery.window_opened is not None)
    assert not waiting.ready()
    delivery.window += 1
    assert delivery.window_opened is not None
    delivery.window_opened.set()
    waiting.get(timeout=5.0)


def test_a_stream_whose_reader_takes_nothing_is_stopped(
    instance: FakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_delivery, "WINDOW_PATIENCE_S", 0.01)
    with pytest.raises(Stopped):
        a_delivery(instance, STREAM).wait_for_window()


def test_a_stream_waits_for_the_connection_too(instance: FakeInstance) -> None:
    instance.unsent_bytes = 10**9
    waiting = gevent.spawn(a_delivery(instance, STREAM, window=1).wait_for_window)
    gevent.sleep(0.02)
    assert not waiting.ready()
    instance.unsent_bytes = 0
    waiting.get(timeout=5.0)
