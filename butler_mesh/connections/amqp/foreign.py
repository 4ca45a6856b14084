"""A broker's queues as other systems use them: messages as they are, without a word of the mesh's.

::

    call      to EXCHANGE by the queue's name    mandatory, correlation_id, reply_to amq.rabbitmq.reply-to
    answer    to the call's reply_to             its correlation_id
    message   to EXCHANGE by the queue's name    mandatory, message_id, no reply_to

A queue that is read is durable, without arguments, and bound by its own name to a direct exchange that is
not. A message is acknowledged when its handler has ended; one whose reader was lost comes again, marked.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import gevent
from gevent.event import AsyncResult, Event
from gevent.pool import Group
from pika import BasicProperties
from pika.exceptions import AMQPError

from butler_mesh import deadlines, status
from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp.link import Link
from butler_mesh.connections.amqp.messages import REPLY_TO
from butler_mesh.errors import (
    Closed,
    DeadlineExceeded,
    InstanceLost,
    MeshError,
    NotFound,
    Unavailable,
    failure,
)

CONNECT_TIMEOUT_S = 3.0
CONFIRM_TIMEOUT_S = 10.0
"""Patience with the broker's word on a message: milliseconds, unless it is short of memory."""
CLOSE_S = 1.0

T = TypeVar("T")

_log = logging.getLogger("butler_mesh.connections")


@dataclass(slots=True)
class ForeignMessage:
    """A message in the hands of a handler. Who sent it waits for an answer if there is a ``reply_to``."""

    body: bytes = field(repr=False)
    reply_to: str
    correlation_id: str
    # Whether it was handed out before, to somebody who was lost: it may have been begun.
    is_repeated: bool
    _channel: Any = field(repr=False)

    def answer(self, body: bytes) -> None:
        """Send an answer; to nobody where none is waited for, or where the connection it came by is gone."""
        if self.reply_to and self._channel.is_open:
            properties = _properties(correlation_id=self.correlation_id or None)
            self._channel.basic_publish("", self.reply_to, body, properties)


