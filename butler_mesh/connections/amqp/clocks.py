"""How long a request was on its way, told by two clocks that nobody has set by each other."""

from __future__ import annotations

LATELY_S = 60.0
"""What a client's clock said is believed for once to twice as long."""
MAX_CLIENTS = 10_000


class Clocks:
    """What is between the clocks of clients and ours, as far as their requests tell.

    AMQP says nothing of how long a message waited. Its sender's clock does, but for the difference of the
    two: the least that was seen of a client lately is taken for that, and only what is more for waiting.
    So a client's first request has all its time, however long it waited: whoever gives up says so.
    """

    def __init__(self) -> None:
        # Client -> the least difference, of this minute and of the one before.
        self._least: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._ends_at = 0.0

    def waited_ms(self, client: str, sent_ms: int, wall_ms: int, now: float) -> int:
        """Return how long a request was on its way beyond the quickest of this client's; ``now`` is of the
        monotonic clock."""
        if now >= self._ends_at or len(self._least) >= MAX_CLIENTS:
            is_recent = now < self._ends_at + LATELY_S
            self._before = self._least if is_recent else {}
            self._least = {}
            self._ends_at = now + LATELY_S
        apart = wall_ms - sent_ms
        least = self._least[client] = min(apart, self._least.get(client, apart))
        return apart - min(least, self._before.get(client, least))
