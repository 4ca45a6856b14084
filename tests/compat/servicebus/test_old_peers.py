"""An agent of ours and py-servicebus: its messages by hand, and itself where it runs."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from contextlib import closing
from datetime import date
from typing import Any

import gevent
import pika
import pytest

from butler_mesh.compat.servicebus.event import Event
from butler_mesh.compat.servicebus.old_peers import OldPeers
from butler_mesh.compat.servicebus.routes import MeshRoute
from butler_mesh.compat.servicebus.xml_wire import make_token, pack_call
from butler_mesh.errors import BadRequest, DeadlineExceeded, NotFound, Unavailable
from tests.compat.servicebus.conftest import PATIENCE_S, SECRET, Bench
from tests.compat.servicebus.services import Add, Fail, Gate, Note
from tests.programs import Program, do_without
from tests.waiting import wait_for

TOKEN = make_token(SECRET, date.today())


@pytest.fixture
def note() -> Note:
    return Note()


@pytest.fixture
def peers(bench: Bench, note: Note) -> OldPeers:
    bus = bench.bus(wire="xml")
    bus.add_rpc_service("math", "add", Add())
    bus.add_rpc_service("math", "fail", Fail())
    bus.add_rpc_service("math", "self", type("Self", (), {"on_call": lambda self, q, r: r.send(self)})())
    bus.add_message_service("util", "note", note)
    bench.start(bus)
    assert bus.old_peers is not None
    return bus.old_peers


def ask(bench: Bench, body: bytes) -> bytes:
    """Send a call as py-servicebus does, and return the answer's body."""
    with closing(bench.broker.connect()) as connection:
        channel = connection.channel()
        channel.exchange_declare("py-servicebus", "direct")
        mine = channel.queue_declare("", exclusive=True).method.queue
        properties = pika.BasicProperties(reply_to=mine, correlation_id="c")
        channel.basic_publish("py-servicebus", "NODE-01", body, properties)
        answers: list[Any] = []

        def has_come() -> bool:
            _, properties, answer = channel.basic_get(mine, auto_ack=True)
            if properties is not None:
                assert properties.correlation_id == "c"
                answers.append(answer)
            return bool(answers)

        wait_for(has_come)
        return bytes(answers[0])


def call(category: str, name: str, params: Any = None, token: str = TOKEN) -> bytes:
    return pack_call(Event("7", category, name, params), token)


def response(text: bytes, mark: bytes = b"") -> bytes:
    return (
        b'<?xml version="1.0"?>\n<response%s>\n    <id>7</id>\n    <message><![CDATA[%s]]></message>\n'
        b"</response>\n" % (mark, text)
    )


def test_a_call_is_answered_to_the_byte(bench: Bench, peers: OldPeers) -> None:
    assert ask(bench, call("math", "add", [1, "2"])) == response(b"3")


def test_a_ping_is_answered(bench: Bench, peers: OldPeers) -> None:
    assert ask(bench, b"PING") == b"PONG"


