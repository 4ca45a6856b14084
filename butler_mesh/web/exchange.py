"""One request of Mongrel2's and its reply: a WSGI environ made of the one, HTTP/1.1 bytes of the other."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from email.utils import formatdate
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from butler_mesh.errors import Stopped
from butler_mesh.protocol.mongrel2 import UPLOAD_DONE, UPLOAD_START, Message, joined
from butler_mesh.web.fields import HOP_BY_HOP, is_field

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

SLICE_BYTES = 64 * 1024
"""Of a reply whose length is known, so much is gathered before it is sent, where it may be sent in parts."""

# Between this hop and the next; how the body is framed is ours to say.
# What of the request's head has served its purpose: uploads are files by now, and 100 was answered.
_SPENT = frozenset({UPLOAD_START, UPLOAD_DONE, "transfer-encoding", "content-length", "expect"})

_STATUS = re.compile(r"[2-5][0-9][0-9]( [^\x00-\x08\x0a-\x1f\x7f]*)?")

_log = logging.getLogger("butler_mesh.web")

Headers = list[tuple[str, str]]


class Line:
    """The way to one browser."""

    is_last = False
    """Whether the present reply is the connection's last."""

    @property
    def can_send_parts(self) -> bool:
        """Whether a large reply may go in several messages."""
        return False

    def send(self, data: bytes) -> None:
        """Send bytes; waits until the browser takes more, and raises OSError when it does not."""
        raise NotImplementedError

    def hang_up(self) -> None:
        """Close the connection, once what was sent has arrived."""
        raise NotImplementedError

    def hand_over(self, message: Message) -> dict[str, str]:
        """Let a service answer a request; returns the headers that tell it how, none where it cannot."""
        return {}

    def handed_over(self) -> None:
        """Note that the service has answered, and closed the connection."""


