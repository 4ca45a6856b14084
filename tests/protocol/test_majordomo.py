"""Majordomo peers at a real router, in memory: their tables, their MMI, and calls across the dialects."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh import codec
from butler_mesh.protocol import mesh
from butler_mesh.protocol.limits import FOREIGN_DEADLINE_S
from butler_mesh.protocol.liveness import DEAD_AFTER_S
from butler_mesh.protocol.mdp import MAJORTOMO, MDP_01, MDP_02, Dialect
from butler_mesh.protocol.outbox import MAX_OUTBOX_BYTES
from tests.protocol.wires import Wire, Wires

EVERY = (MDP_01, MDP_02, MAJORTOMO)
each_dialect = pytest.mark.parametrize("dialect", EVERY, ids=lambda dialect: dialect.name)

# Worker codes by dialect, written out: READY, PARTIAL, FINAL, HEARTBEAT, DISCONNECT.
CODES: dict[str, dict[str, bytes]] = {
    MDP_01.name: {"READY": b"\x01", "FINAL": b"\x03", "HEARTBEAT": b"\x04", "DISCONNECT": b"\x05"},
    MDP_02.name: {
        "READY": b"\x01",
        "PARTIAL": b"\x03",
        "FINAL": b"\x04",
        "HEARTBEAT": b"\x05",
        "DISCONNECT": b"\x06",
    },
}
CODES[MAJORTOMO.name] = CODES[MDP_02.name]


class Worker:
    """A worker of a dialect, byte by byte."""

    def __init__(self, wires: Wires, dialect: Dialect, routing_id: bytes = b"W") -> None:
        self.wire = wires.wire(routing_id)
        self.dialect = dialect
        self.opening = [b"", dialect.worker_header] if dialect is not MDP_02 else [dialect.worker_header]

    def say(self, command: str, *rest: bytes) -> None:
        """Send one command by its word."""
        self.wire.send(*self.opening, CODES[self.dialect.name][command], *rest)

    def told(self) -> list[list[bytes]]:
        """Return what came since the last time, without the opening frames; heartbeats included."""
        n = len(self.opening)
        found = self.wire.take()
        assert all(frames[:n] == self.opening for frames in found)
        return [frames[n:] for frames in found]

    def request(self) -> tuple[bytes, list[bytes]]:
        """Return (address, body) of the one REQUEST that came."""
        ((command, address, empty, *body),) = self.told()
        assert (command, empty) == (b"\x02", b"")
        return address, body

    @property
    def disconnect(self) -> list[bytes]:
        """What DISCONNECT looks like to this worker."""
        return [CODES[self.dialect.name]["DISCONNECT"]]

    @property
    def is_registered(self) -> bool:
        """Whether the router counts it among its peers."""
        return self.wire.routing_id in self.wire.door.peers


def worker(wires: Wires, dialect: Dialect, routing_id: bytes = b"W", *, service: bytes = b"echo") -> Worker:
    """Return a worker that has said READY."""
    found = Worker(wires, dialect, routing_id)
    found.say("READY", service)
    assert found.told() == []
    assert found.is_registered
    return found


def ask(wire: Wire, dialect: Dialect, service: bytes, *body: bytes) -> Wire:
    """Send a client's REQUEST as the dialect's table says."""
    opening = {
        MDP_01.name: [b"", b"MDPC01"],
        MDP_02.name: [b"MDPC02", b"\x01"],
        MAJORTOMO.name: [b"", b"MDPC02", b"\x02"],
    }
    return wire.send(*opening[dialect.name], service, *body)


def final(dialect: Dialect, service: bytes, *body: bytes) -> list[bytes]:
    """Return the last reply as a client of the dialect must see it."""
    opening = {
        MDP_01.name: [b"", b"MDPC01", service],
        MDP_02.name: [b"MDPC02", b"\x03", service],
        MAJORTOMO.name: [b"", b"MDPC02", b"\x04"],
    }
    return [*opening[dialect.name], *body]


def partial(dialect: Dialect, service: bytes, *body: bytes) -> list[bytes]:
    """Return part of a reply as a client of the dialect must see it."""
    opening = {MDP_02.name: [b"MDPC02", b"\x02", service], MAJORTOMO.name: [b"", b"MDPC02", b"\x03"]}
    return [*opening[dialect.name], *body]


def raw(*parts: bytes) -> bytes:
    """Return a RAW envelope of these parts."""
    return mesh.pack_raw(b"{}", parts)


@pytest.fixture
def wires() -> Wires:
    return Wires()


@pytest.fixture
def client(wires: Wires) -> Wire:
    """Return a peer that has said nothing so far; its first request makes it a client."""
    return wires.wire(b"C")


# --- between foreign peers ------------------------------------------------------------------------


@each_dialect
@pytest.mark.parametrize("other", EVERY, ids=lambda dialect: dialect.name)
def test_a_client_of_any_dialect_reaches_a_worker_of_any_dialect_and_back(
    wires: Wires, client: Wire, dialect: Dialect, other: Dialect
) -> None:
    w = worker(wires, other)
    ask(client, dialect, b"echo", b"one", b"", b"three")
    address, body = w.request()
    assert body == [b"one", b"", b"three"]
    w.say("FINAL", address, b"", b"1", b"2")
    assert client.take() == [final(dialect, b"echo", b"1", b"2")]


@pytest.mark.parametrize("dialect", [MDP_02, MAJORTOMO], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("other", [MDP_02, MAJORTOMO], ids=lambda dialect: dialect.name)
def test_partials_and_the_final_are_translated_from_the_workers_codes_to_the_clients(
    wires: Wires, client: Wire, dialect: Dialect, other: Dialect
) -> None:
    w = worker(wires, other)
    ask(client, dialect, b"echo", b"count")
    address, _ = w.request()
    w.say("PARTIAL", address, b"", b"1")
    w.say("PARTIAL", address, b"", b"2")
    w.say("FINAL", address, b"", b"3")
    assert client.take() == [
        partial(dialect, b"echo", b"1"),
        partial(dialect, b"echo", b"2"),
        final(dialect, b"echo", b"3"),
    ]


def test_after_the_final_nothing_more_reaches_the_client(wires: Wires, client: Wire) -> None:
    w = worker(wires, MDP_02)
    ask(client, MDP_02, b"echo", b"x")
    address, _ = w.request()
    w.say("FINAL", address, b"", b"1")
    client.take()
    w.say("PARTIAL", address, b"", b"2")
    w.say("FINAL", address, b"", b"3")
    assert client.take() == []
    assert wires.counted("dropped.unknown_token") == 2


def test_partials_to_a_client_whose_dialect_has_none_end_its_call_without_a_reply(
    wires: Wires, client: Wire
) -> None:
    w = worker(wires, MDP_02)
    ask(client, MDP_01, b"echo", b"x")
    address, _ = w.request()
    w.say("PARTIAL", address, b"", b"1")
    w.say("FINAL", address, b"", b"2")
    assert client.take() == []
    assert wires.counted("refused.partial") == wires.counted("dropped.foreign_refusal") == 1
    ask(client, MDP_01, b"echo", b"again")
    assert w.request()[1] == [b"again"]


@each_dialect
def test_a_worker_is_sent_one_request_at_a_time(wires: Wires, client: Wire, dialect: Dialect) -> None:
    w = worker(wires, dialect)
    ask(client, MDP_02, b"echo", b"1")
    ask(client, MDP_02, b"echo", b"2")
    address, body = w.request()
    assert body == [b"1"]
    w.say("FINAL", address, b"", b"done")
    assert w.request()[1] == [b"2"]


def test_a_reply_without_a_body_is_passed_on_without_one(wires: Wires, client: Wire) -> None:
    w = worker(wires, MDP_02)
    ask(client, MDP_02, b"echo", b"x")
    address, _ = w.request()
    w.say("FINAL", address, b"")
    assert client.take() == [[b"MDPC02", b"\x03", b"echo"]]


def test_frames_over_64_kib_go_both_ways_whole(wires: Wires, client: Wire) -> None:
    w = worker(wires, MDP_02)
    large = bytes(range(256)) * 400
    ask(client, MDP_02, b"echo", large, b"tail")
    address, body = w.request()
    assert body == [large, b"tail"]
    w.say("FINAL", address, b"", b"head", large)
    assert client.take() == [final(MDP_02, b"echo", b"head", large)]


def test_a_body_that_is_json_reaches_a_foreign_worker_as_it_was(wires: Wires, client: Wire) -> None:
    w = worker(wires, MDP_02)
    for body in (b'{"path":"/a","arguments":{"b":1}}', b'{"other": 1}', b"[1]", b'{"path": NaN}', b"{broken"):
        ask(client, MDP_02, b"echo", body)
        address, got = w.request()
        assert got == [body]
        w.say("FINAL", address, b"", b"")


@each_dialect
def test_a_request_for_a_service_that_comes_later_waits_for_it(
    wires: Wires, client: Wire, dialect: Dialect
) -> None:
    wires.advance(300.0)
    ask(client, dialect, b"echo", b"patience")
    for _ in range(60):
        wires.advance(10.0)
    w = worker_that_finds_work(wires, dialect)
    address, body = w.request()
    assert body == [b"patience"]
    w.say("FINAL", address, b"", b"at last")
    assert client.take() == [final(dialect, b"echo", b"at last")]


def worker_that_finds_work(wires: Wires, dialect: Dialect) -> Worker:
    """Return a worker whose READY is answered by a request at once."""
    found = Worker(wires, dialect)
    found.say("READY", b"echo")
    return found


def test_a_request_that_waited_longer_than_its_deadline_is_dropped_and_counted(client: Wire) -> None:
    wires = Wires(foreign_deadline_s=60.0)
    client = wires.wire(b"C")
    ask(client, MDP_02, b"echo", b"x")
    wires.advance(60.5)
    assert client.take() == []
    assert wires.counted("expired") == wires.counted("dropped.foreign_refusal") == 1
    found = worker_that_finds_work(wires, MDP_02)
    assert found.told() == []


def test_a_request_beyond_the_bound_of_the_queue_is_dropped_and_counted() -> None:
    wires = Wires(queue_limit=2)
    client = wires.wire(b"C")
    for n in range(3):
        ask(client, MDP_02, b"echo", b"%d" % n)
    assert wires.counted("refused.queue_full") == wires.counted("dropped.foreign_refusal") == 1
    assert client.take() == []


def test_requests_of_two_clients_are_served_in_turn(wires: Wires, client: Wire) -> None:
    other = wires.wire(b"D")
    for n in range(3):
        ask(client, MDP_02, b"echo", b"C%d" % n)
    ask(other, MDP_01, b"echo", b"D0")
    w = worker_that_finds_work(wires, MDP_02)
    served = []
    for _ in range(4):
        address, body = w.request()
        served += body
        w.say("FINAL", address, b"", b"")
    assert served == [b"C0", b"D0", b"C1", b"C2"]


def test_a_request_over_the_largest_body_is_refused_and_counted() -> None:
    wires = Wires(max_body_bytes=10)
    client = wires.wire(b"C")
    w = worker(wires, MDP_02)
    ask(client, MDP_02, b"echo", b"123456", b"7890x")
    assert wires.counted("refused.too_large") == 1
    ask(client, MDP_02, b"echo", b"1234567890")
    assert w.request()[1] == [b"1234567890"]


def test_a_request_of_more_frames_than_raw_can_count_is_refused_and_counted(
    wires: Wires, client: Wire
) -> None:
    ask(client, MDP_02, b"echo", *[b""] * (mesh.MAX_RAW_PARTS + 1))
    assert wires.counted("refused.too_large") == 1


def test_a_service_name_over_65535_bytes_is_refused_and_counted(wires: Wires, client: Wire) -> None:
    ask(client, MDP_02, b"x" * 65_536, b"body")
    assert wires.counted("refused.too_large") == 1


# --- between a foreign peer and the mesh ----------------------------------------------------------


def request_at(instance: Wire) -> tuple[int, int, bytes]:
    """Return (token, flags, envelope) of the one REQUEST that reached a mesh instance."""
    (record,) = instance.records()
    assert record.kind == mesh.REQUEST
    _, _, offset = mesh.split_target(record.payload, record.flags)
    envelope = record.payload[offset:] if record.envelope is None else bytes(record.envelope)
    return record.id, record.flags, envelope


@each_dialect
def test_foreign_frames_reach_a_mesh_instance_as_a_raw_body(
    wires: Wires, client: Wire, dialect: Dialect
) -> None:
    instance = wires.instance(b"I")
    ask(client, dialect, b"echo", b"one", b"\xff")
    _, flags, envelope = request_at(instance)
    assert flags & mesh.RAW
    assert mesh.split_raw(envelope) == (b"{}", [b"one", b"\xff"])


@each_dialect
def test_a_request_is_a_stream_without_windows_where_the_dialect_has_partials(
    wires: Wires, client: Wire, dialect: Dialect
) -> None:
    instance = wires.instance(b"I")
    ask(client, dialect, b"echo", b"x")
    (record,) = instance.records()
    assert bool(record.flags & mesh.STREAM) is dialect.has_partial
    target, window, _ = mesh.split_target(record.payload, record.flags)
    assert (target, window) == (b"echo", mesh.UNBOUNDED_WINDOW if dialect.has_partial else 0)
    assert record.remaining_ms == FOREIGN_DEADLINE_S * 1000


@pytest.mark.parametrize(
    "envelope",
    [b'{"path":"/a"}', b'{"method":"get"}', b'{"arguments":{"a":1}, "other":2}'],
)
def test_one_json_object_that_names_a_path_method_or_arguments_is_the_envelope(
    wires: Wires, client: Wire, envelope: bytes
) -> None:
    instance = wires.instance(b"I")
    ask(client, MDP_02, b"echo", envelope)
    _, flags, got = request_at(instance)
    assert not flags & mesh.RAW
    assert got == envelope


@pytest.mark.parametrize(
    "body",
    [
        [b'{"path":"/a"}', b"and more"],
        [b'{"other": 1}'],
        [b'["path"]'],
        [b'{"path": NaN}'],
        [b'{"path":"/a"'],
        [b'{"path":"\xff"}'],
        [b'{"path":' + b"[" * 10_000 + b"]" * 10_000 + b"}"],
        [b'{"path":"' + b"x" * mesh.ATTACH_OVER + b'"}'],
        [b""],
    ],
    ids=lambda body: repr(body[0][:16]),
)
def test_whatever_else_looks_like_json_travels_as_bytes(
    wires: Wires, client: Wire, body: list[bytes]
) -> None:
    instance = wires.instance(b"I")
    ask(client, MDP_02, b"echo", *body)
    _, flags, envelope = request_at(instance)
    assert flags & mesh.RAW
    assert mesh.split_raw(envelope)[1] == body


@each_dialect
def test_a_raw_reply_of_the_mesh_reaches_a_foreign_client_as_its_frames(
    wires: Wires, client: Wire, dialect: Dialect
) -> None:
    instance = wires.instance(b"I")
    ask(client, dialect, b"echo", b"x")
    token, _, _ = request_at(instance)
    instance.final(token, 200, raw(b"one", b"", b"three"), flags=mesh.RAW)
    assert client.take() == [final(dialect, b"echo", b"one", b"", b"three")]


@pytest.mark.parametrize(
    ("envelope", "frame"),
    [
        (b'{"body":{"a":1}}', b'{"status":404,"body":{"a":1}}'),
        (b"{}", b'{"status":404}'),
        (b"", b'{"status":404}'),
    ],
)
def test_any_other_reply_reaches_a_foreign_client_as_one_json_frame_with_its_status(
    wires: Wires, client: Wire, envelope: bytes, frame: bytes
) -> None:
    instance = wires.instance(b"I")
    ask(client, MDP_01, b"echo", b"x")
    token, _, _ = request_at(instance)
    instance.final(token, 404, envelope)
    assert client.take() == [final(MDP_01, b"echo", frame)]
    assert codec.loads(frame)["status"] == 404


def test_a_large_reply_of_the_mesh_gets_its_status_too(wires: Wires, client: Wire) -> None:
    instance = wires.instance(b"I")
    ask(client, MDP_01, b"echo", b"x")
    token, _, _ = request_at(instance)
    text = "x" * 100_000
    instance.say(mesh.FINAL, token, mesh.pack_status(200), envelope=codec.dumps({"body": text}))
    ((*_, frame),) = client.take()
    assert codec.loads(frame) == {"status": 200, "body": text}


def test_parts_of_a_mesh_stream_reach_a_foreign_client(wires: Wires, client: Wire) -> None:
    instance = wires.instance(b"I")
    ask(client, MAJORTOMO, b"echo", b"x")
    token, _, _ = request_at(instance)
    instance.partial(token, 200, raw(b"1"), flags=mesh.RAW)
    instance.partial(token, 200, b'{"body":2}')
    instance.final(token, 200, raw(b"3"), flags=mesh.RAW)
    assert client.take() == [
        partial(MAJORTOMO, b"echo", b"1"),
        partial(MAJORTOMO, b"echo", b'{"status":200,"body":2}'),
        final(MAJORTOMO, b"echo", b"3"),
    ]


def test_a_raw_reply_whose_lengths_lie_reaches_a_foreign_client_as_one_frame(
    wires: Wires, client: Wire
) -> None:
    instance = wires.instance(b"I")
    ask(client, MDP_01, b"echo", b"x")
    token, _, _ = request_at(instance)
    instance.final(token, 200, b"\xff\xff\xff\xff lies", flags=mesh.RAW)
    assert client.take() == [final(MDP_01, b"echo", b"\xff\xff\xff\xff lies")]


@each_dialect
def test_a_mesh_clients_raw_request_reaches_a_foreign_worker_as_its_frames_and_comes_back_raw(
    wires: Wires, dialect: Dialect
) -> None:
    w = worker(wires, dialect)
    client = wires.client(b"M")
    client.request(7, envelope=raw(b"one", b"", b"three"), flags=mesh.RAW)
    address, body = w.request()
    assert body == [b"one", b"", b"three"]
    w.say("FINAL", address, b"", b"1", b"2")
    (record,) = client.records()
    assert (record.kind, record.id, record.flags) == (mesh.FINAL, 7, mesh.RAW)
    assert mesh.split_status(record.payload) == 200
    assert mesh.split_raw(record.payload[2:]) == (b"{}", [b"1", b"2"])


@each_dialect
def test_a_mesh_clients_json_request_reaches_a_foreign_worker_as_one_frame(
    wires: Wires, dialect: Dialect
) -> None:
    w = worker(wires, dialect)
    wires.client(b"M").request(7, envelope=b'{"path":"/a"}')
    assert w.request()[1] == [b'{"path":"/a"}']


def test_large_bodies_of_the_mesh_reach_a_foreign_worker_whole(wires: Wires) -> None:
    w = worker(wires, MDP_02)
    client = wires.client(b"M")
    large = b"x" * 100_000
    for flags, envelope, expected in (
        (mesh.RAW, raw(large, b"tail"), [large, b"tail"]),
        (0, b'{"body":"%s"}' % large, [b'{"body":"%s"}' % large]),
    ):
        client.say(
            mesh.REQUEST, 7, mesh.pack_target(b"echo"), flags=flags, remaining_ms=1000, envelope=envelope
        )
        address, body = w.request()
        assert body == expected
        w.say("FINAL", address, b"", large)
        (record,) = client.records()
        assert record.envelope is not None
        assert mesh.split_raw(bytes(record.envelope))[1] == [large]


def test_a_foreign_workers_partials_reach_a_mesh_reader_of_a_stream(wires: Wires) -> None:
    w = worker(wires, MDP_02)
    client = wires.client(b"M")
    client.request(7, window=16)
    address, _ = w.request()
    w.say("PARTIAL", address, b"", b"1")
    client.say(mesh.WINDOW, 7, mesh.pack_window(1))
    w.say("FINAL", address, b"", b"2")
    assert [(r.kind, mesh.split_raw(r.payload[2:])[1]) for r in client.records()] == [
        (mesh.PARTIAL, [b"1"]),
        (mesh.FINAL, [b"2"]),
    ]
    assert w.told() == []


def test_a_mesh_client_that_gives_up_leaves_its_foreign_worker_busy_until_it_is_done(wires: Wires) -> None:
    w = worker(wires, MDP_02)
    client = wires.client(b"M")
    client.request(7)
    address, _ = w.request()
    client.say(mesh.CANCEL, 7)
    client.request(8)
    assert w.told() == []
    w.say("FINAL", address, b"", b"too late")
    assert client.records() == []
    assert w.request()[0] != address


def test_status_names_a_workers_dialect(wires: Wires) -> None:
    worker(wires, MAJORTOMO)
    (described,) = wires.router.status(wires.now)["services"]["echo"]["instances"]
    assert described["protocol"] == "majortomo/0.2"
    assert described["credit"] == 1


# --- MMI ------------------------------------------------------------------------------------------


@each_dialect
@pytest.mark.parametrize(
    ("service", "body", "code"),
    [
        (b"mmi.service", b"echo", b"200"),
        (b"mmi.service", b"unknown", b"404"),
        (b"mmi.service", b"", b"404"),
        (b"mmi.service", b"mmi.service", b"404"),
        (b"mmi.status", b"", b"501"),
        (b"mmi.", b"echo", b"501"),
        (b"mmi.echo", b"echo", b"501"),
        (b"mmi.\xff", b"\xff", b"501"),
    ],
)
def test_mmi_is_answered_by_the_router_as_rfc_8_says(
    wires: Wires, client: Wire, dialect: Dialect, service: bytes, body: bytes, code: bytes
) -> None:
    worker(wires, MDP_01)
    ask(client, dialect, service, body)
    assert client.take() == [final(dialect, service, code)]


def test_mmi_knows_services_of_the_mesh(wires: Wires, client: Wire) -> None:
    wires.instance(b"I", "meshed")
    ask(client, MDP_01, b"mmi.service", b"meshed")
    assert client.take() == [final(MDP_01, b"mmi.service", b"200")]


def test_a_service_that_was_only_asked_for_or_has_left_is_404(wires: Wires, client: Wire) -> None:
    w = worker(wires, MDP_01)
    ask(client, MDP_01, b"awaited", b"x")
    w.say("DISCONNECT")
    for name in (b"awaited", b"echo"):
        ask(client, MDP_01, b"mmi.service", name)
        assert client.take() == [final(MDP_01, b"mmi.service", b"404")]


# --- workers: registration and misbehaviour -------------------------------------------------------


@each_dialect
@pytest.mark.parametrize(
    "rest",
    [[], [b""], [b"echo", b"more"], [b"mmi.service"], [b"mmi.mine"], [b"mgt.mine"], [b"/path"], [b"x" * 256]],
    ids=repr,
)
def test_a_ready_without_a_fit_name_is_answered_disconnect(
    wires: Wires, dialect: Dialect, rest: list[bytes]
) -> None:
    w = Worker(wires, dialect)
    w.say("READY", *rest)
    assert w.told() == [w.disconnect]
    assert not w.is_registered
    assert wires.counted("refused.ready") == 1


@each_dialect
def test_ready_has_no_answer(wires: Wires, dialect: Dialect) -> None:
    assert worker(wires, dialect).told() == []


@each_dialect
def test_ready_twice_is_answered_disconnect_and_nothing_more(
    wires: Wires, client: Wire, dialect: Dialect
) -> None:
    w = worker(wires, dialect)
    w.say("READY", b"echo")
    assert w.told() == [w.disconnect]
    assert not w.is_registered
    ask(client, MDP_01, b"echo", b"x")
    wires.advance(1.0)
    assert w.told() == []


@each_dialect
def test_a_worker_that_was_disconnected_may_begin_anew(wires: Wires, client: Wire, dialect: Dialect) -> None:
    w = worker(wires, dialect)
    w.say("READY", b"echo")
    w.told()
    w.say("READY", b"echo")
    ask(client, MDP_01, b"echo", b"x")
    assert w.request()[1] == [b"x"]


@each_dialect
@pytest.mark.parametrize("command", ["HEARTBEAT", "FINAL"])
def test_a_worker_that_never_said_ready_is_answered_disconnect(
    wires: Wires, dialect: Dialect, command: str
) -> None:
    w = Worker(wires, dialect)
    w.say(command, *([bytes(8), b"", b"forged"] if command == "FINAL" else []))
    assert w.told() == [w.disconnect]
    assert wires.counted("dropped.unregistered") == 1


@each_dialect
def test_disconnect_of_an_unknown_worker_has_no_answer(wires: Wires, dialect: Dialect) -> None:
    w = Worker(wires, dialect)
    w.say("DISCONNECT")
    assert w.told() == []


@each_dialect
@pytest.mark.parametrize("code", [b"\x00", b"\x02", b"\x07", b"", b"\x01\x01", b"READY"], ids=repr)
def test_a_command_that_is_not_in_the_table_is_answered_disconnect(
    wires: Wires, dialect: Dialect, code: bytes
) -> None:
    w = worker(wires, dialect)
    w.wire.send(*w.opening, code, b"echo")
    assert w.told() == [w.disconnect]
    assert not w.is_registered


@each_dialect
@pytest.mark.parametrize(
    "rest", [[], [bytes(8)], [bytes(8), b"not empty", b"body"]], ids=["nothing", "no empty", "no empty frame"]
)
def test_a_reply_that_breaks_its_table_is_answered_disconnect(
    wires: Wires, dialect: Dialect, rest: list[bytes]
) -> None:
    w = worker(wires, dialect)
    w.say("FINAL", *rest)
    assert w.told() == [w.disconnect]
    assert not w.is_registered


def test_a_reply_of_more_frames_than_raw_can_count_is_answered_disconnect(wires: Wires, client: Wire) -> None:
    w = worker(wires, MDP_02)
    ask(client, MDP_02, b"echo", b"x")
    address, _ = w.request()
    w.say("FINAL", address, b"", *[b""] * (mesh.MAX_RAW_PARTS + 1))
    assert w.told() == [w.disconnect]
    assert client.take() == []


@each_dialect
def test_a_worker_that_leaves_is_sent_nothing_more(wires: Wires, client: Wire, dialect: Dialect) -> None:
    w = worker(wires, dialect)
    w.say("DISCONNECT")
    ask(client, MDP_01, b"echo", b"x")
    wires.advance(1.0)
    assert w.told() == []


def test_the_request_of_a_lost_worker_fails_for_a_mesh_client_and_is_dropped_for_a_foreign_one(
    wires: Wires, client: Wire
) -> None:
    mesh_client = wires.client(b"M")
    first, second = worker(wires, MDP_02, b"W1"), worker(wires, MDP_02, b"W2")
    mesh_client.request(7)
    ask(client, MDP_02, b"echo", b"x")
    first.say("DISCONNECT")
    second.say("DISCONNECT")
    (record,) = mesh_client.records()
    assert (record.id, mesh.split_status(record.payload)) == (7, 502)
    assert client.take() == []
    assert wires.counted("dropped.foreign_refusal") == 1


# --- forgery --------------------------------------------------------------------------------------


def test_a_worker_cannot_answer_another_workers_request(wires: Wires, client: Wire) -> None:
    honest = worker(wires, MDP_02)
    ask(client, MDP_02, b"echo", b"x")
    address, _ = honest.request()
    forger = worker(wires, MDP_02, b"X", service=b"other")
    forger.say("PARTIAL", address, b"", b"forged")
    forger.say("FINAL", address, b"", b"forged")
    assert client.take() == []
    assert wires.counted("dropped.unknown_token") == 2
    honest.say("FINAL", address, b"", b"true")
    assert client.take() == [final(MDP_02, b"echo", b"true")]


@pytest.mark.parametrize(
    "address", [b"", b"C", b"\x00" * 7, b"\x00" * 8, b"\xff" * 8, b"\x00" * 9, b"M" * 255], ids=repr
)
def test_an_address_the_router_did_not_give_reaches_nobody(
    wires: Wires, client: Wire, address: bytes
) -> None:
    w = worker(wires, MDP_02)
    ask(client, MDP_02, b"echo", b"x")
    true_address, _ = w.request()
    w.say("FINAL", address, b"", b"forged")
    assert client.take() == []
    assert wires.counted("dropped.unknown_token") == 1
    w.say("FINAL", true_address, b"", b"true")
    assert client.take() == [final(MDP_02, b"echo", b"true")]


def test_an_address_is_not_the_clients_routing_id(wires: Wires, client: Wire) -> None:
    w = worker(wires, MDP_02)
    ask(client, MDP_02, b"echo", b"x")
    address, _ = w.request()
    assert len(address) == 8
    (token,) = struct.unpack(">Q", address)
    assert token in w.wire.door.peers[b"W"].calls  # type: ignore[attr-defined]


def test_a_registered_client_or_instance_of_the_mesh_cannot_turn_into_a_foreign_peer(wires: Wires) -> None:
    mesh_client, instance = wires.client(b"M"), wires.instance(b"I")
    ask(mesh_client, MDP_02, b"echo", b"x")
    ask(instance, MDP_02, b"echo", b"x")
    mesh_client.send(b"MDPW02", b"\x01", b"echo")
    assert wires.counted("dropped.wrong_door") == 3
    assert instance.take() == []


def test_a_worker_cannot_ask_and_a_client_cannot_answer(wires: Wires, client: Wire) -> None:
    w = worker(wires, MDP_02)
    ask(w.wire, MDP_02, b"echo", b"x")
    ask(client, MDP_02, b"mmi.service", b"echo")
    client.take()
    client.send(b"MDPW02", b"\x01", b"echo")
    assert wires.counted("dropped.wrong_door") == 2
    assert w.told() == client.take() == []


def test_a_front_door_takes_no_workers_and_a_back_door_no_clients(wires: Wires) -> None:
    front, back = wires.door("front", services=False), wires.door("back", clients=False)
    intruder, asker = wires.wire(b"W", front), wires.wire(b"C", back)
    intruder.send(b"MDPW02", b"\x01", b"echo")
    ask(asker, MDP_02, b"mmi.service", b"echo")
    assert wires.counted("dropped.wrong_door") == 2
    assert intruder.take() == asker.take() == []
    assert not front.peers
    assert not back.peers


def test_client_and_worker_meet_across_two_doors(wires: Wires) -> None:
    front, back = wires.door("front", services=False), wires.door("back", clients=False)
    # Both have the same routing id: a door is part of who one is.
    client, w = wires.wire(b"same", front), wires.wire(b"same", back)
    w.send(b"MDPW02", b"\x01", b"echo")
    ask(client, MDP_02, b"echo", b"x")
    ((_, _, address, _, _),) = w.take()
    w.send(b"MDPW02", b"\x04", address, b"", b"y")
    assert client.take() == [final(MDP_02, b"echo", b"y")]


# --- who is alive ---------------------------------------------------------------------------------


@each_dialect
def test_workers_are_sent_heartbeats_every_second_busy_or_idle(
    wires: Wires, client: Wire, dialect: Dialect
) -> None:
    w = worker(wires, dialect)
    beat = [CODES[dialect.name]["HEARTBEAT"]]
    wires.advance(1.0)
    assert w.told() == [beat]
    ask(client, MDP_01, b"echo", b"x")
    w.request()
    wires.advance(1.0)
    assert w.told() == [beat]


@each_dialect
def test_an_idle_worker_that_is_silent_for_too_long_is_forgotten(wires: Wires, dialect: Dialect) -> None:
    w = worker(wires, dialect)
    pass_time(wires, DEAD_AFTER_S - 0.5)
    assert w.is_registered
    pass_time(wires, 0.5)
    assert not w.is_registered
    w.told()
    w.say("HEARTBEAT")
    assert w.told() == [w.disconnect]


@each_dialect
def test_a_worker_that_beats_stays(wires: Wires, dialect: Dialect) -> None:
    w = worker(wires, dialect)
    for _ in range(20):
        pass_time(wires, 2.5)
        w.say("HEARTBEAT")
    assert w.is_registered


def test_any_command_is_a_sign_of_life(wires: Wires, client: Wire) -> None:
    w = worker(wires, MDP_02)
    for _ in range(4):
        pass_time(wires, 8.0)
        w.told()
        ask(client, MDP_02, b"echo", b"x")
        address, _ = w.request()
        w.say("FINAL", address, b"", b"y")
    assert w.is_registered


def test_a_busy_worker_need_not_beat_for_fifteen_minutes(wires: Wires) -> None:
    """Reference workers send no heartbeat while they work; majortomo allows the same 900 s."""
    wires = Wires(foreign_deadline_s=2 * FOREIGN_DEADLINE_S)
    w = worker(wires, MDP_02)
    client = wires.client(b"M")
    client.request(7, remaining_ms=2_000_000)
    address, _ = w.request()
    pass_time(wires, FOREIGN_DEADLINE_S - 1, awake=client)
    assert w.is_registered
    w.say("FINAL", address, b"", b"done")
    (record,) = client.records()
    assert record.id == 7


def test_a_busy_worker_that_is_silent_for_longer_is_lost(wires: Wires) -> None:
    w = worker(wires, MDP_02)
    client = wires.client(b"M")
    client.request(7, remaining_ms=2_000_000)
    pass_time(wires, FOREIGN_DEADLINE_S + 1, awake=client)
    assert not w.is_registered
    (record,) = client.records()
    assert mesh.split_status(record.payload) == 502


def test_a_busy_workers_heartbeats_keep_it_for_as_long_as_it_takes(wires: Wires) -> None:
    w = worker(wires, MDP_02)
    client = wires.client(b"M")
    client.request(7, remaining_ms=4_000_000)
    for _ in range(4):
        pass_time(wires, 800.0, awake=client)
        w.say("HEARTBEAT")
    assert w.is_registered


def test_a_router_that_slept_blames_no_worker_for_it(wires: Wires) -> None:
    w = worker(wires, MDP_02)
    wires.advance(600.0)
    assert w.is_registered


def test_a_client_may_be_silent_while_it_waits_and_is_forgotten_after_fifteen_minutes(
    wires: Wires, client: Wire
) -> None:
    ask(client, MDP_02, b"mmi.service", b"echo")
    pass_time(wires, FOREIGN_DEADLINE_S - 5)
    assert b"C" in wires.door().peers
    pass_time(wires, 10.0)
    assert b"C" not in wires.door().peers


def test_a_longer_foreign_deadline_is_patience_with_client_and_worker_alike() -> None:
    wires = Wires(foreign_deadline_s=2 * FOREIGN_DEADLINE_S)
    client = wires.wire(b"C")
    w = worker(wires, MDP_02)
    ask(client, MDP_02, b"echo", b"long work")
    address, _ = w.request()
    pass_time(wires, FOREIGN_DEADLINE_S + 100)
    w.told()
    w.say("FINAL", address, b"", b"done")
    assert client.take() == [final(MDP_02, b"echo", b"done")]


def test_a_worker_that_the_transport_lost_is_forgotten_at_once(wires: Wires) -> None:
    w = worker(wires, MDP_02)
    w.wire.gone()
    assert not w.is_registered


def test_a_client_that_does_not_read_is_cut_without_a_word_of_another_wire(
    wires: Wires, client: Wire
) -> None:
    instance = wires.instance(b"I")
    ask(client, MDP_02, b"echo", b"x")
    token, _, _ = request_at(instance)
    wires.deaf.add(b"C")
    for _ in range(2):
        instance.partial(token, 200, raw(bytes(MAX_OUTBOX_BYTES)), flags=mesh.RAW)
    assert wires.counted("cut.slow_client") == 1
    assert [r.kind for r in instance.records()] == [mesh.CANCEL]
    wires.deaf.clear()
    wires.advance(0.0)
    assert client.take() == []
    assert b"C" not in wires.door().peers


def pass_time(wires: Wires, seconds: float, *, awake: Wire | None = None) -> None:
    """Let time pass at a router that is awake; ``awake`` is a mesh client that keeps beating."""
    end = wires.now + seconds
    while wires.now < end:
        wires.wait(min(5.0, end - wires.now))
        if awake is not None:
            awake.say(mesh.HEARTBEAT)


# --- garbage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames",
    [[b"", b"MDPC01"], [b"MDPC02", b"\x07", b"echo", b"x"], [b"", b"MDPC02", b"\x02", b"echo"], [b"MDPW02"]],
    ids=repr,
)
def test_frames_that_break_a_dialects_table_are_counted_and_dropped(
    wires: Wires, client: Wire, frames: list[bytes]
) -> None:
    client.send(*frames)
    assert wires.counted("dropped.malformed") == 1
    assert client.take() == []
    assert not wires.door().peers


def test_frames_of_no_dialect_are_counted_and_noted_once(wires: Wires, client: Wire) -> None:
    for frames in ([b""], [b"hello"], [b""] * 1_000, [b"\xaa\xa4\x04"]):
        client.send(*frames)
    assert wires.counted("dropped.unknown_dialect") == 4
    assert sum("unknown-dialect" in note for note in wires.router.notes) == 1
    assert client.take() == []


words = st.sampled_from(
    [
        b"",
        b"MDPC01",
        b"MDPW01",
        b"MDPC02",
        b"MDPW02",
        b"echo",
        b"mmi.service",
        b'{"path":"/"}',
        *(bytes([n]) for n in range(8)),
    ]
)
messages = st.lists(words | st.binary(max_size=9), min_size=1, max_size=8)


@given(st.lists(st.tuples(st.sampled_from([b"A", b"B", b"W", b"I", b"M"]), messages), max_size=12))
def test_whatever_foreign_peers_send_nothing_is_raised_and_the_next_good_request_works(
    sent: list[tuple[bytes, list[bytes]]],
) -> None:
    wires = Wires()
    worker(wires, MDP_02)
    wires.instance(b"I")
    wires.client(b"M")
    for routing_id, frames in sent:
        wires.wire(routing_id).send(*frames)
    wires.advance(1.0)
    assert wires.counted("faults") == 0
    good = worker(wires, MDP_02, b"good worker", service=b"good")
    asker = wires.wire(b"good client")
    ask(asker, MDP_02, b"good", b"x")
    address, _ = good.request()
    good.say("FINAL", address, b"", b"y")
    assert asker.take() == [final(MDP_02, b"good", b"y")]


addresses = st.sampled_from(["true", "stale", "random"])


@given(
    st.lists(st.tuples(st.sampled_from(["PARTIAL", "FINAL"]), addresses, st.binary(max_size=5)), max_size=20)
)
def test_a_client_gets_exactly_one_final_however_a_worker_jumbles_its_replies(
    replies: list[tuple[str, str, bytes]],
) -> None:
    wires = Wires()
    w, client = worker(wires, MDP_02), wires.wire(b"C")
    ask(client, MDP_02, b"echo", b"0")
    stale, _ = w.request()
    w.say("FINAL", stale, b"")
    client.take()
    ask(client, MDP_02, b"echo", b"1")
    address, _ = w.request()
    by_name: dict[str, Any] = {"true": address, "stale": stale, "random": b"\x80" * 8}
    for command, name, body in replies:
        w.say(command, by_name[name], b"", body)
    w.say("FINAL", address, b"", b"end")
    commands = [frames[1] for frames in client.take()]
    assert commands == [b"\x02"] * (len(commands) - 1) + [b"\x03"]


def test_a_workers_name_for_all_to_read_does_not_show_its_routing_id(wires: Wires) -> None:
    worker(wires, MDP_02, b"\x00\x11\x22\x33\x44")
    (shown,) = wires.router.status(wires.now)["services"]["echo"]["instances"]
    assert b"\x00\x11\x22\x33\x44".hex() not in shown["wid"]
    assert b"\x11\x22\x33\x44".hex() not in shown["wid"]


@each_dialect
@pytest.mark.parametrize(
    "frames", [[b""], [b"nonsense"], [b"", b"MDPW01"]], ids=["too-many", "strange", "bare"]
)
def test_a_worker_that_sends_what_is_none_is_sent_away_and_its_call_told(
    wires: Wires, dialect: Dialect, frames: list[bytes]
) -> None:
    """A reply of too many frames reaches the router as an empty message: the caller is told 502 at once,
    where it waited for its deadline and the worker for ever."""
    w = worker(wires, dialect)
    caller = wires.client(b"M")
    caller.request(7)
    w.request()
    w.wire.send(*frames)
    [record] = caller.records()
    assert mesh.split_status(record.payload) == 502
    assert w.told() == [w.disconnect]
    assert not w.is_registered
    w.say("READY", b"echo")
    assert w.is_registered


@each_dialect
def test_who_comes_and_goes_is_noted(wires: Wires, dialect: Dialect) -> None:
    w = worker(wires, dialect)
    (described,) = wires.router.dispatcher.pools[b"echo"].instances
    wid = described.wid
    w.say("DISCONNECT")
    assert wires.router.notes == [
        f"registered {wid} for echo (credit 1)",
        f"removed {wid}: said goodbye, 0 in flight",
    ]


def test_a_busy_workers_silence_is_counted_from_when_it_was_sent_its_request() -> None:
    """Idle workers beat every few seconds; what it has not said before is not held against it."""
    wires = Wires(busy_timeout_s=2.0)
    w = worker(wires, MDP_02)
    pass_time(wires, 4.0)
    client = wires.wire(b"C")
    ask(client, MDP_02, b"echo", b"x")
    assert any(frames[0] == b"\x02" for frames in w.told())
    pass_time(wires, 1.5)
    assert w.is_registered
    pass_time(wires, 1.0)
    assert not w.is_registered
