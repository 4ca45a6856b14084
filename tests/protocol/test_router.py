"""Who may say what to a router, and whom it takes for alive: over a network in memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh import codec
from butler_mesh.protocol import mesh, router
from butler_mesh.protocol.liveness import BLOCKED_AFTER_S, DEAD_AFTER_S, HEARTBEAT_INTERVAL_S, State
from butler_mesh.protocol.mesh import ONE_WAY, STREAM
from butler_mesh.protocol.peers import Door
from butler_mesh.protocol.router import MAX_PATHS, PROBE_AGAIN_S, RouterProtocol
from butler_mesh.signing import ready_fields, sign
from tests.protocol.net import Net, Raw, Worker, ready_object, reply, request
from tests.protocol.strange import conversations, play

SECRET = "letmein"


def counted(net: Net, name: str) -> int:
    return net.router.counters[name]


def welcome(raw: Raw) -> dict[str, Any]:
    (record,) = raw.got(mesh.WELCOME)
    return mesh.split_object(record.payload)


def status_of(net: Net, name: str = "svc") -> list[dict[str, Any]]:
    """What mmi.status says of the instances of a service."""
    caller = net.caller()
    asked = caller.ask("mmi.status")
    assert asked.code == 200
    instances = asked.answer["body"]["services"][name]["instances"]
    net.drop(caller)
    assert isinstance(instances, list)
    return instances


# --- HELLO and WELCOME ----------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["client", "instance"])
def test_HELLO_is_answered_with_WELCOME_and_what_a_peer_must_know(role: str) -> None:
    net = Net(max_body_bytes=12_345)
    raw = net.raw(hello={"role": role})
    answer = welcome(raw)
    assert answer["version"] == 1
    assert answer["router"] == net.router.router_id
    assert answer["epoch"] == net.router.epoch
    assert answer["max_bytes"] == 12_345
    assert answer["heartbeat_ms"] == 1000
    assert len(answer["nonce"]) == 32


def test_no_two_routers_have_the_same_epoch_and_no_two_greetings_the_same_nonce() -> None:
    net = Net()
    first, second = (welcome(net.raw(hello={"role": "client"})) for _ in range(2))
    net.start_router()
    third = welcome(net.raw(hello={"role": "client"}))
    assert first["epoch"] == second["epoch"] != third["epoch"]
    assert len({first["nonce"], second["nonce"], third["nonce"]}) == 3


@pytest.mark.parametrize("kind", [mesh.REQUEST, mesh.READY, mesh.FINAL, mesh.HEARTBEAT, mesh.GOODBYE, 99])
def test_whoever_does_not_say_HELLO_first_is_sent_away_with_401(kind: int) -> None:
    net = Net()
    raw = net.raw()
    net.send(raw, kind, 0, 7, 1000, request("svc"))
    assert raw.goodbyes() == [401]
    assert raw.records == []
    assert counted(net, "refused.no_hello") == 1
    assert not net.both.peers


def test_an_empty_message_of_a_stranger_is_answered_401_and_of_a_peer_is_a_sign_of_life() -> None:
    net = Net()
    raw = net.raw_client()
    net.router.receive(net.both, b"stranger", mesh.pack_header(0), [], net.now)
    assert counted(net, "refused.no_hello") == 1
    (peer,) = net.both.peers.values()
    assert raw.link is not None
    net.router.receive(net.both, raw.link.routing_id, mesh.pack_header(0), [], net.now + 5.0)
    assert peer.heard_at == net.now + 5.0


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_sent_away_with_501_and_told_which_one_is_spoken(version: int) -> None:
    net = Net()
    raw = net.raw()
    assert raw.link is not None
    raw.link.to_router.append([bytes([mesh.MAGIC, version]) + bytes(20)])
    net.settle()
    (record,) = raw.got(mesh.GOODBYE)
    code, reason = mesh.split_reason(record.payload)
    assert code == 501
    assert reason.endswith("this router speaks 1")
    assert counted(net, "refused.version") == 1


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{", b"null", b'{"role":"\\ud800"}', b'{"role":1e999}', b"\xff"]
)
def test_a_HELLO_that_is_no_JSON_object_is_sent_away_with_400(payload: bytes) -> None:
    net = Net()
    raw = net.raw()
    net.send(raw, mesh.HELLO, payload=payload)
    assert raw.goodbyes() == [400]
    assert not net.both.peers


@pytest.mark.parametrize("role", [None, "", "router", 7, ["client"], {}])
def test_an_unknown_role_is_sent_away_with_403(role: object) -> None:
    net = Net()
    assert net.raw(hello={"role": role}).goodbyes() == [403]
    assert counted(net, "refused.role") == 1


def test_a_front_end_takes_clients_only_and_a_back_end_services_only() -> None:
    net = Net()
    welcomed = {
        (door.name, role): not net.raw(door, {"role": role}).goodbyes()
        for door in net.router.doors
        for role in ("client", "instance")
    }
    assert welcomed == {
        ("both", "client"): True,
        ("both", "instance"): True,
        ("front", "client"): True,
        ("front", "instance"): False,
        ("back", "client"): False,
        ("back", "instance"): True,
    }
    assert net.raw(net.front, {"role": "control", "wid": "x", "epoch": "y"}).goodbyes() == [403]


def test_clients_at_the_front_reach_instances_at_the_back() -> None:
    net = Net()
    caller, worker = net.caller(net.front), net.worker(door=net.back)
    asked = caller.ask("svc")
    worker.reply()
    assert asked.code == 200


def test_a_second_HELLO_begins_anew_and_gives_up_what_was_asked_before() -> None:
    net = Net()
    worker, raw = net.worker(), net.raw_client()
    net.send(raw, mesh.REQUEST, 0, 7, 1000, request("svc"))
    net.send(raw, mesh.HELLO, payload=b'{"role":"client"}')
    assert raw.got(mesh.WELCOME)
    assert not worker.jobs
    assert raw.finals() == []
    assert len(net.both.peers) == 2


def test_a_peer_that_greets_again_and_again_without_reading_holds_one_WELCOME_only() -> None:
    net = Net()
    raw = net.raw_client()
    assert raw.link is not None
    raw.link.is_full_to_member = True
    for _ in range(20):
        net.send(raw, mesh.HELLO, payload=b'{"role":"client"}')
    raw.link.is_full_to_member = False
    net.settle()
    assert len(raw.got(mesh.WELCOME)) == 1


def test_a_HELLO_that_is_not_the_first_record_is_counted_and_the_rest_is_done() -> None:
    net = Net()
    worker, raw = net.worker(), net.raw_client()
    raw.outbox.add(mesh.HEARTBEAT)
    raw.outbox.add(mesh.HELLO, payload=b'{"role":"client"}')
    net.send(raw, mesh.REQUEST, 0, 7, 1000, request("svc"))
    assert counted(net, "dropped.unexpected") == 1
    assert len(worker.jobs) == 1


def test_an_unknown_kind_is_skipped_and_the_records_around_it_are_done() -> None:
    net = Net()
    worker, raw = net.worker(), net.raw_client()
    raw.outbox.add(mesh.REQUEST, 0, 1, 1000, request("svc"))
    raw.outbox.add(200, 0, 1, 1000, b"whatever")
    net.send(raw, mesh.REQUEST, 0, 2, 1000, request("svc"))
    assert len(worker.jobs) == 2
    assert counted(net, "skipped.unknown_kind") == 1


def test_a_malformed_message_is_dropped_whole_and_the_next_one_works() -> None:
    net = Net()
    worker, raw = net.worker(), net.raw_client()
    assert raw.link is not None
    raw.outbox.add(mesh.REQUEST, 0, 1, 1000, request("svc"))
    raw.outbox.seal(net.now)
    whole = bytes(raw.outbox.messages[0][1][0])
    raw.outbox.drop()
    for frames in ([whole[:-1]], [whole, b"surplus"], [whole + b"\0"], [whole[:3]]):
        raw.link.to_router.append(frames)
    net.settle()
    assert not worker.seen
    assert counted(net, "dropped.malformed") + counted(net, "dropped.unknown_dialect") == 4
    net.send(raw, mesh.REQUEST, 0, 1, 1000, request("svc"))
    assert len(worker.jobs) == 1


def test_an_unknown_dialect_is_dropped_and_told_of_once() -> None:
    net = Net()
    for frames in ([b"GET / HTTP/1.1"], [b""], [b"", b""], [b"x"] * 1000):
        net.router.receive(net.both, b"stranger", frames[0], frames[1:], net.now)
    assert counted(net, "dropped.unknown_dialect") == 4
    assert len(net.router.notes) == 1


# --- READY -----------------------------------------------------------------------------------------


def test_READY_is_confirmed_and_only_then_counts() -> None:
    net = Net()
    raw = net.raw(hello={"role": "instance"})
    assert not net.router.instances
    net.send(raw, mesh.READY, payload=codec.dumps(ready_object(wid="svc-1", host="h", pid=7)))
    (record,) = raw.got(mesh.READY)
    assert mesh.split_object(record.payload) == {"wid": "svc-1"}
    peer = net.router.instances["svc-1"]
    assert (peer.host, peer.pid, peer.credit) == ("h", 7, 1)


REFUSED: list[dict[str, Any]] = [
    {"service": None},
    {"service": ""},
    {"service": "mmi.service"},
    {"service": "mmi.x"},
    {"service": "/svc"},
    {"service": "x" * 256},
    {"service": "é" * 128},
    {"service": 7},
    {"service": ["svc"]},
    {"paths": "/a"},
    {"paths": {"/a": 1}},
    {"paths": ["a"]},
    {"paths": [""]},
    {"paths": ["/a", 7]},
    {"paths": [f"/{n}" for n in range(MAX_PATHS + 1)]},
    {"wid": None},
    {"wid": ""},
    {"wid": 7},
    {"epoch": None},
    {"epoch": "short"},
    {"epoch": 7},
    {"credit": None},
    {"credit": -1},
    {"credit": 65_536},
    {"credit": 1 << 70},
    {"credit": 1.5},
    {"credit": "1"},
    {"pid": "x"},
    {"pid": 1 << 70},
    {"pid": [1]},
]


@pytest.mark.parametrize("fields", REFUSED, ids=str)
def test_a_READY_out_of_order_is_sent_away_with_409_and_changes_nothing(fields: dict[str, Any]) -> None:
    net = Net()
    raw = net.raw_instance(**fields)
    assert raw.goodbyes() == [409]
    assert raw.got(mesh.READY) == []
    assert not net.router.instances
    assert not net.both.peers
    assert not net.router.dispatcher.pools
    assert counted(net, "refused.ready") == 1
    assert counted(net, "faults") == 0


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b"{", b'{"wid":"\\ud800"}', b'{"pid":1e999}'])
def test_a_READY_that_is_not_well_formed_is_sent_away_with_409(payload: bytes) -> None:
    net = Net()
    raw = net.raw(hello={"role": "instance"})
    net.send(raw, mesh.READY, payload=payload)
    assert raw.goodbyes() == [409]
    assert not net.both.peers


@pytest.mark.parametrize("field", ["wid", "host", "service"])
def test_text_that_JSON_cannot_hold_does_not_get_into_the_routers_status(field: str) -> None:
    net = Net()
    raw = net.raw(hello={"role": "instance"})
    ready = codec.dumps(ready_object(**{field: "POISON"})).replace(b"POISON", b"\\ud800")
    net.send(raw, mesh.READY, payload=ready)
    assert raw.goodbyes() == [409]
    assert net.caller().ask("mmi.status").code == 200


def test_a_second_READY_is_sent_away_and_the_instance_removed() -> None:
    net = Net()
    caller, raw = net.caller(), net.raw_instance()
    asked = caller.ask("svc")
    net.send(raw, mesh.READY, payload=codec.dumps(ready_object()))
    assert raw.goodbyes() == [409]
    assert asked.code == 502
    assert not net.router.instances


def test_what_a_removed_instance_sends_is_answered_401() -> None:
    net = Net()
    raw = net.raw_instance(service="mmi.x")
    assert raw.goodbyes() == [409]
    net.send(raw, mesh.HEARTBEAT)
    assert raw.goodbyes() == [401]


def test_a_path_that_another_service_owns_is_refused_and_its_owner_keeps_it() -> None:
    net = Net()
    owner = net.worker("owner", paths=["/a"])
    thief = net.raw_instance(wid="thief", service="thief", paths=["/b", "/a/"])
    assert thief.goodbyes() == [409]
    assert any("path /a belongs to another" in note for note in net.router.notes)
    net.caller().ask("/a/x")
    assert len(owner.jobs) == 1
    assert b"/b" not in net.router.dispatcher.directory.prefixes
    assert b"thief" not in net.router.dispatcher.pools


def test_a_path_within_anothers_path_may_be_owned_by_a_second_service() -> None:
    net = Net()
    net.worker("owner", paths=["/a"])
    inner = net.worker("inner", paths=["/a/b"])
    net.caller().ask("/a/b/c")
    assert len(inner.jobs) == 1


def test_a_path_whose_owner_has_left_may_be_taken_over() -> None:
    net = Net()
    owner = net.worker("owner", paths=["/a"])
    net.kill(owner)
    heir = net.worker("heir", paths=["/a"])
    net.caller().ask("/a")
    assert len(heir.jobs) == 1


def test_an_instance_that_registers_anew_replaces_its_former_self() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(wid="same")
    asked = caller.ask("svc")
    secret, _, session = worker.machine.epoch.partition("-")
    heir = net.raw_instance(wid="same", epoch=f"{secret}-{int(session) + 1}")
    assert asked.code == 502
    caller.ask("svc")
    assert len(heir.got(mesh.REQUEST)) == 1
    assert len(status_of(net)) == 1


def test_an_instance_keeps_its_name_against_one_that_has_only_read_it_in_mmi_status() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(wid="same")
    asked = caller.ask("svc")
    thief = net.raw_instance(wid="same", epoch="f" * 32 + "-1")
    assert thief.goodbyes() == [409]
    worker.reply()
    assert asked.code == 200


def test_with_a_register_secret_only_who_knows_it_may_register() -> None:
    net = Net(register_secret=SECRET)
    for secret in (None, "wrong", ""):
        stranger = net.worker(secret=secret)
        assert not stranger.machine.is_registered
    assert not net.router.instances
    assert net.worker(secret=SECRET).machine.is_registered


@pytest.mark.parametrize("signature", [None, 7, "", "\xff", [1], "0" * 64])
def test_a_signature_that_is_none_is_refused(signature: object) -> None:
    net = Net(register_secret=SECRET)
    assert net.raw_instance(signature=signature).goodbyes() == [409]


def test_a_signature_is_worth_one_connection_and_one_READY_only() -> None:
    net = Net(register_secret=SECRET)
    raw = net.raw(hello={"role": "instance"})
    ready = ready_object()
    fields = ready_fields(
        welcome(raw)["nonce"], ready["wid"], ready["epoch"], ready["service"], ready["paths"]
    )
    ready["signature"] = sign(SECRET, *fields)
    replayed = net.raw(hello={"role": "instance"})
    net.send(replayed, mesh.READY, payload=codec.dumps(ready))
    assert replayed.goodbyes() == [409]
    changed = {**ready, "service": "other"}
    net.send(raw, mesh.READY, payload=codec.dumps(changed))
    assert raw.goodbyes() == [409]
    assert not net.router.instances


# --- GOODBYE ---------------------------------------------------------------------------------------


def test_a_clients_GOODBYE_is_acknowledged_after_all_it_sent_before() -> None:
    net = Net()
    worker, raw = net.worker(), net.raw_client()
    raw.outbox.add(mesh.REQUEST, ONE_WAY, 1, 1000, request("svc"))
    net.send(raw, mesh.GOODBYE, payload=mesh.pack_reason(200, ""))
    assert raw.goodbyes() == [200]
    assert len(worker.jobs) == 1
    assert len(net.both.peers) == 1


def test_an_instances_GOODBYE_removes_it_and_what_it_has_not_answered_goes_to_another() -> None:
    net = Net()
    client, raw = net.raw_client(), net.raw_instance(credit=3)
    for id_ in (1, 2):
        net.send(client, mesh.REQUEST, 0, id_, 1000, request("svc"))
    net.send(client, mesh.REQUEST, STREAM, 3, 1000, request("svc", window=1))
    first, _, third = (record.id for record in raw.got(mesh.REQUEST))
    raw.outbox.add(mesh.FINAL, 0, first, 0, reply())
    raw.outbox.add(mesh.PARTIAL, 0, third, 0, reply())
    net.send(raw, mesh.GOODBYE)
    assert raw.goodbyes() == [200]
    assert not net.router.instances
    assert client.finals() == [(1, 200), (3, 502)]
    net.worker().reply()
    assert client.finals() == [(2, 200)]


def test_what_follows_a_GOODBYE_in_its_message_is_not_acted_on() -> None:
    net = Net()
    worker, raw = net.worker(), net.raw_client()
    raw.outbox.add(mesh.GOODBYE)
    net.send(raw, mesh.REQUEST, 0, 1, 1000, request("svc"))
    assert not worker.seen
    assert raw.goodbyes() == [200]


def test_a_router_that_closes_tells_everybody() -> None:
    net = Net()
    peers = [net.raw_client(), net.raw_client(net.front), net.raw_instance(net.back)]
    net.router.close()
    net.settle()
    assert [peer.goodbyes() for peer in peers] == [[503]] * 3


# --- who is alive ----------------------------------------------------------------------------------


def control(net: Net, worker: Worker) -> Raw:
    """The connection of a worker's control thread."""
    return net.raw(hello={"role": "control", "wid": worker.wid, "epoch": worker.machine.epoch})


