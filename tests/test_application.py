"""Application: routes to handlers, refused at start-up where they collide, and one's own replies."""

from __future__ import annotations

import logging
from typing import Any

import gevent
import pytest
from werkzeug.test import Client as WSGIClient
from werkzeug.wrappers import Response

from butler_mesh import deadlines
from butler_mesh.application import Application
from butler_mesh.errors import NotFound, RouteCollision, UsageError
from butler_mesh.handlers import MessageHandler, ServiceMessageHandler
from butler_mesh.messages import ServiceRequest, ServiceResponse
from butler_mesh.routing import RouteKind
from butler_mesh.web.handlers import WebMessageHandler
from tests.meshes import Mesh
from tests.waiting import wait_for


class One(ServiceMessageHandler):
    """The first."""

    def request(self) -> Any:
        return "one"


class Two(ServiceMessageHandler):
    def request(self) -> Any:
        return "two"


class Answers(ServiceMessageHandler):
    """Takes replies only."""

    def response(self) -> Any:
        return f"handled {self.status_code}"


class Web(MessageHandler):
    kind = RouteKind.WEB

    def get(self) -> str:
        return "page"


# --- routes ------------------------------------------------------------------------------------------


def test_requests_are_routed_by_path_and_the_first_route_that_matches_wins(mesh: Mesh) -> None:
    mesh.application([("^/a/one$", One), ("^/a/", Two)])
    client = mesh.client()
    assert client.request("app", "/a/one").body == "one"
    assert client.request("app", "/a/other").body == "two"
    assert client.request("app", "/b").status_code == 404
    assert client.request(None, "/a/one").body == "one"


def test_routes_that_collide_fail_at_construction() -> None:
    with pytest.raises(RouteCollision, match="/a"):
        Application(None, [("^/a$", One), (r"^/a$", Two)])
    application = Application(None, [("^/a$", One)])
    with pytest.raises(RouteCollision):
        application.add_handler("/a$", Two)
    with pytest.raises(RouteCollision):
        application.add_route("^/a$")(lambda application, message: None)


def test_a_web_route_and_a_service_route_of_one_path_do_not_collide() -> None:
    application = Application(None, [("^/a$", One), ("^/a$", Web)])
    assert application.answer(RouteKind.WEB, ServiceRequest("/a", "get")) == "page"
    assert application.answer(RouteKind.SERVICE, ServiceRequest("/a")).body == "one"


def test_a_web_route_is_not_reached_by_a_service_request(mesh: Mesh) -> None:
    mesh.application([("^/page$", Web), ("^/one$", One)])
    client = mesh.client()
    assert client.request("app", "/page", method="get").status_code == 404
    with pytest.raises(NotFound):
        Application(None, [("^/one$", One)]).answer(RouteKind.WEB, ServiceRequest("/one"))


@pytest.mark.parametrize("handler", [One(None, ServiceRequest()), object, dict, None, lambda: None])
def test_what_is_no_handler_class_is_refused(handler: Any) -> None:
    with pytest.raises(UsageError, match="handler class"):
        Application(None, [("^/a$", handler)])


def test_a_pattern_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(UsageError, match="regular expression"):
        Application(None, [("^/(a$", One)])


def test_a_function_can_be_a_route(mesh: Mesh) -> None:
    application = mesh.application([("^/other$", One)])

    @application.add_route(r"^/double/(\d+)$", method=["request", "GET"])
    def double(app: Application, message: ServiceRequest, digits: str) -> Any:
        """Double a number."""
        assert app is application
        return {"twice": 2 * int(digits), "x": message.get_argument("x")}

    client = mesh.client()
    assert client.request("app", "/double/21", {"x": 1}).body == {"twice": 42, "x": 1}
    application.add_route("^/nothing$")(lambda app, message: None)
    nothing = client.request("app", "/nothing")
    assert (nothing.status_code, nothing.body) == (200, None)
    assert client.request("app", "/double/21", method="get").is_success
    assert client.request("app", "/double/21", method="put").status_code == 405
    assert client.describe("app", "/double/1")["doc"] == "Double a number."
    assert callable(double)


