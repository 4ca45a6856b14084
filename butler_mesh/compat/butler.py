"""butler: its router, services, clients and sink under the names they had.

A ``timeout`` is in milliseconds here, as butler's document has it; in the rest of the mesh it is in seconds.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Self

from butler_mesh import Client as CoreClient
from butler_mesh import Router as CoreRouter
from butler_mesh import Service as CoreService
from butler_mesh import ServiceRequest, ServiceResponse, Sink
from butler_mesh.errors import RemoteError, UsageError
from butler_mesh.status import NOT_FOUND

__all__ = ["Client", "Router", "Service", "Sink"]

RESERVED = frozenset({"timeout", "close"})
"""Names of services' and proxies' own: nothing remote is called so."""


class Router(CoreRouter):
    """Matches requests to services; ``frontend`` is for clients, ``backend`` for services."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._given = {"heartbeat_timeout_s": 15.0, **options}

    @property
    def heartbeat_timeout(self) -> float:
        """Seconds of silence after which a peer is given up; to be set before the router is bound."""
        return float(self._given["heartbeat_timeout_s"])

    @heartbeat_timeout.setter
    def heartbeat_timeout(self, seconds: float) -> None:
        if self.is_ours:
            raise UsageError("a heartbeat timeout is set before the router is bound")
        Router.__init__(self, **{**self._given, "heartbeat_timeout_s": seconds})


class Service(CoreService):
    """A worker, which takes one call at a time; with a larger ``credit`` so many run side by side.

    ``timeout`` is how long ``recv`` waits for a request, in milliseconds.
    """

    timeout: float = 1000
    _has_request = False
    _next: ServiceRequest | None = None

    def __init__(self, address: Any, name: str = "echo", *, credit: int = 1, **options: Any) -> None:
        super().__init__(address, name, credit=credit, **options)

    def register_function(self, function: Callable[..., Any], name: str | None = None) -> None:
        """Answer calls of ``name``, the function's own by default; UsageError for a name that is reserved or
        taken."""
        name = name or function.__name__
        if name in RESERVED:
            raise UsageError(f"{name!r} is reserved: a proxy's {name} is its own")

        # A frame of ours: arguments that do not fit are then a TypeError from within, with its traceback.
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        super().register_function(call, name)

    def register(self, obj: object) -> None:
        """Expose an object's public methods, without those whose names are reserved."""
        for name, _ in inspect.getmembers_static(obj, inspect.isroutine):
            if not name.startswith("_") and name not in RESERVED:
                self.register_function(getattr(obj, name), name)

    def recv(self, reply: Any = None) -> str | None:  # type: ignore[override]  # butler's loop reads text
        """Answer the request taken before, and return the next as its JSON text (what is no call, as the
        text of its body); None when none came within ``timeout`` milliseconds."""
        request, self._next = self._next or super().recv(reply, self.timeout / 1000), None
        self._has_request = request is not None
        return None if request is None else _text(request)

    def send(self, message: Any) -> None:
        """Answer the request taken last, now. Raises UsageError when there is none, or it was answered."""
        if not self._has_request:
            raise UsageError("there is no request to answer")
        self._has_request = False
        self._next = super().recv(message, timeout=0.0)


class Client:
    """Calls the services behind a router; the greenlets of a thread share it.

    ``retries`` is the number of attempts in all: with more than one, a call that was not taken or whose
    worker was lost is made again, and so may run twice. Each attempt adds ``timeout`` milliseconds to what
    a call may take. Without ``persistent`` each call has a connection of its own.
    """

    timeout: float = 2500
    retries: int = 1
    persistent: bool = True

    def __init__(self, address: Any, *, passphrase: str | bytes | None = None) -> None:
        self._core = CoreClient(address, passphrase=passphrase)

    def rpc(self, service: str) -> Proxy:
        """Return a proxy whose attributes are the functions of a service."""
        return Proxy(self, service)

    def call(self, service: str, request: Mapping[str, Any] | str | bytes | ServiceRequest) -> Any:
        """Call ``request['method']`` with its other items, or with its ``args`` and ``kwargs``; JSON text
        does as well. Returns its value, raises its exceptions; TimeoutError when neither came in time."""
        if service.startswith("mmi."):
            return self.send(service)
        response = self._send(service, request if isinstance(request, ServiceRequest) else _read(request))
        if response.is_success:
            return response.body
        error = response.failure()
        if isinstance(error, RemoteError):
            vars(error)["traceback_messsage"] = error.traceback  # as butler spelt it
        raise error

    def send(self, name: str) -> list[str]:
        """Return ``['api.images', '200']`` for ``mmi.api.images`` if somebody serves that, else ``'400'``."""
        mmi, _, service = name.partition(".")
        if mmi != "mmi":
            raise UsageError(f"{name!r} is no question to the router: those begin with 'mmi.'")
        response = self._send("mmi.service", ServiceRequest(arguments={"service": service}))
        if response.status_code != NOT_FOUND:
            response.raise_for_status()
        return [service, "200" if response.is_success else "400"]

    def close(self) -> None:
        """Close the connection; calls that wait fail."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _send(self, service: str, request: ServiceRequest) -> ServiceResponse:
        tries = max(1, self.retries)
        self._core.persistent, self._core.retries = self.persistent, tries - 1
        return self._core.send(service, request, timeout=tries * self.timeout / 1000, idempotent=tries > 1)


class Proxy:
    """The functions of a service as attributes; ``timeout`` and ``close`` are its client's."""

    def __init__(self, client: Client, service: str) -> None:
        self._client, self._service = client, service

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in RESERVED:
            return getattr(self._client, name)
        return lambda *args, **kwargs: self._client.call(
            self._service, ServiceRequest(f"/{name}", args=args, kwargs=kwargs)
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "timeout":
            self._client.timeout = value
        else:
            super().__setattr__(name, value)


def _read(call: Mapping[str, Any] | str | bytes) -> ServiceRequest:
    """Return the request that a call stands for; UsageError when it is none."""
    try:
        rest = {**(json.loads(call) if isinstance(call, str | bytes) else call)}
    except (TypeError, ValueError) as error:
        raise UsageError(f"a call is an object or its JSON text: {error}") from error
    return ServiceRequest.from_call(rest)


def _text(request: ServiceRequest) -> str:
    """Return the call that ``_read`` has read, or the body of what was none."""
    body = request.raw_body
    if body is None:
        parts = {**request.arguments, "method": request.path.removeprefix("/")}
        if request.args or request.kwargs or not request.arguments:
            parts |= {"args": request.args, "kwargs": request.kwargs}
        return json.dumps(parts)
    frames = [body] if isinstance(body, bytes) else body
    if isinstance(frames, list) and frames and isinstance(frames[0], bytes):
        return b"".join(frames).decode(errors="replace")
    return body if isinstance(body, str) else json.dumps(body)
