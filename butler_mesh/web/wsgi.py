"""WSGI: an Application as a WSGI callable, and WSGIConnection, which serves it by gevent."""

from __future__ import annotations

import errno
import logging
import re
import socket as stdlib_socket
from collections.abc import Iterable
from contextvars import copy_context
from typing import TYPE_CHECKING

import gevent
from gevent import socket
from werkzeug.wrappers import Response

from butler_mesh import deadlines, status, tracing
from butler_mesh.application import Application
from butler_mesh.clock import monotonic
from butler_mesh.errors import AddressError, AddressInUse, Stopped, UsageError
from butler_mesh.routing import RouteKind
from butler_mesh.web.request import MAX_BODY_BYTES, WebRequest
from butler_mesh.web.server import Server
from butler_mesh.web.templating import Jinja2Rendering

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HOST = "127.0.0.1"
PORT = 6767
TIMEOUT_S = 60.0
"""A web request's deadline: the patience of the proxies in front (nginx, ALB: 60 s)."""
BACKLOG = 1024

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)

_log = logging.getLogger("butler_mesh.web")


def wsgi_app(
    application: Application, *, timeout_s: float = TIMEOUT_S, max_body_bytes: int = MAX_BODY_BYTES
) -> WSGIApplication:
    """Return the application's web routes as a WSGI callable, for any server whose workers are gevent's.

    Each request runs in a copy of the context, with a deadline ``timeout_s`` ahead that the calls it
    makes inherit; when it passes the handler is stopped and the answer is 504.
    """

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = WebRequest(environ, deadline=monotonic() + timeout_s, max_body_bytes=max_body_bytes)
        response = copy_context().run(_answer, application, request, timeout_s)
        return response(environ, start_response)

    return app


def _answer(application: Application, request: WebRequest, timeout_s: float) -> Response:
    deadlines.current.set(request.deadline)
    trace = request.headers.get(tracing.HEADER, "")
    if _TRACEPARENT.fullmatch(trace):
        tracing.current.set(trace)
    # For what no handler answers: its errors are pages of the application's own templates.
    fallback = Jinja2Rendering(application, request)
    try:
        request.check_length()  # also where no handler would read it
        # ``Stopped``, not Timeout: like a service's handler it is stopped, whatever it catches.
        with gevent.Timeout(timeout_s, Stopped(status.DEADLINE_PASSED, "deadline passed")):
            response: Response = application.answer(RouteKind.WEB, request)
        return response
    except Stopped as stopped:
        _log.warning("web-request-stopped %.200r: %s", request.path, stopped.message)
        return fallback.render_error(stopped.status)
    except (Exception, SystemExit) as error:
        return fallback.failed(error)
    finally:
        request.close()


class WSGIConnection:
    """Serves an application's web routes over HTTP, by gevent.pywsgi, on ``host`` and ``port``.

    Port 0 takes a free one; ``port`` tells which, once started. ``timeout_s`` is each request's deadline,
    ``max_body_bytes`` what its body may hold (413). The socket is opened by ``start``, in the process that
    calls it.
    """

    def __init__(
        self,
        host: str = HOST,
        port: int = PORT,
        *,
        timeout_s: float = TIMEOUT_S,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        if not 0 <= port <= 65535:
            raise AddressError(f"{port} is not a port: those are 1 to 65535, and 0 for any free one")
        self.host = host
        self._port = port
        self._timeout_s = timeout_s
        self._max_body_bytes = max_body_bytes
        self._server: Server | None = None

    @property
    def port(self) -> int:
        """The port it listens on, or will."""
        return self._port if self._server is None else int(self._server.address[1])

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"

    def start(self, application: Application) -> None:
        """Begin to serve. Raises AddressInUse, and AddressError where nothing can listen."""
        if self._server is not None:
            raise UsageError(f"{self.url} is being served already")
        app = wsgi_app(application, timeout_s=self._timeout_s, max_body_bytes=self._max_body_bytes)
        self._server = Server(self._listen(), app, self.host)
        self._server.start()
        _log.info("listening on %s", self.url)

    def close(self, grace_s: float) -> None:
        """Take no more requests, let those that run finish within ``grace_s``, close."""
        server, self._server = self._server, None
        if server is not None:
            server.drain(grace_s)

    def _listen(self) -> socket.socket:
        try:
            family, kind, number, _, address = socket.getaddrinfo(
                self.host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise AddressError(f"cannot listen on {self.url}: {error.strerror}") from error
        listener = socket.socket(family, kind, number)
        try:
            # A port may be taken again while connections of the process before us fade out.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Each connection inherits it. pywsgi sends head and body apart, which by Nagle's rule and
            # delayed acknowledgement costs 40 ms a request on a kept connection.
            listener.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(f"{self.url} is in use by another program") from error
            raise AddressError(f"cannot listen on {self.url}: {error.strerror}") from error
        return listener
