"""Requests, responses and envelopes: what goes in comes out, and what cannot be read is said so."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh.errors import (
    BadRequest,
    DeadlineExceeded,
    NotSerializable,
    RemoteError,
    RequestFailed,
    Unavailable,
)
from butler_mesh.messages import (
    BadEnvelope,
    ServiceRequest,
    ServiceResponse,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from butler_mesh.protocol.mesh import RAW

texts = st.text(st.characters(codec="utf-8"), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, json_values, max_size=3)
bodies = json_values | st.binary() | st.lists(st.binary(), min_size=1)


@pytest.mark.slow
@given(
    path=texts.map(lambda text: f"/{text}"),
    method=texts,
    arguments=objects,
    headers=st.dictionaries(texts, texts, max_size=3),
    body=bodies,
    args=st.lists(json_values, max_size=3),
    kwargs=objects,
)
def test_a_request_comes_out_as_it_went_in(**fields: Any) -> None:
    decoded = decode_request(*encode_request(ServiceRequest(**fields)))
    body, args = fields.pop("body"), fields.pop("args")
    assert {name: getattr(decoded, name) for name in fields} == fields
    assert (decoded.raw_body, list(decoded.args)) == (body, args)


@pytest.mark.slow
@given(body=bodies, message=texts, headers=st.dictionaries(texts, texts), code=st.integers(100, 599))
def test_a_response_comes_out_as_it_went_in(body: Any, message: str, headers: Any, code: int) -> None:
    envelope, flags = encode_response(body, message, headers)
    decoded = decode_response(code, flags, envelope, "/path")
    assert (decoded.status_code, decoded.status_msg, decoded.body, decoded.headers, decoded.path) == (
        code,
        message,
        body,
        headers,
        "/path",
    )


def test_what_is_at_its_default_is_left_out() -> None:
    assert encode_request(ServiceRequest("/a")) == (b'{"path":"/a"}', 0)
    assert encode_response(None) == (b"{}", 0)


def test_bytes_travel_RAW_with_the_head_as_JSON() -> None:
    envelope, flags = encode_request(ServiceRequest("/a", body=b"\xff"))
    assert flags == RAW
    assert envelope == b'\x1b\0\0\0{"path":"/a","single":true}\x01\0\x01\0\0\0\xff'


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_anything_that_holds_bytes_is_a_body_of_bytes(kind: Any) -> None:
    assert decode_request(*encode_request(ServiceRequest(body=kind(b"ab")))).body == b"ab"


@pytest.mark.parametrize("body", [[b"a", "b"], [b"a", 1], ["a", b"b"], {"a": b"b"}, {1, 2}, object()])
def test_a_body_that_is_neither_bytes_nor_JSON_is_refused(body: Any) -> None:
    with pytest.raises(NotSerializable):
        encode_request(ServiceRequest(body=body))
    with pytest.raises(NotSerializable):
        encode_response(body)


@pytest.mark.slow
@given(st.binary())
def test_random_bytes_are_a_request_or_a_BadEnvelope(envelope: bytes) -> None:
    for flags in (0, RAW):
        with suppress(BadEnvelope):
            decode_request(envelope, flags)


@pytest.mark.slow
@given(json_values)
def test_any_JSON_is_a_request_or_a_BadEnvelope(value: Any) -> None:
    with suppress(BadEnvelope):
        decode_request(json.dumps(value).encode(), 0)


@pytest.mark.slow
@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("path", "method", "arguments", "headers", "body", "args", "kwargs", "single"), json_values
        ),
    )
)
def test_fields_of_the_wrong_kind_are_a_BadEnvelope(head: dict[str, Any]) -> None:
    try:
        request = decode_request(json.dumps(head).encode(), 0)
    except BadEnvelope:
        return
    assert request.path.startswith("/")
    assert isinstance(request.method, str)
    assert all(isinstance(field, dict) for field in (request.arguments, request.headers, request.kwargs))


@pytest.mark.slow
@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_a_reply_that_cannot_be_read_is_a_502(envelope: bytes) -> None:
    for flags in (0, RAW):
        response = decode_response(200, flags, envelope)
        assert response.status_code in (200, 502)
        if response.status_code == 502:
            assert "unreadable" in response.status_msg
        assert isinstance(response.headers, dict)
        assert isinstance(response.error, dict)
        response.failure()


def test_an_argument_is_looked_up_by_name_then_in_the_body_then_defaulted() -> None:
    request = ServiceRequest(arguments={"a": 1, "n": None}, body={"a": 2, "b": 3})
    assert request.get_argument("a") == 1
    assert request.get_argument("b") == 3
    assert request.get_argument("c") is None
    assert request.get_argument("c", "d") == "d"
    assert request.get_argument("n", "d") is None
    assert ServiceRequest(body=[1]).get_argument("a", "d") == "d"
    assert ServiceResponse(body={"a": 1}).get_argument("a") == 1
    assert ServiceResponse(body=b"").get_argument("a", "d") == "d"


def test_the_body_of_a_request_without_one_is_its_arguments() -> None:
    assert ServiceRequest(arguments={"a": 1}).body == {"a": 1}
    assert ServiceRequest(arguments={"a": 1}).raw_body is None
    assert ServiceRequest(arguments={"a": 1}, body=0).body == 0


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, BadRequest),
        (429, Unavailable),
        (500, RemoteError),
        (503, Unavailable),
        (504, DeadlineExceeded),
        (302, RequestFailed),
    ],
)
def test_a_failure_is_raised_as_what_its_status_means(code: int, kind: type[RequestFailed]) -> None:
    response = ServiceResponse(code, "why", {"a": 1}, {"Retry-After": "1.5", "Allow": "GET"})
    with pytest.raises(kind, match="why") as raised:
        response.raise_for_status()
    error = raised.value
    assert (error.status, error.message, error.body, error.retry_after_s) == (code, "why", {"a": 1}, 1.5)
    assert error.headers["Allow"] == "GET"
    assert error.is_received


@pytest.mark.parametrize("code", [200, 201, 207, 299])
def test_a_success_raises_nothing(code: int) -> None:
    ServiceResponse(code).raise_for_status()
    assert ServiceResponse(code).is_success


def test_a_failure_without_a_message_says_what_its_code_means() -> None:
    assert str(ServiceResponse(404).failure()) == "Not Found"


def test_messages_say_what_they_are() -> None:
    assert repr(ServiceRequest("/a", "get")) == "<ServiceRequest get '/a'>"
    assert repr(ServiceResponse(404, "no", path="/a")) == "<ServiceResponse 404 'no' '/a'>"
