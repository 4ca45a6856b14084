"""One request that came over AMQP, in the hands of a handler."""

from __future__ import annotations

import time
from typing import Protocol

import gevent
from gevent.event import Event
from pika import BasicProperties

from butler_mesh import status
from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp import messages
from butler_mesh.connections.amqp.clocks import Clocks
from butler_mesh.connections.base import Delivery
from butler_mesh.connections.engine import FLUSH_BYTES, WINDOW_PATIENCE_S
from butler_mesh.connections.workers import Worker
from butler_mesh.errors import Stopped
from butler_mesh.protocol.mesh import STREAM
from butler_mesh.protocol.wheel import NEVER

MAX_WINDOW = 0xFFFF  # parts
FLUSH_LOOK_S = 0.005
"""How often a stream's handler looks whether the connection has taken what it sent."""


class Instance(Protocol):
    """What a delivery needs of the instance that has accepted it."""

    clocks: Clocks

    @property
    def durable_queue(self) -> str: ...
    @property
    def unsent_bytes(self) -> int: ...
    def reply(self, job: AmqpDelivery, code: int, envelope: bytes, flags: int, *, final: bool) -> None: ...


class AmqpDelivery(Delivery):
    """One request that this instance has accepted and owes an answer."""

    __slots__ = (
        "_instance",
        "control",
        "deadline",
        "deliveries",
        "envelope",
        "flags",
        "has_begun",
        "id",
        "is_command",
        "is_over",
        "key",
        "number",
        "patience_s",
        "queue",
        "reply_to",
        "session",
        "slot",
        "tag",
        "target",
        "tries",
        "window",
        "window_opened",
        "worker",
    )

    def __init__(
        self,
        instance: Instance,
        properties: BasicProperties,
        queue: str,
        envelope: bytes,
        tag: int,
        session: int,
        now: float,
    ) -> None:
        # Whoever knows nothing of us says nothing of kinds; a reply led astray does.
        if properties.type not in (messages.REQUEST, None) or messages.has_forged_death(properties):
            raise ValueError(f"no request, but {properties.type!r:.80}")
        self._instance = instance
        self.id = properties.correlation_id or ""
        # Whoever knows nothing of us may give none, or one that others have as well.
        self.key = self.id or f"{session}.{tag}"
        # How often it has been begun before, as far as we were told.
        self.tries = messages.number(properties, "tries", 0)
        self.reply_to = properties.reply_to or ""
        self.queue = queue
        self.target = messages.request_target(properties, queue)
        self.envelope = envelope
        self.flags = messages.request_flags(
            properties, is_stored=bool(queue) and queue == instance.durable_queue
        )
        left_s = messages.remaining_s(properties, instance.clocks, int(time.time() * 1000), now)
        self.deadline = NEVER if left_s is None else now + left_s
        self.patience_s = left_s if left_s is not None and self.flags & STREAM else 0.0
        self.window = min(MAX_WINDOW, messages.number(properties, "window", 0))
        self.number = 0
        # How often the broker has handed it out before; counted for stored requests only.
        self.deliveries = max(0, messages.number(properties, "x-delivery-count", 0))
        # What the broker knows it by, and on which of our connections: an answer made for an earlier one
        # is dropped, for the broker has given the request to somebody again.
        self.tag = tag
        self.session = session
        self.has_begun = False
        # Came to this instance alone, or to all of them: there is nothing to acknowledge.
        self.is_command = False
        self.is_over = False
        self.slot: set[AmqpDelivery] | None = None
        self.window_opened: Event | None = None
        self.worker: Worker[AmqpDelivery] | None = None

    def reply(self, status: int, envelope: bytes, *, flags: int = 0, final: bool = True) -> None:
        self._instance.reply(self, status, envelope, flags, final=final)

    def wait_for_window(self) -> None:
        while self._instance.unsent_bytes > FLUSH_BYTES and monotonic() < self.deadline:
            gevent.sleep(FLUSH_LOOK_S)
        if self.window <= 0:
            self.window_opened = self.window_opened or Event()
            while self.window <= 0:
                self.window_opened.clear()
                if not self.window_opened.wait(WINDOW_PATIENCE_S):
                    raise Stopped(status.DEADLINE_PASSED, "the stream's reader takes no more")
