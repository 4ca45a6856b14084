"""How a process's main part runs: until it is told to stop, then orderly, then by force."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar

from gevent.event import Event
from gevent.hub import get_hub

GRACE_S = 30.0
"""How long a stop waits for running handlers: what container schedulers give before they kill."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Lifetime:
    """One run of a router, service or application in the main thread of its process."""

    # Those that run now: one process may hold a router and a service, and a signal means them all.
    _running: list[Lifetime] = []  # noqa: RUF012 (shared on purpose)
    _was_told = False
    # What the signals did before the first of them, to be put back after the last.
    _before: ClassVar[dict[signal.Signals, Any]] = {}

    def __init__(self) -> None:
        self._stop = Event()
        # Whether ``stop`` would end something.
        self.is_running = False

    def run(self, start: Callable[[], object], close: Callable[[], object]) -> None:
        """Start, wait for ``stop``, SIGTERM or SIGINT, close. A second signal ends the process at once,
        also while a handler computes.

        In threads other than the main one signals are left alone.
        """
        self._stop.clear()
        self.is_running = True
        is_main = threading.current_thread() is threading.main_thread()
        if is_main:
            is_first = not Lifetime._running
            # Before there is a handler: a signal that comes as soon as there is one means us.
            Lifetime._running.append(self)
            if is_first:
                Lifetime._was_told = False
                # Not gevent's watchers: those wait for the hub, which a computing handler keeps busy.
                Lifetime._before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
        # A loop without watchers would end: whoever waits for a signal waits for something.
        reason_to_live = get_hub().loop.async_()
        reason_to_live.start(_nothing)
        try:
            start()
            self._stop.wait()
        finally:
            self.is_running = False
            try:
                close()
            finally:
                reason_to_live.stop()
                reason_to_live.close()
                if is_main:
                    Lifetime._running.remove(self)
                    if not Lifetime._running:
                        for number, handler in Lifetime._before.items():
                            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def stop(self) -> None:
        """Make ``run`` close and return."""
        self._stop.set()


def _nothing() -> None:
    pass


def _on_signal(number: int, frame: FrameType | None) -> None:
    if Lifetime._was_told:
        os._exit(1)
    Lifetime._was_told = True
    loop = get_hub().loop
    for lifetime in Lifetime._running:
        # Not here, between any two instructions of whoever runs: in the hub's own time.
        loop.run_callback_threadsafe(lifetime.stop)
