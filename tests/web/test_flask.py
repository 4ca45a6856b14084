"""Mesh: services called from Flask's views; and ServiceClientMixin in classes of other frameworks."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import Any

import flask
import gevent
import pytest
from flask.views import MethodView
from gevent.event import Event
from werkzeug.test import Client as WSGIClient
from werkzeug.wrappers import Response

from butler_mesh import deadlines, tracing
from butler_mesh.application import Application
from butler_mesh.errors import AddressError, BadRequest, RequestFailed, UsageError
from butler_mesh.handlers import ServiceMessageHandler
from butler_mesh.messages import ServiceResponse
from butler_mesh.service_client import ServiceClientMixin
from butler_mesh.web.flask import LAST_WORDS_S
from butler_mesh.web.flask import Mesh as FlaskMesh
from tests.meshes import Mesh
from tests.waiting import wait_for

TRACE = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


class Shop:
    """A service's functions, and what became of their calls."""

    def __init__(self) -> None:
        self.stopped: list[str] = []
        self.seen: list[str] = []

    def quote(self, item: str, quantity: int = 1) -> dict[str, Any]:
        return {"item": item, "total": 3 * quantity}

    def refuse(self) -> None:
        raise BadRequest("no <such> colour", status=409)

    def fail(self) -> None:
        raise ValueError("secret")

    def left(self) -> float:
        return deadlines.remaining_s()

    def trace(self) -> str:
        return tracing.current.get()

    def note(self, text: str) -> None:
        self.seen.append(text)

    def wait(self) -> None:
        self._until_stopped("wait")

    def ticks(self, n: int) -> Iterator[int]:
        yield from range(n)

    def endless(self) -> Iterator[int]:
        yield 1
        self._until_stopped("endless")

    def _until_stopped(self, name: str) -> None:
        try:
            Event().wait(20.0)
        finally:
            self.stopped.append(name)


@pytest.fixture
def shop(mesh: Mesh) -> Shop:
    """A shop that serves as ``shop``."""
    shop = Shop()
    functions = (getattr(shop, name) for name in vars(Shop) if not name.startswith("_"))
    mesh.service(*functions, name="shop")
    return shop


@pytest.fixture
def app(mesh: Mesh, shop: Shop) -> Iterator[flask.Flask]:
    """A Flask application with ``/rpc/FUNCTION``."""
    app = flask.Flask("shop_front")
    extension = FlaskMesh(app, mesh.endpoint, timeout_s=5.0)

    @app.get("/rpc/<function>")
    def rpc(function: str) -> Any:
        result = getattr(extension.rpc("shop"), function)(**flask.request.args)
        return flask.jsonify(result)

    with closing(extension, app):
        yield app


class closing:
    """Closes an application's client at the end."""

    def __init__(self, extension: FlaskMesh, app: flask.Flask) -> None:
        self._extension, self._app = extension, app

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        with self._app.app_context():
            self._extension.client.close(0.5)
        self._extension.application.close()


# --- calls ----------------------------------------------------------------------------------------


def test_a_view_calls_a_function(app: flask.Flask) -> None:
    reply = app.test_client().get("/rpc/quote?item=tea")
    assert (reply.status_code, reply.json) == (200, {"item": "tea", "total": 3})


def test_all_ways_of_calling_are_the_clients(app: flask.Flask, shop: Shop) -> None:
    extension = app.extensions["butler_mesh"]

    @app.get("/all")
    def every() -> Any:
        extension.request_nowait("shop", "/note", {"text": "noted"})
        lazy = extension.request_lazy("shop", "/quote", {"item": "a"}, timeout=3.0)
        response = extension.request("shop", "/quote", {"item": "b", "quantity": 2}, idempotent=True)
        parts = list(extension.request_stream("shop", "/ticks", {"n": 3}))
        return {"lazy": lazy.get().body["item"], "total": response.body["total"], "parts": parts}

    assert app.test_client().get("/all").json == {"lazy": "a", "total": 6, "parts": [0, 1, 2]}
    wait_for(lambda: shop.seen == ["noted"])


def test_views_share_one_connection(app: flask.Flask, mesh: Mesh) -> None:
    clients = [gevent.spawn(app.test_client().get, "/rpc/quote?item=x") for _ in range(10)]
    assert {client.get().status_code for client in clients} == {200}
    with app.app_context():
        extension = app.extensions["butler_mesh"]
        assert extension.client is extension.client


# --- failures become pages ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "code", "text"),
    [
        ("/rpc/refuse", 409, "no &lt;such&gt; colour"),
        ("/rpc/nothing", 404, "Not Found"),
        ("/rpc/quote", 422, "quote"),
        ("/rpc/fail", 500, "Internal Server Error"),
    ],
)
def test_a_failed_call_becomes_the_page_of_its_status(
    app: flask.Flask, url: str, code: int, text: str
) -> None:
    reply = app.test_client().get(url)
    assert reply.status_code == code
    assert text in reply.text
    assert "secret" not in reply.text
    assert "Traceback" not in reply.text


