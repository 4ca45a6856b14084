"""The second plane: an instance that computes is told from a dead one, by a thread that leaves no trace."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from butler_mesh import codec
from butler_mesh.clock import monotonic
from butler_mesh.connections.control import (
    TURN_INTERVAL_S,
    ControlPlane,
    ControlProtocol,
    _converse,
)
from butler_mesh.protocol import mesh
from butler_mesh.protocol.instance import Identity, InstanceProtocol, Intake
from butler_mesh.protocol.member import Phase
from butler_mesh.protocol.mesh import Record
from tests.connections.conftest import descriptors, threads
from tests.connections.contract import Call, Gate, echo
from tests.connections.engines import SocketEngine
from tests.waiting import wait_for

ANY = "tcp://127.0.0.1:*"


@pytest.fixture
def engine() -> Iterator[SocketEngine]:
    engine = SocketEngine(ANY)
    engine.start()
    yield engine
    engine.close()


def described(engine: SocketEngine, service: str = "svc") -> list[dict[str, Any]]:
    """Return what the router's status says of a service's instances."""
    services = engine.start().status()["services"]
    return list(services[service]["instances"]) if service in services else []


SPINNER = """
import sys
if sys.argv[3] == "patched":
    from gevent import monkey
    monkey.patch_all()
import time
import gevent
from butler_mesh.connections import zeromq

def handler(delivery):
    until = time.monotonic() + float(delivery.envelope)
    while time.monotonic() < until:
        pass
    delivery.reply(200, b"done")

instance = zeromq.instance([sys.argv[1]], sys.argv[2], ())
instance.serve(handler)
gevent.sleep(60)
"""


@pytest.mark.slow
def test_an_instance_that_computes_is_blocked_and_never_dead_and_ready_again(engine: SocketEngine) -> None:
    # In one program that gevent has patched, and in one that it has not.
    names = ["patched", "plain"]
    command = [sys.executable, "-c", SPINNER, engine.endpoint]
    programs = [subprocess.Popen([*command, name, name]) for name in names]
    try:
        for name in names:
            wait_for(lambda: described(engine, name), 15.0)  # noqa: B023
        before = {name: described(engine, name)[0] for name in names}
        client = engine.client()
        begun = monotonic()
        calls = [Call(client, b"4.5", to=name, within_s=30.0) for name in names]
        queued = [Call(client, b"0", to=name, within_s=30.0) for name in names]
        seen: dict[str, set[str]] = {name: set() for name in names}

        def all_are(state: str) -> bool:
            for name in names:
                (now,) = described(engine, name)  # never removed
                assert now["wid"] == before[name]["wid"]
                seen[name].add(now["state"])
            return all(described(engine, name)[0]["state"] == state for name in names)

        wait_for(lambda: all_are("blocked"), 4.0)
        assert monotonic() - begun < 4.0
        for name in names:
            assert described(engine, name)[0]["lag_s"] >= 1.0
        # Somebody else takes what comes now.
        engine.instance(echo, "plain")
        assert [Call(client, b"x", to="plain").final().envelope for _ in range(3)] == [b"x"] * 3
        engine._opened.pop().close(1.0)  # type: ignore[call-arg]
        wait_for(lambda: all_are("ready"), 10.0)
        assert [call.status for call in calls + queued] == [200] * 4
        assert seen == {name: {"ready", "blocked"} for name in names}
    finally:
        for program in programs:
            program.kill()
            program.wait()


@pytest.mark.slow
def test_the_router_is_told_how_the_instance_is(engine: SocketEngine) -> None:
    gate = Gate()
    engine.instance(gate)
    call = Call(engine.client())
    wait_for(lambda: described(engine)[0]["rss_kib"] > 1000)
    (instance,) = described(engine)
    assert (instance["state"], instance["in_flight"]) == ("ready", 1)
    assert instance["lag_s"] < 1.0
    gate.open()
    assert call.status == 200


@pytest.mark.slow
def test_a_control_connection_that_was_lost_comes_back(engine: SocketEngine) -> None:
    engine.instance(echo)
    machine = engine.start().machine
    (peer,) = machine.instances.values()
    wait_for(lambda: peer.control)
    # As if its connection had been cut half-way: the router has forgotten it, the instance has not.
    control = peer.control
    assert control is not None
    machine._remove(control, monotonic(), "test")
    assert peer.control is None
    wait_for(lambda: peer.control)


# --- the thread ---------------------------------------------------------------------------------


def instance(epoch: str = "e" * 32) -> InstanceProtocol:
    return InstanceProtocol(monotonic(), Identity("svc-1", "svc"), Intake(), epoch)


@pytest.mark.parametrize("endpoints", [["tcp://127.0.0.1:9"], ["tcp://127.0.0.1:9", "ipc:///no/such/socket"]])
def test_the_thread_ends_with_stop_and_leaves_nothing(endpoints: list[str]) -> None:
    fds, tasks, python_threads = descriptors(), threads(), threading.active_count()
    for _ in range(5):
        plane = ControlPlane([(endpoint, instance()) for endpoint in endpoints])
        plane.start()
        wait_for(lambda: len(threads()) > len(tasks))
        begun = monotonic()
        plane.stop()
        assert monotonic() - begun < 1.0
    wait_for(lambda: threads() == tasks)
    assert descriptors().keys() == fds.keys()
    assert threading.active_count() == python_threads


def test_stop_right_after_start_is_well() -> None:
    for _ in range(20):
        plane = ControlPlane([("tcp://127.0.0.1:9", instance())])
        plane.start()
        plane.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_thread_that_fails_does_not_hang_stop() -> None:
    plane = ControlPlane([("nonsense://x", instance())])
    plane.start()
    plane.stop()


# --- what it says -------------------------------------------------------------------------------


class FakeSocket:
    """A DEALER whose pipe is full, or not."""

    def __init__(self) -> None:
        self.is_full = False
        self.inbox: list[list[bytes]] = []
        self.sent: list[Record] = []

    def recv_multipart(self, flags: int) -> list[bytes]:
        if not self.inbox:
            raise zmq.Again
        return self.inbox.pop(0)

    def send_multipart(self, frames: Any, flags: int) -> None:
        if self.is_full:
            raise zmq.Again
        self.sent += mesh.parse(frames[0])[1]

    def take(self) -> list[tuple[int, dict[str, Any]]]:
        """Return (kind, object) of what was sent since."""
        sent = [(record.kind, codec.loads(record.payload or b"{}")) for record in self.sent]
        self.sent.clear()
        return sent


class Talk:
    """A control machine, its instance and its socket, at a time that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.report = {"turned_at": self.now}
        self.instance = instance()
        self.instance.is_registered = True
        self.instance.session = 1
        self.machine = ControlProtocol(self.now, self.instance, self.report)
        self.socket = FakeSocket()

    def turn(self, seconds: float = 0.0, *, lag_s: float = 0.0) -> list[tuple[int, dict[str, Any]]]:
        """Let time pass and the thread look; return what it sent."""
        self.now += seconds
        self.report["turned_at"] = self.now - lag_s
        _converse(self.socket, self.machine, self.now)
        return self.socket.take()

    def welcome(self) -> None:
        payload = b'{"router":"r","epoch":"e"}'
        frame = mesh.pack_header(0) + mesh.pack_record(len(payload), mesh.WELCOME, 0, 0, 0) + payload
        self.socket.inbox.append([frame])


