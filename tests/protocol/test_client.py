"""The client's machine: its calls, their deadlines, and what becomes of them when the router goes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh import codec
from butler_mesh.protocol import mesh
from butler_mesh.protocol.client import CONNECT_TIMEOUT_S, ONE_WAY_BIT, ClientProtocol
from butler_mesh.protocol.liveness import DEAD_AFTER_S
from butler_mesh.protocol.member import GREET_AGAIN_S, Phase
from butler_mesh.protocol.mesh import FINAL, IDEMPOTENT, ONE_WAY, PARTIAL, STREAM
from butler_mesh.protocol.outbox import MAX_OUTBOX_BYTES, Outbox
from butler_mesh.protocol.wheel import NEVER
from tests.protocol.net import Caller, Net, all_is_over, reply
from tests.protocol.strange import records

MIB = 1024 * 1024


def tell(
    caller: Caller, kind: int, id_: int = 0, payload: bytes = b"", envelope: bytes | None = None
) -> None:
    """Let the router's side say something to a client, whatever the router thinks of it."""
    outbox = Outbox([])
    outbox.add(kind, 0, id_, 0, payload, envelope)
    outbox.seal(caller.net.now)
    assert caller.link is not None
    caller.link.to_member.append([bytes(frame) for frame in outbox.messages[0][1]])
    caller.net.settle()


def goodbye(code: int) -> bytes:
    return mesh.pack_reason(code, "why")


# --- the conversation ---------------------------------------------------------------------------------


def test_a_client_greets_when_it_is_connected_and_is_present_when_it_is_welcomed() -> None:
    net = Net()
    caller = Caller(net)
    assert caller.machine.phase is Phase.ABSENT
    caller.machine.connection_made(None, net.now)
    assert caller.machine.phase is Phase.GREETING
    net.connect(caller)
    assert caller.machine.phase is Phase.PRESENT
    assert caller.machine.router_epoch == net.router.epoch


def test_HELLO_is_the_first_record_also_when_a_call_came_before_the_connection() -> None:
    net = Net()
    worker, caller = net.worker(), Caller(net)
    asked = caller.ask("svc")
    net.connect(caller)
    worker.reply()
    assert asked.code == 200
    assert net.router.counters["refused.no_hello"] == 0


def test_a_client_beats_each_second_and_so_stays_known() -> None:
    net = Net()
    caller = net.caller()
    net.advance(3 * DEAD_AFTER_S)
    assert caller.machine.phase is Phase.PRESENT
    assert len(net.both.peers) == 1


def test_HELLO_is_said_again_to_a_router_that_does_not_answer() -> None:
    net = Net()
    caller = Caller(net)
    net.parties.append(caller)
    raw_hellos = []
    caller.machine.connection_made(None, net.now)
    for _ in range(3):
        net.advance(GREET_AGAIN_S)
    caller.machine.outbox.seal(net.now)
    for _, frames in caller.machine.outbox.messages:
        raw_hellos += [record for record in mesh.parse(bytes(frames[0]))[1] if record.kind == mesh.HELLO]
    assert len(raw_hellos) == 4


def test_a_client_that_the_wrong_door_sent_away_asks_again_and_tells_so() -> None:
    net = Net()
    caller = net.caller(net.back)
    assert caller.machine.phase is Phase.ABSENT
    assert any("refused by the router: 403" in note for note in caller.machine.notes)
    net.drop(caller)
    net.connect(caller, net.front)
    assert caller.machine.phase is Phase.PRESENT


def test_a_client_that_the_router_forgot_greets_anew_at_once() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    running, again = caller.ask("svc"), caller.ask("svc", flags=IDEMPOTENT)
    (peer,) = [peer for peer in net.both.peers.values() if peer.role == "client"]
    net.router._remove(peer, net.now, "forgotten")
    net.advance(1.0)
    assert caller.machine.phase is Phase.PRESENT
    assert (running.code, again.code) == (502, None)
    worker.reply()
    assert again.code == 200


def test_the_401_to_what_was_sent_before_HELLO_does_not_disturb_the_greeting() -> None:
    net = Net()
    caller = net.caller()
    caller.machine._greet(net.now)
    tell(caller, mesh.GOODBYE, payload=goodbye(401))
    assert caller.machine.phase is Phase.PRESENT


