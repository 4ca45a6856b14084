"""Gunicorn's settings in the tests: a worker says when it is ready.

Before that a SIGTERM would be lost on it: between the fork and its own handlers it has those of its parent,
who then waits for it until the graceful time-out.
"""

from __future__ import annotations

from typing import Any

READY = "worker is ready"


def post_worker_init(worker: Any) -> None:
    """Called by each worker, when it has loaded the application."""
    worker.log.info(READY)
