"""Flask: an extension through which an application's views call services.

    mesh = Mesh(app, "tcp://127.0.0.1:5555")

    @app.get("/quote/<item>")
    def quote(item):
        return mesh.rpc("quotes").quote(item)

Run it by gevent workers: ``gunicorn -k gevent -w 2 module:app``, also with ``--preload``. Flask's own server
has a thread for each request, and a client of the mesh belongs to one: ``flask run --without-threads``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import flask
from werkzeug.exceptions import HTTPException, default_exceptions

from butler_mesh import deadlines
from butler_mesh.application import Application
from butler_mesh.calls import LazyResponse, ResponseStream
from butler_mesh.client import Client
from butler_mesh.clock import monotonic
from butler_mesh.errors import RemoteError, RequestFailed, UsageError
from butler_mesh.messages import ServiceResponse
from butler_mesh.router import Router
from butler_mesh.rpc import Proxy
from butler_mesh.web import streaming
from butler_mesh.web.handlers import describe_failure
from butler_mesh.web.streaming import PING_S
from butler_mesh.web.wsgi import TIMEOUT_S, bounded

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LAST_WORDS_S = 0.25
"""From the deadline of a view's calls to its own: a call ended by it still becomes the application's page."""

Arguments = Mapping[str, Any]


class Mesh:
    """Gives Flask applications a Client each, their requests a deadline, and failed calls their pages.

    ``address`` and ``client_options`` are the Client's; in ``app.config`` BUTLER_MESH_ADDRESS,
    BUTLER_MESH_TIMEOUT_S and BUTLER_MESH_PASSPHRASE go before what is given here. Nothing is opened before
    the first call, in the process that makes it. Without ``app``, ``init_app`` takes one, or several.

    Each web request runs in a copy of the context, with a deadline ``timeout_s`` ahead that all calls of
    the mesh inherit. A view that is still at work LAST_WORDS_S later is stopped (504), and so is one whose
    browser leaves. A streamed response has as long for each part. Greenlets that a view spawns have none of
    that, unless they are started by ``gevent.spawn(contextvars.copy_context().run, …)``; with
    ``flask.copy_current_request_context`` they have Flask's part of it.

    A RequestFailed (``raise_for_status``, ``rpc``) that leaves a view becomes the page of its status, with
    Retry-After where it has one, by the application's own error handlers where there are any. A RemoteError
    is a fault like any other: Flask's 500, and its log.

    ``application`` is what classes with ServiceClientMixin name as theirs. It keeps their clients, and its
    service routes are the ``response`` handlers that replies pass through:

        class Quote(ServiceClientMixin, MethodView):
            application = mesh.application
    """

    def __init__(
        self,
        app: flask.Flask | None = None,
        address: str | Iterable[str] | Router | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        **client_options: Any,
    ) -> None:
        self.application = Application()
        self._address = address
        self._timeout_s = timeout_s
        self._client_options = client_options
        self._clients: WeakKeyDictionary[flask.Flask, Client] = WeakKeyDictionary()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Join an application. Raises UsageError where no address is known, and AddressError."""
        address = app.config.get("BUTLER_MESH_ADDRESS") or self._address
        if address is None:
            raise UsageError("where is the mesh? Set BUTLER_MESH_ADDRESS, or give Mesh an address")
        options = dict(self._client_options)
        passphrase = app.config.get("BUTLER_MESH_PASSPHRASE")
        if passphrase is not None:
            options["passphrase"] = passphrase
        self._clients[app] = Client(address, **options)
        timeout_s = float(app.config.get("BUTLER_MESH_TIMEOUT_S", self._timeout_s))
        bounded_app = bounded(_with_deadline(app.wsgi_app, timeout_s), timeout_s + LAST_WORDS_S)
        # As Flask says to: what asks for the application itself still gets it.
        app.wsgi_app = bounded_app  # type: ignore[assignment,method-assign]
        if RequestFailed not in app.error_handler_spec[None][None]:  # the application's own goes before
            app.register_error_handler(RequestFailed, _page)
        app.extensions["butler_mesh"] = self

    @property
    def client(self) -> Client:
        """The present application's; outside of any, as in a stream, that of the only one there is."""
        if flask.has_app_context():
            client = self._clients.get(flask.current_app._get_current_object())  # type: ignore[attr-defined]
            if client is not None:
                return client
            raise UsageError("this application was not given to init_app")
        if len(self._clients) == 1:
            return next(iter(self._clients.values()))
        raise UsageError(f"which of {len(self._clients)} applications? Use mesh.client in a view")

    # The calls of the client; ``options`` are those that it has.

    def request(
        self, service: str | None, path: str = "/", arguments: Arguments | None = None, **options: Any
    ) -> ServiceResponse:
        """Send a request and wait for its response, whatever the status: see ``Client.request``."""
        return self.client.request(service, path, arguments, **options)

    def request_lazy(
        self, service: str | None, path: str = "/", arguments: Arguments | None = None, **options: Any
    ) -> LazyResponse:
        """Send a request, to be collected by ``.get()``: see ``Client.request_lazy``."""
        return self.client.request_lazy(service, path, arguments, **options)

    def request_stream(
        self, service: str | None, path: str = "/", arguments: Arguments | None = None, **options: Any
    ) -> ResponseStream:
        """Send a request whose reply comes in parts: see ``Client.request_stream``."""
        return self.client.request_stream(service, path, arguments, **options)

    def request_nowait(
        self, service: str | None, path: str = "/", arguments: Arguments | None = None, **options: Any
    ) -> None:
        """Send a request that nobody answers: see ``Client.request_nowait``."""
        self.client.request_nowait(service, path, arguments, **options)

    def stream_events(self, events: Iterable[Any], ping_s: float = PING_S) -> flask.Response:
        """Return Server-Sent Events: each an ``Event``, or the data of one, such as the parts of a stream.

        They are made as the browser takes them; when it leaves, their source is closed.
        """
        # Neither a cache nor nginx may hold back what has been sent.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        body = streaming.events(events, ping_s)
        return flask.Response(body, mimetype="text/event-stream", headers=headers)

    def rpc(self, service: str | None = None) -> Proxy:
        """Return a proxy whose methods are the service's functions: see ``Client.rpc``."""
        return self.client.rpc(service)


def _with_deadline(app: WSGIApplication, timeout_s: float) -> WSGIApplication:
    def app_with_deadline(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        deadlines.current.set(deadlines.deadline_for(timeout_s, monotonic()))
        return app(environ, start_response)

    return app_with_deadline


def _page(error: RequestFailed) -> flask.Response:
    """Answer for a call that failed; a fault of the service is Flask's to report."""
    if isinstance(error, RemoteError):
        raise error
    # Of the request it reads method and path.
    code, text, headers = describe_failure(error, flask.request)  # type: ignore[arg-type]
    exception = default_exceptions.get(code, HTTPException)(description=text or None)
    exception.code = code
    app = flask.current_app
    response = app.make_response(app.handle_http_exception(exception))
    response.headers.update(headers)
    return response
