"""Living with gevent's hub in programs that do not know of it.

Whatever is sent and received passes in the hub's turns. Where nothing is patched it turns only while somebody
waits here, and a signal's handler may run within it, where nobody may wait.
"""

from __future__ import annotations

from collections.abc import Callable

import gevent
from gevent.hub import get_hub
from greenlet import getcurrent

HOPS = 4
"""Turns until what was written has left: from a queue to the greenlet of the request, from that to the
connection, and through it; one more for whoever is in between."""


def turn() -> None:
    """Let what was written leave, before a program that sleeps or computes next."""
    for _ in range(HOPS):
        gevent.sleep(0)


def run_outside(act: Callable[[], object]) -> None:
    """Do what may wait; in a greenlet of its own if we are in the hub, which is where signals strike a
    program that waits."""
    if getcurrent() is get_hub():
        gevent.spawn(act)
    else:
        act()
