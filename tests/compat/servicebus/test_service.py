"""An agent with its services, on one broker and on two."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import gevent
import pytest

from butler_mesh.client import Client
from butler_mesh.compat.servicebus.service import ServiceBus
from butler_mesh.connections.sealed import SealedClient
from butler_mesh.errors import DeadlineExceeded, NotFound, RemoteError, RequestFailed, Unavailable
from tests.brokers import Broker, running_broker
from tests.compat.servicebus.conftest import Bench
from tests.compat.servicebus.services import Add, Fail, Gate, GoesOn, Note
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


def test_hooks_run_before_and_after_and_stop_waits_for_all(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []
    service = GoesOn()
    bus = bench.bus()
    bus.add_rpc_service("util", "on", service)
    bus.set_after_fork_hook(lambda: log.append("fork"))
    bus.set_on_exit_hook(lambda: log.append(f"exit after {len(service.done)}"))
    running = gevent.spawn(bus.run_services)
    wait_for(lambda: log == ["fork"])
    sender = bench.sender()
    wait_for(lambda: sender.ping("NODE-01"))
    assert sender.call("NODE-01.util.on")[1] == "soon"
    bus.stop()
    running.get(timeout=10.0)
    assert log == ["fork", "exit after 1"]


def test_a_hook_that_fails_at_the_end_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bus = bench.bus()
    bus.set_on_exit_hook(lambda: 1 // 0)
    bench.start(bus)
    bus.stop()
    failed = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert [r.message for r in failed] == ["on-exit-hook-failed"]
    caplog.clear()


@pytest.mark.slow
def test_a_broker_that_says_nothing_is_given_up_and_found_again(
    bench: Bench, other_broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pika adds five seconds of its own.
    monkeypatch.setattr("butler_mesh.connections.amqp.connection.HEARTBEAT_S", 1)
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
@pytest.mark.parametrize("wire", ["mesh", "xml"])
def test_a_broker_that_is_killed_costs_nothing_and_is_read_again_when_it_is_back(
    bench: Bench, tmp_path: Path, wire: str
) -> None:
    with running_broker(tmp_path / "first", password=bench.broker.password) as first:
        hosts = [f"127.0.0.1:{one.port}" for one in (first, bench.broker)]
        bus: ServiceBus = bench.bus(*hosts, wire=wire)
        bus.add_rpc_service("math", "add", Add())
        bench.start(bus)
        sender = bench.sender(*hosts, wire=wire, socket_timeout=2)
        wait_for(lambda: sender.ping_all("NODE-01") == (2, 2))
        first.stop(signal.SIGKILL)
        for n in range(5):
            assert sender.call("NODE-01.math.add", [n], timeout=10.0)[1] == n
        assert sender.ping_all("NODE-01") == (1, 2)
        first.start()
        wait_for(lambda: sender.ping_all("NODE-01") == (2, 2), 30.0)
        assert bench.sender(hosts[0], wire=wire).call("NODE-01.math.add", [1])[1] == 1
        sender.close()
        bus.stop()
