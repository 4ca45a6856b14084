"""py-servicebus's messages: to the byte as it writes them, and no way in for an attack."""

from __future__ import annotations

import hashlib
import importlib
import sys
from datetime import date
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh.compat.servicebus.event import Event
from butler_mesh.compat.servicebus.xml_wire import (
    MAX_BYTES,
    Unreadable,
    is_good_token,
    make_token,
    pack_call,
    pack_response,
    parse_call,
    parse_response,
)
from butler_mesh.errors import BadRequest, NotFound, RemoteError, UsageError

DOCUMENTED_CALL = b"""<?xml version="1.0"?>
<event>
    <id>EVENT_ID</id>
    <token>EVENT_TOKEN</token>
    <category>SERVICE_CATEGORY</category>
    <service>SERVICE_NAME</service>
    <params><![CDATA[[1, 2]]]></params>
</event>
"""
DOCUMENTED_RESPONSE = b"""<?xml version="1.0"?>
<response>
    <id>EVENT_ID</id>
    <message><![CDATA[{"sum": 3}]]></message>
</response>
"""
# What 2.17 and 2.19 write where the document has other words.
WRITTEN_CALL = DOCUMENTED_CALL.replace(b"<event>", b'<event version="1">').replace(b"category>", b"catgory>")

EVENT = Event("EVENT_ID", "SERVICE_CATEGORY", "SERVICE_NAME", [1, 2])


def test_a_call_is_written_as_py_servicebus_reads_it() -> None:
    assert pack_call(EVENT, "EVENT_TOKEN") == WRITTEN_CALL


@pytest.mark.parametrize("call", [DOCUMENTED_CALL, WRITTEN_CALL, DOCUMENTED_CALL.rstrip()])
def test_a_call_is_read_as_documented_and_as_it_is_written(call: bytes) -> None:
    assert parse_call(call) == (EVENT, "EVENT_TOKEN")


def test_a_response_is_written_as_documented() -> None:
    assert pack_response("EVENT_ID", {"sum": 3}) == DOCUMENTED_RESPONSE
    assert parse_response(DOCUMENTED_RESPONSE) == ("EVENT_ID", {"sum": 3})


def test_text_is_answered_as_it_is() -> None:
    """py-servicebus's callers are given it as text."""
    packed = pack_response("1", "all's <well>")
    assert b"<![CDATA[all's <well>]]>" in packed
    assert parse_response(packed) == ("1", "all's <well>")
    assert parse_response(pack_response("1", "")) == ("1", "")


def test_a_failure_is_marked_where_py_servicebus_does_not_look() -> None:
    packed = pack_response("1", "Cannot Find RPC Service: a.b", 404)
    assert packed.replace(b' status="404"', b"") == pack_response("1", "Cannot Find RPC Service: a.b")
    with pytest.raises(NotFound, match=r"Cannot Find RPC Service: a\.b"):
        parse_response(packed)
    with pytest.raises(RemoteError, match="KeyError"):
        parse_response(pack_response("1", "KeyError: 'x'", 500))
    with pytest.raises(BadRequest):
        parse_response(pack_response("1", "Token not valid!", 401))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
names = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn"), exclude_characters="\ufffe\uffff")
)


@pytest.mark.slow
@given(names, names, names, values)
def test_any_call_comes_back(id_: str, category: str, name: str, params: Any) -> None:
    event = Event(id_, category, name, params)
    assert parse_call(pack_call(event, "t")) == (event, "t")


@pytest.mark.slow
@given(values)
def test_any_value_comes_back_in_a_response_but_text_that_is_json(value: Any) -> None:
    _, found = parse_response(pack_response("1", value))
    if not isinstance(value, str):
        assert found == value
    else:
        assert found == value or pack_response("1", found) == pack_response("1", value) or found != found


@pytest.mark.parametrize("value", ["]]>", "a]]>b", ["]]>"], {"]]>": "]]>"}, "\x00", "line\r\n", "\ud800"])
def test_what_would_end_CDATA_or_is_not_XML_is_written_so_that_it_comes_back(value: Any) -> None:
    assert parse_response(pack_response("1", value)) == ("1", value)
    assert parse_call(pack_call(Event("1", "a", "b", value), "t")).event.params == value


