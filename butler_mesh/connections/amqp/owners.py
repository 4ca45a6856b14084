"""Which prefix of a path had a reader when it was last asked for."""

from __future__ import annotations

MEMORY_S = 5.0
"""How long an owner is believed in: a longer prefix may be claimed meanwhile."""
MAX_PATHS = 1000


class Owners:
    """The queues that paths went to. Times are of the monotonic clock."""

    def __init__(self) -> None:
        # Path -> (the prefix that has an owner, until when we believe it).
        self._known: dict[str, tuple[str, float]] = {}

    def of(self, path: str, now: float) -> str:
        """Return the owner of a path; '' where none is known."""
        owner, believed_until = self._known.get(path, ("", 0.0))
        return owner if now < believed_until else ""

    def learn(self, path: str, owner: str, now: float) -> None:
        """Remember who answered for a path, unless somebody is remembered."""
        if self.of(path, now):
            return
        if len(self._known) >= MAX_PATHS:
            self._known.clear()
        self._known[path] = owner, now + MEMORY_S

    def forget(self, path: str) -> None:
        """Believe in nobody any more."""
        self._known.pop(path, None)
