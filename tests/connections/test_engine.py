"""The engine beyond the contract: routers that restart, several routers, and what the pool keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

from butler_mesh.clock import monotonic
from butler_mesh.connections import workers, zeromq
from butler_mesh.connections.base import Delivery
from butler_mesh.connections.engine import MeshClient, MeshInstance
from butler_mesh.connections.node import RouterNode
from butler_mesh.connections.workers import Worker
from butler_mesh.protocol.mesh import FINAL, IDEMPOTENT, MAX_BATCH_RECORDS, ONE_WAY, STREAM
from butler_mesh.protocol.peers import InstancePeer
from tests.connections.contract import PATIENCE_S, Call, Gate, echo
from tests.connections.engines import SocketEngine, machine_of
from tests.waiting import wait_for

ANY = "tcp://127.0.0.1:*"

Leave = Callable[[SocketEngine], None]


@pytest.fixture(params=["tcp", "ipc"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SocketEngine]:
    engine = SocketEngine(ANY if request.param == "tcp" else f"ipc://{tmp_path}/router.sock")
    engine.start()
    yield engine
    engine.close()


@pytest.fixture(params=[SocketEngine.stop, SocketEngine.crash], ids=["stop", "crash"])
def leave(request: pytest.FixtureRequest) -> Leave:
    """How a router goes: with a GOODBYE, or without."""
    leave: Leave = request.param
    return leave


def registered(engine: SocketEngine) -> InstancePeer:
    """Wait until the router has an instance, and return it."""
    instances = engine.start().machine.instances
    wait_for(lambda: instances)
    (instance,) = instances.values()
    return instance


# --- a router that restarts ---------------------------------------------------------------------


@pytest.mark.slow
def test_calls_in_flight_when_a_router_goes_are_502_at_once_or_sent_again(
    engine: SocketEngine, leave: Leave
) -> None:
    gate = Gate()
    engine.instance(gate)
    client = engine.client()
    plain, idempotent = Call(client), Call(client, flags=IDEMPOTENT)
    one_way = Call(client, flags=ONE_WAY)
    wait_for(lambda: gate.now == 3)
    begun = monotonic()
    leave(engine)
    assert plain.status == 502
    assert monotonic() - begun < 1.0
    assert not idempotent.replies
    engine.start()
    gate.open()
    assert idempotent.status == 200
    assert len(gate.arrived) == 4
    assert not one_way.replies


@pytest.mark.slow
def test_calls_that_were_made_while_there_is_no_router_wait_for_one(
    engine: SocketEngine, leave: Leave
) -> None:
    engine.instance(echo)
    client = engine.client()
    assert Call(client).status == 200
    leave(engine)
    wait_for(lambda: machine_of(client).phase.value != "present")
    calls = [Call(client, b"%d" % n) for n in range(20)]
    assert not any(call.replies for call in calls)
    engine.start()
    assert [call.final().envelope for call in calls] == [b"%d" % n for n in range(20)]


@pytest.mark.slow
def test_an_instance_registers_anew_by_itself_with_another_epoch(engine: SocketEngine, leave: Leave) -> None:
    instance = engine.instance(echo, credit=5)
    assert isinstance(instance, MeshInstance)
    epochs = set()
    for _ in range(3):
        peer = registered(engine)
        assert peer.wid == instance.wid
        assert peer.free == 5
        epochs.add(peer.epoch)
        # The second plane follows.
        wait_for(lambda: peer.pulse.has_control)  # noqa: B023
        leave(engine)
        wait_for(lambda: not instance.is_registered)
        engine.start()
    assert len(epochs) == 3


@pytest.mark.slow
def test_a_handler_that_outlives_its_router_replies_to_nobody_and_its_place_comes_back(
    engine: SocketEngine, leave: Leave
) -> None:
    gate = Gate()
    engine.instance(gate, credit=2)
    client = engine.client()
    lost = Call(client)
    wait_for(lambda: gate.now)
    leave(engine)
    assert lost.status == 502
    peer = registered(engine)
    assert peer.free == 1  # the handler still runs
    gate.open()
    wait_for(lambda: peer.free == 2)
    calls = [Call(client) for _ in range(4)]
    assert {call.status for call in calls} == {200}
    assert not any("unknown" in name for name in engine.start().machine.counters)
    assert len(lost.replies) == 1


@pytest.mark.slow
def test_a_stream_without_a_deadline_does_not_wait_for_a_router_that_is_gone(engine: SocketEngine) -> None:
    ended: list[type[BaseException]] = []

    def handler(delivery: Delivery) -> None:
        try:
            while True:
                delivery.wait_for_window()
                delivery.reply(200, b"part", final=False)
        except BaseException as error:
            ended.append(type(error))
            raise

    engine.instance(handler)
    call = Call(engine.client(), flags=STREAM, window=2, within_s=float("inf"))
    wait_for(lambda: len(call.parts) == 2)
    engine.crash()
    assert call.status == 502
    wait_for(lambda: len(ended) == 1)


@pytest.mark.slow
def test_without_any_router_a_call_is_503_after_the_connect_timeout() -> None:
    client = zeromq.client(["tcp://127.0.0.1:9"], connect_timeout_s=0.2)
    begun = monotonic()
    assert Call(client).status == 503
    assert 0.2 <= monotonic() - begun < 2.0
    assert Call(client, within_s=0.05).status == 504
    client.close(PATIENCE_S)


def test_an_instance_without_any_router_closes_at_once() -> None:
    instance = zeromq.instance(["tcp://127.0.0.1:9"], "svc", ())
    instance.serve(echo)
    assert not instance.wait_until_registered(0.02)
    with gevent.Timeout(2.0):
        instance.close(PATIENCE_S)


def test_replies_that_fill_a_message_leave_while_others_of_the_turn_have_yet_to_be_made() -> None:
    node = RouterNode()
    instance, client = MeshInstance([node.dial], "svc", ()), MeshClient([node.dial])
    arrived: list[int] = []

    def handler(delivery: Delivery) -> None:
        assert node._local is not None
        arrived.append(len(node._local._inbox))
        delivery.reply(200, b"{}")

    instance.serve(handler)
    assert Call(client).status == 200
    arrived.clear()
    calls = [Call(client) for _ in range(MAX_BATCH_RECORDS + 8)]
    assert {call.status for call in calls} == {200}
    assert arrived == [0] * MAX_BATCH_RECORDS + [1] * 8
    client.close(PATIENCE_S)
    instance.close(PATIENCE_S)
    node.close()


# --- several routers ----------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[SocketEngine]]:
    """Two routers that know nothing of each other."""
    engines = [SocketEngine(ANY), SocketEngine(f"ipc://{tmp_path}/second.sock")]
    for engine in engines:
        engine.start()
    yield engines
    for engine in engines:
        engine.close()


def test_an_instance_registers_with_all_its_routers(pair: list[SocketEngine]) -> None:
    instance = zeromq.instance([engine.endpoint for engine in pair], "svc", ())
    instance.serve(echo)
    for engine in pair:
        registered(engine)
        assert Call(engine.client(), b"hello").final().envelope == b"hello"
    instance.close(PATIENCE_S)
    assert not any(engine.start().machine.instances for engine in pair)


def test_the_credit_of_an_instance_holds_over_all_its_routers(pair: list[SocketEngine]) -> None:
    gate = Gate()
    instance = zeromq.instance([engine.endpoint for engine in pair], "svc", (), credit=3)
    instance.serve(gate)
    clients = [engine.client() for engine in pair]
    for engine in pair:
        registered(engine)
    begun = monotonic()
    calls = [Call(client) for client in clients for _ in range(6)]
    wait_for(lambda: gate.now == 3)
    gate.open()
    assert {call.status for call in calls} == {200}
    assert gate.most == 3
    assert len(gate.arrived) == 12
    # Room that one router's requests leave is told to the other at once, not with the next heartbeat.
    assert monotonic() - begun < 0.9
    instance.close(PATIENCE_S)


@pytest.mark.slow
def test_when_one_of_two_routers_goes_new_calls_take_the_other(
    pair: list[SocketEngine], leave: Leave
) -> None:
    endpoints = [engine.endpoint for engine in pair]
    instance = zeromq.instance(endpoints, "svc", ())
    instance.serve(echo)
    for engine in pair:
        registered(engine)
    client = zeromq.client(endpoints)
    assert Call(client).status == 200
    wait_for(lambda: len(pair[1].start().machine.doors[0].peers) >= 2)
    first = pair[0].start()
    leave(pair[0])
    wait_for(lambda: machine_of(client).phase.value != "present")
    assert [Call(client).status for _ in range(5)] == [200] * 5
    assert first is not pair[0].start()
    assert client.close(PATIENCE_S) == []
    instance.close(PATIENCE_S)


@pytest.mark.slow
def test_calls_in_flight_fail_over_to_the_other_router_where_that_is_sound(
    pair: list[SocketEngine], leave: Leave
) -> None:
    endpoints = [engine.endpoint for engine in pair]
    gate = Gate()
    instance = zeromq.instance(endpoints, "svc", ())
    instance.serve(gate)
    for engine in pair:
        registered(engine)
    client = zeromq.client(endpoints)
    wait_for(lambda: machine_of(client).phase.value == "present")
    plain, idempotent = Call(client), Call(client, flags=IDEMPOTENT)
    wait_for(lambda: gate.now == 2)
    begun = monotonic()
    leave(pair[0])
    assert plain.status == 502
    wait_for(lambda: gate.now == 3)
    assert monotonic() - begun < 1.0
    gate.open()
    assert idempotent.status == 200
    client.close(PATIENCE_S)
    instance.close(PATIENCE_S)


def test_calls_made_before_any_router_is_there_take_the_first_that_comes(
    pair: list[SocketEngine],
) -> None:
    instance = pair[1].instance(echo)
    client = zeromq.client(["tcp://127.0.0.1:9", pair[1].endpoint])
    call = Call(client, b"hello")
    assert call.final(2.0).envelope == b"hello"
    client.close(PATIENCE_S)
    instance.close(PATIENCE_S)


# --- within one process -------------------------------------------------------------------------


def test_handlers_use_greenlets_again(engine: SocketEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Counted(Worker[object]):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(1)

    monkeypatch.setattr(workers, "Worker", Counted)

    def handler(delivery: Delivery) -> None:
        if delivery.envelope == b"wait":
            gevent.sleep(0)
        delivery.reply(200, b"")

    engine.instance(handler)
    client = engine.client()
    for n in range(50):
        assert Call(client, b"wait" if n % 2 else b"").status == 200
    assert len(made) <= 2
    for _ in range(5):
        assert {call.status for call in [Call(client, b"wait") for _ in range(20)]} == {200}
    assert len(made) <= 25


def test_a_handler_may_close_its_own_instance(engine: SocketEngine) -> None:
    closed: list[bool] = []

    def handler(delivery: Delivery) -> None:
        delivery.reply(200, b"bye")
        instance.close(0.02)
        closed.append(True)

    instance = engine.instance(handler)
    assert Call(engine.client()).final().envelope == b"bye"
    wait_for(lambda: closed)
    assert not engine.start().machine.instances


def test_a_router_of_this_process_needs_no_socket() -> None:
    node = RouterNode()
    instance = MeshInstance([node.dial], "svc")
    instance.serve(echo)
    engine = SocketEngine(ANY)
    engine.router = node
    engine.endpoint = node.bind(ANY)
    # A client over a socket reaches an instance over a pipe.
    assert Call(engine.client(), b"hello").final() == (FINAL, 200, 0, b"hello")
    instance.close(PATIENCE_S)
    engine.close()
