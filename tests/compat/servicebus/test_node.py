"""What begins and ends with a node, on a real broker."""

from __future__ import annotations

import logging

import gevent
import pytest

from butler_mesh.client import Client
from tests.brokers import free_port
from tests.compat.servicebus.conftest import PATIENCE_S, Bench
from tests.compat.servicebus.services import Add, Fail, GoesOn, Note
from tests.waiting import wait_for


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


@pytest.mark.parametrize("wire", ["mesh", "xml"])
def test_services_may_be_added_while_it_serves(bench: Bench, wire: str) -> None:
    note, bus = Note(), bench.bus(wire=wire)
    bench.start(bus)
    bus.add_rpc_service("math", "add", Fail())
    bus.add_rpc_service("math", "add", Add())
    bus.add_message_service("util", "note", note)
    assert bus.wait_until_registered(PATIENCE_S)
    sender = bench.sender(wire=wire)
    assert sender.call("NODE-01.math.add", [1, 2])[1] == 3
    sender.send("NODE-01.util.note", 1)
    wait_for(lambda: note.noted == [1])


@pytest.mark.slow
def test_killed_by_a_command_and_stopped_it_ends_once(bench: Bench) -> None:
    ended: list[str] = []
    bus = bench.bus()
    bus.set_on_exit_hook(lambda: ended.append("exit"))
    bench.start(bus)
    configuration = bus.configuration
    with Client(configuration.address(*configuration.hosts), passphrase=configuration.secret_token) as client:
        for _, response in client.manage("servicebus.NODE-01", "kill", timeout=1.0):
            assert response.status_code == 200
    bus.stop()
    assert ended == ["exit"]


def test_to_a_node_that_answers_a_ping_messages_can_be_sent(bench: Bench) -> None:
    notes, bus = [Note() for _ in range(5)], bench.bus()
    for n, note in enumerate(notes):
        bus.add_message_service("util", f"note{n}", note)
    sender = bench.sender()
    bus.run_services(join=False)
    wait_for(lambda: sender.ping("NODE-01"))
    for n in range(len(notes)):
        sender.send(f"NODE-01.util.note{n}", n)
    wait_for(lambda: [note.noted for note in notes] == [[n] for n in range(len(notes))])


def test_a_start_does_not_wait_for_a_broker_that_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("butler_mesh.compat.servicebus.node.MESSAGES_FIRST_S", 0.02)
    bus = bench.bus(f"127.0.0.1:{free_port()}")
    bus.add_message_service("util", "note", Note())
    bus.run_services(join=False)
    assert not bus.wait_until_registered(0.05)
