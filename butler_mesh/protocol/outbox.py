"""What waits to leave for one peer: records being coalesced, and messages not yet sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from butler_mesh.protocol.mesh import (
    ATTACHED,
    MAX_BATCH_BYTES,
    MAX_BATCH_RECORDS,
    RECORD_SIZE,
    Frame,
    is_mesh,
    pack_header,
    pack_record,
    parse,
)

MAX_OUTBOX_BYTES = 8 * 1024 * 1024
"""What may wait for one peer: over it a request is answered 503, a reply cuts that client."""

MESSAGE_BYTES, FRAME_BYTES = 100, 50
"""What a foreign message and each of its frames hold beside their bytes, as Python objects."""

Message = Sequence[Frame]

_FILLED = 2 * MAX_BATCH_RECORDS


class Outbox:
    """Records in, ZeroMQ messages out. The machine writes, the pump sends ``messages`` in order."""

    __slots__ = (
        "_attachments",
        "_dirty",
        "_filled",
        "_pieces",
        "_size",
        "_unsealed",
        "door",
        "has_waited",
        "is_dirty",
        "is_parting",
        "messages",
        "pending_bytes",
        "routing_id",
    )

    def __init__(
        self,
        dirty: list[Outbox],
        door: object = None,
        routing_id: bytes = b"",
        *,
        is_parting: bool = False,
        filled: list[Outbox] | None = None,
    ) -> None:
        # The pump's way back: which of its ports, and whom behind it (b'' where there is just one).
        self.door = door
        self.routing_id = routing_id
        # A last word to a stranger: not worth keeping for one who does not read.
        self.is_parting = is_parting
        # Everything unsent, attachments included: what the bound is measured against.
        self.pending_bytes = 0
        # Sealed messages with their size, oldest first. The pump pops what the socket has taken.
        self.messages: deque[tuple[int, Message]] = deque()
        # The machine's list of outboxes to look at when the turn ends; this one is in it at most once.
        self._dirty = dirty
        # The same, of those that have filled a message: no need to wait for the rest of the turn.
        self._filled = filled
        self.is_dirty = False
        # Whether some of it was here already when it was last sent from: the transport did not take it.
        self.has_waited = False
        # The message being filled: place for the header, then header and payload of each record.
        self._pieces: list[bytes] = [b""]
        self._attachments: list[Frame] = []
        self._size = 0
        # Filled messages that still lack their stamp: all of one turn get the same.
        self._unsealed: list[tuple[list[bytes], list[Frame]]] = []

    def add(
        self,
        kind: int,
        flags: int = 0,
        id_: int = 0,
        remaining_ms: int = 0,
        payload: bytes = b"",
        envelope: Frame | None = None,
    ) -> None:
        """Append one record; ``envelope`` travels as a frame of its own."""
        if not self.is_dirty:
            self.is_dirty = True
            self.has_waited = self.pending_bytes > 0
            self._dirty.append(self)
        if envelope is not None:
            flags |= ATTACHED
            self._attachments.append(envelope)
            self.pending_bytes += len(envelope)
            # A message is closed at 1 MiB of them: high-water marks count messages, whatever is in them, and
            # what is small is not to wait for all the large ones beside it.
            self._size += len(envelope) // 32
        size = len(payload)
        pieces = self._pieces
        pieces += pack_record(size, kind, flags, id_, remaining_ms), payload
        size += RECORD_SIZE
        self.pending_bytes += size
        self._size += size
        if len(pieces) > _FILLED or self._size >= MAX_BATCH_BYTES:
            if self._filled is not None and not self._unsealed:
                self._filled.append(self)
            self._close()

    def put(self, frames: Sequence[Frame]) -> None:
        """Append one whole message of a foreign dialect."""
        if not self.is_dirty:
            self.is_dirty = True
            self.has_waited = self.pending_bytes > 0
            self._dirty.append(self)
        size = MESSAGE_BYTES + sum(map(len, frames)) + FRAME_BYTES * len(frames)
        self.pending_bytes += size
        self.messages.append((size, frames))

    def seal(self, now: float) -> None:
        """Turn what was added into messages stamped with the turn's time; the turn calls it once."""
        if self._size:
            self._close()
        self.seal_filled(now)

    def seal_filled(self, now: float) -> None:
        """Turn what is full into messages; records of a message that is being filled stay."""
        if self._unsealed:
            header = pack_header(int(now * 1000))
            for pieces, attachments in self._unsealed:
                pieces[0] = header
                frame = b"".join(pieces)
                # The header is not counted, so that what is taken off equals what was put on.
                size = len(frame) - len(header) + sum(map(len, attachments))
                self.messages.append((size, [frame, *attachments] if attachments else (frame,)))
            self._unsealed.clear()

    def sent(self) -> None:
        """Forget the oldest message: the socket has taken it."""
        self.pending_bytes -= self.messages.popleft()[0]

    def unsent(self, kind: int) -> set[int]:
        """Return the ids of the records of one kind that the socket has not taken: those of REQUESTs
        were never started, should the peer be lost now."""
        self.seal(0.0)
        ids: set[int] = set()
        for _, (frame, *attachments) in self.messages:
            head = bytes(frame)
            if is_mesh(head):
                ids.update(record.id for record in parse(head, attachments)[1] if record.kind == kind)
        return ids

    def drop(self) -> None:
        """Forget everything: the peer is gone."""
        self.messages.clear()
        self._unsealed.clear()
        self._pieces, self._attachments = [b""], []
        self._size = self.pending_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether no more should be added: too much waits, and not only because its turn to leave has not
        come, as after one reply of the largest size."""
        return self.has_waited and self.pending_bytes > MAX_OUTBOX_BYTES

    def _close(self) -> None:
        self._unsealed.append((self._pieces, self._attachments))
        self._pieces, self._attachments = [b""], []
        self._size = 0
