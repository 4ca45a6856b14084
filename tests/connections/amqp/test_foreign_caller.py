"""Whoever sends to other systems' queues: the broker's word counts, and its silence means nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import gevent
import pytest

from butler_mesh.connections.amqp import foreign_caller
from butler_mesh.connections.amqp.foreign import ForeignMessage, ForeignQueues
from butler_mesh.errors import BadRequest, InstanceLost, Unavailable
from tests.brokers import Broker
from tests.waiting import wait_for

PATIENCE_S = 10.0

Open = Callable[..., ForeignQueues]


def echo(message: ForeignMessage) -> None:
    message.answer(b"echo " + message.body)


def test_one_that_answers_hears_of_what_it_sends_itself(open_queues: Open) -> None:
    """An answer is no message that is confirmed: counted as one, it would be another's confirmation."""
    one = open_queues()
    one.serve("node", echo, credit=10)
    assert one.wait_until_registered(PATIENCE_S)
    for n in range(3):
        assert one.call("node", b"%d" % n, 5.0) == b"echo %d" % n
        one.send("node", b"message")


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is confirmed, as by a broker that is short of memory."""
    monkeypatch.setattr(foreign_caller.ForeignCaller, "_confirmed", lambda caller, frame: None)
    monkeypatch.setattr(foreign_caller, "CONFIRM_TIMEOUT_S", 0.05)


@pytest.mark.usefixtures("mute")
def test_an_answer_needs_no_confirmation(open_queues: Open) -> None:
    reader, caller = open_queues(), open_queues()

    def late(message: ForeignMessage) -> None:
        gevent.sleep(0.1)
        echo(message)

    reader.serve("node", late, credit=1)
    assert reader.wait_until_registered(PATIENCE_S)
    assert caller.call("node", b"1", 30.0) == b"echo 1"


@pytest.mark.usefixtures("mute")
def test_a_message_without_a_confirmation_may_be_there(open_queues: Open) -> None:
    reader, caller = open_queues(), open_queues()
    reader.serve("node", lambda message: None, credit=1)
    assert reader.wait_until_registered(PATIENCE_S)
    with pytest.raises(InstanceLost, match="may have it"):
        caller.send("node", b"1")


def test_to_a_broker_short_of_memory_nothing_is_sent(open_queues: Open) -> None:
    caller = open_queues()
    assert caller.wait_until_connected(PATIENCE_S)
    assert caller._caller is not None
    caller._caller._kept._link._keeper.is_blocked = True
    with pytest.raises(Unavailable, match="memory"):
        caller.call("node", b"1", 5.0)
    with pytest.raises(Unavailable, match="memory"):
        caller.send("node", b"1")


@pytest.mark.slow
def test_a_call_outlasts_a_memory_alarm_that_its_time_outlasts(
    open_queues: Open, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_caller, "CONFIRM_TIMEOUT_S", 0.1)
    reader, caller = open_queues(), open_queues()
    reader.serve("node", echo, credit=10)
    assert reader.wait_until_registered(PATIENCE_S)
    assert caller.call("node", b"1", 5.0) == b"echo 1"
    broker.control("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        patient = gevent.spawn(caller.call, "node", b"2", 60.0)
        wait_for(lambda: _is_short_of_memory(caller))
        assert not patient.ready()
    finally:
        broker.control("set_vm_memory_high_watermark", "absolute", "1GB")
    assert patient.get(timeout=PATIENCE_S) == b"echo 2"
    wait_for(lambda: not _is_short_of_memory(caller))
    caller.send("node", b"3")


def _is_short_of_memory(caller: ForeignQueues) -> bool:
    assert caller._caller is not None
    return caller._caller._kept.is_blocked


def test_an_exchange_of_another_kind_is_a_refusal(
    open_queues: Open, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("butler_mesh.connections.amqp.kept.PAUSE_S", 0.01)
    caller = open_queues()
    with closing(broker.connect()) as theirs:
        theirs.channel().exchange_delete("theirs")
        theirs.channel().exchange_declare("theirs", "fanout")
        try:
            with pytest.raises(BadRequest, match="'theirs'") as caught:
                caller.call("node", b"1", 30.0)
            assert caught.value.status == 409
            with pytest.raises(BadRequest):
                caller.send("node", b"1")
        finally:
            theirs.channel().exchange_delete("theirs")
    wait_for(lambda: _is_connected(caller))


def _is_connected(caller: ForeignQueues) -> bool:
    try:
        return caller.wait_until_connected(0.0)
    except BadRequest:
        return False
