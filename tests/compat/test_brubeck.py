"""Brubeck's face: two addresses and a passphrase, and the application that asks holds the router."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from werkzeug.test import Client

from butler_mesh import Router, ServiceResponse
from butler_mesh.compat import brubeck
from butler_mesh.compat.brubeck import (
    Brubeck,
    Resource,
    ServiceClientMixin,
    ServiceConnection,
    ServiceMessageHandler,
    WebMessageHandler,
    WSGIConnection,
    coro_get_event,
    coro_send_event,
    coro_sleep,
    coro_spawn,
    render,
)
from butler_mesh.errors import AddressError
from tests.waiting import wait_for

SECRET = "my_shared_secret"


class Echo(ServiceMessageHandler):
    """Says what it was told, and by which method."""

    def request(self) -> Any:
        self.set_status(200, "Took a while, but I am back.")
        self.add_to_payload("RETURN_DATA", self.message.get_argument("RETURN_DATA", "NO DATA"))
        self.add_to_payload("BODY", self.message.body)
        self.headers = {"METHOD": "response"}
        return self.render()

    def put(self) -> Any:
        self.set_status(self._CREATED_CODE)
        return self.render()


class Handled(ServiceMessageHandler):
    """The asking application's route for replies."""

    def response(self) -> Any:
        self.application.resources.setdefault("seen", []).append((self.status_code, self.status_msg))
        return self.status_msg


class Caller(ServiceClientMixin):
    def __init__(self, application: Any = None) -> None:
        if application is not None:
            self.application = application


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/slow"


@pytest.fixture
def serve(address: str) -> Iterator[Callable[..., Brubeck]]:
    """Starts service applications, which need no router to be there yet."""
    started: list[Brubeck] = []

    def start(passphrase: str = SECRET, address: str = address) -> Brubeck:
        connection = ServiceConnection(address, f"{address}_response", passphrase)
        started.append(Brubeck(connection, [(r"^/service/slow", Echo)], grace_s=0.1))
        started[-1].start()
        return started[-1]

    yield start
    for application in started:
        application.close()


@pytest.fixture
def application() -> Iterator[Brubeck]:
    made = Brubeck(handler_tuples=[(r"^/service/slow", Handled)])
    yield made
    made.close()


def ask(caller: Caller, address: str, **arguments: Any) -> ServiceResponse:
    request = caller.create_service_request("/service/slow", "request", arguments)
    response, _ = caller.send_service_request(address, request)
    return response


# --- two addresses, no third process ---------------------------------------------------------------


def test_who_registers_a_service_holds_its_router(
    address: str, serve: Callable[..., Brubeck], application: Brubeck
) -> None:
    """A service and an application that asks; its own handler makes something of the reply."""
    serve()
    caller = Caller(application)
    caller.register_service(address, f"{address}_response", SECRET)
    caller.register_service(address, f"{address}_response", "another")  # known: nothing happens
    request = caller.create_service_request("/service/slow", "request", {"RETURN_DATA": "a trip"})
    response, handled = caller.send_service_request(address, request)
    assert (response.status_code, response.body["RETURN_DATA"]) == (200, "a trip")
    assert handled == "Took a while, but I am back."
    assert caller.send_service_request(address, request, handle=False)[1] is None


def test_a_request_that_nobody_waits_for_is_handled_when_the_reply_comes(
    address: str, serve: Callable[..., Brubeck], application: Brubeck
) -> None:
    serve()
    caller = Caller(application)
    caller.register_service(address, f"{address}_response", SECRET)
    caller.send_service_request_nowait(address, caller.create_service_request("/service/slow"))
    assert "seen" not in application.resources
    wait_for(lambda: application.resources.get("seen") == [(200, "Took a while, but I am back.")])


def test_two_applications_share_a_service_and_the_second_takes_over_its_router(
    address: str, serve: Callable[..., Brubeck]
) -> None:
    """The first one holds the router; when it ends the other one's calls are answered again within moments.
    Those on their way are 502, as with any router that goes."""
    serve()
    first, second = Brubeck(), Brubeck()
    try:
        for application in (first, second):
            caller = Caller(application)
            caller.register_service(address, f"{address}_response", SECRET)
            assert ask(caller, address).status_code == 200
        first.close()
        codes = []
        wait_for(lambda: codes.append(ask(caller, address).status_code) or codes[-1] == 200)
        assert set(codes[:-1]) <= {502}
    finally:
        first.close()
        second.close()


def test_a_standalone_router_serves_applications_that_name_it(
    address: str, serve: Callable[..., Brubeck], application: Brubeck
) -> None:
    with Router() as router:
        router.bind(address)
        serve()
        caller = Caller(application)
        caller.register_service(address, "", SECRET)
        assert ask(caller, address).status_code == 200
        assert router.status()["clients"] == 1


