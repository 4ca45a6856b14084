"""A service answers the browser itself, through a real Mongrel2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import gevent
import pytest

from butler_mesh.application import Application
from butler_mesh.clock import monotonic
from butler_mesh.handlers import ServiceMessageHandler
from butler_mesh.messages import ServiceResponse
from butler_mesh.service_client import ServiceClientMixin
from butler_mesh.web.direct import MARGIN_S, DirectReplies
from butler_mesh.web.handlers import WebMessageHandler
from butler_mesh.web.handover import ANSWERED, REPLY_TO, ReplyTo
from butler_mesh.web.mongrel2 import Mongrel2Connection
from tests.meshes import Mesh, drained
from tests.waiting import wait_for
from tests.web.fronts import serving
from tests.web.mongrel2s import Mongrel2, running

TIMEOUT_S = 0.6
SECRET = "a secret of front and service"


class Site:
    """A Mongrel2, a front, and a service that may answer its browsers directly."""

    def __init__(self, server: Mongrel2, mesh: Mesh) -> None:
        self.server = server
        self.handled: list[str] = []
        self.seconds: list[float] = []
        self.came_over_the_mesh: list[ServiceResponse] = []
        site, address = self, f"{mesh.endpoint}#app"

        class Answer(DirectReplies, ServiceMessageHandler):
            fronts = {server.specs[0][1]: SECRET}  # noqa: RUF012 (set by its programmer)

            def request(self) -> Any:
                argument = self.message.get_argument
                name = argument("name")
                site.handled.append(name)
                began = monotonic()
                try:
                    gevent.sleep(float(argument("seconds", 0)))
                finally:
                    site.seconds.append(monotonic() - began)
                kind = argument("kind")
                if kind == "parts":
                    return iter([f"part of {name}"])
                if kind == "failure":
                    raise ValueError("secret")
                return f"direct {name} " + "x" * int(argument("size", 0))

        class Page(ServiceClientMixin, WebMessageHandler):
            def get(self) -> ServiceResponse:
                arguments = dict(self.message.args)
                request = self.create_service_request("/answer", "request", arguments)
                timeout = float(self.get_argument("timeout", 10))
                response = self.forward_to_service(address, request, direct=True, timeout=timeout)
                site.came_over_the_mesh.append(response)
                return response

        class Plain(WebMessageHandler):
            def get(self) -> str:
                return f"plain {self.get_argument('name')}"

        self.routes: list[tuple[str, Any]] = [("^/direct$", Page), ("^/plain$", Plain)]
        self.service = mesh.application([("^/answer$", Answer)])
        self.connection = Mongrel2Connection(*server.specs[0], hand_over_secret=SECRET)
        self.application = Application(self.connection, self.routes, grace_s=0.05)
        self.application.start()
        wait_for(lambda: self.connection.is_connected, 10.0)

    def talk(self, *paths: str) -> bytes:
        """Send requests ahead on one connection; return all that comes until its end."""
        sock = self.server.dial()
        try:
            sock.sendall(b"".join(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode() for path in paths))
            received = b""
            while data := sock.recv(65536):
                received += data
            return received
        finally:
            sock.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongrel2]:
    with running(tmp_path_factory.mktemp("mongrel2")) as started:
        yield started


@contextmanager
def opened(server: Mongrel2) -> Iterator[Site]:
    with Mesh() as mesh:
        site = Site(server, mesh)
        try:
            yield site
            wait_for(lambda: drained(mesh.router.status(), "app"))
        finally:
            site.application.close()


@pytest.fixture
def site(server: Mongrel2) -> Iterator[Site]:
    with opened(server) as made:
        yield made


def statuses(received: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d\d\d) ", received)]


def test_the_service_answers_and_closes_the_connection(site: Site) -> None:
    received = site.talk("/direct?name=a")
    assert statuses(received) == [200]
    assert received.endswith(b"direct a ")
    assert b"\r\nConnection: close\r\n" in received
    assert b"\r\nContent-Length: 9\r\n" in received
    (reply,) = wait_for(lambda: site.came_over_the_mesh)  # it comes on another way
    assert reply.headers == {ANSWERED: "1"}
    assert reply.body is None


def test_a_connection_that_was_handed_over_carries_no_other_request(site: Site) -> None:
    received = site.talk("/direct?name=a&seconds=0.1", "/plain?name=b")
    assert statuses(received) == [200]
    assert b"direct a" in received
    assert b"plain" not in received


def test_what_was_sent_ahead_of_it_is_answered_first(site: Site) -> None:
    received = site.talk("/plain?name=b", "/direct?name=a", "/plain?name=c")
    assert statuses(received) == [200, 200]
    assert received.index(b"plain b") < received.index(b"direct a")
    assert b"plain c" not in received


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("kind=parts", 200, b"part of a"),
        ("kind=failure", 500, b"Internal Server Error"),
        ("size=200000", 200, b"xxx"),
        ("seconds=3&timeout=0.2", 504, b"Deadline Exceeded"),
    ],
)
def test_what_cannot_go_directly_goes_through_the_front_and_closes_too(
    site: Site, query: str, status: int, text: bytes
) -> None:
    received = site.talk(f"/direct?name=a&{query}")
    assert statuses(received) == [status]
    assert text in received
    assert b"\r\nConnection: close\r\n" in received
    assert b"secret" not in received
    assert ANSWERED not in site.came_over_the_mesh[0].headers


def test_a_front_that_is_not_among_the_services_gets_the_reply_itself(site: Site, mesh: Mesh) -> None:
    class Answer(DirectReplies, ServiceMessageHandler):
        fronts = {"tcp://127.0.0.1:1": SECRET}  # noqa: RUF012

        def request(self) -> str:
            return "through the front"

    mesh.application([("^/answer$", Answer)], service="other")
    reply_to = ReplyTo(site.server.specs[0][1], "x", "1", "GET", "HTTP/1.1", 1000).header(SECRET)
    response = mesh.client().request("other", "/answer", headers={REPLY_TO: reply_to})
    assert (response.status_code, response.body) == (200, "through the front")


def test_behind_another_front_the_reply_takes_the_usual_way(mesh: Mesh) -> None:
    class Answer(DirectReplies, ServiceMessageHandler):
        fronts = {"tcp://127.0.0.1:1": SECRET}  # noqa: RUF012

        def request(self) -> str:
            return "hello"

    class Page(ServiceClientMixin, WebMessageHandler):
        def get(self) -> ServiceResponse:
            request = self.create_service_request("/answer")
            return self.forward_to_service(f"{mesh.endpoint}#app", request, direct=True)

    mesh.application([("^/answer$", Answer)])
    with serving([("^/$", Page)]) as front:
        reply = front.get("/")
        assert (reply.status, reply.text) == (200, "hello")


def test_a_service_cannot_claim_an_answer_that_it_was_not_asked_for(site: Site, mesh: Mesh) -> None:
    class Liar(ServiceMessageHandler):
        def request(self) -> Any:
            self.set_status(200)
            self.headers = {ANSWERED: "1"}
            return self.render("a lie")

    class Page(ServiceClientMixin, WebMessageHandler):
        def get(self) -> ServiceResponse:
            return self.forward_to_service(f"{mesh.endpoint}#liar", self.create_service_request("/answer"))

    mesh.application([("^/answer$", Liar)], service="liar")
    site.application.add_handler("^/lie$", Page)
    assert site.server.get("/lie").text == "a lie"


@pytest.mark.slow
def test_no_race_lets_one_answer_be_taken_for_another(site: Site) -> None:
    """Services that answer at about the deadline, where the front's 504 comes."""
    random, outcomes = Random(1), []

    def browse(number: int) -> None:
        seconds = random.uniform(TIMEOUT_S - 2.5 * MARGIN_S, TIMEOUT_S + MARGIN_S)
        for turn in range(3):
            name = f"{number}-{turn}"
            received = site.talk(
                f"/direct?name={name}&seconds={seconds}&timeout={TIMEOUT_S}", f"/plain?name=next-{name}"
            )
            # Exactly one answer, and its own; then the end.
            assert len(statuses(received)) == 1, received
            if statuses(received) == [200]:
                assert b"direct %b " % name.encode() in received
            else:
                assert statuses(received) == [504]
            assert b"plain" not in received
            outcomes.append(statuses(received)[0])
            # What it asks next is on another connection, and answered for what it is.
            assert site.server.get(f"/plain?name=after-{name}").text == f"plain after-{name}"

    browsers = [gevent.spawn(browse, number) for number in range(40)]
    gevent.joinall(browsers, timeout=60.0, raise_error=True)
    assert len(outcomes) == 120
    assert set(outcomes) == {200, 504}


def test_the_service_stops_before_the_front_gives_up(site: Site) -> None:
    assert statuses(site.talk(f"/direct?name=a&seconds=9&timeout={TIMEOUT_S}")) == [504]
    assert site.seconds[0] <= TIMEOUT_S - MARGIN_S + 0.05


def test_a_browser_that_leaves_stops_the_service(site: Site) -> None:
    sock = site.server.dial()
    sock.sendall(b"GET /direct?name=a&seconds=9 HTTP/1.1\r\nHost: x\r\n\r\n")
    wait_for(lambda: site.handled)
    sock.close()
    wait_for(lambda: site.seconds)
    assert site.seconds[0] < 5.0
