"""ServiceClientMixin: calls to services from any class with an ``application`` attribute."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import copy_context
from copy import copy
from functools import partial
from typing import Any

import gevent

from butler_mesh import deadlines
from butler_mesh.calls import LazyResponse
from butler_mesh.client import Client
from butler_mesh.errors import UsageError
from butler_mesh.messages import Body, ServiceRequest, ServiceResponse, decode_response
from butler_mesh.protocol.mesh import FINAL

_log = logging.getLogger("butler_mesh.client")

coro_sleep = gevent.sleep


class LazyServiceResponse:
    """A service call that was sent and is collected later."""

    def __init__(self, mixin: ServiceClientMixin, lazy: LazyResponse, own: Client | None) -> None:
        self._mixin = mixin
        self._lazy = lazy
        # The connection, where it was made for this call only.
        self._own = own

    def get(self, timeout: float | None = None) -> tuple[ServiceResponse, Any]:
        """Wait and return (response, handled), as ``send_service_request`` does."""
        response = self._lazy.get(timeout)
        if self._own is not None:
            self._own.close()
        return response, self._mixin._handle(response)


class ServiceClientMixin:
    """Sends requests to services. Works in handlers, Flask's MethodView, Django's View, anything.

    Connections are kept on ``self.application``, one for each address, for all requests of the process.
    Without that attribute each call makes a connection and closes it again. Each reply also passes
    through the application's own route for its path (method ``response``), if it has one.
    """

    def register_service(
        self,
        address: str,
        *,
        passphrase: str | bytes | None = None,
        timeout: float = deadlines.DEFAULT_TIMEOUT_S,
    ) -> None:
        """Make an address known, ``tcp://127.0.0.1:5555/slow``; one that is known stays as it is.

        ``passphrase`` seals what is sent there, ``timeout`` (seconds) is the calls' own. Raises UsageError
        for a passphrase where the address is known without one: what was sent there was not sealed.
        """
        make = partial(Client, address, timeout=timeout, passphrase=passphrase)
        clients = self._clients()
        if clients is None:
            make()  # a bad address is refused here, as it is below; nothing is opened
            self.__dict__.setdefault("_mesh_services", {}).setdefault(address, make)
        elif address not in clients:
            clients[address] = make()
        elif passphrase is not None and not clients[address].is_sealed:
            raise UsageError(f"{address} is known without a passphrase: register it before it is used")

    def unregister_service(self, address: str) -> None:
        """Forget an address and close its connection; nothing happens when it is unknown."""
        clients = self._clients()
        if clients is None:
            self.__dict__.get("_mesh_services", {}).pop(address, None)
            return
        client = clients.pop(address, None)
        if client is not None:
            client.close()

    def create_service_request(
        self,
        path: str,
        method: str = "request",
        arguments: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
    ) -> ServiceRequest:
        """Return a request for ``path``, to be sent by one of the methods below."""
        return ServiceRequest(path, method, arguments, headers, body)

    def send_service_request(
        self,
        address: str,
        request: ServiceRequest,
        *,
        timeout: float | None = None,
        idempotent: bool = False,
        handle: bool = True,
    ) -> tuple[ServiceResponse, Any]:
        """Send a request and wait; return (response, what our own ``response`` handler made of it).

        Whatever happens to the request is in the response's status: 404, 502, 503 and 504 included.
        """
        client, is_own = self._client(address)
        try:
            response = client.send(None, request, timeout=timeout, idempotent=idempotent)
        finally:
            if is_own:
                client.close()
        return response, self._handle(response) if handle else None

    def send_service_request_lazy(
        self, address: str, request: ServiceRequest, *, timeout: float | None = None
    ) -> LazyServiceResponse:
        """Send a request and return at once; ``.get()`` gives (response, handled)."""
        client, is_own = self._client(address)
        lazy = LazyResponse(request.path)
        lazy.bind(*client.submit(None, request, lazy.on_reply, timeout=timeout))
        return LazyServiceResponse(self, lazy, client if is_own else None)

    def send_service_request_nowait(
        self,
        address: str,
        request: ServiceRequest,
        *,
        timeout: float = deadlines.NOWAIT_TIMEOUT_S,
        durable: bool = False,
    ) -> None:
        """Send a request and return at once. Our ``response`` handler runs when the reply comes.

        The deadline is the request's own: it may outlive the work that caused it. A failure that no
        handler takes is logged. A ``durable`` one is stored by a broker when this returns, and nobody
        hears what became of it; raises as ``Client.request_nowait``.
        """
        client, is_own = self._client(address)
        if durable:
            try:
                client.send_nowait(None, request, timeout=timeout, durable=True)
            finally:
                if is_own:
                    client.close()
            return
        application = getattr(self, "application", None)
        path = request.path
        # Of whoever sends it: the handler of the reply belongs to the same trace.
        context = copy_context()

        def on_reply(kind: int, code: int, flags: int, envelope: bytes) -> None:
            if kind != FINAL:
                return
            try:
                response = decode_response(code, flags, envelope, path)
                if not response.is_success:
                    _log.warning("nowait-failed %.200r: %s %.200r", path, code, response.status_msg)
                later = getattr(application, "handle_response_later", None)
                if later is not None:
                    later(response, context)
            finally:
                if is_own:
                    gevent.spawn(client.close)

        client.submit(None, request, on_reply, timeout=timeout, inherit=False)

    def forward_to_service(
        self,
        address: str,
        request: ServiceRequest | None = None,
        *,
        timeout: float | None = None,
        direct: bool = False,
    ) -> ServiceResponse:
        """Give the web client to a service, whose handler answers it: return what this returns.

        ``request`` None is the web request itself. Status, headers and body are the service's; parts that
        it streams reach the client as they come, at the client's pace. A service that dies is 502; 504 comes
        ``timeout`` seconds after the last part, at the web request's deadline unless it is given. ``direct``
        lets a service that has DirectReplies answer through Mongrel2 itself, where that is the front: the
        client's connection is closed afterwards.
        """
        message = getattr(self, "message", None)
        if request is None:
            if message is None:
                raise UsageError("without a web request in ``self.message``, give the request to forward")
            request = message.to_service_request()
        hand_over = getattr(message, "hand_over", None) if direct else None
        if hand_over is not None:
            request = copy(request)  # the caller's may be sent again, and that browser is gone by then
            request.headers = {**request.headers, **hand_over()}
        if timeout is None and (left_s := deadlines.remaining_s()) < deadlines.NEVER:
            timeout = left_s
        client, _ = self._client(address)
        return client.send_stream(None, request, timeout=timeout).begin()

    # --- within -------------------------------------------------------------------------------

    def _handle(self, response: ServiceResponse) -> Any:
        handle = getattr(getattr(self, "application", None), "handle_response", None)
        return None if handle is None else handle(response)

    def _clients(self) -> dict[str, Client] | None:
        """Return the application's clients by address; None where there is no application."""
        application = getattr(self, "application", None)
        if application is None:
            return None
        found = getattr(application, "_mesh_clients", None)
        if found is None:
            found = _Clients()
            application._mesh_clients = found
            resources = getattr(application, "resources", None)
            if isinstance(resources, dict):
                # Closed with the application.
                resources["butler_mesh.clients"] = found
        clients: dict[str, Client] = found
        return clients

    def _client(self, address: str) -> tuple[Client, bool]:
        clients = self._clients()
        if clients is None:
            make = self.__dict__.get("_mesh_services", {}).get(address)
            return Client(address) if make is None else make(), True
        self.register_service(address)
        return clients[address], False


class _Clients(dict[str, Client]):
    """The clients of one application, by address."""

    def close(self) -> None:
        """Close them all."""
        while self:
            self.popitem()[1].close()
