"""How a process's main part runs: until it is told to stop, then orderly, then by force."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

GRACE_S = 30.0
"""How long a stop waits for running handlers: what container schedulers give before they kill."""


class Lifetime:
    """One run of a router, service or application in the main greenlet of its process."""

    def __init__(self) -> None:
        self._stop = Event()

    def run(self, start: Callable[[], object], close: Callable[[], object]) -> None:
        """Start, wait for ``stop``, SIGTERM or SIGINT, close. A second signal ends the process at once.

        In threads other than the main one signals are left alone.
        """
        self._stop.clear()
        watchers: list[Any] = []
        if threading.current_thread() is threading.main_thread():
            watchers = [gevent.signal_handler(n, self._on_signal) for n in (signal.SIGTERM, signal.SIGINT)]
        try:
            start()
            self._stop.wait()
        finally:
            try:
                close()
            finally:
                for watcher in watchers:
                    watcher.cancel()

    def stop(self) -> None:
        """Make ``run`` close and return."""
        self._stop.set()

    def _on_signal(self) -> None:
        if self._stop.is_set():
            os._exit(1)
        self._stop.set()