def test_a_new_connection_without_word_of_the_loss_of_the_old_one_is_a_loss_all_the_same() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    running, again = caller.ask("svc"), caller.ask("svc", flags=IDEMPOTENT)
    net.drop(caller, is_noticed=False)
    net.connect(caller)
    assert (running.code, again.code) == (502, None)
    worker.reply(worker.jobs[-1])
    assert again.code == 200


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b'{"nonce":"\\ud800"}', b"\xff"])
def test_a_WELCOME_that_is_no_JSON_object_is_counted_and_does_not_welcome(payload: bytes) -> None:
    caller = Caller(Net())
    caller.machine.connection_made(None, 1000.0)
    outbox = Outbox([])
    outbox.add(mesh.WELCOME, payload=payload)
    outbox.seal(1000.0)
    caller.machine.receive(None, b"", bytes(outbox.messages[0][1][0]), [], 1000.0)
    assert caller.machine.phase is Phase.GREETING
    assert caller.machine.counters["dropped.malformed_record"] == 1


def test_leaving_waits_for_the_receipt_which_says_that_all_has_arrived() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    caller.ask("svc", flags=ONE_WAY, settle=False)
    caller.machine.goodbye()
    assert caller.machine.phase is Phase.LEAVING
    net.settle()
    assert caller.machine.phase is Phase.LEFT
    assert len(worker.jobs) == 1


def test_leaving_without_a_router_is_done_at_once() -> None:
    caller = Caller(Net())
    caller.machine.goodbye()
    assert caller.machine.phase is Phase.LEFT


def test_a_connection_lost_while_leaving_ends_the_wait_and_nothing_greets_again() -> None:
    net = Net()
    caller = net.caller()
    assert caller.link is not None
    caller.link.is_held = True
    caller.machine.goodbye()
    net.drop(caller)
    assert caller.machine.phase is Phase.LEFT
    net.connect(caller)
    net.advance(3.0)
    assert caller.machine.phase is Phase.LEFT
    assert not net.both.peers


def test_a_client_that_closes_answers_every_call_once_and_cancels_it() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    calls = [caller.ask("svc"), caller.ask("svc", flags=STREAM, window=1)]
    caller.machine.fail(499, "closed")
    net.settle()
    assert [call.code for call in calls] == [499, 499]
    assert not worker.jobs
    assert net.router.counters["cancelled"] == 2


# --- what is refused before it is sent -----------------------------------------------------------------


def test_a_body_over_WELCOMEs_maximum_is_413_and_is_not_sent() -> None:
    net = Net(max_body_bytes=1000)
    caller, worker = net.caller(), net.worker()
    assert caller.ask("svc", b"x" * 1000).code is None
    asked = caller.ask("svc", b"x" * 1001)
    assert asked.code == 413
    assert "1000 bytes" in asked.answer["message"]
    assert net.router.counters["refused.too_large"] == 0
    assert len(worker.jobs) == 1


def test_a_target_too_long_for_the_wire_is_400_and_is_not_sent() -> None:
    net = Net(register_grace_s=0.0)
    caller = net.caller()
    assert caller.ask("/" + "x" * 65_534).code == 404
    assert caller.ask("/" + "x" * 65_535).code == 400
    assert net.router.counters["refused.not_found"] == 1


def test_an_expired_request_is_504_and_is_not_sent() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    assert [caller.ask("svc", timeout_s=timeout_s).code for timeout_s in (0.0, -1.0)] == [504, 504]
    assert not worker.seen


def test_a_millisecond_is_the_least_that_a_request_is_given() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    caller.ask("svc", timeout_s=0.0001)
    assert worker.jobs[0].deadline == pytest.approx(net.now + 0.001)


def test_a_call_is_503_when_over_8_MiB_wait_to_be_sent() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    assert caller.link is not None
    caller.link.is_full_to_router = True
    calls = [caller.ask("svc", b"x" * MIB) for _ in range(9)]
    assert [call.code for call in calls] == [None] * 8 + [503]
    assert "Retry-After" in calls[8].answer["headers"]
    assert caller.machine.outbox.pending_bytes < MAX_OUTBOX_BYTES + 2 * MIB
    caller.link.is_full_to_router = False
    net.settle()
    assert len(worker.jobs) == 8


# --- deadlines and cancelling --------------------------------------------------------------------------


