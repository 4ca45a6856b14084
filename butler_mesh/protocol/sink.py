"""Events, one way: from any number of sources to one sink, by records of kind EVENT."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from butler_mesh import codec, status
from butler_mesh.counters import Counters
from butler_mesh.errors import ProtocolError
from butler_mesh.protocol import mesh
from butler_mesh.protocol.liveness import DEAD_AFTER_S, HEARTBEAT_INTERVAL_S
from butler_mesh.protocol.member import STALL_S, Member, Phase
from butler_mesh.protocol.mesh import Frame
from butler_mesh.protocol.outbox import MAX_OUTBOX_BYTES, Outbox
from butler_mesh.protocol.peers import Door, Peer

SOURCE = "source"
MAX_SINK_BYTES = 64 * 1024 * 1024
"""What events that wait for their reader may hold; a source keeps an outbox full of them."""
MAX_EVENTS = 10_000
"""Events that may wait for their reader, and at a source for its sink; further ones are counted."""


class SinkProtocol:
    """Takes events from whoever has greeted it."""

    def __init__(self, now: float) -> None:
        self.dirty: list[Outbox] = []
        self.filled: list[Outbox] = []
        self.notes: list[str] = []
        self.counters = Counters()
        self.door = Door("sink")
        # Events as they came (JSON), oldest first; the reader pops them.
        self.events: deque[bytes] = deque()
        self.waiting_bytes = 0
        self._ticked_at = now
        self._beat_at = now + HEARTBEAT_INTERVAL_S

    def receive(self, door: Door, routing_id: bytes, frame: bytes, rest: Sequence[Frame], now: float) -> None:
        """Act on one message."""
        peers = self.door.peers
        peer = peers.get(routing_id)
        try:
            _, records = mesh.parse(frame, rest)
        except mesh.UnsupportedVersion as error:
            self._send_away(routing_id, status.NOT_IMPLEMENTED, f"{error}; this sink speaks 1")
            return
        except ProtocolError:
            self.counters.add("dropped.malformed")
            return
        for record in records:
            if record.kind == mesh.HELLO:
                if not _is_source(record.payload):
                    self._send_away(routing_id, status.FORBIDDEN, "a sink takes sources only")
                    return
                if peer is not None:
                    peer.outbox.drop()
                outbox = Outbox(self.dirty, self.door, routing_id)
                peer = peers[routing_id] = Peer(self.door, outbox, SOURCE, now)
                peer.outbox.add(mesh.WELCOME, payload=codec.dumps({"version": mesh.VERSION}))
            elif peer is None:
                self._send_away(routing_id, status.UNAUTHORIZED, "HELLO first")
                return
            elif record.kind == mesh.EVENT:
                if len(self.events) < MAX_EVENTS and self.waiting_bytes < MAX_SINK_BYTES:
                    self.events.append(record.payload)
                    self.waiting_bytes += len(record.payload)
                else:
                    self.counters.add("dropped.full")
            elif record.kind == mesh.GOODBYE:
                peer.dismiss(status.OK, "")
                peers.pop(routing_id, None)
                return
        if peer is not None:
            peer.heard_at = now

    def pop(self) -> bytes:
        """Take the oldest event; IndexError when there is none."""
        event = self.events.popleft()
        self.waiting_bytes -= len(event)
        return event

    def run(self, now: float) -> None:
        """Nothing is left to do when the input is read."""

    def tick(self, now: float, *, drained: bool = True) -> None:
        """Beat, and forget sources that fell silent."""
        if now < self._beat_at:
            return
        slept_s, self._ticked_at = now - self._ticked_at, now
        self._beat_at = now + HEARTBEAT_INTERVAL_S
        for routing_id, peer in list(self.door.peers.items()):
            if slept_s > STALL_S:
                peer.heard_at += slept_s
            if drained and now - peer.heard_at >= DEAD_AFTER_S:
                del self.door.peers[routing_id]
            else:
                peer.outbox.add(mesh.HEARTBEAT)

    def next_due(self) -> float:
        """Return when ``tick`` is to be called next."""
        return self._beat_at

    def connection_made(self, door: Door, now: float) -> None:
        """Somebody came; they will say HELLO."""

    def connection_lost(self, door: Door, now: float) -> None:
        """Somebody left; the next heartbeat finds out who."""

    def peer_gone(self, outbox: Outbox, now: float) -> None:
        """Nobody is there any more."""
        self.door.peers.pop(outbox.routing_id, None)

    def _send_away(self, routing_id: bytes, code: int, reason: str) -> None:
        self.counters.add("refused.stranger")
        Peer(self.door, Outbox(self.dirty, self.door, routing_id, is_parting=True), "", 0.0).dismiss(
            code, reason
        )


def _is_source(hello: bytes) -> bool:
    try:
        return mesh.split_object(hello).get("role") == SOURCE
    except ProtocolError:
        return False


class SourceProtocol(Member):
    """Sends events; keeps those of the time without a sink, as far as the bounds go."""

    role = SOURCE

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0

    def send(self, event: bytes) -> bool:
        """Send an event, or keep it for when the sink is there; False when there is no room."""
        is_full = self.outbox.pending_bytes + self._waiting_bytes > MAX_OUTBOX_BYTES
        if is_full or len(self._waiting) >= MAX_EVENTS:
            self.counters.add("dropped.full")
            return False
        if self.phase is Phase.PRESENT:
            self.outbox.add(mesh.EVENT, payload=event)
        else:
            self._waiting.append(event)
            self._waiting_bytes += len(event)
        return True

    def run(self, now: float) -> None:
        """Nothing is left to do when the input is read."""

    def on_welcome(self, now: float) -> None:
        while self._waiting:
            self.outbox.add(mesh.EVENT, payload=self._waiting.popleft())
        self._waiting_bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for a sink."""
        return not self._waiting
