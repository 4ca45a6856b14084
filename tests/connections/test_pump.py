"""The pump: a loop that never goes deaf, never spins, and never lets one peer's trouble be another's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gevent
import pytest

from butler_mesh.clock import monotonic
from butler_mesh.connections.pump import RETRY_FULL_S, TURN_BYTES, TURN_MESSAGES, Pump, Sent
from butler_mesh.protocol import mesh
from butler_mesh.protocol.outbox import Outbox
from tests.connections.fakes import FakeMachine, FakePort, Log
from tests.waiting import wait_for


class Rig:
    """A pump with a machine and one port; ``after`` is the owner's part of a turn."""

    def __init__(self) -> None:
        self.log = Log()
        self.machine = FakeMachine(self.log)
        self.port = FakePort(self.log)
        self.offset_s = 0.0
        self.after: Callable[[], bool] = lambda: False
        self.pump = Pump(self.machine, after=self._after, clock=self.clock, logger="butler_mesh.test")

    def clock(self) -> float:
        return monotonic() + self.offset_s

    def attach(self, door: object = "door") -> FakePort:
        port = self.port if door == "door" else FakePort(self.log, door)
        self.pump.attach(port)
        return port

    def rest(self) -> None:
        """Let the loop go round until nothing is scheduled."""
        for _ in range(50):
            gevent.sleep(0)

    def _after(self, now: float) -> bool:
        self.log.append("after")
        return self.after()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.pump.close()


# --- a turn -------------------------------------------------------------------------------------


def test_a_turn_reads_and_acts_and_then_sends(rig: Rig) -> None:
    outbox = rig.machine.outbox()
    rig.machine.on_receive = lambda frame: outbox.add(mesh.FINAL, 0, 1)
    rig.machine.on_run = lambda now: outbox.add(mesh.FINAL, 0, 2)

    def after() -> bool:
        assert not rig.port.sent
        outbox.add(mesh.FINAL, 0, 3)
        return False

    rig.after = after
    rig.port.arrive(b"one", b"two")
    rig.attach()
    rig.rest()
    assert rig.log == ["start", "receive", "receive", "run", "after"]
    assert rig.machine.received == [b"one", b"two"]
    assert rig.port.records() == [1, 1, 2, 3]
    assert len(rig.port.sent) == 1


def test_turns_end_when_there_is_nothing_to_do(rig: Rig) -> None:
    rig.attach()
    rig.rest()
    assert rig.log.turns == 1


def test_arming_twice_makes_one_turn(rig: Rig) -> None:
    rig.attach()
    rig.rest()
    outbox = rig.machine.outbox()
    for n in range(3):
        rig.pump.arm(rig.clock())
        outbox.add(mesh.FINAL, 0, n)
    rig.rest()
    assert rig.log.turns == 2
    assert rig.port.records() == [0, 1, 2]


def test_a_port_that_is_not_ready_is_not_read(rig: Rig) -> None:
    rig.attach()
    rig.rest()
    rig.port.arrive(b"unannounced")
    rig.pump.arm(rig.clock())
    rig.rest()
    assert rig.machine.received == []
    rig.port.is_ready = True
    rig.pump.turn()
    assert rig.machine.received == [b"unannounced"]


def test_notes_are_logged_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rig.machine.notes.append("registered svc-1")
    rig.attach()
    rig.rest()
    rig.pump.turn()
    assert caplog.messages == ["registered svc-1"]


