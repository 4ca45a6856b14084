"""A router's machine with its pump and ports: what ``Router`` wraps and ``memory://`` shares."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import gevent

from butler_mesh.clock import monotonic
from butler_mesh.connections.pipes import PipeEnd, PipeHub
from butler_mesh.connections.pump import Pump
from butler_mesh.connections.sockets import SocketPort, listen
from butler_mesh.protocol.limits import Limits
from butler_mesh.protocol.router import RouterProtocol

GOODBYE_LINGER_S = 0.5
"""How long libzmq may go on delivering GOODBYEs after a router has stopped."""

DRAIN_LOOK_S = 0.02
"""How often a router that stops looks whether its last reply has left."""


class RouterNode:
    """One router, running in the hub that made it. ``options`` are those of ``Limits``."""

    def __init__(self, **options: Any) -> None:
        self.machine = RouterProtocol(monotonic(), secrets.token_bytes(32), Limits(**options))
        self._pump = Pump(self.machine, logger="butler_mesh.router")
        self._local: PipeHub | None = None
        self._sockets: dict[str, SocketPort] = {}

    def bind(self, endpoint: str, *, clients: bool = True, services: bool = True) -> str:
        """Open a port and return the endpoint as bound; raises AddressInUse."""
        name = endpoint if clients and services else f"{'front' if clients else 'back'} end {endpoint}"
        door = self.machine.open_door(name, clients=clients, services=services)
        try:
            port = listen(endpoint, door, max_body_bytes=self.machine.dispatcher.max_body_bytes)
        except Exception:
            self.machine.doors.remove(door)
            raise
        self._sockets[port.endpoint] = port
        self._pump.attach(port)
        return port.endpoint

    def dial(self, on_close: Callable[[], None] | None = None) -> PipeEnd:
        """Return a port that leads here without a socket, for a party of the same process."""
        if self._local is None:
            self._local = PipeHub(self.machine.open_door("inside"))
            self._pump.attach(self._local)
        return self._local.connect(on_close)

    @property
    def endpoints(self) -> list[str]:
        """Where it is bound, with the ports that were chosen."""
        return list(self._sockets)

    def status(self) -> dict[str, Any]:
        """Return what ``mmi.status`` answers."""
        return self.machine.status(monotonic())

    def drain(self, grace_s: float) -> None:
        """Take no new requests and wait, up to ``grace_s``, until those that came are answered."""
        self.machine.stop_intake()
        until = monotonic() + grace_s
        while self.machine.dispatcher.directory.has_work() and monotonic() < until:
            gevent.sleep(DRAIN_LOOK_S)

    def close(self) -> None:
        """Say GOODBYE to everybody and close all ports."""
        self.machine.close()
        self._pump.close(GOODBYE_LINGER_S)

    def abandon(self) -> None:
        """Let go of everything without a word: this process is a fork."""
        self._pump.abandon()
