"""Requests that found no room."""

from __future__ import annotations

import pytest

from butler_mesh.connections.amqp import queues
from tests.brokers import Broker
from tests.connections.contract import Call, Gate
from tests.connections.engines import RabbitEngine
from tests.waiting import wait_for


@pytest.fixture(autouse=True)
def _short_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "MAX_WAITING", 2)


def refused(rabbit: RabbitEngine) -> int:
    """Return how many of ten calls were refused."""
    client = rabbit.client()
    calls = [Call(client, within_s=30.0) for _ in range(10)]
    wait_for(lambda: sum(call.is_over for call in calls) >= 6)
    assert {call.status for call in calls if call.is_over} == {503}
    return sum(call.is_over for call in calls)


def test_their_queue_is_read_again_when_it_was_deleted(rabbit: RabbitEngine, broker: Broker) -> None:
    gate = Gate()
    instance = rabbit.instance(gate, credit=1)
    overflow = instance._overflow  # type: ignore[attr-defined]
    wait_for(lambda: overflow._consumers)
    before = set(overflow._consumers)
    broker.delete_queues([queues.full_queue("svc")])
    wait_for(lambda: overflow._consumers and not before & set(overflow._consumers))
    assert refused(rabbit) >= 6
    gate.open()


def test_whoever_keeps_us_from_their_queue_does_not_keep_us_from_serving(
    rabbit: RabbitEngine, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with broker.connect() as connection:
        connection.channel().queue_declare(queues.full_queue("early"), arguments={"x-max-length": 7})
        rabbit.instance(lambda delivery: delivery.reply(200, b""), "early")
        wait_for(lambda: "overflow-unread" in caplog.text)
        assert Call(rabbit.client(), to="early").status == 200
        connection.channel().queue_delete(queues.full_queue("early"))


def test_readers_do_not_pile_up_when_a_services_queue_is_deleted(
    rabbit: RabbitEngine, broker: Broker
) -> None:
    instance = rabbit.instance(lambda delivery: delivery.reply(200, b""))
    for _ in range(5):
        broker.delete_queues(["svc"])
        assert instance.wait_until_registered(5.0)
    with broker.connect() as connection:
        full = connection.channel().queue_declare(queues.full_queue("svc"), passive=True)
        assert full.method.consumer_count == 1
