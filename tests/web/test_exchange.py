"""Exchange: a request of Mongrel2's as WSGI has it, and an application's reply as HTTP has it."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPResponse
from typing import Any

import gevent
import pytest
from greenlet import GreenletExit
from werkzeug.wrappers import Request, Response

from butler_mesh import status
from butler_mesh.errors import Stopped
from butler_mesh.protocol.mongrel2 import UPLOAD_DONE, UPLOAD_START, Message
from butler_mesh.web import exchange
from butler_mesh.web.exchange import SLICE_BYTES, Exchange

OWN = {"METHOD": "GET", "VERSION": "HTTP/1.1", "URI": "/", "URL_SCHEME": "http", "REMOTE_ADDR": "10.0.0.9"}


class Line:
    """A browser that keeps what it is sent."""

    def __init__(self, *, parts: bool = True, is_last: bool = False) -> None:
        self.can_send_parts = parts
        self.is_last = is_last
        self.sent: list[bytes] = []
        self.is_open = True

    def send(self, data: bytes) -> None:
        assert self.is_open
        self.sent.append(data)

    def hang_up(self) -> None:
        self.is_open = False

    @property
    def reply(self) -> HTTPResponse:
        return self.read()

    def read(self, method: str = "GET") -> HTTPResponse:
        """Return what a client makes of it."""
        data = io.BytesIO(b"".join(self.sent))

        class Socket:
            def makefile(self, mode: str) -> io.BytesIO:
                return data

        response = HTTPResponse(Socket(), method=method)  # type: ignore[arg-type]
        response.begin()
        return response


def message(body: bytes = b"", path: bytes = b"/", **headers: Any) -> Message:
    """Return a request; ``x_a`` stands for the header x-a, what is in capitals for Mongrel2's own."""
    named = {k if k.isupper() else k.replace("_", "-"): v for k, v in headers.items()}
    return Message(b"abc", b"1", path, {**OWN, "host": "x", **named}, body)


def exchanged(app: Any, request: Message | None = None, **options: Any) -> Line:
    """Answer a request; return the line."""
    line = Line(**options)
    Exchange(message() if request is None else request, line, app).run()
    return line


