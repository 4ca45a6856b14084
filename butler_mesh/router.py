"""Router: matches requests to instances; standalone, or embedded in any process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import gevent

from butler_mesh.addresses import Address, is_loopback, to_bind
from butler_mesh.connections.node import RouterNode
from butler_mesh.errors import AddressInUse, UsageError
from butler_mesh.lifetime import GRACE_S, Lifetime
from butler_mesh.protocol.limits import Limits

_log = logging.getLogger("butler_mesh.router")


class Side:
    """One side of a router: ``frontend`` takes only clients, ``backend`` only services."""

    def __init__(self, router: Router, *, clients: bool, services: bool) -> None:
        self._router = router
        self._clients = clients
        self._services = services

    def bind(self, endpoint: str) -> str:
        """Listen here, at once, and return the endpoint with the port that was chosen for ``*``.

        May be called several times. Raises AddressInUse and AddressError.
        """
        bound = self._router.node.bind(endpoint, clients=self._clients, services=self._services)
        _log.info("listening on %s", bound)
        return bound


class Router:
    """A router. ``options`` are those of ``butler_mesh.protocol.limits.Limits``: ``queue_limit``,
    ``register_grace_s``, ``absent_grace_s``, ``forget_service_s``, ``foreign_deadline_s``,
    ``busy_timeout_s``, ``heartbeat_interval_s``, ``heartbeat_timeout_s``, ``max_body_bytes``,
    ``register_secret``.

    Its sockets are watched by the hub of the thread that made it: whenever that thread's greenlets
    wait, the router works. ``run`` is only a way to wait.
    """

    def __init__(self, *, grace: float = GRACE_S, **options: Any) -> None:
        self.grace = grace
        Limits(**options)  # what cannot work is refused here, and not when it is bound
        self._options = options
        self._node: RouterNode | None = None
        self._pid = 0
        self._lifetime = Lifetime()
        self.frontend = Side(self, clients=True, services=False)
        self.backend = Side(self, clients=False, services=True)

    @property
    def node(self) -> RouterNode:
        """The machine and its sockets, made when first asked for, by the process that asks."""
        if self._node is None:
            self._node = RouterNode(**self._options)
            self._pid = os.getpid()
        if self._pid != os.getpid():
            raise UsageError("a router is its process's own: a fork connects to its endpoint")
        return self._node

    @property
    def is_ours(self) -> bool:
        """Whether it was made by this process and not by one that this is a fork of."""
        return self._node is not None and self._pid == os.getpid()

    def bind(self, endpoint: str, *, public: bool = False) -> str:
        """Listen here for clients and services both.

        Where other machines can come, front and back end are better separate ports, so that a firewall
        can tell them apart: there it raises UsageError unless ``public`` says that this is meant (as
        Majordomo has it).
        """
        endpoint = to_bind(endpoint)
        if not (public or is_loopback(endpoint)):
            raise UsageError(f"{endpoint} is not loopback: bind frontend and backend to ports of their own")
        return Side(self, clients=True, services=True).bind(endpoint)

    @classmethod
    def embed(cls, address: str, **options: Any) -> Embedded:
        """Bind an address's endpoint, or join the process that has: see Embedded."""
        return Embedded(address, **options)

    def start(self) -> Self:
        """Begin to work (making sockets does that, too); returns the router."""
        _ = self.node
        return self

    def run(self) -> None:
        """Work until ``stop``, SIGTERM or SIGINT; then finish what is in flight, within ``grace`` seconds.

        New requests are answered 503 meanwhile. A second signal ends the process at once.
        """
        self._lifetime.run(self.start, self._drain_and_stop)

    def stop(self) -> None:
        """Tell everybody, close the sockets. A router that was stopped may be bound again."""
        self._lifetime.stop()
        node, self._node = self._node, None
        if node is not None and self._pid == os.getpid():
            node.close()
        elif node is not None:
            node.abandon()

    def _drain_and_stop(self) -> None:
        if self._node is not None:
            self._node.drain(self.grace)
        self.stop()

    def status(self) -> dict[str, Any]:
        """Return services, instances with their state, counters: what ``mmi.status`` answers."""
        return self.node.status()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Target:
    """Where clients and services find their routers: an address, or a Router of the same process."""

    def __init__(self, address: str | Iterable[str] | Router) -> None:
        self._where = address if isinstance(address, Router) else Address.parse(address)
        # The service that the address names, or ''.
        self.service = "" if isinstance(self._where, Router) else self._where.service

    def resolve(self) -> Address | RouterNode:
        """Return what engines connect to; of a Router its sockets are made by now."""
        return self._where.node if isinstance(self._where, Router) else self._where


class Embedded:
    """Bind-or-join: of the processes that embed a router at one endpoint, the first has it.

    The others connect to it like any client, and race to bind when it is gone. Whoever has it, the
    endpoint is the same, so nothing else needs to know.
    """

    RETRY_S = 0.25
    """How often a joined process tries to bind: clients wait 3 s for a router, so this is in time."""

    def __init__(self, address: str, **options: Any) -> None:
        first, *others = Address.parse(address).endpoints
        self.endpoint = to_bind(first)
        if others or not is_loopback(self.endpoint):
            raise UsageError(f"{address} is not one loopback endpoint: only that can be embedded")
        self._options = options
        self.router: Router | None = None
        self._greenlet: gevent.Greenlet[..., Any] | None = None
        if not self._bind():
            self._greenlet = gevent.spawn(self._race)

    @property
    def is_host(self) -> bool:
        """Whether the router is in this process."""
        return self.router is not None and self.router.is_ours

    def stop(self) -> None:
        """Give the router up; another process takes it over."""
        if self._greenlet is not None:
            self._greenlet.kill()
        if self.router is not None:
            self.router.stop()
            self.router = None

    def _bind(self) -> bool:
        router = Router(**self._options)
        try:
            router.bind(self.endpoint)
        except AddressInUse:
            router.stop()
            return False
        except UsageError:
            router.stop()
            raise
        self.router = router
        return True

    def _race(self) -> None:
        complaint = ""
        while True:
            try:
                if self._bind():
                    return
            except UsageError as error:
                # It may pass: a directory that is being made, a file in the way.
                if str(error) != complaint:
                    complaint = str(error)
                    _log.warning("embed-failed %s", complaint)
            gevent.sleep(self.RETRY_S)
