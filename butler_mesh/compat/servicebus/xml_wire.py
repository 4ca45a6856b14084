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
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import escape

from butler_mesh.compat.servicebus.event import Event
from butler_mesh.errors import MeshError, UsageError, failure

try:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring
except ModuleNotFoundError as error:
    raise UsageError("wire='xml' needs defusedxml: install butler_mesh[servicebus]") from error

PING, PONG = b"PING", b"PONG"
BAD_TOKEN = "Token not valid!"

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
    root = _parse(body, "event")
    category = root.findtext("category")
    if category is None:
        category = _text(root, "catgory")
    try:
        params = json.loads(_text(root, "params"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the parameters are no JSON: {error}") from error
    event = Event(_text(root, "id"), category, _text(root, "service"), params)
    return Call(event, _text(root, "token"))


def parse_response(body: bytes) -> tuple[str, Any]:
    """Read a response: (event id, message), which is a JSON value, or else text.

    Raises Unreadable, and for a response that is marked as a failure what stands for that.
    """
    root = _parse(body, "response")
    id_, text = _text(root, "id"), _text(root, "message")
    mark = root.get("status", "200")
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


def _parse(body: bytes, kind: str) -> Element:
    try:
        # No document type at all: without one there are no entities, to be expanded or fetched.
        root: Element = fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise Unreadable(f"no XML that is taken: {error}") from error
    if root.tag != kind:
        raise Unreadable(f"no {kind}")
    return root


def _text(root: Element, name: str) -> str:
    found = root.find(name)
    if found is None:
        raise Unreadable(f"without {name}")
    return found.text or ""


def _cdata(text: str) -> str:
    # The only thing that would end it before its time.
    return f"<![CDATA[{text.replace(']]>', ']]]]><![CDATA[>')}]]>"
