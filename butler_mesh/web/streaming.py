"""Streamed pages: parts as bytes, and Server-Sent Events. Nothing is read before its reader wants it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import gevent
from gevent.queue import Empty, Queue

from butler_mesh import codec, deadlines, status
from butler_mesh.errors import RemoteError, RequestFailed, UsageError

PING_S = 15.0
"""Silence after which a stream of events sends a comment: proxies cut what is silent for a minute, and where
a server does not show us the connection only writing tells that the browser has left."""

KILL_S = 1.0
"""How long a source of events that is no longer wanted may take to clean up."""

_OPENING = b": the stream begins\n\n"
_PING = b":\n\n"
_log = logging.getLogger("butler_mesh.web")


@dataclass(frozen=True, slots=True)
class Event:
    """One Server-Sent Event. ``data`` is text, or a JSON value, sent as such; ``event`` is its type,
    ``id`` what a browser that connects anew names as ``Last-Event-ID``, ``retry_ms`` how long it waits
    before that."""

    data: Any
    event: str = ""
    id: str = ""
    retry_ms: int | None = None

    def __bytes__(self) -> bytes:
        """Return it as the browser reads it (HTML standard, 9.2.6)."""
        if any(end in text for text in (self.event, self.id) for end in "\r\n\0"):
            raise UsageError("the type and the id of an event are one line")
        lines = [f"event: {self.event}"] if self.event else []
        if self.id:
            lines.append(f"id: {self.id}")
        if self.retry_ms is not None:
            lines.append(f"retry: {self.retry_ms:d}")
        data = self.data if isinstance(self.data, str) else codec.dumps(self.data).decode()
        # A line ends at these three only; str.splitlines knows of more.
        text = data.replace("\r\n", "\n").replace("\r", "\n")
        lines += [f"data: {line}" for line in text.split("\n")]
        return "\n".join([*lines, "", ""]).encode("utf-8", "replace")


class Encoded:
    """The parts of a page as bytes: text in UTF-8, bytes as they are, other values as a line of JSON."""

    def __init__(self, parts: Iterable[Any]) -> None:
        self._source = parts
        self._parts = iter(parts)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return _encode(next(self._parts))

    def close(self) -> None:
        """Let go of the source, whose own ``close`` stops whoever makes the parts."""
        _close(self._parts, self._source)


class Events:
    """Server-Sent Events as bytes. Each is an Event or the data of one.

    A comment opens the stream, so that the browser knows it is there; others follow where nothing has been
    sent for ``ping_s`` seconds, or for half of the time that a part of the page may take. The source may be
    silent for as long as it likes: no deadline binds it, and the calls it makes have those of their own. One
    that fails ends the stream with an event ``failure``, whose data has ``status`` and ``message``.
    """

    def __init__(self, events: Iterable[Any], ping_s: float = PING_S) -> None:
        self._source = events
        self._events = iter(events)
        self._ping_s = ping_s
        # One is ready while one is being sent; the source waits before it makes another.
        self._made: Queue[bytes | None] = Queue(1)
        self._maker: gevent.Greenlet[..., None] | None = None
        self._is_over = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._is_over:
            raise StopIteration
        if self._maker is None:
            context = copy_context()
            context.run(deadlines.current.set, deadlines.NEVER)
            self._maker = gevent.spawn(context.run, self._make)
            return _OPENING
        try:
            made = self._made.get(timeout=min(self._ping_s, deadlines.remaining_s() / 2))
        except Empty:
            return _PING
        if made is None:
            self._is_over = True
            raise StopIteration
        return made

    def close(self) -> None:
        """Stop reading the source, and let go of it."""
        self._is_over = True
        if self._maker is not None:
            self._maker.kill(timeout=KILL_S)
            if not self._maker.dead:
                _log.error("event-stream-unclean: its source does not end")
                return
        _close(self._events, self._source)

    def _make(self) -> None:
        try:
            for event in self._events:
                self._made.put(bytes(event if isinstance(event, Event) else Event(event)))
        except BaseException as error:  # also sys.exit() in a source, which would end the server
            if self._is_over:
                return
            self._made.put(_failure(error))
        self._made.put(None)


def encoded(parts: Iterable[Any]) -> Encoded:
    """Return parts (text, bytes or JSON values) as bytes, each made when it is read."""
    return Encoded(parts)


def events(events: Iterable[Any], ping_s: float = PING_S) -> Events:
    """Return events, or their data, as a browser's EventSource reads them."""
    return Events(events, ping_s)


def _encode(part: Any) -> bytes:
    if isinstance(part, bytes | bytearray | memoryview):
        return bytes(part)
    if isinstance(part, str):
        return part.encode("utf-8", "replace")
    if isinstance(part, list) and part and all(isinstance(one, bytes) for one in part):
        return b"".join(part)
    return codec.dumps(part) + b"\n"


def _failure(error: BaseException) -> bytes:
    code, text = status.SERVER_ERROR, ""
    if isinstance(error, RequestFailed) and not isinstance(error, RemoteError):
        if 400 <= error.status <= 599:
            code = error.status
        _log.warning("event-stream-failed %s %.200r", code, error.message)
        # As on a page: a refusal is told in its own words, of a fault only the standard phrase.
        text = error.message if code < status.SERVER_ERROR else ""
    else:
        _log.error("event-stream-failed", exc_info=error)
    return bytes(Event({"status": code, "message": text or status.reason(code)}, event="failure"))


def _close(parts: object, source: object) -> None:
    """Close an iterator, and what it came from, where that is another object."""
    for one in (parts, source) if parts is not source else (source,):
        close = getattr(one, "close", None)
        if callable(close):
            close()
