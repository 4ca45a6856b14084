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
from butler_mesh.connections.amqp.delivery import MAX_WINDOW, AmqpDelivery
from butler_mesh.errors import Stopped
from butler_mesh.protocol.mesh import DURABLE, ONE_WAY, STREAM
from butler_mesh.protocol.wheel import NEVER
from tests.waiting import wait_for


class FakeInstance:
    unsent_bytes = 0

    def __init__(self) -> None:
        self.clocks = Clocks()
        self.durable_queue = "svc:durable"
        self.replies: list[Any] = []

    def reply(self, job: AmqpDelivery, code: int, envelope: bytes, flags: int, *, final: bool) -> None:
        self.replies.append((code, envelope, flags, final))


@pytest.fixture
def instance() -> FakeInstance:
    return FakeInstance()


def a_delivery(instance: FakeInstance, flags: int = 0, *, window: int = 0) -> AmqpDelivery:
    target, queue = ("svc", "svc:durable") if flags & DURABLE else ("/a/b", "/a")
    properties = messages.request_properties("me.1", target, queue, flags, 3000, 0, window)
    return AmqpDelivery(instance, properties, queue, b"{}", 1, 1, monotonic())


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
    properties = BasicProperties(type="request")
    assert AmqpDelivery(instance, properties, "svc", b"", 1, 1, monotonic()).deadline == NEVER


def test_only_what_comes_from_the_queue_of_stored_requests_is_one(instance: FakeInstance) -> None:
    for says, queue, is_stored in ((DURABLE, "svc", False), (0, "svc:durable", True), (DURABLE, "", False)):
        properties = messages.request_properties("me.1", "svc", queue, says | ONE_WAY, 3000, 0, 0)
        delivery = AmqpDelivery(instance, properties, queue, b"{}", 1, 1, monotonic())
        assert bool(delivery.flags & DURABLE) is is_stored


@pytest.mark.parametrize(
    "properties",
    [
        BasicProperties(type="part"),
        BasicProperties(type="unreadable"),
        BasicProperties(headers={"flags": "1"}),
        BasicProperties(type="request", headers={"x-death": [1, [2]]}),
        BasicProperties(type="request", headers={"x-death": "often"}),
        BasicProperties(type="request", expiration="soon"),
    ],
)
def test_what_is_no_request_is_a_value_error(instance: FakeInstance, properties: BasicProperties) -> None:
    with pytest.raises(ValueError):
        AmqpDelivery(instance, properties, "svc", b"{}", 1, 1, monotonic())


def test_what_nobody_could_mean_is_taken_for_the_most_that_is_sound(instance: FakeInstance) -> None:
    headers = {"window": 2**62, "flags": STREAM, "x-delivery-count": -100}
    properties = BasicProperties(type="request", reply_to="me", headers=headers, expiration=str(2**45))
    delivery = AmqpDelivery(instance, properties, "svc", b"{}", 1, 1, monotonic())
    assert (delivery.window, delivery.deliveries) == (MAX_WINDOW, 0)
    assert delivery.deadline - monotonic() <= messages.MAX_MS / 1000
    properties = BasicProperties(type="request", headers={"flags": STREAM})
    assert AmqpDelivery(instance, properties, "svc", b"{}", 1, 1, monotonic()).flags == ONE_WAY


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
