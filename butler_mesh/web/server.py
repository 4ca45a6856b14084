"""The HTTP server below WSGIConnection: gevent.pywsgi, with bounds on what a client may keep it doing.

What two parties could read in two ways is a 400 and the end of the connection: that is how requests are
smuggled past a proxy. Lines end in CRLF; a field is one line, its name a token right before the colon, its
value without control characters; the body's length is told once, in digits or as chunks.

How long a client may take: for a request's head SOCKET_TIMEOUT_S; for its body as much, and a second more
for every MIN_PACE bytes that came; for every PIECE_BYTES of the response SOCKET_TIMEOUT_S again.
"""

from __future__ import annotations

import logging
import re
import socket as stdlib_socket
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from http.client import HTTPException
from io import BytesIO
from typing import Any

import gevent
from gevent.pool import Pool
from gevent.pywsgi import (  # type: ignore[attr-defined]  # two are not in the stubs
    Input,
    WSGIHandler,
    WSGIServer,
    _InvalidClientInput,
    headers_factory,
)
from greenlet import GreenletExit

from butler_mesh import status
from butler_mesh.clock import monotonic
from butler_mesh.errors import Stopped
from butler_mesh.web.fields import is_field

_log = logging.getLogger("butler_mesh.web")

SOCKET_TIMEOUT_S = 60.0
"""How long a client may send or take nothing, also between two requests: nginx's ``client_body_timeout``."""
MIN_PACE = 1024
"""Bytes of a body that buy their sender a second more. The slowest mobile networks have ten times that."""
PIECE_BYTES = 64 * 1024
"""So much is read or sent with one time-out: what is slow but moves has not stopped."""
MAX_HEAD_BYTES = 64 * 1024
"""Of all header fields together; as nginx and Apache let a client send. http.client takes 100 fields."""
MAX_CHUNK_LINE = 4096
FRAMING_BYTES = 64 * 1024
"""The heads and trailers of a body's chunks may be so much longer than the data in them: lines without end
are work without end, and a chunk of one byte costs as much as one of a thousand."""
LINES_A_TURN = 512
"""Of framing, before others get their turn: half a millisecond."""
MAX_CONNECTIONS = 1000
"""Open at once; more wait in the backlog. A process has 1024 descriptors unless it is given more."""
DISCARD_BYTES = 64 * 1024
"""Of a body that nobody read, so much is read to keep the connection; with more left it is closed."""
LINGER_S = 2.0
"""How long a closing connection goes on reading, so that the client gets to read why: a reset would
destroy the answer on its way (RFC 9112, 9.6)."""

_BODILESS = (204, 304)

# RFC 9110, 5 and RFC 9112, 3 and 7.1. None of them can match in two ways: what fails, fails in linear time.
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIELD = re.compile(rb"(%b):([\t\x20-\x7e\x80-\xff]*)\r\n" % _TOKEN)
_CHUNK_HEAD = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[\t ]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_REQUEST_LINE = re.compile(rb"%b [\x21-\x7e\x80-\xff]+ HTTP/1\.[0-9]\r\n" % _TOKEN)


