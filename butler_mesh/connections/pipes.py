"""Pipes inside the process: how a local party and a router's machine exchange messages.

The same machines run at both ends as over a socket, and the same bytes pass: what a test proves over
``memory://`` holds for the wire. A pipe is never full; credit, windows and the router's bounded queue
are what holds back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from butler_mesh.clock import monotonic
from butler_mesh.connections.pump import Pump, Sent
from butler_mesh.protocol.mesh import Frame
from butler_mesh.protocol.outbox import Message


class PipeHub:
    """The router's port for all local parties; ``door`` is the door they come through."""

    def __init__(self, door: object) -> None:
        self.door = door
        self.is_ready = False
        self.pump: Pump | None = None
        self._inbox: deque[tuple[bytes, Message]] = deque()
        self._ends: dict[bytes, PipeEnd] = {}
        self._last = 0

    def connect(self, on_close: Callable[[], None] | None = None) -> PipeEnd:
        """Return a new pipe's far end, to be attached to the local party's pump."""
        self._last += 1
        end = PipeEnd(self, self._last.to_bytes(5, "big"), on_close)
        self._ends[end.routing_id] = end
        return end

    def start(self, pump: Pump) -> None:
        self.pump = pump

    def receive(self) -> tuple[bytes, bytes, Sequence[Frame]] | None:
        if not self._inbox:
            return None
        routing_id, frames = self._inbox.popleft()
        self.look()
        return routing_id, bytes(frames[0]), frames[1:]

    def send(self, routing_id: bytes, frames: Message) -> Sent:
        end = self._ends.get(routing_id)
        if end is None:
            return Sent.GONE
        end.deliver(frames)
        return Sent.YES

    def look(self) -> bool:
        self.is_ready = bool(self._inbox)
        return self.is_ready

    def close(self, linger_s: float) -> None:
        ends = list(self._ends.values())
        self._ends.clear()
        for end in ends:
            end.cut()

    def abandon(self) -> None:
        self._ends.clear()

    def deliver(self, routing_id: bytes, frames: Message) -> None:
        """Take a message from a far end."""
        self._inbox.append((routing_id, frames))
        self.is_ready = True
        if self.pump is not None:
            self.pump.arm(monotonic())

    def forget(self, routing_id: bytes) -> None:
        """A far end was closed."""
        if self._ends.pop(routing_id, None) is not None and self.pump is not None:
            self.pump.connection_lost(self)


class PipeEnd:
    """A local party's port."""

    door: object = None

    def __init__(self, hub: PipeHub, routing_id: bytes, on_close: Callable[[], None] | None) -> None:
        self.is_ready = False
        self.routing_id = routing_id
        self._on_close = on_close
        self._hub: PipeHub | None = hub
        self._pump: Pump | None = None
        self._inbox: deque[Message] = deque()

    def start(self, pump: Pump) -> None:
        self._pump = pump
        pump.connection_made(self)

    def receive(self) -> tuple[bytes, bytes, Sequence[Frame]] | None:
        if not self._inbox:
            return None
        frames = self._inbox.popleft()
        self.look()
        return b"", bytes(frames[0]), frames[1:]

    def send(self, routing_id: bytes, frames: Message) -> Sent:
        if self._hub is None:
            return Sent.GONE
        self._hub.deliver(self.routing_id, frames)
        return Sent.YES

    def look(self) -> bool:
        self.is_ready = bool(self._inbox)
        return self.is_ready

    def close(self, linger_s: float) -> None:
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.forget(self.routing_id)
        if self._on_close is not None:
            self._on_close()
            self._on_close = None

    def abandon(self) -> None:
        self._hub = None

    def deliver(self, frames: Message) -> None:
        """Take a message from the router's side."""
        self._inbox.append(frames)
        self.is_ready = True
        if self._pump is not None:
            self._pump.arm(monotonic())

    def cut(self) -> None:
        """The router's side is gone."""
        self._hub = None
        if self._pump is not None:
            self._pump.connection_lost(self, was_last=True)
