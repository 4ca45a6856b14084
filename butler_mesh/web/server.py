"""The HTTP server below WSGIConnection: gevent.pywsgi, with bounds on what a client may keep it doing."""

from __future__ import annotations

import logging
import socket as stdlib_socket
from contextlib import suppress
from contextvars import copy_context
from http.client import HTTPException
from typing import Any

import gevent
from gevent.pool import Pool
from gevent.pywsgi import Input, WSGIHandler, WSGIServer
from greenlet import GreenletExit

from butler_mesh import status
from butler_mesh.clock import monotonic
from butler_mesh.errors import Stopped

_log = logging.getLogger("butler_mesh.web")

SOCKET_TIMEOUT_S = 60.0
"""How long a client may send or take nothing, also between two requests: nginx's ``client_body_timeout``."""
MAX_CONNECTIONS = 1000
"""Open at once; more wait in the backlog. A process has 1024 descriptors unless it is given more."""
DISCARD_BYTES = 64 * 1024
"""Of a body that nobody read, so much is read to keep the connection; with more left it is closed."""
LINGER_S = 2.0
"""How long a closing connection goes on reading, so that the client gets to read why: a reset would
destroy the answer on its way (RFC 9112, 9.6)."""


class Body(Input):
    """The body of one request. What the application leaves of it is read to a bound only."""

    __slots__ = ("is_left",)

    def __init__(self, rfile: Any, content_length: int | None, socket: Any, chunked_input: bool) -> None:
        super().__init__(rfile, content_length, socket, chunked_input)
        # Whether bytes of it may still lie in the connection: it cannot serve another request then.
        self.is_left = False

    def _discard(self) -> None:
        """Called when the response has been sent."""
        waits_for_continue = self.socket is not None and (self.chunked_input or self.content_length)
        self.is_left = True
        if self._chunked_input_error or waits_for_continue:  # type: ignore[attr-defined]  # not in the stubs
            return
        self.send_100_continue_enabled = False
        for _ in range(DISCARD_BYTES // 16384 + 1):
            if not self.read(16384):
                self.is_left = False
                return


class Handler(WSGIHandler):
    """One connection and its requests, one after the other."""

    server: Server
    wsgi_input: Body  # what get_environ puts there
    # A client that went away, or stopped reading, is no error of ours. What is compared is ``args[0]``.
    ignored_socket_errors: Any = (*WSGIHandler.ignored_socket_errors, "timed out")

    def read_requestline(self) -> str:
        """Wait for the next request; while waiting the connection is idle."""
        self.server.idle.add(self)
        if self.server.is_draining:
            self.end_idling()
        try:
            with _patience():
                line: str = super().read_requestline()
        finally:
            self.server.idle.discard(self)
        return line

    def end_idling(self) -> None:
        """Make ``read_requestline`` return; a request that has arrived by now is answered all the same."""
        # On the bare descriptor: gevent's own shutdown() would make a waiting reader fail at once.
        bare = stdlib_socket.socket(fileno=self.socket.fileno())
        with suppress(OSError):  # the client was faster
            bare.shutdown(stdlib_socket.SHUT_RD)
        bare.detach()

    def read_request(self, raw_requestline: str) -> Any:
        """Read the head; ValueError (400) for one that two parties could read in two ways."""
        try:
            with _patience():
                super().read_request(raw_requestline)
        except (HTTPException, OSError) as error:
            raise ValueError(f"{type(error).__name__} in the head") from error
        lengths = set(self.headers.get_all("content-length", ()))
        if len(lengths) > 1 or not all(length.isascii() and length.isdigit() for length in lengths):
            raise ValueError("not one Content-Length")
        codings = self.headers.get_all("transfer-encoding", ())
        if codings and [coding.lower() for coding in codings] != ["chunked"]:
            raise ValueError("a Transfer-Encoding other than chunked")
        return True

    def get_environ(self) -> dict[str, Any]:
        """Return the request's environ, with our body in it, for upgrade requests as well."""
        environ: dict[str, Any] = super().get_environ()
        given = self.wsgi_input
        self.wsgi_input = Body(self.rfile, self.content_length, given.socket, given.chunked_input)
        environ["wsgi.input"] = self.wsgi_input
        environ["wsgi.input_terminated"] = True
        return environ

    def start_response(self, line: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """Begin the response; the last one of a connection says that it is."""
        if self.server.is_draining and not any(name.lower() == "connection" for name, _ in headers):
            headers = [*headers, ("Connection", "close")]
        return super().start_response(line, headers, exc_info)

    def handle_one_response(self) -> None:
        """Answer; then close the connection unless it is clean and may have another request."""
        super().handle_one_response()
        if self.wsgi_input.is_left:
            self.close_connection = True
            self._linger()
        elif self.server.is_draining:
            self.close_connection = True

    def _linger(self) -> None:
        until = monotonic() + LINGER_S
        with suppress(OSError):  # it is gone, or the time is over: both are what was waited for
            self.socket.shutdown(stdlib_socket.SHUT_WR)
            while (left_s := until - monotonic()) > 0:
                self.socket.settimeout(left_s)
                if not self.socket.recv(65536):
                    break

    def log_request(self) -> None:
        """Log one line for each request. Its query is left out: it may hold secrets."""
        what = " ".join((self.requestline or "").partition("?")[0].split()[:2])
        line = self.status.decode() if isinstance(self.status, bytes) else (self.status or "-")
        code = "lost" if line.startswith("socket error") else line[:3]
        _log.info("request %.200r %s %.1f ms", what, code, (self.time_finish - self.time_start) * 1000)

    def log_error(self, msg: str, *args: Any) -> None:
        """Log what clients do wrong; it is theirs, and not worth a warning."""
        _log.info("bad-request %.300r", msg % args if args else msg)


def _patience() -> gevent.Timeout:
    """Bound a head as a whole: the socket's own time-out begins anew with each byte."""
    return gevent.Timeout(SOCKET_TIMEOUT_S, TimeoutError("timed out"))


class ServerStops(Stopped, GreenletExit):
    """Ends a connection: answered with 503 where a handler is at work, and silent where none is."""


class Connections(Pool):
    """The greenlets of open connections; each starts with the context of the server's start."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._context = copy_context()

    def spawn(self, function: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Spawn in a copy of the context."""
        return super().spawn(self._context.copy().run, function, *args, **kwargs)


class Server(WSGIServer):
    """Serves a WSGI application on a listening socket; ``host`` is the environ's SERVER_NAME."""

    handler_class = Handler

    def __init__(self, listener: Any, application: Any, host: str) -> None:
        self.idle: set[Handler] = set()
        self.is_draining = False
        self.connections = Connections(MAX_CONNECTIONS)
        # Given, for gevent would look the name up: without a network that takes seconds.
        environ = {"SERVER_NAME": host}
        super().__init__(
            listener, application, spawn=self.connections, log=None, error_log=_log, environ=environ
        )

    def handle(self, sock: Any, address: Any) -> None:
        """Serve one connection."""
        sock.settimeout(SOCKET_TIMEOUT_S)
        super().handle(sock, address)

    def drain(self, grace_s: float) -> None:
        """Take no more connections, let requests that run end within ``grace_s``, then close all."""
        self.is_draining = True
        self.close()
        for handler in tuple(self.idle):
            handler.end_idling()
        self.connections.join(timeout=grace_s)
        if self.connections:
            _log.warning("drain-incomplete %d requests after %.1f s", len(self.connections), grace_s)
        self.connections.kill(ServerStops(status.UNAVAILABLE, "the server stops"), timeout=1.0)
