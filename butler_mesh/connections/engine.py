"""The mesh's own engine: the client's and the instance's machines over ports of any kind.

* Ordering: requests of one client to one service leave in order; with several instances or more than
  one credit they run side by side. Parts of one stream arrive in order.
* Delivery: at most once; an IDEMPOTENT request may run twice if its instance or router dies.
* A dying instance: its IDEMPOTENT and never-started requests go to another, the rest is 502 at once.
* An absent far side: a call waits up to 3 s for a router, then 503; for a service as the router's
  grace allows, then 404 or 503.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import gevent
from gevent.event import Event
from gevent.hub import get_hub
from greenlet import getcurrent

from butler_mesh import deadlines, status
from butler_mesh.clock import monotonic
from butler_mesh.connections.base import (
    ALL,
    MANAGEMENT,
    ClientConnection,
    Delivery,
    Handler,
    InstanceConnection,
    OnReply,
)
from butler_mesh.connections.control import ControlPlane
from butler_mesh.connections.gathering import Gathering
from butler_mesh.connections.pump import TURN_S, Port, Pump
from butler_mesh.connections.workers import Worker, Workers
from butler_mesh.errors import Closed, Stopped
from butler_mesh.protocol import mesh
from butler_mesh.protocol.client import ClientProtocol, Pending
from butler_mesh.protocol.instance import CREDIT, Identity, InstanceProtocol, Intake, Job, Sign
from butler_mesh.protocol.member import Phase

FLUSH_BYTES = 1024 * 1024
"""Unsent parts over which a stream's handler waits, where its reader grants no windows."""
WINDOW_PATIENCE_S = 60.0
"""How long a stream's reader may take nothing: it holds a credit meanwhile."""
STOP_S = 1.0
"""What a handler that is stopped has for its ``finally``, and a router for the receipt of a GOODBYE."""

Dial = Callable[[], Port]
"""Opens a port to one router; called in the process that uses it."""

_log = logging.getLogger("butler_mesh.connections")


class MeshClient(ClientConnection):
    """One connection to each router; calls go to the first that has welcomed us."""

    def __init__(self, dials: Sequence[Dial], *, connect_timeout_s: float | None = None) -> None:
        self._links: dict[ClientProtocol, Pump] = {}
        self._is_closed = False
        # Set in every turn: whatever ``close`` waits for may have come.
        self._changed = Event()
        options = {} if connect_timeout_s is None else {"connect_timeout_s": connect_timeout_s}
        for port in _open(dials):
            machine = ClientProtocol(monotonic(), **options)
            pump = Pump(machine, after=partial(self._after, machine), logger="butler_mesh.client")
            self._links[machine] = pump
            pump.attach(port)
        self._first = next(iter(self._links))

    def submit(
        self,
        target: str,
        envelope: bytes,
        *,
        deadline: float,
        flags: int,
        on_reply: OnReply,
        window: int = 0,
        scope: str = "",
    ) -> Pending | Gathering:
        if self._is_closed:
            raise Closed("the client is closed")
        if scope == ALL:
            return Gathering(self, target, envelope, deadline=deadline, flags=flags, on_reply=on_reply)
        if scope:
            target = MANAGEMENT + scope
        machine = self._first
        if machine.phase is not Phase.PRESENT:
            machine = self._present() or machine
        pump = self._links[machine]
        now = monotonic()
        pump.arm(now)
        call = machine.submit(
            target.encode(),
            envelope,
            deadline=deadline,
            flags=flags,
            on_reply=on_reply,
            now=now,
            window=window,
        )
        if machine.filled:
            # A burst leaves as it comes: the far side begins while we go on.
            pump.flush_filled()
        return call

    def cancel(self, call: Pending | Gathering) -> None:
        if isinstance(call, Gathering):
            call.cancel()
        elif call.on_reply is not None:
            self._links[call.owner].arm(monotonic())
            call.owner.cancel(call)

    def grant(self, call: Pending | Gathering, parts: int) -> None:
        if isinstance(call, Gathering):
            return
        now = monotonic()
        self._links[call.owner].arm(now)
        call.owner.grant(call, parts, now)

    def close(self, drain_s: float) -> list[tuple[int, str]]:
        if not self._is_closed:
            self._is_closed = True
            until = monotonic() + drain_s
            machines = list(self._links)
            for machine in machines:
                machine.fail(status.CANCELLED, "the client was closed")
            self._arm()
            # One-way requests that no router has seen yet are what there is to drain.
            _wait(self._changed, lambda: not any(machine.calls for machine in machines), until)
            for machine in machines:
                machine.fail(status.CANCELLED, "the client was closed", one_way=True)
                machine.goodbye()
            self._arm()
            _wait(self._changed, lambda: all(machine.phase is Phase.LEFT for machine in machines), until)
            # One turn more, whatever was waited for: it tells those whose calls have failed just now.
            gevent.sleep(0)
            for pump in self._links.values():
                pump.close()
        return [refusal for machine in self._links for refusal in machine.refusals]

    def abandon(self) -> None:
        self._is_closed = True
        for pump in self._links.values():
            pump.abandon()

    def _present(self) -> ClientProtocol | None:
        return next((machine for machine in self._links if machine.phase is Phase.PRESENT), None)

    def _arm(self) -> None:
        for pump in self._links.values():
            pump.arm(monotonic())

    def _after(self, machine: ClientProtocol, now: float) -> bool:
        """The client's part of a turn: what no router has seen goes to one that is there; what came is
        handed out, each to its caller."""
        if len(self._links) > 1:
            self._fail_over(now)
        while machine.replies:
            replies, machine.replies = machine.replies, []
            for call, kind, code, flags, envelope in replies:
                on_reply = call.on_reply
                if on_reply is None:
                    continue
                if kind == mesh.FINAL:
                    call.on_reply = None
                try:
                    on_reply(kind, code, flags, envelope)
                except Exception:
                    # What a woken greenlet lets out ends here, not in the turn.
                    _log.exception("reply-callback-failed")
        self._changed.set()
        return False

    def _fail_over(self, now: float) -> None:
        present = self._present()
        if present is None:
            return
        for machine in self._links:
            if machine.phase is not Phase.PRESENT and machine.calls:
                self._links[present].arm(now)
                for call in machine.release_unsent():
                    present.adopt(call, now)


