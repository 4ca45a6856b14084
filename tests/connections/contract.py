"""The contract: what every engine does, tested through the seam of ``connections/base.py`` alone.

A test file for an engine defines a fixture ``engine`` and derives a class from ``Contract``. Handlers and
callers are held at gates that the tests open, so that nothing here depends on how fast a machine is.
"""

from __future__ import annotations

import gc
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import gevent
import gevent.local
import pytest
from gevent.event import Event

from butler_mesh import codec, deadlines
from butler_mesh.calls import Waiter
from butler_mesh.clock import monotonic
from butler_mesh.connections.base import (
    ALL,
    MANAGEMENT,
    ClientConnection,
    Delivery,
    Handler,
    InstanceConnection,
)
from butler_mesh.errors import Closed, Stopped
from butler_mesh.protocol.mesh import (
    FINAL,
    IDEMPOTENT,
    MAX_BODY_BYTES,
    ONE_WAY,
    PARTIAL,
    RAW,
    STREAM,
    pack_raw,
    split_raw,
)
from butler_mesh.protocol.wheel import NEVER
from tests.waiting import wait_for

KIB, MIB = 1024, 1024 * 1024

PATIENCE_S = 10.0
"""Deadline of calls that are to be answered: a stalled machine must not fail a test."""


class Engine(ABC):
    """Both sides of an engine, opened on one router (or broker); ``close`` closes whatever was opened."""

    def __init__(self) -> None:
        self._opened: list[ClientConnection | InstanceConnection] = []

    @abstractmethod
    def open_client(self, **options: Any) -> ClientConnection: ...
    @abstractmethod
    def open_instance(self, service: str, **options: Any) -> InstanceConnection: ...
    @abstractmethod
    def set_grace(self, seconds: float) -> None:
        """How long an unknown service may be about to register; to be called before anything is opened."""

    @abstractmethod
    def vanish(self, instance: InstanceConnection) -> None:
        """Cut an instance's connection without a word, as when its process is killed."""

    def client(self, **options: Any) -> ClientConnection:
        """Open a client."""
        client = self.open_client(**options)
        self._opened.append(client)
        return client

    def instance(self, handler: Handler, service: str = "svc", **options: Any) -> InstanceConnection:
        """Open an instance and wait until it is registered."""
        instance = self.open_instance(service, **options)
        self._opened.append(instance)
        instance.serve(handler)
        assert instance.wait_until_registered(PATIENCE_S)
        return instance

    def close(self) -> None:
        """Close all clients, then all instances."""
        for kind in (ClientConnection, InstanceConnection):
            for one in self._opened:
                if isinstance(one, kind):
                    one.close(0.0)


class Reply(NamedTuple):
    """One PARTIAL or FINAL."""

    kind: int
    status: int
    flags: int
    envelope: bytes


class Call:
    """A call and the replies to it."""

    def __init__(
        self,
        client: ClientConnection,
        envelope: bytes = b"{}",
        *,
        to: str = "svc",
        within_s: float = PATIENCE_S,
        flags: int = 0,
        window: int = 0,
        scope: str = "",
    ) -> None:
        self.replies: list[Reply] = []
        self.handle = client.submit(
            to,
            envelope,
            deadline=monotonic() + within_s,
            flags=flags,
            on_reply=lambda *reply: self.replies.append(Reply(*reply)),
            window=window,
            scope=scope,
        )

    @property
    def is_over(self) -> bool:
        return bool(self.replies) and self.replies[-1].kind == FINAL

    @property
    def parts(self) -> list[bytes]:
        return [reply.envelope for reply in self.replies if reply.kind == PARTIAL]

    def final(self, timeout_s: float = PATIENCE_S + 5.0) -> Reply:
        """Wait for the last reply and return it."""
        wait_for(lambda: self.is_over, timeout_s)
        assert [reply.kind for reply in self.replies].count(FINAL) == 1
        return self.replies[-1]

    @property
    def status(self) -> int:
        """Wait for the last reply and return its status."""
        return self.final().status


class Gate:
    """A handler that waits until the test opens the gate, and remembers who came."""

    def __init__(self, reply: bytes = b"{}") -> None:
        self.arrived: list[Delivery] = []
        self.now = self.most = self.left = 0
        self.stopped: list[int] = []
        self._reply = reply
        self._opened = Event()

    def __call__(self, delivery: Delivery) -> None:
        self.arrived.append(delivery)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            self._opened.wait()
        except Stopped as stopped:
            self.stopped.append(stopped.status)
            raise
        finally:
            self.now -= 1
            self.left += 1
        delivery.reply(200, self._reply)

    def open(self) -> None:
        """Let everybody pass, now and later."""
        self._opened.set()


def echo(delivery: Delivery) -> None:
    """Answer a request with its envelope and the flags that describe it."""
    delivery.reply(200, delivery.envelope, flags=delivery.flags & RAW)