BOMB = b"""<?xml version="1.0"?><!DOCTYPE event [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<event><id>&b;</id><token/><category/><service/><params>1</params></event>"""
THEFT = b"""<?xml version="1.0"?><!DOCTYPE event [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<event><id>&a;</id><token/><category/><service/><params>1</params></event>"""
FETCH = b"""<!DOCTYPE event SYSTEM "http://127.0.0.1:1/x.dtd"><event/>"""


@pytest.mark.parametrize("attack", [BOMB, THEFT, FETCH], ids=["bomb", "theft", "fetch"])
def test_entities_are_neither_expanded_nor_fetched(attack: bytes) -> None:
    with pytest.raises(Unreadable, match="no XML that is taken"):
        parse_call(attack)
    with pytest.raises(Unreadable):
        parse_response(attack.replace(b"event", b"response"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"PING",
        b"\xff\xfe\x00",
        b"<event>",
        b"<other/>",
        b"<event/>",
        b'<?xml version="1.0" encoding="no-such"?><event/>',
        DOCUMENTED_CALL.replace(b"[1, 2]", b"[1, 2"),
        DOCUMENTED_CALL.replace(b"<token>EVENT_TOKEN</token>", b""),
        DOCUMENTED_CALL.replace(b"[1, 2]", b"[" * 100_000),
        DOCUMENTED_RESPONSE,
    ],
    ids=range(11),
)
def test_what_is_no_call_is_Unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        parse_call(body)


@pytest.mark.parametrize(
    "strange",
    [
        b"<a/>",
        b"<id>again</id>",
        b"<event/>",
        b"<message/>",
        b"<category><deep/></category>",
    ],
)
def test_an_element_that_has_no_place_ends_the_reading(strange: bytes) -> None:
    with pytest.raises(Unreadable, match="has no place in it"):
        parse_call(WRITTEN_CALL.replace(b"</event>", strange + b"</event>"))


def seconds(body: bytes) -> float:
    """Return how long it takes to find that a body is none, in time of the processor."""
    began = process_time()
    for read in (parse_call, parse_response):
        with pytest.raises(Unreadable):
            read(body)
    return process_time() - began


@pytest.mark.parametrize(
    "strange", [b"<a/>", b"<!---->", b"<a>", b"\n", b"&#10;", b"<?a?>", b"<id></id>"], ids=repr
)
@pytest.mark.parametrize("size", [MAX_BYTES, 16 * 1024 * 1024])
def test_a_large_body_of_nothing_costs_next_to_nothing(strange: bytes, size: int) -> None:
    body = b"<event>" + strange * ((size - 20) // len(strange)) + b"</event>"
    assert seconds(body) < 0.25


def test_what_is_as_large_as_it_may_be_is_read() -> None:
    event = Event("1", "a", "b", "x" * (MAX_BYTES - 1024))
    assert parse_call(pack_call(event, "t")).event == event
    with pytest.raises(Unreadable, match="over the maximum"):
        parse_call(pack_call(Event("1", "a", "b", "x" * MAX_BYTES), "t"))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_call_or_Unreadable(body: bytes) -> None:
    for read in (parse_call, parse_response):
        with pytest.raises(Unreadable):
            read(body)


def test_the_token_is_the_seeds() -> None:
    day = date(2026, 11, 21)
    assert make_token("secret token", day) == hashlib.sha1(b"secret token - 2026-11-21").hexdigest()


@pytest.mark.parametrize(("days", "is_good"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
def test_a_token_is_good_for_three_days(days: int, is_good: bool) -> None:
    today = date(2026, 11, 21)
    token = make_token("s", date.fromordinal(today.toordinal() + days))
    assert is_good_token(token, "s", today) is is_good
    assert not is_good_token(token, "another", today)
    assert not is_good_token("", "s", today)
    assert not is_good_token("ä", "s", today)


def test_without_defusedxml_there_is_no_such_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "butler_mesh.compat.servicebus.xml_wire"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "defusedxml", None)
    with pytest.raises(UsageError, match=r"pip install 'defusedxml>=0.7' \(the extra"):
        importlib.import_module(name)