@pytest.fixture
def talk() -> Talk:
    talk = Talk()
    assert [kind for kind, _ in talk.turn()] == [mesh.HELLO]
    talk.welcome()
    talk.turn()
    assert talk.machine.phase is Phase.PRESENT
    return talk


def test_it_greets_with_the_wid_and_epoch_of_a_registered_instance_only() -> None:
    talk = Talk()
    talk.instance.is_registered = False
    assert talk.turn(5.0) == []
    talk.instance.is_registered = True
    ((kind, hello),) = talk.turn()
    assert kind == mesh.HELLO
    assert (hello["role"], hello["wid"], hello["epoch"]) == ("control", "svc-1", talk.instance.epoch)


def test_it_greets_anew_when_the_instance_has_registered_anew(talk: Talk) -> None:
    assert talk.turn() == []
    talk.instance.session += 1
    ((kind, hello),) = talk.turn()
    assert (kind, hello["epoch"]) == (mesh.HELLO, talk.instance.epoch)


def test_it_beats_once_a_second_with_what_it_knows(talk: Talk) -> None:
    talk.instance.intake.running = 3
    ((kind, beat),) = talk.turn(1.0)
    assert kind == mesh.HEARTBEAT
    assert (beat["lag_ms"], beat["in_flight"]) == (0, 3)
    assert beat["rss_kib"] > 1000
    assert talk.turn(0.5) == []
    assert len(talk.turn(0.6)) == 1


@pytest.mark.parametrize(
    ("lag_s", "lag_ms"), [(0.0, 0), (TURN_INTERVAL_S, 0), (TURN_INTERVAL_S + 1.5, 1500), (-1.0, 0)]
)
def test_lag_is_how_long_the_hub_has_not_turned_beyond_the_usual(
    talk: Talk, lag_s: float, lag_ms: int
) -> None:
    ((_, beat),) = talk.turn(1.0, lag_s=lag_s)
    assert abs(beat["lag_ms"] - lag_ms) <= 1


def test_heartbeats_that_nobody_takes_do_not_pile_up(talk: Talk) -> None:
    talk.socket.is_full = True
    for _ in range(200):
        talk.turn(1.0)
        assert talk.machine.outbox.pending_bytes < 4096
    talk.socket.is_full = False
    # The router was silent for long: it is greeted like a new one.
    assert mesh.HELLO in [kind for kind, _ in [*talk.turn(1.0), *talk.turn(1.0)]]
    talk.welcome()
    talk.turn()
    assert [kind for kind, _ in talk.turn(1.0)] == [mesh.HEARTBEAT]


def test_garbage_from_a_router_is_survived(talk: Talk) -> None:
    talk.socket.inbox += [[b""], [b"\xbe\x01"], [b"x", b"y"], [os.urandom(50)], [b"\xbe\x02\0\0\0\0"]]
    talk.turn()
    assert talk.socket.inbox == []
    assert [kind for kind, _ in talk.turn(1.0)] == [mesh.HEARTBEAT]


def test_a_router_that_does_not_know_it_is_greeted_again(talk: Talk) -> None:
    payload = mesh.pack_reason(401, "HELLO first")
    talk.socket.inbox.append(
        [mesh.pack_header(0) + mesh.pack_record(len(payload), mesh.GOODBYE, 0, 0, 0) + payload]
    )
    assert [kind for kind, _ in talk.turn()] == [mesh.HELLO]
