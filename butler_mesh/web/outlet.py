"""Outlet: the way to the browsers of a Mongrel2 server."""

from __future__ import annotations

import os
from typing import Any

import gevent
import zmq

from butler_mesh.clock import monotonic
from butler_mesh.connections.sockets import context
from butler_mesh.errors import AddressError


class Outlet:
    """The way to one Mongrel2's browsers. Belongs to the process that made it, and there to one hub."""

    def __init__(self, endpoint: str) -> None:
        self.pid = os.getpid()
        self.made_at = monotonic()
        # Counts the servers that were there: connections of one mean nothing to the next.
        self.epoch = 0
        self.is_open = False
        self._socket: zmq.Socket[Any] = context().socket(zmq.XPUB)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # a reply is never dropped
        # Or what is on its way when a server goes would be kept for the next one; and nobody would tell us.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.LINGER, 1000)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            raise AddressError(f"cannot connect to {endpoint!r}: {error.strerror}") from error

    def look(self) -> bool:
        """Tell whether a server listens to us."""
        while True:
            try:
                event = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return self.is_open
            self.is_open = event[:1] == b"\1"
            self.epoch += self.is_open

    def wait(self, timeout_s: float) -> bool:
        """Wait until a server listens to us; False when none did within ``timeout_s`` seconds."""
        until = monotonic() + timeout_s
        while not self.look() and monotonic() < until:
            gevent.sleep(0.002)
        return self.is_open

    def send(self, data: bytes) -> None:
        """Send one message."""
        self._socket.send(data, zmq.NOBLOCK)

    @property
    def fd(self) -> int:
        """The descriptor that becomes readable when there is something to look at."""
        return int(self._socket.getsockopt(zmq.FD))

    def close(self) -> None:
        """Close; what was sent has a second to leave."""
        self._socket.close()
