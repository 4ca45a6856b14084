"""WebRequest: arguments from everywhere, a bounded body."""

from __future__ import annotations

import contextlib
import io
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge
from werkzeug.test import EnvironBuilder

from butler_mesh.deadlines import NEVER
from butler_mesh.errors import BadRequest
from butler_mesh.web.forms import MAX_FORM_FIELDS, MAX_PART_LINES
from butler_mesh.web.handlers import WebMessageHandler
from butler_mesh.web.request import WebRequest
from tests.web.fronts import made, serving

JSON = "application/json"
URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=BB"


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


def test_all_values_of_an_argument_are_the_querys_then_the_forms_then_the_json_objects() -> None:
    form = made("/?a=1&a=2", "POST", data={"a": ["3", "4"], "b": "5"})
    assert [form.get_arguments(name) for name in "abc"] == [["1", "2", "3", "4"], ["5"], []]
    json = made("/?a=1", "POST", data=b'{"a": [2, "3"], "b": null, "c": {"d": []}}', content_type=JSON)
    assert [json.get_arguments(name) for name in "abcd"] == [["1", 2, "3"], [None], [{"d": []}], []]


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


# --- proxies ------------------------------------------------------------------------------------


def forwarded(trusted: int, **headers: str) -> WebRequest:
    """Return a request that came through proxies, or claims it."""
    headers = {f"X-Forwarded-{name}": value for name, value in headers.items()}
    builder = EnvironBuilder("/a", headers=headers, environ_base={"REMOTE_ADDR": "10.0.0.9"})
    return WebRequest(builder.get_environ(), trusted_proxies=trusted)


HEADERS = {"For": "6.6.6.6, 1.1.1.1, 10.0.0.1", "Proto": "gopher, https, http", "Host": "evil, shop.test, in"}


@pytest.mark.parametrize(
    ("trusted", "address", "url"),
    [
        (0, "10.0.0.9", "http://localhost/a"),
        (1, "10.0.0.1", "http://in/a"),
        (2, "1.1.1.1", "https://shop.test/a"),
        (4, "10.0.0.9", "http://localhost/a"),
    ],
)
def test_of_proxies_so_many_are_believed_as_are_trusted(trusted: int, address: str, url: str) -> None:
    """With more trusted than came, nothing is: the request did not take the way it should have."""
    request = forwarded(trusted, **HEADERS)
    assert (request.remote_addr, request.url) == (address, url)
    assert request.host == url.split("/")[2]
    assert request.scheme == url.partition(":")[0]


@pytest.mark.parametrize("host", ["a:b", ":", "x:99999999", "a b<>", "[::1", "é", "a/b@c"])
def test_a_forged_host_is_no_failure(host: str) -> None:
    assert isinstance(forwarded(1, Host=host).url, str)
    assert isinstance(made(headers={"Host": host}).url, str)


def test_the_servers_own_environ_is_left_alone() -> None:
    environ = EnvironBuilder("/", headers={"X-Forwarded-For": "1.1.1.1"}).get_environ()
    before = dict(environ)
    assert WebRequest(environ, trusted_proxies=1).remote_addr == "1.1.1.1"
    assert environ == before


# --- forms --------------------------------------------------------------------------------------


def part(name: str, value: str = "v", more: str = "") -> bytes:
    """Return one part of a multipart form."""
    return f'--BB\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'.encode()


def multipart(count: int) -> bytes:
    return b"".join(part(f"f{i}") for i in range(count)) + b"--BB--\r\n"


def files(count: int) -> bytes:
    return b"".join(part(f"f{i}", more='; filename="a"') for i in range(count)) + b"--BB--\r\n"


def urlencoded(count: int) -> bytes:
    return b"&".join(b"f%d=v" % i for i in range(count))


def test_files_are_at_hand_by_field() -> None:
    with made(
        "/", "POST", data={"a": "1", "file": [(io.BytesIO(b"x"), "x.txt"), (io.BytesIO(b"y"), "y")]}
    ) as got:
        assert [(file.filename, file.read()) for file in got.files.getlist("file")] == [
            ("x.txt", b"x"),
            ("y", b"y"),
        ]
        assert got.form.to_dict() == {"a": "1"}
        assert got.get_argument("file") is None


