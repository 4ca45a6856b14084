"""Web handlers: what methods return, which methods there are, what failures look like outside."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.exceptions import abort
from werkzeug.wrappers import Response

from butler_mesh.application import Application
from butler_mesh.errors import BadRequest, MethodNotAllowed, NotFound, RequestFailed, Unavailable, failure
from butler_mesh.handlers import ServiceMessageHandler
from butler_mesh.routing import RouteKind
from butler_mesh.web.handlers import JSONMessageHandler, WebMessageHandler
from butler_mesh.web.streaming import Event
from tests.web.fronts import answer, made, serving


def returning(result: Any) -> type[WebMessageHandler]:
    """Return a handler whose ``get`` returns, or raises, ``result``."""

    class Handler(WebMessageHandler):
        def get(self) -> Any:
            if isinstance(result, BaseException):
                raise result
            return result

    return Handler


# --- what a method returns ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "body", "content_type"),
    [
        ("grüß dich", "grüß dich".encode(), "text/html; charset=utf-8"),
        (b"bytes", b"bytes", "text/html; charset=utf-8"),
        ("", b"", "text/html; charset=utf-8"),
        ({"a": [1]}, b'{"a":[1]}', "application/json"),
        ([], b"[]", "application/json"),
    ],
)
def test_what_a_method_returns_is_the_page(result: Any, body: bytes, content_type: str) -> None:
    response = answer(returning(result))
    assert (response.status_code, response.data) == (200, body)
    assert response.headers["Content-Type"] == content_type


def test_a_response_goes_out_as_it_is() -> None:
    made_by_hand = Response("teapot", 418)
    assert answer(returning(made_by_hand)) is made_by_hand


def test_a_method_that_returns_and_sets_nothing_has_failed() -> None:
    assert answer(returning(None)).status_code == 500


@pytest.mark.parametrize("result", [3, True, object(), {1, 2}, ({}, 200)])
def test_a_result_that_is_no_page_is_a_fault_of_the_handler(result: object) -> None:
    assert answer(returning(result)).status_code == 500


def test_a_body_that_was_set_needs_no_return_value() -> None:
    class Handler(WebMessageHandler):
        def get(self) -> None:
            self.set_body("hello", headers={"X-Mood": "good"})

    response = answer(Handler)
    assert (response.status_code, response.data) == (200, b"hello")
    assert response.headers["X-Mood"] == "good"


@pytest.mark.parametrize("code", [201, 404, 500])
def test_a_status_that_was_set_stays_also_with_a_result(code: int) -> None:
    class Handler(WebMessageHandler):
        def get(self) -> str:
            self.set_status(code)
            return "done"

    response = answer(Handler)
    assert (response.status_code, response.data) == (code, b"done")


def test_a_header_may_say_another_type() -> None:
    class Handler(WebMessageHandler):
        def get(self) -> str:
            self.headers["Content-Type"] = "text/plain"
            return "plain"

    assert answer(Handler).headers.getlist("Content-Type") == ["text/plain"]


@pytest.mark.parametrize("code", [0, 100, 199, 600, 1000])
def test_a_status_that_is_no_end_of_a_request_is_a_fault_of_the_handler(code: int) -> None:
    class Handler(WebMessageHandler):
        def get(self) -> Response:
            self.set_status(code)
            return self.render("never seen")

    assert answer(Handler).status_code == 500


def test_a_header_cannot_smuggle_another_one_in() -> None:
    class Handler(WebMessageHandler):
        def get(self) -> str:
            self.headers["X-Name"] = self.get_argument("name")
            return "done"

    response = answer(Handler, made("/?name=a%0d%0aSet-Cookie:%20b=c"))
    assert response.status_code == 500
    assert "Set-Cookie" not in response.headers


def test_a_redirect_leads_on_and_shows_the_way() -> None:
    class Handler(WebMessageHandler):
        def get(self) -> Response:
            return self.redirect("/next?a=1&b=<2>")

        def post(self) -> Response:
            return self.redirect("/done", 303)

    response = answer(Handler)
    assert (response.status_code, response.location) == (302, "/next?a=1&b=<2>")
    assert b'href="/next?a=1&amp;b=&lt;2&gt;"' in response.data
    assert answer(Handler, made("/", "POST")).status_code == 303


def test_the_captures_of_a_route_are_the_methods_arguments() -> None:
    class Handler(WebMessageHandler):
        def get(self, first: str, *, last: str) -> str:
            return f"{first} {last}"

    application = Application(handler_tuples=[(r"^/(\w+)/(?P<last>\w+)$", Handler)])
    assert application.answer(RouteKind.WEB, made("/ada/lovelace")).data == b"ada lovelace"


def test_prepare_runs_before_and_on_finish_after_also_a_failure() -> None:
    steps: list[str] = []

    class Handler(WebMessageHandler):
        def prepare(self) -> None:
            steps.append("prepare")
            if self.get_argument("refuse"):
                raise BadRequest("not you", status=403)

        def get(self) -> str:
            steps.append("get")
            return ""

        def on_finish(self) -> None:
            steps.append("finish")

    assert answer(Handler).status_code == 200
    assert answer(Handler, made("/?refuse=1")).status_code == 403
    assert steps == ["prepare", "get", "finish", "prepare", "finish"]


# --- methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["REQUEST", "RESPONSE", "JSON", "RUN", "__INIT__", "RENDER", "GET_ARGUMENT"]
)
def test_no_method_but_https_own_reaches_a_handler(method: str) -> None:
    class Handler(WebMessageHandler):
        def get(self) -> str:
            return "got"

        def request(self) -> str:
            pytest.fail("reached")

        def response(self) -> str:
            pytest.fail("reached")

    response = answer(Handler, made("/", method))
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD, OPTIONS"


def test_a_browser_does_not_reach_the_route_of_a_service() -> None:
    class Service(ServiceMessageHandler):
        def get(self) -> None:
            pytest.fail("reached")

        request = response = get

    application = Application(handler_tuples=[("^/service", Service)])
    for method in ("GET", "REQUEST", "RESPONSE"):
        with pytest.raises(NotFound):
            application.answer(RouteKind.WEB, made("/service", method))


def test_head_is_answered_by_get_unless_it_has_its_own() -> None:
    class Own(WebMessageHandler):
        def head(self) -> str:
            return "own"

        def get(self) -> str:
            return "get"

    assert answer(returning("get"), made("/", "HEAD")).data == b"get"
    assert answer(Own, made("/", "HEAD")).data == b"own"


def test_without_get_there_is_no_head() -> None:
    class Handler(WebMessageHandler):
        def post(self) -> str:
            return ""

    response = answer(Handler, made("/", "HEAD"))
    assert (response.status_code, response.headers["Allow"]) == (405, "POST, OPTIONS")


def test_options_tell_the_methods() -> None:
    response = answer(returning("page"), made("/", "OPTIONS"))
    assert (response.status_code, response.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")


# --- failures -----------------------------------------------------------------------------------


def test_an_exception_is_a_500_that_tells_nothing_and_a_log_that_tells_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    response = answer(returning(KeyError("secret")))
    assert response.status_code == 500
    assert b"secret" not in response.data
    assert b"Traceback" not in response.data
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert "get '/'" in record.message


def test_sys_exit_in_a_handler_is_a_500() -> None:
    assert answer(returning(SystemExit(3))).status_code == 500


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (BadRequest("no <such> size", status=422), 422, b"no &lt;such&gt; size"),
        (NotFound("gone", status=404), 404, b"gone"),
        (RequestFailed("at db7.internal", status=502), 502, b"Instance Lost"),
        (failure(500, "at db7.internal", type="KeyError", traceback="Traceback: secret"), 500, b"Internal"),
        (RequestFailed("what", status=299), 500, b"Internal"),
    ],
)
def test_a_failed_request_has_its_status_and_only_refusals_their_words(
    error: Exception, code: int, text: bytes
) -> None:
    response = answer(returning(error))
    assert response.status_code == code
    assert text in response.data
    assert b"internal" not in response.data
    assert b"secret" not in response.data


def test_a_failure_tells_browsers_only_the_headers_that_are_for_them() -> None:
    busy = Unavailable("later", status=503, retry_after_s=0.25)
    busy.headers = {"Set-Cookie": "a=b", "Content-Length": "999", "X-Inside": "1"}
    response = answer(returning(busy))
    assert response.headers["Retry-After"] == "1"
    assert not {"Set-Cookie", "X-Inside"} & set(response.headers.keys())
    refused = MethodNotAllowed("no", status=405)
    refused.headers = {"Allow": "PUT"}
    assert answer(returning(refused)).headers["Allow"] == "PUT"


def test_the_headers_of_a_page_that_failed_do_not_go_with_the_error() -> None:
    class Handler(WebMessageHandler):
        def get(self) -> str:
            self.headers["Content-Type"] = "image/png"
            raise ValueError

    assert answer(Handler).headers["Content-Type"].startswith("text/html")


def test_werkzeugs_own_refusals_are_refusals() -> None:
    class Handler(WebMessageHandler):
        def get(self) -> None:
            abort(403)

    assert answer(Handler).status_code == 403


# --- JSON ---------------------------------------------------------------------------------------


class Document(JSONMessageHandler):
    """Answers in as many ways as there are methods."""

    def get(self) -> Response:
        self.set_status(201, "made")
        self.add_to_payload("a", 1)
        assert self.payload == {"a": 1}
        return self.render()

    def post(self) -> dict[str, Any]:
        return {"status_msg": "mine"}

    def put(self) -> list[int]:
        return [1]

    def patch(self) -> Response:
        self.set_status(200)
        self.add_to_payload("a", 1)
        return self.render(hide_status=True)

    def delete(self) -> None:
        self.add_to_payload("a", 1)
        raise BadRequest("not now", status=409)


@pytest.mark.parametrize(
    ("method", "code", "document"),
    [
        ("GET", 201, {"status_code": 201, "status_msg": "made", "a": 1}),
        ("POST", 200, {"status_code": 200, "status_msg": "mine"}),
        ("PUT", 200, [1]),
        ("PATCH", 200, {"a": 1}),
        ("DELETE", 409, {"status_code": 409, "status_msg": "not now"}),
        ("JSON", 405, None),
    ],
)
def test_a_json_handler_answers_with_json_and_its_status(method: str, code: int, document: Any) -> None:
    response = answer(Document, made("/", method))
    assert response.status_code == code
    assert response.headers["Content-Type"] == "application/json"
    if document is not None:
        assert response.json == document


def test_a_class_may_hide_the_status_of_all_its_replies_but_errors() -> None:
    class Bare(Document):
        hide_status = True

    assert answer(Bare).json == {"a": 1}
    assert answer(Bare, made("/", "DELETE")).json == {"status_code": 409, "status_msg": "not now"}


def test_a_value_that_json_cannot_hold_is_a_fault_of_the_handler() -> None:
    class Handler(JSONMessageHandler):
        def get(self) -> Any:
            return {"a": object()}

    response = answer(Handler)
    assert response.status_code == 500
    assert response.json["status_msg"] == "Internal Server Error"


# --- arguments ----------------------------------------------------------------------------------


def test_a_handler_has_all_values_of_an_argument() -> None:
    class Handler(WebMessageHandler):
        def post(self) -> Any:
            return [self.get_argument("a"), self.get_arguments("a"), self.get_arguments("b")]

    assert answer(Handler, made("/?a=1", "POST", data={"a": ["2", "3"]})).json == ["1", ["1", "2", "3"], []]


# --- headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Name", "a\r\nSet-Cookie: b=c"),
        ("X-Name", "a\nb"),
        ("X-Name", "a\x00"),
        ("X-Name", "☃"),
        ("X-Name\r\nSet-Cookie", "b=c"),
        ("X-Name: a\nSet-Cookie", "b=c"),
        ("", "b"),
        ("grüße", "b"),
    ],
)
def test_what_is_no_header_is_a_fault_of_the_handler(name: str, value: str) -> None:
    class Handler(WebMessageHandler):
        def get(self) -> str:
            self.headers[name] = value
            return "done"

    response = answer(Handler)
    assert response.status_code == 500
    assert [name for name, _ in response.headers] == ["Content-Type", "Content-Length"]


@pytest.mark.parametrize("url", ["/a\r\nSet-Cookie: b=c", "/a\nb"])
def test_a_redirect_cannot_smuggle_a_header_in(url: str) -> None:
    class Handler(WebMessageHandler):
        def get(self) -> Response:
            return self.redirect(url)

    response = answer(Handler)
    assert response.status_code == 500
    assert not {"Location", "Set-Cookie"} & set(response.headers.keys())


def test_a_redirect_may_lead_to_any_letters() -> None:
    class Handler(WebMessageHandler):
        def get(self) -> Response:
            return self.redirect("/grüße/☃")

    with serving([("^/$", Handler)]) as front:
        reply = front.get("/")
        assert (reply.status, reply.headers["Location"]) == (302, "/gr%C3%BC%C3%9Fe/%E2%98%83")


@pytest.mark.parametrize("handler", [WebMessageHandler, JSONMessageHandler])
def test_a_status_may_be_given_where_the_page_is_rendered(handler: type[WebMessageHandler]) -> None:
    class Handler(handler):  # type: ignore[misc, valid-type]
        def get(self) -> Any:
            return self.render(status_code=201)

    assert answer(Handler).status_code == 201


# --- cookies ------------------------------------------------------------------------------------

SECRET = "51cRa%76fa^O9h$4cwl$"


def cookies_of(response: Response) -> dict[str, str]:
    """Return the cookies that a reply sets, with their attributes, by name."""
    lines = [line.partition("=") for line in response.headers.getlist("Set-Cookie")]
    assert len({name for name, _, _ in lines}) == len(lines)
    return {name: rest for name, _, rest in lines}


class Baker(WebMessageHandler):
    """Sets two cookies, in as many ways as there are methods."""

    def set_two(self) -> None:
        self.set_cookie("plain", "a b", max_age=60, httponly=True)
        self.set_cookie("signed", {"user": 7}, secret=True)

    def get(self) -> str:
        self.set_two()
        return "page"

    def post(self) -> Response:
        self.set_two()
        return self.redirect("/")

    def put(self) -> Iterator[str]:
        self.set_two()
        return iter(["a", "b"])

    def patch(self) -> Response:
        self.set_two()
        return self.render_error(403, "not you")

    def delete(self) -> None:
        self.set_two()
        raise BadRequest("not you", status=403)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH"])
def test_cookies_go_with_every_kind_of_reply(method: str) -> None:
    made_cookies = cookies_of(answer(Baker, made("/", method), cookie_secret=SECRET))
    assert list(made_cookies) == ["plain", "signed"]
    assert made_cookies["plain"].startswith('"a b"; Expires=')
    assert made_cookies["plain"].endswith("; Max-Age=60; HttpOnly; Path=/")


def test_cookies_of_a_method_that_raised_do_not_go_with_its_error() -> None:
    response = answer(Baker, made("/", "DELETE"), cookie_secret=SECRET)
    assert response.status_code == 403
    assert "Set-Cookie" not in response.headers


def test_a_signed_cookie_comes_back_and_forged_ones_do_not() -> None:
    class Reader(WebMessageHandler):
        def get(self) -> Any:
            secret = self.get_argument("secret", True)
            return [self.get_cookie(name, "none", secret) for name in ("signed", "other")]

    def read(path: str, jar: str) -> Any:
        return answer(Reader, made(path, headers={"Cookie": jar}), cookie_secret=SECRET).json

    signed = cookies_of(answer(Baker, cookie_secret=SECRET))["signed"].partition(";")[0]
    assert read("/", f"signed={signed}; other=b") == [{"user": 7}, "none"]
    assert read("/", f"signed={signed[:-2]}; other={signed}") == ["none", "none"]
    assert read("/?secret=another", f"signed={signed}") == ["none", "none"]
    assert read("/", "") == ["none", "none"]


def test_a_plain_cookie_is_the_text_that_was_sent_or_the_default() -> None:
    class Reader(WebMessageHandler):
        def get(self) -> Any:
            return [
                self.get_cookie("a"),
                self.get_cookie("a", secret=False),
                self.get_cookie("b"),
                self.get_cookie("b", 1),
            ]

    assert answer(Reader, made(headers={"Cookie": 'a="x y"'})).json == ["x y", "x y", None, 1]


def test_a_signed_cookie_is_good_for_as_long_as_the_reader_says() -> None:
    class Reader(Baker):
        def get(self) -> Any:
            return [self.get_cookie("signed", "old", True, max_age=age) for age in (3600, -1)]

    signed = cookies_of(answer(Baker, cookie_secret=SECRET))["signed"].partition(";")[0]
    request = made(headers={"Cookie": f"signed={signed}"})
    assert answer(Reader, request, cookie_secret=SECRET).json == [{"user": 7}, "old"]


@pytest.mark.parametrize("secret", [None, ""])
def test_an_application_without_a_secret_signs_nothing_and_says_so(
    secret: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    class Reader(WebMessageHandler):
        def get(self) -> Any:
            return self.get_cookie("a", "none", secret=True)

    for handler in (Baker, Reader):
        assert answer(handler, cookie_secret=secret).status_code == 500
    told = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert told == ["secret=True is the application's cookie_secret, and it has none"] * 2
    assert answer(returning("page"), cookie_secret=secret).status_code == 200


@pytest.mark.parametrize(("name", "value"), [("a", "v" * 5000), ("a\r\nX: y", "b"), ("a", 3)])
def test_a_cookie_that_cannot_be_is_a_fault_of_the_handler(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Handler(WebMessageHandler):
        def get(self) -> str:
            self.set_cookie(name, value)
            return "page"

    response = answer(Handler)
    assert response.status_code == 500
    assert "Set-Cookie" not in response.headers
    assert "UsageError" in caplog.text


def test_of_a_cookie_that_is_set_twice_the_last_word_counts() -> None:
    class Handler(WebMessageHandler):
        def get(self) -> str:
            self.set_cookie("a", "1")
            self.set_cookie("a", "1", path="/x")
            self.set_cookie("a", "2")
            return "page"

    assert answer(Handler).headers.getlist("Set-Cookie") == ["a=2; Path=/", "a=1; Path=/x"]


def test_cookies_are_deleted_one_or_all() -> None:
    class Handler(WebMessageHandler):
        def get(self) -> str:
            self.delete_cookie("a", path="/x", domain="shop.test")
            return ""

        def delete(self) -> str:
            self.delete_cookies()
            return ""

    gone = cookies_of(answer(Handler))["a"]
    assert gone == "; Domain=shop.test; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Path=/x"
    request = made("/", "DELETE", headers={"Cookie": "a=1; b[c]=2; \x01=3; d,e=4"})
    all_gone = cookies_of(answer(Handler, request))
    assert list(all_gone) == ["a", "b[c]"]  # the others are names that cannot be written
    assert all("Max-Age=0" in rest for rest in all_gone.values())


def test_several_cookies_reach_the_client_each_in_a_line() -> None:
    with serving([("^/$", Baker)]) as front:
        front.application.cookie_secret = SECRET
        client = front.client()
        client.request("GET", "/")
        with client.getresponse() as response:
            assert [line.partition("=")[0] for line in response.headers.get_all("Set-Cookie", [])] == [
                "plain",
                "signed",
            ]
        client.close()


# --- streams ------------------------------------------------------------------------------------


class Source:
    """Parts that tell when they are let go of."""

    def __init__(self, *parts: Any) -> None:
        self._parts = iter(parts)
        self.taken = 0
        self.is_closed = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        part = next(self._parts)
        self.taken += 1
        return part

    def close(self) -> None:
        self.is_closed = True


def test_an_iterator_is_a_page_that_is_made_while_it_is_sent() -> None:
    source = Source("grüß ", b"dich", {"a": 1})
    response = answer(returning(source))
    assert (response.status_code, response.content_type) == (200, "text/html; charset=utf-8")
    assert response.is_streamed
    assert response.direct_passthrough
    assert "Content-Length" not in response.headers
    assert source.taken == 0
    assert list(response.response) == ["grüß ".encode(), b"dich", b'{"a":1}\n']
    response.close()
    assert source.is_closed


def test_a_method_may_be_a_generator() -> None:
    class Handler(WebMessageHandler):
        def get(self) -> Iterator[str]:
            self.headers["Too-Late"] = "the head is made before the first part is"
            yield "a"
            yield self.get_argument("b")

    response = answer(Handler, made("/?b=c"))
    assert list(response.response) == [b"a", b"c"]
    assert "Too-Late" not in response.headers


@pytest.mark.parametrize(
    ("header", "argument", "expected"),
    [
        ("", None, "text/html; charset=utf-8"),
        ("", "text/csv", "text/csv"),
        ("text/plain", None, "text/plain"),
        ("text/plain", "text/csv", "text/csv"),
    ],
)
def test_a_stream_says_its_type(header: str, argument: str | None, expected: str) -> None:
    class Handler(WebMessageHandler):
        def get(self) -> Response:
            if header:
                self.headers["Content-Type"] = header
            self.set_status(206)
            return self.stream(["a", "b"], content_type=argument)

    response = answer(Handler)
    assert (response.status_code, list(response.response)) == (206, [b"a", b"b"])
    assert response.headers.getlist("Content-Type") == [expected]


def test_a_json_handler_streams_a_value_a_line() -> None:
    class Handler(JSONMessageHandler):
        def get(self) -> Any:
            return iter([{"a": 1}, [2], None])

    response = answer(Handler)
    assert response.content_type == "application/x-ndjson"
    assert list(response.response) == [b'{"a":1}\n', b"[2]\n", b"null\n"]


def test_events_are_a_stream_that_nothing_on_the_way_holds_back() -> None:
    class Handler(WebMessageHandler):
        def get(self) -> Response:
            return self.stream_events(["a", Event({"b": 1}, event="news")])

    response = answer(Handler)
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert (response.headers["Cache-Control"], response.headers["X-Accel-Buffering"]) == ("no-cache", "no")
    assert b"".join(response.response).endswith(b'data: a\n\nevent: news\ndata: {"b":1}\n\n')
    response.close()


@pytest.mark.parametrize("name", ["stream", "stream_events"])
def test_head_of_a_stream_reads_none_of_it_and_lets_go(name: str) -> None:
    source = Source("a", "b")

    class Handler(WebMessageHandler):
        def get(self) -> Any:
            return getattr(self, name)(source)

    response = answer(Handler, made("/", "HEAD"))
    assert (source.taken, source.is_closed) == (0, True)
    assert (response.status_code, list(response.response)) == (200, [])
    assert "Content-Length" not in response.headers


def test_a_stream_with_a_status_that_cannot_be_is_let_go() -> None:
    source = Source("a")

    class Handler(WebMessageHandler):
        def get(self) -> Any:
            self.set_status(700)
            return source

    assert answer(Handler).status_code == 500
    assert source.is_closed


def test_a_stream_that_fails_before_it_begins_is_its_handlers_own_error() -> None:
    class Rows(JSONMessageHandler):
        def get(self) -> Iterator[Any]:
            raise BadRequest("no such table", status=404)
            yield

    with serving([("^/$", Rows)]) as front:
        reply = front.get("/")
        assert reply.status == 404
        assert reply.json == {"status_code": 404, "status_msg": "no such table"}