def test_a_call_is_504_at_its_deadline_though_the_router_says_nothing() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    net.is_stopped = True
    asked = caller.ask("svc", timeout_s=1.0)
    net.advance(0.99)
    assert asked.code is None
    net.advance(0.03)
    assert asked.code == 504
    net.is_stopped = False
    net.settle()
    assert not worker.jobs
    all_is_over(net, [caller], [worker])


def test_a_late_reply_reaches_nobody_and_is_counted() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(is_stubborn=True)
    assert caller.link is not None
    asked = caller.ask("svc", timeout_s=1.0)
    caller.link.is_held = True
    worker.reply()
    net.advance(1.1)
    caller.link.is_held = False
    net.settle()
    assert asked.finals == [504]
    assert caller.machine.counters["dropped.late_reply"] == 1


def test_nothing_more_is_heard_of_a_cancelled_call() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(is_stubborn=True)
    asked = caller.ask("svc", flags=STREAM, window=9)
    worker.reply(final=False)
    worker.reply(final=False, settle=False)
    caller.cancel(asked)
    worker.reply()
    assert len(asked.replies) == 1
    all_is_over(net, [caller], [worker])


def test_a_reply_that_came_in_the_turn_of_the_cancel_is_not_handed_out() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc")
    pending = asked.pending
    assert pending is not None
    worker.reply(settle=False)
    net._turn(worker)
    net._turn(net)
    assert caller.link is not None
    frame = caller.link.to_member.popleft()[0]
    caller.machine.receive(None, b"", frame, [], net.now)
    caller.machine.cancel(pending)
    net.settle()
    assert asked.replies == []


def test_cancelling_twice_or_after_the_reply_says_nothing_to_the_router() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked, other = caller.ask("svc"), caller.ask("svc")
    worker.reply()
    caller.cancel(asked)
    caller.cancel(other)
    caller.cancel(other)
    assert net.router.counters["cancelled"] == 1
    assert asked.code == 200


def test_a_reply_for_an_unknown_call_or_twice_reaches_nobody_and_is_counted() -> None:
    net = Net()
    caller = net.caller()
    net.worker()
    asked = caller.ask("svc")
    for id_ in (0, 99, (1 << 62) - 1, 1 << 63):
        for kind in (FINAL, PARTIAL):
            tell(caller, kind, id_, reply())
    assert asked.replies == []
    assert caller.machine.counters["dropped.late_reply"] == 8
    for _ in range(2):
        tell(caller, FINAL, 1, reply())
    assert asked.finals == [200]
    assert caller.machine.counters["dropped.late_reply"] == 9


def test_a_PARTIAL_for_a_call_that_takes_one_reply_reaches_nobody() -> None:
    net = Net()
    caller = net.caller()
    net.worker()
    asked = caller.ask("svc")
    tell(caller, PARTIAL, 1, reply())
    assert asked.replies == []
    assert caller.machine.counters["dropped.late_reply"] == 1


def test_a_reply_without_a_status_is_dropped_and_the_call_goes_on() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc", flags=STREAM, window=1)
    for kind in (FINAL, PARTIAL):
        tell(caller, kind, 1, b"\x00")
    assert caller.machine.counters["dropped.malformed_record"] == 2
    worker.reply()
    assert asked.finals == [200]


def test_a_streams_deadline_runs_between_parts_and_is_renewed_by_what_the_reader_grants() -> None:
    net = Net()
    caller = net.caller()
    net.worker()
    asked = caller.ask("svc", flags=STREAM, window=9, timeout_s=1.0)
    net.is_stopped = True
    for _ in range(3):
        net.advance(0.8)
        caller.grant(asked, 1)
    assert asked.code is None
    for _ in range(3):
        net.advance(0.8)
        tell(caller, PARTIAL, 1, reply())
    assert len(asked.parts) == 3
    net.advance(1.1)
    assert asked.code == 504


def test_a_stream_without_a_deadline_waits_for_ever() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc", flags=STREAM, window=1, timeout_s=NEVER)
    net.advance(100.0)
    assert asked.replies == []
    worker.reply()
    assert asked.code == 200


# --- one-way --------------------------------------------------------------------------------------------


def test_a_one_way_request_leaves_nothing_behind() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc", flags=ONE_WAY)
    assert not caller.machine.calls
    worker.reply()
    assert asked.replies == []
    assert not caller.machine.refusals
    all_is_over(net, [caller], [worker])