def beat(net: Net, raw: Raw, lag_ms: float = 0, rss_kib: int = 0) -> None:
    net.send(raw, mesh.HEARTBEAT, payload=codec.dumps({"lag_ms": lag_ms, "rss_kib": rss_kib}))


def test_the_router_sends_everybody_a_heartbeat_each_second() -> None:
    net = Net()
    peers = [net.raw_client(), net.raw_instance()]
    net.advance(3 * HEARTBEAT_INTERVAL_S + 0.1)
    assert [len(peer.got(mesh.HEARTBEAT)) for peer in peers] == [3, 3]


def test_an_instance_that_stopped_gets_no_new_work_after_3_s_and_keeps_its_requests() -> None:
    net = Net()
    caller, stopped = net.caller(), net.worker()
    before = caller.ask("svc")
    stopped.is_stopped = True
    net.advance(BLOCKED_AFTER_S + 0.5)
    assert [instance["state"] for instance in status_of(net)] == ["blocked"]
    other = net.worker()
    for _ in range(3):
        caller.ask("svc")
    assert len(other.jobs) == 3
    assert before.code is None
    stopped.is_stopped = False
    net.advance(0.001)
    assert stopped.peer.state is State.READY
    stopped.reply()
    assert before.code == 200


def test_an_instance_that_is_silent_for_15_s_is_dead_and_its_requests_are_502() -> None:
    net = Net()
    caller, stopped = net.caller(), net.worker()
    asked = caller.ask("svc", timeout_s=60.0)
    stopped.is_stopped = True
    net.advance(DEAD_AFTER_S - 0.5)
    assert asked.code is None
    net.advance(1.0)
    assert asked.code == 502
    assert not net.router.instances


