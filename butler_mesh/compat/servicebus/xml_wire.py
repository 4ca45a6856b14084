"""py-servicebus's own messages, as its code writes them, for talking to those that still run it.

Its document and its code differ: ``<event version="1">``, without which an agent answers nothing, and
``<catgory>``, are the code's. Both forms are read, the code's is written. What is answered for a failure
says so in an attribute that py-servicebus passes over.

The token is its own, too: a hash of secret and date, good for three days and for any message. That is as
weak as it was, which is why this wire is an option.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from datetime import date, timedelta
from typing import Any, NamedTuple
from xml.etree.ElementTree import ParseError
from xml.sax.saxutils import escape

from butler_mesh.compat.servicebus.event import Event
from butler_mesh.errors import MeshError, UsageError, failure

try:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import XMLParser
except ModuleNotFoundError as error:
    raise UsageError(
        "wire='xml' needs defusedxml: pip install 'defusedxml>=0.7' (the extra 'servicebus')"
    ) from error

PING, PONG = b"PING", b"PONG"
BAD_TOKEN = "Token not valid!"

MAX_BYTES = 1024 * 1024
"""What is larger is not looked at: to parse it, everything else of the process stands still."""

_ELEMENTS = {
    "event": frozenset({"id", "token", "category", "catgory", "service", "params"}),
    "response": frozenset({"id", "message"}),
}
"""What each kind of message may hold, once and with nothing but text in it."""
_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML may hold, and the one that no parser leaves as it is."""


class Unreadable(MeshError):
    """It is no event, or no response."""


class Call(NamedTuple):
    """An event as it came, with what it shows to be let in."""

    event: Event
    token: str


def pack_call(event: Event, token: str) -> bytes:
    """Return an event as XML; raises TypeError and ValueError for parameters that JSON cannot hold."""
    return f"""<?xml version="1.0"?>
<event version="1">
    <id>{escape(event.id)}</id>
    <token>{escape(token)}</token>
    <catgory>{escape(event.category)}</catgory>
    <service>{escape(event.service)}</service>
    <params>{_cdata(json.dumps(event.params))}</params>
</event>
""".encode()


def pack_response(id_: str, message: Any, status: int = 200) -> bytes:
    """Return a response as XML: text as it is, any other value as JSON."""
    is_plain = isinstance(message, str) and not _NOT_XML.search(message)
    text = message if is_plain else json.dumps(message)
    mark = "" if status < 400 else f' status="{status}"'
    return f"""<?xml version="1.0"?>
<response{mark}>
    <id>{escape(id_)}</id>
    <message>{_cdata(text)}</message>
</response>
""".encode()


def parse_call(body: bytes) -> Call:
    """Read an event; raises Unreadable."""
    found = _parse(body, "event")
    category = found.text("category" if "category" in found.texts else "catgory")
    try:
        params = json.loads(found.text("params"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the parameters are no JSON: {error}") from error
    event = Event(found.text("id"), category, found.text("service"), params)
    return Call(event, found.text("token"))


def parse_response(body: bytes) -> tuple[str, Any]:
    """Read a response: (event id, message), which is a JSON value, or else text.

    Raises Unreadable, and for a response that is marked as a failure what stands for that.
    """
    found = _parse(body, "response")
    id_, text = found.text("id"), found.text("message")
    mark = found.attributes.get("status", "200")
    if mark.isdecimal() and 400 <= int(mark) <= 599:
        raise failure(int(mark), text)
    try:
        return id_, json.loads(text)
    except (ValueError, RecursionError):
        return id_, text


def make_token(secret: str, day: date) -> str:
    """Return the token of a day."""
    return hashlib.sha1(f"{secret} - {day.isoformat()}".encode()).hexdigest()


def is_good_token(token: str, secret: str, today: date) -> bool:
    """Tell whether a token is of today, yesterday or tomorrow."""
    days = (today + timedelta(days=days) for days in (-1, 0, 1))
    return any(hmac.compare_digest(token.encode(), make_token(secret, day).encode()) for day in days)


class _Found:
    """What a parser finds in a message; it ends at the first element that has no place there."""

    def __init__(self, kind: str) -> None:
        self.attributes: dict[str, str] = {}
        self.texts: dict[str, list[str]] = {}
        self._kind = kind
        # The elements that are open, from the outermost on.
        self._open: list[str] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._open and tag == self._kind:
            self.attributes = attributes
        elif len(self._open) == 1 and tag in _ELEMENTS[self._kind] and tag not in self.texts:
            self.texts[tag] = []
        else:
            raise Unreadable(f"no {self._kind}: {tag[:40]!r} has no place in it")
        self._open.append(tag)

    def end(self, tag: str) -> None:
        self._open.pop()

    def data(self, text: str) -> None:
        if len(self._open) == 2:
            self.texts[self._open[1]].append(text)

    def text(self, name: str) -> str:
        """Return the text of an element; raises Unreadable where there is none."""
        if name not in self.texts:
            raise Unreadable(f"without {name}")
        return "".join(self.texts[name])


def _parse(body: bytes, kind: str) -> _Found:
    if len(body) > MAX_BYTES:
        raise Unreadable(f"{len(body)} bytes are over the maximum of {MAX_BYTES}")
    found = _Found(kind)
    # No document type at all: without one there are no entities, to be expanded or fetched.
    parser = XMLParser(target=found, forbid_dtd=True)
    try:
        parser.feed(body)
        parser.close()
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise Unreadable(f"no XML that is taken: {error}") from error
    return found


def _cdata(text: str) -> str:
    # The only thing that would end it before its time.
    return f"<![CDATA[{text.replace(']]>', ']]]]><![CDATA[>')}]]>"
