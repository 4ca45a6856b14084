"""The member's machine: it greets, beats and leaves, and a router's garbage costs it nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh import codec
from butler_mesh.protocol import mesh
from butler_mesh.protocol.liveness import DEAD_AFTER_S
from butler_mesh.protocol.member import GREET_AGAIN_S, Member, Phase
from butler_mesh.protocol.mesh import Record
from tests.protocol.wires import Wires, drain, message

NOW = 100.0
WELCOME = {
    "version": 1,
    "router": "r1",
    "epoch": "e1",
    "nonce": "n1",
    "max_bytes": 1000,
    "heartbeat_ms": 1000,
}


class Probe(Member):
    """A member that notes what its role is told."""

    role = "client"

    def __init__(self, now: float = NOW) -> None:
        super().__init__(now)
        self.now = now
        self.events: list[str] = []

    def on_welcome(self, now: float) -> None:
        self.events.append("welcome")

    def on_absence(self, now: float, reason: str) -> None:
        self.events.append(f"absence: {reason}")

    def hear(self, kind: int, payload: bytes = b"", id_: int = 0) -> None:
        """Receive a message of one record."""
        frame, *rest = message(self.now, (kind, 0, id_, 0, payload, None))
        self.receive(None, b"", frame, rest, self.now)

    def hear_welcome(self, **fields: Any) -> None:
        """Be welcomed."""
        self.hear(mesh.WELCOME, codec.dumps(WELCOME | fields))

    def hear_goodbye(self, status: int, reason: str = "") -> None:
        """Be sent away, or be told that our own GOODBYE has come."""
        self.hear(mesh.GOODBYE, mesh.pack_reason(status, reason))

    def pass_time(self, seconds: float, *, drained: bool = True) -> None:
        """Let time pass in one step."""
        self.now += seconds
        self.tick(self.now, drained=drained)

    def said(self) -> list[Record]:
        """Return the records it wanted to send since the last time."""
        return [r for frames in drain(self.dirty, self.now) for r in mesh.parse(frames[0], frames[1:])[1]]

    def said_kinds(self) -> list[str]:
        """Return the names of these records' kinds."""
        return [mesh.KIND_NAMES[record.kind] for record in self.said()]


@pytest.fixture
def member() -> Probe:
    """Return a member without a connection."""
    return Probe()


@pytest.fixture
def present(member: Probe) -> Probe:
    """Return a member that has been welcomed, with nothing left to say."""
    member.connection_made(None, NOW)
    member.hear_welcome()
    member.said()
    member.events.clear()
    return member


# --- greeting -------------------------------------------------------------------------------------


def test_without_a_connection_it_says_nothing(member: Probe) -> None:
    for _ in range(5):
        member.pass_time(1.0)
    assert member.said() == []
    assert member.phase is Phase.ABSENT


def test_a_connection_is_greeted_with_role_and_versions(member: Probe) -> None:
    member.connection_made(None, NOW)
    (hello,) = member.said()
    assert hello.kind == mesh.HELLO
    assert mesh.split_object(hello.payload) == {"role": "client", "versions": [1]}
    assert member.phase is Phase.GREETING


def test_a_role_adds_to_its_hello() -> None:
    class Control(Probe):
        role = "control"

        def hello(self) -> dict[str, Any]:
            return {"wid": "w1"}

    member = Control()
    member.connection_made(None, NOW)
    (hello,) = member.said()
    assert mesh.split_object(hello.payload) == {"role": "control", "versions": [1], "wid": "w1"}


def test_welcome_makes_it_present_and_tells_the_routers_limits(member: Probe) -> None:
    member.connection_made(None, NOW)
    member.hear_welcome()
    assert member.phase is Phase.PRESENT
    assert (member.router_id, member.router_epoch, member.nonce) == ("r1", "e1", "n1")
    assert member.max_body_bytes == 1000
    assert member.events == ["welcome"]


@pytest.mark.parametrize("max_bytes", [None, "many", 0, -1, 1.5, []])
def test_a_limit_that_makes_no_sense_leaves_the_default(member: Probe, max_bytes: object) -> None:
    member.connection_made(None, NOW)
    member.hear_welcome(max_bytes=max_bytes)
    assert member.max_body_bytes == mesh.MAX_BODY_BYTES


def test_a_welcome_that_nobody_asked_for_changes_nothing(present: Probe) -> None:
    present.hear_welcome(router="another")
    assert present.router_id == "r1"
    assert present.events == []


@pytest.mark.parametrize("payload", [b"", b"[]", b"not JSON", b"\xff"])
def test_a_welcome_that_is_no_object_is_counted_and_waited_on(member: Probe, payload: bytes) -> None:
    member.connection_made(None, NOW)
    member.hear(mesh.WELCOME, payload)
    assert member.phase is Phase.GREETING
    assert member.counters["dropped.malformed_record"] == 1


def test_a_router_that_does_not_answer_is_greeted_again_every_second(member: Probe) -> None:
    member.connection_made(None, NOW)
    member.said()
    member.pass_time(0.5)
    assert member.said() == []
    member.pass_time(0.5)
    assert member.said_kinds() == ["HELLO"]
    member.pass_time(1.0)
    assert member.said_kinds() == ["HELLO"]