def test_an_instance_taken_for_dead_registers_again_when_it_wakes() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    caller.ask("svc")
    worker.is_stopped = True
    net.advance(DEAD_AFTER_S + 1.0)
    worker.is_stopped = False
    net.advance(2.0)
    assert worker.machine.is_registered
    worker.reply()
    assert worker.machine.counters["dropped.stale_reply"] == 1
    asked = caller.ask("svc")
    worker.reply()
    assert asked.code == 200


def test_a_stopped_instance_whose_pipe_was_full_gets_none_of_its_old_requests_when_it_wakes() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    assert worker.link is not None
    worker.link.is_full_to_member = True
    asked = caller.ask("svc", timeout_s=60.0)
    worker.is_stopped = True
    net.advance(DEAD_AFTER_S + 1.0)
    assert asked.code is None
    other = net.worker()
    other.reply()
    assert asked.code == 200
    worker.link.is_full_to_member = False
    worker.is_stopped = False
    net.advance(2.0)
    assert not worker.seen


def test_a_client_that_is_silent_for_15_s_is_forgotten_and_its_calls_are_cancelled() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    caller.ask("svc", timeout_s=60.0)
    caller.is_stopped = True
    net.advance(DEAD_AFTER_S + 1.0)
    assert not worker.jobs
    assert len(net.both.peers) == 1