def test_a_note_stays_one_line_whatever_a_peer_put_into_it(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig.machine.notes += ["registered x\nERROR forged", "y" * 10_000]
    rig.attach()
    rig.rest()
    assert len(caplog.messages) == 2
    assert not any("\n" in text or len(text) > 400 for text in caplog.messages)


def test_an_owner_that_wants_another_turn_gets_one(rig: Rig) -> None:
    wants = [True, True, False]
    rig.after = lambda: wants.pop(0)
    rig.attach()
    rig.rest()
    assert rig.log.turns == 3


# --- bounds -------------------------------------------------------------------------------------


def test_a_turn_stops_at_its_bound_and_arms_itself_again(rig: Rig) -> None:
    rig.port.arrive(*(b"%d" % n for n in range(3 * TURN_MESSAGES + 1)))
    rig.attach()
    rig.rest()  # nothing wakes the port: the turns have only themselves
    assert rig.machine.received == [b"%d" % n for n in range(3 * TURN_MESSAGES + 1)]
    between = [len(turn.split()) for turn in " ".join(rig.log[1:]).split("run after")]
    assert between == [TURN_MESSAGES, TURN_MESSAGES, TURN_MESSAGES, 1, 0]


def test_a_turn_stops_when_its_time_is_up(rig: Rig) -> None:
    def take_a_millisecond() -> None:
        rig.offset_s += 0.001

    rig.port.on_receive = take_a_millisecond
    rig.port.arrive(*[b"x"] * 20)
    rig.attach()
    rig.rest()
    assert len(rig.machine.received) == 20
    assert rig.log.turns == 5


def test_a_turn_stops_when_it_has_read_enough_bytes(rig: Rig) -> None:
    rig.port.arrive(b"1", b"2", b"3", rest=[bytes(TURN_BYTES // 2 + 1)])
    rig.attach()
    rig.rest()
    assert rig.log == ["start", "receive", "receive", "run", "after", "receive", "run", "after"]


def test_a_flood_at_one_port_does_not_silence_another(rig: Rig) -> None:
    first, second = rig.attach(), rig.attach("other")
    rig.rest()

    def keep_coming(frame: bytes) -> None:
        if rig.machine.doors[-1] == "door":
            first.arrive(b"more")

    rig.machine.on_receive = keep_coming
    first.arrive(b"flood")
    second.arrive(b"single")
    first.is_ready = second.is_ready = True
    rig.pump.turn()
    assert b"single" in rig.machine.received
    rig.machine.on_receive = lambda frame: None


def test_health_is_judged_only_when_everything_was_read(rig: Rig) -> None:
    rig.machine.due = 0.0
    rig.port.arrive(*[b"x"] * (TURN_MESSAGES + 1))
    rig.pump._tick_due = 0.0
    rig.attach()
    rig.rest()
    assert rig.machine.drained[0] is False
    rig.machine.due = 0.0
    rig.pump.turn()  # finds out that something is due
    rig.pump.turn()
    assert rig.machine.drained == [False, True]


# --- edges --------------------------------------------------------------------------------------


def test_what_arrives_while_a_turn_sends_is_read_though_nobody_wakes_the_port(rig: Rig) -> None:
    rig.attach()
    rig.rest()
    rig.port.arrives_with_send = [b"swallowed", b"edge"]
    rig.pump.arm(rig.clock())
    rig.machine.outbox().add(mesh.FINAL)
    rig.rest()
    assert rig.machine.received == [b"swallowed", b"edge"]


def test_what_arrives_while_an_owner_sends_outside_a_turn_is_read(rig: Rig) -> None:
    rig.attach()
    rig.rest()
    rig.port.arrives_with_send = [b"swallowed"]
    rig.pump.arm(rig.clock())
    rig.machine.outbox().add(mesh.FINAL)
    rig.pump.flush(rig.clock())
    assert len(rig.port.sent) == 1
    rig.rest()
    assert rig.machine.received == [b"swallowed"]


def test_turns_never_nest(rig: Rig) -> None:
    depth = deepest = 0

    def after() -> bool:
        nonlocal depth, deepest
        depth += 1
        deepest = max(depth, deepest)
        rig.pump.turn()
        rig.pump.arm(rig.clock())
        rig.machine.outbox().add(mesh.FINAL, 0, 1)
        depth -= 1
        return False

    rig.after = after
    rig.attach()
    rig.rest()
    assert deepest == 1
    assert rig.log.turns == 1
    assert rig.port.records() == [1]  # written in the turn, sent in the turn


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["run", "tick", "next_due", "after"])
def test_no_exception_leaves_a_turn_and_a_bug_that_stays_does_not_spin(
    rig: Rig, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    rig.attach()
    rig.rest()
    if where == "after":

        def fail() -> bool:
            raise RuntimeError("a bug in after")

        rig.after = fail
    rig.machine.failing = {where}
    if where == "tick":
        rig.pump._tick_due = 0.0
    begun, turns = monotonic(), rig.log.turns
    rig.port.arrive(*(b"%d" % n for n in range(100)))
    rig.port.is_ready = True
    rig.pump.turn()
    wait_for(lambda: len(caplog.records) >= 3)
    assert {record.message for record in caplog.records} == {"turn-failed"}
    assert len(caplog.records) <= (monotonic() - begun) / RETRY_FULL_S + 1
    assert rig.log.turns > turns
    rig.machine.failing.clear()
    rig.after = lambda: False
    wait_for(lambda: rig.machine.received[-1:] == [b"99"])
    caplog.clear()


def test_a_message_that_the_machine_chokes_on_costs_no_other(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    def choke(frame: bytes) -> None:
        if frame == b"bad":
            raise RuntimeError("a bug in receive")

    rig.machine.on_receive = choke
    rig.port.arrive(b"good", b"bad", b"good")
    rig.attach()
    rig.rest()
    assert rig.log == ["start", "receive", "receive", "receive", "run", "after"]
    assert [record.message for record in caplog.records] == ["receive-failed"]
    assert rig.machine.counters["faults"] == 1
    caplog.clear()


def test_what_was_written_before_a_failure_is_sent_after_it(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.attach()
    rig.rest()
    rig.machine.outbox().add(mesh.FINAL, 0, 7)
    rig.machine.failing = {"run"}
    rig.pump.turn()
    assert not rig.port.sent
    rig.machine.failing.clear()
    wait_for(lambda: rig.port.records() == [7])
    caplog.clear()


def test_a_send_that_fails_costs_nobody_else_a_message(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    outboxes = [rig.machine.outbox(id_) for id_ in (b"a", b"b", b"c")]
    rig.port.results[b"b"] = RuntimeError("a bug in send")
    for outbox in outboxes:
        outbox.add(mesh.FINAL, 0, 1)
    rig.attach()
    rig.rest()
    assert [id_ for id_, _ in rig.port.sent] == [b"a", b"c"]
    assert [record.message for record in caplog.records] == ["send-failed"]
    del rig.port.results[b"b"]
    for outbox in outboxes:
        outbox.add(mesh.FINAL, 0, 2)
    rig.pump.turn()
    assert [rig.port.records(id_) for id_ in (b"a", b"b", b"c")] == [[1, 2], [2], [1, 2]]
    caplog.clear()


@pytest.mark.parametrize("what", ["made", "lost"])
def test_news_of_connections_reach_the_machine_and_its_bugs_nobody(
    rig: Rig, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    rig.attach()
    rig.rest()
    turns = rig.log.turns
    tell = rig.pump.connection_made if what == "made" else rig.pump.connection_lost
    tell(rig.port)
    assert rig.log[-1] == f"{what} door"
    rig.rest()
    assert rig.log.turns == turns + 1
    rig.machine.failing = {what}
    tell(rig.port)
    assert [record.message for record in caplog.records] == ["callback-failed"]
    caplog.clear()


# --- sending ------------------------------------------------------------------------------------


def test_a_full_pipe_is_tried_again_until_it_takes_everything_in_order(rig: Rig) -> None:
    rig.port.results[b"full"] = Sent.FULL
    full, free = rig.machine.outbox(b"full"), rig.machine.outbox(b"free")
    for n in range(100):
        full.add(mesh.FINAL, 0, n)
        free.add(mesh.FINAL, 0, n)
    rig.attach()
    rig.rest()
    assert rig.port.records(b"free") == list(range(100))
    assert rig.port.records(b"full") == []
    assert full.pending_bytes
    full.add(mesh.FINAL, 0, 100)
    del rig.port.results[b"full"]
    begun = monotonic()
    wait_for(lambda: not full.pending_bytes)
    assert monotonic() - begun < 20 * RETRY_FULL_S
    assert rig.port.records(b"full") == list(range(101))


def test_a_pipe_that_stays_full_does_not_spin(rig: Rig) -> None:
    rig.port.results[b"id"] = Sent.FULL
    rig.machine.outbox().add(mesh.FINAL)
    rig.attach()
    begun = monotonic()
    wait_for(lambda: rig.log.turns >= 4)
    assert rig.log.turns <= (monotonic() - begun) / RETRY_FULL_S + 2


def test_a_peer_that_is_gone_is_reported_and_its_messages_are_forgotten(rig: Rig) -> None:
    rig.port.results[b"gone"] = Sent.GONE
    gone, other = rig.machine.outbox(b"gone"), rig.machine.outbox(b"other")
    for _ in range(100):
        gone.add(mesh.FINAL)
    other.add(mesh.FINAL, 0, 5)
    rig.attach()
    rig.rest()
    assert rig.machine.gone == [b"gone"]
    assert gone.pending_bytes == 0
    assert not gone.messages
    assert rig.port.records(b"other") == [5]


def test_messages_to_a_door_without_a_port_are_forgotten(rig: Rig) -> None:
    outbox = rig.machine.outbox(door="never opened")
    outbox.add(mesh.FINAL)
    rig.attach()
    rig.rest()
    assert outbox.pending_bytes == 0
    assert not rig.port.sent


# --- time ---------------------------------------------------------------------------------------


def test_the_machine_is_ticked_when_it_is_due_and_not_before(rig: Rig) -> None:
    rig.attach()
    rig.rest()
    due = rig.machine.due = rig.clock() + 0.03
    rig.pump.turn()
    assert "tick" not in rig.log
    wait_for(lambda: "tick" in rig.log)
    assert rig.clock() >= due


def test_the_timer_is_set_anew_when_something_is_due_earlier(rig: Rig) -> None:
    rig.attach()
    rig.rest()
    for due_s in (10.0, 0.02):
        rig.machine.due = rig.clock() + due_s
        rig.pump.turn()
    wait_for(lambda: "tick" in rig.log, 2.0)


def test_a_timer_that_fires_in_vain_is_set_again(rig: Rig) -> None:
    rig.attach()
    rig.machine.due = rig.clock() + 0.01
    rig.pump.turn()
    rig.machine.due = rig.clock() + 0.04  # put off: the timer knows nothing of it
    wait_for(lambda: "tick" in rig.log, 2.0)
    assert rig.log.count("tick") == 1


def test_what_came_unannounced_is_read_before_anybodys_silence_is_judged(rig: Rig) -> None:
    rig.attach()
    rig.rest()
    rig.port.arrive(b"not deaf")
    rig.machine.due = rig.clock() + 0.01
    rig.pump.turn()
    wait_for(lambda: "tick" in rig.log, 2.0)
    assert rig.log.index("receive") < rig.log.index("tick")


# --- stamps -------------------------------------------------------------------------------------


def ms(now: float) -> int:
    return int(now * 1000) & 0xFFFFFFFF


def test_the_stamp_is_when_the_pump_was_armed_not_when_the_turn_came(rig: Rig) -> None:
    rig.attach()
    rig.rest()
    now = rig.clock() + 1.0
    rig.offset_s += 1.0
    rig.pump.arm(now)
    rig.machine.outbox().add(mesh.REQUEST)
    rig.offset_s += 0.5  # the hub was busy
    rig.rest()
    assert rig.port.stamps() == [ms(now)]


def test_what_a_turn_itself_writes_is_stamped_with_the_turns_time(rig: Rig) -> None:
    outbox = rig.machine.outbox()
    rig.attach()
    rig.rest()
    rig.offset_s += 1.0
    rig.pump.arm(rig.clock())
    rig.offset_s += 0.5
    turned_at: list[float] = []

    def run(now: float) -> None:
        turned_at.append(now)
        outbox.add(mesh.REQUEST)

    rig.machine.on_run = run
    rig.rest()
    assert rig.port.stamps() == [ms(turned_at[0])]


def test_records_written_far_apart_do_not_share_a_stamp(rig: Rig) -> None:
    rig.attach()
    rig.rest()
    outbox = rig.machine.outbox()
    written: list[float] = []
    for n in range(3):
        rig.offset_s += 0.3
        written.append(rig.clock())
        rig.pump.arm(written[-1])
        outbox.add(mesh.REQUEST, 0, n)
    rig.rest()
    assert rig.port.stamps() == [ms(now) for now in written]
    assert rig.port.records() == [0, 1, 2]


def test_records_of_a_burst_leave_as_one_message(rig: Rig) -> None:
    rig.attach()
    rig.rest()
    outbox = rig.machine.outbox()
    now = rig.clock() + 1.0
    for n in range(20):
        rig.pump.arm(now + n * 0.0001)
        outbox.add(mesh.REQUEST, 0, n)
    rig.rest()
    assert rig.port.stamps() == [ms(now)]


def test_a_message_that_is_full_leaves_before_the_turn_ends_and_in_its_place() -> None:
    log = Log()
    port, machine = FakePort(log), FakeMachine(log)
    outbox = Outbox(machine.dirty, "door", b"id", filled=machine.filled)
    left: list[int] = []

    def answer(frame: bytes) -> None:
        left.append(len(port.sent))
        for id_ in range(40):
            outbox.add(mesh.FINAL, 0, 40 * len(left) + id_)

    machine.on_receive = answer
    pump = Pump(machine)
    port.arrive(b"one", b"two")
    pump.attach(port)
    for _ in range(10):
        gevent.sleep(0)
    assert left == [0, 1]
    assert [len(mesh.parse(frame)[1]) for _, frame in port.sent] == [32, 32, 16]
    assert port.records() == list(range(40, 120))
    assert not machine.filled
    pump.close()


# --- the end ------------------------------------------------------------------------------------


def test_close_sends_what_waits_and_closes_the_ports_once(rig: Rig) -> None:
    rig.attach()
    rig.machine.outbox().add(mesh.GOODBYE, 0, 9)
    rig.pump.close(0.5)
    rig.pump.close(0.5)
    assert rig.port.records() == [9]
    assert rig.log == ["start", "close 0.5"]
    rig.rest()
    assert rig.log.turns == 0


def test_nothing_moves_after_close(rig: Rig) -> None:
    rig.attach()
    rig.machine.due = rig.clock() + 0.01
    rig.pump.turn()
    rig.pump.close()
    done = len(rig.log)
    rig.pump.arm(rig.clock())
    rig.pump.turn()
    gevent.sleep(0.02)  # past what was due
    assert len(rig.log) == done


def test_close_in_the_middle_of_a_turn_is_well(rig: Rig) -> None:
    def close() -> bool:
        rig.pump.close()
        return True

    rig.after = close
    rig.port.arrive(b"x")
    rig.attach()
    rig.rest()
    assert rig.log == ["start", "receive", "run", "after", "close 0"]
    assert rig.pump._timer is None


def test_close_closes_though_the_last_send_fails(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.attach()
    rig.port.results[b"id"] = RuntimeError("a bug in send")
    rig.machine.outbox().add(mesh.GOODBYE)
    rig.pump.close()
    assert rig.log[-1] == "close 0"
    caplog.clear()


def test_abandon_neither_sends_nor_closes(rig: Rig) -> None:
    rig.attach()
    rig.machine.outbox().add(mesh.GOODBYE)
    rig.pump.abandon()
    rig.rest()
    assert rig.log == ["start", "abandon"]
    assert not rig.port.sent
