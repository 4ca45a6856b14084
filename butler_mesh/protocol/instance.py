"""The instance's machine: registration, jobs by token, and credit that is never overdrawn."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from butler_mesh import codec, status
from butler_mesh.errors import UsageError
from butler_mesh.protocol import mesh
from butler_mesh.protocol.member import Member, Phase
from butler_mesh.protocol.mesh import ATTACH_OVER, FINAL, IDEMPOTENT, PARTIAL, RETURN, STREAM, Record
from butler_mesh.protocol.wheel import NEVER, Wheel
from butler_mesh.signing import ready_fields, sign

CREDIT = 64
"""Requests an instance takes at once: enough that 64 callers are never slowed by it."""


class Sign(enum.Enum):
    """What has happened to a job, for whoever runs it."""

    ARRIVED = "arrived"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    WINDOW = "window"


class Job:
    """One request that this instance has accepted and owes a FINAL."""

    __slots__ = (
        "deadline",
        "envelope",
        "flags",
        "is_over",
        "machine",
        "patience_s",
        "runner",
        "session",
        "slot",
        "target",
        "token",
        "window",
    )

    def __init__(
        self,
        machine: InstanceProtocol,
        token: int,
        flags: int,
        deadline: float,
        target: bytes,
        envelope: bytes,
        window: int,
        session: int,
    ) -> None:
        self.machine = machine
        self.token = token
        self.flags = flags
        self.deadline = deadline
        self.target = target
        self.envelope = envelope
        # Parts that a stream's reader still takes; the handler waits at zero.
        self.window = window
        # The registration it came by: a reply made for an earlier one is dropped here.
        self.session = session
        self.slot: set[Job] | None = None
        self.patience_s = 0.0
        # Set by the one FINAL (or RETURN).
        self.is_over = False
        # Whatever executes it; the machine only carries it.
        self.runner: Any = None


@dataclass(slots=True)
class Intake:
    """How many requests an instance takes at once, over all its routers together."""

    limit: int = CREDIT
    running: int = 0
    is_closed: bool = False
    machines: list[InstanceProtocol] = field(default_factory=list)

    def release(self) -> None:
        """A handler has ended: routers that were told to wait may send one more."""
        self.running -= 1
        for machine in self.machines:
            if machine.owed > 0:
                machine.top_up()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who an instance is: what its READY says, but for the epoch, which is new each time."""

    wid: str
    service: str
    paths: Sequence[str] = ()
    host: str = ""
    pid: int = 0
    version: str = ""
    secret: str | bytes | None = field(default=None, repr=False)


