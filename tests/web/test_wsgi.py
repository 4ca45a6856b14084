"""WSGI: an application over HTTP, on real sockets."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from werkzeug.test import Client as WSGIClient
from werkzeug.test import run_wsgi_app

from butler_mesh import deadlines, tracing
from butler_mesh.application import Application
from butler_mesh.clock import monotonic
from butler_mesh.errors import AddressError, AddressInUse, BadRequest, Stopped, UsageError
from butler_mesh.handlers import ServiceMessageHandler
from butler_mesh.service_client import ServiceClientMixin
from butler_mesh.web.handlers import WebMessageHandler
from butler_mesh.web.scope import Scope
from butler_mesh.web.server import Server
from butler_mesh.web.templating import load_jinja2_env
from butler_mesh.web.wsgi import StreamedBody, WSGIConnection, bounded, wsgi_app
from tests.meshes import Mesh
from tests.waiting import wait_for
from tests.web.fronts import made, serving

note: ContextVar[str] = ContextVar("note", default="unset")


class Page(WebMessageHandler):
    """One page, and failures."""

    def get(self) -> str:
        return "page"

    def put(self) -> None:
        raise BadRequest("no <room>", status=409)

    def delete(self) -> None:
        raise ValueError("secret")


# --- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "code", "text"),
    [
        ("GET", "/", 200, "page"),
        ("GET", "/?a=b", 200, "page"),
        ("HEAD", "/", 200, ""),
        ("GET", "/nowhere<b>", 404, "no such path: /nowhere&lt;b&gt;"),
        ("GET", "/a/../%2e%2e/b", 404, "no such path"),
        ("GET", "/gr%C3%BC%C3%9F%20dich", 404, "grüß dich"),
        ("GET", "/%ff%00", 404, "no such path"),
        ("POST", "/", 405, "Method Not Allowed"),
        ("RESPONSE", "/", 405, "Method Not Allowed"),
        ("REQUEST", "/", 405, "Method Not Allowed"),
        ("PUT", "/", 409, "no &lt;room&gt;"),
        ("DELETE", "/", 500, "Internal Server Error"),
    ],
)
def test_a_request_gets_its_page(method: str, path: str, code: int, text: str) -> None:
    with serving([("^/$", Page)]) as front:
        reply = front.request(method, path)
        assert reply.status == code
        assert text in reply.text
        assert "secret" not in reply.text
        assert front.get("/").text == "page"


def test_a_405_lists_the_methods_that_are() -> None:
    with serving([("^/$", Page)]) as front:
        assert front.request("POST", "/").headers["Allow"] == "GET, HEAD, PUT, DELETE, OPTIONS"


def test_head_has_the_length_of_the_page_and_no_page() -> None:
    with serving([("^/$", Page)]) as front:
        reply = front.request("HEAD", "/")
        assert (reply.headers["Content-Length"], reply.body) == ("4", b"")


@pytest.mark.parametrize("code", [204, 304])
def test_a_reply_without_body_leaves_the_connection_in_order(code: int) -> None:
    class Empty(WebMessageHandler):
        def get(self) -> str:
            self.set_status(code)
            return "never sent"

    with serving([("^/$", Empty)]) as front:
        client = front.client()
        for _ in range(2):
            client.request("GET", "/")
            response = client.getresponse()
            assert (response.status, response.read()) == (code, b"")
        client.close()


def test_a_body_over_the_maximum_is_a_413_also_for_paths_that_are_not() -> None:
    with serving([("^/$", Page)], max_body_bytes=10) as front:
        assert front.request("PUT", "/", b"x" * 10).status == 409
        assert front.request("PUT", "/", b"x" * 11).status == 413
        assert front.request("PUT", "/nowhere", b"x" * 11).status == 413


def test_errors_have_the_applications_own_template(tmp_path: Path) -> None:
    tmp_path.joinpath("error.html").write_text("our {{ code }}: {{ message }}")
    with serving([("^/$", Page)], template_loader=load_jinja2_env(tmp_path)) as front:
        assert front.get("/<a>").text == "our 404: no such path: /&lt;a&gt;"


def test_a_handler_that_cannot_be_made_is_a_500() -> None:
    class Broken(WebMessageHandler):
        def __init__(self, application: Any, message: Any) -> None:
            raise ValueError("secret")

    with serving([("^/$", Broken)]) as front:
        reply = front.get("/")
        assert reply.status == 500
        assert "secret" not in reply.text


def test_an_error_page_that_fails_is_replaced_by_a_plain_one() -> None:
    class Broken(Page):
        def render_error(self, code: int, message: str = "") -> Any:
            raise ValueError("secret")

    with serving([("^/$", Broken)]) as front:
        reply = front.request("PUT", "/")
        assert reply.status == 500
        assert "secret" not in reply.text


# --- context and deadlines ----------------------------------------------------------------------


def test_each_request_has_a_context_of_its_own_that_begins_as_the_servers() -> None:
    class Noting(WebMessageHandler):
        def get(self) -> str:
            before = note.get()
            note.set("changed")
            return before

    def check() -> None:
        note.set("set at start")
        with serving([("^/$", Noting)]) as front:
            client = front.client()
            for _ in range(2):
                client.request("GET", "/")
                assert client.getresponse().read() == b"set at start"
            client.close()

    copy_context().run(check)


def test_a_request_has_a_deadline_that_its_calls_inherit() -> None:
    seen: list[float] = []

    class Asking(WebMessageHandler):
        def get(self) -> str:
            seen.extend([deadlines.current.get(), self.message.deadline])
            return ""

    with serving([("^/$", Asking)], timeout_s=7.0) as front:
        front.get("/")
    assert seen[0] == seen[1]
    assert 6.0 < seen[0] - monotonic() <= 7.0


def test_a_handler_is_stopped_when_its_deadline_passes_whatever_it_catches() -> None:
    ends: list[str] = []

    class Endless(WebMessageHandler):
        def get(self) -> str:
            try:
                gevent.sleep(10.0)
            except Exception:
                ends.append("caught")
            finally:
                ends.append("cleaned up")
            return "never"

    with serving([("^/$", Endless)], timeout_s=0.02) as front:
        assert front.get("/").status == 504
    assert ends == ["cleaned up"]


def test_a_handler_that_stops_itself_is_answered_for() -> None:
    class Stopping(WebMessageHandler):
        def get(self) -> str:
            raise Stopped(503, "no more")

    with serving([("^/$", Stopping)]) as front:
        assert front.get("/").status == 503


@pytest.mark.parametrize(
    ("header", "trace"),
    [("00-" + "a" * 32 + "-" + "b" * 16 + "-01", True), ("nonsense", False), ("00-é", False)],
)
def test_the_trace_of_a_request_goes_on_if_it_is_one(header: str, trace: bool) -> None:
    class Tracing(WebMessageHandler):
        def get(self) -> str:
            return tracing.current.get()

    with serving([("^/$", Tracing)]) as front:
        assert front.get("/", traceparent=header).text == (header if trace else "")


def test_a_request_that_waits_does_not_keep_others_waiting() -> None:
    class Waiting(WebMessageHandler):
        def get(self) -> str:
            gevent.sleep(0.2)
            return "waited"

    with serving([("^/wait$", Waiting), ("^/$", Page)]) as front:
        waiting = gevent.spawn(front.get, "/wait")
        for _ in range(20):
            assert front.get("/").text == "page"
        assert not waiting.ready()
        assert waiting.get(timeout=5.0).text == "waited"


# --- the mesh behind it -------------------------------------------------------------------------


class Echo(ServiceMessageHandler):
    """A service."""

    def request(self) -> Any:
        self.set_status(200, "back")
        self.add_to_payload("RETURN_DATA", self.message.get_argument("RETURN_DATA"))
        return self.render()


def test_a_page_asks_a_service_waiting_or_not(mesh: Mesh) -> None:
    mesh.application([("^/echo$", Echo)], "echo")
    address = f"{mesh.endpoint}/echo"
    replies: list[Any] = []

    class Sync(ServiceClientMixin, WebMessageHandler):
        def get(self) -> Any:
            self.register_service(address)
            request = self.create_service_request("/echo", "request", {"RETURN_DATA": self.get_argument("a")})
            response, handled = self.send_service_request(address, request)
            return [response.status_code, response.body["RETURN_DATA"], handled.body]

    class Nowait(Sync):
        def get(self) -> str:
            request = self.create_service_request("/echo", "request", {"RETURN_DATA": self.get_argument("a")})
            self.send_service_request_nowait(address, request)
            return "gone"

    class Reply(ServiceMessageHandler):
        def response(self) -> Any:
            replies.append((self.status_code, self.status_msg, self.message.get_argument("RETURN_DATA")))
            self.add_to_payload("seen", len(replies))
            return self.render()

    with serving([("^/echo$", Reply), ("^/sync$", Sync), ("^/nowait$", Nowait)]) as front:
        assert front.get("/sync?a=1").json == [200, "1", {"seen": 1}]
        assert front.get("/nowait?a=2").text == "gone"
        wait_for(lambda: len(replies) == 2)
        assert front.get("/echo").status == 404  # the route of replies is not for browsers
    assert replies == [(200, "back", "1"), (200, "back", "2")]


def test_a_call_ends_with_the_page_that_made_it(mesh: Mesh) -> None:
    class Never(ServiceMessageHandler):
        def request(self) -> None:
            gevent.sleep(10.0)

    mesh.application([("^/never$", Never)], "never")

    class Calling(ServiceClientMixin, WebMessageHandler):
        def get(self) -> Any:
            address = f"{mesh.endpoint}/never"
            response, _ = self.send_service_request(address, self.create_service_request("/never"))
            response.raise_for_status()

    with serving([("^/$", Calling)], timeout_s=0.1) as front:
        assert front.get("/").status == 504


# --- life ---------------------------------------------------------------------------------------


def test_a_taken_port_is_told_in_one_sentence() -> None:
    with serving([("^/$", Page)]) as front:
        second = WSGIConnection(port=front.connection.port)
        with pytest.raises(AddressInUse, match=rf"^http://127\.0\.0\.1:{second.port}/ is in use"):
            second.start(Application())


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(AddressError, match=str(port)):
        WSGIConnection(port=port)


@pytest.mark.parametrize("host", ["192.0.2.1", "not a host"])
def test_a_host_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(AddressError, match="cannot listen on http://"):
        WSGIConnection(host, 0).start(Application())


def test_an_ipv6_host_is_written_in_brackets() -> None:
    assert WSGIConnection("::1", 80).url == "http://[::1]:80/"


def test_one_connection_serves_one_application_at_a_time_and_may_start_again() -> None:
    connection = WSGIConnection(port=0)
    application = Application(connection, [("^/$", Page)], grace_s=0.05)
    application.start()
    with pytest.raises(UsageError, match="already"):
        application.start()
    first = connection.port
    assert first
    application.close()
    application.start()
    assert connection.port
    application.close()


def test_a_closed_port_can_be_taken_at_once() -> None:
    with serving([("^/$", Page)]) as front:
        port = front.connection.port
        assert front.get("/").status == 200
    again = WSGIConnection(port=port)
    again.start(Application())
    again.close(0.0)


def test_the_sockets_are_not_inherited_by_programs_that_handlers_start() -> None:
    with serving([("^/$", Page)]) as front, front.dial():
        sockets = [n for n in map(int, os.listdir("/proc/self/fd")) if is_socket(n)]
        assert sockets
        assert not [n for n in sockets if os.get_inheritable(n)]


def is_socket(number: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:  # what listed them is closed again
        return False


def test_any_wsgi_server_can_serve_an_application() -> None:
    app = wsgi_app(Application(handler_tuples=[("^/$", Page)]), timeout_s=5.0)
    client = WSGIClient(app)
    assert client.get("/").text == "page"
    assert client.get("/nowhere").status_code == 404
    assert client.delete("/").status_code == 500


# --- streams: what the server may do with them --------------------------------------------------


class Parts:
    """Parts that count how often they are let go of."""

    def __init__(self, *parts: Any) -> None:
        self._parts = iter(parts)
        self.closed = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        part = next(self._parts)
        if isinstance(part, BaseException):
            raise part
        return part

    def close(self) -> None:
        self.closed += 1


def streaming(parts: Parts, closed: list[str], **headers: str) -> Application:
    class Streaming(WebMessageHandler):
        def get(self) -> Any:
            self.message.close = lambda: closed.append("request")  # type: ignore[method-assign]
            self.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
            response = self.stream(parts)
            response.call_on_close(lambda: closed.append("response"))
            return response

    return Application(handler_tuples=[("^/$", Streaming)])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_streamed_page_lets_go_of_its_parts_and_its_request(method: str) -> None:
    parts, closed = Parts("a", "b"), list[str]()
    app_iter, _, _ = run_wsgi_app(wsgi_app(streaming(parts, closed)), made("/", method).environ)
    assert b"".join(app_iter) == (b"ab" if method == "GET" else b"")
    app_iter.close()  # type: ignore[attr-defined]  # as servers do
    assert (parts.closed, sorted(closed)) == (1, ["request", "response"])


def test_a_page_whose_first_part_fails_lets_go_of_its_parts() -> None:
    parts, closed = Parts(BadRequest("no room", status=409)), list[str]()
    reply = WSGIClient(wsgi_app(streaming(parts, closed))).get("/")
    assert reply.status_code == 409
    reply.close()
    assert (parts.closed, closed) == (1, ["response", "request"])


def test_a_page_whose_head_no_server_takes_lets_go_of_its_parts() -> None:
    def refuse(line: str, headers: Any, error: Any = None) -> Any:
        raise ValueError("not a head")

    parts, closed = Parts("a", "b"), list[str]()
    with pytest.raises(ValueError, match="not a head"):
        wsgi_app(streaming(parts, closed))(made().environ, refuse)
    assert (parts.closed, closed) == (1, ["response", "request"])


def test_a_body_is_closed_once() -> None:
    parts = Parts(b"a")
    body = StreamedBody(Scope({}, 1.0), "/", parts, parts)
    body.close()
    body.close()
    assert parts.closed == 1


def test_a_body_that_fails_is_a_connection_that_broke() -> None:
    parts = Parts(b"a", ValueError("x"))
    body = StreamedBody(Scope({}, 1.0), "/", parts, parts)
    assert next(body) == b"a"
    with pytest.raises(ConnectionResetError):
        next(body)


# --- other WSGI applications, bounded -----------------------------------------------------------


@contextmanager
def bounding(app: Any, timeout_s: float) -> Iterator[Any]:
    """Serve an application by our server; yields how to ask for its page."""
    server = Server(("127.0.0.1", 0), bounded(app, timeout_s), "localhost")
    server.start()

    def ask() -> bytes:
        with socket.create_connection(server.address, timeout=5.0) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return b"".join(iter(lambda: client.recv(65536), b""))

    try:
        yield ask
    finally:
        server.drain(0.05)


def test_an_application_that_gave_its_head_and_is_stopped_before_its_first_part_is_a_504(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        Event().wait()
        yield b"never"

    with bounding(app, 0.05) as ask:
        reply = ask()
    assert reply.startswith(b"HTTP/1.1 504 ")
    assert b"200 OK" not in reply
    assert "Traceback" not in capfd.readouterr().err


def test_an_application_is_cut_when_a_later_part_takes_too_long(capfd: pytest.CaptureFixture[str]) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        for _ in range(3):
            gevent.sleep(0.04)
            yield b"part"
        Event().wait()

    with bounding(app, 0.1) as ask:
        reply = ask()
    assert reply.count(b"part") == 3
    assert not reply.endswith(b"0\r\n\r\n")
    assert "Traceback" not in capfd.readouterr().err


def test_an_application_that_returns_all_of_it_keeps_its_length() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"all of it"]

    with bounding(app, 1.0) as ask:
        assert b"Content-Length: 9\r\n" in ask()


def test_an_application_may_name_what_it_gives_with_its_head() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        try:
            raise ValueError("of the application's own")
        except ValueError:
            start_response("500 Oops", [], exc_info=sys.exc_info())
        return [b"an error"]

    with bounding(app, 1.0) as ask:
        assert ask().startswith(b"HTTP/1.1 500 Oops")


def test_an_applications_parts_are_closed_once() -> None:
    parts = Parts(b"a", b"b")

    def app(environ: Any, start_response: Any) -> Parts:
        start_response("200 OK", [])
        return parts

    app_iter, _, _ = run_wsgi_app(bounded(app), made().environ)
    assert b"".join(app_iter) == b"ab"
    app_iter.close()  # type: ignore[attr-defined]  # as servers do
    assert parts.closed == 1


# --- a drain ------------------------------------------------------------------------------------


def test_a_request_that_arrived_before_a_drain_is_answered_whatever_it_waits_for() -> None:
    class Waiting(WebMessageHandler):
        def get(self) -> str:
            gevent.sleep(0.05)
            return "answered"

    with serving([("^/$", Waiting)], grace_s=2.0) as front:
        with front.dial() as client:
            server = front.connection._server
            assert server is not None
            wait_for(lambda: server.idle)
            # It has arrived, and the server has not seen it when it begins to drain.
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            front.connection.close(2.0)
            reply = b"".join(iter(lambda: client.recv(65536), b""))
    assert reply.startswith(b"HTTP/1.1 200 OK")
    assert reply.endswith(b"answered")


def test_a_timeout_that_a_handler_lets_out_is_its_fault_and_a_page(caplog: pytest.LogCaptureFixture) -> None:
    class Slow(WebMessageHandler):
        def get(self) -> None:
            with gevent.Timeout(0.01):
                gevent.sleep(5)

    with serving([("^/$", Slow)]) as front:
        reply = front.get("/")
        assert reply.status == 500
        assert "<h1>500 Internal Server Error</h1>" in reply.text
    assert "web-handler-failed get '/'" in caplog.text
