"""Several brokers that know nothing of each other, all of them read: a service that outlives any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gevent

from butler_mesh.connections.base import Handler, InstanceConnection


class SeveralInstances(InstanceConnection):
    """One instance at each of several brokers, as one. Each comes back by itself when its broker does.

    Credit is per broker. What one broker has handed out another knows nothing of. The wid is the same at all:
    a command finds it at any.
    """

    def __init__(self, connections: Sequence[InstanceConnection]) -> None:
        self._connections = connections
        self.wid = connections[0].wid
        for connection in connections:
            connection.wid = self.wid

    @property
    def raw(self) -> Any:
        """The driver's connection to the first broker that is there; None where none is."""
        return next((raw for one in self._connections if (raw := one.raw) is not None), None)

    def serve(self, handler: Handler) -> None:
        for connection in self._connections:
            connection.serve(handler)

    def wait_until_registered(self, timeout_s: float) -> bool:
        """Wait until one broker has confirmed the registration: the rest may be away for long."""
        waiting = [gevent.spawn(one.wait_until_registered, timeout_s) for one in self._connections]
        try:
            return any(done.get() for done in gevent.iwait(waiting))
        finally:
            gevent.killall(waiting)

    def stop_intake(self) -> None:
        for connection in self._connections:
            connection.stop_intake()

    def close(self, drain_s: float) -> None:
        self.stop_intake()
        # Side by side: the time to drain is for all of them together.
        gevent.joinall([gevent.spawn(one.close, drain_s) for one in self._connections], raise_error=True)

    def abandon(self) -> None:
        for connection in self._connections:
            connection.abandon()