@pytest.mark.parametrize(
    "path", ["/with spaces", "/ünïcödé/☃", "/../../etc/passwd", "/one/../two", "/%2e%2e", "/one\n"]
)
def test_a_strange_path_is_404_and_the_next_request_works(mesh: Mesh, path: str) -> None:
    mesh.application([(r"^/one\Z", One)])
    client = mesh.client()
    response = client.request("app", path)
    assert response.status_code == 404
    assert path in response.status_msg
    assert client.request("app", "/one").body == "one"


def test_a_path_with_spaces_or_unicode_can_be_a_route(mesh: Mesh) -> None:
    mesh.application([("^/with spaces$", One), ("^/ünïcödé/☃$", Two)])
    client = mesh.client()
    assert client.request("app", "/with spaces").body == "one"
    assert client.request(None, "/ünïcödé/☃").body == "two"


# --- functions as pages ------------------------------------------------------------------------------


class Connection:
    """Brings nothing; ``kind`` is whatever the test says, or not there at all."""

    def __init__(self, kind: RouteKind | None = None, **options: Any) -> None:
        if kind is not None:
            self.kind = kind
        if options:
            self.wsgi_options = lambda: options

    def start(self, application: Application) -> None:
        raise AssertionError("started")

    def close(self, grace_s: float) -> None:
        pass


def pages(*functions: Any, **options: Any) -> WSGIClient:
    """Return a client of an application whose pages are these functions, each at its name."""
    application = Application(**options)
    for function in functions:
        application.add_route(f"^/{function.__name__}$", kind=RouteKind.WEB)(function)
    return WSGIClient(application.wsgi)


def test_the_connection_decides_what_a_function_is_a_route_of_unless_it_is_said() -> None:
    def function(application: Application, message: Any) -> str:
        return "done"

    for connection, kind, expected in (
        (None, None, RouteKind.SERVICE),
        (Connection(), None, RouteKind.SERVICE),
        (Connection(RouteKind.SERVICE), None, RouteKind.SERVICE),
        (Connection(RouteKind.WEB), None, RouteKind.WEB),
        (Connection(RouteKind.WEB), RouteKind.SERVICE, RouteKind.SERVICE),
        (Connection(), RouteKind.WEB, RouteKind.WEB),
    ):
        application = Application(connection)
        assert application.add_route("^/a$", kind=kind)(function) is function
        assert [route.kind for route in application.routes] == [expected]


def test_a_function_returns_what_the_method_of_a_web_handler_does() -> None:
    def text(application: Application, message: Any) -> str:
        return f"hello {message.get_argument('name')}"

    def document(application: Application, message: Any) -> Any:
        return {"a": 1}

    def response(application: Application, message: Any) -> Response:
        return Response("teapot", 418)

    def stream(application: Application, message: Any) -> Any:
        yield "a"
        yield b"b"

    def reply(application: Application, message: Any) -> ServiceResponse:
        return ServiceResponse(201, "made", {"a": 1}, {"X-Mood": "good"})

    def nothing(application: Application, message: Any) -> None:
        pass

    def broken(application: Application, message: Any) -> None:
        raise ValueError("secret")

    client = pages(text, document, response, stream, reply, nothing, broken)
    assert client.get("/text?name=ada").text == "hello ada"
    assert client.get("/document").json == {"a": 1}
    assert client.get("/response").status_code == 418
    assert client.get("/stream").data == b"ab"
    made = client.get("/reply")
    assert (made.status_code, made.json, made.headers["X-Mood"]) == (201, {"a": 1}, "good")
    assert client.get("/nothing").status_code == 500
    assert client.get("/broken").status_code == 500
    assert "secret" not in client.get("/broken").text
    assert client.post("/text").status_code == 405
    assert client.post("/text").headers["Allow"] == "GET, HEAD, OPTIONS"
    assert client.head("/text").status_code == 200


