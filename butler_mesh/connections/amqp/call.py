"""One request on its way over AMQP, as its client keeps it."""

from __future__ import annotations

import time
from math import ceil
from typing import Protocol

from pika import BasicProperties

from butler_mesh.connections.amqp import messages, queues
from butler_mesh.connections.base import ALL, MANAGEMENT, OnReply
from butler_mesh.protocol.mesh import DURABLE
from butler_mesh.protocol.wheel import NEVER


class Confirming(Protocol):
    """What a call needs of the channel that it awaits the broker's word on."""

    def forget(self, call: Call) -> None: ...


class Call:
    """One request that has not had its last reply (a one-way one: that has not been confirmed)."""

    __slots__ = (
        "confirming",
        "control",
        "deadline",
        "envelope",
        "flags",
        "has_waited",
        "id",
        "on_reply",
        "parts",
        "patience_s",
        "queue",
        "queues",
        "scope",
        "slot",
        "tag",
        "target",
        "tries",
        "was_sent",
        "window",
    )

    def __init__(
        self, id_: str, target: str, envelope: bytes, flags: int, deadline: float, on_reply: OnReply
    ) -> None:
        self.id = id_
        self.target = target
        self.envelope = envelope
        self.flags = flags
        self.deadline = deadline
        # None once nobody wants to hear more.
        self.on_reply: OnReply | None = on_reply
        # Whom a command is for: ALL or a wid; '' where it is a request.
        self.scope = ""
        # The queue it goes to, and those that are to be tried when nobody reads this one.
        self.queue = ""
        self.queues: list[str] = []
        self.slot: set[Call] | None = None
        # Whether its service was taken for one that is about to register.
        self.has_waited = False
        self.was_sent = False
        self.tries = 0
        self.parts = 0
        self.patience_s = 0.0
        self.window = 0
        # The channel that the broker will confirm it on, and what by.
        self.confirming: Confirming | None = None
        self.tag = 0
        # The queue of the instance that has it, where one has shown itself.
        self.control = ""

    def route(self, owner: str = "") -> None:
        """Set the queue to the one that bears the target's name, or to the owner of the path, or to the
        longest of the prefixes that may own it; to '' where the target cannot have one."""
        self.queues = []
        if self.scope:
            self.queue = self.target.removeprefix(MANAGEMENT) if self.scope == ALL else self.target
        elif self.flags & DURABLE:
            self.queue = "" if self.target.startswith("/") else queues.durable_queue(self.target)
        elif not self.target.startswith("/"):
            self.queue = self.target
        elif owner:
            self.queue, self.queues = owner, queues.prefixes(self.target)
        else:
            self.queue, *self.queues = queues.prefixes(self.target)
        if len(self.queue.encode()) > queues.LONGEST_NAME:
            self.queue = ""

    @property
    def address(self) -> tuple[str, str]:
        """The exchange and the key that it is published with: commands go to instances' own queues."""
        return (queues.CONTROL_EXCHANGE, queues.control_key(self.queue)) if self.scope else ("", self.queue)

    @property
    def control_address(self) -> tuple[str, str]:
        """Where to tell whoever has it something: its own queue, where it has shown itself, or all."""
        return (
            ("", self.control) if self.control else (queues.CONTROL_EXCHANGE, queues.control_key(self.queue))
        )

    def properties(self, now: float) -> BasicProperties:
        """Return what it is published with, at a time of the monotonic clock."""
        remaining_ms = 0x7FFFFFFF
        if self.deadline != NEVER:
            # 0 would mean: only for whoever takes it this instant.
            # What is stored waits for as long as it takes: its time is its handler's.
            left_s = self.patience_s if self.flags & DURABLE else self.deadline - now
            remaining_ms = max(1, min(remaining_ms, ceil(left_s * 1000)))
        # A command always says whom it is for: its key may be cut off.
        queue = "" if self.scope else self.queue
        return messages.request_properties(
            self.id, self.target, queue, self.flags, remaining_ms, int(time.time() * 1000), self.window
        )
