"""Which consumer reads which queue, and how many messages it may hold."""

from __future__ import annotations

from typing import Any

from butler_mesh.connections.amqp.dead import DeadLetters
from butler_mesh.connections.base import Delivery
from butler_mesh.protocol.mesh import DURABLE, ONE_WAY
from tests.brokers import Broker
from tests.connections.contract import PATIENCE_S, Call, Gate
from tests.connections.engines import RabbitEngine
from tests.waiting import wait_for

STORED = ONE_WAY | DURABLE


def stored(rabbit: RabbitEngine, *envelopes: bytes) -> None:
    """Store requests of a durable service that nobody serves at present."""
    rabbit._queues.update(["svc:durable", "svc:dead"])
    rabbit.instance(lambda delivery: None, durable=True).close(0.0)
    calls = [Call(rabbit.client(), envelope, flags=STORED) for envelope in envelopes]
    assert {call.status for call in calls} == {202}


def test_what_nobody_had_before_is_taken_by_the_credit(rabbit: RabbitEngine) -> None:
    stored(rabbit, *[b"%d" % n for n in range(20)])
    gate = Gate()
    rabbit.instance(gate, durable=True, credit=10)
    wait_for(lambda: gate.now == 10)
    gate.open()
    wait_for(lambda: gate.left == 20)
    assert sorted(delivery.envelope for delivery in gate.arrived) == sorted(b"%d" % n for n in range(20))


def test_what_has_been_with_others_is_taken_one_by_one_until_new_ones_come(rabbit: RabbitEngine) -> None:
    stored(rabbit, *[b"%d" % n for n in range(6)])
    gate = Gate()
    first = rabbit.instance(gate, durable=True, credit=4)
    wait_for(lambda: gate.now == 4)
    first.abandon()
    second = Gate()
    rabbit.instance(second, durable=True, credit=4)
    wait_for(lambda: second.now == 1)
    assert not second.left
    second.open()
    wait_for(lambda: second.left == 6)


def test_one_that_ends_whoever_begins_it_takes_no_others_with_it_to_the_dead(
    rabbit: RabbitEngine, broker: Broker
) -> None:
    stored(rabbit, *[b"%d" % n for n in range(20)])
    served: list[bytes] = []
    with DeadLetters([broker.endpoint], "svc") as dead:
        for _ in range(7):
            begun: list[bytes] = []
            instances: list[Any] = []

            def handler(delivery: Delivery) -> None:
                begun.append(delivery.envelope)  # noqa: B023 (the round's)
                if delivery.envelope == b"7":
                    instances[0].abandon()  # noqa: B023
                else:
                    served.append(delivery.envelope)
                    delivery.reply(200, b"")

            instances.append(rabbit.instance(handler, durable=True))
            wait_for(lambda: instances[0]._is_closed or dead.count())  # noqa: B023
        assert dead.count() == 1
        (one,) = dead.show(10)
    assert one.envelope == b"7"
    assert set(served) == {b"%d" % n for n in range(20)} - {b"7"}


def test_a_queue_of_stored_requests_that_is_deleted_is_read_again_with_care(
    rabbit: RabbitEngine, broker: Broker
) -> None:
    rabbit._queues.update(["svc:durable", "svc:dead"])
    gate = Gate()
    gate.open()
    instance = rabbit.instance(gate, durable=True)
    client = rabbit.client()
    assert Call(client, flags=STORED).status == 202
    wait_for(lambda: gate.left == 1)
    broker.delete_queues(["svc:durable"])
    wait_for(lambda: not instance._consumers.is_reading.is_set())  # type: ignore[attr-defined]
    assert instance.wait_until_registered(PATIENCE_S)
    assert Call(client, flags=STORED).status == 202
    wait_for(lambda: gate.left == 2)
