"""The three machines together: whatever happens, every call ends once and nothing is left behind."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from butler_mesh.protocol.limits import ABSENT_GRACE_S
from butler_mesh.protocol.member import Phase
from butler_mesh.protocol.mesh import ATTACH_OVER, IDEMPOTENT, ONE_WAY, STREAM
from butler_mesh.protocol.peers import ClientPeer, InstancePeer
from tests.protocol.net import Asked, Caller, Net, Party, Worker, all_is_over

LONGEST_S = 20.0

picks = st.integers(0, 1_000)
services = st.sampled_from(["a", "b"])
targets = st.sampled_from(["a", "a", "b", "/p/x", "typo"])
flag_sets = st.sampled_from([0, 0, IDEMPOTENT, ONE_WAY, STREAM, STREAM | IDEMPOTENT, ONE_WAY | IDEMPOTENT])


class Mesh(RuleBasedStateMachine):
    """Two clients, a few instances that come and go, one router that may be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(queue_limit=5, forget_service_s=0.0)
        self.callers = [self.net.caller(), self.net.caller()]
        self.workers = [self.net.worker("a", credit=1), self.net.worker("b", paths=["/p"], credit=2)]
        # Who asked, whether it is one-way, whether it was given up.
        self.asked: list[tuple[Caller, Asked, bool]] = []
        self.cancelled: set[int] = set()

    def party(self, pick: int) -> Party:
        parties: list[Party] = [*self.callers, *self.workers]
        return parties[pick % len(parties)]

    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.jobs and not worker.is_stopped]

    # --- what happens -------------------------------------------------------------------------

    @rule(pick=picks, to=targets, flags=flag_sets, timeout_s=st.sampled_from([0.3, 2.0, LONGEST_S]))
    def submit(self, pick: int, to: str, flags: int, timeout_s: float) -> None:
        caller = self.callers[pick % len(self.callers)]
        envelope = b"x" * (ATTACH_OVER + 1) if pick % 10 == 0 else b"{}"
        asked = caller.ask(to, envelope, timeout_s=timeout_s, flags=flags, window=2)
        self.asked.append((caller, asked, bool(flags & ONE_WAY)))

    @precondition(lambda self: self.busy())
    @rule(pick=picks, code=st.sampled_from([200, 404, 500]))
    def reply(self, pick: int, code: int) -> None:
        workers = self.busy()
        worker = workers[pick % len(workers)]
        worker.reply(worker.jobs[pick % len(worker.jobs)], code)

    @precondition(lambda self: self.busy())
    @rule(pick=picks)
    def partial(self, pick: int) -> None:
        workers = self.busy()
        worker = workers[pick % len(workers)]
        job = worker.jobs[pick % len(worker.jobs)]
        if job.window > 0 or not job.flags & STREAM:
            worker.reply(job, 200, b"part", final=False)

    @precondition(lambda self: self.asked)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        caller, asked, _ = self.asked[pick % len(self.asked)]
        if not asked.finals:
            self.cancelled.add(id(asked))
        caller.cancel(asked)

    @precondition(lambda self: self.asked)
    @rule(pick=picks)
    def grant(self, pick: int) -> None:
        caller, asked, _ = self.asked[pick % len(self.asked)]
        caller.grant(asked, 1)

    @rule(service=services, credit=st.integers(1, 3), pick=picks)
    def start_worker(self, service: str, credit: int, pick: int) -> None:
        if len(self.workers) < 5:
            paths = ["/p"] if service == "b" else []
            self.workers.append(
                self.net.worker(service, paths=paths, credit=credit, is_stubborn=pick % 2 == 0)
            )

    @precondition(lambda self: self.workers)
    @rule(pick=picks)
    def kill_worker(self, pick: int) -> None:
        worker = self.workers.pop(pick % len(self.workers))
        if worker.link is None:
            worker.is_stopped = True
        else:
            self.net.kill(worker)

    @precondition(lambda self: self.workers)
    @rule(pick=picks)
    def drain_worker(self, pick: int) -> None:
        worker = self.workers[pick % len(self.workers)]
        worker.machine.stop_intake()
        if not worker.intake.running:
            worker.machine.goodbye()
        self.net.settle()

    @rule(pick=picks)
    def drop_or_connect(self, pick: int) -> None:
        party = self.party(pick)
        if party.link is None:
            self.net.connect(party)
        else:
            self.net.drop(party)

    @rule(pick=picks)
    def stop_or_wake(self, pick: int) -> None:
        party = self.party(pick)
        party.is_stopped = not party.is_stopped
        self.net.settle()

    @rule(pick=picks, what=st.sampled_from(["is_held", "is_full_to_member", "is_full_to_router"]))
    def jam_or_clear(self, pick: int, what: str) -> None:
        link = self.party(pick).link
        if link is not None:
            setattr(link, what, not getattr(link, what))
            self.net.settle()

    @rule()
    def restart_router(self) -> None:
        self.net.start_router()
        self.net.settle()

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 4.0, 16.0]))
    def advance(self, seconds: float) -> None:
        self.net.advance(seconds)

    # --- what always holds --------------------------------------------------------------------

    @invariant()
    def no_call_ends_twice(self) -> None:
        for _, asked, is_one_way in self.asked:
            assert len(asked.finals) <= (1 if not is_one_way or asked.finals in ([503], [504]) else 0)

    @invariant()
    def no_instance_has_more_than_its_credit(self) -> None:
        for worker in self.workers:
            assert worker.intake.running <= worker.intake.limit
            assert worker.intake.running == len(worker.jobs)
        for peer in self.net.router.instances.values():
            assert peer.free + len(peer.calls) <= peer.credit

    @invariant()
    def the_router_keeps_only_what_somebody_waits_for(self) -> None:
        dispatcher = self.net.router.dispatcher
        peers = [peer for door in self.net.router.doors for peer in door.peers.values()]
        waiting = [call for peer in peers if isinstance(peer, ClientPeer) for call in peer.calls.values()]
        queued = [call for pool in dispatcher.pools.values() for call in pool.queue]
        running = [call for peer in peers if isinstance(peer, InstancePeer) for call in peer.calls.values()]
        alive = [call for call in queued + running if call.client is not None]
        assert len(set(alive)) == len(alive) == len(dispatcher.wheel)
        assert {call for call in alive if not call.flags & ONE_WAY} == set(waiting)
        for pool in dispatcher.pools.values():
            assert len(pool.queue) <= dispatcher.queue_limit + sum(call.token > 0 for call in pool.queue)
            in_rotation = {peer for peer in pool.instances if peer.in_rotation}
            assert set(pool.rotation) == in_rotation
            assert len(pool.rotation) == len(in_rotation)
            assert not (pool.rotation and len(pool.queue))

    @invariant()
    def nothing_is_a_fault(self) -> None:
        for party in self.net.parties:
            assert party.machine.counters["faults"] == 0, party.machine.notes

    # --- how it ends ----------------------------------------------------------------------------

    def teardown(self) -> None:
        net = self.net
        for link in net.links:
            link.is_held = link.is_full_to_member = link.is_full_to_router = False
        for party in [*self.callers, *self.workers]:
            party.is_stopped = False
        net.settle()
        for party in [*self.callers, *self.workers]:
            if party.link is None:
                net.connect(party)
        net.advance(LONGEST_S + 5.0)
        while busy := self.busy():
            busy[0].reply()
        for _, asked, is_one_way in self.asked:
            if not is_one_way and id(asked) not in self.cancelled:
                assert len(asked.finals) == 1
        all_is_over(net, self.callers, self.workers)
        for worker in self.workers:
            assert worker.machine.is_registered or worker.machine.phase is Phase.LEFT
            if worker.machine.is_registered and not worker.intake.is_closed:
                assert worker.peer.free == worker.intake.limit
        net.advance(ABSENT_GRACE_S + 1.0)
        known = {worker.machine.identity.service for worker in self.workers if worker.machine.is_registered}
        assert {name.decode() for name in net.router.dispatcher.pools} == known


TestMesh = pytest.mark.slow(Mesh.TestCase)
Mesh.TestCase.settings = settings(stateful_step_count=40, report_multiple_bugs=False)
