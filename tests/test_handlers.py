"""Message handlers: one method for each request method, and everything around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from butler_mesh.errors import BadRequest, MethodNotAllowed
from butler_mesh.handlers import MessageHandler, ServiceMessageHandler
from butler_mesh.messages import ServiceRequest, ServiceResponse
from butler_mesh.routing import METHODS
from tests.meshes import Mesh

REQUEST_METHODS = [name for name in METHODS if name != "response"]


class Everything(ServiceMessageHandler):
    """Answers every method with its name."""


def _named(name: str) -> Any:
    def method(self: ServiceMessageHandler) -> str:
        return name

    return method


for _name in REQUEST_METHODS:
    setattr(Everything, _name, _named(_name))


class Slow(ServiceMessageHandler):
    """The seed's example."""

    def request(self) -> Any:
        self.set_status(200, "Took a while, but I am back.")
        self.add_to_payload("RETURN_DATA", self.message.get_argument("RETURN_DATA", "NO DATA"))
        self.headers = {"METHOD": "response", "X-Own": "yes"}
        return self.render()


def run(
    handler: type[MessageHandler], request: ServiceRequest | ServiceResponse, *args: str, **kwargs: str
) -> Any:
    return handler("the application", request).run(*args, **kwargs)


@pytest.mark.parametrize("method", REQUEST_METHODS)
def test_a_request_reaches_the_method_of_its_name(mesh: Mesh, method: str) -> None:
    mesh.application([("^/all$", Everything)])
    response = mesh.client().request("app", "/all", method=method)
    assert (response.status_code, response.body) == (200, method)
    assert mesh.client().request("app", "/all", method=method.upper()).body == method


def test_the_seeds_example_answers_as_it_says(mesh: Mesh) -> None:
    mesh.application([("^/service/slow", Slow)])
    response = mesh.client().request("app", "/service/slow", {"RETURN_DATA": "hello"})
    assert (response.status_code, response.status_msg) == (200, "Took a while, but I am back.")
    assert response.body == {"RETURN_DATA": "hello"}
    assert response.headers == {"X-Own": "yes"}
    assert mesh.client().request("app", "/service/slow").body == {"RETURN_DATA": "NO DATA"}


@pytest.mark.parametrize(
    "method", ["get", "bogus", "", "__class__", "render", "set_status", "run", "prepare"]
)
def test_a_method_that_it_does_not_have_is_405_with_those_it_has(mesh: Mesh, method: str) -> None:
    mesh.application([("^/slow$", Slow)])
    client = mesh.client()
    response = client.request("app", "/slow", method=method)
    assert (response.status_code, response.headers["Allow"]) == (405, "OPTIONS, REQUEST")
    assert client.request("app", "/slow").is_success


def test_a_handler_that_never_set_a_status_did_not_finish_its_work() -> None:
    class Forgot(ServiceMessageHandler):
        def request(self) -> Any:
            self.add_to_payload("a", 1)
            return self.render()

        def get(self) -> None:
            self.add_to_payload("a", 1)

    assert run(Forgot, ServiceRequest()).status_msg == "the handler set no status"
    assert run(Forgot, ServiceRequest()).status_code == 500
    response = run(Forgot, ServiceRequest(method="get"))
    assert (response.status_code, response.body) == (500, {"a": 1})


@pytest.mark.parametrize("value", [0, "", [], {"a": 1}, b"bytes", [b"a", b"b"], False])
def test_a_value_that_is_returned_is_the_body_with_200_or_the_status_set(value: Any) -> None:
    class Values(ServiceMessageHandler):
        def request(self) -> Any:
            return value

        def post(self) -> Any:
            self.set_status(201, "made")
            return value

    response = run(Values, ServiceRequest())
    assert (response.status_code, response.body) == (200, value)
    assert run(Values, ServiceRequest(method="post")).status_code == 201


def test_the_reply_has_the_path_of_the_request_and_a_body_of_ones_own() -> None:
    class Own(ServiceMessageHandler):
        def request(self) -> Any:
            self.set_status(200)
            return self.render([1, 2])

    response = run(Own, ServiceRequest("/a/b"))
    assert (response.path, response.body) == ("/a/b", [1, 2])


def test_the_payload_can_be_looked_at_and_is_each_requests_own() -> None:
    class Adds(ServiceMessageHandler):
        def request(self) -> Any:
            assert self.payload == {}
            self.add_to_payload("a", 1)
            assert self.payload == {"a": 1}
            self.set_status(200)

    assert run(Adds, ServiceRequest()).body == run(Adds, ServiceRequest()).body == {"a": 1}


def test_what_the_pattern_captured_is_passed_on(mesh: Mesh) -> None:
    class Captures(ServiceMessageHandler):
        def request(self, *args: str, **kwargs: str) -> Any:
            return [list(args), kwargs]

    mesh.application([(r"^/a/(\d+)/(?P<name>\w+)$", Captures)])
    assert mesh.client().request("app", "/a/12/bob").body == [["12"], {"name": "bob"}]