class ForeignQueues:
    """A connection to one broker (or cluster) that comes back, for calls, messages, and one queue to read.

    ``connect_timeout`` is how long a call or message waits for a connection. Nothing is sent twice.
    """

    def __init__(
        self, endpoints: Sequence[str], exchange: str, *, connect_timeout: float = CONNECT_TIMEOUT_S
    ) -> None:
        self._exchange = exchange
        self._connect_timeout_s = connect_timeout
        self._queue = ""
        self._handler: Callable[[ForeignMessage], object] | None = None
        self._credit = 1
        self._channel: Any = None
        self._consumer = ""
        self._last_tag = 0
        # What is awaited: confirmations by their tag, calls by their id; the broker's return names an id.
        self._unconfirmed: dict[int, AsyncResult[None]] = {}
        self._posted: dict[str, AsyncResult[None]] = {}
        self._calls: dict[str, AsyncResult[bytes]] = {}
        self._refusal: MeshError | None = None
        self._is_ready, self._is_registered = Event(), Event()
        self._running = Group()
        self._is_started = self._is_closed = False
        self._link = Link(
            endpoints,
            "out",
            on_up=self._up,
            on_down=self._down,
            on_refused=self._refused,
            on_fork=self.abandon,
        )

    # --- what others send us ------------------------------------------------------------------

    def serve(self, queue: str, handler: Callable[[ForeignMessage], object], *, credit: int) -> None:
        """Read a queue: ``handler(message)`` runs in a greenlet of its own for each, ``credit`` at once."""
        self._queue, self._handler, self._credit = queue, handler, credit
        self._start()

    def wait_until_registered(self, timeout_s: float) -> bool:
        """Wait until the queue is read; False when it is not in time."""
        return bool(self._is_registered.wait(timeout_s))

    # --- what we send -------------------------------------------------------------------------

    def call(self, queue: str, body: bytes, timeout: float) -> bytes:
        """Send a call to whoever reads a queue, and return the answer.

        Raises NotFound where there is no such queue, Unavailable without a broker, DeadlineExceeded when no
        answer came in ``timeout`` seconds, InstanceLost when the broker was lost meanwhile.
        """
        now = monotonic()
        until = deadlines.deadline_for(timeout, now)
        id_ = secrets.token_hex(16)
        answer: AsyncResult[bytes] = AsyncResult()
        self._calls[id_] = answer
        try:
            properties = _properties(
                correlation_id=id_, reply_to=REPLY_TO, expiration=str(max(1, int((until - now) * 1000)))
            )
            self._post(queue, body, properties, id_, until)
            return self._await(answer, until)
        finally:
            del self._calls[id_]

    def send(self, queue: str, body: bytes) -> None:
        """Send a message that nobody answers; returns when the broker has it. Raises as ``call``."""
        id_ = secrets.token_hex(16)
        self._post(queue, body, _properties(message_id=id_), id_, monotonic() + CONFIRM_TIMEOUT_S)

    def close(self, drain_s: float) -> None:
        """Read no more, wait up to ``drain_s`` for handlers that run, close. Calls that wait fail."""
        if self._is_closed:
            return
        self._is_closed = True
        self._is_registered.clear()
        if self._consumer and self._channel is not None and self._channel.is_open:
            self._channel.basic_cancel(self._consumer)
        self._running.join(drain_s)
        self._running.kill()
        self._fail(Closed("the connection was closed"))
        if self._is_started:
            self._link.close(CLOSE_S)

    def abandon(self) -> None:
        """Let go of everything without a word: this process is a fork and owns none of it."""
        self._is_closed = True
        self._channel = None
        self._link.abandon()

    # --- the connection -----------------------------------------------------------------------

    def _start(self) -> None:
        if self._is_closed:
            raise Closed("the connection was closed")
        if not self._is_started:
            self._is_started = True
            self._link.start()

    def _up(self) -> None:
        self._refusal = None
        self._link.open(self._opened)

    def _opened(self, channel: Any) -> None:
        self._channel, self._consumer, self._last_tag = channel, "", 0
        channel.add_on_return_callback(self._returned)
        channel.basic_consume(REPLY_TO, self._answered, auto_ack=True)
        channel.confirm_delivery(self._confirmed)
        channel.exchange_declare(self._exchange, "direct", callback=lambda _: self._is_ready.set())
        if self._handler is not None and not self._is_closed:
            channel.queue_declare(self._queue, durable=True)
            channel.queue_bind(self._queue, self._exchange, self._queue)
            channel.basic_qos(prefetch_count=self._credit)
            self._consumer = channel.basic_consume(
                self._queue, self._arrived, callback=lambda _: self._is_registered.set()
            )
            channel.add_on_cancel_callback(lambda _: self._link.reset("the queue is gone"))

    def _down(self, reason: str) -> None:
        self._channel = None
        self._is_ready.clear()
        self._is_registered.clear()
        self._fail(InstanceLost(f"the broker was lost: {reason}", status=status.INSTANCE_LOST))

    def _refused(self, code: int, reason: str) -> None:
        self._refusal = failure(code, reason)
        # Those who wait for a connection look.
        self._is_ready.set()

    def _fail(self, error: MeshError) -> None:
        awaited: list[AsyncResult[Any]] = [*self._unconfirmed.values(), *self._calls.values()]
        for waiting in awaited:
            if not waiting.ready():
                waiting.set_exception(error)
        self._unconfirmed.clear()

    # --- on the way ---------------------------------------------------------------------------

    def _post(self, queue: str, body: bytes, properties: BasicProperties, id_: str, until: float) -> None:
        """Publish, and wait for the broker's word on it."""
        self._start()
        self._is_ready.wait(min(self._connect_timeout_s, max(0.0, until - monotonic())))
        if self._channel is None or not self._channel.is_open:
            if self._refusal is not None:
                self._is_ready.clear()
                raise self._refusal
            raise Unavailable("no broker can be reached", status=status.UNAVAILABLE, retry_after_s=1.0)
        confirmed: AsyncResult[None] = AsyncResult()
        self._last_tag += 1
        self._unconfirmed[self._last_tag] = self._posted[id_] = confirmed
        try:
            self._channel.basic_publish(self._exchange, queue, body, properties, mandatory=True)
            self._await(confirmed, min(until, monotonic() + CONFIRM_TIMEOUT_S))
        except AMQPError as error:
            raise Unavailable(f"the broker was lost: {error}", status=status.UNAVAILABLE) from error
        finally:
            del self._posted[id_]

    def _await(self, result: AsyncResult[T], until: float) -> T:
        result.wait(max(0.0, until - monotonic()))
        if not result.ready():
            raise DeadlineExceeded()
        return cast(T, result.get())

    def _returned(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        posted = self._posted.get(properties.correlation_id or properties.message_id or "")
        if posted is not None and not posted.ready():
            posted.set_exception(NotFound(f"nobody reads {method.routing_key[:200]!r}", status=404))

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        tags = [tag for tag in self._unconfirmed if tag <= method.delivery_tag] if method.multiple else None
        for tag in [method.delivery_tag] if tags is None else tags:
            confirmed = self._unconfirmed.pop(tag, None)
            if confirmed is None or confirmed.ready():
                continue
            if method.NAME == "Basic.Nack":
                confirmed.set_exception(Unavailable("the broker could not take it", status=503))
            else:
                confirmed.set(None)

    def _answered(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        call = self._calls.get(properties.correlation_id or "")
        if call is not None and not call.ready():
            call.set(body)

    def _arrived(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        """Begin a message. Nothing may be raised here: pika would end the connection."""
        message = ForeignMessage(
            body, properties.reply_to or "", properties.correlation_id or "", method.redelivered, channel
        )
        self._running.add(gevent.spawn(self._handle, message, method.delivery_tag))

    def _handle(self, message: ForeignMessage, tag: int) -> None:
        assert self._handler is not None
        try:
            self._handler(message)
        except Exception:
            _log.exception("foreign-message-failed %.200r", self._queue)
        if message._channel.is_open:
            message._channel.basic_ack(tag)


def _properties(**fields: Any) -> BasicProperties:
    return BasicProperties(delivery_mode=1, **fields)  # type: ignore[no-untyped-call]  # pika's slip
