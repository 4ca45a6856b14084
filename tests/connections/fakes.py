"""A port and a machine that are lists: what the pump is tested against, and what sockets are tested with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from butler_mesh.clock import monotonic
from butler_mesh.connections.pump import Pump, Sent
from butler_mesh.counters import Counters
from butler_mesh.protocol import mesh
from butler_mesh.protocol.mesh import Frame
from butler_mesh.protocol.outbox import Message, Outbox

FAR = 3600.0


class Log(list[str]):
    """What was called, in order, and in how many turns."""

    @property
    def turns(self) -> int:
        return self.count("run")


class FakePort:
    """A transport end whose input and output are lists."""

    def __init__(self, log: Log, door: object = "door") -> None:
        self.door = door
        self.is_ready = True
        self.inbox: deque[tuple[bytes, bytes, Sequence[Frame]]] = deque()
        self.sent: list[tuple[bytes, bytes]] = []
        # What sending to a peer results in; Sent.YES for those not named.
        self.results: dict[bytes, Sent | Exception] = {}
        # What arrives in the middle of the next send, and whose edge that send swallows.
        self.arrives_with_send: list[bytes] = []
        self.on_receive: Callable[[], None] = lambda: None
        self.log = log

    def start(self, pump: Pump) -> None:
        self.log.append("start")

    def arrive(self, *frames: bytes, rest: Sequence[bytes] = ()) -> None:
        """Let messages arrive; the port is not told, as before its descriptor has woken anybody."""
        self.inbox.extend((b"id", frame, rest) for frame in frames)

    def receive(self) -> tuple[bytes, bytes, Sequence[Frame]] | None:
        self.on_receive()
        message = self.inbox.popleft() if self.inbox else None
        self.look()
        return message

    def send(self, routing_id: bytes, frames: Message) -> Sent:
        result = self.results.get(routing_id, Sent.YES)
        if isinstance(result, Exception):
            raise result
        if result is Sent.YES:
            self.sent.append((routing_id, bytes(frames[0])))
        self.arrive(*self.arrives_with_send)
        self.arrives_with_send.clear()
        return result

    def look(self) -> bool:
        self.is_ready = bool(self.inbox)
        return self.is_ready

    def close(self, linger_s: float) -> None:
        self.log.append(f"close {linger_s:g}")

    def abandon(self) -> None:
        self.log.append("abandon")

    def records(self, routing_id: bytes = b"id") -> list[int]:
        """Return the ids of the records sent to a peer."""
        sent = (frame for id_, frame in self.sent if id_ == routing_id)
        return [record.id for frame in sent for record in mesh.parse(frame)[1]]

    def stamps(self) -> list[int]:
        """Return the stamps of all messages sent."""
        return [mesh.parse(frame)[0] for _, frame in self.sent]


class FakeMachine:
    """A machine that notes what it is told, and fails where a test says so."""

    def __init__(self, log: Log) -> None:
        self.dirty: list[Outbox] = []
        self.filled: list[Outbox] = []
        self.notes: list[str] = []
        self.counters = Counters()
        self.received: list[bytes] = []
        self.doors: list[object] = []
        self.gone: list[bytes] = []
        self.drained: list[bool] = []
        self.due = FAR + monotonic()
        self.failing: set[str] = set()
        self.on_receive: Callable[[bytes], None] = lambda frame: None
        self.on_run: Callable[[float], None] = lambda now: None
        self.log = log

    def outbox(self, routing_id: bytes = b"id", door: object = "door") -> Outbox:
        return Outbox(self.dirty, door, routing_id)

    def receive(self, door: Any, routing_id: bytes, frame: bytes, rest: Sequence[Frame], now: float) -> None:
        self.log.append("receive")
        self.received.append(frame)
        self.doors.append(door)
        self._fail("receive")
        self.on_receive(frame)

    def run(self, now: float) -> None:
        self.log.append("run")
        self._fail("run")
        self.on_run(now)

    def tick(self, now: float, *, drained: bool = True) -> None:
        self.log.append("tick")
        self.drained.append(drained)
        self._fail("tick")
        self.due = now + FAR

    def next_due(self) -> float:
        self._fail("next_due")
        return self.due

    def connection_made(self, door: Any, now: float) -> None:
        self.log.append(f"made {door}")
        self._fail("made")

    def connection_lost(self, door: Any, now: float) -> None:
        self.log.append(f"lost {door}")
        self._fail("lost")

    def peer_gone(self, outbox: Outbox, now: float) -> None:
        self.gone.append(outbox.routing_id)
        self._fail("gone")

    def _fail(self, where: str) -> None:
        if where in self.failing:
            raise RuntimeError(f"a bug in {where}")
