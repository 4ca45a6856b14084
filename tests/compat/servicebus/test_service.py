"""An agent with its services, on one broker and on two."""

from __future__ import annotations

import signal
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import gevent
import pytest
from pika.heartbeat import HeartbeatChecker

from butler_mesh.client import Client
from butler_mesh.compat.servicebus.routes import MeshRoute
from butler_mesh.connections.sealed import SealedClient
from butler_mesh.errors import (
    DeadlineExceeded,
    InstanceLost,
    NotFound,
    RemoteError,
    RequestFailed,
    Unavailable,
    UsageError,
)
from tests.brokers import Broker
from tests.compat.servicebus.conftest import Bench
from tests.compat.servicebus.services import Add, Fail, Gate, Note
from tests.programs import Program
from tests.waiting import wait_for


def test_an_rpc_service_answers_and_a_message_service_does_not(bench: Bench) -> None:
    note, more = Note(), Note()
    bus = bench.bus()
    bus.add_rpc_service("math", "add", Add())
    bus.add_message_service("util", "note", note)
    bus.add_message_services("util", "more", more)
    bench.start(bus)
    sender = bench.sender()
    id_, result = sender.call("NODE-01.math.add", [1, 2])
    assert (len(id_), result) == (32, 3)
    sender.send("NODE-01.util.note", {"n": 1})
    sender.send("NODE-01.util.more", None)
    wait_for(lambda: (note.noted, more.noted) == ([{"n": 1}], [None]))


def test_an_object_without_the_method_is_refused_and_the_other_way_is_named(bench: Bench) -> None:
    bus = bench.bus()
    with pytest.raises(UsageError, match="Add has no on_message: add_rpc_service is for"):
        bus.add_message_service("math", "add", Add())
    with pytest.raises(UsageError, match="add_message_service is for objects with on_message"):
        bus.add_rpc_service("util", "nothing", object())
    assert (bus.rpc_services, bus.message_services) == ({}, {})


def test_an_error_in_on_call_answers_the_caller_at_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bus = bench.bus()
    bus.add_rpc_service("math", "fail", Fail())
    bench.start(bus)
    with pytest.raises(KeyError) as caught:
        bench.sender().call("NODE-01.math.fail")
    assert isinstance(caught.value, RemoteError)
    assert "on_call" in caught.value.traceback
    caplog.clear()


