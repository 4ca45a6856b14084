"""Waiting for what other greenlets, threads and processes do: a condition with a deadline, never a sleep."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TypeVar

import gevent

T = TypeVar("T")

LOOK_S = 0.002
"""How often the condition is looked at; other greenlets run in between."""


def wait_for(condition: Callable[[], T], timeout_s: float = 5.0) -> T:
    """Return the condition's first true value; AssertionError with its last one when none comes in time."""
    until = monotonic() + timeout_s
    while not (value := condition()):
        assert monotonic() < until, f"waited {timeout_s} s in vain; last seen: {value!r}"
        gevent.sleep(LOOK_S)
    return value
