"""ServiceConnection: brings an Application the requests that a router sends it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from butler_mesh.application import Application
from butler_mesh.connections.base import InstanceConnection
from butler_mesh.connections.registry import connect_instance
from butler_mesh.errors import UsageError
from butler_mesh.protocol.instance import CREDIT
from butler_mesh.router import Router, Target
from butler_mesh.routing import RouteKind
from butler_mesh.sealing import seal_of


class ServiceConnection:
    """Registers with the router at ``address``, under ``service`` (or the address's own), and with the
    path prefixes of the application's service routes; without a name by those alone.

    ``credit`` is how many requests are handled at once. With a ``passphrase`` only clients that have the same
    one are served: others get 401. With ``durable`` (``amqp://``) it also serves what a broker has stored for
    it, each request at least once. The sockets are opened by ``start``, in the
    process that calls it.
    """

    def __init__(
        self,
        address: str | Iterable[str] | Router,
        service: str | None = None,
        *,
        credit: int = CREDIT,
        register_secret: str | bytes | None = None,
        passphrase: str | bytes | None = None,
        pooled_greenlets: bool = True,
        durable: bool = False,
    ) -> None:
        self._target = Target(address)
        self.service = service or self._target.service
        self._options: dict[str, Any] = {
            "credit": credit,
            "register_secret": register_secret,
            "seal": seal_of(passphrase),
            "pooled_greenlets": pooled_greenlets,
            "durable": durable,
        }
        self._connection: InstanceConnection | None = None

    def start(self, application: Application) -> None:
        """Register; from now on the application answers."""
        paths = application.routes.prefixes(RouteKind.SERVICE)
        if not self.service and not paths:
            raise UsageError("a service needs a name, or routes that begin with a path")
        self._connection = connect_instance(self._target.resolve(), self.service, paths, **self._options)
        application.management.wid = self._connection.wid
        self._connection.serve(application.deliver)

    def wait_until_registered(self, timeout: float) -> bool:
        """Wait until a router has confirmed us; False when none did within ``timeout`` seconds."""
        return self._connection is not None and self._connection.wait_until_registered(timeout)

    def close(self, grace_s: float) -> None:
        """Take no more, finish what runs, say goodbye."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(grace_s)