@pytest.mark.parametrize(
    ("code", "after", "header"),
    [(413, None, None), (429, 3.0, "3"), (503, 0.2, "1"), (502, None, None), (504, None, None)],
)
def test_faults_say_nothing_but_when_to_come_again(
    app: flask.Flask, code: int, after: float | None, header: str | None
) -> None:
    @app.get("/fails")
    def fails() -> None:
        response = ServiceResponse(code, "host db-7 is full")
        error = response.failure()
        error.retry_after_s = after
        raise error

    reply = app.test_client().get("/fails")
    assert (reply.status_code, reply.headers.get("Retry-After")) == (code, header)
    assert code < 500 or "db-7" not in reply.text


def test_an_applications_own_error_pages_are_shown(app: flask.Flask) -> None:
    app.register_error_handler(409, lambda error: (f"own page: {error.description}", 409))
    reply = app.test_client().get("/rpc/refuse")
    assert (reply.status_code, reply.text) == (409, "own page: no <such> colour")


def test_a_fault_of_the_service_is_flasks_500_with_its_log(
    app: flask.Flask, caplog: pytest.LogCaptureFixture
) -> None:
    assert app.test_client().get("/rpc/fail").status_code == 500
    assert [record.name for record in caplog.records if record.levelno == logging.ERROR][-1] == app.name
    app.testing = True
    with pytest.raises(ValueError, match="secret"):
        app.test_client().get("/rpc/fail")


# --- deadlines, traces, streams ---------------------------------------------------------------------


def test_a_call_inherits_the_web_requests_deadline_and_trace(app: flask.Flask) -> None:
    client = app.test_client()
    left = client.get("/rpc/left").json
    assert left is not None
    assert 3.0 < left <= 5.0
    assert client.get("/rpc/trace", headers={"traceparent": TRACE}).json == TRACE
    assert client.get("/rpc/trace", headers={"traceparent": "x"}).json == ""
    assert deadlines.current.get() == deadlines.NEVER


def test_what_takes_longer_than_the_web_timeout_is_a_504_and_the_service_stops(
    mesh: Mesh, shop: Shop
) -> None:
    app = flask.Flask("hurried")
    app.config.update(BUTLER_MESH_ADDRESS=mesh.endpoint, BUTLER_MESH_TIMEOUT_S=0.1)
    extension = FlaskMesh(app)
    app.add_url_rule("/", view_func=lambda: extension.rpc("shop").wait())
    with closing(extension, app):
        reply = app.test_client().get("/")
        assert (reply.status_code, "Gateway Timeout" in reply.text) == (504, True)
        wait_for(lambda: shop.stopped == ["wait"])


def test_a_view_that_does_not_end_is_stopped(mesh: Mesh) -> None:
    app = flask.Flask("endless")
    FlaskMesh(app, mesh.endpoint, timeout_s=0.05 - LAST_WORDS_S)
    ended = []

    @app.get("/")
    def endless() -> None:
        try:
            Event().wait(20.0)
        finally:
            ended.append(flask.request.path)

    assert app.test_client().get("/").status_code == 504
    assert ended == ["/"]


@pytest.mark.parametrize("with_context", [False, True])
def test_a_streamed_response_has_the_deadline_and_ends_the_call_when_it_is_left(
    app: flask.Flask, shop: Shop, with_context: bool
) -> None:
    extension = app.extensions["butler_mesh"]
    left: list[float] = []

    @app.get("/stream")
    def stream() -> Any:
        def parts() -> Iterator[str]:
            left.append(deadlines.remaining_s())
            with extension.request_stream("shop", "/endless") as stream:
                for part in stream:
                    yield f"{part}\n"

        return flask.Response(flask.stream_with_context(parts()) if with_context else parts())

    reply = app.test_client().get("/stream")
    body = reply.iter_encoded()
    assert next(iter(body)) == b"1\n"
    assert 3.0 < left[0] <= 5.0 + LAST_WORDS_S
    assert shop.stopped == []
    reply.close()
    wait_for(lambda: shop.stopped == ["endless"])


# --- an extension as Flask has them -----------------------------------------------------------------


def test_an_application_is_given_later_and_configured_by_its_config(mesh: Mesh) -> None:
    mesh.service(Shop().quote, name="vault", passphrase="secret")
    extension = FlaskMesh(timeout=3.0, address="tcp://127.0.0.1:1")
    app = flask.Flask("factory")
    app.config.update(BUTLER_MESH_ADDRESS=f"{mesh.endpoint}/vault", BUTLER_MESH_PASSPHRASE="secret")
    extension.init_app(app)
    assert app.extensions["butler_mesh"] is extension
    with closing(extension, app), app.app_context():
        assert extension.client.timeout == 3.0
        assert extension.client.service == "vault"
        assert extension.request(None, "/quote", {"item": "x"}).body == {"item": "x", "total": 3}


