"""WSGI: an Application as a WSGI callable, and WSGIConnection, which serves it by gevent."""

from __future__ import annotations

import errno
import logging
import socket as stdlib_socket
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from gevent import socket
from werkzeug.wrappers import Response

from butler_mesh import status
from butler_mesh.application import Application
from butler_mesh.errors import (
    AddressError,
    AddressInUse,
    RemoteError,
    RequestFailed,
    Stopped,
    UsageError,
)
from butler_mesh.routing import RouteKind
from butler_mesh.web.request import MAX_BODY_BYTES, WebRequest
from butler_mesh.web.scope import Scope
from butler_mesh.web.server import Server
from butler_mesh.web.templating import Jinja2Rendering

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HOST = "127.0.0.1"
PORT = 6767
TIMEOUT_S = 60.0
"""A web request's deadline: the patience of the proxies in front (nginx, ALB: 60 s)."""
BACKLOG = 1024

_log = logging.getLogger("butler_mesh.web")


def wsgi_app(
    application: Application,
    *,
    timeout_s: float = TIMEOUT_S,
    max_body_bytes: int = MAX_BODY_BYTES,
    trusted_proxies: int = 0,
) -> WSGIApplication:
    """Return the application's web routes as a WSGI callable, for any server whose workers are gevent's.

    Each request runs in a copy of the context, with a deadline ``timeout_s`` ahead that the calls it
    makes inherit; when it passes the handler is stopped and the answer is 504. A streamed page has as
    long for each of its parts. ``trusted_proxies`` is how many proxies in front of the server say
    truly, in X-Forwarded-For and its kin, whom they speak for.
    """

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        scope = Scope(environ, timeout_s)
        request = WebRequest(
            environ,
            deadline=scope.deadline,
            max_body_bytes=max_body_bytes,
            trusted_proxies=trusted_proxies,
        )
        response = _answer(application, request, scope)
        try:
            return response(environ, start_response)
        except BaseException:  # the server takes no such head
            response.close()
            raise

    return app


def bounded(app: WSGIApplication, timeout_s: float = TIMEOUT_S) -> WSGIApplication:
    """Return a WSGI application, of whatever make, whose requests run as those of ``wsgi_app`` do: with a
    deadline that calls of the mesh inherit, and stopped when it passes or the client leaves."""

    def bounded_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        scope = Scope(environ, timeout_s)
        path = environ.get("PATH_INFO", "")
        failure: Any = None
        is_begun = False

        def begin(line: str, headers: Any, exc_info: Any = None) -> Any:
            nonlocal is_begun
            is_begun = True
            return start_response(line, headers, exc_info or failure)

        try:
            parts = scope.run(app, environ, begin)
            if isinstance(parts, list | tuple):
                return parts
            body = StreamedBody(scope, path, parts, parts)
            body.make_first()
            return body
        except Stopped as stopped:
            _note(path, stopped)
            if is_begun:  # ours takes the place of the head that the application has given
                failure = sys.exc_info()
            try:
                return Response(f"{status.reason(stopped.status)}\n", stopped.status)(environ, begin)
            finally:
                failure = None  # its traceback would hold this frame

    return bounded_app


class StreamedBody:
    """A body whose parts are made, in the scope of their request, when the server wants them.

    What fails once the head has been sent cuts the connection: there is no other way to tell the browser
    that the rest is missing.
    """

    def __init__(self, scope: Scope, path: str, source: Any, parts: Iterable[bytes]) -> None:
        self._scope = scope
        self._path = path
        self._source = source
        self._parts: Iterator[bytes] = iter(parts)
        self._first: list[bytes] = []
        self._is_closed = False

    def make_first(self) -> None:
        """Make the first part, so that what fails before anything was sent can be answered."""
        try:
            self._first = self._scope.run(list, islice(self._parts, 1))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._first:
            return self._first.pop()
        self._scope.renew()
        try:
            part: bytes = self._scope.run(next, self._parts)
            return part
        except StopIteration:
            raise
        except (Exception, SystemExit, Stopped) as error:
            _note(self._path, error)
            # Of all errors this is one that servers keep quiet about.
            raise ConnectionResetError(errno.ECONNRESET, "the page was not made to its end") from error

    def close(self) -> None:
        """Let go of the source: whoever makes the parts is stopped. What fails in that is logged."""
        if self._is_closed:
            return
        self._is_closed = True
        for one in (self._parts, self._source) if self._parts is not self._source else (self._source,):
            close = getattr(one, "close", None)
            if callable(close):
                try:
                    self._scope.clean_up(close)
                except (Exception, SystemExit, Stopped) as error:
                    _log.error("web-stream-unclean %.200r", self._path, exc_info=error)


