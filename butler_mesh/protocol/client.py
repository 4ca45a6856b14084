"""The client's machine: calls by id, their deadlines, and what becomes of them when the router goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from butler_mesh import status
from butler_mesh.protocol import mesh
from butler_mesh.protocol.member import Member, Phase
from butler_mesh.protocol.mesh import ATTACH_OVER, FINAL, IDEMPOTENT, ONE_WAY, PARTIAL, STREAM, Record
from butler_mesh.protocol.outbox import MAX_OUTBOX_BYTES
from butler_mesh.protocol.wheel import NEVER, Wheel

LATE_S = 0.5
"""How late a heartbeat of ours may be before we ask whether we are known still: a router that is set to be as
impatient as it can be gives a client up after two."""
CONNECT_TIMEOUT_S = 3.0
"""How long a call that no router has seen waits for one: a restart fits in, a typo is told soon."""
ONE_WAY_BIT = 1 << 62
"""Set in the ids of one-way requests, so that a refusal is told from a late reply."""

OnReply = Callable[[int, int, int, bytes], None]
"""Called with (kind PARTIAL or FINAL, status, flags, envelope)."""


class Pending:
    """One call that has not had its last reply."""

    __slots__ = (
        "deadline",
        "envelope",
        "flags",
        "id",
        "on_reply",
        "owner",
        "parts",
        "patience_s",
        "payload",
        "slot",
        "tries",
        "was_sent",
    )

    def __init__(
        self,
        id_: int,
        flags: int,
        payload: bytes,
        envelope: bytes | None,
        deadline: float,
        on_reply: OnReply,
        owner: ClientProtocol,
    ) -> None:
        # The machine that has it: with several routers a call may move before it is sent.
        self.owner = owner
        self.id = id_
        self.flags = flags
        self.payload = payload
        self.envelope = envelope
        self.deadline = deadline
        # None once nobody wants to hear more.
        self.on_reply: OnReply | None = on_reply
        self.slot: set[Pending] | None = None
        self.was_sent = False
        self.tries = 0
        self.parts = 0
        self.patience_s = 0.0


class ClientProtocol(Member):
    """Submit calls; ``replies`` fills with what is to be told to whom."""

    role = "client"

    def __init__(self, now: float, *, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        super().__init__(now)
        self.calls: dict[int, Pending] = {}
        # (call, kind, status, flags, envelope), for the connection to hand out when the turn's input
        # is read. A call that was cancelled meanwhile has no ``on_reply`` left.
        self.replies: list[tuple[Pending, int, int, int, bytes]] = []
        # One-way requests that were refused, latest last: what ``close`` reports.
        self.refusals: deque[tuple[int, str]] = deque(maxlen=100)
        self._connect_timeout_s = connect_timeout_s
        self._last_id = 0
        self._wheel: Wheel[Pending] = Wheel()
        self.acts[mesh.FINAL] = self._final
        self.acts[mesh.PARTIAL] = self._partial

    def submit(
        self,
        target: bytes,
        envelope: bytes,
        *,
        deadline: float,
        flags: int,
        on_reply: OnReply,
        now: float,
        window: int = 0,
    ) -> Pending:
        """Send a request, or keep it until there is a router. Failures come as replies, like all else."""
        if now > self._beat_at:
            self.look_at_the_clock(now)
        self._last_id += 1
        id_ = self._last_id | ONE_WAY_BIT if flags & ONE_WAY else self._last_id
        head = mesh.pack_target(target[: mesh.MAX_TARGET_BYTES], window if flags & STREAM else None)
        if len(envelope) > ATTACH_OVER:
            call = Pending(id_, flags, head, envelope, deadline, on_reply, self)
        else:
            call = Pending(id_, flags, head + envelope, None, deadline, on_reply, self)
        if len(target) > mesh.MAX_TARGET_BYTES:
            self._answer(call, status.BAD_REQUEST, f"the target is over {mesh.MAX_TARGET_BYTES} bytes")
        elif self.phase is Phase.PRESENT and len(envelope) > self.max_body_bytes:
            self._answer(call, status.TOO_LARGE, f"the body is over {self.max_body_bytes} bytes")
        elif deadline <= now:
            self._answer(call, status.DEADLINE_PASSED, "deadline passed before the request was sent")
        elif self.outbox.pending_bytes > MAX_OUTBOX_BYTES:
            self._answer(call, status.UNAVAILABLE, "too much waits to be sent")
        else:
            self.calls[id_] = call
            if flags & STREAM and deadline != NEVER:
                call.patience_s = deadline - now
            if self.phase is Phase.PRESENT and not self.is_resuming:
                if deadline != NEVER:
                    call.slot = self._wheel.add(call, deadline)
                self._send(call, now)
            else:
                call.slot = self._wheel.add(call, min(deadline, now + self._connect_timeout_s))
        return call

    def cancel(self, call: Pending) -> None:
        """Give a call up; nothing more is heard of it, and its handler is stopped."""
        call.on_reply = None
        if self._settle(call) and call.was_sent and self.phase is Phase.PRESENT:
            self.outbox.add(mesh.CANCEL, 0, call.id)

    def grant(self, call: Pending, parts: int, now: float) -> None:
        """Let a stream's sender send so many parts more."""
        if call.id in self.calls and call.was_sent and self.phase is Phase.PRESENT:
            self._renew(call, now)
            self.outbox.add(mesh.WINDOW, 0, call.id, 0, mesh.pack_window(parts))

    def release_unsent(self) -> list[Pending]:
        """Let go of the calls that no router has seen, for another machine to adopt."""
        unsent = [call for call in self.calls.values() if not call.was_sent]
        for call in unsent:
            self._settle(call)
        return unsent

    def adopt(self, call: Pending, now: float) -> None:
        """Send a call that was another machine's; only in phase PRESENT."""
        self._last_id += 1
        call.owner = self
        call.id = self._last_id | (call.id & ONE_WAY_BIT)
        self.calls[call.id] = call
        if call.deadline != NEVER:
            call.slot = self._wheel.add(call, call.deadline)
        if call.deadline > now:
            self._send(call, now)

    def tick(self, now: float, *, drained: bool = True) -> None:
        super().tick(now, drained=drained)
        for call in self._wheel.pop_due(now):
            if call.id not in self.calls:
                continue
            if call.deadline > now:
                self._settle(call)
                self._answer(call, status.UNAVAILABLE, "no router can be reached")
                continue
            self._settle(call)
            if call.was_sent and self.phase is Phase.PRESENT:
                self.outbox.add(mesh.CANCEL, 0, call.id)
            self._answer(call, status.DEADLINE_PASSED, "deadline passed")

    def look_at_the_clock(self, now: float) -> None:
        # Programs that know nothing of gevent sleep between their calls; we did not beat meanwhile.
        if self.phase is Phase.PRESENT and not self.is_resuming and now - self._beat_at > LATE_S:
            self.is_resuming = True
            self._say_hello(now)

    def run(self, now: float) -> None:
        """Nothing is left to do when the input is read: replies were noted as they came."""

    def next_due(self) -> float:
        return min(super().next_due(), self._wheel.next_due())

    def fail(self, code: int, message: str, *, one_way: bool = False) -> None:
        """Answer every call that somebody waits for, since the client closes; or else those one-way
        requests that could not be sent."""
        for call in list(self.calls.values()):
            if bool(call.flags & ONE_WAY) is one_way:
                if call.was_sent and self.phase is Phase.PRESENT:
                    self.outbox.add(mesh.CANCEL, 0, call.id)
                self._settle(call)
                self._answer(call, code, message)

    def on_welcome(self, now: float) -> None:
        for call in list(self.calls.values()):
            # One whose time passed while this process stood still is left to the tick.
            if not call.was_sent and call.deadline > now:
                if call.slot is not None:
                    self._wheel.remove(call, call.slot)
                    call.slot = None
                if call.deadline != NEVER:
                    call.slot = self._wheel.add(call, call.deadline)
                self._send(call, now)

    def on_unsent(self, ids: set[int]) -> None:
        for id_ in ids:
            call = self.calls.get(id_)
            if call is not None:
                call.was_sent = False
                call.tries -= 1
            elif id_ & ONE_WAY_BIT:
                self.counters.add("refused.one_way")
                self.refusals.append((status.UNAVAILABLE, "the router was lost before it was sent"))

    def on_absence(self, now: float, reason: str) -> None:
        for call in list(self.calls.values()):
            if not call.was_sent or (call.flags & IDEMPOTENT and call.tries < 2 and not call.parts):
                call.was_sent = False
                if call.slot is not None:
                    self._wheel.remove(call, call.slot)
                call.slot = self._wheel.add(call, min(call.deadline, now + self._connect_timeout_s))
            else:
                self._settle(call)
                self._answer(call, status.INSTANCE_LOST, f"the router was lost: {reason}")

    def _send(self, call: Pending, now: float) -> None:
        if call.envelope is not None and len(call.envelope) > self.max_body_bytes:
            # It waited for a router, and only one that has welcomed us has told what it takes. It would cut
            # the connection, and every other call with it.
            self._settle(call)
            self._answer(call, status.TOO_LARGE, f"the body is over {self.max_body_bytes} bytes")
            return
        left = 0 if call.deadline == NEVER else mesh.remaining_ms(call.deadline, now)
        call.was_sent = True
        call.tries += 1
        self.outbox.add(mesh.REQUEST, call.flags, call.id, left, call.payload, call.envelope)
        if call.flags & ONE_WAY:
            self._settle(call)

    def _final(self, record: Record, sent_at: float, now: float) -> None:
        _, flags, id_, _, payload, attached = record
        code = mesh.split_status(payload)
        envelope = payload[2:] if attached is None else bytes(attached)
        call = self.calls.pop(id_, None)
        if call is not None:
            if call.slot is not None:
                call.slot.discard(call)
            self.replies.append((call, FINAL, code, flags, envelope))
        elif id_ & ONE_WAY_BIT:
            self.counters.add("refused.one_way")
            self.refusals.append((code, envelope[:200].decode("utf-8", "replace")))
        else:
            self.counters.add("dropped.late_reply")

    def _partial(self, record: Record, sent_at: float, now: float) -> None:
        _, flags, id_, _, payload, attached = record
        code = mesh.split_status(payload)
        call = self.calls.get(id_)
        if call is None or not call.flags & STREAM:
            self.counters.add("dropped.late_reply")
            return
        call.parts += 1
        self._renew(call, now)
        envelope = payload[2:] if attached is None else bytes(attached)
        self.replies.append((call, PARTIAL, code, flags, envelope))

    def _answer(self, call: Pending, code: int, message: str) -> None:
        if call.flags & ONE_WAY:
            self.counters.add("refused.one_way")
            self.refusals.append((code, message))
        retry_after_s = 1.0 if code == status.UNAVAILABLE else None
        envelope = mesh.pack_failure(code, message, retry_after_s)[2:]
        self.replies.append((call, FINAL, code, 0, envelope))

    def _renew(self, call: Pending, now: float) -> None:
        if call.slot is not None and call.patience_s:
            self._wheel.remove(call, call.slot)
            call.deadline = now + call.patience_s
            call.slot = self._wheel.add(call, call.deadline)

    def _settle(self, call: Pending) -> bool:
        """Take a call off the tables; False when it was off already."""
        if call.slot is not None:
            self._wheel.remove(call, call.slot)
            call.slot = None
        return self.calls.pop(call.id, None) is not None
