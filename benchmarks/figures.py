"""Figures: everything that was measured, round by round, and the medians of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any, NamedTuple


class Case(NamedTuple):
    """One measurement: so many calls in flight, or one-way messages if none are."""

    size: int = 100
    in_flight: int = 64
    workers: int = 1
    clients: int = 1

    def __str__(self) -> str:
        words = [spelled(self.size)]
        words.append(f"{self.in_flight} in flight" if self.in_flight else "one-way")
        if self.workers > 1:
            words.append(f"{self.workers} workers")
        if self.clients > 1:
            words.append(f"{self.clients} clients")
        return ", ".join(words)


HEADLINE = Case()


def spelled(size: int) -> str:
    """Return a size as it is spoken: 100 B, 1 KiB."""
    return f"{size} B" if size < 1024 else f"{size // 1024} KiB"


class Spread(NamedTuple):
    """A figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of at least one value."""
        ordered = sorted(values)
        return cls(median(ordered), ordered[0], ordered[-1])

    def __str__(self) -> str:
        middle = f"{self.median:,.0f}"
        return middle if self.low == self.high else f"{middle} ({self.low:,.0f}–{self.high:,.0f})"


class Figures:
    """What each system did in each case and round: a dict of named figures."""

    def __init__(self) -> None:
        self._rounds: dict[tuple[str, Case], dict[int, dict[str, float]]] = defaultdict(dict)
        # Systems that could not be measured, and why: one line each.
        self.absent: dict[str, str] = {}

    def add(self, system: str, case: Case, turn: int, found: dict[str, float]) -> None:
        """Keep what was found in one round."""
        self._rounds[system, case][turn] = found

    def systems(self, case: Case) -> list[str]:
        """Return those that were measured in this case, in the order of their first turn."""
        return [system for system, measured in self._rounds if measured == case]

    def cases(self) -> list[Case]:
        """Return all cases, in the order of their first measurement."""
        return list(dict.fromkeys(case for _, case in self._rounds))

    def has(self, system: str, case: Case, name: str) -> bool:
        """Tell whether there is anything to take a median of."""
        return bool(self._values(system, case, name))

    def spread(self, system: str, case: Case, name: str) -> Spread:
        """Return median, lowest and highest of a figure."""
        return Spread.of(self._values(system, case, name).values())

    def ratio(self, of: str, to: Iterable[str], case: Case, name: str, *, best: Any = max) -> Spread | None:
        """Return the spread of in-round ratios: to the best of several, round by round.

        Rounds are compared with themselves, for what disturbs one disturbs all of its systems. None when no
        round has both sides.
        """
        others = [self._values(system, case, name) for system in to]
        ratios = []
        for turn, value in self._values(of, case, name).items():
            present = [other[turn] for other in others if turn in other]
            if present:
                ratios.append(value / best(present))
        return Spread.of(ratios) if ratios else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return everything, a dict for each round of each system and case."""
        for (system, case), turns in self._rounds.items():
            for turn, found in turns.items():
                yield {"system": system, **case._asdict(), "round": turn, **found}

    def _values(self, system: str, case: Case, name: str) -> dict[int, float]:
        turns = self._rounds.get((system, case), {})
        return {turn: found[name] for turn, found in turns.items() if name in found}