def test_control_heartbeats_keep_an_instance_alive_while_its_hub_computes_and_show_it_blocked() -> None:
    net = Net()
    caller, busy, free = net.caller(), net.worker(), net.worker()
    thread = control(net, busy)
    asked = caller.ask("svc", timeout_s=60.0)
    busy.is_stopped = True
    for second in range(1, 31):
        net.advance(1.0)
        beat(net, thread, lag_ms=1000 * second, rss_kib=512)
    assert asked.code is None
    states = {instance["wid"]: instance["state"] for instance in status_of(net)}
    assert states == {busy.wid: "blocked", free.wid: "ready"}
    assert {instance["rss_kib"] for instance in status_of(net)} == {0, 512}
    caller.ask("svc")
    assert len(free.jobs) == 1
    busy.is_stopped = False
    net.settle()
    busy.reply()
    assert asked.code == 200
    assert busy.peer.state is State.READY


def test_a_short_lag_does_not_block_and_a_lag_that_ended_unblocks() -> None:
    net = Net()
    worker = net.worker()
    thread = control(net, worker)
    states = []
    for lag_ms in (0, 999, 1000, 5000, 20):
        beat(net, thread, lag_ms)
        states.append(worker.peer.state)
    assert states == [State.READY, State.READY, State.BLOCKED, State.BLOCKED, State.READY]


