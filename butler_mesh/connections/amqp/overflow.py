"""The requests that found no room in a service's queues, answered by whoever reads those."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pika import BasicProperties

from butler_mesh import status
from butler_mesh.connections.amqp import messages, queues
from butler_mesh.connections.amqp.connection import has_transient_queues
from butler_mesh.connections.amqp.link import Link
from butler_mesh.protocol import mesh

PAUSE_S = 1.0
"""What their callers are asked to wait."""

_log = logging.getLogger("butler_mesh.service")


class Overflow:
    """Reads, on a channel of its own, the queues that others run over into, and says 503.

    Where somebody keeps us from them, the service goes on, and callers hear nothing until their deadline.
    """

    def __init__(self, link: Link, names: Sequence[str]) -> None:
        self._link = link
        self._names = names
        # Consumer tag -> queue.
        self._consumers: dict[str, str] = {}

    def open(self) -> None:
        """Begin to read, on the connection that is there now."""
        self._consumers.clear()
        self._link.open(self._opened, self._closed)

    def _opened(self, channel: Any) -> None:
        channel.add_on_cancel_callback(lambda frame: self._cancelled(channel, frame.method.consumer_tag))
        for name in self._names:
            self._consume(channel, queues.full_queue(name))

    def _consume(self, channel: Any, queue: str) -> None:
        is_durable = not has_transient_queues(channel.connection)
        channel.queue_declare(queue, durable=is_durable, arguments=queues.FULL_ARGUMENTS)
        self._consumers[channel.basic_consume(queue, self._arrived, auto_ack=True)] = queue

    def _cancelled(self, channel: Any, tag: str) -> None:
        # The queue was deleted, or its node went down.
        queue = self._consumers.pop(tag, None)
        if queue is not None:
            self._consume(channel, queue)

    def _closed(self, reason: BaseException) -> None:
        _log.warning("overflow-unread %s: %s", self._link.where, reason)

    def _arrived(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        # Of one that expired the caller knows.
        if properties.reply_to and (properties.headers or {}).get("x-first-death-reason") == "maxlen":
            code = status.UNAVAILABLE
            answer = messages.reply_properties(properties.correlation_id or "", code, 0, final=True)
            envelope = mesh.pack_failure(code, "too much waits for the service", PAUSE_S)[2:]
            channel.basic_publish("", properties.reply_to, envelope, answer)
