"""Requests that have yet to be sent, in their order, bounded in number and bytes."""

from __future__ import annotations

from butler_mesh.connections.amqp.call import Call
from butler_mesh.protocol.outbox import MAX_OUTBOX_BYTES

MAX_WAITING = 20_000
"""For a connection, or for confirmations; over it the answer is 503."""


class Waiting:
    """Requests that wait for a connection, a broker with memory, or confirmations."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def is_full(self) -> bool:
        """Whether no more may wait."""
        return len(self._calls) >= MAX_WAITING or self._bytes >= MAX_OUTBOX_BYTES

    def add(self, call: Call) -> None:
        """Put a request behind the others."""
        if call.id not in self._calls:
            self._calls[call.id] = call
            self._bytes += len(call.envelope)

    def discard(self, call: Call) -> None:
        """Take a request out, if it is in."""
        if self._calls.pop(call.id, None) is not None:
            self._bytes -= len(call.envelope)

    def pop(self) -> Call:
        """Take the first one out."""
        call = next(iter(self._calls.values()))
        self.discard(call)
        return call
