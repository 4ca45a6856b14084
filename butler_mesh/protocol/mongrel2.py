"""Mongrel2's wire: requests, notices and uploads to Python, replies to bytes. Pure.

A request is ``SENDER CONNID PATH `` and two netstrings, headers and body; the headers are JSON or, closed
by ``}``, a tnetstring. A reply is ``SENDER LEN:ID ID ..., BODY``, its body raw HTTP, or nothing: close the
connection. Checked against Mongrel2 1.12.2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from butler_mesh.errors import ProtocolError

MAX_TARGETS = 100
"""Connections that one reply names at most: Mongrel2 drops a message with more than 128."""
MAX_LENGTH = 2**31 - 1
"""Of a body. Mongrel2 reads a Content-Length into 32 bits: 4294967296 is 0 to it."""
FLOW_WINDOW = 100 * 1024
"""Bytes of a reply on their way at once, with ``download.flow_control``; with one more the client is cut."""

UPLOAD_START = "x-mongrel2-upload-start"
UPLOAD_DONE = "x-mongrel2-upload-done"
_CREDITS = "DOWNLOAD_CREDITS"
_NOTICE_PATH = b"@*"
_WEBSOCKET = ("WEBSOCKET_HANDSHAKE", "WEBSOCKET")
_FLAGS = "FLAGS"
_SENDER = re.compile(rb"[A-Za-z0-9-]+")
_LENGTH = re.compile(r"[0-9]{1,10}", re.ASCII)
_DEEPEST = 8  # headers are a dict of strings and lists of those

Value = str | list[str]


@dataclass(slots=True)
class Message:
    """What Mongrel2 sent about a connection.

    ``headers`` has Mongrel2's own in capitals, the client's in lower case: so no client can forge one. Text
    is Latin-1, byte for byte, as in WSGI. One that came several times is a list.
    """

    sender: bytes
    connection: bytes
    path: bytes
    headers: dict[str, Value]
    body: bytes = field(repr=False)

    @property
    def notice(self) -> str:
        """``disconnect`` or ``credits``; '' for a request of a client."""
        # Anybody can send a request with method JSON, but only Mongrel2 one with this path.
        if self.path != _NOTICE_PATH or self.headers.get("METHOD") != "JSON":
            return ""
        try:
            content = json.loads(self.body)
        except (ValueError, RecursionError):
            return "unreadable"
        return str(content.get("type")) if isinstance(content, dict) else "unreadable"

    @property
    def credits(self) -> int:
        """Bytes more that the connection takes; 0 where Mongrel2 says nothing of them."""
        return _length(self.headers.get(_CREDITS)) or 0

    def header(self, name: str) -> str:
        """Return a header's value; of several all, joined as HTTP joins them; '' without it."""
        return joined(name, self.headers.get(name, ""))


@dataclass(frozen=True, slots=True)
class Upload:
    """A body that is a file. Its path is the server's, and complete (``is_done``) or just begun."""

    path: str
    length: int | None
    """Bytes that were announced; None for a chunked body."""
    is_done: bool


def joined(name: str, value: Value) -> str:
    """Return the value of a header that came once or several times."""
    return value if isinstance(value, str) else ("; " if name == "cookie" else ", ").join(value)


def parse(data: bytes) -> Message:
    """Return a message; raises ProtocolError for what Mongrel2 would not send."""
    try:
        sender, connection, path, rest = data.split(b" ", 3)
        if not (connection.isdigit() and _SENDER.fullmatch(sender)):
            raise ProtocolError(f"not a connection: {connection[:40]!r}")
        raw, kind, rest = _netstring(rest)
        headers = _json_headers(raw) if kind == b"," else _headers(_value(raw, kind, 0))
        body, kind, rest = _netstring(rest)
        if kind != b"," or rest:
            raise ProtocolError("not one body")
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a message of Mongrel2: {error}: {data[:80]!r}") from error
    return Message(sender, connection, path, headers, body)


