"""Whoever reads another system's queue: what a handler does is its own affair, and never the agent's end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from typing import Any

import gevent
import gevent.event
import pika
import pytest
from gevent import GreenletExit

from butler_mesh import deadlines
from butler_mesh.connections.amqp.foreign import ForeignMessage, ForeignQueues
from butler_mesh.errors import BadRequest, Closed, Stopped
from tests.brokers import Broker
from tests.waiting import wait_for

PATIENCE_S = 10.0

Open = Callable[..., ForeignQueues]


def echo(message: ForeignMessage) -> None:
    message.answer(b"echo " + message.body)


def waits(broker: Broker, *, unacknowledged: bool = False) -> int:
    """Return how many messages the queue has that nobody works on."""
    with closing(broker.connect()) as connection:
        return int(
            connection.channel().queue_declare("node", durable=True, passive=True).method.message_count
        )


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the errors that were logged, and forget them."""
    found = [r.message for r in caplog.records if r.levelno >= logging.ERROR]
    caplog.clear()
    return found


def test_a_message_is_acknowledged_when_its_handler_has_ended(broker: Broker, open_queues: Open) -> None:
    begun: list[ForeignMessage] = []

    def work(message: ForeignMessage) -> None:
        begun.append(message)
        gevent.sleep(60.0)

    first, second, sender = open_queues(), open_queues(), open_queues()
    first.serve("node", work, credit=1)
    assert first.wait_until_registered(PATIENCE_S)
    sender.send("node", b"work")
    wait_for(lambda: len(begun) == 1)
    first.close(0.0)
    second.serve("node", begun.append, credit=1)
    wait_for(lambda: len(begun) == 2)
    assert [one.is_repeated for one in begun] == [False, True]


@pytest.mark.parametrize(
    "let_out",
    [KeyError("bad"), gevent.Timeout(1.0), SystemExit(3), GreenletExit(), Stopped(504, "late")],
    ids=repr,
)
def test_whatever_a_handler_lets_out_costs_its_own_message_only(
    open_queues: Open, broker: Broker, caplog: pytest.LogCaptureFixture, let_out: BaseException
) -> None:
    def fail(message: ForeignMessage) -> None:
        if message.body == b"bad":
            raise let_out
        echo(message)

    reader, caller = open_queues(), open_queues()
    reader.serve("node", fail, credit=1)
    assert reader.wait_until_registered(PATIENCE_S)
    caller.send("node", b"bad")
    # With a credit of one it would never come while the other is kept.
    assert caller.call("node", b"good", 5.0) == b"echo good"
    logged(caplog)
    reader.close(0.0)
    assert waits(broker) == 0


def test_close_waits_for_handlers_that_run(open_queues: Open) -> None:
    done: list[bytes] = []

    def work(message: ForeignMessage) -> None:
        begun.set(None)
        gevent.sleep(0.05)
        done.append(message.body)

    begun: gevent.event.AsyncResult[None] = gevent.event.AsyncResult()
    reader, sender = open_queues(), open_queues()
    reader.serve("node", work, credit=1)
    assert reader.wait_until_registered(PATIENCE_S)
    sender.send("node", b"work")
    begun.get(timeout=PATIENCE_S)
    reader.close(PATIENCE_S)
    assert done == [b"work"]
    with pytest.raises(Closed):
        reader.send("node", b"more")


def test_a_handler_ends_when_its_message_is_of_no_use_any_more(open_queues: Open, broker: Broker) -> None:
    seen: list[Any] = []

    def work(message: ForeignMessage) -> None:
        seen.append((message.granted_s, deadlines.remaining_s()))
        try:
            gevent.sleep(60.0)
        except BaseException as error:
            seen.append(error)
            raise

    reader, caller = open_queues(), open_queues()
    reader.serve("node", work, credit=1)
    assert reader.wait_until_registered(PATIENCE_S)
    with pytest.raises(TimeoutError):
        caller.call("node", b"1", 0.1)
    wait_for(lambda: len(seen) == 2)
    (granted_s, remaining_s), stopped = seen
    assert 0 < remaining_s <= granted_s <= 0.1
    assert isinstance(stopped, Stopped)
    reader.close(0.0)
    assert waits(broker) == 0


def test_a_call_that_says_nothing_of_its_time_has_a_ceiling_and_a_message_has_none(
    open_queues: Open, broker: Broker
) -> None:
    deadline: dict[bytes, float] = {}
    ended: list[bytes] = []

    def work(message: ForeignMessage) -> None:
        deadline[message.body] = deadlines.remaining_s()
        try:
            gevent.sleep(60.0)
        finally:
            ended.append(message.body)

    reader, sender = open_queues(), open_queues()
    reader.serve("node", work, credit=2, ceiling_s=0.02)
    assert reader.wait_until_registered(PATIENCE_S)
    sender.send("node", b"message")
    with closing(broker.connect()) as theirs:
        channel = theirs.channel()
        mine = channel.queue_declare("", exclusive=True).method.queue
        channel.basic_publish("theirs", "node", b"call", pika.BasicProperties(reply_to=mine))
    wait_for(lambda: ended == [b"call"] and len(deadline) == 2)
    assert deadline[b"call"] <= 0.02
    assert deadline[b"message"] == deadlines.NEVER


def test_an_expiration_that_is_no_number_is_none(open_queues: Open, broker: Broker) -> None:
    from butler_mesh.connections.amqp.foreign_reader import _granted_s

    properties = pika.BasicProperties(expiration="soon")  # RabbitMQ takes none such.
    assert _granted_s(properties) is None


def test_a_queue_that_is_there_and_another_kind_is_a_refusal_and_tried_ever_less_often(
    open_queues: Open, broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("butler_mesh.connections.amqp.kept.PAUSE_S", 0.02)
    with closing(broker.connect()) as theirs:
        theirs.channel().queue_declare("node", durable=True, arguments={"x-max-length": 10})
        reader = open_queues()
        reader.serve("node", echo, credit=1)
        with pytest.raises(BadRequest, match="x-max-length") as caught:
            reader.wait_until_registered(PATIENCE_S)
        assert caught.value.status == 409
        wait_for(lambda: caplog.text.count("channel-lost") >= 3)
        assert "another in 0 s" in caplog.text
        theirs.channel().queue_delete("node")
    wait_for(lambda: _is_registered(reader))


def _is_registered(reader: ForeignQueues) -> bool:
    try:
        return reader.wait_until_registered(0.0)
    except BadRequest:
        return False


def test_a_queue_that_was_deleted_is_declared_again(
    open_queues: Open, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("butler_mesh.connections.amqp.kept.PAUSE_S", 0.01)
    reader, caller = open_queues(), open_queues()
    reader.serve("node", echo, credit=1)
    assert reader.wait_until_registered(PATIENCE_S)
    broker.delete_queues(["node"])
    wait_for(lambda: not reader.wait_until_registered(0.0))
    assert reader.wait_until_registered(PATIENCE_S)
    assert caller.call("node", b"1", 5.0) == b"echo 1"
