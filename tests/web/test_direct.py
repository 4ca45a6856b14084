"""A service answers the browser itself, through a real Mongrel2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

import gevent
import pytest
from gevent.event import Event

from butler_mesh.application import Application
from butler_mesh.clock import monotonic
from butler_mesh.errors import DeadlineExceeded
from butler_mesh.handlers import ServiceMessageHandler
from butler_mesh.messages import ServiceResponse
from butler_mesh.service_client import ServiceClientMixin
from butler_mesh.web import direct, mongrel2
from butler_mesh.web.direct import MARGIN_S, DirectReplies
from butler_mesh.web.handlers import WebMessageHandler
from butler_mesh.web.handover import ANSWERED, REPLY_TO, ReplyTo
from butler_mesh.web.mongrel2 import Browser, Mongrel2Connection
from butler_mesh.web.outlet import Outlet
from tests.meshes import Mesh, drained
from tests.waiting import wait_for
from tests.web.fronts import serving
from tests.web.mongrel2s import Mongrel2, free_ports, running
from tests.web.test_outlet import server as listening

TIMEOUT_S = 0.6
SECRET = "a secret of front and service"


class Site:
    """A Mongrel2, a front, and a service that may answer its browsers directly."""

    def __init__(self, server: Mongrel2, mesh: Mesh) -> None:
        self.server = server
        self.handled: list[str] = []
        self.seconds: list[float] = []
        self.came_over_the_mesh: list[ServiceResponse] = []
        self.pages: list[Browser] = []
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
                if kind == "late":
                    while monotonic() < self.message.deadline - MARGIN_S / 2:
                        pass  # it computes, and lets nobody stop it
                if kind == "stubborn":
                    with suppress(DeadlineExceeded):
                        gevent.sleep(30)
                if kind == "parts":
                    return iter([f"part of {name}"])
                if kind == "failure":
                    raise ValueError("secret")
                return f"direct {name} " + "x" * int(argument("size", 0))

        class Page(ServiceClientMixin, WebMessageHandler):
            def get(self) -> ServiceResponse:
                arguments = dict(self.message.args)
                site.pages.append(self.message.environ["butler_mesh.exchange"].line)
                behind = int(self.get_argument("behind", 0))
                wait_for(lambda: len(site.pages[-1].waiting) == behind)
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
        self.connection = Mongrel2Connection(
            *server.specs[0], hand_over_secret=SECRET, upload_store=server.store
        )
        self.application = Application(self.connection, self.routes, grace_s=0.05)
        self.application.start()
        wait_for(lambda: self.connection.is_connected, 10.0)

    def talk(self, *paths: str) -> bytes:
        """Send requests ahead on one connection; return all that comes until its end."""
        return self.send(b"".join(get(path) for path in paths))

    def send(self, data: bytes) -> bytes:
        """Send bytes on one connection; return all that comes until its end."""
        sock = self.server.dial()
        try:
            sock.sendall(data)
            received = b""
            while data := sock.recv(65536):
                received += data
            return received
        finally:
            sock.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongrel2]:
    with running(tmp_path_factory.mktemp("mongrel2"), limits__content_length=65536) as started:
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


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


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


def test_the_front_sends_nothing_where_the_service_has_answered(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    monkeypatch.setattr(site.connection, "reply", lambda sender, connections, data: sent.append(data))
    assert statuses(site.talk("/direct?name=a")) == [200]
    wait_for(lambda: site.came_over_the_mesh and site.pages[0].exchange is None)
    assert not sent


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


UPLOAD = b"POST /plain?name=b HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"z" * 100_000


@pytest.mark.slow
@pytest.mark.parametrize("query", ["behind=1", "seconds=0.2"], ids=["before", "after"])
@pytest.mark.parametrize("behind", [get("/plain?name=b"), UPLOAD], ids=["page", "upload"])
def test_nothing_stays_of_what_comes_behind_a_hand_over(
    server: Mongrel2, monkeypatch: pytest.MonkeyPatch, query: str, behind: bytes
) -> None:
    monkeypatch.setattr(mongrel2, "LOOK_S", 0.02)
    monkeypatch.setattr(mongrel2, "CLOSED_S", 0.1)
    with opened(server) as site:
        sending = gevent.spawn(site.send, get(f"/direct?name=a&{query}") + behind)
        wait_for(lambda: site.handled)
        # Emptied at once, not with the reply.
        assert not site.pages[0].waiting
        received = sending.get(timeout=10)
        assert statuses(received) == [200]
        assert b"plain" not in received
        assert not site.pages[0].waiting
        assert not list(server.store.iterdir())
        wait_for(lambda: not site.connection._browsers)


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("kind=parts", 200, b"part of a"),
        ("kind=failure", 500, b"Internal Server Error"),
        ("size=200000", 200, b"xxx"),
        ("seconds=3&timeout=0.2", 504, b"Deadline Exceeded"),
        ("kind=late&timeout=0.4", 504, b"Deadline Exceeded"),
        ("kind=stubborn&timeout=0.4", 504, b"Deadline Exceeded"),
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


# --- the service's way to a server --------------------------------------------------------------


class Direct:
    """A service whose replies go to a browser at an endpoint, and a client that hands itself over."""

    def __init__(self, mesh: Mesh, endpoint: str) -> None:
        self.endpoint = endpoint
        self.began, self.release = Event(), Event()
        self.release.set()
        here = self

        class Answer(DirectReplies, ServiceMessageHandler):
            fronts = {endpoint: SECRET}  # noqa: RUF012

            def request(self) -> str:
                here.began.set()
                here.release.wait(10)
                return "the page"

        self.application = mesh.application([("^/answer$", Answer)], service="direct")
        self._client = mesh.client()

    @property
    def outlet(self) -> Outlet:
        return direct._outlet(self.application.resources, self.endpoint)

    def ask(self, secret: str = SECRET, sender: str = "sender", connection: str = "7") -> ServiceResponse:
        reply_to = ReplyTo(self.endpoint, sender, connection, "GET", "HTTP/1.1", 1000)
        return self._client.request("direct", "/answer", headers={REPLY_TO: reply_to.header(secret)})


@pytest.fixture
def service(mesh: Mesh) -> Direct:
    return Direct(mesh, f"tcp://127.0.0.1:{free_ports(1)[0]}")


def test_the_first_reply_of_a_service_goes_directly(service: Direct) -> None:
    with listening(service.endpoint) as listener:
        assert service.ask().headers == {ANSWERED: "1"}
        wait_for(lambda: listener.poll(0))
        page = listener.recv()
        assert page.startswith(b"sender 1:7, HTTP/1.1 200 ")
        assert page.endswith(b"the page")
        wait_for(lambda: listener.poll(0))
        assert listener.recv() == b"sender 1:7, "


@pytest.mark.slow
def test_a_server_that_is_not_there_is_waited_for_once(
    service: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "SUBSCRIBED_WITHIN_S", 0.4)
    took_s = []
    for _ in range(3):
        began = monotonic()
        assert service.ask().body == "the page"
        took_s.append(monotonic() - began)
    assert took_s[0] >= 0.4
    assert max(took_s[1:]) < 0.3
    # It is found, should it come later.
    with listening(service.endpoint):
        wait_for(lambda: service.ask().headers == {ANSWERED: "1"})


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_server_that_went_before_the_reply_gets_none(service: Direct, is_replaced: bool) -> None:
    """What it numbered 7 is another browser to the next."""
    service.release.clear()
    with listening(service.endpoint):
        asking = gevent.spawn(service.ask)
        assert service.began.wait(5)
        assert service.outlet.is_open
    wait_for(lambda: not service.outlet.look())
    if not is_replaced:
        service.release.set()
        assert asking.get(timeout=5).body == "the page"
    with listening(service.endpoint) as listener:
        wait_for(service.outlet.look)
        service.release.set()
        response = asking.get(timeout=5)
        assert (response.body, ANSWERED in response.headers) == ("the page", False)
        service.outlet.send(b"first")
        wait_for(lambda: listener.poll(0))
        assert listener.recv() == b"first"


def test_a_process_has_an_outlet_of_its_own(service: Direct) -> None:
    found = service.outlet
    assert service.outlet is found
    found.pid += 1  # as if it had been made before a fork
    made = service.outlet
    assert made is not found
    assert service.outlet is made
    found.close()


def test_an_outlet_is_closed_with_its_application(service: Direct) -> None:
    found = service.outlet
    service.application.close()
    assert found._socket.closed


# --- those who hand over what is not theirs -----------------------------------------------------


class Victim:
    """A browser that waits for its page, and what a forger would say to have it answered."""

    def __init__(self, site: Site) -> None:
        release = self._release = Event()

        class Page(WebMessageHandler):
            def get(self) -> str:
                release.wait(10)
                return "the victim's"

        site.application.add_handler("^/victim$", Page)
        self._waiting = gevent.spawn(site.send, get("/victim", "Connection: close"))
        ((sender, connection),) = wait_for(lambda: list(site.connection._browsers))
        endpoint = site.connection.recv_spec
        self.names = sender.decode(), connection.decode()
        self.reply_to = ReplyTo(endpoint, *self.names, "GET", "HTTP/1.1", 50_000)

    def is_unharmed(self) -> bool:
        """Tell whether it gets its own page, and nothing else."""
        self._release.set()
        received: bytes = self._waiting.get(timeout=5)
        return statuses(received) == [200] and received.endswith(b"\r\n\r\nthe victim's")


FORGED = ("Butler-Mesh-Reply-To", "butler-mesh-reply-to", "Butler_Mesh_Reply_To")


@pytest.mark.parametrize("way", ["plain", "direct", "own server"])
@pytest.mark.parametrize("secret", [SECRET, "a guess"])
def test_a_browser_cannot_hand_over_another(site: Site, mesh: Mesh, way: str, secret: str) -> None:
    """Not even one that has seen a signature: what is the mesh's own is taken off what it sends."""
    endpoint, seen = site.connection.recv_spec, []

    class Answer(DirectReplies, ServiceMessageHandler):
        fronts = {endpoint: SECRET}  # noqa: RUF012

        def get(self) -> str:
            seen.append({name.lower(): value for name, value in self.message.headers.items()})
            return "the forger's"

    class Page(ServiceClientMixin, WebMessageHandler):
        def get(self) -> ServiceResponse:
            assert REPLY_TO not in self.message.to_service_request().headers
            return self.forward_to_service(f"{mesh.endpoint}#forged", direct=way != "plain")

    mesh.application([("^/forged$", Answer)], service="forged")
    victim = Victim(site)
    forged = [f"{name}: {victim.reply_to.header(secret)}" for name in FORGED]
    request = get("/forged", "X-Other: kept", "Connection: close", *forged)
    if way == "own server":
        with serving([("^/forged$", Page)]) as front, front.dial() as sock:
            sock.sendall(request)
            received = b""
            while data := sock.recv(65536):
                received += data
    else:
        site.application.add_handler("^/forged$", Page)
        received = site.send(request)
    assert statuses(received) == [200]
    assert received.endswith(b"the forger's")
    (headers,) = seen
    assert headers["x-other"] == "kept"
    if way == "direct":
        # Its own front has handed over the forger itself.
        reply_to = ReplyTo.of(headers, {endpoint: SECRET})
        assert reply_to is not None
        assert reply_to.connection != victim.reply_to.connection
    else:
        assert REPLY_TO not in headers
    assert victim.is_unharmed()


def test_a_client_of_the_mesh_cannot_hand_over_another_without_the_secret(site: Site, mesh: Mesh) -> None:
    victim = Victim(site)
    service = Direct(mesh, site.connection.recv_spec)
    for secret in ("a guess", ""):
        response = service.ask(secret, *victim.names)
        assert (response.body, ANSWERED in response.headers) == ("the page", False)
    assert victim.is_unharmed()