class MeshDelivery(Delivery):
    """A job in the hands of a handler."""

    __slots__ = (
        "_connection",
        "deadline",
        "envelope",
        "flags",
        "job",
        "number",
        "target",
        "window_opened",
        "worker",
    )

    def __init__(self, job: Job, connection: MeshInstance) -> None:
        self.job = job
        self.target = job.target.decode("utf-8", "replace")
        self.envelope = job.envelope
        self.flags = job.flags
        self.deadline = job.deadline
        self.number = job.token
        self.window_opened: Event | None = None
        self.worker: Worker[MeshDelivery] | None = None
        self._connection = connection

    def reply(self, status: int, envelope: bytes, *, flags: int = 0, final: bool = True) -> None:
        now = monotonic()
        job = self.job
        self._connection.arm(job.machine, now)
        job.machine.reply(job, status, envelope, now, flags=flags, final=final)
        if final:
            self._connection.arm_dirty(now)

    def wait_for_window(self) -> None:
        # A reader without windows (Majordomo) is bounded by what the router's pipe takes.
        outbox, changed = self.job.machine.outbox, self._connection.changed
        while outbox.pending_bytes > FLUSH_BYTES:
            _wait(changed, lambda: outbox.pending_bytes <= FLUSH_BYTES, self.deadline)
            if monotonic() >= self.deadline:
                return
        if self.job.window <= 0:
            self.window_opened = self.window_opened or Event()
            while self.job.window <= 0:
                self.window_opened.clear()
                if not self.window_opened.wait(WINDOW_PATIENCE_S):
                    raise Stopped(status.DEADLINE_PASSED, "the stream's reader takes no more")


