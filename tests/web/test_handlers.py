"""Web handlers: what methods return, which methods there are, what failures look like outside."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from werkzeug.exceptions import abort
from werkzeug.wrappers import Response

from butler_mesh.application import Application
from butler_mesh.errors import BadRequest, MethodNotAllowed, NotFound, RequestFailed, Unavailable, failure
from butler_mesh.handlers import ServiceMessageHandler
from butler_mesh.routing import RouteKind
from butler_mesh.web.handlers import JSONMessageHandler, WebMessageHandler
from tests.web.fronts import answer, made


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


@pytest.mark.parametrize("result", [3, True, object(), {1, 2}, iter(["a"]), ({}, 200)])
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
