"""Stored requests that failed, kept a while before they are given back: what they need may be there then."""

from __future__ import annotations

import logging
from collections.abc import Callable

from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp.delivery import AmqpDelivery
from butler_mesh.connections.amqp.loop import Alarm

PAUSES_S = (0.2, 0.4, 0.8, 1.6, 3.2, 0.0)
"""After the first failure, and the others; the last one goes to the dead."""

_log = logging.getLogger("butler_mesh.service")


class Retries:
    """``give_back(job)`` is called from the hub with each whose pause is over."""

    def __init__(self, give_back: Callable[[AmqpDelivery], None]) -> None:
        self._alarm: Alarm[AmqpDelivery] = Alarm(give_back)

    def add(self, job: AmqpDelivery, code: int) -> None:
        """Keep a request whose handler has ended with this status."""
        pause_s = PAUSES_S[min(job.deliveries, len(PAUSES_S) - 1)]
        if pause_s:
            _log.warning("retried %s of %.200r in %.1f s: %d", job.id, job.target, pause_s, code)
        else:
            _log.warning(
                "given-up %s of %.200r after %d attempts: %d", job.id, job.target, len(PAUSES_S), code
            )
        self._alarm.add(job, monotonic() + pause_s)

    def close(self) -> None:
        """Give nothing back any more: the broker does when the connection ends."""
        self._alarm.close()
