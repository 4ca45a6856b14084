"""WebRequest: arguments from everywhere, a bounded body."""

from __future__ import annotations

import io

import pytest
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from butler_mesh.deadlines import NEVER
from butler_mesh.errors import BadRequest
from butler_mesh.web.request import WebRequest
from tests.web.fronts import made

JSON = "application/json"


def chunked(body: bytes, maximum: int) -> WebRequest:
    """Return a request whose length nobody knows, from a server that finds its end."""
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/",
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "HTTP_TRANSFER_ENCODING": "chunked",
    }
    return WebRequest(environ, max_body_bytes=maximum)


def test_it_has_the_names_that_all_messages_share() -> None:
    first, second = made("/a/b?c=d", "POST", deadline=12.5), made()
    assert (first.path, first.method, first.deadline) == ("/a/b", "post", 12.5)
    assert second.conn_id == first.conn_id + 1
    assert second.deadline == NEVER


def test_headers_and_cookies_are_at_hand() -> None:
    request = made(headers={"X-Colour": "blue", "Cookie": "taste=sweet"})
    assert request.headers["x-colour"] == "blue"
    assert request.cookies["taste"] == "sweet"


def test_the_remote_address_is_the_connections_whatever_headers_claim() -> None:
    request = made(
        headers={"X-Forwarded-For": "10.0.0.1", "Forwarded": "for=10.0.0.1"},
        environ_base={"REMOTE_ADDR": "127.0.0.9"},
    )
    assert request.remote_addr == "127.0.0.9"


def test_an_argument_is_looked_for_in_the_query_then_the_form_then_the_json_object() -> None:
    form = made("/?a=query", "POST", data={"a": "form", "b": "form"})
    assert [form.get_argument(name) for name in "abc"] == ["query", "form", None]
    json = made("/?a=query", "POST", data=b'{"a": 1, "b": [2]}', content_type=JSON)
    assert [json.get_argument(name, "none") for name in "abc"] == ["query", [2], "none"]


def test_of_an_argument_that_comes_twice_the_first_counts_and_all_can_be_had() -> None:
    request = made("/?a=1&a=2")
    assert request.get_argument("a") == "1"
    assert request.args.getlist("a") == ["1", "2"]


@pytest.mark.parametrize("body", [b"[1, 2]", b'"a"', b"3", b"null"])
def test_json_that_is_no_object_has_no_arguments(body: bytes) -> None:
    assert made("/", "POST", data=body, content_type=JSON).get_argument("a", "none") == "none"


@pytest.mark.parametrize("body", [b"", b"{", b"{'a': 1}", b'{"a": NaN}', b'"\xff"', b"[" * 10_000])
def test_a_body_that_is_not_the_json_it_says_it_is_is_a_bad_request(body: bytes) -> None:
    request = made("/", "POST", data=body, content_type=JSON)
    with pytest.raises(BadRequest) as caught:
        request.get_argument("a")
    assert caught.value.status == 400


def test_a_body_that_does_not_say_it_is_json_is_not_read_as_such() -> None:
    request = made("/", "POST", data=b'{"a": 1}', content_type="text/plain")
    assert request.json_body is None
    assert request.get_argument("a") is None


def test_the_body_is_there_also_after_the_form_was_asked_for() -> None:
    request = made("/", "POST", data={"a": "1"})
    assert request.get_argument("a") == "1"
    assert request.body == b"a=1"


def test_a_multipart_form_has_its_fields() -> None:
    request = made("/", "POST", data={"a": "1", "file": (io.BytesIO(b"x"), "x.txt")})
    assert request.get_argument("a") == "1"
    request.close()


def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    request = made("/", "POST", data=b"123456", max_body_bytes=5)
    with pytest.raises(RequestEntityTooLarge):
        _ = request.body
    assert request.environ["wsgi.input"].tell() == 0


def test_a_body_of_the_largest_size_is_taken_and_one_byte_more_is_not() -> None:
    assert made("/", "POST", data=b"12345", max_body_bytes=5).body == b"12345"
    assert chunked(b"12345", 5).body == b"12345"
    with pytest.raises(RequestEntityTooLarge):
        _ = chunked(b"123456", 5).body


def test_a_body_without_end_is_read_to_its_maximum_only() -> None:
    request = chunked(b"x" * 1_000_000, 1_000)
    with pytest.raises(RequestEntityTooLarge):
        _ = request.body
    assert request.environ["wsgi.input"].tell() == 1_001


def test_a_stream_read_in_pieces_ends_at_the_maximum_as_well() -> None:
    stream = chunked(b"12345", 5).stream
    assert [stream.read(3), stream.read(3), stream.read(3)] == [b"123", b"45", b""]
    stream = chunked(b"123456", 5).stream
    assert [stream.read(3), stream.read(3)] == [b"123", b"45"]
    with pytest.raises(RequestEntityTooLarge):
        stream.read(3)


def test_a_body_that_is_cut_off_is_no_body() -> None:
    request = made("/", "POST", data=b"12345")
    request.environ["wsgi.input"] = io.BytesIO(b"123")
    with pytest.raises(ClientDisconnected):
        _ = request.body


def test_a_server_that_tells_no_end_has_no_body_to_give() -> None:
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/", "wsgi.input": io.BytesIO(b"other's")}
    assert WebRequest(environ).body == b""


def test_its_repr_is_short() -> None:
    assert repr(made("/a", "PUT")) == "<WebRequest put '/a'>"
    assert len(repr(made("/" + "a" * 10_000))) < 120