# --- staying --------------------------------------------------------------------------------------


def test_it_beats_every_second_and_asks_for_its_tick_in_time(present: Probe) -> None:
    assert present.next_due() == NOW + 1.0
    present.pass_time(0.9)
    assert present.said_kinds() == []
    present.pass_time(0.1)
    assert present.said_kinds() == ["HEARTBEAT"]
    assert present.next_due() == NOW + 2.0


def test_a_router_that_is_silent_for_15_s_is_given_up_and_greeted_again(present: Probe) -> None:
    for _ in range(14):
        present.pass_time(1.0)
    assert set(present.said_kinds()) == {"HEARTBEAT"}
    present.pass_time(1.0)
    assert present.phase is Phase.ABSENT
    assert present.events == ["absence: the router is silent"]
    present.pass_time(GREET_AGAIN_S)
    assert present.said_kinds() == ["HELLO"]


def test_silence_is_not_judged_while_what_arrived_is_still_unread(present: Probe) -> None:
    present.pass_time(60.0, drained=False)
    assert present.phase is Phase.PRESENT
    present.hear(mesh.HEARTBEAT)
    present.pass_time(1.0)
    assert present.phase is Phase.PRESENT


def test_anything_that_comes_is_a_sign_of_life(present: Probe) -> None:
    for _ in range(60):
        present.pass_time(1.0)
        present.hear(mesh.HEARTBEAT)
    assert present.phase is Phase.PRESENT


def test_records_are_given_when_they_were_sent_less_what_they_waited(present: Probe) -> None:
    seen: list[tuple[float, float]] = []
    present.acts[mesh.EVENT] = lambda record, sent_at, now: seen.append((sent_at, now))
    frame, *rest = message(present.now, (mesh.EVENT, 0, 0, 0, b"", None))
    present.receive(None, b"", frame, rest, present.now + 2.0)
    assert seen == [(pytest.approx(NOW), NOW + 2.0)]


# --- losing and leaving ---------------------------------------------------------------------------


def test_a_lost_connection_drops_what_was_unsent_and_tells_the_role(present: Probe) -> None:
    present.outbox.add(mesh.REQUEST)
    present.connection_lost(None, NOW)
    assert present.phase is Phase.ABSENT
    assert present.events == ["absence: connection lost"]
    assert present.said() == []
    assert present.outbox.pending_bytes == 0


def test_a_connection_lost_while_greeting_is_no_absence_for_it_never_was_present(member: Probe) -> None:
    member.connection_made(None, NOW)
    member.connection_lost(None, NOW)
    assert member.phase is Phase.ABSENT
    assert member.events == []


def test_nobody_at_the_other_end_is_a_lost_connection(present: Probe) -> None:
    present.peer_gone(present.outbox, NOW)
    assert present.events == ["absence: connection lost"]


def test_without_a_connection_it_does_not_greet_again_until_there_is_one(present: Probe) -> None:
    present.connection_lost(None, NOW)
    present.pass_time(10.0)
    assert present.said() == []
    present.connection_made(None, present.now)
    assert present.said_kinds() == ["HELLO"]
    present.hear_welcome(epoch="e2")
    assert present.router_epoch == "e2"
    assert present.events[-1] == "welcome"


def test_a_connection_that_replaced_an_unnoticed_lost_one_is_an_absence_too(present: Probe) -> None:
    present.connection_made(None, NOW)
    assert present.events == ["absence: connected anew"]
    assert present.phase is Phase.GREETING
    assert present.said_kinds() == ["HELLO"]


def test_goodbye_is_said_once_and_its_receipt_ends_the_conversation(present: Probe) -> None:
    present.goodbye()
    present.goodbye()
    (record,) = present.said()
    assert (record.kind, mesh.split_reason(record.payload)) == (mesh.GOODBYE, (200, ""))
    assert present.phase is Phase.LEAVING
    present.hear_goodbye(200)
    assert present.phase is Phase.LEFT
    assert present.events == []


def test_a_member_that_is_leaving_neither_beats_nor_greets(present: Probe) -> None:
    present.goodbye()
    present.said()
    present.pass_time(5.0)
    present.connection_made(None, present.now)
    assert present.said() == []
    assert present.phase is Phase.LEAVING


def test_a_connection_lost_while_leaving_has_left(present: Probe) -> None:
    present.goodbye()
    present.connection_lost(None, NOW)
    assert present.phase is Phase.LEFT
    assert present.events == []


def test_whoever_was_not_present_has_left_without_a_word(member: Probe) -> None:
    member.goodbye()
    assert member.phase is Phase.LEFT
    assert member.said() == []


def test_a_member_that_was_sent_away_says_why_and_comes_back_after_a_second(present: Probe) -> None:
    present.hear_goodbye(503, "the router stops")
    assert present.phase is Phase.ABSENT
    assert present.notes == [f"lost router {present.router_id}: sent away, 503 the router stops"]
    assert present.events == ["absence: sent away, 503 the router stops"]
    assert present.said() == []
    present.pass_time(GREET_AGAIN_S)
    assert present.said_kinds() == ["HELLO"]


