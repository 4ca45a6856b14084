"""The reader of another system's queue: one greenlet for each message, and an acknowledgement at its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent import GreenletExit, Timeout
from gevent.event import Event
from gevent.pool import Group
from pika import BasicProperties

from butler_mesh import deadlines, status
from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp.kept import CLOSE_S, KeptChannel
from butler_mesh.errors import Stopped

_log = logging.getLogger("butler_mesh.connections")


@dataclass(slots=True)
class ForeignMessage:
    """A message in the hands of a handler. Who sent it waits for an answer if there is a ``reply_to``."""

    body: bytes = field(repr=False)
    reply_to: str
    correlation_id: str
    # Whether it was handed out before, to somebody who was lost: it may have been begun.
    is_repeated: bool
    # The seconds after which its sender wants nothing of it any more; None where that was not said.
    granted_s: float | None
    _channel: Any = field(repr=False)

    def answer(self, body: bytes) -> None:
        """Send an answer; to nobody where none is waited for, or where the connection it came by is gone."""
        if self.reply_to and self._channel.is_open:
            properties = BasicProperties(  # type: ignore[no-untyped-call]  # pika's slip
                delivery_mode=1, correlation_id=self.correlation_id or None
            )
            self._channel.basic_publish("", self.reply_to, body, properties)


class ForeignReader:
    """Reads one queue of one broker (or cluster), and begins again when that is back.

    ``handler(message)`` runs in a greenlet of its own for each message, ``credit`` at once. It is stopped
    after what the message's sender has granted it, or after ``ceiling_s`` seconds where somebody waits for an
    answer and has not said how long; calls that it makes end by then, too. What it lets out is logged, and
    costs nobody else anything.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        exchange: str,
        queue: str,
        handler: Callable[[ForeignMessage], object],
        *,
        credit: int,
        ceiling_s: float,
    ) -> None:
        self._exchange, self._queue = exchange, queue
        self._handler = handler
        self._credit = credit
        self._ceiling_s = ceiling_s
        self._consumer = ""
        self._running = Group()
        self._is_closed = False
        # Nothing new comes from where it was closed: the broker has said so.
        self._has_stopped = Event()
        # Not the connection of those who call: a broker that is short of memory stops reading from it.
        self._kept = KeptChannel(
            endpoints, "in", on_open=self._opened, on_lost=self._lost, on_fork=self.abandon
        )
        self._kept.start()

    def wait_until_registered(self, timeout_s: float) -> bool:
        """Wait until the queue is read; False when it is not in time. Raises what the broker says to that."""
        return not self._is_closed and self._kept.wait(timeout_s)

    def close(self, drain_s: float) -> None:
        """Read no more, wait up to ``drain_s`` for handlers that run, close. What runs then is another's."""
        self._is_closed = True
        channel = self._kept.channel
        if self._consumer and channel is not None and channel.is_open:
            channel.basic_cancel(self._consumer, callback=lambda _: self._has_stopped.set())
            self._has_stopped.wait(CLOSE_S)
        self._running.join(drain_s)
        self._running.kill()
        self._kept.close()

    def abandon(self) -> None:
        """Let go of everything without a word: this process is a fork and owns none of it."""
        self._is_closed = True
        self._kept.abandon()

    def _opened(self, channel: Any) -> None:
        if self._is_closed:
            return
        # What comes between our last word and the broker's is worked on: given back, it would be marked.
        channel.on_stray = self._arrived
        channel.add_on_cancel_callback(lambda _: self._kept.renew("the queue is gone"))
        channel.exchange_declare(self._exchange, "direct")
        channel.queue_declare(self._queue, durable=True)
        channel.queue_bind(self._queue, self._exchange, self._queue)
        channel.basic_qos(prefetch_count=self._credit)
        self._consumer = channel.basic_consume(
            self._queue, self._arrived, callback=lambda _: self._kept.ready()
        )

    def _lost(self, error: object) -> None:
        self._consumer = ""
        self._has_stopped.set()

    def _arrived(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        """Begin a message. Nothing may be raised here: pika would end the connection."""
        message = ForeignMessage(
            body,
            properties.reply_to or "",
            properties.correlation_id or "",
            method.redelivered,
            _granted_s(properties),
            channel,
        )
        self._running.add(gevent.spawn(self._handle, message, method.delivery_tag))

    def _handle(self, message: ForeignMessage, tag: int) -> None:
        patience_s = message.granted_s
        if patience_s is None and message.reply_to:
            patience_s = self._ceiling_s
        if patience_s is not None:
            deadlines.current.set(monotonic() + patience_s)
        try:
            with Timeout(patience_s, Stopped(status.DEADLINE_PASSED, "deadline passed while it was handled")):
                self._handler(message)
        except Stopped as stopped:
            _log.warning("foreign-message-stopped %.200r: %s", self._queue, stopped.message)
        except BaseException as error:
            if self._is_closed and isinstance(error, GreenletExit):
                return  # We were told to end, not the handler: the message goes to another reader.
            # SystemExit and others' timeouts as well: here they would end the process, or keep the credit.
            _log.exception("foreign-message-failed %.200r", self._queue)
        if message._channel.is_open:
            message._channel.basic_ack(tag)


def _granted_s(properties: BasicProperties) -> float | None:
    """Return what a message says in ``expiration``: how long it is of use, from when it was sent."""
    try:
        return int(properties.expiration) / 1000.0 if properties.expiration else None
    except ValueError:
        return None