def test_a_one_way_request_that_was_refused_is_reported() -> None:
    net = Net(register_grace_s=0.0, queue_limit=0)
    caller = net.caller()
    net.worker("full", credit=0)
    for target in ("typo", "full"):
        asked = caller.ask(target, flags=ONE_WAY)
        assert asked.replies == []
    assert [code for code, _ in caller.machine.refusals] == [404, 503]
    assert caller.machine.counters["refused.one_way"] == 2
    assert caller.machine.counters["dropped.late_reply"] == 0


@pytest.mark.parametrize(("envelope", "code"), [(b"x" * 1001, 413), (b"{}", 503)])
def test_a_one_way_request_that_was_never_sent_is_reported(envelope: bytes, code: int) -> None:
    net = Net(max_body_bytes=1000)
    caller = net.caller()
    if code == 503:
        net.drop(caller)
    caller.ask("svc", envelope, flags=ONE_WAY)
    net.advance(CONNECT_TIMEOUT_S + 0.1)
    assert [it for it, _ in caller.machine.refusals] == [code]


def test_a_one_way_request_that_lay_in_the_outbox_when_the_router_was_lost_is_reported() -> None:
    net = Net()
    caller = net.caller()
    assert caller.link is not None
    caller.link.is_full_to_router = True
    caller.ask("svc", flags=ONE_WAY)
    net.drop(caller)
    assert [code for code, _ in caller.machine.refusals] == [503]


def test_refusals_are_kept_in_bounded_number() -> None:
    net = Net(register_grace_s=0.0)
    caller = net.caller()
    for _ in range(150):
        caller.ask("typo", flags=ONE_WAY)
    assert len(caller.machine.refusals) == 100


def test_the_ids_of_one_way_requests_are_told_from_the_others() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    for flags in (0, ONE_WAY, 0, ONE_WAY):
        asked = caller.ask("svc", flags=flags)
        assert asked.pending is not None
        assert bool(asked.pending.id & ONE_WAY_BIT) == bool(flags)
    assert len(worker.jobs) == 4


# --- a router that is lost, or not there yet -------------------------------------------------------------


def lose_router(net: Net, how: str) -> None:
    if how == "connection":
        net.start_router()
    elif how == "goodbye":
        net.router.close()
        net.settle()
    else:
        net.is_stopped = True
        net.advance(DEAD_AFTER_S + 1.5)


@pytest.mark.parametrize("how", ["connection", "goodbye", "silence"])
def test_when_the_router_is_lost_what_it_has_is_502_at_once(how: str) -> None:
    net = Net()
    caller = net.caller()
    net.worker()
    calls = [caller.ask("svc", timeout_s=60.0), caller.ask("svc", flags=STREAM, window=1, timeout_s=60.0)]
    lose_router(net, how)
    net.settle()
    assert [call.code for call in calls] == [502, 502]
    assert "router was lost" in calls[0].answer["message"]


def test_an_idempotent_call_is_sent_to_the_next_router_once() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc", flags=IDEMPOTENT)
    for n in (1, 2):
        assert (len(worker.seen), asked.code) == (n, None)
        net.start_router()
        net.connect(worker)
        net.connect(caller)
    assert asked.code == 502
    assert len(worker.seen) == 2


def test_an_idempotent_call_is_answered_by_the_next_router() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc", flags=IDEMPOTENT)
    net.start_router()
    net.connect(worker)
    net.connect(caller)
    worker.reply(worker.jobs[1], 201)
    assert asked.code == 201
    worker.reply(worker.jobs[0])
    all_is_over(net, [caller], [worker])


def test_an_idempotent_stream_of_which_a_part_was_read_is_502() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc", flags=IDEMPOTENT | STREAM, window=3)
    worker.reply(final=False)
    net.start_router()
    net.settle()
    assert asked.finals == [502]


def test_a_call_made_while_there_is_no_router_waits_3_s_and_is_then_503() -> None:
    net = Net()
    caller = net.caller()
    net.drop(caller)
    asked, idempotent = caller.ask("svc"), caller.ask("svc", flags=IDEMPOTENT)
    net.advance(CONNECT_TIMEOUT_S - 0.1)
    assert asked.code is None
    net.advance(0.2)
    assert (asked.code, idempotent.code) == (503, 503)
    assert "no router" in asked.answer["message"]
    assert "Retry-After" in asked.answer["headers"]
    all_is_over(net, [caller], [])