def test_failures_are_answered_at_once_and_with_text(
    bench: Bench, peers: OldPeers, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(bench, call("math", "fail")) == response(b"KeyError: 'no such thing'", b' status="500"')
    unknown = response(b"Cannot Find RPC Service: math.sub", b' status="404"')
    assert ask(bench, call("math", "sub")) == unknown
    assert ask(bench, call("math", "add", [1], "bad token")) == response(
        b"Token not valid!", b' status="401"'
    )
    assert b"TypeError" in ask(bench, call("math", "self"))
    assert b"Event not valid" in ask(bench, b"<event/>")
    assert [r.message for r in caplog.records if r.levelno >= logging.ERROR] == ["handler-failed math.fail"]
    caplog.clear()


def test_an_attack_is_answered_and_harms_nobody(bench: Bench, peers: OldPeers) -> None:
    bomb = b'<!DOCTYPE event [<!ENTITY a "ha">]><event><id>&a;</id></event>'
    assert b"Event not valid" in ask(bench, bomb)
    assert ask(bench, call("math", "add", [1])) == response(b"1")


def publish(bench: Bench, body: bytes, *, is_repeated: bool = False) -> None:
    """Send a message as py-servicebus does; before an agent reads it, it may be handed out and given back."""
    with closing(bench.broker.connect()) as connection:
        channel = connection.channel()
        channel.exchange_declare("py-servicebus", "direct")
        channel.queue_declare("NODE-01", durable=True)
        channel.queue_bind("NODE-01", "py-servicebus", "NODE-01")
        channel.confirm_delivery()
        channel.basic_publish("py-servicebus", "NODE-01", body)
        if is_repeated:
            method, _, _ = channel.basic_get("NODE-01")
            channel.basic_nack(method.delivery_tag)


def test_a_message_that_cannot_be_read_is_dropped_however_often_it_came(bench: Bench, note: Note) -> None:
    publish(bench, b"<event><a/></event>", is_repeated=True)
    publish(bench, call("util", "nobody"))
    publish(bench, call("util", "note", 1, "bad token"))
    publish(bench, call("util", "note", 2), is_repeated=True)
    bus = bench.bus(wire="xml")
    bus.add_message_service("util", "note", note)
    bench.start(bus)
    wait_for(lambda: note.noted == [2])
    assert ask(bench, b"PING") == b"PONG"
    bus.stop()
    with closing(bench.broker.connect()) as connection:
        assert connection.channel().queue_declare("NODE-01", durable=True).method.message_count == 0


@pytest.mark.slow
def test_a_body_that_is_too_large_is_refused_and_stops_nobody(bench: Bench, peers: OldPeers) -> None:
    """Sixteen megabytes of elements are seconds of work, while nothing else would run."""
    body = b"<event>" + b"<a/>" * (4 * 1024 * 1024) + b"</event>"
    assert b"over the maximum" in ask(bench, body)
    assert ask(bench, call("math", "add", [1])) == response(b"1")


def test_slow_messages_wait_with_the_broker_and_keep_no_call_waiting(bench: Bench) -> None:
    gate, bus = Gate(), bench.bus(wire="xml", queue_len=1)
    bus.add_message_service("util", "wait", gate)
    bus.add_rpc_service("math", "add", Add())
    bench.start(bus)
    for n in range(20):
        publish(bench, call("util", "wait", n))
    wait_for(lambda: gate.begun == [0])
    assert ask(bench, call("math", "add", [1, 2])) == response(b"3")
    gate.opened.set()
    wait_for(lambda: gate.ended == list(range(20)))


def test_a_message_waits_for_a_broker_that_cannot_store_it(
    bench: Bench, note: Note, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("butler_mesh.compat.servicebus.old_peers.STORE_AGAIN_S", 0.01)
    stores, send = [], MeshRoute.send

    def refuse_once(route: MeshRoute, node: str, event: Event) -> None:
        stores.append(event.id)
        if len(stores) == 1:
            raise Unavailable("short of memory", status=503)
        send(route, node, event)

    monkeypatch.setattr(MeshRoute, "send", refuse_once)
    bus = bench.bus(wire="xml")
    bus.add_message_service("util", "note", note)
    bench.start(bus)
    publish(bench, call("util", "note", 1))
    wait_for(lambda: note.noted == [1])
    assert "message-waits util.note: short of memory" in caplog.text


def test_a_call_whose_reader_was_lost_is_not_begun_again(bench: Bench) -> None:
    gate = Gate()
    first, second = bench.bus(wire="xml"), bench.bus(wire="xml")
    for bus in (first, second):
        bus.add_rpc_service("util", "wait", gate)
    bench.start(first)
    assert first.old_peers is not None
    caught = gevent.spawn(failure_within, bench.sender(wire="xml"), 30.0)
    wait_for(lambda: gate.begun == [1])
    first.old_peers.close(0.0)
    bench.start(second)
    assert "the agent that had the call was lost" in str(caught.get(timeout=PATIENCE_S))
    assert gate.begun == [1]
    gate.opened.set()


def test_a_call_that_was_given_up_is_not_worked_on(bench: Bench) -> None:
    gate = Gate()
    bus = bench.bus(wire="xml")
    bus.add_rpc_service("util", "wait", gate)
    bench.start(bus)
    sender = bench.sender(wire="xml")
    assert sender.ping("NODE-01")
    assert isinstance(failure_within(sender, 0.2), DeadlineExceeded)
    # Its turn is another's, though the gate has not been opened.
    second = gevent.spawn(failure_within, sender, 5.0)
    wait_for(lambda: gate.begun == [1, 1])
    gate.opened.set()
    assert second.get(timeout=PATIENCE_S) is None


def failure_within(sender: Any, timeout: float) -> Exception | None:
    """Return what a call raises."""
    try:
        sender.call("NODE-01.util.wait", 1, timeout=timeout)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize(
    "error",
    [gevent.Timeout(1.0), SystemExit(3), gevent.GreenletExit()],
    ids=lambda error: type(error).__name__,
)
def test_whatever_on_call_lets_out_is_answered_at_once(
    bench: Bench, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    class Bad:
        def on_call(self, request: Any, response: Any) -> None:
            raise error

    bus = bench.bus(wire="xml")
    bus.add_rpc_service("util", "bad", Bad())
    bus.add_rpc_service("math", "add", Add())
    bench.start(bus)
    assert b' status="500"' in ask(bench, call("util", "bad"))
    assert ask(bench, call("math", "add", [1])) == response(b"1")
    caplog.clear()


def test_a_queue_that_is_there_and_another_kind_is_told_to_who_waits(bench: Bench) -> None:
    with closing(bench.broker.connect()) as theirs:
        theirs.channel().queue_declare("NODE-01", arguments={"x-max-length": 10})
        bus = bench.bus(wire="xml")
        bus.run_services(join=False)
        with pytest.raises(BadRequest, match="NODE-01") as caught:
            bus.wait_until_registered(PATIENCE_S)
        assert caught.value.status == 409


# --- py-servicebus itself ----------------------------------------------------------------------

THEIRS = """
import sys
from servicebus.configuration import Configuration
from servicebus.sender import Sender
from servicebus.service import ServiceBus
port, password, node = sys.argv[1:]
config = Configuration({'hosts': ['127.0.0.1'], 'port': port, 'user': 'mesh', 'password': password,
    'use_ssl': False, 'node_name': node, 'secret_token': 'secret token'})
"""
THEIR_AGENT = (
    THEIRS
    + """
class AddService:
    def on_call(self, request, response):
        response.send(sum(request.get_params()))
class Print:
    def on_message(self, request):
        print('message', request.get_params(), flush=True)
sbus = ServiceBus(config)
sbus.add_rpc_service('math', 'add', AddService())
sbus.add_message_services('util', 'print', Print())
sbus.run_services()
"""
)
THEIR_CALLER = (
    THEIRS
    + """
print(Sender(config).ping('NODE-01'), Sender(config).ping_all('NODE-01'))
print(Sender(config).call('NODE-01.math.add', [1, 2]))
print(Sender(config).call('NODE-01.math.sub', [1, 2]))
Sender(config).send('NODE-01.util.note', {'text': 'from the past'})
"""
)


def py_servicebus(bench: Bench, source: str, node: str) -> Program:
    """Run a program of py-servicebus's."""
    if sys.version_info >= (3, 12):
        pytest.skip("py-servicebus needs asyncore, which Python 3.12 has no more")
    if importlib.util.find_spec("servicebus") is None:
        do_without("py-servicebus")
    arguments = (source, str(bench.broker.port), bench.broker.password, node)
    return Program("-W", "ignore", "-c", *arguments)


@pytest.mark.slow
def test_py_servicebuss_sender_is_served(bench: Bench, peers: OldPeers, note: Note) -> None:
    with py_servicebus(bench, THEIR_CALLER, "OLD") as program:
        assert program.ends() == 0, program.stderr
        assert program.stdout.decode().splitlines() == [
            "True (1, 1)",
            "('1', '3')",
            "('2', 'Cannot Find RPC Service: math.sub')",
        ]
    wait_for(lambda: note.noted == [{"text": "from the past"}])


@pytest.mark.slow
def test_py_servicebuss_agent_serves_us(bench: Bench) -> None:
    sender = bench.sender(wire="xml")
    with py_servicebus(bench, THEIR_AGENT, "NODE-01") as program:
        # It forks a process for each broker, and leaves them behind when it is killed.
        try:
            wait_for(lambda: sender.ping("NODE-01"), 20.0)
            assert sender.ping_all("NODE-01") == (1, 1)
            assert sender.call("NODE-01.math.add", [1, 2])[1] == 3
            with pytest.raises(NotFound, match="Cannot Find RPC Service"):
                sender.call("NODE-01.math.sub", [1, 2])
            sender.send("NODE-01.util.print", {"a": 1})
            program.says("message {'a': 1}")
        finally:
            for child in children(program.pid):
                os.kill(child, 9)


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(one) for one in file.read().split()]