def test_a_control_thread_that_falls_silent_with_its_hub_is_blocked_and_then_dead() -> None:
    net = Net()
    worker = net.worker()
    control(net, worker)
    worker.is_stopped = True
    net.advance(BLOCKED_AFTER_S + 0.5)
    assert worker.peer.state is State.BLOCKED
    net.advance(DEAD_AFTER_S - BLOCKED_AFTER_S)
    assert not net.router.instances


@pytest.mark.parametrize("fields", [{"epoch": "0" * 32}, {"epoch": None}, {"wid": "nobody"}, {"wid": None}])
def test_a_control_connection_that_does_not_know_wid_and_epoch_is_sent_away_with_404(
    fields: dict[str, Any],
) -> None:
    net = Net()
    worker = net.worker()
    hello = {"role": "control", "wid": worker.wid, "epoch": worker.machine.epoch, **fields}
    assert net.raw(hello=hello).goodbyes() == [404]
    assert worker.peer.control is None


def test_a_control_connection_of_an_earlier_registration_is_sent_away() -> None:
    net = Net()
    worker = net.worker()
    epoch = worker.machine.epoch
    net.drop(worker)
    net.connect(worker)
    assert net.raw(hello={"role": "control", "wid": worker.wid, "epoch": epoch}).goodbyes() == [404]
    assert control(net, worker).goodbyes() == []


