"""The instance's side of ``amqp://``: what is taken, begun, given back, and answered for the dead."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing

import gevent
import pika
import pytest

from butler_mesh.clock import monotonic
from butler_mesh.connections import rabbitmq
from butler_mesh.connections.amqp import queues, retries
from butler_mesh.connections.amqp.instance import AmqpInstance
from butler_mesh.connections.base import Delivery
from butler_mesh.errors import UsageError
from butler_mesh.protocol.mesh import DURABLE, IDEMPOTENT, ONE_WAY, STREAM
from tests.brokers import Broker
from tests.connections.contract import PATIENCE_S, Call, Gate, echo
from tests.connections.cutting import cut, link_of
from tests.connections.engines import RabbitEngine
from tests.waiting import wait_for

STORED = ONE_WAY | DURABLE


@pytest.mark.parametrize(
    ("service", "options"),
    [
        ("amq.svc", {}),
        ("x" * 256, {}),
        ("svc", {"credit": 0}),
        ("svc", {"credit": 65536}),
        ("svc", {"register_secret": "secret"}),
    ],
)
def test_what_no_broker_would_take_is_refused_here(service: str, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        rabbitmq.instance(["amqp://127.0.0.1"], service, (), **options)


def test_one_credit_holds_for_all_queues_together(rabbit: RabbitEngine) -> None:
    gate = Gate()
    instance = rabbit.instance(gate, "svc", paths=["/a", "/b"], credit=2)
    client = rabbit.client()
    calls = [Call(client, to=to) for to in ("svc", "/a", "/b") for _ in range(4)]
    wait_for(lambda: len(instance._held) == 4)  # type: ignore[attr-defined]
    assert gate.now == 2
    gate.open()
    assert {call.status for call in calls} == {200}
    assert gate.most == 2


def test_what_is_held_and_given_up_is_never_begun(rabbit: RabbitEngine) -> None:
    gate = Gate()
    instance = rabbit.instance(gate, "svc", paths=["/a"], credit=1)
    client = rabbit.client()
    first = Call(client)
    wait_for(lambda: gate.now == 1)
    late, cancelled = Call(client, to="/a", within_s=0.2), None
    wait_for(lambda: instance._held)  # type: ignore[attr-defined]
    assert late.status == 504
    wait_for(lambda: not instance._held)  # type: ignore[attr-defined]
    cancelled = Call(client, to="/a")
    wait_for(lambda: instance._held)  # type: ignore[attr-defined]
    client.cancel(cancelled.handle)
    wait_for(lambda: not instance._held)  # type: ignore[attr-defined]
    gate.open()
    assert first.status == 200
    assert Call(client, to="/a").status == 200
    assert len(gate.arrived) == 2


def test_a_request_whose_cut_off_instance_comes_back_is_answered_by_it(rabbit: RabbitEngine) -> None:
    gate = Gate(b"after all")
    instance = rabbit.instance(gate)
    client = rabbit.client()
    calls = [Call(client) for _ in range(3)]
    wait_for(lambda: gate.now == 3)
    assert isinstance(instance, AmqpInstance)
    cut(link_of(instance))
    wait_for(lambda: [job.session for job in instance._jobs.values()] == [2] * 3)
    gate.open()
    assert [call.final().envelope for call in calls] == [b"after all"] * 3
    assert len(gate.arrived) == 3


@pytest.mark.parametrize("is_stored", [False, True])
def test_what_ends_while_an_instance_closes_is_answered_also_after_an_earlier_cut(
    is_stored: bool, durable: RabbitEngine
) -> None:
    gate = Gate()
    instance = durable.instance(gate, durable=is_stored)
    client = durable.client()
    cut(link_of(instance))
    wait_for(lambda: link_of(instance).connection is None)
    assert instance.wait_until_registered(PATIENCE_S)
    call = Call(client, flags=STORED if is_stored else 0)
    wait_for(lambda: gate.now == 1)
    closing = gevent.spawn(instance.close, PATIENCE_S)
    gevent.sleep(0)
    gate.open()
    closing.get(timeout=PATIENCE_S)
    assert call.status == 202 if is_stored else 200
    # It comes to nobody again.
    durable.instance(gate, durable=is_stored)
    call = Call(client, flags=STORED if is_stored else 0)
    wait_for(lambda: gate.left == 2)
    assert len(gate.arrived) == 2


def test_what_was_answered_while_cut_off_is_502(rabbit: RabbitEngine) -> None:
    gate = Gate()
    instance = rabbit.instance(gate)
    client = rabbit.client()
    call = Call(client)
    wait_for(lambda: gate.now)
    cut(link_of(instance))
    gate.open()
    assert call.status == 502
    assert len(gate.arrived) == 1
    assert Call(client).status == 200


def test_a_stream_ends_with_the_connection_of_its_instance(rabbit: RabbitEngine) -> None:
    stopped = gevent.event.Event()

    def handler(delivery: Delivery) -> None:
        try:
            while True:
                delivery.wait_for_window()
                delivery.reply(200, b"part", final=False)
        finally:
            stopped.set()

    instance = rabbit.instance(handler)
    client = rabbit.client()
    call = Call(client, flags=STREAM, window=2)
    wait_for(lambda: len(call.parts) == 2)
    cut(link_of(instance))
    assert stopped.wait(PATIENCE_S)
    assert call.status == 502


DIES = """
import os, sys
from gevent.event import Event
from butler_mesh.connections import rabbitmq
from butler_mesh.connections.amqp import instance as amqp_instance
from butler_mesh.connections.amqp import queues
def handler(delivery):
    sys.stdout.write("begun\\n")
    sys.stdout.flush()
    os._exit(1)