def _answer(application: Application, request: WebRequest, scope: Scope) -> Response:
    def answer() -> Response:
        request.check_length()  # also where no handler would read it
        response: Response = application.answer(RouteKind.WEB, request)
        return response

    # For what no handler answers: its errors are pages of the application's own templates.
    fallback = Jinja2Rendering(application, request)
    failed = fallback.failed
    try:
        response = scope.run(answer)
        if response.is_streamed:
            failed = getattr(response, "failed", None) or failed
            _stream(response, request, scope)
    except Stopped as stopped:
        _note(request.path, stopped)
        response = fallback.render_error(stopped.status)
    except (Exception, SystemExit) as error:
        response = failed(error)
    response.call_on_close(request.close)
    return response


def _stream(response: Response, request: WebRequest, scope: Scope) -> None:
    """Let the parts of a response be made in the scope; raises what the first one raises."""
    body = StreamedBody(scope, request.path, response.response, response.iter_encoded())
    response.response = body
    # What passes through directly is never told that it is over, and neither is the request.
    response.direct_passthrough = False
    if request.method != "head":
        try:
            body.make_first()
        except BaseException:
            response.close()
            raise


def _note(path: str, error: BaseException) -> None:
    """Log what ended a page before its time."""
    if isinstance(error, Stopped):
        # A client that leaves is no fault of anybody's.
        level = logging.INFO if error.status == status.CANCELLED else logging.WARNING
        _log.log(level, "web-request-stopped %.200r: %s", path, error.message)
    elif isinstance(error, RequestFailed) and not isinstance(error, RemoteError):
        _log.warning("web-stream-failed %.200r: %s %.200r", path, error.status, error.message)
    else:
        _log.error("web-stream-failed %.200r", path, exc_info=error)


class WSGIConnection:
    """Serves an application's web routes over HTTP, by gevent.pywsgi, on ``host`` and ``port``.

    Port 0 takes a free one; ``port`` tells which, once started. ``timeout_s`` is each request's deadline,
    ``max_body_bytes`` what its body may hold (413), ``trusted_proxies`` as for ``wsgi_app``. The socket is
    opened by ``start``, in the process that calls it.
    """

    kind: ClassVar[RouteKind] = RouteKind.WEB

    def __init__(
        self,
        host: str = HOST,
        port: int = PORT,
        *,
        timeout_s: float = TIMEOUT_S,
        max_body_bytes: int = MAX_BODY_BYTES,
        trusted_proxies: int = 0,
    ) -> None:
        if not 0 <= port <= 65535:
            raise AddressError(f"{port} is not a port: those are 1 to 65535, and 0 for any free one")
        self.host = host
        self._port = port
        self._options: dict[str, Any] = {
            "timeout_s": timeout_s,
            "max_body_bytes": max_body_bytes,
            "trusted_proxies": trusted_proxies,
        }
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

    def wsgi_options(self) -> dict[str, Any]:
        """Return what ``application.wsgi`` is made with, should another server host it."""
        return self._options

    def start(self, application: Application) -> None:
        """Begin to serve. Raises AddressInUse, and AddressError where nothing can listen."""
        if self._server is not None:
            raise UsageError(f"{self.url} is being served already")
        self._server = Server(self._listen(), wsgi_app(application, **self._options), self.host)
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