class Body(Input):
    """The body of one request. What the application leaves of it is read to a bound only.

    Chunks are decoded here: gevent reads their heads byte by byte, and trailers without end. Reading raises
    OSError for a body that breaks the rules, breaks off or comes too slowly.
    """

    __slots__ = ("chunk_left", "framing", "is_left", "is_over", "is_sound", "lines", "received", "waited_s")

    def __init__(self, rfile: Any, content_length: int | None, socket: Any, chunked_input: bool) -> None:
        super().__init__(rfile, content_length, socket, chunked_input)
        self.is_over = not (chunked_input or content_length)
        # Whether we know where in the connection we are: not after a read that was broken off.
        self.is_sound = True
        # Whether bytes of it may still lie in the connection: it cannot serve another request then.
        self.is_left = False
        self.received = 0
        self.waited_s = 0.0
        # What is around the data, chunks' heads and ends and trailers: lines, and bytes.
        self.lines = 0
        self.framing = 0
        self.chunk_left = 0  # of the chunk that is being read

    def read(self, length: int | None = None) -> bytes:
        """Return so many bytes, fewer at the end; all of them without a length."""
        return self._gather(super().read, length)

    def readline(self, size: int | None = None) -> bytes:
        """Return the next line, or so much of it."""
        return self._gather(super().readline, size, end=b"\n")

    def _gather(self, read: Callable[[int], bytes], length: int | None, end: bytes | None = None) -> bytes:
        left = sys.maxsize if length is None or length < 0 else length
        pieces: list[bytes] = []
        while left and not self.is_over:
            pieces.append(self._in_time(read, min(left, PIECE_BYTES)))
            left -= len(pieces[-1])
            if end and pieces[-1].endswith(end):
                break
        return b"".join(pieces)

    def _in_time(self, read: Callable[[int], bytes], length: int) -> bytes:
        if not self.is_sound:
            raise _InvalidClientInput("an earlier read was broken off")
        began = monotonic()
        before = self.received
        self.is_sound = False
        with _patience(SOCKET_TIMEOUT_S + before / MIN_PACE - self.waited_s):
            piece = read(length)
        self.is_sound = True
        self.waited_s += monotonic() - began
        self.received = before + len(piece)
        self.is_over = self.is_over or self.received == self.content_length
        return piece

    def _chunked_read(self, length: int, use_readline: bool = False) -> bytes:
        self._send_100_continue()  # type: ignore[attr-defined]  # not in the stubs
        read = self.rfile.readline if use_readline else self.rfile.read
        pieces: list[bytes] = []
        while length and (self.chunk_left or self._begin_chunk()):
            piece = read(min(length, self.chunk_left))
            if not piece:
                raise _InvalidClientInput("the connection ended in a chunk")
            pieces.append(piece)
            length -= len(piece)
            self.received += len(piece)
            self.chunk_left -= len(piece)
            if not self.chunk_left and self._framing_line() != b"\r\n":
                raise _InvalidClientInput("a chunk is longer than it says")
            if use_readline and piece.endswith(b"\n"):
                break
        return b"".join(pieces)

    def _begin_chunk(self) -> bool:
        """Read a chunk's head; False for the last one, whose trailers are read, too."""
        head = _CHUNK_HEAD.fullmatch(self._framing_line())
        if head is None:
            raise _InvalidClientInput("not the head of a chunk")
        self.chunk_left = int(head[1], 16)
        if self.chunk_left:
            return True
        while (line := self._framing_line()) != b"\r\n":
            if not _FIELD.fullmatch(line):
                raise _InvalidClientInput("not a trailer")
        self.is_over = True
        return False

    def _framing_line(self) -> bytes:
        line: bytes = self.rfile.readline(MAX_CHUNK_LINE)
        self.framing += len(line)
        self.lines += 1
        if not self.lines % LINES_A_TURN:
            gevent.sleep(0)
        if self.framing > FRAMING_BYTES + self.received:
            raise _InvalidClientInput("more framing than data")
        return line

    def _discard(self) -> None:
        """Called when the response has been sent."""
        waits_for_continue = self.socket is not None and not self.is_over
        self.is_left = True
        if not self.is_sound or waits_for_continue:
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
    # Bytes still to come of a response whose length was declared.
    body_left: int | None = None
    # A client that went away, or stopped reading, is no error of ours. What is compared is ``args[0]``.
    ignored_socket_errors: Any = (*WSGIHandler.ignored_socket_errors, "timed out")

    def read_requestline(self) -> str:
        """Wait for the next request; while waiting the connection is idle."""
        self.server.idle[self] = None
        if self.server.is_draining:
            self.end_idling()
        try:
            with _patience(SOCKET_TIMEOUT_S):
                line: str = super().read_requestline()
        finally:
            self.server.idle.pop(self, None)
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
        if not _REQUEST_LINE.fullmatch(raw_requestline.encode("latin-1")):
            raise ValueError("not a request line")
        try:
            with _patience(SOCKET_TIMEOUT_S):
                return super().read_request(raw_requestline)
        except (HTTPException, OSError) as error:
            raise ValueError(f"{type(error).__name__} in the head") from error

    def MessageClass(self, rfile: Any, *_: Any) -> Any:
        """Read the fields of the head."""
        fields = headers_factory(_read_fields(rfile))
        lengths = fields.get_all("content-length", [])
        codings = fields.get_all("transfer-encoding", [])
        if len(lengths) + len(codings) > 1:
            raise ValueError("the body's length is told twice")
        if not all(length.isascii() and length.isdigit() for length in lengths):
            raise ValueError("not a Content-Length")
        if codings and (codings[0].lower() != "chunked" or self.request_version == "HTTP/1.0"):
            raise ValueError("a Transfer-Encoding other than chunked")
        hosts = fields.get_all("host", [])
        if len(hosts) > 1 or not (hosts or self.request_version == "HTTP/1.0"):
            raise ValueError("not one Host")  # RFC 9112, 3.2
        return fields

    def get_environ(self) -> dict[str, Any]:
        """Return the request's environ, with our body in it, for upgrade requests as well."""
        environ: dict[str, Any] = super().get_environ()
        is_waiting = self.headers.get("expect", "").lower() == "100-continue"
        socket = self.socket if is_waiting and self.request_version != "HTTP/1.0" else None
        self.wsgi_input = Body(self.rfile, self.content_length, socket, self.wsgi_input.chunked_input)
        environ["wsgi.input"] = self.wsgi_input
        environ["wsgi.input_terminated"] = True
        # For those who want to know whether the client is still there.
        environ["butler_mesh.socket"] = self.socket
        return environ

    def start_response(self, line: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """Begin the response; the last one of a connection says that it is."""
        if not all(is_field(name, value) for name, value in headers):
            # Names that come from a service's reply, say: CR and LF are not all that is wrong in one.
            raise ValueError("not a header")
        if self.server.is_draining and not any(name.lower() == "connection" for name, _ in headers):
            headers = [*headers, ("Connection", "close")]
        write = super().start_response(line, headers, exc_info)
        length: str | None = self.provided_content_length
        if length is not None and not (length.isascii() and length.isdigit()):
            raise ValueError(f"not a length: {length!r}")
        self.body_left = None if length is None or self.command == "HEAD" else int(length)
        return write

    def handle_one_response(self) -> None:
        """Answer; then close the connection unless it is clean and may have another request."""
        self.body_left = None
        super().handle_one_response()
        left: int | None = self.body_left
        if left and self.code not in _BODILESS:
            _log.error("reply-short-of-its-length %.200r by %d bytes", self.path, left)
            self.close_connection = True
        if self.wsgi_input.is_left:
            self.close_connection = True
            self._linger()
        elif self.server.is_draining:
            self.close_connection = True
        # Requests that are here already (pipelined) need no waiting, and would let nobody else have a turn.
        gevent.sleep(0)

    def _write(self, data: bytes) -> None:
        # What is over the declared length would be read as the next response.
        if self.body_left is not None:
            if len(data) > self.body_left:
                _log.error("reply-over-its-length %.200r", self.path)
                data = data[: self.body_left]
            self.body_left -= len(data)
        super()._write(data)  # type: ignore[misc]  # not in the stubs

    def _sendall(self, data: bytes | bytearray) -> None:
        # gevent's time-out is for all of what it is given: a large page would have to be taken at a run.
        view = memoryview(data)
        for start in range(0, len(data), PIECE_BYTES):
            super()._sendall(view[start : start + PIECE_BYTES])  # type: ignore[misc]  # not in the stubs

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


def _read_fields(rfile: Any) -> BytesIO:
    """Read the fields of a head, to the empty line; return them with their values trimmed."""
    fields, left = [], MAX_HEAD_BYTES
    while (line := rfile.readline(left)) != b"\r\n":
        field = _FIELD.fullmatch(line)
        if field is None:
            raise ValueError("not a header field" if len(line) < left else "the head is too large")
        fields.append(b"%b: %b\r\n" % (field[1], field[2].strip(b"\t ")))
        left -= len(line)
    return BytesIO(b"".join(fields) + b"\r\n")


def _patience(timeout_s: float) -> gevent.Timeout:
    """Bound a head, or a piece of a body, as a whole: the socket's time-out begins anew with each byte."""
    return gevent.Timeout(max(0.0, timeout_s), TimeoutError("timed out"))


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
        # In the order in which they fell silent.
        self.idle: dict[Handler, None] = {}
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
        if self.connections.full() and self.idle:
            # One that has nothing to say makes room: or a thousand of them would shut everybody out.
            next(iter(self.idle)).end_idling()
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
