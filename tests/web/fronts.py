"""Web applications in the process of the test, on free loopback ports, and clients that let them work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Any, NamedTuple

from gevent import socket
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Response

from butler_mesh.application import Application
from butler_mesh.handlers import MessageHandler
from butler_mesh.routing import RouteKind
from butler_mesh.web.request import WebRequest
from butler_mesh.web.wsgi import WSGIConnection


class Reply(NamedTuple):
    """A response that has been read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Site:
    """A web server on a port of this machine, and how to ask it for pages."""

    port: int

    def dial(self) -> socket.socket:
        """Return a connection, for those who speak HTTP themselves."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20.0)

    def client(self) -> HTTPConnection:
        """Return an HTTP client whose waiting lets other greenlets work."""
        client = HTTPConnection("127.0.0.1", self.port)
        client.sock = self.dial()
        return client

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Send a request on a connection of its own."""
        client = self.client()
        try:
            return ask(client, method, path, body, **headers)
        finally:
            client.close()

    def get(self, path: str, **headers: str) -> Reply:
        """Get a page."""
        return self.request("GET", path, **headers)


class Front(Site):
    """An application that is being served by our own server."""

    def __init__(self, application: Application, connection: WSGIConnection) -> None:
        self.application = application
        self.connection = connection
        self.port = connection.port


def ask(client: HTTPConnection, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    """Send a request; a header is written ``Content_Type="…"``."""
    client.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    return read(client.getresponse())


def read(response: HTTPResponse) -> Reply:
    """Read a response to its end."""
    with response:
        return Reply(response.status, dict(response.getheaders()), response.read())


Handlers = Iterable[tuple[str, type[MessageHandler]]]


@contextmanager
def serving(handlers: Handlers, *, grace_s: float = 0.05, **options: Any) -> Iterator[Front]:
    """Serve an application; ``options`` are WSGIConnection's, but for ``template_loader``."""
    loader = options.pop("template_loader", None)
    connection = WSGIConnection("127.0.0.1", 0, **options)
    application = Application(connection, handlers, template_loader=loader, grace_s=grace_s)
    application.start()
    try:
        yield Front(application, connection)
    finally:
        application.close()


def made(path: str = "/", method: str = "GET", **options: Any) -> WebRequest:
    """Return a request as a server would hand it in; ``options`` are werkzeug's EnvironBuilder's."""
    own = {name: options.pop(name) for name in ("max_body_bytes", "deadline") if name in options}
    builder = EnvironBuilder(path, method=method, **options)
    try:
        return WebRequest(builder.get_environ(), **own)
    finally:
        builder.close()


def answer(handler: type[MessageHandler], request: WebRequest | None = None, **options: Any) -> Response:
    """Return what a handler answers, without a server; ``options`` are the application's."""
    application = Application(handler_tuples=[(".*", handler)], **options)
    response: Response = application.answer(RouteKind.WEB, made() if request is None else request)
    return response
