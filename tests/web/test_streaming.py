"""Streamed pages: parts and Server-Sent Events, from a service to the browser, on both fronts."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from inspect import GEN_CLOSED, getgeneratorstate
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event as Signal

from butler_mesh import deadlines
from butler_mesh.application import Application
from butler_mesh.client import Client
from butler_mesh.errors import NotFound, RequestFailed, Stopped, UsageError
from butler_mesh.web.handlers import EVENTS, WebMessageHandler
from butler_mesh.web.mongrel2 import Mongrel2Connection
from butler_mesh.web.streaming import Event, Events, encoded, events
from tests.meshes import Mesh, drained
from tests.waiting import wait_for
from tests.web.fronts import Front, serving
from tests.web.mongrel2s import Mongrel2, running

PART = bytes(64 * 1024)
LEFT_WITHIN_S = 2.0

note: ContextVar[str] = ContextVar("note", default="unset")

Site = Front | Mongrel2
Opener = Callable[..., AbstractContextManager[Site]]


# --- events as bytes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Event("a"), "data: a\n\n"),
        (Event(""), "data: \n\n"),
        (Event("a\nb"), "data: a\ndata: b\n\n"),
        (Event("a\r\nb\rc\n"), "data: a\ndata: b\ndata: c\ndata: \n\n"),
        (Event("a\u2028b\x0bc"), "data: a\u2028b\x0bc\n\n"),
        (Event({"a": ["ü\n"]}), 'data: {"a":["ü\\n"]}\n\n'),
        (Event(None), "data: null\n\n"),
        (Event("a", event="news", id="7", retry_ms=100), "event: news\nid: 7\nretry: 100\ndata: a\n\n"),
        (Event("half \ud800"), "data: half ?\n\n"),
        (Event("id: 1\n\nevent: forged"), "data: id: 1\ndata: \ndata: event: forged\n\n"),
    ],
)
def test_an_event_is_written_as_browsers_read_it(event: Event, text: str) -> None:
    assert bytes(event).decode() == text


@pytest.mark.parametrize("end", ["\n", "\r", "\0"])
@pytest.mark.parametrize("field", ["event", "id"])
def test_type_and_id_of_an_event_are_one_line(field: str, end: str) -> None:
    with pytest.raises(UsageError, match="one line"):
        bytes(Event("a", **{field: f"x{end}data: forged"}))


def test_parts_of_any_kind_become_bytes() -> None:
    parts = [
        "grüß",
        b"raw",
        bytearray(b"array"),
        memoryview(b"view"),
        [b"two ", b"frames"],
        {"a": 1},
        None,
        [],
    ]
    expected = ["grüß".encode(), b"raw", b"array", b"view", b"two frames", b'{"a":1}\n', b"null\n", b"[]\n"]
    assert list(encoded(parts)) == expected


class Source:
    """Parts that count how often they are let go of."""

    def __init__(self, parts: Iterator[Any]) -> None:
        self._parts = parts
        self.closed = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._parts)

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("make", [encoded, events])
def test_a_source_is_let_go_of_once(make: Callable[[Any], Any]) -> None:
    source = Source(iter("ab"))
    body = make(source)
    assert b"a" in b"".join(body)
    body.close()
    assert source.closed == 1


@pytest.mark.parametrize("make", [encoded, events])
def test_a_generator_that_was_never_started_is_closed(make: Callable[[Any], Any]) -> None:
    parts = (one for one in "ab")
    make(parts).close()
    assert getgeneratorstate(parts) == GEN_CLOSED


def test_events_begin_with_a_comment_and_have_others_while_silent() -> None:
    speak = Signal()

    def source() -> Iterator[Any]:
        speak.wait()
        yield {"n": 1}

    body = events(source(), ping_s=0.01)
    assert next(body).startswith(b": ")
    assert [next(body), next(body)] == [b":\n\n"] * 2
    speak.set()
    assert [one for one in body if one != b":\n\n"] == [b'data: {"n":1}\n\n']
    assert list(body) == []


def test_no_deadline_binds_a_source_of_events_but_pings_come_before_the_pages() -> None:
    seen: list[float] = []

    def source() -> Iterator[Any]:
        seen.append(deadlines.current.get())
        gevent.sleep(0.2)
        yield "late"

    deadlines_before = deadlines.current.set(monotonic() + 0.1)
    try:
        body = events(source())
        next(body)
        assert next(body) == b":\n\n"
        assert deadlines.remaining_s() > 0
        assert b"data: late\n\n" in list(body)
    finally:
        deadlines.current.reset(deadlines_before)
    assert seen == [deadlines.NEVER]


@pytest.mark.parametrize(
    ("error", "status", "message", "level"),
    [
        (ValueError("secret"), 500, "Internal Server Error", logging.ERROR),
        (SystemExit("secret"), 500, "Internal Server Error", logging.ERROR),
        (gevent.Timeout(1, "secret"), 500, "Internal Server Error", logging.ERROR),
        (RequestFailed("secret", status=503), 503, "Service Unavailable", logging.WARNING),
        (RequestFailed("secret", status=299), 500, "Internal Server Error", logging.WARNING),
        (NotFound("no such <thing>", status=404), 404, "no such <thing>", logging.WARNING),
    ],
)
def test_a_source_that_fails_ends_in_an_event_that_says_so(
    error: BaseException, status: int, message: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    def source() -> Iterator[Any]:
        yield "a"
        raise error

    *_, first, last = events(source())
    assert first == b"data: a\n\n"
    kind, data, *_ = last.decode().split("\n")
    assert kind == "event: failure"
    assert json.loads(data.removeprefix("data: ")) == {"status": status, "message": message}
    assert [record.levelno for record in caplog.records] == [level]


def test_an_event_that_cannot_be_written_is_a_failure() -> None:
    *_, last = events(iter([Event("a", id="1\ndata: forged")]))
    assert b"forged" not in last
    assert last.startswith(b"event: failure\n")


def test_events_are_made_one_ahead_and_no_more() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    body = events(source())
    next(body)
    gevent.sleep(0)
    assert next(body) == b"data: 0\n\n"
    gevent.sleep(0.01)
    assert len(made) <= 3  # one is being sent, one is ready, and one waits for its room
    body.close()
    assert list(body) == []


def test_events_that_are_left_stop_their_source_in_its_middle() -> None:
    ends: list[str] = []

    def source() -> Iterator[str]:
        try:
            yield "a"
            Signal().wait()
        finally:
            ends.append(note.get())

    token = note.set("of the page")
    try:
        body = events(source())
        assert [next(body), next(body)][1] == b"data: a\n\n"
        body.close()
    finally:
        note.reset(token)
    assert ends == ["of the page"]


def test_a_source_of_events_that_does_not_end_keeps_nobody_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("butler_mesh.web.streaming.KILL_S", 0.01)
    may_end = Signal()

    def source() -> Iterator[str]:
        try:
            yield "a"
            Signal().wait()
        finally:
            may_end.wait()

    body: Events = events(source())
    assert [next(body), next(body)][1] == b"data: a\n\n"
    gevent.sleep(0)
    body.close()
    assert "does not end" in caplog.text
    may_end.set()
    assert body._maker is not None
    body._maker.join(1.0)
    assert body._maker.dead


# --- both fronts --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mongrel2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongrel2]:
    with running(tmp_path_factory.mktemp("mongrel2")) as started:
        yield started


@contextmanager
def behind(server: Mongrel2, handlers: Any, **options: Any) -> Iterator[Mongrel2]:
    connection = Mongrel2Connection(*server.specs[0], **options)
    application = Application(connection, handlers, grace_s=0.05)
    application.start()
    try:
        wait_for(lambda: connection.is_connected, 10.0)
        yield server
    finally:
        application.close()


def alive() -> int:
    """Count the greenlets that have not ended."""
    return sum(isinstance(one, gevent.Greenlet) and not one.dead for one in gc.get_objects())


def none_left(before: int) -> bool:
    gc.collect()
    return alive() <= before


@pytest.fixture(params=["wsgi", "mongrel2"])
def opened(request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> Iterator[Opener]:
    """What serves handlers on a front; when all is over no greenlet is left, and no server has complained."""
    server: Mongrel2 | None = None
    if request.param == "mongrel2":
        server = request.getfixturevalue("mongrel2")

    @contextmanager
    def opening(*handlers: Any, **options: Any) -> Iterator[Site]:
        gc.collect()
        before = alive()
        with serving(handlers, **options) if server is None else behind(server, handlers, **options) as site:
            yield site
        wait_for(lambda: none_left(before))

    yield opening
    assert "Traceback" not in capfd.readouterr().err


class Work:
    """A service that makes parts, and what became of it."""

    def __init__(self, mesh: Mesh) -> None:
        self.made = 0
        self.ends: list[str] = []
        self.go_on = Signal()
        self.client: Client = mesh.client()
        self.service = mesh.service(self.parts, self.wait, self.fail, self.large)
        self.mesh = mesh

    def parts(self, number: int, pause_s: float = 0.0, hold: int = -1) -> Iterator[str]:
        """Make parts, with pauses, or until told to go on before one."""
        try:
            for n in range(number):
                if n == hold:
                    self.go_on.wait()
                gevent.sleep(pause_s)
                self.made += 1
                yield f"part {n}\n"
            self.ends.append("done")
        except Stopped as stopped:
            self.ends.append(f"stopped {stopped.status}")
            raise

    def large(self, number: int) -> Iterator[bytes]:
        """Make parts of 64 KiB."""
        try:
            for _ in range(number):
                self.made += 1
                yield PART
        finally:
            self.ends.append("large")

    def wait(self) -> None:
        """Answer nothing."""
        self.made += 1
        try:
            Signal().wait()
        except Stopped as stopped:
            self.ends.append(f"stopped {stopped.status}")
            raise

    def fail(self, after: int, status: int = 0) -> Iterator[str]:
        """Make parts and fail."""
        for n in range(after):
            yield f"part {n}\n"
        if status:
            raise RequestFailed("secret", status=status)
        raise ValueError("secret")

    def page(self, path: str, as_events: bool = False, service: str = "svc", **arguments: Any) -> Any:
        """Return a route whose page is a stream of the service."""
        work = self

        class Page(WebMessageHandler):
            def get(self) -> Any:
                parts = work.client.request_stream(service, path, arguments)
                return self.stream_events(parts) if as_events else self.stream(parts, "text/plain")

            def post(self) -> Any:
                return work.client.request(service, path, arguments).body

        return f"^{path}$", Page


@pytest.fixture
def work(mesh: Mesh) -> Iterator[Work]:
    """A service; in the end it has nothing to do, and the router knows of no open stream."""
    made = Work(mesh)
    yield made
    wait_for(lambda: drained(mesh.router.status()))


@contextmanager
def asked(site: Site, path: str, method: str = "GET") -> Iterator[tuple[HTTPConnection, HTTPResponse]]:
    """Ask for a page and read its head."""
    client = site.client()
    try:
        client.request(method, path)
        with client.getresponse() as response:
            yield client, response
    finally:
        client.close()


def test_parts_reach_the_browser_as_they_are_made(opened: Opener, work: Work) -> None:
    with opened(work.page("/parts", number=4, hold=1)) as site:
        with asked(site, "/parts") as (client, response):
            assert response.getheader("Content-Type") == "text/plain"
            assert response.readline() == b"part 0\n"
            assert work.made == 1
            work.go_on.set()
            assert response.read() == b"part 1\npart 2\npart 3\n"
            # The connection is in order, and serves another.
            client.request("GET", "/nowhere")
            assert client.getresponse().status == 404
    assert work.ends == ["done"]


def settled(count: Callable[[], int], quiet_s: float = 0.3) -> int:
    """Wait until a number has not changed for so long, and return it."""
    last, since = count(), monotonic()

    def is_quiet() -> bool:
        nonlocal last, since
        if count() != last:
            last, since = count(), monotonic()
        return monotonic() - since > quiet_s

    wait_for(is_quiet, 20.0)
    return last


@pytest.mark.slow
def test_a_slow_browser_slows_the_service(opened: Opener, work: Work) -> None:
    with opened(work.page("/large", number=4000)) as site:
        with site.dial() as browser:
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            browser.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_for(lambda: work.made > 0)
            made = settled(lambda: work.made)
            # The stream's window, and a connection's buffers of at most 4 MiB on either side.
            assert 16 <= made < 16 + 2 * 64 + 16
            read = 0
            while read < 16 * 2**20:
                read += len(browser.recv(2**20))
            assert work.made > made + 64
            made = settled(lambda: work.made)
            assert made * len(PART) < read + (16 + 2 * 64 + 16) * len(PART)
        wait_for(lambda: work.ends, LEFT_WITHIN_S)


@pytest.mark.parametrize("as_events", [False, True], ids=["parts", "events"])
def test_a_browser_that_leaves_an_idle_stream_stops_the_service(
    opened: Opener, work: Work, as_events: bool
) -> None:
    with opened(work.page("/parts", as_events, number=2, hold=1)) as site:
        with asked(site, "/parts") as (_, response):
            while b"part 0" not in response.readline():
                pass
        wait_for(lambda: work.ends, LEFT_WITHIN_S)
        assert work.ends == ["stopped 499"]
        assert site.get("/nowhere").status == 404


@pytest.mark.parametrize("method", ["GET", "POST"], ids=["before the first part", "of a plain page"])
def test_a_browser_that_leaves_while_nothing_has_come_stops_the_service(
    opened: Opener, work: Work, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(work.page("/wait")) as site:
        with site.dial() as browser:
            browser.sendall(f"{method} /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            wait_for(lambda: work.made)
        wait_for(lambda: work.ends, LEFT_WITHIN_S)
        assert work.ends == ["stopped 499"]
    # It is no fault of anybody's.
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_browser_that_leaves_in_the_middle_of_a_flood_stops_the_service(opened: Opener, work: Work) -> None:
    with opened(work.page("/large", number=4000)) as site:
        with asked(site, "/large") as (_, response):
            assert len(response.read(2**20)) == 2**20
        wait_for(lambda: work.ends, LEFT_WITHIN_S)
        assert work.made < 2000


@pytest.mark.parametrize(
    ("path", "arguments", "status"),
    [
        ("/nowhere", {}, 404),
        ("/parts", {"service": "nobody", "number": 1}, 404),
        ("/fail", {"after": 0}, 500),
        ("/fail", {"after": 0, "status": 409}, 409),
        ("/fail", {"after": 0, "status": 502}, 502),
        ("/fail", {"after": 0, "status": 503}, 503),
        ("/wait", {}, 504),
    ],
)
def test_what_fails_before_the_first_part_is_a_page(
    opened: Opener, work: Work, path: str, arguments: dict[str, Any], status: int
) -> None:
    with opened(work.page(path, **arguments), timeout_s=0.2) as site:
        reply = site.get(path)
        assert reply.status == status
        assert "secret" not in reply.text or status < 500
        assert f"<h1>{status} " in reply.text


def test_an_instance_that_is_lost_before_the_first_part_is_a_502(opened: Opener, work: Work) -> None:
    with opened(work.page("/wait")) as site:
        asking = gevent.spawn(site.get, "/wait")
        wait_for(lambda: work.made)
        work.service.close()
        assert asking.get(timeout=5.0).status == 502
    work.mesh.service(work.parts)  # whose state the fixture looks at


@pytest.mark.parametrize(
    ("arguments", "level"),
    [({}, logging.ERROR), ({"status": 503}, logging.WARNING)],
    ids=["exception", "refusal"],
)
def test_what_fails_in_the_middle_cuts_the_page_and_is_logged_once(
    opened: Opener, work: Work, arguments: dict[str, Any], level: int, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(work.page("/fail", after=2, **arguments), work.page("/parts", number=1)) as site:
        with asked(site, "/fail") as (_, response), pytest.raises(IncompleteRead) as cut:
            response.read()
        assert cut.value.partial == b"part 0\npart 1\n"
        assert site.get("/parts").text == "part 0\n"
    assert [
        (record.levelno, record.getMessage().split()[:2])
        for record in caplog.records
        if record.name == "butler_mesh.web" and record.levelno > logging.INFO
    ] == [(level, ["web-stream-failed", "'/fail'" if level == logging.ERROR else "'/fail':"])]


def own_page(make: Callable[[WebMessageHandler], Any], path: str = "/") -> Any:
    """Return a route whose page is what a function makes of it."""

    class Page(WebMessageHandler):
        def get(self) -> Any:
            return make(self)

    return f"^{path}$", Page


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), OSError(5, "x"), BrokenPipeError(32, "x")])
def test_whatever_a_page_raises_in_its_middle_it_is_cut_and_the_server_lives(
    opened: Opener, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def parts() -> Iterator[str]:
        yield "a"
        raise error

    with opened(own_page(lambda page: page.stream(parts()))) as site:
        for _ in range(2):
            with asked(site, "/") as (_, response), pytest.raises(IncompleteRead):
                response.read()
    failures = [record for record in caplog.records if record.levelno > logging.INFO]
    assert [record.exc_info is not None for record in failures] == [True, True]


@pytest.mark.slow
def test_a_stream_may_take_longer_in_all_than_each_part_may(opened: Opener, work: Work) -> None:
    with opened(work.page("/parts", number=6, pause_s=0.1), timeout_s=0.3) as site:
        began = monotonic()
        assert site.get("/parts").text.count("part") == 6
        assert monotonic() - began > 0.5


@pytest.mark.parametrize("is_remote", [True, False], ids=["the service's", "the page's"])
def test_a_part_that_takes_too_long_is_stopped_and_the_page_cut(
    opened: Opener, work: Work, is_remote: bool
) -> None:
    ends: list[str] = []

    def parts() -> Iterator[str]:
        yield "part 0\n"
        try:
            Signal().wait()
        except Exception:
            ends.append("caught")
        finally:
            ends.append("stopped")

    routes = work.page("/parts", number=2, hold=1), own_page(lambda page: page.stream(parts()), "/own")
    with opened(*routes, timeout_s=0.2) as site:
        with asked(site, "/parts" if is_remote else "/own") as (_, response):
            with pytest.raises(IncompleteRead) as cut:
                response.read()
        assert cut.value.partial == b"part 0\n"
        wait_for(lambda: work.ends or ends)
    assert ends == ([] if is_remote else ["stopped"])


@pytest.mark.slow
def test_parts_are_made_in_the_context_of_the_request_and_have_a_deadline_each(opened: Opener) -> None:
    seen: list[tuple[str, bool]] = []
    ends: list[str] = []

    def look() -> None:
        seen.append((note.get(), 0.3 < deadlines.remaining_s() <= 0.5))

    def parts() -> Iterator[str]:
        try:
            for _ in range(4):
                look()
                gevent.sleep(0.18)
                yield "a"
                note.set(note.get() + "+")
        finally:
            ends.append(note.get())

    def make(page: WebMessageHandler) -> Any:
        note.set("mine")
        return page.stream(parts())

    with opened(own_page(make), timeout_s=0.5) as site:
        assert site.get("/").text == "aaaa"
    assert seen == [("mine", True), ("mine+", True), ("mine++", True), ("mine+++", True)]
    assert ends == ["mine++++"]
    assert note.get() == "unset"


def test_what_a_left_stream_cleans_up_has_its_context_and_time_of_its_own(opened: Opener) -> None:
    ends: list[Any] = []

    def parts() -> Iterator[str]:
        try:
            while True:
                yield "a" * 1000
        finally:
            gevent.sleep(0.01)  # as long as the client were still there
            ends.append((note.get(), deadlines.remaining_s() > 1.0))

    def make(page: WebMessageHandler) -> Any:
        note.set("mine")
        return page.stream(parts())

    with opened(own_page(make), timeout_s=5.0) as site:
        with asked(site, "/") as (_, response):
            response.read(1000)
        wait_for(lambda: ends, LEFT_WITHIN_S)
    assert ends == [("mine", True)]


def test_a_clean_up_that_fails_is_logged_and_harms_nobody(
    opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Source):
        def close(self) -> None:
            raise ValueError("broken")

    with opened(own_page(lambda page: page.stream(Broken(iter("ab"))))) as site:
        with asked(site, "/") as (client, response):
            assert response.read() == b"ab"
            client.request("GET", "/")
            assert client.getresponse().read() == b"ab"
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == [
        "web-stream-unclean '/'"
    ] * 2


@pytest.mark.parametrize("name", ["stream", "stream_events"])
def test_head_of_a_streamed_page_neither_runs_nor_leaks_it(opened: Opener, name: str) -> None:
    made: list[Any] = []
    began: list[int] = []

    def parts() -> Iterator[str]:
        began.append(1)
        yield "a"

    def make(page: WebMessageHandler) -> Any:
        made.append(parts())
        return getattr(page, name)(made[-1])

    with opened(own_page(make)) as site:
        with asked(site, "/", "HEAD") as (client, response):
            assert (response.status, response.read()) == (200, b"")
            client.request("GET", "/nowhere")
            assert client.getresponse().status == 404
    assert not began
    assert [getgeneratorstate(one) for one in made] == [GEN_CLOSED]


def test_head_of_a_services_stream_lets_go_of_it(opened: Opener, work: Work) -> None:
    with opened(work.page("/wait")) as site:
        assert site.request("HEAD", "/wait").status == 200
        wait_for(lambda: drained(work.mesh.router.status()))


@pytest.mark.parametrize("status", [204, 304])
def test_a_stream_of_a_page_without_a_body_is_let_go_of(opened: Opener, status: int) -> None:
    source = Source(iter("ab"))

    def make(page: WebMessageHandler) -> Any:
        page.set_status(status)
        return page.stream(source)

    with opened(own_page(make)) as site:
        reply = site.get("/")
        assert (reply.status, reply.body) == (status, b"")
        wait_for(lambda: source.closed)


def test_events_come_with_an_opening_and_pings(opened: Opener) -> None:
    speak = Signal()

    def source() -> Iterator[Any]:
        speak.wait()
        yield Event({"a": "b\nc"}, event="news", id="7", retry_ms=250)
        yield "two\nlines"

    with opened(own_page(lambda page: page.stream(events(source(), ping_s=0.02), EVENTS))) as site:
        with asked(site, "/") as (_, response):
            assert response.getheader("Content-Type") == "text/event-stream; charset=utf-8"
            assert response.readline().startswith(b": ")
            assert [response.readline() for _ in range(4)] == [b"\n", b":\n", b"\n", b":\n"]
            speak.set()
            rest = response.read().decode().replace(":\n\n", "").lstrip("\n")
    assert rest == 'event: news\nid: 7\nretry: 250\ndata: {"a":"b\\nc"}\n\ndata: two\ndata: lines\n\n'


@pytest.mark.slow
def test_silent_events_outlive_the_time_of_a_page(opened: Opener, work: Work) -> None:
    answers: list[Any] = []

    def source() -> Iterator[Any]:
        gevent.sleep(0.5)
        answers.append(list(work.client.request_stream("svc", "/parts", {"number": 1})))
        yield "late"

    with opened(own_page(lambda page: page.stream_events(source())), timeout_s=0.2) as site:
        assert site.get("/").text.endswith("data: late\n\n")
    assert answers == [["part 0\n"]]


def test_events_of_a_service_that_fails_end_in_a_failure(opened: Opener, work: Work) -> None:
    with opened(work.page("/fail", as_events=True, after=1, status=503)) as site:
        assert site.get("/fail").text.endswith(
            'data: part 0\ndata: \n\nevent: failure\ndata: {"status":503,"message":"Service Unavailable"}\n\n'
        )
