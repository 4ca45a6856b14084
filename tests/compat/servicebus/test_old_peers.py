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
from butler_mesh.compat.servicebus.xml_wire import make_token, pack_call
from butler_mesh.errors import NotFound
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


def test_a_message_whose_reader_was_lost_is_worked_on_again_and_a_call_is_not(bench: Bench) -> None:
    gate = Gate()
    first, second = bench.bus(wire="xml"), bench.bus(wire="xml")
    for bus in (first, second):
        bus.add_message_service("util", "wait", gate)
        bus.add_rpc_service("util", "wait", gate)
    bench.start(first)
    assert first.old_peers is not None
    sender = bench.sender(wire="xml")
    sender.send("NODE-01.util.wait", "message")
    lost = gevent.spawn(sender.call, "NODE-01.util.wait", "call", 30.0)
    wait_for(lambda: set(gate.begun) == {"message", "call"})
    first.old_peers.close(0.0)
    bench.start(second)
    wait_for(lambda: gate.begun.count("message") == 2)
    with pytest.raises(Exception, match="the agent that had the call was lost"):
        lost.get(timeout=PATIENCE_S)
    assert gate.begun.count("call") == 1
    gate.opened.set()


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
