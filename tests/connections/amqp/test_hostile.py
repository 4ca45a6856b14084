"""What others on a broker may send, and the broker itself: the next good request is served all the same."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import gevent
import pika.data
import pytest
from gevent.server import StreamServer
from pika import BasicProperties

from butler_mesh.connections.amqp import client as amqp_client
from butler_mesh.connections.amqp import messages, queues
from butler_mesh.connections.amqp.dead import DeadLetters
from butler_mesh.connections.base import Delivery
from butler_mesh.protocol.mesh import DURABLE, IDEMPOTENT, MAX_BODY_BYTES, ONE_WAY, STREAM
from tests.brokers import Broker
from tests.connections.amqp.test_client import a_client
from tests.connections.contract import PATIENCE_S, Call, Gate, echo
from tests.connections.engines import RabbitEngine
from tests.waiting import wait_for

Publish = Callable[..., None]


@pytest.fixture
def publish(broker: Broker) -> Iterator[Publish]:
    """Publishes with bare pika: ``publish(queue, body, properties, exchange="")``."""
    with broker.connect() as connection:
        channel = connection.channel()

        def publish(queue: str, body: bytes, properties: BasicProperties, *, exchange: str = "") -> None:
            channel.basic_publish(exchange, queue, body, properties)
            connection.process_data_events()

        yield publish


class Encoded(str):
    """A value of a header, as bytes that pika would not write."""

    data: bytes

    def __new__(cls, data: bytes) -> Encoded:
        made = super().__new__(cls)
        made.data = data
        return made


@pytest.fixture
def any_header(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = pika.data.encode_value

    def encode_value(pieces: list[bytes], value: Any) -> int:
        if isinstance(value, Encoded):
            pieces.append(value.data)
            return len(value.data)
        return int(encode(pieces, value))

    monkeypatch.setattr(pika.data, "encode_value", encode_value)


def deep_table(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = b"\x01a" + b"F" + struct.pack(">I", len(inner)) + inner
    return b"F" + struct.pack(">I", len(inner)) + inner


MICROSECONDS = b"T" + struct.pack(">Q", int(datetime(2025, 10, 9, tzinfo=UTC).timestamp() * 1_000_000))


@pytest.mark.usefixtures("any_header")
@pytest.mark.parametrize("header", [MICROSECONDS, deep_table(800)], ids=["microseconds", "deep"])
def test_a_header_that_cannot_be_read_costs_its_message_only(
    header: bytes, rabbit: RabbitEngine, publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    rabbit._queues.update(["svc:durable", "svc:dead"])
    rabbit.instance(echo, durable=True)
    client = a_client(rabbit)
    properties = BasicProperties(type="request", headers={"h": Encoded(header)})
    publish("svc", b"x" * 300_000, properties)
    publish("svc:durable", b"kept", properties)
    wait_for(lambda: caplog.text.count("request-unreadable") == 2)
    assert Call(client).status == 200
    with DeadLetters([rabbit.broker.endpoint], "svc") as dead:
        wait_for(lambda: dead.count() == 1)
        (one,) = dead.show(10)
        assert (one.envelope, one.reason) == (b"kept", "unreadable")
    # A reply, to whoever waits for another.
    reply_to: list[str] = []
    rabbit.instance(lambda delivery: reply_to.append(delivery.reply_to), "tells")  # type: ignore[attr-defined]
    waiting = Call(client, to="tells", within_s=30.0)
    wait_for(lambda: reply_to)
    publish(reply_to[0], b"", BasicProperties(type="final", headers={"h": Encoded(header)}))
    wait_for(lambda: waiting.is_over)
    assert waiting.status == 500  # its handler has sent none
    assert Call(client).status == 200
    assert "connection-lost" not in caplog.text


def test_no_message_with_a_forged_death_is_left_to_the_broker(
    rabbit: RabbitEngine, publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    rabbit._queues.update(["svc:durable", "svc:dead"])
    rabbit.instance(echo, durable=True)
    client = a_client(rabbit)
    forged = BasicProperties(type="request", headers={"x-death": [1, [2]], "flags": 0})
    for queue in ("svc", "svc:durable"):
        publish(queue, b"{}", forged)
    wait_for(lambda: caplog.text.count("request-unreadable") == 2)
    with DeadLetters([rabbit.broker.endpoint], "svc") as dead:
        wait_for(lambda: dead.count() == 1)
    assert Call(client, flags=ONE_WAY | DURABLE).status == 202
    assert Call(client).status == 200


@pytest.mark.parametrize("flags", [STREAM, STREAM | ONE_WAY])
def test_a_stream_that_nobody_reads_ends(
    flags: int, rabbit: RabbitEngine, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("butler_mesh.connections.amqp.delivery.MAX_WINDOW", 50)
    monkeypatch.setattr("butler_mesh.connections.amqp.delivery.WINDOW_PATIENCE_S", 0.1)
    sent = [0]

    def handler(delivery: Delivery) -> None:
        if delivery.flags & STREAM:
            while True:
                delivery.wait_for_window()
                delivery.reply(200, b"part", final=False)
                sent[0] += 1
        delivery.reply(200, b"")

    instance = rabbit.instance(handler, credit=1)
    to_itself = None if flags & ONE_WAY else "svc"
    headers = {"flags": flags, "window": 2**62}
    publish("svc", b"{}", BasicProperties(type="request", reply_to=to_itself, headers=headers))
    wait_for(lambda: instance._last_number and not instance._jobs)  # type: ignore[attr-defined]
    assert Call(rabbit.client()).status == 200
    assert sent[0] == (0 if flags & ONE_WAY else 50)


def test_what_only_says_that_it_was_stored_is_not_tried_again(rabbit: RabbitEngine, publish: Publish) -> None:
    seen: list[bytes] = []

    def handler(delivery: Delivery) -> None:
        seen.append(delivery.envelope)
        delivery.reply(500, b"")

    rabbit.instance(handler)
    publish("svc", b"once", BasicProperties(type="request", headers={"flags": DURABLE | ONE_WAY}))
    wait_for(lambda: seen)
    assert Call(rabbit.client()).status == 500
    assert seen.count(b"once") == 1


def test_a_command_that_says_it_was_stored_harms_nobody(
    rabbit: RabbitEngine, publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    instance = rabbit.instance(echo)
    properties = BasicProperties(type="request", headers={"flags": DURABLE, "target": "mgt.svc"})
    publish(queues.control_key("svc"), b"{}", properties, exchange=queues.CONTROL_EXCHANGE)
    wait_for(lambda: instance._last_number)  # type: ignore[attr-defined]
    assert Call(rabbit.client()).status == 200
    assert "channels-reset" not in caplog.text


def test_a_request_without_measure_in_time_can_be_given_back(
    rabbit: RabbitEngine, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with broker.connect() as connection:
        channel = connection.channel()
        rabbit.instance(echo).close(1.0)
        headers = {"flags": IDEMPOTENT | ONE_WAY, "patience": 2**45}
        channel.basic_publish("", "svc", b"{}", BasicProperties(type="request", headers=headers))
        connection.process_data_events()
        # A thief takes it, and leaves: it comes again, marked.
        wait_for(lambda: channel.basic_get("svc")[0] is not None)
    rabbit.instance(echo)
    assert Call(rabbit.client()).status == 200
    assert "channels-reset" not in caplog.text


def test_of_a_cancel_without_measure_little_is_read(rabbit: RabbitEngine, publish: Publish) -> None:
    gate = Gate()
    instance = rabbit.instance(gate)
    client = rabbit.client()
    call = Call(client)
    wait_for(lambda: gate.now == 1)
    cancel = BasicProperties(type=messages.CANCEL)
    body = b"x y " * 1_000_000 + client._name.encode() + b".1"  # type: ignore[attr-defined]
    publish(queues.control_key("svc"), body, cancel, exchange=queues.CONTROL_EXCHANGE)
    wait_for(lambda: instance._cancelled._ids)  # type: ignore[attr-defined]
    gate.open()
    assert call.status == 200


def test_two_thousand_calls_are_given_up_by_two_messages(
    rabbit: RabbitEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    instance = rabbit.instance(gate, credit=3000)
    client = a_client(rabbit)
    told: list[bytes] = []
    tell = client._tell
    monkeypatch.setattr(client, "_tell", lambda *arguments: (told.append(arguments[3]), tell(*arguments)))
    calls = [Call(client) for _ in range(2000)]
    wait_for(lambda: gate.now == 2000)
    for call in calls:
        client.cancel(call.handle)
    wait_for(lambda: gate.now == 0)
    assert [len(body.split()) for body in told] == [amqp_client.MAX_IDS] * 2
    assert all(len(body) < 64 * 1024 for body in told)
    wait_for(lambda: not instance._jobs)  # type: ignore[attr-defined]
    gate.open()


def test_messages_that_repeat_a_running_requests_id_keep_no_credit(
    rabbit: RabbitEngine, broker: Broker
) -> None:
    gate = Gate()
    instance = rabbit.instance(gate, credit=5)
    client = rabbit.client()
    running = Call(client, within_s=30.0)
    wait_for(lambda: gate.now == 1)
    (job,) = instance._jobs.values()  # type: ignore[attr-defined]
    with broker.connect() as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=20)
        channel.basic_consume("svc", lambda *_: None, arguments={"x-priority": 10})
        properties = BasicProperties(
            type="request", correlation_id=job.id, reply_to=job.reply_to, headers={"flags": 0}
        )
        for _ in range(20):
            channel.basic_publish("", "svc", b"{}", properties)
        connection.process_data_events(0.05)
    gevent.sleep(0)
    others = [Call(client, within_s=30.0) for _ in range(4)]
    wait_for(lambda: gate.now == 5)
    gate.open()
    assert {call.status for call in [running, *others]} == {200}


def test_a_body_over_the_maximum_is_413_also_of_those_who_do_not_count(
    rabbit: RabbitEngine, publish: Publish
) -> None:
    rabbit.instance(echo)
    publish("svc", bytes(MAX_BODY_BYTES + 1), BasicProperties(type="request"))
    assert Call(rabbit.client()).status == 200


@pytest.mark.parametrize("kind", ["frame", "message"])
def test_a_broker_that_sends_without_measure_is_left(
    kind: str, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the handshake it is a frame, and after that a message's length, that nobody could mean."""
    frame = struct.pack(">BHL", 1, 0, 2**31)
    header = struct.pack(">BHLHHQH", 2, 1, 14, 60, 0, 2**62, 0) + b"\xce"

    def talk(peer: Any, _: object) -> None:
        peer.recv(65536)
        peer.sendall((frame if kind == "frame" else header) + bytes(65536))
        peer.recv(65536)
        peer.close()

    server = StreamServer(("127.0.0.1", 0), talk)
    server.start()
    client = amqp_client.AmqpClient([f"amqp://127.0.0.1:{server.server_port}"], connect_timeout_s=0.3)
    with caplog.at_level(logging.WARNING, "butler_mesh"):
        assert Call(client).status == 503
        wait_for(lambda: "connect-failed" in caplog.text, PATIENCE_S)
    client.close(1.0)
    server.stop(0.0)