def test_the_body_is_there_also_after_files_were_asked_for() -> None:
    request = made("/", "POST", data={"a": "1"})
    assert not request.files
    assert (request.body, request.get_argument("a")) == (b"a=1", "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "content_type"), [(multipart, MULTIPART), (files, MULTIPART), (urlencoded, URLENCODED)]
)
def test_ten_thousand_fields_are_taken_and_one_more_is_not(
    form: Callable[[int], bytes], content_type: str
) -> None:
    began = time.monotonic()
    with made("/", "POST", data=form(MAX_FORM_FIELDS), content_type=content_type) as request:
        assert len(request.form) + len(request.files) == MAX_FORM_FIELDS == 10_000
    with pytest.raises(RequestEntityTooLarge):
        _ = made("/", "POST", data=form(MAX_FORM_FIELDS + 1), content_type=content_type).form
    assert time.monotonic() - began < 5.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"a&" * 4_000_000, URLENCODED),
        (part("a", "v" * 8_000_000) + b"--BB--\r\n", MULTIPART),
        (b"--BB\r\n" + b"a\n" * 4_000_000, MULTIPART),
        (
            (b"--BB\r\nContent-Disposition: form-data; name=a\n" + b"a\n" * 400_000 + b"\n\nv\r\n") * 10,
            MULTIPART,
        ),
    ],
    ids=["fields", "a long field", "a head without end", "long heads"],
)
def test_what_would_grow_in_memory_is_refused_early(body: bytes, content_type: str) -> None:
    request = made("/", "POST", data=body, content_type=content_type)
    tracemalloc.start()
    try:
        with pytest.raises(RequestEntityTooLarge):
            _ = request.form
        assert tracemalloc.get_traced_memory()[1] < 10 * len(body)
    finally:
        tracemalloc.stop()


def test_a_part_with_a_few_headers_more_is_taken() -> None:
    lines = "".join(f"\r\nX-{i}: 1" for i in range(MAX_PART_LINES - 1))
    body = part("a", more=lines) + part("b", more=f'; filename="x"{lines}') + b"--BB--\r\n"
    with made("/", "POST", data=body, content_type=MULTIPART) as request:
        assert (request.form["a"], request.files["b"].read()) == ("v", b"v")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (multipart(3)[:-8], MULTIPART),
        (multipart(3)[:-20], MULTIPART),
        (b"--BB\r\n", MULTIPART),
        (b"--BB\r\n\r\nv\r\n--BB--\r\n", MULTIPART),
        (b"no form at all", MULTIPART),
        (multipart(1), "multipart/form-data"),
        (multipart(1), "multipart/form-data; boundary=\xe9"),
        (b"a=\xff", URLENCODED),
    ],
)
def test_a_form_that_is_none_is_a_bad_request(body: bytes, content_type: str) -> None:
    """Cut off, without a boundary, without a name for its field, or in no known alphabet."""
    request = made("/", "POST", data=body, content_type=content_type)
    asks: list[Callable[[], Any]] = [
        lambda: request.get_argument("a"),
        lambda: request.get_arguments("a"),
        lambda: request.files,
    ]
    for ask in asks:
        with pytest.raises(BadRequest) as caught:
            ask()
        assert caught.value.status == 400


@pytest.mark.parametrize("content_type", [MULTIPART, "multipart/form-data", URLENCODED])
def test_without_a_body_a_form_is_empty_whatever_its_type(content_type: str) -> None:
    request = made("/?a=1", content_type=content_type)
    assert (request.get_arguments("a"), request.get_argument("b")) == (["1"], None)
    assert not made("/", "POST", data=b"--BB--\r\n", content_type=MULTIPART).files