def test_a_service_of_another_machine_is_not_embedded(
    application: Brubeck, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        Caller(application).register_service("tcp://10.255.255.1:9999/my_service", "tcp://10.255.255.1:9998")
    [line] = [record.getMessage() for record in caplog.records if record.name == "butler_mesh.compat"]
    assert line.startswith("not-embedded ")


@pytest.mark.parametrize("bad", ["tcp://nowhere", "ipc:///no/such/directory/slow"])
def test_an_address_that_cannot_be_is_refused_and_a_good_one_works(
    address: str, serve: Callable[..., Brubeck], application: Brubeck, bad: str
) -> None:
    serve()
    caller = Caller(application)
    with pytest.raises(AddressError):
        caller.register_service(bad, "", SECRET)
    caller.register_service(address, "", SECRET)
    assert ask(caller, address).status_code == 200


def test_unregister_service_gives_up_connection_and_router(
    address: str, serve: Callable[..., Brubeck], application: Brubeck
) -> None:
    serve()
    caller = Caller(application)
    caller.register_service(address, "", SECRET)
    assert ask(caller, address).status_code == 200
    caller.unregister_service(address)
    assert not [key for key in application.resources if address in key]
    with Router() as router:
        router.bind(address)  # it is free again
    caller.unregister_service(address)


def test_without_an_application_each_call_has_a_connection_of_its_own(
    address: str, serve: Callable[..., Brubeck]
) -> None:
    with Router() as router:
        router.bind(address)
        serve()
        caller = Caller()
        caller.register_service(address, "", SECRET)
        for _ in range(3):
            assert ask(caller, address).status_code == 200
            wait_for(lambda: router.status()["clients"] == 0)
        caller.unregister_service(address)


def test_without_an_application_the_process_holds_the_router(
    address: str, serve: Callable[..., Brubeck]
) -> None:
    serve()
    caller = Caller()
    caller.register_service(address, "", SECRET)
    assert ask(caller, address).status_code == 200
    caller.unregister_service(address)


# --- passphrase ------------------------------------------------------------------------------------


@pytest.mark.parametrize("passphrase", ["another", None])
def test_another_passphrase_is_401_and_the_log_does_not_tell_it(
    address: str,
    serve: Callable[..., Brubeck],
    application: Brubeck,
    caplog: pytest.LogCaptureFixture,
    passphrase: str | None,
) -> None:
    """The caller sees 401, the service's log one line; who has the right one is served."""
    serve()
    stranger, friend = Caller(application), Caller(Brubeck())
    stranger.register_service(address, "", passphrase)
    friend.register_service(address, "", SECRET)
    with caplog.at_level(logging.WARNING):
        assert ask(stranger, address).status_code == 401
    [line] = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert SECRET not in line
    assert "another'" not in line
    assert ask(friend, address).status_code == 200
    friend.application.close()


# --- requests and handlers -------------------------------------------------------------------------


def test_a_request_is_made_of_path_method_arguments_or_of_path_headers_body() -> None:
    new = Caller().create_service_request("/service/slow", "put", {"a": 1})
    assert (new.path, new.method, new.arguments) == ("/service/slow", "put", {"a": 1})
    old = Caller().create_service_request("/service/slow", {"X": "y"}, {"RETURN_DATA": "b"})
    assert (old.path, old.method, old.headers["X"], old.body) == (
        "/service/slow",
        "request",
        "y",
        {"RETURN_DATA": "b"},
    )
    assert old.get_argument("RETURN_DATA") == "b"


def test_the_method_decides_which_function_answers(
    address: str, serve: Callable[..., Brubeck], application: Brubeck
) -> None:
    serve()
    caller = Caller(application)
    caller.register_service(address, "", SECRET)
    for method, code in (("request", 200), ("put", 201), ("delete", 405)):
        request = caller.create_service_request("/service/slow", method)
        assert caller.send_service_request(address, request)[0].status_code == code


def test_a_reply_tells_when_it_was_asked_for_begun_and_done(
    address: str, serve: Callable[..., Brubeck], application: Brubeck
) -> None:
    serve()
    caller = Caller(application)
    caller.register_service(address, "", SECRET)
    before = int(time.time() * 1000)
    headers = ask(caller, address).headers
    times = [int(headers[f"{name}_TIMESTAMP"]) for name in ("REQUEST", "START", "END")]
    assert before <= times[0] <= times[1] <= times[2] <= time.time() * 1000
    assert "METHOD" not in headers


def test_a_function_may_render_its_reply(address: str, application: Brubeck) -> None:
    connection = ServiceConnection(address, f"{address}_response", SECRET)
    service = Brubeck(connection, grace_s=0.1)

    @service.add_route("^/service/function$", method=["request"])
    def function(application: Brubeck, message: Any) -> Any:
        return render({"got": message.get_argument("n")}, 207, "Several", {"X": "y"})

    service.start()
    try:
        caller = Caller(application)
        caller.register_service(address, "", SECRET)
        request = caller.create_service_request("/service/function", "request", {"n": 5})
        response, _ = caller.send_service_request(address, request)
        assert (response.status_code, response.status_msg, response.body) == (207, "Several", {"got": 5})
        assert response.headers["X"] == "y"
    finally:
        service.close()


def test_a_function_may_render_a_page(address: str) -> None:
    site = Brubeck(WSGIConnection(port=0), cookie_secret=SECRET)

    @site.add_route("^/(?P<name>[a-z]+)$", method=["GET", "POST"])
    def page(application: Brubeck, message: Any, name: str) -> Any:
        return render(f"{message.method} {name}", 201, "Created", {"X": "y"})

    with Client(site.wsgi).post("/hello") as response:
        assert (response.status_code, response.text, response.headers["X"]) == (201, "post hello", "y")


def test_a_handler_sets_and_reads_cookies_as_it_did() -> None:
    class Page(WebMessageHandler):
        def get(self) -> Any:
            self.set_cookie("user", "ada", secret=self.application.cookie_secret)
            self.set_body(str(self.get_cookie("user", "nobody", self.application.cookie_secret)))
            return self.render()

        def post(self) -> Any:
            self.delete_cookies()
            return self.redirect("/")

    client = Client(Brubeck(None, [("^/$", Page)], cookie_secret=SECRET).wsgi)
    assert [client.get("/").text, client.get("/").text] == ["nobody", "ada"]
    assert client.post("/").status_code == 302
    assert client.get("/").text == "nobody"


def test_what_no_route_matches_has_its_base_handler() -> None:
    class Lost(WebMessageHandler):
        def get(self) -> Any:
            return self.render_error(self._NOT_FOUND, "lost?")

    response = Client(Brubeck(base_handler=Lost).wsgi).get("/anywhere")
    assert (response.status_code, "lost?" in response.text) == (404, True)


# --- the rest --------------------------------------------------------------------------------------


def test_every_documented_name_is_there() -> None:
    for name in brubeck.__all__:
        assert getattr(brubeck, name) is not None
    codes = {
        "_DEFAULT_STATUS": 500,
        "_SUCCESS_CODE": 200,
        "_UPDATED_CODE": 200,
        "_CREATED_CODE": 201,
        "_MULTI_CODE": 207,
        "_FAILED_CODE": 400,
        "_AUTH_FAILURE": 401,
        "_FORBIDDEN": 403,
        "_NOT_FOUND": 404,
        "_SERVER_ERROR": 500,
    }
    for handler in (ServiceMessageHandler, WebMessageHandler):
        assert {name: getattr(handler, name) for name in codes} == codes


def test_sleeping_and_events_let_others_run() -> None:
    event = coro_get_event()
    ran: list[str] = []
    waiting = coro_spawn(lambda: ran.append(event.get()))
    coro_sleep(0)
    assert not ran
    coro_send_event(event, "woken")
    waiting.join(5.0)
    assert ran == ["woken"]
    assert isinstance(waiting, gevent.Greenlet)


def test_the_log_level_is_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []
    monkeypatch.setattr(logging, "basicConfig", lambda level: levels.append(level))
    Brubeck(log_level=logging.DEBUG)
    assert levels == [logging.DEBUG]


def test_a_web_connection_is_a_port_of_this_machine() -> None:
    assert WSGIConnection(port=6767).url == "http://127.0.0.1:6767/"
    assert WSGIConnection(8080, host="::1").url == "http://[::1]:8080/"


def test_an_application_keeps_resources_and_tells_them() -> None:
    told: list[str] = []

    class Database(Resource):
        def on_register(self) -> None:
            told.append("on")

        def on_unregister(self) -> None:
            told.append("off")

    application = Brubeck()
    application.resources.register(Database("main", "DB"))
    assert application.resources["DBmain"].name == "main"
    application.close()
    assert told == ["on", "off"]


def test_services_at_one_endpoint_share_a_router_and_one_of_them_may_go(
    tmp_path: Path, application: Brubeck
) -> None:
    """An application that uses two services there holds one router, until it uses neither."""
    endpoint = f"ipc://{tmp_path}/mesh"
    caller = Caller(application)
    for name in ("a", "b", "c"):
        caller.register_service(f"{endpoint}#{name}")
    assert len([key for key in application.resources if key.startswith("ROUTER ")]) == 1
    service = Brubeck(ServiceConnection(f"{endpoint}#b"), [(r"^/service/slow", Echo)], grace_s=0.1)
    service.start()
    try:
        caller.unregister_service(f"{endpoint}#a")
        assert ask(caller, f"{endpoint}#b").status_code == 200
    finally:
        service.close()
    caller.unregister_service(f"{endpoint}#b")
    caller.unregister_service(f"{endpoint}#c")
    assert not [key for key in application.resources if key.startswith("ROUTER ")]
