"""A broker's queues in the words of others, seen by a client that knows nothing of us."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import closing

import gevent
import gevent.event
import pika
import pytest

from butler_mesh import deadlines
from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp.foreign import ForeignMessage, ForeignQueues
from butler_mesh.errors import (
    Closed,
    DeadlineExceeded,
    InstanceLost,
    NotFound,
    RequestFailed,
    Unavailable,
)
from tests.brokers import Broker, free_port
from tests.waiting import wait_for

EXCHANGE = "theirs"
PATIENCE_S = 10.0

Open = Callable[..., ForeignQueues]


def echo(message: ForeignMessage) -> None:
    message.answer(b"echo " + message.body)


def test_a_call_is_answered(open_queues: Open) -> None:
    reader, caller = open_queues(), open_queues()
    reader.serve("node", echo, credit=10)
    assert reader.wait_until_registered(PATIENCE_S)
    assert caller.call("node", b"1", 5.0) == b"echo 1"
    calls = [gevent.spawn(caller.call, "node", b"%d" % n, 5.0) for n in range(20)]
    assert [call.get() for call in calls] == [b"echo %d" % n for n in range(20)]


def test_a_message_is_not_answered_and_arrives(open_queues: Open) -> None:
    got: list[ForeignMessage] = []
    reader, sender = open_queues(), open_queues()
    reader.serve("node", got.append, credit=10)
    assert reader.wait_until_registered(PATIENCE_S)
    sender.send("node", b"hello")
    wait_for(lambda: len(got) == 1)
    assert (got[0].body, got[0].reply_to, got[0].is_repeated) == (b"hello", "", False)
    got[0].answer(b"to nobody")


def test_a_queue_that_is_not_there_is_NotFound_at_once(open_queues: Open) -> None:
    queues, began = open_queues(), monotonic()
    with pytest.raises(NotFound, match="nobody reads 'nowhere'"):
        queues.call("nowhere", b"1", 30.0)
    with pytest.raises(NotFound):
        queues.send("nowhere", b"1")
    assert monotonic() - began < 10.0


def test_without_a_broker_it_is_Unavailable(open_queues: Open, caplog: pytest.LogCaptureFixture) -> None:
    queues = open_queues(f"amqp://127.0.0.1:{free_port()}", connect_timeout=0.05)
    with pytest.raises(Unavailable, match="no broker"):
        queues.call("node", b"1", 5.0)
    caplog.clear()


def test_a_wrong_password_is_said(broker: Broker, open_queues: Open) -> None:
    queues = open_queues(f"amqp://{broker.user}:wrong@127.0.0.1:{broker.port}")
    with pytest.raises(RequestFailed, match="ACCESS_REFUSED") as caught:
        queues.send("node", b"1")
    assert caught.value.status == 401


def test_no_answer_is_a_deadline_also_an_inherited_one(open_queues: Open) -> None:
    reader, caller = open_queues(), open_queues()
    reader.serve("node", lambda message: None, credit=1)
    assert reader.wait_until_registered(PATIENCE_S)
    with pytest.raises(DeadlineExceeded):
        caller.call("node", b"1", 0.1)
    token = deadlines.current.set(monotonic() + 0.1)
    try:
        with pytest.raises(DeadlineExceeded):
            caller.call("node", b"1", 60.0)
    finally:
        deadlines.current.reset(token)


def test_one_that_was_abandoned_is_silent(open_queues: Open) -> None:
    reader, caller = open_queues(), open_queues()
    reader.serve("node", echo, credit=1)
    assert reader.wait_until_registered(PATIENCE_S)
    caller.abandon()
    with pytest.raises(Closed):
        caller.call("node", b"1", 5.0)
    reader.abandon()


def test_others_find_a_durable_queue_bound_to_a_direct_exchange(broker: Broker, open_queues: Open) -> None:
    reader = open_queues()
    reader.serve("node", echo, credit=1)
    assert reader.wait_until_registered(PATIENCE_S)
    with closing(broker.connect()) as theirs:
        channel = theirs.channel()
        channel.exchange_declare(EXCHANGE, "direct")
        channel.queue_declare("node", durable=True)
        mine = channel.queue_declare("", exclusive=True).method.queue
        properties = pika.BasicProperties(reply_to=mine, correlation_id="7")
        channel.basic_publish(EXCHANGE, "node", b"1", properties)

        def answer() -> tuple[str, bytes] | None:
            _, properties, body = channel.basic_get(mine, auto_ack=True)
            return None if properties is None else (properties.correlation_id, body)

        answers = []
        wait_for(lambda: bool(answers.append(answer()) or answers[-1]))
        assert answers[-1] == ("7", b"echo 1")


@pytest.mark.slow
def test_a_broker_that_is_killed_and_comes_back_is_read_again(
    other_broker: Broker, open_queues: Open, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = other_broker.endpoint
    silent, caller = open_queues(endpoint), open_queues(endpoint)
    begun: list[ForeignMessage] = []

    def work(message: ForeignMessage) -> None:
        begun.append(message)
        if not message.body:
            echo(message)

    silent.serve("node", work, credit=1)
    assert silent.wait_until_registered(PATIENCE_S)
    lost = gevent.spawn(caller.call, "node", b"lost", 60.0)
    wait_for(lambda: bool(begun))
    other_broker.stop(signal.SIGKILL)
    with pytest.raises((InstanceLost, Unavailable)):
        lost.get(timeout=PATIENCE_S)
    other_broker.start()
    assert silent.wait_until_registered(30.0)
    assert caller.call("node", b"", 10.0) == b"echo "
    silent.close(0.0)
    other_broker.delete_queues(["node"])
