"""The instance's machine: registration, jobs by token, and credit that is never overdrawn."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh import codec
from butler_mesh.errors import UsageError
from butler_mesh.protocol import mesh
from butler_mesh.protocol.instance import CREDIT, Identity, InstanceProtocol, Intake, Sign
from butler_mesh.protocol.member import GREET_AGAIN_S, Phase
from butler_mesh.protocol.mesh import (
    ATTACH_OVER,
    FINAL,
    IDEMPOTENT,
    PARTIAL,
    RETURN,
    STREAM,
    UNBOUNDED_WINDOW,
)
from butler_mesh.protocol.outbox import Outbox
from butler_mesh.protocol.wheel import NEVER
from tests.protocol.net import Net, Worker, all_is_over, request
from tests.protocol.strange import records


class Alone:
    """An instance whose router is the test."""

    def __init__(self, now: float = 1000.0, *, credit: int = CREDIT, **identity: Any) -> None:
        self.now = now
        self.intake = Intake(credit)
        self.machine = InstanceProtocol(now, Identity("svc-1", "svc", **identity), self.intake, "e" * 32)

    def connect(self) -> dict[str, Any]:
        """Connect and welcome it; return its READY."""
        self.machine.connection_made(None, self.now)
        self.sent()
        self.tell(mesh.WELCOME, payload=codec.dumps({"router": "r", "epoch": "e", "nonce": "n"}))
        (ready,) = self.sent(mesh.READY)
        return mesh.split_object(ready.payload)

    def register(self) -> dict[str, Any]:
        ready = self.connect()
        self.tell(mesh.READY, payload=b"{}")
        return ready

    def tell(
        self, kind: int, flags: int = 0, id_: int = 0, remaining_ms: int = 0, payload: bytes = b""
    ) -> None:
        outbox = Outbox([])
        outbox.add(kind, flags, id_, remaining_ms, payload)
        outbox.seal(self.now)
        self.machine.receive(None, b"", bytes(outbox.messages[0][1][0]), [], self.now)

    def ask(
        self, token: int, *, flags: int = 0, remaining_ms: int = 30_000, window: int | None = None
    ) -> None:
        self.tell(mesh.REQUEST, flags, token, remaining_ms, request("svc", b"{}", window))

    def sent(self, kind: int | None = None) -> list[mesh.Record]:
        """Return the records it sent since last asked, of one kind or of all."""
        outbox = self.machine.outbox
        outbox.seal(self.now)
        records: list[mesh.Record] = []
        for _, (frame, *rest) in list(outbox.messages):
            records += mesh.parse(bytes(frame), rest)[1]
        outbox.drop()
        return [record for record in records if kind is None or record.kind == kind]

    def arrived(self) -> list[Any]:
        jobs = [job for sign, job in self.machine.signs if sign is Sign.ARRIVED]
        self.machine.signs.clear()
        return jobs


# --- registration -------------------------------------------------------------------------------------


def test_READY_says_who_it_is_and_how_much_it_takes() -> None:
    ready = Alone(paths=("/a",), host="h", pid=7, version="1").connect()
    assert ready == {
        "wid": "svc-1",
        "epoch": "e" * 32 + "-1",
        "service": "svc",
        "paths": ["/a"],
        "credit": CREDIT,
        "host": "h",
        "pid": 7,
        "version": "1",
    }


def test_an_instance_counts_as_registered_only_when_the_router_has_confirmed_it() -> None:
    alone = Alone()
    alone.connect()
    assert not alone.machine.is_registered
    alone.ask(1)
    assert alone.machine.counters["dropped.unregistered"] == 1
    alone.tell(mesh.READY)
    assert alone.machine.is_registered


def test_a_READY_of_the_router_without_a_WELCOME_registers_nobody() -> None:
    alone = Alone()
    alone.machine.connection_made(None, alone.now)
    alone.tell(mesh.READY)
    assert not alone.machine.is_registered


def test_each_registration_has_an_epoch_of_its_own() -> None:
    alone = Alone()
    epochs = []
    for _ in range(3):
        epochs.append(alone.register()["epoch"])
        alone.machine.connection_lost(None, alone.now)
    assert len(set(epochs)) == 3
    assert min(map(len, epochs)) >= 32


def test_a_refused_instance_is_not_registered_and_asks_again_each_second() -> None:
    net = Net()
    owner = net.worker("owner", paths=["/a"])
    worker = net.worker("thief", paths=["/a"])
    assert not worker.machine.is_registered
    assert any("path /a belongs to another service" in note for note in worker.machine.notes)
    net.kill(owner)
    net.advance(2 * GREET_AGAIN_S)
    assert worker.machine.is_registered


def test_losing_the_router_ends_the_registration_and_reconnecting_makes_a_new_one() -> None:
    net = Net()
    worker = net.worker()
    net.drop(worker)
    assert not worker.machine.is_registered
    net.connect(worker)
    assert worker.machine.is_registered
    assert worker.peer.epoch == worker.machine.epoch


def test_an_instance_registers_with_a_restarted_router() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    net.start_router()
    net.connect(worker)
    net.connect(caller)
    asked = caller.ask("svc")
    worker.reply()
    assert asked.code == 200


# --- jobs ---------------------------------------------------------------------------------------------


def test_a_job_has_all_that_its_handler_needs() -> None:
    alone = Alone()
    alone.register()
    alone.tell(mesh.REQUEST, IDEMPOTENT | STREAM, 5, 1500, request("svc", b'{"a":1}', 3))
    (job,) = alone.arrived()
    assert (job.token, job.flags, job.target, job.envelope) == (5, IDEMPOTENT | STREAM, b"svc", b'{"a":1}')
    assert (job.window, job.deadline) == (3, alone.now + 1.5)
    assert alone.intake.running == 1


def test_no_remaining_time_is_no_deadline() -> None:
    alone = Alone()
    alone.register()
    alone.ask(5, flags=STREAM, remaining_ms=0, window=1)
    (job,) = alone.arrived()
    assert job.deadline == NEVER
    assert len(alone.machine._wheel) == 0


def test_a_job_that_lay_in_a_pipe_past_its_deadline_arrives_expired() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    assert worker.link is not None
    worker.link.is_held = True
    asked = caller.ask("svc", timeout_s=1.0)
    net.advance(0.9)
    worker.link.is_held = False
    net.settle()
    assert worker.jobs[0].deadline == pytest.approx(net.now + 0.1, abs=0.003)
    worker.reply()
    assert asked.code == 200
    worker.link.is_held = True
    late = caller.ask("svc", timeout_s=1.0)
    net.advance(2.0)
    worker.link.is_held = False
    net.settle()
    assert len(worker.seen) == 1
    assert late.code == 504
    all_is_over(net, [caller], [worker])


def test_a_job_whose_deadline_passes_is_signed_expired_once() -> None:
    alone = Alone()
    alone.register()
    alone.ask(5, remaining_ms=1000)
    (job,) = alone.arrived()
    alone.machine.tick(alone.now + 0.99)
    assert not alone.machine.signs
    for late in (1.02, 5.0):
        alone.machine.tick(alone.now + late)
    assert alone.machine.signs == [(Sign.EXPIRED, job)]


def test_the_end_of_a_job_takes_its_deadline_off() -> None:
    alone = Alone()
    alone.register()
    alone.ask(5, remaining_ms=1000)
    (job,) = alone.arrived()
    alone.machine.reply(job, 200, b"{}", alone.now)
    alone.machine.tick(alone.now + 5.0)
    assert not alone.machine.signs
    assert alone.machine.next_due() <= alone.now + 6.0


def test_CANCEL_is_signed_for_the_job_it_names_and_for_no_other() -> None:
    alone = Alone()
    alone.register()
    alone.ask(5)
    (job,) = alone.arrived()
    alone.tell(mesh.CANCEL, 0, 6)
    assert not alone.machine.signs
    alone.tell(mesh.CANCEL, 0, 5)
    assert alone.machine.signs == [(Sign.CANCELLED, job)]
    assert alone.intake.running == 1


def test_a_malformed_REQUEST_is_dropped_and_counted() -> None:
    alone = Alone()
    alone.register()
    alone.tell(mesh.REQUEST, 0, 5, 1000, b"\x09\x00svc")
    assert alone.arrived() == []
    assert alone.machine.counters["dropped.malformed_record"] == 1
    assert alone.intake.running == 0


# --- replies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, ATTACH_OVER, ATTACH_OVER + 1])
def test_a_reply_carries_status_flags_and_envelope(size: int) -> None:
    alone = Alone()
    alone.register()
    alone.ask(5)
    (job,) = alone.arrived()
    alone.machine.reply(job, 207, b"x" * size, alone.now, flags=mesh.RAW)
    (record,) = alone.sent(FINAL)
    envelope = record.payload[2:] if record.envelope is None else bytes(record.envelope)
    assert (record.id, mesh.split_status(record.payload), envelope) == (5, 207, b"x" * size)
    assert record.flags & ~mesh.ATTACHED == mesh.RAW
    assert (record.envelope is not None) == (size > ATTACH_OVER)


def test_a_reply_over_the_routers_maximum_is_refused_here_and_another_may_be_given() -> None:
    net = Net(max_body_bytes=1000)
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc")
    job = worker.jobs[0]
    with pytest.raises(UsageError, match="1001 bytes"):
        worker.machine.reply(job, 200, b"x" * 1001, net.now)
    worker.reply(job, 500)
    assert asked.code == 500


def test_a_job_has_one_FINAL_and_nothing_after_it() -> None:
    alone = Alone()
    alone.register()
    alone.ask(5, flags=STREAM, window=9)
    (job,) = alone.arrived()
    for final in (True, True, False):
        alone.machine.reply(job, 200, b"{}", alone.now, final=final)
    assert [record.kind for record in alone.sent()] == [FINAL]
    assert alone.machine.counters["dropped.second_final"] == 2
    assert alone.intake.running == 0


def test_a_reply_for_an_earlier_registration_is_dropped_and_frees_the_place() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=1)
    lost = caller.ask("svc")
    net.drop(worker)
    net.connect(worker)
    worker.reply()
    assert lost.code == 502
    assert worker.machine.counters["dropped.stale_reply"] == 1
    assert net.router.counters["dropped.unknown_token"] == 0
    asked = caller.ask("svc")
    worker.reply()
    assert asked.code == 200
    all_is_over(net, [caller], [worker])


def test_a_token_that_the_new_router_uses_too_is_not_confused_with_the_old_job() -> None:
    alone = Alone()
    alone.register()
    alone.ask(5)
    (old,) = alone.arrived()
    alone.machine.connection_lost(None, alone.now)
    alone.register()
    alone.ask(5)
    (new,) = alone.arrived()
    alone.machine.reply(old, 200, b"old", alone.now)
    assert alone.sent(FINAL) == []
    alone.machine.reply(new, 200, b"new", alone.now)
    assert [record.payload[2:] for record in alone.sent(FINAL)] == [b"new"]


# --- credit --------------------------------------------------------------------------------------------


def test_a_request_over_the_limit_is_RETURNed_and_its_credit_comes_when_there_is_room() -> None:
    alone = Alone(credit=1)
    alone.register()
    for token in (1, 2):
        alone.ask(token)
    (job,) = alone.arrived()
    assert [(record.kind, record.id) for record in alone.sent()] == [(RETURN, 2)]
    alone.machine.reply(job, 200, b"{}", alone.now)
    sent = alone.sent()
    assert [record.kind for record in sent] == [FINAL, mesh.CREDIT]
    assert mesh.split_credit(sent[1].payload) == 1


def test_the_limit_holds_over_all_routers_together() -> None:
    nets = [Net(), Net()]
    intake = Intake(3)
    workers = [Worker(net, intake=intake) for net in nets]
    callers = [net.caller() for net in nets]
    for net, worker in zip(nets, workers, strict=True):
        net.connect(worker)
    calls = [[caller.ask("svc") for _ in range(3)] for caller in callers]
    assert [len(worker.jobs) for worker in workers] == [3, 0]
    assert intake.running == 3
    for _ in range(6):
        busy = next(worker for worker in workers if worker.jobs)
        busy.reply()
        for net in nets:
            net.settle()
        assert intake.running <= 3
    assert [call.code for call in calls[0] + calls[1]] == [200] * 6
    for net, caller, worker in zip(nets, callers, workers, strict=True):
        all_is_over(net, [caller], [worker])


def test_READY_announces_the_credit_less_what_still_runs_and_CREDIT_brings_the_rest() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=3)
    for _ in range(2):
        caller.ask("svc")
    net.drop(worker)
    net.connect(worker)
    assert (worker.peer.credit, worker.peer.free) == (1, 1)
    for free in (2, 3):
        worker.reply()
        assert worker.peer.free == free
    calls = [caller.ask("svc") for _ in range(4)]
    assert len(worker.jobs) == 3
    while worker.jobs:
        worker.reply()
    assert [call.code for call in calls] == [200] * 4
    assert worker.peer.free == 3
    assert worker.machine.counters["returned"] == 0


def test_jobs_that_end_do_not_bring_credit_for_those_of_an_earlier_registration() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=3)
    for _ in range(2):
        caller.ask("svc")
    net.drop(worker)
    net.connect(worker)
    old = worker.jobs[:]
    for _ in range(5):
        caller.ask("svc")
        worker.reply(next(job for job in worker.jobs if job not in old))
        assert worker.peer.free == 1
    assert worker.machine.counters["returned"] == 0
    for job in old:
        worker.reply(job)
    assert worker.peer.free == 3


def test_a_handler_that_ended_between_READY_and_its_receipt_gives_its_credit_all_the_same() -> None:
    alone = Alone(credit=1)
    alone.register()
    alone.ask(1)
    (job,) = alone.arrived()
    alone.machine.connection_lost(None, alone.now)
    assert alone.connect()["credit"] == 0
    alone.machine.reply(job, 200, b"{}", alone.now)
    assert alone.sent() == []
    alone.tell(mesh.READY)
    assert [mesh.split_credit(record.payload) for record in alone.sent(mesh.CREDIT)] == [1]


def test_an_instance_that_takes_no_more_RETURNs_what_is_on_its_way_and_finishes_what_it_has() -> None:
    net = Net()
    caller, worker, other = net.caller(), net.worker(credit=2), net.worker(credit=2)
    assert worker.link is not None
    worker.link.is_held = True
    first = caller.ask("svc")
    worker.link.is_held = False
    net.settle()
    caller.ask("svc")
    worker.link.is_held = True
    on_its_way = caller.ask("svc")
    worker.machine.stop_intake()
    worker.link.is_held = False
    net.settle()
    assert (len(worker.jobs), len(other.jobs)) == (1, 2)
    assert worker.machine.counters["returned"] == 1
    worker.reply()
    assert first.code == 200
    caller.ask("svc")
    assert not worker.jobs
    other.reply()
    other.reply()
    assert on_its_way.code == 200


def test_an_instance_that_takes_no_more_registers_without_credit() -> None:
    alone = Alone()
    alone.machine.stop_intake()
    assert alone.register()["credit"] == 0
    alone.intake.running += 1
    alone.intake.release()
    assert alone.sent(mesh.CREDIT) == []


def test_draining_ends_with_a_GOODBYE_whose_receipt_says_that_the_last_reply_has_arrived() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc")
    worker.machine.stop_intake()
    worker.reply(settle=False)
    worker.machine.goodbye()
    net.settle()
    assert worker.machine.phase is Phase.LEFT
    assert asked.code == 200
    assert not net.router.instances


def test_leaving_answers_what_still_runs_with_502_and_lets_the_idempotent_go_to_another() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    lost, again = caller.ask("svc"), caller.ask("svc", flags=IDEMPOTENT)
    jobs = worker.jobs[:]
    worker.machine.goodbye()
    net.settle()
    assert (lost.code, again.code) == (502, None)
    for job in jobs:
        worker.reply(job)
    assert worker.intake.running == 0
    assert net.router.counters["refused.no_hello"] == 0
    heir = net.worker()
    heir.reply()
    assert again.code == 200
    all_is_over(net, [caller], [worker, heir])


def test_no_request_is_lost_on_its_way_to_an_instance_that_leaves() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    assert worker.link is not None
    worker.link.is_held = True
    asked = caller.ask("svc")
    worker.machine.stop_intake()
    worker.machine.goodbye()
    worker.link.is_held = False
    net.settle()
    assert worker.machine.phase is Phase.LEFT
    assert not worker.seen
    heir = net.worker()
    heir.reply()
    assert asked.code == 200


# --- streams ------------------------------------------------------------------------------------------


def test_each_part_takes_one_off_the_window_and_WINDOW_adds() -> None:
    alone = Alone()
    alone.register()
    alone.ask(5, flags=STREAM, window=2)
    (job,) = alone.arrived()
    for left in (1, 0):
        alone.machine.reply(job, 200, b"{}", alone.now, final=False)
        assert job.window == left
    assert [record.kind for record in alone.sent()] == [PARTIAL, PARTIAL]
    alone.tell(mesh.WINDOW, 0, 5, 0, mesh.pack_window(7))
    assert job.window == 7
    assert alone.machine.signs == [(Sign.WINDOW, job)]


@pytest.mark.parametrize("start", [1, UNBOUNDED_WINDOW - 1])
def test_windows_that_add_up_beyond_all_bounds_do_not_become_the_unbounded_one(start: int) -> None:
    alone = Alone()
    alone.register()
    alone.ask(5, flags=STREAM, window=start)
    (job,) = alone.arrived()
    alone.tell(mesh.WINDOW, 0, 5, 0, mesh.pack_window(UNBOUNDED_WINDOW))
    assert job.window == UNBOUNDED_WINDOW - 1


@pytest.mark.parametrize("payload", [b"", b"123", b"12345"])
def test_a_WINDOW_of_the_wrong_size_is_dropped_and_counted(payload: bytes) -> None:
    alone = Alone()
    alone.register()
    alone.ask(5, flags=STREAM, window=1)
    (job,) = alone.arrived()
    alone.tell(mesh.WINDOW, 0, 5, 0, payload)
    assert job.window == 1
    assert alone.machine.counters["dropped.malformed_record"] == 1


def test_parts_and_windows_renew_a_streams_deadline() -> None:
    alone = Alone()
    alone.register()
    alone.ask(5, flags=STREAM, window=9, remaining_ms=1000)
    (job,) = alone.arrived()
    for n in range(6):
        alone.now += 0.8
        alone.machine.tick(alone.now)
        if n % 2:
            alone.machine.reply(job, 200, b"{}", alone.now, final=False)
        else:
            alone.tell(mesh.WINDOW, 0, 5, 0, mesh.pack_window(1))
    assert Sign.EXPIRED not in [sign for sign, _ in alone.machine.signs]
    alone.machine.tick(alone.now + 1.1)
    assert alone.machine.signs[-1] == (Sign.EXPIRED, job)


def test_a_stream_whose_router_is_lost_is_cancelled_for_its_window_would_never_open() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=2)
    caller.ask("svc", flags=STREAM, window=1, timeout_s=NEVER)
    caller.ask("svc")
    net.drop(worker)
    assert [(sign, job.flags) for sign, job in worker.signs[2:]] == [(Sign.CANCELLED, STREAM)]
    assert worker.intake.running == 1
    worker.reply()
    assert worker.intake.running == 0


# --- anything at all ------------------------------------------------------------------------------------


@pytest.mark.slow
@given(
    st.integers(0, 2),
    st.lists(
        st.tuples(records | st.sampled_from(["reply", "part"]), st.sampled_from([0.0, 0.0, 0.7, 20.0])),
        max_size=25,
    ),
)
def test_nothing_a_router_sends_raises_or_is_a_fault(credit: int, conversation: list[Any]) -> None:
    alone = Alone(credit=credit, secret="s")
    alone.register()
    jobs: list[Any] = []
    for line, seconds in conversation:
        if line == "reply" and jobs:
            alone.machine.reply(jobs.pop(0), 200, b"{}", alone.now)
        elif line == "part" and jobs:
            alone.machine.reply(jobs[0], 200, b"{}", alone.now, final=False)
        elif isinstance(line, tuple):
            outbox = Outbox([])
            outbox.add(*line[1:])
            outbox.seal(alone.now)
            frame, *rest = (bytes(it) for it in outbox.messages[0][1])
            alone.machine.receive(None, b"", frame, rest, alone.now)
        jobs += alone.arrived()
        assert len(jobs) == alone.intake.running <= credit
        alone.now += seconds
        alone.machine.tick(alone.now)
        alone.sent()
    for job in jobs:
        alone.machine.reply(job, 200, b"{}", alone.now)
    assert alone.machine.counters["faults"] == 0
    assert not alone.machine.jobs
    assert len(alone.machine._wheel) == 0
    assert alone.intake.running == 0


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_random_frames_never_raise(frames: list[bytes]) -> None:
    alone = Alone()
    alone.register()
    for first in (frames[0], mesh.pack_header(0) + frames[0]):
        alone.machine.receive(None, b"", first, frames[1:], alone.now)
    alone.machine.tick(alone.now + 20.0)
    assert alone.machine.counters["faults"] == 0