instance = rabbitmq.instance([sys.argv[1]], "svc", (), credit=1)
instance.serve(handler)
assert instance.wait_until_registered(10.0)
sys.stdout.write("registered\\n")
sys.stdout.flush()
Event().wait()
"""


Mortals = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def mortal(broker: Broker) -> Iterator[Mortals]:
    """Starts instances that die of the first request they begin."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", DIES, broker.endpoint], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "registered\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.slow
def test_a_request_that_kills_whoever_begins_it_is_begun_twice_and_no_more(
    rabbit: RabbitEngine, mortal: Mortals
) -> None:
    client = rabbit.client()
    rabbit._queues.add("svc")
    mortals = [mortal() for _ in range(2)]
    call = Call(client, flags=IDEMPOTENT)
    wait_for(lambda: all(process.poll() is not None for process in mortals), 20.0)
    begun = [process.communicate()[0] for process in mortals]
    assert begun == ["begun\n"] * 2
    served: list[bytes] = []

    def handler(delivery: Delivery) -> None:
        served.append(delivery.envelope)
        delivery.reply(200, b"")

    rabbit.instance(handler)
    assert call.status == 502
    assert Call(client).status == 200
    assert len(served) == 1


@pytest.mark.slow
def test_a_killed_instance_is_502_for_what_it_had_and_nothing_for_the_rest(
    rabbit: RabbitEngine, mortal: Mortals
) -> None:
    client = rabbit.client()
    rabbit._queues.add("svc")
    process = mortal()
    first, second, one_way = Call(client), Call(client, b"second"), Call(client, flags=ONE_WAY)
    wait_for(lambda: process.poll() is not None, 20.0)
    rabbit.instance(echo)
    assert first.status == 502
    # Its credit was one: the others never left the queue.
    assert second.final().envelope == b"second"
    assert not one_way.replies