@pytest.mark.parametrize(
    "kind", [mesh.READY, mesh.FINAL, mesh.PARTIAL, mesh.RETURN, mesh.CREDIT, mesh.REQUEST]
)
def test_a_control_connection_can_report_and_nothing_else(kind: int) -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc")
    thread = control(net, worker)
    net.send(thread, kind, 0, worker.jobs[0].token, 1000, reply())
    assert counted(net, "dropped.unexpected") == 1
    assert asked.code is None


@pytest.mark.parametrize(
    "report",
    [
        b"",
        b"7",
        b'{"lag_ms":"x"}',
        b'{"lag_ms":-1}',
        b'{"lag_ms":1e999}',
        b'{"lag_ms":1' + b"0" * 400 + b"}",
        b'{"rss_kib":1e9}',
        b'{"rss_kib":-1}',
        b'{"rss_kib":1' + b"0" * 400 + b"}",
    ],
)
def test_a_report_that_makes_no_sense_is_dropped_and_counted(report: bytes) -> None:
    net = Net()
    worker = net.worker()
    net.send(control(net, worker), mesh.HEARTBEAT, payload=report)
    assert counted(net, "dropped.malformed_record") == 1
    assert worker.peer.state is State.READY
    assert counted(net, "faults") == 0
    assert status_of(net)


def test_a_new_control_connection_replaces_the_old_one() -> None:
    net = Net()
    worker = net.worker()
    old, new = control(net, worker), control(net, worker)
    beat(net, new, 5000)
    assert worker.peer.state is State.BLOCKED
    beat(net, old, 0)
    assert old.goodbyes() == [401]
    assert worker.peer.state is State.BLOCKED


def test_without_its_control_connection_an_instance_is_judged_by_its_work_connection() -> None:
    net = Net()
    worker = net.worker()
    thread = control(net, worker)
    net.drop(thread)
    assert worker.peer.control is None
    net.advance(DEAD_AFTER_S * 2)
    assert worker.peer.state is State.READY