def plain(parts: Iterable[bytes], line: str = "200 OK", **headers: str) -> Any:
    """Return an application that answers these parts."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response(line, [(name.replace("_", "-"), value) for name, value in headers.items()])
        return parts

    return app


def environ_of(request: Message) -> dict[str, Any]:
    return Exchange(request, Line(), plain([])).environ()


# --- the request --------------------------------------------------------------------------------


def test_a_request_is_what_wsgi_says() -> None:
    request = message(
        b"a=1",
        b"/gr%C3%BC%C3%9F%20dich",
        METHOD="POST",
        QUERY="q=%20&q=2",
        content_type="application/x-www-form-urlencoded",
        content_length="3",
        cookie=["a=1", "b=2"],
        x_a=["1", "2"],
        host="example.org:81",
    )
    made = Request(environ_of(request))
    assert (made.method, made.path, made.args.getlist("q")) == ("POST", "/grüß dich", [" ", "2"])
    assert dict(made.form) == {"a": "1"}
    assert dict(made.cookies) == {"a": "1", "b": "2"}
    assert made.headers["X-A"] == "1, 2"
    assert made.url == "http://example.org:81/grüß%20dich?q=%20&q=2"
    assert (made.remote_addr, made.content_length) == ("10.0.0.9", 3)


def test_a_path_is_decoded_once() -> None:
    assert environ_of(message(path=b"/a%2520b%00%ff/%2e%2e"))["PATH_INFO"] == "/a%20b\0\xff/.."


def test_headers_with_an_underscore_are_not_taken_for_others() -> None:
    assert environ_of(_with({"x_a": "forged", "x-a": "dash"}))["HTTP_X_A"] == "dash"
    assert "HTTP_REMOTE_ADDR" not in environ_of(_with({"remote_addr": "1.1.1.1"}))


def _with(headers: dict[str, Any]) -> Message:
    return Message(b"abc", b"1", b"/", {**OWN, "host": "x", **headers}, b"")


@pytest.mark.parametrize(
    ("sent", "seen"),
    [("10.0.0.9", None), ("1.1.1.1, 10.0.0.9", "1.1.1.1"), ("a, b, 10.0.0.9", "a, b"), (["a", "b"], "a")],
)
def test_what_mongrel2_adds_to_x_forwarded_for_is_taken_off(sent: Any, seen: str | None) -> None:
    environ = environ_of(_with({"x-forwarded-for": sent}))
    assert environ.get("HTTP_X_FORWARDED_FOR") == seen
    assert environ["REMOTE_ADDR"] == "10.0.0.9"


def test_what_mongrel2_and_its_uploads_say_is_not_the_clients() -> None:
    environ = environ_of(
        _with({UPLOAD_START: "a", UPLOAD_DONE: "a", "transfer-encoding": "chunked", "expect": "100-continue"})
    )
    assert {name for name in environ if name.startswith("HTTP_")} == {"HTTP_HOST"}
    assert environ["CONTENT_LENGTH"] == "0"


def test_a_body_that_is_a_file_is_read_from_it_and_closed() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"in a file")
        file.seek(0)

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            assert environ["CONTENT_LENGTH"] == "9"
            return Response(environ["wsgi.input"].read())(environ, start_response)

        line = Line()
        Exchange(message(), line, app, file).run()
        assert line.reply.read() == b"in a file"
        assert file.closed


def test_a_body_that_is_a_file_is_closed_when_the_application_fails() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        raise ValueError

    with tempfile.TemporaryFile() as file:
        Exchange(message(), Line(), app, file).run()
        assert file.closed


# --- when the connection is closed --------------------------------------------------------------

KEPT, CLOSED = True, False


@pytest.mark.parametrize(
    ("version", "connection", "is_kept", "said"),
    [
        ("HTTP/1.1", None, KEPT, None),
        ("HTTP/1.1", "keep-alive", KEPT, None),
        ("HTTP/1.1", "close", CLOSED, "close"),
        ("HTTP/1.1", "TE, Close", CLOSED, "close"),
        ("HTTP/1.1", ["te", "close"], CLOSED, "close"),
        ("HTTP/1.0", None, CLOSED, "close"),
        ("HTTP/1.0", "close", CLOSED, "close"),
        ("HTTP/1.0", "Keep-Alive", KEPT, "keep-alive"),
    ],
)
def test_pitfall_3_the_connection_is_closed_where_http_says_so(
    version: str, connection: Any, is_kept: bool, said: str | None
) -> None:
    headers = {} if connection is None else {"connection": connection}
    line = exchanged(plain([b"page"], Content_Length="4"), message(VERSION=version, **headers))
    assert line.is_open is is_kept
    assert line.reply.headers["Connection"] == said
    assert line.reply.read() == b"page"


def test_pitfall_3_the_applications_close_counts() -> None:
    line = exchanged(plain([b"page"], Content_Length="4", Connection="close"))
    assert not line.is_open
    assert line.reply.headers.get_all("Connection") == ["close"]


def test_pitfall_3_an_old_client_is_told_the_end_of_a_stream_by_the_end_of_the_connection() -> None:
    line = exchanged(plain([b"a", b"b"]), message(VERSION="HTTP/1.0", connection="keep-alive"))
    assert not line.is_open
    assert line.reply.headers["Transfer-Encoding"] is None
    assert line.reply.read() == b"ab"


def test_the_last_reply_of_a_connection_says_that_it_is() -> None:
    assert (
        exchanged(plain([b"page"], Content_Length="4"), is_last=True).reply.headers["Connection"] == "close"
    )


# --- the reply ----------------------------------------------------------------------------------


def test_a_reply_of_known_length_is_one_message() -> None:
    line = exchanged(plain([b"pa", b"", b"ge"], Content_Length="4", Content_Type="text/plain"))
    assert len(line.sent) == 1
    assert line.reply.read() == b"page"
    assert line.reply.headers["Date"].endswith("GMT")


@pytest.mark.parametrize(("parts", "messages"), [(True, 3), (False, 1)])
def test_a_large_reply_goes_in_slices_where_it_may(parts: bool, messages: int) -> None:
    size = SLICE_BYTES // 4
    line = exchanged(plain([b"x" * size] * 10, Content_Length=str(10 * size)), parts=parts)
    assert len(line.sent) == messages
    assert line.reply.read() == b"x" * 10 * size


def test_a_stream_is_chunked_and_each_part_sent_at_once() -> None:
    line = exchanged(plain([b"one", b"", b"two"]))
    assert line.sent[0].endswith(b"\r\n\r\n3\r\none\r\n")
    assert line.sent[1:] == [b"3\r\ntwo\r\n", b"0\r\n\r\n"]
    assert line.reply.read() == b"onetwo"
    assert line.is_open


@pytest.mark.parametrize(
    ("method", "line"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Not")]
)
def test_a_reply_without_body_has_none(method: str, line: str) -> None:
    made = 0

    def endless() -> Iterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield b"never sent"

    found = exchanged(plain(endless(), line, Content_Length="10"), message(METHOD=method))
    assert found.is_open
    assert b"".join(found.sent).endswith(b"\r\n\r\n")
    assert found.read(method).headers["Content-Length"] == (None if "204" in line else "10")
    assert made <= 1


def test_a_reply_longer_than_its_length_is_cut_to_it(caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield b"page"
        finally:
            closed.append("closed")

    line = exchanged(plain(endless(), Content_Length="6"))
    assert b"".join(line.sent).endswith(b"\r\n\r\npagepa")
    assert line.is_open
    assert closed
    assert [record.message for record in caplog.records] == ["reply-over-its-length b'/'"]


def test_a_reply_shorter_than_its_length_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    line = exchanged(plain([b"page"], Content_Length="6"))
    assert not line.is_open
    assert "by 2 bytes" in caplog.text


def test_write_sends_before_what_is_returned() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        write(b"one ")
        write(b"")
        return (b"two",)

    assert exchanged(app).reply.read() == b"one two"


def test_a_generator_may_call_start_response_when_it_is_read() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        yield b""
        start_response("201 Created", [("Content-Length", "4")])
        yield b"page"

    reply = exchanged(app).reply
    assert (reply.status, reply.read()) == (201, b"page")


def test_the_iterable_is_closed_once() -> None:
    class Parts(list):  # type: ignore[type-arg]
        closed = 0

        def close(self) -> None:
            self.closed += 1

    parts = Parts([b"page"])
    exchanged(plain(parts))
    assert parts.closed == 1


# --- applications that fail ---------------------------------------------------------------------

App = Callable[[Any, Any], Iterable[bytes]]


def fails_at_once(environ: Any, start_response: Any) -> Iterable[bytes]:
    raise ValueError("secret")


def fails_after_its_head(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Set-Cookie", "a=1")])
    raise ValueError("secret")


def fails_before_its_first_part(environ: Any, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    raise ValueError("secret")
    yield b""


def fails_amid_what_is_not_sent_yet(environ: Any, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Length", "8")])
    yield b"page"
    raise ValueError("secret")


def answers_nothing(environ: Any, start_response: Any) -> Iterable[bytes]:
    return []


def answers_without_a_head(environ: Any, start_response: Any) -> Iterable[bytes]:
    return [b"page"]


def starts_twice(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    start_response("200 OK", [])
    return [b"page"]


def answers_text(environ: Any, start_response: Any) -> Iterable[Any]:
    start_response("200 OK", [])
    return ["page"]


def answers_text_of_known_length(environ: Any, start_response: Any) -> Iterable[Any]:
    start_response("200 OK", [("Content-Length", "4")])
    return ["page"]


def times_out(environ: Any, start_response: Any) -> Iterable[bytes]:
    raise gevent.Timeout(1)


def is_killed(environ: Any, start_response: Any) -> Iterable[bytes]:
    raise GreenletExit


def exits(environ: Any, start_response: Any) -> Iterable[bytes]:
    raise SystemExit


@pytest.mark.parametrize(
    "app",
    [
        fails_at_once,
        fails_after_its_head,
        fails_before_its_first_part,
        fails_amid_what_is_not_sent_yet,
        answers_nothing,
        answers_without_a_head,
        starts_twice,
        answers_text,
        answers_text_of_known_length,
        times_out,
        is_killed,
        exits,
    ],
)
def test_a_failure_before_anything_was_sent_is_a_500(app: App, caplog: pytest.LogCaptureFixture) -> None:
    line = exchanged(app)
    reply = line.reply
    assert (reply.status, reply.read()) == (500, b"Internal Server Error\n")
    assert reply.headers["Connection"] == "close"
    assert reply.headers["Set-Cookie"] is None
    assert not line.is_open
    assert caplog.text.count("web-application-failed") == 1


@pytest.mark.parametrize(
    ("line", "headers"),
    [
        ("200 OK\r\nX: y", []),
        ("200 OK\n", []),
        ("200", [("A", "b\r\nX: y")]),
        ("200 OK", [("A", "b\n")]),
        ("200 OK", [("A", "b\0")]),
        ("200 OK", [("A\r\nX", "b")]),
        ("200 OK", [("A: b", "c")]),
        ("200 OK", [("A ", "c")]),
        ("200 OK", [("", "c")]),
        ("200 OK", [("A", "€")]),
        ("200 €", []),
        ("OK", []),
        ("20 OK", []),
        ("099 OK", []),
        ("100 Continue", []),
        ("101 Switching Protocols", []),
        ("600 What", []),
        ("2000 OK", []),
        ("200 OK", [("Content-Length", "-1")]),
        ("200 OK", [("Content-Length", "4, 4")]),
        ("200 OK", [("Content-Length", " 4")]),
        ("200 OK", [("Content-Length", "²")]),
        ("200 OK", [("Content-Length", "9" * 5000)]),
        ("200 OK", [("Content-Length", "4"), ("content-length", "4")]),
        ("200 OK", [("A", None)]),
        (b"200 OK", []),
    ],
)
@pytest.mark.usefixtures("caplog")
def test_a_head_that_would_be_malformed_is_a_500(line: Any, headers: list[Any]) -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response(line, headers)
        return [b"page"]

    found = exchanged(app)
    assert found.reply.status == 500
    assert b"X: y" not in b"".join(found.sent)


def test_headers_that_are_ours_to_say_are_left_out() -> None:
    reply = exchanged(plain([b"page"], Content_Length="4", Transfer_Encoding="chunked", Upgrade="a")).reply
    assert reply.headers["Transfer-Encoding"] is None
    assert reply.headers["Upgrade"] is None
    assert reply.read() == b"page"


def test_a_failure_amid_the_body_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"page"
        raise ValueError("secret")

    line = exchanged(app)
    assert not line.is_open
    assert len(line.sent) == 1
    assert line.sent[0].endswith(b"4\r\npage\r\n")
    assert "web-application-failed" in caplog.text


def test_exc_info_replaces_what_was_not_sent() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [("Content-Length", "100")])
        write(b"never sent")
        try:
            raise ValueError
        except ValueError as error:
            start_response("503 Later", [("Content-Length", "5")], (ValueError, error, error.__traceback__))
        return [b"later"]

    line = exchanged(app)
    assert (line.reply.status, line.reply.read()) == (503, b"later")
    assert line.is_open


@pytest.mark.usefixtures("caplog")
def test_exc_info_is_raised_when_something_was_sent() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"page"
        try:
            raise ValueError
        except ValueError as error:
            start_response("503 Later", [], (ValueError, error, error.__traceback__))

    line = exchanged(app)
    assert not line.is_open
    assert len(line.sent) == 1


def test_nobody_is_told_of_what_was_stopped(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        raise Stopped(status.CANCELLED, "the client left")

    with caplog.at_level(logging.INFO):
        line = exchanged(app)
    assert not line.sent
    assert not line.is_open
    assert not caplog.records


def test_a_browser_that_does_not_read_even_the_failure_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(Line):
        def send(self, data: bytes) -> None:
            raise TimeoutError("the browser reads nothing")

    line = Stuck()
    assert not Exchange(message(), line, fails_at_once).run()
    assert not line.is_open


def test_a_failure_to_close_is_one_of_the_application(caplog: pytest.LogCaptureFixture) -> None:
    class Parts(list):  # type: ignore[type-arg]
        def close(self) -> None:
            raise ValueError("secret")

    line = exchanged(plain(Parts([b"page"]), Content_Length="4"))
    assert line.reply.read() == b"page"
    assert not line.is_open
    assert "web-application-failed" in caplog.text


# --- requests that are handed over --------------------------------------------------------------


class HandedOver(Line):
    """A browser's line that a service may be given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Message] = []
        self.ends = 0

    def hand_over(self, message: Message) -> dict[str, str]:
        self.is_last = True
        self.given.append(message)
        return {"to": "a service"}

    def handed_over(self) -> None:
        self.ends += 1