def test_a_call_whose_deadline_comes_before_a_router_is_504() -> None:
    net = Net()
    caller = net.caller()
    net.drop(caller)
    asked = caller.ask("svc", timeout_s=1.0)
    net.advance(1.1)
    assert asked.code == 504


def test_a_call_whose_time_passed_while_its_process_stood_still_is_not_sent_and_keeps_no_other_back() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    net.drop(caller)
    late, good = caller.ask("svc", timeout_s=1.0), caller.ask("svc")
    caller.is_stopped = True
    net.advance(2.0)
    caller.is_stopped = False
    net.connect(caller)
    assert len(worker.jobs) == 1
    worker.reply()
    net.advance(0.1)
    assert (late.code, good.code) == (504, 200)
    assert caller.machine.counters["faults"] == 0


def test_calls_made_while_there_is_no_router_are_sent_in_order_when_it_comes() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    net.drop(caller)
    calls = [caller.ask("svc", b'{"n":%d}' % n) for n in range(3)]
    cancelled = caller.ask("svc")
    caller.cancel(cancelled)
    net.advance(CONNECT_TIMEOUT_S - 0.5)
    net.connect(caller)
    assert [job.envelope for job in worker.jobs] == [b'{"n":%d}' % n for n in range(3)]
    net.advance(10.0)
    assert [call.code for call in calls] == [None] * 3
    for _ in range(3):
        worker.reply()
    assert [call.code for call in calls] == [200] * 3
    all_is_over(net, [caller], [worker])


def test_a_call_that_had_not_left_when_the_router_was_lost_is_sent_to_the_next() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    assert caller.link is not None
    sent = caller.ask("svc")
    caller.link.is_full_to_router = True
    unsent = [caller.ask("svc"), caller.ask("svc", b"x" * MIB)]
    net.drop(caller)
    assert [call.code for call in (sent, *unsent)] == [502, None, None]
    net.connect(caller)
    assert len(worker.jobs) == 2
    worker.reply()
    worker.reply()
    assert [call.code for call in unsent] == [200, 200]
    all_is_over(net, [caller], [worker])


def test_the_router_is_not_taken_for_silent_before_all_that_had_arrived_was_read() -> None:
    net = Net()
    caller = net.caller()
    caller.machine.tick(net.now + 2 * DEAD_AFTER_S, drained=False)
    assert caller.machine.notes == []


def test_a_router_that_fell_silent_is_greeted_until_it_speaks_again() -> None:
    net = Net()
    caller = net.caller()
    net.is_stopped = True
    net.advance(DEAD_AFTER_S + 2.0)
    assert caller.machine.phase in (Phase.ABSENT, Phase.GREETING)
    net.is_stopped = False
    net.advance(2.5)
    assert caller.machine.phase is Phase.PRESENT
    worker = net.worker()
    asked = caller.ask("svc")
    worker.reply()
    assert asked.code == 200


def test_a_client_that_was_stopped_itself_does_not_blame_the_router() -> None:
    net = Net()
    caller = net.caller()
    caller.is_stopped = True
    net.advance(DEAD_AFTER_S - 5.0)
    caller.is_stopped = False
    net.settle()
    net.advance(0.0)
    assert caller.machine.phase is Phase.PRESENT
    assert net.caller().ask("mmi.status").answer["body"]["clients"] == 2


@pytest.mark.parametrize("slept_s", [3.0, DEAD_AFTER_S + 5.0])
def test_after_standing_still_the_next_request_is_served_whether_the_router_has_forgotten_us_or_not(
    slept_s: float,
) -> None:
    """A program that knows nothing of gevent sleeps between its calls: its next is not lost for that."""
    net = Net()
    caller, worker = net.caller(), net.worker()
    caller.is_stopped = True
    net.advance(slept_s)
    caller.is_stopped = False
    asked = caller.ask("svc")
    net.settle()
    worker.reply()
    assert asked.code == 200
    assert net.caller().ask("mmi.status").answer["body"]["clients"] == 2


