"""The instance's side of ``amqp://``: one consumer for each queue, and the requests that run."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from gevent.event import Event
from gevent.hub import get_hub
from greenlet import getcurrent
from pika import BasicProperties

from butler_mesh import deadlines, status
from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp import messages, queues
from butler_mesh.connections.amqp.cancelled import Cancelled
from butler_mesh.connections.amqp.clocks import Clocks
from butler_mesh.connections.amqp.connection import Connection
from butler_mesh.connections.amqp.consumers import Consumers
from butler_mesh.connections.amqp.delivery import MAX_WINDOW, AmqpDelivery
from butler_mesh.connections.amqp.link import Link
from butler_mesh.connections.amqp.loop import Alarm
from butler_mesh.connections.amqp.overflow import Overflow
from butler_mesh.connections.amqp.retries import Retries
from butler_mesh.connections.base import MANAGEMENT, Handler, InstanceConnection
from butler_mesh.connections.engine import STOP_S
from butler_mesh.connections.workers import Workers
from butler_mesh.errors import Stopped, UsageError
from butler_mesh.protocol import mesh
from butler_mesh.protocol.instance import CREDIT
from butler_mesh.protocol.limits import ABSENT_GRACE_S
from butler_mesh.protocol.management import MAX_OVERDRAFT
from butler_mesh.protocol.mesh import DURABLE, IDEMPOTENT, MAX_BODY_BYTES, ONE_WAY, STREAM
from butler_mesh.protocol.wheel import NEVER

MAX_CREDIT = 0xFFFF
"""What basic.qos can say."""
MOST_RUNS = 2
"""How often a request is begun that may be: one that ends whoever begins it must not go round for ever."""
MAX_CANCEL_BYTES = 64 * 1024

_log = logging.getLogger("butler_mesh.service")


class AmqpInstance(InstanceConnection):
    """Reads the queues of a service and of path prefixes; one credit for all of them together.

    ``absent_grace_s`` is how long a queue that nobody reads is kept. A ``durable`` service has a second one,
    of stored requests: each is acknowledged when its handler has ended well, tried again when it failed (429
    and from 500; it keeps its credit meanwhile), and put with the dead when that did not help or cannot.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        service: str,
        paths: Sequence[str] = (),
        *,
        credit: int = CREDIT,
        absent_grace_s: float = ABSENT_GRACE_S,
        durable: bool = False,
        register_secret: str | bytes | None = None,
        pooled_greenlets: bool = True,
    ) -> None:
        if register_secret is not None:
            raise UsageError("over amqp: the broker's users and permissions say who may serve what")
        self._queues = queues.request_queues(service, paths, is_durable=durable)
        self._service = service
        if not 0 < credit <= MAX_CREDIT:
            raise UsageError(f"a credit is from 1 to {MAX_CREDIT}")
        self.wid = f"{service or 'paths'}-{socket.gethostname()}-{secrets.token_hex(5)}"
        self.clocks = Clocks()
        self._credit = credit
        self._handler: Handler | None = None
        self._workers: Workers[AmqpDelivery] = Workers(self._serve, is_pooled=pooled_greenlets)
        self._alarm: Alarm[AmqpDelivery] = Alarm(self._expire)
        self._retries = Retries(self._retry)
        # Accepted and not answered, by the request's id.
        self._jobs: dict[str, AmqpDelivery] = {}
        self._running = 0
        self._last_number = 0
        # Each queue's consumer may have as many as the credit; what is too much together waits here.
        self._held: deque[AmqpDelivery] = deque()
        self._cancelled = Cancelled()
        self._channel: Any = None
        self._session = 0
        self._control = ""
        self._is_taking, self._is_closed = True, False
        self._has_stopped = Event()
        self._has_stopped.set()
        self._changed = Event()
        self._pid = os.getpid()
        self._link = Link(endpoints, "in", on_up=self._up, on_down=self._down, on_fork=self.abandon)
        self._overflow = Overflow(self._link, self._queues)
        self._consumers = Consumers(
            self._queues,
            service,
            is_durable=durable,
            credit=credit,
            expires_ms=max(1, int(absent_grace_s * 1000)),
            on_message=self._arrived,
        )

    # --- what services do ---------------------------------------------------------------------

    def serve(self, handler: Handler) -> None:
        self._handler = handler
        self._link.start()

    def wait_until_registered(self, timeout_s: float) -> bool:
        return bool(self._consumers.is_reading.wait(timeout_s))

    @property
    def raw(self) -> Connection | None:
        return self._link.connection

    @property
    def durable_queue(self) -> str:
        """That of stored requests; '' where none are."""
        return self._consumers.durable_queue

    @property
    def unsent_bytes(self) -> int:
        """What has been written and is not with the kernel yet."""
        connection = self._link.connection
        return 0 if connection is None else connection.unsent_bytes

    def stop_intake(self) -> None:
        if not self._is_taking:
            return
        self._is_taking = False
        if self._channel is not None and self._channel.is_open:
            self._consumers.close()
            # Its answer comes after whatever was on its way when the consumers were cancelled.
            self._has_stopped.clear()
            self._channel.basic_qos(prefetch_count=self._credit, callback=lambda _: self._has_stopped.set())
            while self._held:
                self._give_back(self._held.popleft())

    def close(self, drain_s: float) -> None:
        if self._is_closed:
            return
        if self._pid != os.getpid():
            self.abandon()
            return
        self._is_closed = True
        self.stop_intake()
        self._wait_until_idle(monotonic() + drain_s)
        for worker in list(self._workers.running):
            job = worker.job
            if job is not None and worker is not getcurrent():
                # From the hub: a greenlet that ends returns there, and not to whoever threw into it.
                stopped = Stopped(status.INSTANCE_LOST, "the service stopped")
                get_hub().loop.run_callback(self._workers.stop, worker, job, stopped)
        self._wait_until_idle(monotonic() + STOP_S)
        for job in list(self._jobs.values()):
            # What the broker still knows as ours may run again elsewhere, or has its answer now.
            if not job.flags & IDEMPOTENT:
                self._fail(job, status.INSTANCE_LOST, "the instance stops")
        # What came too late for us goes to others, as never begun, before the connection ends.
        self._has_stopped.wait(STOP_S)
        self._link.close(STOP_S)
        self._end()

    def abandon(self) -> None:
        self._is_closed = True
        self._channel = None
        # What has yet to begin here is somebody else's.
        self._held.clear()
        for job in self._jobs.values():
            job.is_over = True
        self._link.abandon()
        self._end()

    def _end(self) -> None:
        self._alarm.close()
        self._retries.close()

    def reply(self, job: AmqpDelivery, code: int, envelope: bytes, flags: int, *, final: bool) -> None:
        """Send a part or the one last reply; after that, or on another connection, nothing."""
        if job.is_over:
            return
        if len(envelope) > MAX_BODY_BYTES:
            raise UsageError(f"a reply of {len(envelope)} bytes is over the maximum of {MAX_BODY_BYTES}")
        if not final and not job.flags & STREAM:
            self._fail(job, status.SERVER_ERROR, "the handler sent a part of what is no stream")
            return
        if final:
            self._settle(job)
        else:
            job.window -= 1
            self._renew(job)
        if job.session != self._session or self._channel is None or not self._channel.is_open:
            return
        if not job.flags & ONE_WAY:
            control = None if final else self._control
            properties = messages.reply_properties(job.id, code, flags, final=final, control=control)
            self._channel.basic_publish("", job.reply_to, envelope, properties)
        if final:
            if job.flags & DURABLE:
                self._decide(job, code)
            elif not job.is_command:
                self._channel.basic_ack(job.tag)

    def _decide(self, job: AmqpDelivery, code: int) -> None:
        """Say what becomes of a stored request whose handler has ended."""
        if code < 400:
            self._channel.basic_ack(job.tag)
        elif code < 500 and code not in (status.TOO_MANY, status.CANCELLED):
            _log.warning("dead-lettered %s of %.200r: %d", job.id, job.target, code)
            self._channel.basic_reject(job.tag, requeue=False)
        elif not self._is_closed:
            self._retries.add(job, code)

    def _retry(self, job: AmqpDelivery) -> None:
        if job.session == self._session and self._channel is not None and self._channel.is_open:
            self._channel.basic_reject(job.tag, requeue=True)

    # --- the connection -----------------------------------------------------------------------

    def _up(self) -> None:
        self._link.open(self._opened)

    def _opened(self, channel: Any) -> None:
        self._session += 1
        self._channel = channel
        channel.on_stray = self._arrived
        channel.queue_declare("", exclusive=True, callback=self._control_declared)

    def _control_declared(self, frame: Any) -> None:
        channel = self._channel
        if channel is None:
            return
        self._control = frame.method.queue
        for queue in [*self._queues, MANAGEMENT + self.wid]:
            channel.queue_bind(self._control, queues.CONTROL_EXCHANGE, queues.control_key(queue))
        channel.basic_consume(self._control, self._told, auto_ack=True)
        if self._is_taking:
            self._overflow.open()
            self._consumers.open(channel)

    def _down(self, reason: str) -> None:
        self._channel = None
        self._has_stopped.set()
        self._consumers.lose()
        # What has not begun comes again, perhaps to us; streams have readers who were told of the end.
        while self._held:
            self._settle(self._held.popleft())
        for job in list(self._jobs.values()):
            if job.flags & STREAM:
                self._stop(job, status.CANCELLED, "the connection of the stream was lost")

    # --- requests -----------------------------------------------------------------------------

    def _arrived(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        """Take a request. Nothing may be raised here: pika would end the connection."""
        if not channel.is_open:
            return
        queue = self._consumers.queue_of(method.consumer_tag)
        try:
            job = AmqpDelivery(self, properties, queue, body, method.delivery_tag, self._session, monotonic())
        except Exception as error:
            _log.warning("request-unreadable: %s", error)
            if queue and queue == self.durable_queue:
                kept = messages.buried_properties(properties)
                channel.basic_publish("", queues.dead_queue(self._service), body, kept)
            channel.basic_ack(method.delivery_tag)
            return
        if not self._is_taking and (job.flags & DURABLE or not method.redelivered):
            self._give_back(job)
        elif len(body) > MAX_BODY_BYTES:
            self._fail(job, status.TOO_LARGE, f"the body is over {MAX_BODY_BYTES} bytes")
        elif self._cancelled.take(job.id):
            channel.basic_ack(job.tag)
        elif method.redelivered or job.deliveries:
            self._take_again(job, method.consumer_tag)
        else:
            self._take(job)
            self._consumers.hurry(method.consumer_tag)

    def _take_command(self, properties: BasicProperties, body: bytes) -> None:
        """Run a command at once, whatever runs beside it: it was never in a queue that others read."""
        try:
            job = AmqpDelivery(self, properties, "", body, 0, self._session, monotonic())
        except Exception as error:
            _log.warning("command-unreadable: %s", error)
            return
        if job.target not in (f"{MANAGEMENT}{self._service}", f"{MANAGEMENT}{self.wid}"):
            return  # A key that was cut off is another's, too.
        job.is_command = True
        if self._running >= self._credit + MAX_OVERDRAFT:
            self._fail(job, status.UNAVAILABLE, "too many commands at once")
            return
        self._note(job)
        self._begin(job)

    def _note(self, job: AmqpDelivery) -> None:
        self._last_number += 1
        job.number = self._last_number
        if job.key in self._jobs:
            job.key = f"{job.session}.{job.tag}"
        self._jobs[job.key] = job
        if job.deadline != NEVER:
            job.slot = self._alarm.add(job, job.deadline)

    def _take(self, job: AmqpDelivery) -> None:
        self._note(job)
        if self._running < self._credit:
            self._begin(job)
        else:
            self._held.append(job)

    def _take_again(self, job: AmqpDelivery, consumer: str) -> None:
        """Somebody had it, and lost its connection: perhaps we."""
        ours = self._jobs.get(job.key)
        is_ours = ours is not None and ours.reply_to == job.reply_to and not ours.flags & STREAM
        if ours is not None and is_ours and ours.session != self._session and ours.envelope == job.envelope:
            # It runs here still, and its answer may be sent after all. It has killed nobody here.
            ours.tag, ours.session = job.tag, job.session
            self._consumers.hurry(consumer)
        elif job.flags & DURABLE:
            self._take(job)
        elif is_ours:
            self._channel.basic_ack(job.tag)
        elif job.flags & IDEMPOTENT and job.tries + 1 < MOST_RUNS:
            job.tries += 1
            self._give_back(job)
        else:
            self._fail(job, status.INSTANCE_LOST, "the instance that had the request was lost")

    def _begin(self, job: AmqpDelivery) -> None:
        job.has_begun = True
        self._running += 1
        # In a callback of its own: a handler has no business inside pika's reading.
        get_hub().loop.run_callback(self._start, job)

    def _start(self, job: AmqpDelivery) -> None:
        if not job.is_over:
            job.worker = self._workers.start(job)

    def _give_back(self, job: AmqpDelivery) -> None:
        """Put a request back into its queue as one that was never begun, and is nobody's.

        A nack would do that as well, but mark it as one that may have been begun.
        """
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]
        if job.slot is not None:
            job.slot.discard(job)
        if job.flags & DURABLE:
            # Once more than it should be counted is better than lost between two words.
            self._channel.basic_reject(job.tag, requeue=True)
            return
        now = monotonic()
        left_ms = max(1, int((min(job.deadline, now + 1e6) - now) * 1000))
        properties = messages.request_properties(
            job.id, job.target, job.queue, job.flags, left_ms, int(time.time() * 1000), job.window
        )
        properties.reply_to = job.reply_to or None
        # By whose clock it was sent now.
        properties.headers["clock"] = self.wid
        if job.tries:
            properties.headers["tries"] = job.tries
        self._channel.basic_publish("", job.queue, job.envelope, properties)
        self._channel.basic_ack(job.tag)

    def _settle(self, job: AmqpDelivery) -> None:
        """Take a request off the tables, and let the next begin."""
        job.is_over = True
        if job.slot is not None:
            job.slot.discard(job)
            job.slot = None
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]
        if not job.has_begun:
            with suppress(ValueError):
                self._held.remove(job)
            return
        self._running -= 1
        while self._held and self._running < self._credit:
            self._begin(self._held.popleft())
        self._changed.set()

    def _serve(self, job: AmqpDelivery) -> bool:
        """Run the handler, and see to the one answer whatever it does. Runs in the worker's greenlet."""
        handler = self._handler
        assert handler is not None
        try:
            if job.deadline <= monotonic():
                self._fail(job, status.DEADLINE_PASSED, "deadline passed before the handler ran")
                return True
            deadlines.current.set(job.deadline)
            has_failed = handler(job) is False
            self._fail(job, status.SERVER_ERROR, "the handler sent no reply")
            return not has_failed
        except Stopped as stopped:
            self._fail(job, stopped.status, stopped.message)
            return False
        except BaseException as error:
            # SystemExit and GreenletExit included: in a greenlet whose parent is the hub they would
            # end the process, and the request would never be answered.
            self._fail(job, status.SERVER_ERROR, f"{type(error).__name__}: {error}")
            return False
        finally:
            job.worker = None

    def _fail(self, job: AmqpDelivery, code: int, message: str) -> None:
        if not job.is_over:
            self.reply(job, code, mesh.pack_failure(code, message)[2:], 0, final=True)

    def _stop(self, job: AmqpDelivery, code: int, message: str) -> None:
        """Nobody waits for it any more: it is stopped where it runs, or not begun."""
        if job.is_over:
            return
        if job.worker is None:
            self._fail(job, code, message)
        else:
            self._workers.stop(job.worker, job, Stopped(code, message))

    def _expire(self, job: AmqpDelivery) -> None:
        self._stop(job, status.DEADLINE_PASSED, "deadline passed while the handler ran")

    def _renew(self, job: AmqpDelivery) -> None:
        """A stream's deadline runs between parts."""
        if job.slot is not None and job.patience_s:
            job.slot.discard(job)
            job.deadline = monotonic() + job.patience_s
            job.slot = self._alarm.add(job, job.deadline)

    def _told(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        """A CANCEL or WINDOW, for us or for another instance of the service; or a command, for us as well."""
        id_ = properties.correlation_id or ""
        if properties.type == messages.REQUEST:
            self._take_command(properties, body)
            return
        job = self._jobs.get(id_)
        if properties.type == messages.CANCEL:
            for cancelled in body[:MAX_CANCEL_BYTES].decode("ascii", "replace").split():
                self._cancel(cancelled)
        elif properties.type == messages.WINDOW and job is not None:
            try:
                job.window = min(MAX_WINDOW, job.window + max(0, messages.number(properties, "parts")))
            except ValueError:
                return
            self._renew(job)
            if job.window_opened is not None:
                job.window_opened.set()

    def _cancel(self, id_: str) -> None:
        job = self._jobs.get(id_)
        if job is not None:
            # In a callback of its own, as handlers begin: what is stopped runs its ``finally``.
            get_hub().loop.run_callback(self._stop, job, status.CANCELLED, "the caller gave up")
        else:
            self._cancelled.add(id_)

    def _wait_until_idle(self, until: float) -> None:
        while self._running and monotonic() < until:
            self._changed.clear()
            self._changed.wait(max(0.0, until - monotonic()))
