"""A browser that is handed over: what is said of it, and that nobody else can say it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh.web.handover import ANSWERED, REPLY_TO, ReplyTo, without_own

SECRETS = {"tcp://127.0.0.1:1": "one", "tcp://127.0.0.1:2": "two"}
REPLY = ReplyTo("tcp://127.0.0.1:1", "sender", "7", "GET", "HTTP/1.1", 100)


def test_a_hand_over_survives_the_wire() -> None:
    assert ReplyTo.of({REPLY_TO: REPLY.header("one")}, SECRETS) == REPLY


@pytest.mark.parametrize("secret", ["two", "", "One"])
def test_one_that_was_signed_with_another_secret_is_none(secret: str) -> None:
    assert ReplyTo.of({REPLY_TO: REPLY.header(secret)}, SECRETS) is None


def test_one_to_an_endpoint_that_nobody_named_is_none() -> None:
    elsewhere = REPLY._replace(endpoint="tcp://127.0.0.1:3")
    assert ReplyTo.of({REPLY_TO: elsewhere.header("one")}, SECRETS) is None
    assert ReplyTo.of({REPLY_TO: REPLY.header("one")}, {}) is None


@pytest.mark.parametrize("field", range(len(REPLY)))
def test_no_field_can_be_changed(field: int) -> None:
    fields = json.loads(REPLY.header("one"))
    fields[field] = {0: "tcp://127.0.0.1:2", 5: 101}.get(field, "8")
    assert ReplyTo.of({REPLY_TO: json.dumps(fields)}, SECRETS) is None


@pytest.mark.parametrize(
    "header", ["", "{", "[]", "[1,2,3]", '["a","b","c","d","e","f"]', "null", "[[],1,1,1,1,1,1]", None, 7]
)
def test_what_makes_no_sense_is_no_hand_over(header: object) -> None:
    assert ReplyTo.of({REPLY_TO: header}, SECRETS) is None


def test_without_the_header_nothing_was_handed_over() -> None:
    assert ReplyTo.of({}, SECRETS) is None


@given(st.lists(st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()), max_size=9))
def test_nothing_raises(fields: list[object]) -> None:
    assert ReplyTo.of({REPLY_TO: json.dumps(fields)}, SECRETS) is None


def test_the_meshs_own_headers_are_left_out_however_they_are_written() -> None:
    headers = {REPLY_TO: "x", ANSWERED: "1", "Butler-Mesh-Reply-To": "x", "butler-mesh": "kept", "X-A": "b"}
    assert without_own(headers) == {"butler-mesh": "kept", "X-A": "b"}
