"""Brubeck and Brubeck Services: applications, handlers and service calls under the names they had.

An address pair is one address here: replies come the way requests went, so the second is accepted and not
used. Whoever registers a service holds the router for it, unless somebody does already: another application,
or a standalone router; on an address that is not this machine's it is always somebody else.
"""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import gevent
from gevent.event import AsyncResult

from butler_mesh import (
    Application,
    Jinja2Rendering,
    JSONMessageHandler,
    MessageHandler,
    Mongrel2Connection,
    Resource,
    Router,
    ServiceRequest,
    ServiceResponse,
    WebMessageHandler,
    coro_sleep,
    load_jinja2_env,
)
from butler_mesh import ServiceClientMixin as CoreClientMixin
from butler_mesh import ServiceConnection as CoreConnection
from butler_mesh import ServiceMessageHandler as CoreHandler
from butler_mesh import WSGIConnection as CoreWSGIConnection
from butler_mesh.errors import AddressError, UsageError

__all__ = [
    "Brubeck",
    "JSONMessageHandler",
    "Jinja2Rendering",
    "MessageHandler",
    "Mongrel2Connection",
    "Resource",
    "ServiceClientMixin",
    "ServiceConnection",
    "ServiceMessageHandler",
    "WSGIConnection",
    "WebMessageHandler",
    "coro_get_event",
    "coro_send_event",
    "coro_sleep",
    "coro_spawn",
    "load_jinja2_env",
    "render",
]

coro_spawn = gevent.spawn
coro_get_event = AsyncResult

# Keeps what those share who have no application; one for the process.
_nobody = Application()
atexit.register(_nobody.close)


class Brubeck(Application):
    """An application; ``log_level`` is that of the whole program's log, on stderr."""

    def __init__(
        self, msg_conn: Any = None, handler_tuples: Iterable[tuple[str, Any]] = (), **options: Any
    ) -> None:
        logging.basicConfig(level=options.pop("log_level", logging.INFO))
        super().__init__(msg_conn, handler_tuples, **options)


class WSGIConnection(CoreWSGIConnection):
    """Serves the web routes on a port of this machine; ``host`` is for those who mean another."""

    def __init__(self, port: int = 6767, host: str = "127.0.0.1") -> None:
        super().__init__(host, port)


class ServiceConnection(CoreConnection):
    """Brings an application the requests for its service routes."""

    def __init__(self, svc_addr: str, svc_resp_addr: str = "", passphrase: str | None = None) -> None:
        super().__init__(svc_addr, passphrase=passphrase)


class ServiceMessageHandler(CoreHandler):
    """As the core's; its replies also tell when they were asked for, begun and done (ms since 1970)."""

    def __init__(self, application: Any, message: ServiceRequest | ServiceResponse) -> None:
        super().__init__(application, message)
        self._started_at = _now_ms()

    def render(self, body: Any = None) -> ServiceResponse:
        """Return the reply: the payload (or ``body``) with status and headers as set."""
        asked_at = self.message.headers.get("REQUEST_TIMESTAMP", self._started_at)
        self.headers.setdefault("REQUEST_TIMESTAMP", asked_at)
        self.headers.setdefault("START_TIMESTAMP", self._started_at)
        self.headers.setdefault("END_TIMESTAMP", _now_ms())
        return super().render(body)


class ServiceClientMixin(CoreClientMixin):
    """Service calls for any class, with an attribute ``application`` or without."""

    def register_service(  # type: ignore[override]  # the seed's order: address, address, passphrase
        self, address: str, resp_addr: str = "", passphrase: str | None = None, **options: Any
    ) -> None:
        """Make a service known and see to its router; if it is known, nothing happens."""
        super().register_service(address, passphrase=passphrase, **options)
        _ServiceRouter.of(address, _resources(self)).users.add(address)

    def unregister_service(self, address: str) -> None:
        """Forget a service, its connection and its router."""
        super().unregister_service(address)
        resources = _resources(self)
        router = _ServiceRouter.of(address, resources)
        router.users.discard(address)
        if not router.users:
            resources.unregister(router.key())

    def create_service_request(
        self,
        path: str,
        method: str | Mapping[str, str] = "request",
        arguments: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> ServiceRequest:
        """Return a request: ``(path, method, arguments)``, or ``(path, headers, body)`` as older texts
        have it."""
        if isinstance(method, Mapping):
            return self.create_service_request(path, headers=method, body=arguments)
        stamped = {"REQUEST_TIMESTAMP": _now_ms(), **(headers or {})}
        return super().create_service_request(path, method, arguments, stamped, body)


def render(body: Any, status_code: int, status_msg: str, headers: Mapping[str, str]) -> ServiceResponse:
    """Return the reply of a route that is a function."""
    return ServiceResponse(status_code, status_msg, body, headers)


def coro_send_event(event: AsyncResult[Any], value: Any) -> None:
    """Wake those who wait for the event."""
    event.set(value)


class _ServiceRouter(Resource):
    """The router that an application holds at an endpoint, for all services there."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, "ROUTER ")
        # The addresses of the services.
        self.users: set[str] = set()

    @classmethod
    def of(cls, address: str, resources: Any) -> _ServiceRouter:
        """Return the router at an address's endpoint; begin with it where there is none."""
        scheme, _, rest = address.partition("://")
        endpoint = f"{scheme}://{rest if scheme == 'ipc' else rest.partition('/')[0]}".partition("#")[0]
        resources.register(cls(endpoint))
        found: _ServiceRouter = resources[cls(endpoint).key()]
        return found

    def on_register(self) -> None:
        try:
            self.set(Router.embed(self.name))
        except AddressError:
            raise
        except UsageError as error:
            # Another machine's, then.
            logging.getLogger("butler_mesh.compat").info("not-embedded %s", error)

    def on_unregister(self) -> None:
        if self.get() is not None:
            self.get().stop()


def _resources(user: Any) -> Any:
    found = getattr(getattr(user, "application", None), "resources", None)
    return found if isinstance(found, type(_nobody.resources)) else _nobody.resources


def _now_ms() -> str:
    return str(int(time.time() * 1000))