def test_losing_the_work_connection_is_death_whatever_the_control_thread_says() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    thread = control(net, worker)
    asked = caller.ask("svc")
    net.kill(worker)
    beat(net, thread)
    assert asked.code == 502
    assert not net.router.instances
    assert thread.goodbyes() == [401]


def test_a_router_that_stalled_blames_nobody_for_its_deafness() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    thread = control(net, worker)
    asked = caller.ask("svc", timeout_s=60.0)
    net.advance(1.0)
    net.now += 2 * DEAD_AFTER_S
    net.router.tick(net.now)
    assert worker.peer.state is State.READY
    assert len(net.both.peers) == 3
    assert thread.link is not None
    net.advance(1.0)
    worker.reply()
    assert asked.code == 200


def test_nobody_is_judged_before_all_that_had_arrived_was_read_but_a_flood_does_not_put_it_off() -> None:
    net = Net()
    worker = net.worker()
    worker.is_stopped = True
    net.advance(2.5)

    def read_in_vain(seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            net.now += 0.25
            net.router.tick(net.now, drained=False)

    read_in_vain(0.75)
    assert worker.peer.state is State.READY
    read_in_vain(1.25)
    assert worker.peer.state is State.BLOCKED


def test_a_lost_connection_is_found_by_probing_and_again_after_10_ms() -> None:
    net = Net()
    caller, worker, other = net.caller(), net.worker(), net.worker()
    asked = caller.ask("svc")
    # libzmq lets go of the routing id only after it has told of the disconnect.
    net.router.connection_lost(net.both, net.now)
    net.settle()
    net.drop(worker, is_noticed=False)
    assert asked.code is None
    net.advance(PROBE_AGAIN_S)
    assert asked.code == 502
    assert list(net.router.instances) == [other.wid]


def test_of_two_that_leave_within_10_ms_the_second_is_probed_for_10_ms_later_too() -> None:
    net = Net()
    caller, first, second = net.caller(), net.worker(), net.worker()
    caller.ask("svc"), caller.ask("svc")
    net.drop(first)
    net.advance(0.8 * PROBE_AGAIN_S)
    net.router.connection_lost(net.both, net.now)
    net.advance(0.8 * PROBE_AGAIN_S)
    net.drop(second, is_noticed=False)
    net.advance(0.4 * PROBE_AGAIN_S)
    assert not net.router.instances


def test_a_half_open_connection_that_nobody_told_of_is_found_within_a_heartbeat() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc")
    net.drop(worker, is_noticed=False)
    net.advance(HEARTBEAT_INTERVAL_S)
    assert asked.code == 502


def test_only_the_one_that_left_is_removed_through_its_door() -> None:
    net = Net()
    workers = [net.worker(door=door) for door in (net.both, net.back, net.both)]
    net.drop(workers[0])
    assert set(net.router.instances) == {workers[1].wid, workers[2].wid}


def test_the_next_due_time_is_never_in_the_past_once_everything_due_is_done() -> None:
    net = Net()
    net.caller().ask("svc", timeout_s=1.0)
    for _ in range(200):
        net.router.tick(net.now)
        due = net.router.next_due()
        assert net.now < due <= net.now + HEARTBEAT_INTERVAL_S
        net.now = due


# --- mmi --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("envelope", [{"arguments": {"service": "svc"}}, {"body": "svc"}])
def test_mmi_service_tells_how_many_instances_a_service_has(envelope: dict[str, Any]) -> None:
    net = Net()
    caller = net.caller()
    asked = caller.ask("mmi.service", codec.dumps(envelope))
    assert (asked.code, asked.answer["body"]) == (404, {"service": "svc", "instances": 0})
    net.worker(), net.worker()
    asked = caller.ask("mmi.service", codec.dumps(envelope))
    assert (asked.code, asked.answer["body"]) == (200, {"service": "svc", "instances": 2})


@pytest.mark.parametrize(
    "envelope", [b"", b"[]", b"{}", b'{"body":7}', b'{"arguments":[]}', b'{"body":"\\ud800"}']
)
def test_mmi_service_about_nothing_that_could_be_a_name_is_404(envelope: bytes) -> None:
    net = Net()
    raw = net.raw_client()
    net.send(raw, mesh.REQUEST, 0, 7, 1000, request("mmi.service", envelope))
    assert raw.finals() == [(7, 404)]
    assert counted(net, "faults") == 0


def test_mmi_status_tells_of_services_instances_and_counters() -> None:
    net = Net(register_grace_s=0.0)
    caller = net.caller()
    worker = net.worker("svc", paths=["/a"], credit=1)
    net.worker("", paths=["/ü"])
    caller.ask("svc")
    caller.ask("svc")
    caller.ask("typo")
    net.advance(2.0)
    body = caller.ask("mmi.status").answer["body"]
    assert body["router"] == net.router.router_id
    assert body["epoch"] == net.router.epoch
    assert body["uptime_s"] == 2.0
    assert body["clients"] == 1
    assert set(body["services"]) == {"svc", "/ü"}
    service = body["services"]["svc"]
    assert (service["queued"], service["paths"]) == (1, ["/a"])
    (instance,) = service["instances"]
    assert instance["wid"] == worker.wid
    assert (instance["state"], instance["credit"], instance["in_flight"]) == ("ready", 1, 1)
    assert body["counters"]["refused.not_found"] == 1


@pytest.mark.parametrize("target", ["mmi.", "mmi.echo", "mmi.servicex"])
def test_other_names_of_mmi_are_501(target: str) -> None:
    assert Net().caller().ask(target).code == 501


def test_a_one_way_question_to_the_router_is_not_answered() -> None:
    net = Net()
    raw = net.raw_client()
    net.send(raw, mesh.REQUEST, ONE_WAY, 7, 1000, request("mmi.status"))
    assert raw.finals() == []


# --- anything at all ----------------------------------------------------------------------------------


@pytest.mark.slow
@given(conversations)
def test_nothing_a_peer_sends_raises_or_is_a_fault(conversation: list[Any]) -> None:
    net = Net(register_grace_s=1.0)
    caller, worker = net.caller(), net.worker()
    before = caller.ask("svc", timeout_s=1e6)
    play(net, conversation)
    assert counted(net, "faults") == 0
    assert net.caller().ask("mmi.status").code == 200
    worker.reply()
    assert before.code == 200
    heir = net.worker("good")
    after = caller.ask("good")
    heir.reply()
    assert after.code == 200


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5))
def test_random_frames_never_raise(frames: list[bytes]) -> None:
    router = RouterProtocol(0.0, bytes(16))
    door: Door = router.open_door("both")
    for first in (frames[0], mesh.pack_header(0) + frames[0]):
        router.receive(door, b"peer", first, frames[1:], 0.0)
    router.run(0.0)
    router.tick(20.0)
    assert router.counters["faults"] == 0