def test_each_application_has_its_own_client(mesh: Mesh) -> None:
    extension = FlaskMesh(address=mesh.endpoint)
    with pytest.raises(UsageError, match="0 applications"):
        _ = extension.client
    first = flask.Flask("first")
    extension.init_app(first)
    only = extension.client
    second = flask.Flask("second")
    extension.init_app(second)
    with first.app_context():
        assert extension.client is only
    with second.app_context():
        assert extension.client is not only
    with pytest.raises(UsageError, match="2 applications"):
        _ = extension.client
    with flask.Flask("stranger").app_context(), pytest.raises(UsageError, match="init_app"):
        _ = extension.client
    del second
    gc.collect()
    assert extension.client is only


def test_without_a_good_address_an_application_does_not_start() -> None:
    with pytest.raises(UsageError, match="BUTLER_MESH_ADDRESS"):
        FlaskMesh(flask.Flask("nowhere"))
    with pytest.raises(AddressError):
        FlaskMesh(flask.Flask("wrong"), "gopher://x")


# --- ServiceClientMixin ---------------------------------------------------------------------------


class Reply(ServiceMessageHandler):
    """What passes through the caller's own route."""

    def response(self) -> Any:
        return f"{self.message.get_argument('item')} costs {self.message.get_argument('total')}"


def test_a_method_view_calls_services_by_the_mixin(mesh: Mesh, shop: Shop) -> None:
    app = flask.Flask("views")
    extension = FlaskMesh(app, mesh.endpoint)
    extension.application.add_handler("^/quote$", Reply)
    address = f"{mesh.endpoint}/shop"

    class Quote(ServiceClientMixin, MethodView):
        application = extension.application

        def get(self, item: str) -> Any:
            self.register_service(address)
            request = self.create_service_request("/quote", "request", {"item": item})
            response, handled = self.send_service_request(address, request)
            response.raise_for_status()
            return {"body": response.body, "handled": handled, "path": flask.request.path}

        def post(self, item: str) -> Any:
            request = self.create_service_request("/note", "request", {"text": item})
            self.send_service_request_nowait(address, request)
            return "", 202

    app.add_url_rule("/quote/<item>", view_func=Quote.as_view("quote"))
    with closing(extension, app):
        reply = app.test_client().get("/quote/tea").json
        assert reply == {
            "body": {"item": "tea", "total": 3},
            "handled": "tea costs 3",
            "path": "/quote/tea",
        }
        assert app.test_client().post("/quote/later").status_code == 202
        wait_for(lambda: shop.seen == ["later"])
        clients = extension.application.resources["butler_mesh.clients"]
        assert list(clients) == [address]


def test_any_class_with_an_application_calls_services_by_the_mixin(mesh: Mesh, shop: Shop) -> None:
    # A framework's own application object: the clients are kept on it as an attribute.
    class Framework:
        pass

    address = f"{mesh.endpoint}/shop"

    class Page(ServiceClientMixin):
        def __init__(self, application: object) -> None:
            self.application = application

        def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
            request = self.create_service_request("/quote", "request", {"item": environ["PATH_INFO"]})
            response, handled = self.send_service_request(address, request)
            return Response(f"{response.body['item']} {handled}")(environ, start_response)

    plain, ours = Framework(), Application(handler_tuples=[("^/quote$", Reply)])
    assert WSGIClient(Page(plain)).get("/tea").text == "/tea None"
    assert WSGIClient(Page(ours)).get("/tea").text == "/tea /tea costs 3"
    ours.close()
    plain._mesh_clients.close()  # type: ignore[attr-defined]


def test_an_applications_own_handler_for_failures_stays(mesh: Mesh) -> None:
    app = flask.Flask("own")

    @app.errorhandler(RequestFailed)
    def own(error: RequestFailed) -> tuple[str, int]:
        return "own page", 418

    made = FlaskMesh(app, mesh.endpoint)

    @app.get("/")
    def page() -> None:
        made.request("nobody").raise_for_status()

    assert (app.test_client().get("/").status_code, app.test_client().get("/").text) == (418, "own page")


def test_events_are_sent_as_a_browser_reads_them(mesh: Mesh) -> None:
    stopped = Event()

    def watch() -> Iterator[dict[str, int]]:
        try:
            n = 0
            while True:
                n += 1
                yield {"n": n}
        finally:
            stopped.set()

    mesh.service(watch)
    app = flask.Flask("events")
    made = FlaskMesh(app, mesh.endpoint)

    @app.get("/")
    def page() -> flask.Response:
        return made.stream_events(made.request_stream("svc", "/watch"))

    response = app.test_client().get("/", buffered=False)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    parts = response.iter_encoded()
    assert [next(parts) for _ in range(3)][1:] == [b'data: {"n":1}\n\n', b'data: {"n":2}\n\n']
    response.close()
    assert stopped.wait(5.0)
