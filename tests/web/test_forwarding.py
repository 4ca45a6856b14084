"""A service answers the browser, through the front end."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import IncompleteRead
from typing import Any

import gevent
import pytest
from gevent.event import Event

from butler_mesh.clock import monotonic
from butler_mesh.errors import Stopped, UsageError
from butler_mesh.handlers import ServiceMessageHandler
from butler_mesh.messages import ServiceRequest, ServiceResponse
from butler_mesh.service_client import ServiceClientMixin
from butler_mesh.web.forwarding import http_response
from butler_mesh.web.handlers import WebMessageHandler
from butler_mesh.web.handover import ANSWERED, REPLY_TO
from tests.meshes import Mesh, drained
from tests.waiting import wait_for
from tests.web.fronts import made, serving


def page(address: str, *, path: str | None = "/answer", **options: Any) -> type[WebMessageHandler]:
    """Return a handler that forwards everything; ``path`` None forwards the request as it is."""

    class Page(ServiceClientMixin, WebMessageHandler):
        def get(self) -> ServiceResponse:
            request = None if path is None else self.create_service_request(path)
            return self.forward_to_service(address, request, **options)

        post = put = get

    return Page


@pytest.mark.parametrize(
    ("body", "content_type", "sent"),
    [
        (None, "text/html; charset=utf-8", b""),
        ("grüß dich", "text/html; charset=utf-8", "grüß dich".encode()),
        (b"\x89PNG", "text/html; charset=utf-8", b"\x89PNG"),
        ([b"a", b"b"], "text/html; charset=utf-8", b"ab"),
        ({"a": 1}, "application/json", b'{"a":1}'),
        ([1, 2], "application/json", b"[1,2]"),
        (False, "application/json", b"false"),
        (iter([b"a", "b", {"c": 1}]), "text/html; charset=utf-8", b'ab{"c":1}\n'),
    ],
)
def test_a_body_is_what_a_web_handler_would_make_of_it(body: Any, content_type: str, sent: bytes) -> None:
    reply = http_response(ServiceResponse(201, body=body))
    assert (reply.status_code, reply.headers["Content-Type"]) == (201, content_type)
    assert b"".join(reply.iter_encoded()) == sent


def test_headers_are_the_services_but_for_those_of_the_connection() -> None:
    headers: dict[str, Any] = {
        "content-type": "image/png",
        "Set-Cookie": ["a=1", "b=2"],
        "Content-Length": "7",
        "Transfer-Encoding": "chunked",
        "Connection": "upgrade",
        "METHOD": "response",
        "X-Number": 3,
    }
    reply = http_response(ServiceResponse(body=b"png", headers=headers))
    assert dict(reply.headers) == {
        "content-type": "image/png",
        "Content-Length": "3",
        "Set-Cookie": "a=1",
        "X-Number": "3",
    }
    assert reply.headers.getlist("Set-Cookie") == ["a=1", "b=2"]


def test_a_header_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="newline"):
        http_response(ServiceResponse(headers={"X-A": "b\r\nSet-Cookie: c=d"}))


def test_the_services_answer_is_the_browsers(mesh: Mesh) -> None:
    class Answer(ServiceMessageHandler):
        def request(self) -> ServiceResponse:
            self.set_status(203, "made elsewhere")
            self.headers = {"Content-Type": "text/plain", "X-Made-By": "service"}
            return self.render("hello")

    mesh.application([("^/answer$", Answer)])
    with serving([("^/$", page(f"{mesh.endpoint}#app"))]) as front:
        reply = front.get("/")
        assert (reply.status, reply.text) == (203, "hello")
        assert reply.headers["Content-Type"] == "text/plain"
        assert reply.headers["X-Made-By"] == "service"


def test_a_request_is_forwarded_as_it_is(mesh: Mesh) -> None:
    class Answer(ServiceMessageHandler):
        def post(self) -> dict[str, Any]:
            message = self.message
            names = ("x-mine", "content-type", "host", "content-length", "connection")
            return {
                "path": message.path,
                "arguments": message.arguments,
                "headers": {name: message.headers[name] for name in names if name in message.headers},
                "body": message.raw_body,
            }

    mesh.application([("^/a/b$", Answer)])
    with serving([("^/a/b$", page(f"{mesh.endpoint}#app", path=None))]) as front:
        reply = front.request(
            "POST", "/a/b?n=1&n=2&m=3", '{"c": [4]}', X_Mine="yes", Content_Type="application/json"
        ).json
        assert reply["path"] == "/a/b"
        assert reply["arguments"] == {"n": ["1", "2"], "m": "3"}
        assert reply["body"] == {"c": [4]}
        assert reply["headers"].pop("host").startswith("127.0.0.1")
        assert reply["headers"] == {"x-mine": "yes", "content-type": "application/json"}
        form = front.request(
            "POST", "/a/b?n=1", "n=2&k=v", Content_Type="application/x-www-form-urlencoded"
        ).json
        assert (form["arguments"], form["body"]) == ({"n": ["1", "2"], "k": "v"}, None)


def test_bytes_stay_bytes() -> None:
    request = made("/x", "PUT", data=b"\xff\x00", content_type="image/png").to_service_request("/y")
    assert (request.path, request.method, request.body) == ("/y", "put", b"\xff\x00")


@pytest.mark.parametrize(
    ("failure", "status", "text"),
    [
        (lambda: ServiceResponse(404, "no such picture"), 404, "no such picture"),
        (lambda: ServiceResponse(503, "the disk is full"), 503, "Service Unavailable"),
        (lambda: ServiceResponse(409, body={"taken": True}), 409, '{"taken":true}'),
        (lambda: 1 / 0, 500, "Internal Server Error"),
    ],
)
def test_what_the_service_fails_with_is_the_page(mesh: Mesh, failure: Any, status: int, text: str) -> None:
    class Answer(ServiceMessageHandler):
        def request(self) -> Any:
            return failure()

    mesh.application([("^/answer$", Answer)])
    with serving([("^/$", page(f"{mesh.endpoint}#app"))]) as front:
        reply = front.get("/")
        assert reply.status == status
        assert text in reply.text
        assert "disk" not in reply.text
        assert "ZeroDivision" not in reply.text


def test_an_unknown_service_is_404_and_a_silent_one_504(mesh: Mesh) -> None:
    stopped = Event()

    def answer() -> None:
        try:
            gevent.sleep(30)
        except Stopped:
            stopped.set()
            raise

    mesh.service(answer)
    routes = [
        ("^/none$", page(f"{mesh.endpoint}#nobody")),
        ("^/slow$", page(f"{mesh.endpoint}#svc", timeout=0.2)),
    ]
    with serving(routes) as front:
        assert front.get("/none").status == 404
        assert front.get("/slow").status == 504
        assert stopped.wait(5.0)


def test_parts_flow_and_leaving_stops_the_service(mesh: Mesh) -> None:
    went_on, stopped = Event(), Event()

    def answer() -> Iterator[str]:
        try:
            yield "first"
            went_on.wait(10.0)
            yield "second"
            while True:
                gevent.sleep(0.01)
                yield "more"
        finally:
            stopped.set()

    mesh.service(answer)
    with serving([("^/$", page(f"{mesh.endpoint}#svc"))]) as front:
        client = front.client()
        client.request("GET", "/")
        response = client.getresponse()
        assert response.read(5) == b"first"
        went_on.set()
        assert response.read(6) == b"second"
        response.close()
        client.close()
        assert stopped.wait(5.0)
        wait_for(lambda: drained(mesh.router.status()))


def test_a_stream_that_fails_in_the_middle_is_cut(mesh: Mesh) -> None:
    def answer() -> Iterator[str]:
        yield "first"
        raise ValueError("secret")

    mesh.service(answer)
    with serving([("^/$", page(f"{mesh.endpoint}#svc"))]) as front:
        client = front.client()
        client.request("GET", "/")
        response = client.getresponse()
        with pytest.raises(IncompleteRead) as raised:
            response.read()
        assert raised.value.partial in (b"", b"first")
        client.close()
        assert front.get("/nowhere").status == 404


def test_without_a_web_request_there_is_nothing_to_forward() -> None:
    class Anything(ServiceClientMixin):
        application = None

    with pytest.raises(UsageError, match=r"self\.message"):
        Anything().forward_to_service("memory://nowhere#svc")


def test_any_class_may_forward_a_request_it_makes(mesh: Mesh) -> None:
    class Anything(ServiceClientMixin):
        application = None

    mesh.service(named("answer", lambda: "hello"), name="other")
    response = Anything().forward_to_service(f"{mesh.endpoint}#other", ServiceRequest("/answer"))
    assert (response.status_code, response.body) == (200, "hello")


def named(name: str, function: Any) -> Any:
    function.__name__ = name
    return function


def test_the_fronts_headers_are_added_where_the_service_says_nothing(mesh: Mesh) -> None:
    class Answer(ServiceMessageHandler):
        def request(self) -> ServiceResponse:
            self.set_status(200)
            self.headers = {"X-Both": "service"}
            return self.render("hello")

    class Page(ServiceClientMixin, WebMessageHandler):
        def get(self) -> ServiceResponse:
            self.headers = {"X-Both": "front", "X-Frame-Options": "DENY"}
            self.set_cookie("seen", "1")
            return self.forward_to_service(f"{mesh.endpoint}#app", self.create_service_request("/answer"))

    mesh.application([("^/answer$", Answer)])
    with serving([("^/$", Page)]) as front:
        headers = front.get("/").headers
        assert (headers["X-Both"], headers["X-Frame-Options"]) == ("service", "DENY")
        assert headers["Set-Cookie"].startswith("seen=1")


def test_a_failure_that_says_nothing_but_its_status_is_the_fronts_page(mesh: Mesh) -> None:
    class Answer(ServiceMessageHandler):
        def request(self) -> ServiceResponse:
            self.set_status(404, "no such picture")
            return self.render()

    mesh.application([("^/answer$", Answer)])
    with serving([("^/$", page(f"{mesh.endpoint}#app"))]) as front:
        reply = front.get("/")
        assert reply.status == 404
        assert "no such picture" in reply.text
        assert reply.headers["Content-Type"].startswith("text/html")


def test_the_deadline_is_the_web_requests_and_not_the_clients_own(mesh: Mesh) -> None:
    left: list[float] = []

    class Answer(ServiceMessageHandler):
        def request(self) -> str:
            left.append(self.message.deadline - monotonic())
            return ""

    mesh.application([("^/answer$", Answer)])
    for timeout_s in (7.0, 100.0):
        with serving([("^/$", page(f"{mesh.endpoint}#app"))], timeout_s=timeout_s) as front:
            assert front.get("/").status == 200
    assert 5.0 < left[0] <= 7.0
    assert 90.0 < left[1] <= 100.0


def test_the_meshs_own_headers_come_neither_from_browsers_nor_to_them(mesh: Mesh) -> None:
    seen: list[Any] = []

    class Answer(ServiceMessageHandler):
        def get(self) -> ServiceResponse:
            seen.append(dict(self.message.headers))
            self.set_status(200)
            self.headers = {ANSWERED: "1", "X-A": "b"}
            return self.render("hello")

    mesh.application([("^/a$", Answer)])
    with serving([("^/a$", page(f"{mesh.endpoint}#app", path=None))]) as front:
        reply = front.get("/a", Butler_Mesh_Reply_To="[]", X_Mine="yes")
        assert (reply.status, reply.text) == (200, "hello")
        assert "X-A" in reply.headers
        assert not [name for name in reply.headers if name.lower().startswith("butler-mesh-")]
    assert seen[0]["x-mine"] == "yes"
    assert REPLY_TO not in seen[0]


def test_a_request_that_was_forwarded_is_as_it_was(mesh: Mesh) -> None:
    class Message:
        def hand_over(self) -> dict[str, str]:
            return {REPLY_TO: "this browser"}

    class Anything(ServiceClientMixin):
        application = None
        message = Message()

    mesh.service(named("answer", lambda: "hello"))
    request = ServiceRequest("/answer", headers={"x-a": "b"})
    assert Anything().forward_to_service(f"{mesh.endpoint}#svc", request, direct=True).body == "hello"
    assert request.headers == {"x-a": "b"}