def upload(message: Message) -> Upload | None:
    """Return the upload that a request stands for; None where its body is in it.

    Any client can send the headers of an upload. A body that is really a file left the message empty, though
    it was announced, or chunked, in terms that Mongrel2 reads as we do; and Mongrel2 overwrites both headers
    when it is done, of which the first alone is a start. Whether there is such a file, and where, is for the
    caller to check.
    """
    start, done = message.headers.get(UPLOAD_START), message.headers.get(UPLOAD_DONE)
    if message.body or not isinstance(start, str) or _FLAGS in message.headers:
        return None  # of a websocket's frames the length in the head says nothing
    length: int | None = None
    # Exactly so, once or several times: Mongrel2 does not know it by any other spelling.
    if set(_several(message.headers.get("transfer-encoding"))) != {"chunked"}:
        # Of several Mongrel2 takes the first.
        length = _length(next(iter(_several(message.headers.get("content-length"))), None))
        if not length or length > MAX_LENGTH:
            return None
    return Upload(start, length, is_done=start == done)


def is_sound(message: Message) -> bool:
    """Tell whether everybody reads the end of a request, and its host, as Mongrel2 did.

    Where a proxy before it could have read another length, the rest may be another request, of which the
    proxy knows nothing: RFC 9112, 3.2, 6.1 and 6.3.
    """
    headers = message.headers
    hosts = len(_several(headers.get("host")))
    if hosts > 1 or not (hosts or headers.get("VERSION") == "HTTP/1.0"):
        return False
    if headers.get("METHOD") in _WEBSOCKET:
        return False  # what follows are frames
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if coding is not None:
        return (coding, length) == ("chunked", None) and headers.get("VERSION") != "HTTP/1.0"
    if length is None:
        return not message.body
    if not isinstance(length, str):
        return False
    return _length(length) == len(message.body) or upload(message) is not None


def pack_reply(sender: bytes, connections: Sequence[bytes], body: bytes) -> Iterator[bytes]:
    """Yield the messages that send ``body`` to connections of one server; '' closes them."""
    # Mongrel2 would skip what is malformed, and then do nothing for a tenth of a second.
    if not _SENDER.fullmatch(sender):
        raise ProtocolError(f"not a sender: {sender[:80]!r}")
    if not all(map(bytes.isdigit, connections)):
        raise ProtocolError(f"not connections: {connections[:8]!r}")
    for first in range(0, len(connections), MAX_TARGETS):
        targets = b" ".join(connections[first : first + MAX_TARGETS])
        yield b"%b %d:%b, %b" % (sender, len(targets), targets, body)


def _several(value: Value | None) -> list[str]:
    """Return the values of a header that came never, once or several times."""
    return [] if value is None else [value] if isinstance(value, str) else value


def _length(value: Value | None) -> int | None:
    return int(value) if isinstance(value, str) and _LENGTH.fullmatch(value) else None


def _netstring(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return (content, the byte that closes it, what follows)."""
    length, colon, rest = data.partition(b":")
    if not colon or not length.isdigit() or len(length) > 10:
        raise ProtocolError(f"not a length: {data[:20]!r}")
    size = int(length)
    if len(rest) <= size:
        raise ProtocolError("shorter than it says")
    return rest[:size], rest[size : size + 1], rest[size + 1 :]


def _value(data: bytes, kind: bytes, depth: int) -> Any:
    if kind == b",":
        return data.decode("latin-1")
    if depth > _DEEPEST or kind not in (b"}", b"]"):
        raise ProtocolError(f"not a value: {kind!r}")
    values = []
    while data:
        content, inner, data = _netstring(data)
        values.append(_value(content, inner, depth + 1))
    if kind == b"]":
        return values
    if len(values) % 2 or not all(isinstance(key, str) for key in values[::2]):
        raise ProtocolError("not pairs")
    return dict(zip(values[::2], values[1::2], strict=True))


def _json_headers(data: bytes) -> dict[str, Value]:
    # Mongrel2 copies what it got: tabs, control characters and Latin-1 bytes, none of them JSON.
    return _headers(json.loads(data.decode("latin-1"), strict=False))


def _headers(value: Any) -> dict[str, Value]:
    if not isinstance(value, dict) or not all(map(_is_value, value.values())):
        raise ProtocolError("headers are text or lists of text")
    return value


def _is_value(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