def test_a_greeting_is_short_and_so_is_what_a_control_plane_reports() -> None:
    net = Net()
    stranger = net.raw(hello={"role": "client", "padding": "x" * mesh.MAX_HELLO_BYTES})
    assert not stranger.got(mesh.WELCOME)
    worker = net.worker()
    control = net.raw(hello={"role": "control", "wid": worker.wid, "epoch": worker.machine.epoch})
    assert control.got(mesh.WELCOME)
    report = codec.dumps({"lag_ms": 0, "rss_kib": 7, "padding": "x" * mesh.MAX_REPORT_BYTES})
    net.send(control, mesh.HEARTBEAT, payload=report)
    assert net.router.counters["dropped.malformed_record"] == 2
    net.send(control, mesh.HEARTBEAT, payload=codec.dumps({"lag_ms": 0, "rss_kib": 7}))
    assert worker.peer.rss_kib == 7


def test_a_large_status_is_made_once_a_second_and_not_for_who_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(router, "STATUS_BYTES", 100)
    monkeypatch.setattr(router, "MAX_OUTBOX_BYTES", 10_000)
    net = Net()
    net.worker("svc", paths=[f"/{n:03}" for n in range(300)])
    caller = net.caller()
    first = caller.ask("mmi.status").answer["body"]
    assert len(first["services"]["svc"]["paths"]) == 100
    net.advance(0.5)
    assert caller.ask("mmi.status").answer["body"] == first
    net.advance(0.6)
    assert caller.ask("mmi.status").answer["body"]["uptime_s"] > first["uptime_s"]
    asked = [caller.ask("mmi.status", settle=False) for _ in range(30)]
    net.settle()
    codes = [each.code for each in asked]
    assert set(codes) == {200, 503}
    assert caller.ask("mmi.status").code == 200