@given(
    st.lists(
        st.sampled_from(
            [
                b"--BB",
                b"--",
                b"\r\n",
                b"\n",
                b'Content-Disposition: form-data; name="a"',
                b"; filename=",
                b"v",
                b"\x00\xff",
                b":",
                b'"',
                b"\r",
                b"*=utf-8''%ff",
            ]
        ),
        max_size=30,
    ).map(b"".join)
)
def test_no_body_makes_a_form_fail_otherwise(body: bytes) -> None:
    request = made("/", "POST", data=body, content_type=MULTIPART)
    with contextlib.suppress(BadRequest, HTTPException):
        assert isinstance(request.get_arguments("a"), list)
    request.close()


@pytest.mark.parametrize("body", [multipart(3)[:-8], files(3)[:-8], b"--BB\r\n"])
def test_after_a_form_without_end_the_next_request_works(body: bytes) -> None:
    class Form(WebMessageHandler):
        def post(self) -> Any:
            return {"fields": self.get_arguments("f0"), "files": len(self.message.files)}

    with serving([("^/$", Form)]) as front:
        client = front.client()
        for _ in range(2):
            assert ask_form(client, body) == 400
            assert ask_form(client, multipart(3)) == 200
        client.close()


def ask_form(client: Any, body: bytes) -> int:
    client.request("POST", "/", body, {"Content-Type": MULTIPART})
    with client.getresponse() as response:
        response.read()
        status: int = response.status
    return status


# --- cookies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "jar", ["; ".join(f"c{i}=v{i}" for i in range(700)), "a=" + "v" * 8000, 'a="' + "\\" * 8000]
)
def test_a_large_jar_of_cookies_is_read(jar: str) -> None:
    class Page(WebMessageHandler):
        def get(self) -> Any:
            return {
                "count": len(self.message.cookies),
                "first": self.get_cookie("c0"),
                "a": self.get_cookie("a"),
            }

    with serving([("^/$", Page)]) as front:
        reply = front.get("/", Cookie=jar)
        assert reply.status == 200
        if jar.startswith("c0"):
            assert reply.json == {"count": 700, "first": "v0", "a": None}


@pytest.mark.parametrize(("length", "parts"), [(0, []), (3, [3]), (4, [4]), (9, [4, 4, 1])])
def test_a_body_comes_in_parts_of_one_size(length: int, parts: list[int]) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(3, size or 0))

    request = made("/", "PUT")
    request.environ.update({"wsgi.input": Slow(b"x" * length), "wsgi.input_terminated": True})
    request.environ["CONTENT_LENGTH"] = str(length)
    assert [len(part) for part in request.parts(4)] == parts


def test_parts_over_the_maximum_are_refused() -> None:
    request = made("/", "PUT", data=b"x" * 9, max_body_bytes=8)
    with pytest.raises(RequestEntityTooLarge):
        list(request.parts(4))


@pytest.mark.parametrize(
    ("body", "content_type", "name"),
    [
        (b"a=" + b"%41" * 400_000, "application/x-www-form-urlencoded", "form"),
        (b"[" + b"[]," * 1_500_000 + b"1]", "application/json", "json_body"),
    ],
)
def test_what_would_be_parsed_for_long_is_refused_at_once(body: bytes, content_type: str, name: str) -> None:
    request = made("/", "POST", data=body, content_type=content_type)
    with pytest.raises(RequestEntityTooLarge):
        getattr(request, name)
    del request.environ["CONTENT_LENGTH"]
    chunked = WebRequest({**request.environ, "wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True})
    with pytest.raises(RequestEntityTooLarge):
        getattr(chunked, name)


def test_a_servers_own_exception_about_a_body_is_the_clients_fault() -> None:
    class Input:
        def read(self, size: int = -1) -> bytes:
            raise RuntimeError("a chunk that is none")

    environ = EnvironBuilder("/", method="POST").get_environ()
    environ.pop("CONTENT_LENGTH", None)
    request = WebRequest({**environ, "wsgi.input": Input(), "wsgi.input_terminated": True})
    with pytest.raises(ClientDisconnected):
        request.body  # noqa: B018
