"""Which consumer reads which of a service's queues."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from gevent.event import Event

from butler_mesh.connections.amqp import queues
from butler_mesh.connections.amqp.connection import has_transient_queues

_log = logging.getLogger("butler_mesh.service")


class Consumers:
    """The consumers on one channel after another. Each may be given as many messages as the credit.

    ``on_message`` is called from the hub as pika does. A queue that was deleted, or whose node went down, is
    declared and read again. ``is_reading`` is set while the broker has confirmed all of them.
    """

    def __init__(
        self,
        names: list[str],
        service: str,
        *,
        is_durable: bool,
        credit: int,
        expires_ms: int,
        on_message: Callable[[Any, Any, Any, bytes], None],
    ) -> None:
        self._names = names
        self._service = service
        # The queue of stored requests; '' where none are.
        self.durable_queue = queues.durable_queue(service) if is_durable else ""
        self._credit = credit
        self._expires_ms = expires_ms
        self._on_message = on_message
        self.is_reading = Event()
        self._channel: Any = None
        # Consumer tag -> queue.
        self._queues: dict[str, str] = {}
        self._cancelling: set[str] = set()
        self._unconfirmed: set[str] = set()
        # That of stored requests, while it is given one at a time.
        self._careful = ""

    def open(self, channel: Any) -> None:
        """Read all queues on this channel."""
        self._channel = channel
        channel.add_on_cancel_callback(self._cancelled)
        for queue in self._names:
            self._read(queue)
        if self.durable_queue:
            dead = queues.dead_queue(self._service)
            channel.queue_declare(dead, durable=True, arguments=queues.DEAD_ARGUMENTS)
            self._read(self.durable_queue)

    def close(self) -> None:
        """Read no more; what has been handed out is still to be answered."""
        for tag in self._queues.keys() - self._cancelling:
            self._channel.basic_cancel(tag)
        self._channel = None

    def lose(self) -> None:
        """Forget the channel, which is gone."""
        self._channel = None
        self._queues.clear()
        self._cancelling.clear()
        self._unconfirmed.clear()
        self._careful = ""
        self.is_reading.clear()

    def queue_of(self, tag: str) -> str:
        """Return the queue that a consumer reads."""
        return self._queues.get(tag, "")

    def hurry(self, tag: str) -> None:
        """Take more, for a consumer has been given what nobody had before."""
        if tag == self._careful and self._channel is not None:
            self._careful = ""
            self._channel.basic_cancel(tag)
            # It may still be given one: the word waits for what was asked of the channel before.
            self._cancelling.add(tag)
            self._consume(self.durable_queue)

    def _read(self, queue: str) -> None:
        if queue == self.durable_queue:
            # A message that ends its reader is counted against all that this one holds. Those that have been
            # with others come first, and so one by one: only what does it is counted again.
            self._channel.queue_declare(
                queue, durable=True, arguments=queues.durable_arguments(self._service)
            )
            self._careful = self._consume(queue, 1)
        else:
            is_durable = not has_transient_queues(self._channel.connection)
            arguments = queues.request_arguments(queue, self._expires_ms)
            self._channel.queue_declare(queue, durable=is_durable, arguments=arguments)
            self._consume(queue)

    def _consume(self, queue: str, prefetch: int = 0) -> str:
        # For the consumers to come: a limit for the whole channel is refused by RabbitMQ 4.3.
        self._channel.basic_qos(prefetch_count=prefetch or self._credit)
        tag: str = self._channel.basic_consume(queue, self._on_message, callback=self._confirmed)
        self._queues[tag] = queue
        self._unconfirmed.add(tag)
        return tag

    def _confirmed(self, frame: Any) -> None:
        self._unconfirmed.discard(frame.method.consumer_tag)
        if not self._unconfirmed and not self.is_reading.is_set():
            self.is_reading.set()
            _log.info("registered %s", ", ".join(self._names))

    def _cancelled(self, frame: Any) -> None:
        queue = self._queues.pop(frame.method.consumer_tag, None)
        if self._channel is not None and queue is not None:
            self.is_reading.clear()
            _log.warning("consumer-cancelled: %.200r is declared again", queue)
            self._read(queue)