def test_a_request_is_handed_over_while_it_is_answered() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        made = environ["butler_mesh.exchange"]
        assert made.hand_over() == {"to": "a service"}
        made.was_answered()
        return plain([b"page"])(environ, start_response)

    line, request = HandedOver(), message()
    Exchange(request, line, app).run()
    assert line.given == [request]
    assert line.ends == 1
    assert line.reply.headers["Connection"] == "close"


def test_a_request_that_was_not_handed_over_cannot_have_been_answered() -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        environ["butler_mesh.exchange"].was_answered()
        return plain([b"page"])(environ, start_response)

    line = HandedOver()
    Exchange(message(), line, app).run()
    assert line.ends == 0
    assert line.is_open


@pytest.mark.parametrize("app", [plain([b"page"]), fails_at_once])
@pytest.mark.usefixtures("caplog")
def test_when_a_request_is_over_its_line_is_somebody_elses(app: App) -> None:
    line = HandedOver()
    made = Exchange(message(), line, app)
    made.run()
    line.is_last = True  # by the next request
    assert made.hand_over() == {}
    made.was_answered()
    assert (line.given, line.ends) == ([], 0)


def test_a_line_is_a_plain_one_unless_it_says_otherwise() -> None:
    line = exchange.Line()
    assert not line.is_last
    assert not line.can_send_parts
    assert line.hand_over(message()) == {}
    line.handed_over()
    with pytest.raises(NotImplementedError):
        line.send(b"data")
    with pytest.raises(NotImplementedError):
        line.hang_up()