def test_prepare_runs_before_and_on_finish_after_also_when_it_raised() -> None:
    log: list[str] = []

    class Logs(ServiceMessageHandler):
        def prepare(self) -> None:
            log.append("prepare")

        def request(self) -> Any:
            log.append("request")
            return 1

        def get(self) -> Any:
            raise ValueError("broken")

        def on_finish(self) -> None:
            log.append("on_finish")

    run(Logs, ServiceRequest())
    assert log == ["prepare", "request", "on_finish"]
    log.clear()
    with pytest.raises(ValueError, match="broken"):
        run(Logs, ServiceRequest(method="get"))
    with pytest.raises(MethodNotAllowed):
        run(Logs, ServiceRequest(method="put"))
    assert log == ["prepare", "on_finish"] * 2


def test_prepare_may_refuse_the_request(mesh: Mesh) -> None:
    class Guarded(ServiceMessageHandler):
        def prepare(self) -> None:
            raise BadRequest("who are you?", status=401)

        def request(self) -> Any:
            raise AssertionError("reached")

    mesh.application([("^/guarded$", Guarded)])
    response = mesh.client().request("app", "/guarded")
    assert (response.status_code, response.status_msg) == (401, "who are you?")


def test_a_handler_finds_its_message_and_application(mesh: Mesh) -> None:
    class Looks(ServiceMessageHandler):
        def request(self) -> Any:
            message = self.message
            return [
                message.path,
                message.method,
                message.conn_id > 0,
                message.headers,
                message.body,
                message.target,
            ]

    application = mesh.application([("^/look$", Looks)])
    response = mesh.client().request("app", "/look", {"a": 1}, headers={"X": "y"})
    assert response.body == ["/look", "request", True, {"X": "y"}, {"a": 1}, "app"]
    assert Looks(application, ServiceRequest()).application is application


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ValueError("x"), "ValueError"), (SystemExit(1), "SystemExit"), (gevent.GreenletExit(), "GreenletExit")],
)
def test_whatever_a_handler_raises_its_caller_is_told_and_the_next_request_works(
    mesh: Mesh, error: BaseException, kind: str
) -> None:
    class Broken(ServiceMessageHandler):
        def request(self) -> Any:
            raise error

    mesh.application([("^/broken$", Broken), ("^/slow$", Slow)])
    client = mesh.client()
    response = client.request("app", "/broken")
    assert (response.status_code, response.error["type"]) == (500, kind)
    assert client.request("app", "/slow").is_success


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan")])
def test_a_payload_that_JSON_cannot_hold_is_500_and_the_next_request_works(mesh: Mesh, value: Any) -> None:
    class Adds(ServiceMessageHandler):
        def request(self) -> Any:
            self.set_status(200)
            self.add_to_payload("value", value)
            return self.render()

    mesh.application([("^/adds$", Adds), ("^/slow$", Slow)])
    client = mesh.client()
    assert client.request("app", "/adds").error["type"] == "NotSerializable"
    assert client.request("app", "/slow").is_success


def test_a_handler_may_stream(mesh: Mesh) -> None:
    class Streams(ServiceMessageHandler):
        def request(self) -> Any:
            self.set_status(200)
            return self.stream(self.parts())

        def parts(self) -> Iterator[int]:
            yield from range(3)

    mesh.application([("^/stream$", Streams)])
    client = mesh.client()
    assert list(client.request_stream("app", "/stream")) == [0, 1, 2]
    assert client.request("app", "/stream").body == [0, 1, 2]


def test_options_describes_the_handler(mesh: Mesh) -> None:
    mesh.application([("^/slow$", Slow)])
    assert mesh.client().describe("app", "/slow") == {
        "methods": ["options", "request"],
        "doc": "The seed's example.",
    }


def test_a_response_handler_has_the_replys_status_and_gives_back_what_it_likes() -> None:
    class Handles(ServiceMessageHandler):
        def response(self) -> Any:
            return [self.status_code, self.status_msg, self.message.body]

        def request(self) -> Any:
            raise AssertionError("reached")

    reply = ServiceResponse(201, "made", {"a": 1}, path="/a")
    assert run(Handles, reply) == [201, "made", {"a": 1}]


def test_a_response_handler_that_renders_or_returns_nothing_gives_back_that() -> None:
    class Renders(ServiceMessageHandler):
        def response(self) -> Any:
            return self.render()

    class Nothing(ServiceMessageHandler):
        def response(self) -> None:
            pass

    rendered = run(Renders, ServiceResponse(404, "no", path="/a"))
    assert (rendered.status_code, rendered.status_msg, rendered.path) == (404, "no", "/a")
    assert run(Nothing, ServiceResponse(path="/a")) is None


def test_the_seeds_names_for_codes_are_there() -> None:
    assert [
        getattr(ServiceMessageHandler, name)
        for name in (
            "_DEFAULT_STATUS",
            "_SUCCESS_CODE",
            "_UPDATED_CODE",
            "_CREATED_CODE",
            "_MULTI_CODE",
            "_FAILED_CODE",
            "_AUTH_FAILURE",
            "_FORBIDDEN",
            "_NOT_FOUND",
            "_SERVER_ERROR",
        )
    ] == [500, 200, 200, 201, 207, 400, 401, 403, 404, 500]