def test_what_was_on_its_way_when_we_stood_still_is_answered_if_the_router_knows_us_still() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    waiting = caller.ask("svc", timeout_s=60.0)
    caller.is_stopped = True
    net.advance(5.0)
    caller.is_stopped = False
    late = caller.ask("svc")
    net.settle()
    for job in list(worker.jobs):
        worker.reply(job)
    assert (waiting.code, late.code) == (200, 200)


def test_what_was_on_its_way_when_we_were_forgotten_is_502_and_idempotent_calls_go_again() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    waiting = caller.ask("svc", timeout_s=60.0)
    again = caller.ask("svc", flags=IDEMPOTENT, timeout_s=60.0)
    caller.is_stopped = True
    net.advance(DEAD_AFTER_S + 5.0)
    caller.is_stopped = False
    net.settle()
    net.advance(0.1)
    assert waiting.code == 502
    for job in list(worker.jobs):
        worker.reply(job)
    assert again.code == 200


def test_a_connection_that_breaks_while_we_ask_whether_we_are_known_fails_what_was_on_its_way() -> None:
    net = Net()
    caller, _ = net.caller(), net.worker()
    waiting = caller.ask("svc", timeout_s=60.0)
    caller.machine.look_at_the_clock(net.now + 10.0)
    caller.machine.connection_lost(None, net.now)
    net.settle()
    assert waiting.code == 502


def test_while_we_ask_whether_we_are_known_everything_else_goes_on() -> None:
    """Windows are granted, calls cancelled, and a router that has died meanwhile is noticed."""
    net = Net()
    caller, worker = net.caller(), net.worker()
    stream = caller.ask("svc", flags=STREAM, window=1, timeout_s=60.0)
    other = caller.ask("svc", timeout_s=60.0)
    net.is_stopped = True
    caller.machine.grant(stream.pending, 8, net.now)
    caller.machine.look_at_the_clock(net.now + 5.0)
    assert caller.machine.is_resuming
    caller.machine.cancel(other.pending)
    net.is_stopped = False
    net.settle()
    assert [job.window for job in worker.jobs] == [9]
    assert net.router.counters["cancelled"] == 1
    assert not caller.machine.is_resuming
    net.is_stopped = True
    caller.machine.look_at_the_clock(net.now + 5.0)
    net.advance(DEAD_AFTER_S + 2.0)
    assert stream.code == 502


# --- anything at all ------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.lists(st.tuples(records, st.sampled_from([0.0, 0.0, 0.0, 0.7, 20.0])), max_size=25))
def test_nothing_a_router_sends_raises_or_is_a_fault(conversation: list[tuple[Any, float]]) -> None:
    now = 1000.0
    client = ClientProtocol(now)
    client.connection_made(None, now)
    welcome = Outbox([])
    welcome.add(mesh.WELCOME, payload=codec.dumps({"router": "r", "epoch": "e", "nonce": "n"}))
    welcome.seal(now)
    client.receive(None, b"", bytes(welcome.messages[0][1][0]), [], now)
    ends: dict[int, int] = {}
    for n, flags in enumerate((0, STREAM, ONE_WAY, IDEMPOTENT, STREAM | IDEMPOTENT)):
        client.submit(
            b"svc", b"{}", deadline=now + 30, flags=flags, window=1, now=now, on_reply=lambda *_: None
        )
        ends[n] = flags
    answered: list[int] = []
    for (_, *fields), seconds in conversation:
        outbox = Outbox([])
        outbox.add(*fields)
        outbox.seal(now)
        frame, *rest = (bytes(it) for it in outbox.messages[0][1])
        client.receive(None, b"", frame, rest, now)
        now += seconds
        client.tick(now)
        answered += [call.id for call, kind, *_ in client.replies if kind == FINAL]
        client.replies.clear()
    client.tick(now + 60.0)
    client.tick(now + 120.0)
    answered += [call.id for call, kind, *_ in client.replies if kind == FINAL]
    assert client.counters["faults"] == 0
    assert len(answered) == len(set(answered)) == sum(not flags & ONE_WAY for flags in ends.values())
    assert not client.calls


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_random_frames_never_raise(frames: list[bytes]) -> None:
    client = ClientProtocol(0.0)
    client.connection_made(None, 0.0)
    for first in (frames[0], mesh.pack_header(0) + frames[0]):
        client.receive(None, b"", first, frames[1:], 0.0)
    client.tick(20.0)
    assert client.counters["faults"] == 0
