"""Requests that were given up before they came."""

from __future__ import annotations

MAX_CANCELLED = 10_000


class Cancelled:
    """Their ids, the latest, each until its request comes."""

    def __init__(self) -> None:
        # In the order of time.
        self._ids: dict[str, None] = {}

    def add(self, id_: str) -> None:
        """Remember a request that is not to be begun."""
        self._ids[id_] = None
        if len(self._ids) > MAX_CANCELLED:
            del self._ids[next(iter(self._ids))]

    def take(self, id_: str) -> bool:
        """Tell whether a request that came was given up, and forget it."""
        return self._ids.pop(id_, self) is None