def test_what_is_no_request_is_put_aside(
    rabbit: RabbitEngine, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    rabbit.instance(echo)
    stranger = broker.connect()
    for properties in (
        pika.BasicProperties(headers={"flags": "many"}),
        pika.BasicProperties(expiration="9000", headers={"sent": "now"}),
        pika.BasicProperties(headers={"window": "wide", "flags": 8}, reply_to="nowhere"),
    ):
        stranger.channel().basic_publish("", "svc", b"?", properties)
    # One that says nothing about itself is a one-way request.
    stranger.channel().basic_publish("", "svc", b"?")
    stranger.close()
    wait_for(lambda: caplog.text.count("request-unreadable") == 3)
    assert Call(rabbit.client()).status == 200


def test_a_queue_of_another_kind_is_told_in_the_log(
    rabbit: RabbitEngine, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = broker.connect()
    stranger.channel().queue_declare("svc", durable=True)
    stranger.close()
    instance = rabbit.open_instance("svc")
    instance.serve(echo)
    try:
        wait_for(lambda: "inequivalent arg" in caplog.text)
        assert not instance.wait_until_registered(0.0)
    finally:
        instance.close(0.0)
        rabbit.broker.delete_queues(["svc"])


def test_a_queue_that_is_deleted_is_declared_again_and_what_runs_is_none_the_worse(
    rabbit: RabbitEngine,
) -> None:
    gate = Gate()
    instance = rabbit.instance(gate)
    client = rabbit.client()
    running = Call(client)
    wait_for(lambda: gate.now)
    rabbit.broker.delete_queues(["svc"])
    wait_for(lambda: Call(client, within_s=0.1).status != 404)
    assert instance.wait_until_registered(PATIENCE_S)
    gate.open()
    assert (running.status, Call(client).status) == (200, 200)


@pytest.mark.slow
def test_a_queue_without_readers_expires_and_the_service_is_404(rabbit: RabbitEngine) -> None:
    client = rabbit.client()
    rabbit.instance(echo, absent_grace_s=0.3).close(1.0)
    begun = monotonic()
    wait_for(lambda: Call(client, within_s=0.2).status == 404)
    assert monotonic() - begun < 5.0


# --- stored requests --------------------------------------------------------------------------


@pytest.fixture
def durable(rabbit: RabbitEngine, monkeypatch: pytest.MonkeyPatch) -> RabbitEngine:
    """The engine, with a service that stores; what fails is tried again soon."""
    monkeypatch.setattr(retries, "PAUSES_S", (0.005, 0.01, 0.02, 0.0))
    rabbit._queues.update(["svc:durable", "svc:dead"])
    return rabbit


def _dead(broker: Broker) -> list[bytes]:
    """Return and remove what is with the dead."""
    with closing(broker.connect()) as connection:
        channel, bodies = connection.channel(), []
        while True:
            _, _, body = channel.basic_get("svc:dead", auto_ack=True)
            if body is None:
                return bodies
            bodies.append(body)


def test_a_stored_request_is_202_when_it_is_safe_and_waits_for_whoever_serves_it(
    durable: RabbitEngine,
) -> None:
    gate = Gate()
    durable.instance(gate, durable=True).close(1.0)
    client = durable.client()
    assert client.can_store
    calls = [Call(client, b"%d" % n, flags=STORED) for n in range(50)]
    assert {call.status for call in calls} == {202}
    assert client.close(PATIENCE_S) == []
    gate.open()
    durable.instance(gate, durable=True, credit=1)
    wait_for(lambda: gate.left == 50)
    assert [delivery.envelope for delivery in gate.arrived] == [b"%d" % n for n in range(50)]


def test_a_service_that_stores_nothing_is_404_for_what_is_to_be_stored(rabbit: RabbitEngine) -> None:
    rabbit.instance(echo)
    client = rabbit.client()
    assert Call(client, flags=STORED).status == 404
    assert Call(client, to="/path", flags=STORED).status == 400
    assert client.close(PATIENCE_S) == []


def test_a_stored_request_that_fails_is_tried_again_and_then_put_with_the_dead(
    durable: RabbitEngine, broker: Broker
) -> None:
    seen: list[bytes] = []

    def handler(delivery: Delivery) -> None:
        seen.append(delivery.envelope)
        if delivery.envelope == b"poison" or len(seen) == 1:
            raise RuntimeError
        delivery.reply(400 if delivery.envelope == b"wrong" else 200, b"")

    durable.instance(handler, durable=True)
    client = durable.client()
    assert Call(client, b"second time lucky", flags=STORED).status == 202
    wait_for(lambda: seen == [b"second time lucky"] * 2)
    assert Call(client, b"wrong", flags=STORED).status == 202
    assert Call(client, b"poison", flags=STORED).status == 202
    wait_for(lambda: seen.count(b"poison") == 1 + queues.DELIVERY_LIMIT)
    dead: list[bytes] = []
    wait_for(lambda: dead.extend(_dead(broker)) or len(dead) == 2)
    assert sorted(dead) == [b"poison", b"wrong"]
    assert seen.count(b"wrong") == 1
    assert Call(client).status == 200


def test_a_stored_request_outlives_whoever_has_it(durable: RabbitEngine) -> None:
    first, second = Gate(), Gate()
    instance = durable.instance(first, durable=True)
    client = durable.client()
    assert Call(client, b"kept", flags=STORED).status == 202
    wait_for(lambda: first.now == 1)
    durable.instance(second, durable=True)
    durable.vanish(instance)
    wait_for(lambda: second.now == 1)
    assert second.arrived[0].envelope == b"kept"
    second.open()
    first.open()


def test_a_stored_request_that_an_instance_could_not_finish_goes_to_the_next(durable: RabbitEngine) -> None:
    first, second = Gate(), Gate()
    instance = durable.instance(first, durable=True)
    client = durable.client()
    assert Call(client, b"kept", flags=STORED).status == 202
    wait_for(lambda: first.now == 1)
    instance.close(0.0)
    assert first.stopped == [502]
    durable.instance(second, durable=True)
    wait_for(lambda: second.now == 1)
    second.open()


def test_what_is_stored_is_sent_again_when_the_connection_breaks_before_the_word(
    durable: RabbitEngine,
) -> None:
    seen: set[bytes] = set()

    def handler(delivery: Delivery) -> None:
        seen.add(delivery.envelope)
        delivery.reply(200, b"")

    durable.instance(handler, durable=True)
    client = durable.client()
    assert Call(client, flags=STORED).status == 202
    for round_ in range(5):
        calls = [Call(client, b"%d.%d" % (round_, n), flags=STORED) for n in range(10)]
        gevent.sleep(0)
        cut(link_of(client))
        assert {call.status for call in calls} == {202}
    wait_for(lambda: len(seen) == 51)


@pytest.mark.slow
def test_what_is_stored_outlives_a_crash_of_the_broker(durable: RabbitEngine, broker: Broker) -> None:
    seen: set[bytes] = set()

    def handler(delivery: Delivery) -> None:
        seen.add(delivery.envelope)
        delivery.reply(200, b"")

    durable.instance(handler, durable=True).close(1.0)
    client = durable.client()
    # RabbitMQ 3.10 writes down who votes in a new quorum queue only after a while: one that was made
    # within the last two seconds or so before a crash never finds a leader again.
    gevent.sleep(3.0)
    calls = [Call(client, b"%d" % n, flags=STORED) for n in range(200)]
    assert {call.status for call in calls} == {202}
    broker.stop(signal.SIGKILL)
    broker.start()
    durable.instance(handler, durable=True)
    wait_for(lambda: len(seen) == 200, 20.0)


def test_a_durable_service_needs_a_name_that_fits() -> None:
    for service in ("", "x" * 250):
        with pytest.raises(UsageError):
            rabbitmq.instance(["amqp://127.0.0.1"], service, ["/a"], durable=True)


@pytest.mark.parametrize("target", ["svc", "/a"])
def test_what_finds_the_queue_full_is_503_at_once(
    target: str, rabbit: RabbitEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "MAX_WAITING", 10)
    gate = Gate()
    rabbit.instance(gate, paths=["/a"], credit=1)
    client = rabbit.client()
    calls = [Call(client, to=target, within_s=30.0) for _ in range(20)]
    # Who has begun has left the queue; one or another may have found room meanwhile.
    wait_for(lambda: 8 <= sum(call.is_over for call in calls) <= 10)
    refused = [call for call in calls if call.is_over]
    assert {call.status for call in refused} == {503}
    assert b"too much waits for the service" in refused[0].final().envelope
    Call(client, to=target, flags=ONE_WAY)
    gate.open()
    assert {call.status for call in calls if call not in refused} == {200}
    assert Call(client, to=target).status == 200
    assert [code for code, _ in client.close(PATIENCE_S)] in ([], [503])


def test_what_expired_in_the_queue_is_answered_by_nobody_else(rabbit: RabbitEngine) -> None:
    gate = Gate()
    instance = rabbit.instance(gate, credit=1)
    client = rabbit.client()
    first = Call(client)
    wait_for(lambda: gate.now == 1)
    heard: list[object] = []
    channel = instance._channel  # type: ignore[attr-defined]
    publish = channel.basic_publish
    channel.basic_publish = lambda *arguments, **named: (
        heard.append(arguments),
        publish(*arguments, **named),
    )
    held = [Call(client, within_s=0.1) for _ in range(3)]
    assert {call.status for call in held} == {504}
    gate.open()
    assert first.status == 200
    assert Call(client).status == 200
    assert len(heard) <= 3  # two replies, and perhaps one for what was held


def test_stored_requests_without_an_id_are_told_apart(durable: RabbitEngine, broker: Broker) -> None:
    gate = Gate()
    seen: list[bytes] = []

    def handler(delivery: Delivery) -> None:
        seen.append(delivery.envelope)
        if delivery.envelope == b"slow":
            gate(delivery)
        else:
            delivery.reply(503 if seen.count(b"flaky") == 1 else 200, b"")

    durable.instance(handler, durable=True, credit=2)
    with broker.connect() as connection:
        for body in (b"slow", b"flaky"):
            connection.channel().basic_publish("", "svc:durable", body)
    wait_for(lambda: sorted(seen) == [b"flaky", b"flaky", b"slow"])
    gate.open()


def test_an_instance_that_stops_does_not_take_for_new_what_another_had_begun(
    rabbit: RabbitEngine, broker: Broker
) -> None:
    gate = Gate()
    first = rabbit.instance(gate, credit=1)
    client = rabbit.client()
    call = Call(client, within_s=30.0)
    wait_for(lambda: gate.now == 1)
    second = rabbit.instance(echo)
    # As it is between its word to the broker and the broker's.
    second._is_taking = False  # type: ignore[attr-defined]
    first.abandon()
    assert call.status == 502
    second._is_taking = True  # type: ignore[attr-defined]
    assert Call(client).status == 200
    gate.open()
