"""A wheel of deadlines: O(1) to put a call in and to take it out again.

Calls end long before their deadline, nearly all of them. A heap with lazy deletion would keep each
until its deadline (10^6 answered calls with a minute's deadline, all held); a timer per call costs
5 µs. Here a call sits in the set of its 16 ms bucket and leaves it with its reply.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any, Generic, TypeVar

T = TypeVar("T")

BUCKET_S = 0.016
"""Width of a bucket: deadlines are late by at most this, never early."""

NEVER = float("inf")

SWEEP_OVER = 8192
"""Buckets (two minutes of them) over which emptied ones are looked for: calls that end, each with a
deadline of its own, would else leave one behind until then."""


class Wheel(Generic[T]):
    """Entries by the time they are due. ``add`` returns the slot that ``remove`` wants back."""

    __slots__ = ("_buckets", "_order", "_sweep_over")

    def __init__(self) -> None:
        # Bucket number -> entries due in it. Sparse: a deadline in a day costs no more than one now.
        self._buckets: dict[int, set[T]] = {}
        # The numbers of the buckets in the dict, as a heap: at most 62 pushes a second.
        self._order: list[int] = []
        self._sweep_over = SWEEP_OVER

    def add(self, entry: T, deadline: float) -> set[T]:
        """Put an entry in; keep the returned slot for ``remove``."""
        number = int(deadline / BUCKET_S) + 1
        slot = self._buckets.get(number)
        if slot is None:
            slot = self._buckets[number] = set()
            heappush(self._order, number)
            slot.add(entry)
            if len(self._order) > self._sweep_over:
                self._sweep()
            return slot
        slot.add(entry)
        return slot

    @staticmethod
    def remove(entry: T, slot: set[Any]) -> None:
        """Take an entry out of its slot; nothing happens when it has been popped already."""
        slot.discard(entry)

    def next_due(self) -> float:
        """Return when the earliest entry is due (NEVER for none), forgetting emptied buckets."""
        order = self._order
        while order:
            number = order[0]
            if self._buckets[number]:
                return number * BUCKET_S
            del self._buckets[heappop(order)]
        return NEVER

    def pop_due(self, now: float) -> list[T]:
        """Take out and return every entry whose time has come, earliest bucket first."""
        due: list[T] = []
        order = self._order
        while order and order[0] * BUCKET_S <= now:
            due.extend(self._buckets.pop(heappop(order)))
        return due

    def _sweep(self) -> None:
        # A sorted list is a heap. Next time at twice what is left, so that an entry pays for it once.
        self._buckets = {number: slot for number, slot in self._buckets.items() if slot}
        self._order = sorted(self._buckets)
        self._sweep_over = max(SWEEP_OVER, 2 * len(self._order))

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))