def test_what_JSON_cannot_hold_is_an_error_of_the_caller_too(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd:
        def on_call(self, request: Any, response: Any) -> None:
            response.send(object())

    bus = bench.bus()
    bus.add_rpc_service("math", "odd", Odd())
    bench.start(bus)
    with pytest.raises(RemoteError, match="JSON"):
        bench.sender().call("NODE-01.math.odd")
    caplog.clear()


def test_a_ping_is_for_a_new_connection_and_not_for_each_call(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pings: list[str] = []
    ask = MeshRoute.ask

    def count(route: MeshRoute, node: str, timeout: float) -> bool:
        pings.append(node)
        return ask(route, node, timeout)

    monkeypatch.setattr(MeshRoute, "ask", count)
    note, bus = Note(), bench.bus()
    bus.add_rpc_service("math", "add", Add())
    bus.add_message_service("util", "note", note)
    bench.start(bus)
    sender = bench.sender()
    for n in range(10):
        assert sender.call("NODE-01.math.add", [n])[1] == n
        sender.send("NODE-01.util.note", n)
    assert pings == ["NODE-01"]
    wait_for(lambda: note.noted == list(range(10)))


def test_a_service_that_is_not_there_is_NotFound(bench: Bench) -> None:
    bench.start(bench.bus())
    with pytest.raises(NotFound, match="math/add"):
        bench.sender().call("NODE-01.math.add", [1])


def test_another_secret_is_refused_with_text(bench: Bench) -> None:
    bus = bench.bus()
    bus.add_rpc_service("math", "add", Add())
    bench.start(bus)
    with pytest.raises(RequestFailed, match="another passphrase") as caught:
        bench.sender(secret_token="another").call("NODE-01.math.add", [1])
    assert caught.value.status == 401


def test_a_message_that_was_seen_or_is_too_old_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = bench.bus()
    bus.add_rpc_service("math", "add", Add())
    bench.start(bus)
    configuration = bench.configuration()
    address = configuration.address(*configuration.hosts, service="servicebus.NODE-01")
    with Client(address, passphrase=configuration.secret_token) as client:

        def add() -> int:
            return client.request(None, "/call/math/add", {"params": [1]}).status_code

        monkeypatch.setattr("secrets.token_hex", lambda length: "0" * 2 * length)
        assert [add(), add()] == [200, 401]
        monkeypatch.undo()
        connection = client._connection
        assert isinstance(connection, SealedClient)
        clock = connection._clock
        for off_s, code in ((-40.0, 503), (40.0, 401), (0.0, 200)):
            connection._clock = lambda off_s=off_s: clock() + off_s
            assert add() == code


def test_services_run_side_by_side_and_each_takes_one_request_at_a_time(bench: Bench) -> None:
    gate = Gate()
    bus = bench.bus(queue_len=1)
    bus.add_rpc_service("util", "wait", gate)
    bus.add_rpc_service("math", "add", Add())
    bench.start(bus)
    sender = bench.sender()
    calls = [gevent.spawn(sender.call, "NODE-01.util.wait", n) for n in range(2)]
    wait_for(lambda: len(gate.begun) == 1)
    assert sender.call("NODE-01.math.add", [2])[1] == 2
    with pytest.raises(Unavailable, match="too many"):
        # The calls of one sender reach the node in their order.
        sender.call("NODE-01.util.wait", 2)
    gate.opened.set()
    gevent.joinall(calls, timeout=5.0, raise_error=True)


def test_a_request_has_a_sender_for_calling_on(bench: Bench) -> None:
    class Twice:
        def on_call(self, request: Any, response: Any) -> None:
            sender = request.get_sender()
            _, once = sender.call("NODE-01.math.add", request.get_params())
            sender.close()
            response.send(2 * sender.call("NODE-01.math.add", [once])[1])

    bus = bench.bus()
    bus.add_rpc_service("math", "add", Add())
    bus.add_rpc_service("math", "twice", Twice())
    bench.start(bus)
    assert bench.sender().call("NODE-01.math.twice", [1, 2])[1] == 6


def test_a_call_made_for_a_call_has_no_more_time_than_that(bench: Bench) -> None:
    errors: list[Exception] = []

    class Ask:
        def on_call(self, request: Any, response: Any) -> None:
            try:
                request.get_sender().call("NODE-01.util.wait", 1)
            except Exception as error:
                errors.append(error)
                raise

    gate = Gate()
    bus = bench.bus()
    bus.add_rpc_service("util", "ask", Ask())
    bus.add_rpc_service("util", "wait", gate)
    bench.start(bus)
    with pytest.raises(DeadlineExceeded):
        bench.sender().call("NODE-01.util.ask", timeout=0.2)
    gate.opened.set()


class Impatient(HeartbeatChecker):
    """Looks after one second, where pika adds five of its own."""

    def _start_check_timer(self) -> None:
        self._check_interval = 1.5
        super()._start_check_timer()


@pytest.mark.slow
def test_a_broker_that_says_nothing_is_given_up_and_found_again(
    bench: Bench, other_broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("butler_mesh.connections.amqp.connection.HEARTBEAT_S", 1)
    monkeypatch.setattr("pika.heartbeat.HeartbeatChecker", Impatient)
    hosts = [f"127.0.0.1:{one.port}" for one in (other_broker, bench.broker)]
    bus = bench.bus(*hosts)
    bus.add_rpc_service("math", "add", Add())
    bench.start(bus)
    sender = bench.sender(*hosts, socket_timeout=2)
    wait_for(lambda: sender.ping_all("NODE-01") == (2, 2))
    other_broker.signal(signal.SIGSTOP)
    try:
        wait_for(lambda: f"connection-lost 127.0.0.1:{other_broker.port}" in caplog.text, 40.0)
        assert sender.call("NODE-01.math.add", [1, 2], timeout=10.0)[1] == 3
    finally:
        other_broker.signal(signal.SIGCONT)
    wait_for(lambda: sender.ping_all("NODE-01") == (2, 2), 30.0)


@pytest.mark.slow
def test_a_service_that_sleeps_keeps_no_other_waiting_where_everything_is_patched(bench: Bench) -> None:
    agent = """
        from gevent import monkey; monkey.patch_all()
        import sys, time
        from butler_mesh.compat.servicebus.configuration import Configuration
        from butler_mesh.compat.servicebus.service import ServiceBus
        class Sleep:
            def on_call(self, request, response):
                print("asleep", flush=True)
                time.sleep(60)
        class Add:
            def on_call(self, request, response):
                response.send(sum(request.get_params()))
        bus = ServiceBus(Configuration({"hosts": [sys.argv[1]], "user": sys.argv[2], "password": sys.argv[3],
            "node_name": "NODE-01", "secret_token": "secret token"}))
        bus.add_rpc_service("util", "sleep", Sleep())
        bus.add_rpc_service("math", "add", Add())
        bus.run_services()
        """
    broker, sender = bench.broker, bench.sender()
    with Program.of(agent, f"127.0.0.1:{broker.port}", broker.user, broker.password) as program:
        wait_for(lambda: sender.ping("NODE-01"), 20.0)
        sleeping = gevent.spawn(sender.call, "NODE-01.util.sleep")
        program.says("asleep")
        assert sender.call("NODE-01.math.add", [1, 2])[1] == 3
        sleeping.kill()
        program.send(signal.SIGTERM)
        assert program.ends() == 0
        assert program.stderr == ""


@pytest.mark.slow
def test_both_brokers_are_read(bench: Bench, other_broker: Broker) -> None:
    hosts = [f"127.0.0.1:{one.port}" for one in (bench.broker, other_broker)]
    bus = bench.bus(*hosts)
    bus.add_rpc_service("math", "add", Add())
    bench.start(bus)
    sender = bench.sender(*hosts)
    wait_for(lambda: sender.ping_all("NODE-01") == (2, 2))
    for host in hosts:
        assert bench.sender(host).call("NODE-01.math.add", [1, 2])[1] == 3
    assert sender.call("NODE-01.math.add", [1, 2], reverse=True)[1] == 3


@pytest.mark.slow
def test_a_broker_that_is_killed_costs_nothing_and_is_read_again_when_it_is_back(
    bench: Bench, other_broker: Broker
) -> None:
    hosts = [f"127.0.0.1:{one.port}" for one in (other_broker, bench.broker)]
    note = Note()
    bus = bench.bus(*hosts, wire="xml")
    bus.add_rpc_service("math", "add", Add())
    bus.add_message_service("util", "note", note)
    bench.start(bus)
    senders = [bench.sender(*hosts, wire=wire, socket_timeout=2) for wire in ("mesh", "xml")]

    def brokers() -> list[int]:
        return [sender.ping_all("NODE-01", 0.5)[0] for sender in senders]

    wait_for(lambda: brokers() == [2, 2])
    other_broker.stop(signal.SIGKILL)
    for n, sender in enumerate(senders * 2):
        assert sender.call("NODE-01.math.add", [n], timeout=10.0)[1] == n
        sender.send("NODE-01.util.note", n)
    wait_for(lambda: sorted(note.noted) == [0, 1, 2, 3])
    assert brokers() == [1, 1]
    other_broker.start()
    wait_for(lambda: brokers() == [2, 2], 30.0)
    for wire in ("mesh", "xml"):
        assert bench.sender(hosts[0], wire=wire).call("NODE-01.math.add", [1])[1] == 1
    bus.stop()


# --- messages ------------------------------------------------------------------------------------


def test_a_message_to_a_service_that_is_not_there_is_NotFound_at_once(bench: Bench) -> None:
    bench.start(bench.bus())
    began = monotonic()
    with pytest.raises(NotFound, match=r"servicebus\.NODE-01:util\.note"):
        bench.sender().send("NODE-01.util.note", 1)
    assert monotonic() - began < 1.0


def test_messages_wait_for_a_node_that_is_away(bench: Bench) -> None:
    note = Note()
    first, second = bench.bus(), bench.bus()
    for bus in (first, second):
        bus.add_message_service("util", "note", note)
    bench.start(first)
    first.stop()
    sender = bench.sender()
    for n in range(3):
        sender.send("NODE-01.util.note", n)
    assert note.noted == []
    bench.start(second)
    wait_for(lambda: note.noted == [0, 1, 2])


def test_slow_messages_keep_no_other_service_waiting(bench: Bench) -> None:
    """They wait with the broker, one at a time is handed out, and so they are worked on in their order."""
    gate, bus = Gate(), bench.bus(queue_len=1)
    bus.add_message_service("util", "wait", gate)
    bus.add_rpc_service("math", "add", Add())
    bench.start(bus)
    sender = bench.sender()
    for n in range(20):
        sender.send("NODE-01.util.wait", n)
    wait_for(lambda: gate.begun == [0])
    assert sender.call("NODE-01.math.add", [1, 2])[1] == 3
    gate.opened.set()
    wait_for(lambda: gate.ended == list(range(20)))
    assert gate.begun == list(range(20))


def test_messages_in_the_background_run_side_by_side_up_to_queue_len(bench: Bench) -> None:
    gate, bus = Gate(), bench.bus(queue_len=3)
    gate.background = True
    bus.add_message_service("util", "wait", gate)
    bench.start(bus)
    sender = bench.sender()
    for n in range(5):
        sender.send("NODE-01.util.wait", n)
    wait_for(lambda: len(gate.begun) == 3)
    gate.opened.set()
    wait_for(lambda: sorted(gate.ended) == list(range(5)))


@pytest.mark.slow
def test_a_message_that_fails_is_tried_again_and_then_with_the_dead(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("butler_mesh.connections.amqp.retries.PAUSES_S", (0.001,) * 6)
    tries: list[str] = []
    ids: set[str] = set()

    class Fails:
        def on_message(self, request: Any) -> None:
            tries.append(request.get_params())
            ids.add(request.get_event().id)
            if request.get_params() == "always" or len(tries) < 3:
                raise SystemExit(3) if len(tries) == 1 else NotFound("no such row", status=404)

    bus = bench.bus()
    bus.add_message_service("util", "fails", Fails())
    bench.start(bus)
    sender = bench.sender()
    sender.send("NODE-01.util.fails", "twice")
    wait_for(lambda: tries == ["twice"] * 3)
    sender.send("NODE-01.util.fails", "always")
    with bench.dead("util", "fails") as dead:
        wait_for(lambda: dead.count() == 1, 10.0)
        assert b"always" in dead.show(1)[0].envelope
    assert tries.count("always") == 6
    # By which a repetition is known.
    assert len(ids) == 2
    caplog.clear()


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["mesh", "xml"])
def test_what_an_agent_had_that_was_killed_is_begun_again_if_it_is_a_message(bench: Bench, wire: str) -> None:
    agent = """
        import sys, gevent
        from butler_mesh.compat.servicebus.configuration import Configuration
        from butler_mesh.compat.servicebus.service import ServiceBus
        class Work:
            def on_call(self, request, response):
                self.on_message(request)
            def on_message(self, request):
                print("begun", request.get_params(), flush=True)
                gevent.sleep(60)
        bus = ServiceBus(Configuration({"hosts": [sys.argv[1]], "user": sys.argv[2], "password": sys.argv[3],
            "wire": sys.argv[4], "node_name": "NODE-01", "secret_token": "secret token"}))
        bus.add_rpc_service("util", "work", Work())
        bus.add_message_service("util", "work", Work())
        bus.run_services()
        """
    broker, sender, gate = bench.broker, bench.sender(wire=wire), Gate()
    second = bench.bus(wire=wire)
    second.add_rpc_service("util", "work", gate)
    second.add_message_service("util", "work", gate)
    arguments = (f"127.0.0.1:{broker.port}", broker.user, broker.password, wire)
    with Program.of(agent, *arguments) as program:
        wait_for(lambda: sender.ping("NODE-01", 0.5), 20.0)
        sender.send("NODE-01.util.work", "message")
        program.says("begun message")
        caught: list[Exception] = []

        def call() -> None:
            with pytest.raises(InstanceLost) as lost:
                sender.call("NODE-01.util.work", "call", timeout=30.0)
            caught.append(lost.value)

        calling = gevent.spawn(call)
        program.says("begun call")
        program.send(signal.SIGKILL)
        program.ends()
    gate.opened.set()
    bench.start(second)
    wait_for(lambda: gate.ended == ["message"])
    calling.get(timeout=10.0)
    assert caught[0].status == 502
    assert gate.begun == ["message"]


# --- the rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [gevent.Timeout(1.0), SystemExit(3), gevent.GreenletExit()], ids=lambda e: type(e).__name__
)
def test_whatever_on_call_lets_out_is_answered_at_once(
    bench: Bench, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    class Bad:
        def on_call(self, request: Any, response: Any) -> None:
            raise error

    bus = bench.bus()
    bus.add_rpc_service("util", "bad", Bad())
    bus.add_rpc_service("math", "add", Add())
    bench.start(bus)
    sender = bench.sender()
    with pytest.raises(RemoteError) as caught:
        sender.call("NODE-01.util.bad", timeout=10.0)
    assert (caught.value.status, caught.value.type) == (500, type(error).__name__)
    assert sender.call("NODE-01.math.add", [1])[1] == 1
    caplog.clear()


@pytest.mark.parametrize("wire", ["mesh", "xml"])
def test_a_node_may_have_the_name_of_its_host(bench: Bench, wire: str) -> None:
    note, bus = Note(), bench.bus(wire=wire, node_name="node.example.org")
    bus.add_rpc_service("math", "add", Add())
    bus.add_message_service("util", "note", note)
    bench.start(bus)
    sender = bench.sender(wire=wire)
    assert sender.call("node.example.org.math.add", [1, 2])[1] == 3
    sender.send("node.example.org.util.note", 1)
    wait_for(lambda: note.noted == [1])


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["mesh", "xml"])
def test_calls_and_messages_over_TLS(
    bench: Bench, tls: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, wire: str
) -> None:
    endpoint, home = tls
    for name, file in (("CA", "ca.pem"), ("CERTIFICATE", "cert.pem"), ("KEY", "key.pem")):
        monkeypatch.setenv(f"BUTLER_MESH_AMQP_{name}", str(home / file))
    where = urlsplit(endpoint)
    options = {"use_ssl": True, "ssl_port": where.port, "password": where.password, "wire": wire}
    note, bus = Note(), bench.bus("127.0.0.1", **options)
    bus.add_rpc_service("math", "add", Add())
    bus.add_message_service("util", "note", note)
    bench.start(bus)
    sender = bench.sender("127.0.0.1", **options)
    assert sender.call("NODE-01.math.add", [1, 2])[1] == 3
    sender.send("NODE-01.util.note", 1)
    wait_for(lambda: note.noted == [1])
