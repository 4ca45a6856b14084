"""The proxy of ``Client.rpc``: attributes are the functions of a service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from butler_mesh.messages import ServiceRequest, ServiceResponse


class _Sender(Protocol):
    timeout: float

    def send(
        self,
        service: str | None,
        request: ServiceRequest,
        *,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> ServiceResponse: ...
    def close(self, drain: float = ...) -> list[tuple[int, str]]: ...


class Proxy:
    """Calls ``/name`` of a service with the arguments given; returns its value or raises its exception.

    ``timeout`` (seconds) applies to this proxy's calls; ``close()`` closes its client.
    """

    def __init__(self, client: _Sender, service: str | None) -> None:
        self._client = client
        self._service = service
        self.timeout: float | None = None

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def function(*args: Any, **kwargs: Any) -> Any:
            request = ServiceRequest(f"/{name}", args=args, kwargs=kwargs)
            response = self._client.send(self._service, request, timeout=self.timeout)
            response.raise_for_status()
            return response.body

        function.__name__ = name
        return function

    def __repr__(self) -> str:
        return f"<Proxy of {self._service!r}>"