def test_the_captures_of_a_pages_route_are_its_functions_arguments() -> None:
    application = Application()

    @application.add_route(r"^/(\w+)/(?P<last>\w+)$", method=["GET", "post"], kind=RouteKind.WEB)
    def name(application: Application, message: Any, first: str, *, last: str) -> str:
        """Say a name."""
        return f"{message.method} {first} {last}"

    client = WSGIClient(application.wsgi)
    assert client.get("/ada/lovelace").text == "get ada lovelace"
    assert client.post("/ada/lovelace").text == "post ada lovelace"
    assert client.put("/ada/lovelace").headers["Allow"] == "GET, HEAD, POST, OPTIONS"
    assert next(iter(application.routes)).target.__doc__ == "Say a name."


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("request", RouteKind.WEB),
        ("response", RouteKind.WEB),
        ("fetch", RouteKind.WEB),
        ("fetch", None),
        (["get", "x"], None),
    ],
)
def test_a_method_that_no_such_route_has_is_refused(method: Any, kind: RouteKind | None) -> None:
    with pytest.raises(UsageError, match="is not of the methods"):
        Application().add_route("^/a$", method, kind)


# --- what no route matches ---------------------------------------------------------------------------


class Anywhere(ServiceMessageHandler):
    def request(self) -> Any:
        return f"nothing at {self.message.path}"


class Page(WebMessageHandler):
    def get(self) -> str:
        return f"nothing at {self.message.path}"


def test_a_base_handler_answers_what_no_route_matches(mesh: Mesh) -> None:
    mesh.application([("^/one$", One)], base_handler=Anywhere)
    client = mesh.client()
    assert client.request("app", "/one").body == "one"
    assert client.request("app", "/two").body == "nothing at /two"
    assert client.request("app", "/two", method="put").status_code == 405
    assert "/one" in str(client.describe("app"))


def test_a_base_handler_answers_messages_of_its_kind_only() -> None:
    application = Application(None, [("^/a$", One)], base_handler=Page)
    client = WSGIClient(application.wsgi)
    assert client.get("/b").text == "nothing at /b"
    assert client.post("/b").status_code == 405
    with pytest.raises(NotFound):
        application.answer(RouteKind.SERVICE, ServiceRequest("/b"))
    assert application.handle_response(ServiceResponse(200, path="/b")) is None
    assert WSGIClient(Application(base_handler=Anywhere).wsgi).get("/b").status_code == 404


@pytest.mark.parametrize("handler", [object, Anywhere(None, ServiceRequest()), lambda: None])
def test_a_base_handler_is_a_handler_class(handler: Any) -> None:
    with pytest.raises(UsageError, match="handler class"):
        Application(base_handler=handler)


# --- WSGI --------------------------------------------------------------------------------------------


def test_an_application_is_a_wsgi_callable_with_its_connections_options_and_without_starting_it() -> None:
    connection = Connection(RouteKind.WEB, max_body_bytes=3)
    application = Application(connection, [("^/a$", Page)])
    assert application.wsgi is application.wsgi
    client = WSGIClient(application.wsgi)
    assert client.get("/a").text == "nothing at /a"
    assert client.get("/a", data=b"1234").status_code == 413


@pytest.mark.parametrize("connection", [None, Connection()])
def test_without_options_of_its_connection_it_has_the_usual_ones(connection: Any) -> None:
    client = WSGIClient(Application(connection, [("^/a$", Page)]).wsgi)
    assert client.get("/a", data=b"1234").status_code == 200


# --- replies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["response", "RESPONSE", "Response"])
def test_a_request_that_calls_itself_a_reply_is_refused(mesh: Mesh, method: str) -> None:
    handled: list[Any] = []

    class Trusting(ServiceMessageHandler):
        def response(self) -> None:
            handled.append(self.message.body)

        def request(self) -> Any:
            return "fine"

    mesh.application([("^/a$", Trusting)])
    client = mesh.client()
    assert client.request("app", "/a", method=method).status_code == 405
    assert client.request("app", "/a", method="bogus").headers["Allow"] == "OPTIONS, REQUEST"
    assert handled == []
    assert client.request("app", "/a").body == "fine"


def test_a_reply_runs_through_the_route_of_its_path() -> None:
    application = Application(None, [("^/a$", Answers), ("^/b$", One)])
    assert application.handle_response(ServiceResponse(207, path="/a")) == "handled 207"
    assert application.handle_response(ServiceResponse(207, path="/b")) is None
    assert application.handle_response(ServiceResponse(207, path="/c")) is None