class MeshInstance(InstanceConnection):
    """An instance registered with every router it dials; one credit for all of them together."""

    def __init__(
        self,
        dials: Sequence[Dial],
        service: str,
        paths: Sequence[str] = (),
        *,
        credit: int = CREDIT,
        control_endpoints: Sequence[str] = (),
        register_secret: str | bytes | None = None,
        pooled_greenlets: bool = True,
    ) -> None:
        host = socket.gethostname()
        self.wid = f"{service or 'paths'}-{host}-{secrets.token_hex(5)}"
        self._dials = dials
        self._identity = Identity(self.wid, service, tuple(paths), host, os.getpid(), secret=register_secret)
        self._intake = Intake(credit)
        self._links: dict[InstanceProtocol, Pump] = {}
        self._handler: Handler | None = None
        self._workers: Workers[MeshDelivery] = Workers(self._serve, is_pooled=pooled_greenlets)
        # Jobs that arrived and have not begun, with what happened to them since, in order.
        self._signs: deque[tuple[Sign, Job]] = deque()
        self._control_endpoints = control_endpoints
        self._control: ControlPlane | None = None
        self._is_closed = False
        self._registered = Event()
        # Set in every turn: whatever somebody waits for may have come.
        self.changed = Event()
        self._pid = os.getpid()

    def serve(self, handler: Handler) -> None:
        self._handler = handler
        epoch = secrets.token_hex(16)
        for port in _open(self._dials):
            machine = InstanceProtocol(monotonic(), self._identity, self._intake, epoch)
            pump = Pump(machine, after=self._after, logger="butler_mesh.service")
            self._links[machine] = pump
            pump.attach(port)
        if self._control_endpoints:
            self._control = ControlPlane(list(zip(self._control_endpoints, self._links, strict=True)))
            self._control.start()

    def wait_until_registered(self, timeout_s: float) -> bool:
        return bool(self._registered.wait(timeout_s))

    @property
    def is_registered(self) -> bool:
        """Whether some router has confirmed us, now."""
        return any(machine.is_registered for machine in self._links)

    def stop_intake(self) -> None:
        now = monotonic()
        for machine, pump in self._links.items():
            machine.stop_intake()
            pump.arm(now)

    def close(self, drain_s: float) -> None:
        if self._is_closed:
            return
        if self._pid != os.getpid():
            self.abandon()
            return
        self._is_closed = True
        self.stop_intake()
        until = monotonic() + drain_s
        _wait(self.changed, lambda: self._intake.running <= 0, until)
        for worker in list(self._workers.running):
            delivery = worker.job
            if delivery is not None and worker is not getcurrent():
                # From the hub: a greenlet that ends returns there, and not to whoever threw into it.
                stopped = Stopped(status.INSTANCE_LOST, "the service stopped")
                get_hub().loop.run_callback(self._workers.stop, worker, delivery, stopped)
        _wait(self.changed, lambda: self._intake.running <= 0, monotonic() + STOP_S)
        now = monotonic()
        for machine, pump in self._links.items():
            machine.goodbye()
            pump.arm(now)
        # The receipt says that the last replies have arrived; it is worth a moment beyond the grace.
        until = max(until, now + STOP_S)
        _wait(self.changed, lambda: all(machine.phase is Phase.LEFT for machine in self._links), until)
        if self._control is not None:
            self._control.stop()
        for pump in self._links.values():
            pump.close()

    def abandon(self) -> None:
        self._is_closed = True
        if self._control is not None:
            self._control.abandon()
        for pump in self._links.values():
            pump.abandon()

    def arm(self, machine: InstanceProtocol, now: float) -> None:
        """A reply is about to be written, perhaps outside a turn."""
        self._links[machine].arm(now)

    def arm_dirty(self, now: float) -> None:
        """A handler has ended, which may have made room for requests of other routers."""
        if len(self._links) > 1:
            for machine, pump in self._links.items():
                if machine.dirty:
                    pump.arm(now)

    # --- the instance's part of a turn --------------------------------------------------------

    def _after(self, now: float) -> bool:
        signs = self._signs
        for machine in self._links:
            if machine.signs:
                signs += machine.signs
                machine.signs.clear()
        flush_at = now + TURN_S
        while signs:
            sign, job = signs.popleft()
            if sign is Sign.ARRIVED:
                delivery = job.runner = MeshDelivery(job, self)
                delivery.worker = self._workers.start(delivery)
                if job.machine.filled:
                    self._links[job.machine].flush_filled()
            else:
                self._act(sign, job)
            if signs and monotonic() > flush_at:
                # What is finished leaves, and the rest of the hub gets its turn, before the next begins.
                return True
        if self.is_registered:
            self._registered.set()
        else:
            self._registered.clear()
        self.changed.set()
        return False

    def _act(self, sign: Sign, job: Job) -> None:
        delivery: MeshDelivery | None = job.runner
        if job.is_over or delivery is None or delivery.worker is None:
            return
        if sign is Sign.WINDOW:
            if delivery.window_opened is not None:
                delivery.window_opened.set()
        elif sign is Sign.EXPIRED:
            error = Stopped(status.DEADLINE_PASSED, "deadline passed while the handler ran")
            self._workers.stop(delivery.worker, delivery, error)
        else:
            error = Stopped(status.CANCELLED, "the caller gave up")
            self._workers.stop(delivery.worker, delivery, error)

    def _serve(self, delivery: MeshDelivery) -> bool:
        """Run the handler, and see to the one FINAL whatever it does. Runs in the worker's greenlet."""
        job = delivery.job
        handler = self._handler
        assert handler is not None
        try:
            if job.deadline <= monotonic():
                self._fail(delivery, status.DEADLINE_PASSED, "deadline passed before the handler ran")
                return True
            deadlines.current.set(job.deadline)
            has_failed = handler(delivery) is False
            if not job.is_over:
                self._fail(delivery, status.SERVER_ERROR, "the handler sent no reply")
            return not has_failed
        except Stopped as stopped:
            self._fail(delivery, stopped.status, stopped.message)
            return False
        except BaseException as error:
            # SystemExit and GreenletExit included: in a greenlet whose parent is the hub they would
            # end the process, and the request would never be answered.
            self._fail(delivery, status.SERVER_ERROR, f"{type(error).__name__}: {error}")
            return False
        finally:
            # Or the two would keep each other, and the envelope, until garbage is collected.
            job.runner = None

    def _fail(self, delivery: MeshDelivery, code: int, message: str) -> None:
        if not delivery.job.is_over:
            delivery.reply(code, mesh.pack_failure(code, message)[2:])


def _open(dials: Sequence[Dial]) -> list[Port]:
    """Open all ports, or none."""
    ports: list[Port] = []
    try:
        for dial in dials:
            ports.append(dial())
    except BaseException:
        for port in ports:
            port.close(0.0)
        raise
    return ports


def _wait(changed: Event, is_done: Callable[[], bool], until: float) -> None:
    """Wait until something is done or the time is up; looked at after every turn."""
    while not is_done() and monotonic() < until:
        changed.clear()
        changed.wait(min(max(0.0, until - monotonic()), 0.1))
