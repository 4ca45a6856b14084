"""A whole mesh in the process of the test: a router on a free loopback port, and whoever joins it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from butler_mesh.application import Application
from butler_mesh.calls import Waiter
from butler_mesh.client import Client
from butler_mesh.clock import monotonic
from butler_mesh.handlers import MessageHandler
from butler_mesh.messages import ServiceResponse, decode_response
from butler_mesh.router import Router
from butler_mesh.service import Service
from butler_mesh.service_connection import ServiceConnection

T = TypeVar("T")

ANY_PORT = "tcp://127.0.0.1:*"


class Mesh:
    """Everything made here is closed at the end, latest first. ``options`` are the router's.

    Unknown services are 404 at once (``register_grace_s=0``), and nothing drains for long.
    """

    def __init__(self, **options: Any) -> None:
        self._stack = ExitStack()
        self.router = self._stack.enter_context(Router(**{"register_grace_s": 0.0, **options}))
        self.endpoint = self.router.bind(ANY_PORT)

    def client(self, **options: Any) -> Client:
        """Return a client of the router."""
        client = Client(self.endpoint, **{"timeout": 10.0, **options})
        self._stack.callback(client.close, 1.0)
        return client

    def service(self, *functions: Callable[..., Any], name: str = "svc", **options: Any) -> Service:
        """Return a registered service with these functions."""
        service = Service(self.endpoint, name, **{"grace": 0.05, **options})
        for function in functions:
            service.register_function(function)
        return self.join(service)

    def join(self, service: Service) -> Service:
        """Start a service and wait until it is registered."""
        self._stack.enter_context(service)
        assert service.wait_until_registered(10.0)
        return service

    def application(
        self, handlers: Iterable[tuple[str, type[MessageHandler]]], service: str = "app", **options: Any
    ) -> Application:
        """Return a registered application with these routes."""
        connection = ServiceConnection(self.endpoint, service)
        application = Application(connection, handlers, **{"grace_s": 0.05, **options})
        application.start()
        self._stack.callback(application.close)
        assert connection.wait_until_registered(10.0)
        return application

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def send_raw(
    client: Client, target: str, envelope: bytes, *, flags: int = 0, timeout_s: float = 10.0
) -> ServiceResponse:
    """Send an envelope that no client would make, and return its reply."""
    connection = client._connect()
    waiter = Waiter()
    call = connection.submit(target, envelope, deadline=monotonic() + timeout_s, flags=flags, on_reply=waiter)
    return decode_response(*waiter.wait(connection, call))


def drained(status: dict[str, Any], service: str = "svc") -> bool:
    """Tell from a router's status whether nothing of a service is queued or in flight."""
    pool = status["services"][service]
    return pool["queued"] == 0 and not any(one["in_flight"] for one in pool["instances"])