def test_a_reply_that_nobody_waits_for_is_handled_in_a_greenlet_without_a_deadline() -> None:
    seen: list[Any] = []

    class Later(ServiceMessageHandler):
        def response(self) -> None:
            gevent.sleep(0)
            seen.append((self.status_code, deadlines.current.get(), gevent.getcurrent()))

    application = Application(None, [("^/a$", Later)])
    token = deadlines.current.set(5.0)
    application.handle_response_later(ServiceResponse(200, path="/a"))
    deadlines.current.reset(token)
    assert seen == []
    wait_for(lambda: seen)
    code, deadline, greenlet = seen[0]
    assert (code, deadline) == (200, deadlines.NEVER)
    assert greenlet is not gevent.getcurrent()
    application.handle_response_later(ServiceResponse(200, path="/nobody's"))
    application.close()


def test_a_response_handler_that_fails_later_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ServiceMessageHandler):
        def response(self) -> None:
            raise ValueError("broken")

    application = Application(None, [("^/a$", Broken)])
    application.handle_response_later(ServiceResponse(200, path="/a"))
    application.close()
    assert [record.getMessage() for record in caplog.records] == ["response-handler-failed /a"]


# --- describing --------------------------------------------------------------------------------------


def test_options_of_a_path_without_a_route_describes_the_application(mesh: Mesh) -> None:
    mesh.application([("^/one$", One), ("^/answers$", Answers), ("^/page$", Web)])
    described = mesh.client().describe("app")
    assert described == {
        "paths": {
            "^/one$": {"methods": ["options", "request"], "doc": "The first."},
            "^/answers$": {"methods": ["options"], "doc": "Takes replies only."},
        }
    }
    assert mesh.client().request("app", "/", method="OPTIONS").body == described


# --- settings ----------------------------------------------------------------------------------------


def test_the_seeds_configuration_is_taken() -> None:
    logger = logging.getLogger("butler_mesh")
    before = logger.level
    try:
        application = Application(
            msg_conn=None,
            handler_tuples=[("^/one$", One)],
            cookie_secret="secret",
            template_loader=lambda: "environment",
            log_level=logging.DEBUG,
        )
        assert logger.level == logging.DEBUG
        assert application.cookie_secret == "secret"
        assert application.template_env == "environment"
    finally:
        logger.setLevel(before)


def test_templates_are_loaded_once_and_when_first_asked_for() -> None:
    loads: list[int] = []
    application = Application(template_loader=lambda: loads.append(1) or object())
    assert loads == []
    assert application.template_env is application.template_env
    assert loads == [1]
    with pytest.raises(UsageError, match="template_loader"):
        _ = Application().template_env


def test_an_application_without_a_connection_cannot_run() -> None:
    with pytest.raises(UsageError, match="msg_conn"):
        Application().start()
    with pytest.raises(UsageError, match="msg_conn"):
        Application().run()
    Application().close()


# --- life --------------------------------------------------------------------------------------------


def test_close_finishes_what_runs_and_lets_go_of_resources(mesh: Mesh) -> None:
    started: list[int] = []

    class Nap(ServiceMessageHandler):
        def request(self) -> Any:
            started.append(1)
            gevent.sleep(0.02)
            return "rested"

    class Resource:
        closed = 0

        def close(self) -> None:
            self.closed += 1

    application = mesh.application([("^/nap$", Nap)], grace_s=5.0)
    resource = Resource()
    application.resources.update(own=resource, plain=object())
    lazy = mesh.client().request_lazy("app", "/nap")
    wait_for(lambda: started)
    application.close()
    assert lazy.get(5.0).body == "rested"
    assert resource.closed == 1
    assert application.resources == {}


def test_stop_makes_run_return(mesh: Mesh) -> None:
    application = mesh.application([("^/one$", One)])
    running = gevent.spawn(application.run)
    gevent.sleep(0)
    application.stop()
    running.get(timeout=5)


def test_tracebacks_can_be_kept_at_home(mesh: Mesh) -> None:
    class Broken(ServiceMessageHandler):
        def request(self) -> Any:
            raise ValueError("why")

    mesh.application([("^/broken$", Broken)], tracebacks=False)
    assert dict(mesh.client().request("app", "/broken").error) == {"type": "ValueError", "message": "why"}
