"""The deadline of the work at hand: in the context, so that calls made for it inherit it."""

from __future__ import annotations

from contextvars import ContextVar

from butler_mesh.clock import monotonic

NEVER = float("inf")

DEFAULT_TIMEOUT_S = 30.0
"""Deadline of a call that sets none and is made on nobody's behalf: a proxy's usual patience."""
NOWAIT_TIMEOUT_S = 60.0
"""Deadline of a request nobody waits for; its own, for it may outlive the work that caused it."""

current: ContextVar[float] = ContextVar("butler_mesh_deadline", default=NEVER)
"""Monotonic seconds by which the present handler must be done; NEVER outside of any."""


def remaining_s() -> float:
    """Return the seconds left for the present handler (infinite outside of any; never negative)."""
    deadline = current.get()
    return deadline if deadline == NEVER else max(0.0, deadline - monotonic())


def deadline_for(timeout_s: float | None, now: float, default_s: float = DEFAULT_TIMEOUT_S) -> float:
    """Return the deadline of a nested call: its own, but never later than the one inherited."""
    own = now + (default_s if timeout_s is None else timeout_s)
    inherited = current.get()
    return own if own < inherited else inherited