def test_a_member_that_is_refused_again_and_again_asks_less_and_less_often(present: Probe) -> None:
    pauses = []
    for _ in range(7):
        present.hear_goodbye(409, "READY came twice")
        began = present.now
        while "HELLO" not in present.said_kinds():
            present.pass_time(1.0)
        pauses.append(present.now - began)
        present.hear_welcome()
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_router_that_does_not_know_us_any_more_is_greeted_at_once(present: Probe) -> None:
    present.hear_goodbye(401, "HELLO first")
    assert present.events == ["absence: sent away, 401 HELLO first"]
    assert present.phase is Phase.GREETING
    assert present.said_kinds() == ["HELLO"]


def test_hello_first_said_to_our_previous_connection_does_not_stop_the_greeting(member: Probe) -> None:
    member.connection_made(None, NOW)
    member.said()
    member.hear_goodbye(401, "HELLO first")
    assert member.phase is Phase.GREETING
    assert member.notes == []
    member.hear_welcome()
    assert member.phase is Phase.PRESENT


def test_a_receipt_for_no_goodbye_of_ours_changes_nothing(present: Probe) -> None:
    present.hear_goodbye(200)
    assert present.phase is Phase.PRESENT


# --- garbage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "rest"),
    [(b"", []), (b"garbage", []), (b"\xbe\x02\x00\x00\x00\x00", []), (mesh.pack_header(0), [b"surplus"])],
    ids=repr,
)
def test_a_malformed_message_is_counted_and_is_no_sign_of_life(
    present: Probe, frame: bytes, rest: list[bytes]
) -> None:
    present.receive(None, b"", frame, rest, NOW + 5)
    assert present.counters == {"dropped.malformed": 1}
    assert present.heard_at == NOW


def test_unknown_and_unexpected_kinds_are_skipped_and_the_rest_is_acted_on(present: Probe) -> None:
    goodbye = (mesh.GOODBYE, 0, 0, 0, mesh.pack_reason(503, "stop"), None)
    frame, *rest = message(NOW, (200, 0, 0, 0, b"?", None), (mesh.HELLO, 0, 0, 0, b"{}", None), goodbye)
    present.receive(None, b"", frame, rest, NOW)
    assert present.counters == {"skipped.unknown_kind": 2}
    assert present.phase is Phase.ABSENT


def test_a_fault_in_one_record_is_noted_and_does_not_cost_the_next(present: Probe) -> None:
    def fail(record: Record, sent_at: float, now: float) -> None:
        raise ZeroDivisionError("a bug of ours")

    present.acts[mesh.EVENT] = fail
    frame, *rest = message(
        NOW, (mesh.EVENT, 0, 0, 0, b"", None), (mesh.GOODBYE, 0, 0, 0, mesh.pack_reason(503, "stop"), None)
    )
    present.receive(None, b"", frame, rest, NOW)
    assert present.counters == {"faults": 1}
    assert present.notes[0] == "fault in EVENT: ZeroDivisionError('a bug of ours')"
    assert present.phase is Phase.ABSENT


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=30)), max_size=8), st.booleans())
def test_whatever_a_router_sends_nothing_is_raised_and_nothing_is_a_fault(
    records: list[tuple[int, bytes]], is_present: bool
) -> None:
    member = Probe()
    member.connection_made(None, NOW)
    if is_present:
        member.hear_welcome()
    for kind, payload in records:
        member.hear(kind, payload)
    assert member.counters["faults"] == 0


# --- a pair ---------------------------------------------------------------------------------------


def test_a_real_router_welcomes_it_hears_it_and_acknowledges_its_goodbye() -> None:
    wires = Wires()
    member = Probe(wires.now)
    wires.attach(member, b"C")
    assert member.phase is Phase.PRESENT
    assert member.router_id == wires.router.router_id
    for _ in range(60):
        wires.advance(1.0)
    assert member.phase is Phase.PRESENT
    assert wires.door().peers
    member.goodbye()
    wires.settle()
    assert member.phase is Phase.LEFT
    assert not wires.door().peers


def test_a_router_that_forgot_it_has_it_back_within_the_same_turn() -> None:
    wires = Wires()
    member = Probe(wires.now)
    wires.attach(member, b"C")
    wires.door().peers.clear()
    wires.advance(1.0)
    assert member.events == ["welcome", "absence: sent away, 401 HELLO first", "welcome"]
    assert b"C" in wires.door().peers


def test_a_member_that_itself_stood_still_does_not_blame_the_router_for_the_silence(present: Probe) -> None:
    present.pass_time(10 * DEAD_AFTER_S)
    assert present.phase is Phase.PRESENT
    for _ in range(int(DEAD_AFTER_S) - 1):
        present.pass_time(1.0)
    assert present.phase is Phase.PRESENT
    for _ in range(2):
        present.pass_time(1.0)
    assert present.phase is not Phase.PRESENT


def test_a_router_that_refuses_for_a_year_does_not_overflow_anything(present: Probe) -> None:
    present.conflicts = 5000
    present.hear_goodbye(409, "taken")
    assert present._greet_at == present.now + 30.0
