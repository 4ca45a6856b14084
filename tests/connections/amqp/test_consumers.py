"""Which consumer reads which queue, and how many messages it may hold."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

from butler_mesh.connections.amqp.consumers import Consumers
from butler_mesh.connections.amqp.dead import DeadLetters
from butler_mesh.connections.amqp.instance import AmqpInstance
from butler_mesh.connections.base import Delivery
from butler_mesh.protocol.mesh import DURABLE, ONE_WAY
from tests.brokers import Broker
from tests.connections.contract import PATIENCE_S, Call, Gate
from tests.connections.cutting import cut, link_of
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


class FakeChannel:
    """Says yes to everything, at once."""

    connection = SimpleNamespace(server_properties={"version": "3.10"})

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.tags = (f"tag-{n}" for n in itertools.count())

    def add_on_cancel_callback(self, callback: object) -> None: ...

    def queue_declare(self, *_: object, **__: object) -> None: ...

    def basic_qos(self, **_: object) -> None: ...

    def basic_consume(self, queue: str, on_message: object, callback: Any) -> str:
        tag = next(self.tags)
        callback(SimpleNamespace(method=SimpleNamespace(consumer_tag=tag)))
        return tag

    def basic_cancel(self, tag: str) -> None:
        self.cancelled.append(tag)


def test_what_a_consumer_is_given_while_it_is_cancelled_is_still_of_its_queue() -> None:
    consumers = Consumers(
        ["svc"], "svc", is_durable=True, credit=10, expires_ms=1000, on_message=lambda *_: None
    )
    channel = FakeChannel()
    consumers.open(channel)
    consumers.hurry("tag-0")  # of the other queue
    assert not channel.cancelled
    for _ in range(2):
        consumers.hurry("tag-1")
    assert channel.cancelled == ["tag-1"]
    assert [consumers.queue_of(f"tag-{n}") for n in range(4)] == ["svc", "svc:durable", "svc:durable", ""]
    consumers.close()
    assert sorted(channel.cancelled) == ["tag-0", "tag-1", "tag-2"]


def test_running_ones_are_recognised_all_of_them_after_a_cut(rabbit: RabbitEngine) -> None:
    stored(rabbit, *[b"%d" % n for n in range(10)])
    gate = Gate()
    instance = rabbit.instance(gate, durable=True, credit=10)
    assert isinstance(instance, AmqpInstance)
    wait_for(lambda: gate.now == 10)
    cut(link_of(instance))
    wait_for(lambda: [job.session for job in instance._jobs.values()] == [2] * 10)
    gate.open()
    wait_for(lambda: gate.left == 10)
    assert Call(rabbit.client(), flags=STORED).status == 202
    wait_for(lambda: gate.left == 11)
    assert len(gate.arrived) == 11