def nothing(delivery: Delivery) -> None:
    """End without a reply."""


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Let only reference counts free things."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Contract:
    """The suite. Where a test needs time to pass, it is the request's own deadline."""

    # --- envelopes ----------------------------------------------------------------------------

    def test_a_request_is_answered_with_status_and_envelope(self, engine: Engine) -> None:
        def handler(delivery: Delivery) -> None:
            assert (delivery.target, delivery.flags) == ("svc", 0)
            delivery.reply(201, b'{"body":"made of ' + delivery.envelope[2:5] + b'"}')

        engine.instance(handler)
        call = Call(engine.client(), b'{"abc":1}')
        assert call.final() == (FINAL, 201, 0, b'{"body":"made of abc"}')
        assert call.parts == []

    def test_a_raw_envelope_is_handed_on_and_back_as_such(self, engine: Engine) -> None:
        engine.instance(echo)
        envelope = pack_raw(b'{"path":"/"}', [b"\0\xff", b"", bytes(range(256))])
        reply = Call(engine.client(), envelope, flags=RAW).final()
        assert reply.flags & RAW
        assert split_raw(reply.envelope) == (b'{"path":"/"}', [b"\0\xff", b"", bytes(range(256))])

    @pytest.mark.parametrize(
        "size", [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 70 * KIB, 5 * MIB, 16 * MIB]
    )
    def test_an_envelope_of_any_size_arrives_unchanged(self, engine: Engine, size: int) -> None:
        engine.instance(echo)
        envelope = (bytes(range(251)) * (size // 251 + 1))[:size]
        reply = Call(engine.client(), envelope).final()
        assert reply.status == 200
        assert reply.envelope == envelope

    def test_large_and_small_envelopes_of_one_turn_do_not_mix(self, engine: Engine) -> None:
        engine.instance(echo)
        client = engine.client()
        sizes = [10, 70 * KIB, 20, 30, 300 * KIB, 64 * KIB, 100 * KIB, 40] * 4
        envelopes = [bytes([n]) * size for n, size in enumerate(sizes)]
        calls = [Call(client, envelope) for envelope in envelopes]
        assert [call.final().envelope for call in calls] == envelopes

    def test_an_envelope_over_the_maximum_is_refused_with_413(self, engine: Engine) -> None:
        engine.instance(echo)
        client = engine.client()
        assert Call(client).status == 200
        assert Call(client, bytes(MAX_BODY_BYTES + 1)).status == 413
        assert Call(client).status == 200

    def test_a_reply_over_the_maximum_is_a_500_and_harms_nobody_else(self, engine: Engine) -> None:
        gate = Gate()

        def handler(delivery: Delivery) -> None:
            if delivery.envelope == b"gate":
                gate(delivery)
            else:
                delivery.reply(200, bytes(MAX_BODY_BYTES + 1))

        engine.instance(handler)
        client = engine.client()
        bystander = Call(client, b"gate")
        assert Call(client, b"big").status == 500
        gate.open()
        assert bystander.status == 200

    def test_a_reply_of_the_largest_size_does_not_look_like_a_client_that_does_not_read(
        self, engine: Engine
    ) -> None:
        engine.instance(lambda delivery: delivery.reply(200, bytes(MAX_BODY_BYTES)))
        client = engine.client()
        calls = [Call(client) for _ in range(4)]
        assert [len(call.final().envelope) for call in calls] == [MAX_BODY_BYTES] * 4

    def test_a_burst_of_large_requests_and_replies_is_served(self, engine: Engine) -> None:
        engine.instance(echo)
        client = engine.client()
        envelopes = [bytes([n]) * MIB for n in range(24)]
        calls = [Call(client, envelope) for envelope in envelopes]
        assert {call.status for call in calls} == {200}
        assert [call.final().envelope for call in calls] == envelopes

    # --- many at once -------------------------------------------------------------------------

    def test_two_hundred_calls_at_once_each_get_their_own_reply(self, engine: Engine) -> None:
        engine.instance(echo)
        client = engine.client()
        calls = [Call(client, b'{"n":%d}' % n) for n in range(200)]
        assert [call.final().envelope for call in calls] == [b'{"n":%d}' % n for n in range(200)]

    def test_two_hundred_slow_calls_at_once_each_get_their_own_reply(self, engine: Engine) -> None:
        def handler(delivery: Delivery) -> None:
            gevent.sleep(0)  # gives way, so that handlers interleave
            delivery.reply(200, delivery.envelope)

        engine.instance(handler, credit=16)
        client = engine.client()
        calls = [Call(client, b'{"n":%d}' % n) for n in range(200)]
        assert [call.final().envelope for call in calls] == [b'{"n":%d}' % n for n in range(200)]

    def test_requests_of_one_client_begin_in_the_order_they_were_sent(self, engine: Engine) -> None:
        seen: list[bytes] = []

        def handler(delivery: Delivery) -> None:
            seen.append(delivery.envelope)
            delivery.reply(200, b"{}")

        engine.instance(handler, credit=1)
        client = engine.client()
        calls = [Call(client, b"%d" % n) for n in range(100)]
        assert {call.status for call in calls} == {200}
        assert seen == [b"%d" % n for n in range(100)]

    def test_clients_do_not_get_each_others_replies(self, engine: Engine) -> None:
        engine.instance(echo)
        clients = [engine.client() for _ in range(5)]
        calls = [(n, Call(client, b"%d" % n)) for n, client in enumerate(clients) for _ in range(20)]
        assert all(call.final().envelope == b"%d" % n for n, call in calls)

    # --- who answers --------------------------------------------------------------------------

    def test_a_path_reaches_the_owner_of_its_longest_prefix(self, engine: Engine) -> None:
        engine.instance(lambda d: d.reply(200, b"images"), "images", paths=["/images"])
        engine.instance(lambda d: d.reply(200, b"thumbs"), "thumbs", paths=["/images/thumbs"])
        client = engine.client()
        paths = {"/images": b"images", "/images/a.jpg": b"images", "/images/thumbs/a.jpg": b"thumbs"}
        assert {path: Call(client, to=path).final().envelope for path in paths} == paths

    def test_an_instance_without_a_name_answers_its_paths(self, engine: Engine) -> None:
        engine.instance(echo, "", paths=["/echo"])
        assert Call(engine.client(), b"hello", to="/echo/x").final().envelope == b"hello"

    def test_an_unknown_service_is_a_404(self, engine: Engine) -> None:
        engine.set_grace(0.0)
        reply = Call(engine.client(), to="nobody").final()
        assert reply.status == 404
        assert "nobody" in codec.loads(reply.envelope)["message"]

    @pytest.mark.slow
    def test_an_unknown_service_is_a_404_only_after_the_grace(self, engine: Engine) -> None:
        engine.set_grace(0.3)
        engine.instance(echo)
        client = engine.client()
        early = Call(client, to="nobody", within_s=0.5)
        # Nobody came while it waited; the grace is over by now.
        assert early.status in (503, 504)
        assert Call(client, to="nobody").status == 404
        assert Call(client).status == 200

    @pytest.mark.parametrize("to", ["svc", "/path/below"])
    def test_a_service_that_registers_late_answers_those_who_came_before(
        self, engine: Engine, to: str
    ) -> None:
        engine.set_grace(PATIENCE_S)
        client = engine.client()
        early = [Call(client, b"%d" % n, to=to) for n in range(10)]
        engine.instance(echo, "other")
        assert Call(client, to="other").status == 200  # by now the early ones have arrived, too
        assert not any(call.replies for call in early)
        engine.instance(echo, paths=["/path"])
        assert [call.final().envelope for call in early] == [b"%d" % n for n in range(10)]

    def test_a_service_whose_last_instance_left_is_waited_for(self, engine: Engine) -> None:
        engine.set_grace(0.0)
        client = engine.client()
        engine.instance(echo).close(PATIENCE_S)
        call = Call(client, b"again")
        engine.instance(echo)
        assert call.final().envelope == b"again"

    def test_two_instances_share_the_load(self, engine: Engine) -> None:
        one, other = Gate(), Gate()
        engine.instance(one, credit=4)
        engine.instance(other, credit=4)
        client = engine.client()
        calls = [Call(client) for _ in range(8)]
        wait_for(lambda: one.now + other.now == 8)
        assert (one.now, other.now) == (4, 4)
        one.open()
        other.open()
        assert {call.status for call in calls} == {200}
        for _ in range(10):
            assert Call(client).status == 200
        assert len(one.arrived) == len(other.arrived) == 9

    # --- commands, for one instance or for all ------------------------------------------------

    @staticmethod
    def _named(engine: Engine, service: str = "svc", **options: Any) -> InstanceConnection:
        """Register an instance that answers with its wid, and the command with whether it is one."""
        instance = engine.open_instance(service, **options)
        engine._opened.append(instance)

        def handler(delivery: Delivery) -> None:
            assert delivery.target.startswith(MANAGEMENT)
            delivery.reply(200, delivery.envelope + instance.wid.encode())

        instance.serve(handler)
        assert instance.wait_until_registered(PATIENCE_S)
        return instance

    def test_a_command_reaches_every_instance_of_the_service(self, engine: Engine) -> None:
        instances = [self._named(engine) for _ in range(3)]
        self._named(engine, "other")
        call = Call(engine.client(), b"hello ", scope=ALL, within_s=1.5)
        wait_for(lambda: len(call.parts) == 3)
        assert sorted(call.parts) == sorted(b"hello " + one.wid.encode() for one in instances)
        assert call.final()[:3] == (FINAL, 200, 0)
        assert len(call.parts) == 3

    def test_a_command_reaches_one_instance_by_its_wid(self, engine: Engine) -> None:
        instances = [self._named(engine) for _ in range(3)]
        client = engine.client()
        for instance in instances:
            call = Call(client, b"", scope=instance.wid)
            assert (call.final().envelope, call.parts) == (instance.wid.encode(), [])

    @pytest.mark.parametrize("scope", [ALL, "svc-nowhere-0123456789"])
    def test_a_command_for_nobody_is_a_404(self, engine: Engine, scope: str) -> None:
        engine.set_grace(0.0)
        assert Call(engine.client(), to="nobody", scope=scope).status == 404

    def test_a_command_reaches_an_instance_whose_credit_is_used_up(self, engine: Engine) -> None:
        gate = Gate()

        def handler(delivery: Delivery) -> None:
            if delivery.target.startswith(MANAGEMENT):
                delivery.reply(200, b"at once")
            else:
                gate(delivery)

        instance = engine.instance(handler, credit=1)
        client = engine.client()
        calls = [Call(client) for _ in range(3)]
        wait_for(lambda: gate.now == 1)
        assert Call(client, scope=instance.wid).final().envelope == b"at once"
        everybody = Call(client, scope=ALL, within_s=1.5)
        wait_for(lambda: everybody.parts == [b"at once"])
        assert gate.now == 1
        gate.open()
        assert {call.status for call in calls} == {200}
        assert gate.most == 1

    def test_a_command_reaches_an_instance_that_takes_no_more(self, engine: Engine) -> None:
        gate = Gate()

        def handler(delivery: Delivery) -> None:
            if delivery.target.startswith(MANAGEMENT):
                delivery.reply(200, b"still here")
            else:
                gate(delivery)

        instance = engine.instance(handler)
        client = engine.client()
        call = Call(client)
        wait_for(lambda: gate.now == 1)
        instance.stop_intake()
        assert Call(client, scope=instance.wid).final().envelope == b"still here"
        gate.open()
        assert call.status == 200

    def test_credit_is_whole_after_many_commands(self, engine: Engine) -> None:
        gate = Gate()

        def handler(delivery: Delivery) -> None:
            if delivery.target.startswith(MANAGEMENT):
                delivery.reply(200, b"")
            else:
                gate(delivery)

        instance = engine.instance(handler, credit=2)
        client = engine.client()
        for _ in range(3):
            commands = [Call(client, scope=instance.wid) for _ in range(5)]
            assert {call.status for call in commands} == {200}
        calls = [Call(client) for _ in range(6)]
        wait_for(lambda: gate.now == 2)
        gate.open()
        assert {call.status for call in calls} == {200}
        assert gate.most == 2

    def test_a_command_that_is_not_answered_ends_at_its_deadline(self, engine: Engine) -> None:
        instance = engine.instance(Gate())
        client = engine.client()
        one = Call(client, scope=instance.wid, within_s=0.2)
        everybody = Call(client, scope=ALL, within_s=0.2)
        assert (one.status, everybody.status, everybody.parts) == (504, 504, [])

    def test_those_who_answer_are_heard_though_others_do_not(self, engine: Engine) -> None:
        silent = Gate()
        engine.instance(silent)
        named = self._named(engine)
        call = Call(engine.client(), b"", scope=ALL, within_s=1.0)
        assert call.status == 200
        assert call.parts == [named.wid.encode()]
        wait_for(lambda: len(silent.stopped) == 1)

    def test_a_command_that_is_cancelled_is_not_heard_of_again(self, engine: Engine) -> None:
        gates = [Gate(), Gate()]
        for gate in gates:
            engine.instance(gate)
        client = engine.client()
        call = Call(client, scope=ALL)
        wait_for(lambda: [gate.now for gate in gates] == [1, 1])
        client.cancel(call.handle)
        wait_for(lambda: [gate.stopped for gate in gates] == [[499], [499]])
        assert call.replies == []

    def test_a_command_that_fails_is_one_of_the_answers(self, engine: Engine) -> None:
        instance = engine.instance(nothing)
        client = engine.client()
        call = Call(client, scope=ALL, within_s=1.0)
        assert call.status == 200
        assert [reply.status for reply in call.replies] == [500, 200]
        assert Call(client, scope=instance.wid).status == 500

    # --- credit -------------------------------------------------------------------------------

    @pytest.mark.parametrize("credit", [1, 3])
    def test_no_more_requests_run_at_once_than_credit_allows(self, engine: Engine, credit: int) -> None:
        gate = Gate()
        engine.instance(gate, credit=credit)
        engine.instance(echo, "other")
        client = engine.client()
        calls = [Call(client) for _ in range(12)]
        wait_for(lambda: gate.now == credit)
        assert Call(client, to="other").status == 200
        assert gate.now == credit
        gate.open()
        assert {call.status for call in calls} == {200}
        assert gate.most == credit

    def test_credit_comes_back_however_a_handler_ends(self, engine: Engine) -> None:
        def handler(delivery: Delivery) -> None:
            if delivery.envelope == b"raise":
                raise RuntimeError
            if delivery.envelope == b"wait":
                gevent.sleep(PATIENCE_S)
            if delivery.envelope != b"nothing":
                delivery.reply(200, b"{}")

        engine.instance(handler, credit=1)
        client = engine.client()
        for _ in range(3):
            assert Call(client, b"raise").status == 500
            assert Call(client, b"nothing").status == 500
            assert Call(client, b"wait", within_s=0.03).status == 504
            Call(client, flags=ONE_WAY)
            client.cancel(Call(client, b"wait").handle)
            assert Call(client).status == 200

    # --- deadlines ----------------------------------------------------------------------------

    def test_a_deadline_is_504_at_the_caller_and_stops_the_handler(self, engine: Engine) -> None:
        gate = Gate()
        engine.instance(gate)
        client = engine.client()
        begun = monotonic()
        call = Call(client, within_s=0.1)
        assert call.status == 504
        assert monotonic() - begun >= 0.095  # the wire counts in milliseconds
        wait_for(lambda: gate.stopped == [504] or gate.stopped == [499])
        assert gate.left == 1
        assert Call(client, to="svc", within_s=0.05).status == 504  # its place is free again

    def test_a_request_that_expires_while_it_waits_never_reaches_a_handler(self, engine: Engine) -> None:
        gate = Gate()
        engine.instance(gate, credit=1)
        client = engine.client()
        first = Call(client)
        wait_for(lambda: gate.now == 1)
        assert Call(client, b"late", within_s=0.05).status == 504
        gate.open()
        assert first.status == 200
        assert Call(client).status == 200
        assert b"late" not in [delivery.envelope for delivery in gate.arrived]

    def test_an_expired_request_is_not_sent(self, engine: Engine) -> None:
        gate = Gate()
        engine.instance(gate)
        client = engine.client()
        assert Call(client, within_s=-1.0).status == 504
        gate.open()
        assert Call(client).status == 200
        assert len(gate.arrived) == 1

    def test_a_handler_knows_its_deadline(self, engine: Engine) -> None:
        seen: list[tuple[float, float]] = []

        def handler(delivery: Delivery) -> None:
            seen.append((deadlines.current.get(), delivery.deadline))
            delivery.reply(200, b"{}")

        engine.instance(handler)
        begun = monotonic()
        assert Call(engine.client(), within_s=7.0).status == 200
        ((current, own),) = seen
        assert current == own
        assert begun + 6.0 < current <= monotonic() + 7.0
        assert deadlines.current.get() == NEVER

    def test_a_late_reply_reaches_nobody(self, engine: Engine) -> None:
        let_go = Event()

        def handler(delivery: Delivery) -> None:
            if delivery.envelope == b"deaf":
                with suppress(BaseException):
                    let_go.wait()
                let_go.wait()
            delivery.reply(200, delivery.envelope)

        engine.instance(handler)
        client = engine.client()
        late = Call(client, b"deaf", within_s=0.05)
        assert late.status == 504
        let_go.set()
        assert [Call(client, b"%d" % n).final().envelope for n in range(10)] == [b"%d" % n for n in range(10)]
        assert len(late.replies) == 1

    @pytest.mark.slow
    def test_a_busy_caller_does_not_shorten_the_deadline_of_its_calls(self, engine: Engine) -> None:
        engine.instance(echo)
        client = engine.client()
        assert Call(client).status == 200
        first = Call(client)
        _burn(0.3)
        # Written in one turn with the first: its time runs from now, not from then.
        second = Call(client, within_s=0.2)
        assert (first.status, second.status) == (200, 200)

    @pytest.mark.slow
    def test_a_caller_that_was_woken_and_then_busy_has_its_deadline_in_full(self, engine: Engine) -> None:
        engine.instance(echo)
        client = engine.client()
        statuses: list[int] = []

        def call() -> None:
            for _ in range(2):
                waiter = Waiter()
                handle = client.submit("svc", b"", deadline=monotonic() + 0.2, flags=0, on_reply=waiter)
                statuses.append(waiter.wait(client, handle)[0])
                _burn(0.3)  # in the turn that brought the reply

        wait_for(lambda: Call(client).is_over or client)
        gevent.spawn(call).join()
        assert statuses == [200, 200]

    # --- giving up ----------------------------------------------------------------------------

    def test_cancel_stops_the_handler_and_nothing_more_is_heard(self, engine: Engine) -> None:
        gate = Gate()
        engine.instance(gate)
        client = engine.client()
        call = Call(client)
        wait_for(lambda: gate.now)
        client.cancel(call.handle)
        client.cancel(call.handle)
        wait_for(lambda: gate.left)
        assert gate.stopped == [499]
        gate.open()
        assert Call(client).status == 200
        assert not call.replies

    def test_a_request_cancelled_while_it_waits_never_reaches_a_handler(self, engine: Engine) -> None:
        gate = Gate()
        engine.instance(gate, credit=1)
        client = engine.client()
        first = Call(client)
        wait_for(lambda: gate.now)
        client.cancel(Call(client, b"cancelled").handle)
        gate.open()
        assert first.status == 200
        assert Call(client).status == 200
        assert len(gate.arrived) == 2

    def test_cancel_in_the_turn_of_the_request_is_well(self, engine: Engine) -> None:
        engine.instance(echo)
        client = engine.client()
        cancelled = Call(client)
        client.cancel(cancelled.handle)
        assert Call(client).status == 200
        assert not cancelled.replies

    def test_cancel_after_the_reply_does_nothing(self, engine: Engine) -> None:
        engine.instance(echo)
        client = engine.client()
        call = Call(client)
        assert call.status == 200
        client.cancel(call.handle)
        assert Call(client).status == 200

    def test_a_caller_that_is_killed_stops_the_handler(self, engine: Engine) -> None:
        gate = Gate()
        engine.instance(gate)
        client = engine.client()

        def call() -> None:
            waiter = Waiter()
            deadline = monotonic() + PATIENCE_S
            waiter.wait(client, client.submit("svc", b"", deadline=deadline, flags=0, on_reply=waiter))

        caller = gevent.spawn(call)
        wait_for(lambda: gate.now)
        caller.kill()
        wait_for(lambda: gate.stopped == [499])

    def test_a_client_that_closes_stops_its_handlers_and_answers_its_callers(self, engine: Engine) -> None:
        gate = Gate()
        engine.instance(gate)
        client, other = engine.client(), engine.client()
        call, others = Call(client), Call(other)
        wait_for(lambda: gate.now == 2)
        client.close(PATIENCE_S)
        assert call.status == 499
        wait_for(lambda: gate.stopped == [499])
        gate.open()
        assert others.status == 200

    def test_closing_a_client_that_never_reached_anybody_answers_its_callers(self, engine: Engine) -> None:
        client = engine.client()
        call = Call(client)
        client.close(0.0)
        assert call.final(1.0).status == 499

    # --- one-way ------------------------------------------------------------------------------

    def test_a_one_way_request_is_served_and_never_answered(self, engine: Engine) -> None:
        gate = Gate()
        engine.instance(gate)
        client = engine.client()
        call = Call(client, b"one way", flags=ONE_WAY)
        wait_for(lambda: gate.now)
        assert gate.arrived[0].flags & ONE_WAY
        gate.open()
        assert Call(client).status == 200
        assert not call.replies
        assert client.close(PATIENCE_S) == []

    def test_close_sends_one_way_requests_that_were_just_submitted(self, engine: Engine) -> None:
        gate = Gate()
        gate.open()
        engine.instance(gate)
        client = engine.client()  # not even greeted yet
        for n in range(100):
            Call(client, b"%d" % n, flags=ONE_WAY)
        assert client.close(PATIENCE_S) == []
        wait_for(lambda: gate.left == 100)
        assert [delivery.envelope for delivery in gate.arrived] == [b"%d" % n for n in range(100)]

    def test_close_reports_one_way_requests_that_were_refused(self, engine: Engine) -> None:
        engine.set_grace(0.0)
        engine.instance(echo)
        client = engine.client()
        Call(client, to="nobody", flags=ONE_WAY)
        Call(client, flags=ONE_WAY)
        Call(client, bytes(MAX_BODY_BYTES + 1), flags=ONE_WAY)
        refused = client.close(PATIENCE_S)
        assert sorted(status for status, _ in refused) == [404, 413]
        assert any("nobody" in message for _, message in refused)

    # --- streams ------------------------------------------------------------------------------

    def test_a_stream_arrives_in_order_and_ends_with_its_outcome(self, engine: Engine) -> None:
        def handler(delivery: Delivery) -> None:
            assert delivery.flags & STREAM
            for n in range(20):
                delivery.wait_for_window()
                delivery.reply(200, b"%d" % n, final=False)
            delivery.reply(207, b"done")

        engine.instance(handler)
        call = Call(engine.client(), flags=STREAM, window=100)
        assert call.final() == (FINAL, 207, 0, b"done")
        assert call.parts == [b"%d" % n for n in range(20)]

    def test_large_parts_of_a_stream_arrive_in_order(self, engine: Engine) -> None:
        sizes = [10, 70 * KIB, 20, 300 * KIB, 30] * 3

        def handler(delivery: Delivery) -> None:
            for n, size in enumerate(sizes):
                delivery.reply(200, bytes([n]) * size, final=False)
            delivery.reply(200, b"")

        engine.instance(handler)
        call = Call(engine.client(), flags=STREAM, window=100)
        assert call.status == 200
        assert call.parts == [bytes([n]) * size for n, size in enumerate(sizes)]

    def test_a_stream_is_never_more_than_the_window_ahead_of_its_reader(self, engine: Engine) -> None:
        sent = 0

        def handler(delivery: Delivery) -> None:
            nonlocal sent
            if not delivery.flags & STREAM:
                delivery.reply(200, b"")
                return
            for n in range(30):
                delivery.wait_for_window()
                delivery.reply(200, b"%d" % n, final=False)
                sent += 1
            delivery.reply(200, b"")

        engine.instance(handler)
        client = engine.client()
        call = Call(client, flags=STREAM, window=4)
        granted = 4
        for more in (1, 2, 3, 20):
            wait_for(lambda: len(call.parts) == granted)  # noqa: B023 (used at once)
            # Whatever the handler could have sent by itself would come before these answers.
            assert Call(client).status == 200
            assert Call(client).status == 200
            assert sent == len(call.parts) == granted
            client.grant(call.handle, more)
            granted += more
        assert call.status == 200
        assert call.parts == [b"%d" % n for n in range(30)]

    def test_a_stream_whose_reader_gives_up_stops_at_its_window(self, engine: Engine) -> None:
        stopped: list[int] = []

        def handler(delivery: Delivery) -> None:
            try:
                while True:
                    delivery.wait_for_window()
                    delivery.reply(200, b"part", final=False)
            except Stopped as error:
                stopped.append(error.status)
                raise

        engine.instance(handler)
        client = engine.client()
        call = Call(client, flags=STREAM, window=2)
        wait_for(lambda: len(call.parts) == 2)
        client.cancel(call.handle)
        wait_for(lambda: stopped == [499])

    @pytest.mark.slow
    def test_a_streams_deadline_runs_between_parts(self, engine: Engine) -> None:
        def handler(delivery: Delivery) -> None:
            for _ in range(5):
                gevent.sleep(0.2)
                delivery.reply(200, b"part", final=False)
            delivery.reply(200, b"")

        engine.instance(handler)
        call = Call(engine.client(), flags=STREAM, window=10, within_s=0.6)
        assert call.status == 200
        assert len(call.parts) == 5

    def test_a_stream_that_says_nothing_is_504(self, engine: Engine) -> None:
        gate = Gate()
        engine.instance(gate)
        assert Call(engine.client(), flags=STREAM, window=10, within_s=0.1).status == 504
        wait_for(lambda: gate.left == 1)

    def test_a_part_of_what_is_no_stream_is_500(self, engine: Engine) -> None:
        def handler(delivery: Delivery) -> None:
            delivery.reply(200, b"part", final=False)
            gevent.sleep(0)
            delivery.reply(200, b"")

        engine.instance(handler)
        client = engine.client()
        call = Call(client)
        assert call.status == 500
        assert not call.parts
        assert Call(client).status == 500

    def test_a_handler_that_fails_amid_a_stream_ends_it(self, engine: Engine) -> None:
        def handler(delivery: Delivery) -> None:
            delivery.reply(200, b"part", final=False)
            raise RuntimeError("half-way")

        engine.instance(handler)
        call = Call(engine.client(), flags=STREAM, window=10)
        assert call.status == 500
        assert call.parts == [b"part"]

    # --- handlers that misbehave --------------------------------------------------------------

    @pytest.mark.parametrize(
        "error",
        [RuntimeError("why"), SystemExit(3), KeyboardInterrupt(), gevent.GreenletExit(), StopIteration()],
    )
    @pytest.mark.parametrize("gives_way", [False, True])
    def test_whatever_a_handler_raises_is_500(
        self, engine: Engine, error: BaseException, gives_way: bool
    ) -> None:
        def handler(delivery: Delivery) -> None:
            if delivery.envelope == b"good":
                delivery.reply(200, b"")
            else:
                if gives_way:
                    gevent.sleep(0)
                raise error

        engine.instance(handler)
        client = engine.client()
        reply = Call(client).final()
        assert reply.status == 500
        assert type(error).__name__ in codec.loads(reply.envelope)["message"]
        assert Call(client, b"good").status == 200

    def test_a_handler_that_calls_sys_exit_ends_only_itself(self, engine: Engine) -> None:
        engine.instance(lambda delivery: sys.exit("now"))
        client = engine.client()
        assert [Call(client).status for _ in range(3)] == [500, 500, 500]

    def test_a_handler_that_kills_itself_is_500(self, engine: Engine) -> None:
        def handler(delivery: Delivery) -> None:
            gevent.kill(gevent.getcurrent())
            gevent.sleep(PATIENCE_S)

        engine.instance(handler)
        assert Call(engine.client()).status == 500

    def test_a_handler_that_returns_without_a_reply_is_500(self, engine: Engine) -> None:
        engine.instance(nothing)
        reply = Call(engine.client()).final()
        assert reply.status == 500
        assert "no reply" in codec.loads(reply.envelope)["message"]

    def test_only_the_first_final_reply_counts(self, engine: Engine) -> None:
        def handler(delivery: Delivery) -> None:
            delivery.reply(200, b"first")
            delivery.reply(200, b"second")
            delivery.reply(200, b"part", final=False)
            raise RuntimeError

        engine.instance(handler)
        client = engine.client()
        calls = [Call(client) for _ in range(10)]
        assert [call.final().envelope for call in calls] == [b"first"] * 10
        assert Call(client).final().envelope == b"first"
        assert [len(call.replies) for call in calls] == [1] * 10

    def test_a_handler_may_reply_from_another_greenlet(self, engine: Engine) -> None:
        def handler(delivery: Delivery) -> None:
            gevent.spawn(delivery.reply, 200, b"from elsewhere").join()

        engine.instance(handler)
        assert Call(engine.client()).final().envelope == b"from elsewhere"

    def test_a_handlers_own_timeout_is_its_own(self, engine: Engine) -> None:
        def handler(delivery: Delivery) -> None:
            with gevent.Timeout(0.01, False):
                gevent.sleep(PATIENCE_S)
            delivery.reply(200, b"in time")

        engine.instance(handler)
        assert Call(engine.client()).final().envelope == b"in time"

    def test_a_callback_that_raises_costs_nobody_else_a_reply(
        self, engine: Engine, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(kind: int, status: int, flags: int, envelope: bytes) -> None:
            raise RuntimeError("in the callback")

        engine.instance(echo)
        client = engine.client()
        assert Call(client).status == 200
        client.submit("svc", b"", deadline=monotonic() + PATIENCE_S, flags=0, on_reply=fail)
        assert [Call(client).status for _ in range(3)] == [200, 200, 200]
        assert "in the callback" in caplog.text
        caplog.clear()

    # --- nothing of one request clings to the next --------------------------------------------

    def test_each_request_has_a_context_of_its_own(self, engine: Engine) -> None:
        variable: ContextVar[str] = ContextVar("variable", default="untouched")
        seen: list[str] = []

        def handler(delivery: Delivery) -> None:
            seen.append(variable.get())
            variable.set("touched")
            gevent.sleep(0)
            assert variable.get() == "touched"
            delivery.reply(200, b"")

        engine.instance(handler)
        client = engine.client()
        assert [Call(client).status for _ in range(5)] == [200] * 5
        assert {call.status for call in [Call(client) for _ in range(20)]} == {200}
        assert seen == ["untouched"] * 25
        assert variable.get() == "untouched"

    def test_a_greenlet_local_of_one_request_is_not_seen_by_the_next(self, engine: Engine) -> None:
        local = gevent.local.local()
        seen: list[object] = []

        def handler(delivery: Delivery) -> None:
            seen.append(getattr(local, "user", None))
            local.user = "somebody"
            delivery.reply(200, b"")

        engine.instance(handler)
        client = engine.client()
        assert [Call(client).status for _ in range(5)] == [200] * 5
        assert seen == [None] * 5

    def test_a_request_that_is_over_holds_no_memory(self, engine: Engine) -> None:
        deliveries: list[weakref.ref[Delivery]] = []

        def handler(delivery: Delivery) -> None:
            deliveries.append(weakref.ref(delivery))
            if delivery.envelope == b"wait":
                gevent.sleep(0)
            delivery.reply(200, b"")

        engine.instance(handler)
        client = engine.client()
        with no_garbage_collection():
            for envelope in (b"wait", b"", b"wait", b""):
                assert Call(client, envelope).status == 200
            wait_for(lambda: [ref() for ref in deliveries[:-1]] == [None] * 3)

    # --- the end ------------------------------------------------------------------------------

    def test_an_instance_that_closes_finishes_its_work_and_gets_no_more(self, engine: Engine) -> None:
        gate = Gate(b"from the first")
        first = engine.instance(gate)
        client = engine.client()
        calls = [Call(client) for _ in range(5)]
        wait_for(lambda: gate.now == 5)
        engine.instance(lambda delivery: delivery.reply(200, b"from the second"))
        closing = gevent.spawn(first.close, PATIENCE_S)
        gevent.sleep(0)
        later = [Call(client).final().envelope for _ in range(5)]
        # The first requests may meet the news that no more are wanted: they are returned, and go elsewhere.
        assert later == [b"from the second"] * 5
        assert gate.now == 5
        assert not closing.ready()
        gate.open()
        assert [call.final().envelope for call in calls] == [b"from the first"] * 5
        closing.get(timeout=PATIENCE_S)

    def test_an_instance_whose_grace_is_over_stops_its_handlers_with_502(self, engine: Engine) -> None:
        gate = Gate()
        instance = engine.instance(gate)
        client = engine.client()
        calls = [Call(client) for _ in range(3)]
        wait_for(lambda: gate.now == 3)
        with gevent.Timeout(PATIENCE_S):
            instance.close(0.05)
        assert gate.stopped == [502] * 3
        assert [call.status for call in calls] == [502] * 3

    def test_stop_intake_leaves_running_handlers_alone(self, engine: Engine) -> None:
        gate = Gate()
        instance = engine.instance(gate)
        client = engine.client()
        running = Call(client)
        wait_for(lambda: gate.now)
        instance.stop_intake()
        queued = Call(client, within_s=0.2)
        assert queued.status in (503, 504)
        gate.open()
        assert running.status == 200
        assert len(gate.arrived) == 1

    def test_the_requests_of_an_instance_that_vanishes_are_502_or_go_elsewhere(self, engine: Engine) -> None:
        gate = Gate()
        instance = engine.instance(gate)
        client = engine.client()
        plain, idempotent = Call(client), Call(client, flags=IDEMPOTENT)
        wait_for(lambda: gate.now == 2)
        engine.instance(echo, credit=1)
        engine.vanish(instance)
        assert (plain.status, idempotent.status) == (502, 200)
        gate.open()

    def test_close_may_be_called_twice(self, engine: Engine) -> None:
        engine.set_grace(0.0)
        instance, client = engine.instance(echo), engine.client()
        assert Call(client).status == 200
        Call(client, to="nobody", flags=ONE_WAY)
        refused = client.close(PATIENCE_S)
        assert client.close(PATIENCE_S) == refused
        instance.close(PATIENCE_S)
        instance.close(PATIENCE_S)
        with pytest.raises(Closed):
            Call(client)

    def test_sides_that_were_never_used_close_at_once(self, engine: Engine) -> None:
        instance = engine.open_instance("svc")
        client = engine.open_client()
        with gevent.Timeout(2.0):
            client.close(PATIENCE_S)
            instance.close(PATIENCE_S)


def _burn(seconds: float) -> None:
    """Compute, as a handler or caller may that does not give way."""
    until = monotonic() + seconds
    while monotonic() < until:
        pass
