"""Counters: what happened, by name, for status answers and tests.

A counter exists from its first increment; names are the field's standard terms, joined by dots from
the general to the particular (``dropped.malformed``).
"""

from __future__ import annotations


class Counters(dict[str, int]):
    """A dict of counts in which a missing name reads as 0."""

    def __missing__(self, name: str) -> int:
        return 0

    def add(self, name: str, n: int = 1) -> None:
        """Add ``n`` to the counter called ``name``."""
        self[name] = self.get(name, 0) + n
