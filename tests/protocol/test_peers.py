"""Peers, calls and pools: what a router remembers of each, and the records it writes to them."""

from __future__ import annotations

import pytest

from butler_mesh.protocol import mesh
from butler_mesh.protocol.liveness import State
from butler_mesh.protocol.mesh import Record
from butler_mesh.protocol.outbox import Outbox
from butler_mesh.protocol.peers import Call, ClientPeer, Door, InstancePeer, Peer, ServicePool
from tests.protocol.wires import drain

NOW = 100.0


@pytest.fixture
def outbox() -> Outbox:
    return Outbox([], None, b"peer")


@pytest.fixture
def door() -> Door:
    return Door("both")


def written(outbox: Outbox) -> list[Record]:
    """Return the records that were queued for a peer."""
    return [record for frames in drain([outbox], NOW) for record in mesh.parse(frames[0], frames[1:])[1]]


def call_of(client: ClientPeer, envelope: bytes | None = None) -> Call:
    """Return a call of the client's with id 7 and token 99."""
    payload = mesh.pack_target(b"echo") + (b"{}" if envelope is None else b"")
    call = Call(client, 7, mesh.IDEMPOTENT, NOW + 1, payload, envelope, ServicePool(b"echo", NOW))
    call.token = 99
    return call


def test_a_door_lets_everybody_in_unless_told_otherwise() -> None:
    door, front, back = Door("both"), Door("front", services=False), Door("back", clients=False)
    assert (door.accepts_clients, door.accepts_services) == (True, True)
    assert (front.accepts_clients, front.accepts_services) == (True, False)
    assert (back.accepts_clients, back.accepts_services) == (False, True)
    assert door.peers == {}


def test_a_peer_was_heard_when_it_came(door: Door, outbox: Outbox) -> None:
    peer = Peer(door, outbox, "control", NOW)
    assert (peer.heard_at, peer.role, peer.is_gone) == (NOW, "control", False)


def test_silence_is_taken_from_a_peer_for_15_s(door: Door, outbox: Outbox) -> None:
    assert Peer(door, outbox, "client", NOW).patience_s == 15.0


def test_a_peer_is_sent_signs_of_life_in_the_meshs_own_words(door: Door, outbox: Outbox) -> None:
    Peer(door, outbox, "control", NOW).heartbeat()
    assert written(outbox) == [Record(mesh.HEARTBEAT, 0, 0, 0, b"", None)]


def test_a_reply_carries_the_clients_own_id_and_not_the_token(door: Door, outbox: Outbox) -> None:
    client = ClientPeer(door, outbox, "client", NOW)
    call = call_of(client)
    client.reply(call, mesh.PARTIAL, mesh.RAW, b"\xc8\x00", b"a large envelope")
    client.reply(call, mesh.FINAL, 0, b"\xc8\x00{}", None)
    assert written(outbox) == [
        Record(mesh.PARTIAL, mesh.RAW | mesh.ATTACHED, 7, 0, b"\xc8\x00", b"a large envelope"),
        Record(mesh.FINAL, 0, 7, 0, b"\xc8\x00{}", None),
    ]


def test_a_refusal_is_a_final_of_the_routers_own(door: Door, outbox: Outbox) -> None:
    ClientPeer(door, outbox, "client", NOW).refuse(7, mesh.pack_failure(404, "no"))
    assert written(outbox) == [Record(mesh.FINAL, 0, 7, 0, b'\x94\x01{"message":"no"}', None)]


def test_a_client_is_let_go_of_with_a_goodbye(door: Door, outbox: Outbox) -> None:
    ClientPeer(door, outbox, "client", NOW).dismiss(503, "why")
    assert written(outbox) == [Record(mesh.GOODBYE, 0, 0, 0, b"\xf7\x01why", None)]


@pytest.mark.parametrize("envelope", [None, b"a large envelope"])
def test_a_request_carries_the_token_and_goes_on_as_it_came(
    door: Door, outbox: Outbox, envelope: bytes | None
) -> None:
    call = call_of(ClientPeer(door, Outbox([]), "client", NOW), envelope)
    InstancePeer(door, outbox, "instance", NOW).request(call, 950)
    (record,) = written(outbox)
    assert (record.kind, record.id, record.remaining_ms) == (mesh.REQUEST, 99, 950)
    assert (record.payload, record.envelope) == (call.payload, envelope)
    assert record.flags == mesh.IDEMPOTENT | (mesh.ATTACHED if envelope else 0)


def test_cancel_and_window_go_by_token(door: Door, outbox: Outbox) -> None:
    instance = InstancePeer(door, outbox, "instance", NOW)
    instance.cancel(99)
    instance.grant(99, mesh.pack_window(4))
    assert written(outbox) == [
        Record(mesh.CANCEL, 0, 99, 0, b"", None),
        Record(mesh.WINDOW, 0, 99, 0, b"\x04\x00\x00\x00", None),
    ]


def test_an_instance_is_judged_by_its_pulse(door: Door, outbox: Outbox) -> None:
    instance = InstancePeer(door, outbox, "instance", NOW)
    assert [instance.judge(NOW + s) for s in (0, 3, 15)] == [State.READY, State.BLOCKED, State.DEAD]


def test_a_new_instance_may_be_sent_nothing(door: Door, outbox: Outbox) -> None:
    instance = InstancePeer(door, outbox, "instance", NOW)
    assert (instance.credit, instance.free, instance.in_rotation, instance.pool) == (0, 0, False, None)


def test_status_shows_an_instance_without_its_epoch(door: Door, outbox: Outbox) -> None:
    instance = InstancePeer(door, outbox, "instance", NOW)
    instance.wid, instance.epoch, instance.host, instance.pid = "w1", "secret", "host", 42
    instance.credit, instance.rss_kib = 64, 30_000
    instance.calls[99] = call_of(ClientPeer(door, Outbox([]), "client", NOW))
    instance.pulse.heard_control(NOW, 0.12345)
    assert instance.describe() == {
        "wid": "w1",
        "state": "ready",
        "host": "host",
        "pid": 42,
        "credit": 64,
        "in_flight": 1,
        "lag_s": 0.123,
        "rss_kib": 30_000,
        "protocol": "mesh/1",
    }


def test_status_shows_a_service_with_its_queue_paths_and_instances(door: Door, outbox: Outbox) -> None:
    pool = ServicePool(b"echo", NOW)
    pool.paths = {b"/b", b"/a", b"/\xff"}
    client = ClientPeer(door, Outbox([]), "client", NOW)
    pool.queue.push(client, call_of(client))
    instance = InstancePeer(door, outbox, "instance", NOW)
    pool.instances.add(instance)
    assert pool.describe() == {
        "queued": 1,
        "paths": ["/a", "/b", "/\N{REPLACEMENT CHARACTER}"],
        "instances": [instance.describe()],
    }


def test_a_new_call_is_nobodys_yet(door: Door, outbox: Outbox) -> None:
    call = call_of(ClientPeer(door, outbox, "client", NOW))
    assert (call.instance, call.slot, call.is_queued, call.parts) == (None, None, False, 0)
    assert not call.was_dispatched_again
