"""Application: routes to handlers, refused at start-up where they collide, and one's own replies."""

from __future__ import annotations

import logging
from typing import Any

import gevent
import pytest

from butler_mesh import deadlines
from butler_mesh.application import Application
from butler_mesh.errors import NotFound, RouteCollision, UsageError
from butler_mesh.handlers import MessageHandler, ServiceMessageHandler
from butler_mesh.messages import ServiceRequest, ServiceResponse
from butler_mesh.routing import RouteKind
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