class Exchange:
    """A request on its way through a WSGI application, and its reply on the way back.

    ``body`` is the request's, where it is a file; ``run`` answers it, once.
    """

    def __init__(
        self,
        message: Message,
        line: Line,
        app: WSGIApplication,
        body: IO[bytes] | None = None,
    ) -> None:
        self.message = message
        self.line = line
        self._app = app
        headers = message.headers
        is_old = headers.get("VERSION") == "HTTP/1.0"
        wishes = {word.strip() for word in message.header("connection").lower().split(",")}
        # HTTP/1.1: kept unless it says close; HTTP/1.0: closed unless both sides say keep-alive.
        self.must_close = "keep-alive" not in wishes if is_old else "close" in wishes
        self._is_old = is_old
        self._is_head = headers.get("METHOD") == "HEAD"
        self._body = io.BytesIO(message.body) if body is None else body
        self._length = len(message.body) if body is None else os.fstat(body.fileno()).st_size
        self._head: bytes | None = None
        self._is_head_sent = False
        # Bytes still to come of a reply whose length was declared; None: chunked, or until closed.
        self._left: int | None = None
        self._is_chunked = False
        self._is_bodiless = False
        # Takes no more of the body: there is to be none, or it was longer than declared.
        self._is_over = False
        self._is_finished = False
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def run(self) -> bool:
        """Answer the request; False when that failed. A failure before the head has left is a 500."""
        try:
            return self._answer()
        finally:
            self._is_finished = True

    def hand_over(self) -> dict[str, str]:
        """Let a service answer this request, the connection's last: the headers that tell it how.

        What is sent here instead is followed by the connection's end. None when it is over.
        """
        return {} if self._is_finished else self.line.hand_over(self.message)

    def was_answered(self) -> None:
        """Send nothing: the service that it was handed to has."""
        if self.line.is_last and not self._is_finished:
            self.line.handed_over()

    def environ(self) -> WSGIEnvironment:
        """Return the request as WSGI has it (PEP 3333)."""
        message, headers = self.message, self.message.headers
        scheme = headers.get("URL_SCHEME", "http")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": headers.get("METHOD", "GET"),
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(message.path).decode("latin-1"),
            "QUERY_STRING": headers.get("QUERY", ""),
            "REQUEST_URI": headers.get("URI", ""),
            "SERVER_NAME": "localhost",  # where there is no Host, which only HTTP/1.0 leaves out
            "SERVER_PORT": "443" if scheme == "https" else "80",
            "SERVER_PROTOCOL": headers.get("VERSION", "HTTP/1.1"),
            "REMOTE_ADDR": headers.get("REMOTE_ADDR", ""),
            "CONTENT_LENGTH": str(self._length),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": scheme,
            "wsgi.input": self._body,
            "wsgi.input_terminated": True,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "butler_mesh.exchange": self,
        }
        for name, value in headers.items():
            # "x_y" and "x-y" would be one name here, and whoever checks the one might read the other.
            if name.isupper() or "_" in name or name in _SPENT:
                continue
            text = joined(name, value)
            if name == "x-forwarded-for":
                # Mongrel2 puts in its own peer, which REMOTE_ADDR is already.
                text = text.rpartition(",")[0].strip()
                if not text:
                    continue
            key = name.upper().replace("-", "_")
            environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = text
        return environ

    def start_response(self, line: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], object]:
        """Take the head of the reply; raises ValueError for one that would be malformed."""
        is_correction = bool(exc_info)
        try:
            if exc_info and self._is_head_sent:
                raise exc_info[1]
        finally:
            exc_info = None
        if self._head is not None and not is_correction:
            raise ValueError("start_response() was called twice")
        self._pending.clear()
        self._pending_bytes = 0
        self._head = self._framed(line, headers)
        return self.write

    def write(self, data: bytes) -> None:
        """Send a part of the body."""
        if not data:
            return
        if self._head is None:
            raise ValueError("write() before start_response()")
        if self._is_bodiless or self._is_over:
            self._is_over = True
            return
        if self._left is not None:
            if len(data) > self._left:
                _log.error("reply-over-its-length %.200r", self.message.path)
                self._is_over = True
                data = data[: self._left]
            self._left -= len(data)
            self._add(data)
            if self._pending_bytes >= SLICE_BYTES and self._left and self.line.can_send_parts:
                self._flush()
        else:
            self._add(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
            self._flush()

    # --- within -------------------------------------------------------------------------------

    def _answer(self) -> bool:
        try:
            self._run()
        except BaseException as error:
            # All of them: a Timeout or a GreenletExit would leave the browser waiting, too.
            self._failed(error)
            # Nothing but the end of the connection can say that the rest is missing.
            self.line.hang_up()
            return False
        if self.must_close:
            self.line.hang_up()
        return True

    def _run(self) -> None:
        with closing(self._body), ExitStack() as last:
            parts: Iterable[bytes] = self._app(self.environ(), self.start_response)
            close = getattr(parts, "close", None)
            if callable(close):
                last.callback(close)
            for part in parts:
                self.write(part)
                if self._is_over:
                    break  # the rest may have no end
            self._finish()

    def _framed(self, line: str, headers: Headers) -> bytes:
        if not _STATUS.fullmatch(line):
            raise ValueError(f"not a status: {line!r}")
        code = int(line[:3])
        self._left, self._is_over = None, False
        self._is_bodiless = self._is_head or code in (204, 304)
        kept, names = [f"HTTP/1.1 {line}"], set()
        must_close = self.must_close or self.line.is_last
        for name, value in headers:
            if not is_field(name, value):
                raise ValueError(f"not a header: {name!r}")
            lower = name.lower()
            names.add(lower)
            if lower == "connection" and "close" in value.lower():
                must_close = True
            if lower == "content-length":
                if not (value.isascii() and value.isdigit()) or self._left is not None:
                    raise ValueError(f"not one length: {value[:40]!r}")
                self._left = int(value)
                if code == 204:
                    continue  # RFC 9110, 8.6
            if lower not in HOP_BY_HOP:
                kept.append(f"{name}: {value}")
        if "date" not in names:
            kept.append(f"Date: {_now()}")
        self._is_chunked = self._left is None and not self._is_bodiless and not self._is_old
        if self._is_chunked:
            kept.append("Transfer-Encoding: chunked")
        elif self._left is None and not self._is_bodiless:
            must_close = True  # HTTP/1.0 knows no other end
        self.must_close = must_close
        if must_close:
            kept.append("Connection: close")
        elif self._is_old:
            kept.append("Connection: keep-alive")
        return "\r\n".join([*kept, "", ""]).encode("latin-1")

    def _add(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)

    def _finish(self) -> None:
        if self._head is None:
            raise ValueError("the application answered nothing")
        self._add(b"0\r\n\r\n" if self._is_chunked else b"")
        self._flush()
        if self._left and not self._is_bodiless:
            _log.error("reply-short-of-its-length %.200r by %d bytes", self.message.path, self._left)
            self.must_close = True

    def _flush(self) -> None:
        if not self._is_head_sent and self._head is not None:
            self._pending.insert(0, self._head)
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        if data:
            self._is_head_sent = True
            self.line.send(data)

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, Stopped):
            return  # the browser left, or the process stops: nobody reads what would follow
        if isinstance(error, OSError) and self._is_head_sent:
            _log.info("reply-cut %.200r: %s", self.message.path, error)
            return
        _log.error("web-application-failed %.200r", self.message.path, exc_info=error)
        if not self._is_head_sent:
            try:
                self._fail()
            except (OSError, Stopped) as late:
                _log.info("reply-cut %.200r: %s", self.message.path, late)

    def _fail(self) -> None:
        text = b"Internal Server Error\n"
        self._pending.clear()
        self.must_close = True
        self._head = self._framed(
            "500 Internal Server Error",
            [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))],
        )
        self.write(text)
        self._finish()


def _now() -> str:
    """Return the date as HTTP has it, made once a second."""
    second = int(time.time())
    if _date[0] != second:
        _date[:] = [second, formatdate(second, usegmt=True)]
    return str(_date[1])


_date: list[Any] = [0, ""]
