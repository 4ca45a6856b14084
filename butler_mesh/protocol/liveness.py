"""Who is alive, by arithmetic: clocks that differ, pulses that stop.

Two planes speak for an instance. Its hub does the work; a native thread with its own connection
sends heartbeats also while a handler burns CPU. So *blocked* (send nothing new, keep its requests)
and *dead* (its requests are lost) can be told apart.
"""

from __future__ import annotations

import enum

HEARTBEAT_INTERVAL_S = 1.0
BLOCKED_AFTER_S = 3.0
"""Silence of the control thread after which an instance gets no new work: three heartbeats."""
DEAD_AFTER_S = 15.0
"""Silence after which an instance is given up: longer than a stop-the-world swap or a VM's pause."""
BLOCKED_LAG_S = 1.0
"""Lag of the hub, as its control thread reports it, after which an instance counts as blocked."""

_WRAP = 1 << 32
_HALF = 1 << 31
_WINDOW_S = 30.0


class State(enum.Enum):
    """What the router thinks of an instance; the value is what ``mmi.status`` shows."""

    READY = "ready"
    BLOCKED = "blocked"
    DEAD = "dead"


class Pulse:
    """When an instance was last heard, on which plane, and how far behind its hub is."""

    __slots__ = ("control_at", "has_control", "lag_s", "work_at")

    def __init__(self, now: float) -> None:
        self.work_at = now
        self.control_at = now
        # Until its control connection has come, the work connection's heartbeats must do.
        self.has_control = False
        self.lag_s = 0.0

    def heard_work(self, now: float) -> None:
        """Anything came over the work connection: the hub runs."""
        self.work_at = now
        self.lag_s = 0.0

    def heard_control(self, now: float, lag_s: float) -> None:
        """The control thread spoke; ``lag_s`` is how long its hub has not turned."""
        self.has_control = True
        self.control_at = now
        self.lag_s = lag_s

    def allow(self, seconds: float) -> None:
        """Forgive a silence in which it was the listener who slept."""
        self.work_at += seconds
        self.control_at += seconds

    def state(self, now: float, dead_after_s: float = DEAD_AFTER_S) -> State:
        """Judge. Only to be asked after everything that had arrived was read."""
        heard_at = max(self.control_at, self.work_at) if self.has_control else self.work_at
        silence = now - heard_at
        if silence >= dead_after_s:
            return State.DEAD
        if silence >= BLOCKED_AFTER_S or self.lag_s >= BLOCKED_LAG_S:
            return State.BLOCKED
        return State.READY


class Transit:
    """How long messages of one peer lay in a pipe, found from stamps of a clock that is not ours.

    The smallest (arrival − stamp) of the last half to whole minute is taken for a message that did
    not wait; what a message shows over it (a full pipe, a stopped process) is its excess. A moving
    minimum, for clocks drift.
    """

    __slots__ = ("_base", "_least", "_least_before", "_turned_at")

    def __init__(self) -> None:
        self._base: int | None = None
        self._least = 0
        self._least_before = 0
        self._turned_at = 0.0

    def excess_s(self, stamp_ms: int, now: float) -> float:
        """Return the seconds this message spent on the way beyond the usual."""
        offset = int(now * 1000) - stamp_ms
        if self._base is None:
            self._base = offset
            self._turned_at = now
            return 0.0
        # Stamps wrap after 49 days: differences are taken modulo 2^32, as signed numbers.
        offset = (offset - self._base + _HALF) % _WRAP - _HALF
        if now - self._turned_at >= _WINDOW_S:
            self._turned_at = now
            self._least_before, self._least = self._least, offset
        elif offset < self._least:
            self._least = offset
        least = self._least if self._least < self._least_before else self._least_before
        return (offset - least) / 1000.0