class InstanceProtocol(Member):
    """One router's view of an instance; several share an ``Intake``."""

    role = "instance"

    def __init__(self, now: float, identity: Identity, intake: Intake, epoch: str) -> None:
        super().__init__(now)
        self.identity = identity
        self.intake = intake
        intake.machines.append(self)
        # 128 random bits, known to router and instance alone: the control connection shows them.
        # Each registration appends its number, so that no two are the same.
        self._epoch = epoch
        self.session = 0
        self.is_registered = False
        self.jobs: dict[int, Job] = {}
        # What happened to which job, in order, for the connection to act on.
        self.signs: list[tuple[Sign, Job]] = []
        self._wheel: Wheel[Job] = Wheel()
        # Credit the router does not have although it was announced or would have been: RETURNed
        # requests, and handlers of an earlier registration that still ran at READY.
        self.owed = 0
        self.acts[mesh.READY] = self._ready
        self.acts[mesh.REQUEST] = self._request
        self.acts[mesh.CANCEL] = self._cancel
        self.acts[mesh.WINDOW] = self._window

    @property
    def epoch(self) -> str:
        """The epoch of the present registration."""
        return f"{self._epoch}-{self.session}"

    def reply(
        self, job: Job, code: int, envelope: bytes, now: float, *, flags: int = 0, final: bool = True
    ) -> None:
        """Send a PARTIAL, or the one FINAL of a job; after that, or another registration, nothing."""
        if job.is_over:
            self.counters.add("dropped.second_final")
            return
        if len(envelope) > self.max_body_bytes:
            # The router would cut the connection, and every other call with it.
            raise UsageError(f"a reply of {len(envelope)} bytes is over the maximum of {self.max_body_bytes}")
        is_current = job.session == self.session and self.is_registered
        if final:
            job.is_over = True
            if job.slot is not None:
                job.slot.discard(job)
                job.slot = None
            if self.jobs.get(job.token) is job:
                del self.jobs[job.token]
        elif job.flags & STREAM and job.window != mesh.UNBOUNDED_WINDOW:
            job.window -= 1
        if not is_current:
            self.counters.add("dropped.stale_reply")
        elif len(envelope) > ATTACH_OVER:
            head = mesh.pack_status(code)
            self.outbox.add(FINAL if final else PARTIAL, flags, job.token, 0, head, envelope)
        else:
            payload = mesh.pack_status(code) + envelope
            self.outbox.add(FINAL if final else PARTIAL, flags, job.token, 0, payload)
        if final:
            self.intake.release()
        else:
            self._renew(job, now)

    def top_up(self) -> None:
        """Give the router the credit it is owed, but for what runs for others: the places of its own
        jobs come back to it with their FINALs."""
        room = self.owed - (self.intake.running - len(self.jobs))
        if room > 0 and self.is_registered and not self.intake.is_closed:
            self.owed -= room
            self.outbox.add(mesh.CREDIT, payload=mesh.pack_credit(room))

    def stop_intake(self) -> None:
        """Take no new work: the credit is taken back, and what is on its way will be RETURNed."""
        self.intake.is_closed = True
        if self.is_registered:
            self.outbox.add(mesh.CREDIT, payload=mesh.pack_credit(-self.intake.limit))

    def goodbye(self) -> None:
        """Leave. The router gives what it has had no FINAL for to others, so nothing is begun from here
        on, and what still runs is answered: but for the idempotent, which may run again elsewhere."""
        if self.phase is Phase.PRESENT:
            failure = mesh.pack_failure(status.INSTANCE_LOST, "the instance stops")[2:]
            for job in list(self.jobs.values()):
                if not job.flags & IDEMPOTENT:
                    self.reply(job, status.INSTANCE_LOST, failure, 0.0)
            self.is_registered = False
            self.jobs.clear()
        super().goodbye()

    def tick(self, now: float, *, drained: bool = True) -> None:
        super().tick(now, drained=drained)
        for job in self._wheel.pop_due(now):
            if not job.is_over:
                self.signs.append((Sign.EXPIRED, job))

    def run(self, now: float) -> None:
        """Nothing is left to do when the input is read: signs were noted as they came."""

    def next_due(self) -> float:
        return min(super().next_due(), self._wheel.next_due())

    def on_welcome(self, now: float) -> None:
        self.session += 1
        identity, intake = self.identity, self.intake
        free = 0 if intake.is_closed else max(0, intake.limit - intake.running)
        self.owed = intake.limit - free
        ready: dict[str, Any] = {
            "wid": identity.wid,
            "epoch": self.epoch,
            "service": identity.service,
            "paths": list(identity.paths),
            "credit": free,
            "host": identity.host,
            "pid": identity.pid,
            "version": identity.version,
        }
        if identity.secret is not None:
            fields = ready_fields(self.nonce, identity.wid, self.epoch, identity.service, identity.paths)
            ready["signature"] = sign(identity.secret, *fields)
        self.outbox.add(mesh.READY, payload=codec.dumps(ready))

    def on_absence(self, now: float, reason: str) -> None:
        # The router has told the callers, or is gone itself: what still runs here runs for nobody. It may
        # finish, but for a stream, which would wait for a window that nobody opens.
        self.is_registered = False
        self.signs += [(Sign.CANCELLED, job) for job in self.jobs.values() if job.flags & STREAM]
        self.jobs.clear()

    def _ready(self, record: Record, sent_at: float, now: float) -> None:
        if self.phase is Phase.PRESENT:
            self.is_registered = True
            self.conflicts = 0
            self.top_up()  # handlers that ended since our READY
            self.notes.append(f"registered as {self.identity.wid} at router {self.router_id}")

    def _request(self, record: Record, sent_at: float, now: float) -> None:
        _, flags, token, remaining_ms, payload, attached = record
        if not self.is_registered:
            self.counters.add("dropped.unregistered")
            return
        intake = self.intake
        is_full = intake.is_closed or intake.running >= intake.limit
        if is_full and not mesh.is_management(payload):
            self.owed += 1
            self.counters.add("returned")
            self.outbox.add(RETURN, 0, token)
            return
        target, window, offset = mesh.split_target(payload, flags)
        envelope = payload[offset:] if attached is None else bytes(attached)
        deadline = sent_at + remaining_ms / 1000.0 if remaining_ms else NEVER
        job = Job(self, token, flags, deadline, target, envelope, window, self.session)
        if remaining_ms:
            job.slot = self._wheel.add(job, deadline)
            if flags & STREAM:
                job.patience_s = deadline - now
        self.jobs[token] = job
        intake.running += 1
        self.signs.append((Sign.ARRIVED, job))

    def _cancel(self, record: Record, sent_at: float, now: float) -> None:
        job = self.jobs.get(record.id)
        if job is not None:
            self.signs.append((Sign.CANCELLED, job))

    def _window(self, record: Record, sent_at: float, now: float) -> None:
        job = self.jobs.get(record.id)
        parts = mesh.split_window(record.payload)
        if job is not None and job.window != mesh.UNBOUNDED_WINDOW:
            job.window = min(job.window + parts, mesh.UNBOUNDED_WINDOW - 1)
            self._renew(job, now)
            self.signs.append((Sign.WINDOW, job))

    def _renew(self, job: Job, now: float) -> None:
        """A stream's deadline runs between parts; the router's own renewal is what binds."""
        if job.slot is not None and job.patience_s and not job.is_over:
            self._wheel.remove(job, job.slot)
            job.deadline = now + job.patience_s
            job.slot = self._wheel.add(job, job.deadline)
