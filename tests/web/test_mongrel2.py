"""Mongrel2Connection behind a real Mongrel2: that server's ten pitfalls, and what browsers may expect."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from time import monotonic
from typing import Any

import flask
import gevent
import pytest
from gevent import socket
from gevent.event import Event
from werkzeug.wrappers import Request, Response

from butler_mesh.application import Application
from butler_mesh.errors import AddressError, ProtocolError, Stopped, UsageError
from butler_mesh.protocol.mongrel2 import FLOW_WINDOW, Message, parse
from butler_mesh.service_client import ServiceClientMixin
from butler_mesh.web import browser as browser_module
from butler_mesh.web import mongrel2
from butler_mesh.web.browser import Browser
from butler_mesh.web.handlers import WebMessageHandler
from butler_mesh.web.mongrel2 import Mongrel2Connection
from tests.meshes import Mesh
from tests.programs import ROOT, Program, do_without
from tests.waiting import wait_for
from tests.web.fronts import Handlers, ask, read, serving
from tests.web.mongrel2s import Mongrel2, running

LIMIT = 2_000_000
ALL = ("GET", "POST", "PUT")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongrel2]:
    """A server as we advise to configure it: tnetstrings, and flow control."""
    with running(tmp_path_factory.mktemp("mongrel2"), limits__content_length=65536) as started:
        yield started


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongrel2]:
    """A server as it is by default: JSON, and no flow control."""
    directory = tmp_path_factory.mktemp("mongrel2-plain")
    with running(
        directory, protocol="json", limits__content_length=65536, download__flow_control=0
    ) as started:
        yield started


@pytest.fixture(params=["server", "plain_server"])
def any_server(request: pytest.FixtureRequest) -> Mongrel2:
    found: Mongrel2 = request.getfixturevalue(request.param)
    return found


@contextmanager
def pages(
    server: Mongrel2, handlers: Handlers, grace_s: float = 0.05, **options: Any
) -> Iterator[Application]:
    """Serve an application; ``options`` are Mongrel2Connection's."""
    connection = Mongrel2Connection(*server.specs[0], **{"upload_store": server.store, **options})
    application = Application(connection, handlers, grace_s=grace_s)
    application.start()
    try:
        yield application
    finally:
        application.close()
        server.forget_handlers()


@contextmanager
def hosting(
    server: Mongrel2, app: Any, *, is_only: bool = True, **options: Any
) -> Iterator[Mongrel2Connection]:
    """Serve a WSGI application; ``is_only``: no other handler stays behind."""
    connection = Mongrel2Connection(
        *server.specs[0], **{"upload_store": server.store, "max_body_bytes": LIMIT, **options}
    )
    connection.start_wsgi(app)
    try:
        yield connection
    finally:
        connection.close(0.05)
        if is_only:
            server.forget_handlers()


def answering(function: Callable[[Request], Any]) -> Any:
    """Return a WSGI application that answers what the function returns: a response, or a value as JSON."""

    @Request.application
    def app(request: Request) -> Response:
        result = function(request)
        return result if isinstance(result, Response) else Response(json.dumps(result))

    return app


def echo(request: Request) -> Any:
    return {"method": request.method, "path": request.path, "size": len(request.get_data())}


def talk(server: Mongrel2, data: bytes) -> bytes:
    """Send bytes, then read until the server closes the connection."""
    with server.dial() as connection:
        connection.sendall(data)
        return rest_of(connection)


def rest_of(connection: socket.socket) -> bytes:
    """Return what comes until the connection is closed."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


def some_of(connection: socket.socket, number: int) -> bytes:
    """Return what comes until so many replies have begun."""
    found = b""
    while len(codes(found)) < number:
        data = connection.recv(65536)
        assert data, found
        found += data
    return found


def next_reply(connection: socket.socket) -> tuple[int, bytes]:
    """Read one response of several."""
    response = HTTPResponse(connection)
    response.begin()
    reply = read(response)
    return reply.status, reply.body


def codes(answers: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def requests(*paths: str, end: str = "Connection: close\r\n") -> bytes:
    """Return requests in one go, with ``end`` in the head of the last."""
    heads = [f"GET {path} HTTP/1.1\r\nHost: x\r\n" for path in paths]
    return ("\r\n".join(heads) + end + "\r\n").encode()


def get(path: str = "/", *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *headers, "", ""]).encode("latin-1")


# --- pitfall 1: headers that are not JSON -------------------------------------------------------


def test_pitfall_1_odd_bytes_in_headers_are_read_by_either_protocol(any_server: Mongrel2) -> None:
    odd = 'a\tb\x01c\xe9\xff "q" \\'
    with hosting(any_server, answering(lambda request: request.environ["HTTP_X_ODD"])):
        answer = talk(any_server, get("/", f"X-Odd: {odd}", "Connection: close"))
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == odd


# --- pitfall 2: uploads -------------------------------------------------------------------------

FORGED = ("x-mongrel2-upload-start: tmp/victim", "x-mongrel2-upload-done: tmp/victim")
UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        (("Content-Length: 3", "Connection: close"), b"abc", 200),
        (("Content-Length: 0", "Connection: close"), b"", 200),
        (("Connection: close",), b"", 200),
        (("Content-Length: 4294967296",), b"", 400),
        (("Content-Length: 4294967299",), b"abc", 400),
        ((f"Content-Length: {'0' * 5000}",), b"", 400),
        ((f"Content-Length: {'9' * 5000}",), b"", 400),
        (("Content-Length: +3",), b"abc", 400),
        (("Content-Length: 3", "Content-Length: 3"), b"abc", 400),
        (("Transfer-Encoding: Chunked",), b"", 400),
        (("Transfer-Encoding: gzip, chunked",), b"", 400),
        (("Content-Length: 5000000", *UPGRADE), b"", 400),
        (("Content-Length: 28", *UPGRADE), b"", 400),
    ],
    ids=range(13),
)
def test_pitfall_2_no_client_can_name_a_file(
    server: Mongrel2, headers: tuple[str, ...], body: bytes, code: int
) -> None:
    victim = server.store / "victim"
    victim.write_bytes(b"secret")
    method = "GET" if "Upgrade: websocket" in headers else "POST"
    with hosting(server, answering(echo)):
        answer = talk(server, get("/", *FORGED, *headers, method=method) + body)
        assert codes(answer)[:1] == [code]
        assert b"secret" not in answer
        assert server.get("/").status == 200
    assert victim.read_bytes() == b"secret"
    victim.unlink()


def chunked(size: int) -> Iterator[bytes]:
    for _ in range(0, size, 50_000):
        yield b"z" * 50_000


@pytest.mark.parametrize("how", ["length", "chunked", "small and chunked"])
def test_pitfall_2_an_upload_with_a_forged_end_is_read_and_removed(any_server: Mongrel2, how: str) -> None:
    size = 50_000 if how == "small and chunked" else 1_000_000
    body: Any = b"z" * size if how == "length" else chunked(size)
    forged = {"x_mongrel2_upload_start": "tmp/forged", "x_mongrel2_upload_done": "/etc/passwd"}
    with hosting(any_server, answering(echo)):
        reply = any_server.request("POST", "/", body, **forged)
        assert reply.json == {"method": "POST", "path": "/", "size": size}
    assert not list(any_server.store.iterdir())


def test_pitfall_2_an_upload_that_is_refused_is_removed_too(server: Mongrel2) -> None:
    with hosting(server, answering(echo)):
        twice = get("/", *["Transfer-Encoding: chunked"] * 2, method="POST")
        assert codes(talk(server, twice + b"3\r\nabc\r\n0\r\n\r\n")) == [400]
        wait_for(lambda: not list(server.store.iterdir()))


def test_pitfall_2_what_is_announced_too_large_is_refused_before_it_comes(server: Mongrel2) -> None:
    with hosting(server, answering(echo)), server.dial() as connection:
        connection.sendall(get("/", f"Content-Length: {LIMIT + 1}", method="POST") + b"z" * 70_000)
        assert codes(rest_of(connection)) == [413]
        assert server.get("/").status == 200
    wait_for(lambda: not list(server.store.iterdir()))


def test_pitfall_2_what_turns_out_too_large_is_refused(server: Mongrel2) -> None:
    with hosting(server, answering(echo)):
        assert server.request("POST", "/", chunked(LIMIT + 50_000)).status == 413
        assert server.get("/").status == 200
    assert not list(server.store.iterdir())


def test_pitfall_2_without_a_store_there_are_no_uploads(
    server: Mongrel2, caplog: pytest.LogCaptureFixture
) -> None:
    with hosting(server, answering(echo), upload_store=None):
        assert server.request("POST", "/", b"z" * 60_000).status == 200
        assert codes(talk(server, get("/", "Content-Length: 70000", method="POST"))) == [413]
        assert server.get("/").status == 200
    assert "upload-refused" in caplog.text
    wait_for(lambda: not list(server.store.iterdir()))


def test_pitfall_2_a_file_that_is_not_there_is_a_500(
    server: Mongrel2, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with hosting(server, answering(echo), upload_store=tmp_path):
        assert server.request("POST", "/", b"z" * 70_000).status == 500
        assert server.get("/").status == 200
    assert "upload-lost" in caplog.text
    for left in server.store.iterdir():
        left.unlink()


def test_pitfall_2_a_client_that_leaves_amid_its_upload_harms_nobody(server: Mongrel2) -> None:
    with hosting(server, answering(echo)) as connection:
        with server.dial() as leaving:
            leaving.sendall(get("/", "Content-Length: 1000000", method="POST") + b"z" * 100_000)
            wait_for(lambda: connection._browsers)
        wait_for(lambda: not connection._browsers)
        assert server.get("/").status == 200
        wait_for(lambda: not list(server.store.iterdir()))


# --- pitfall 3: who closes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "headers"), [("1.0", ()), ("1.1", ("Connection: close",)), ("1.0", ("Connection: close",))]
)
def test_pitfall_3_the_connection_is_closed_where_http_says_so(
    any_server: Mongrel2, version: str, headers: tuple[str, ...]
) -> None:
    with hosting(any_server, answering(echo)):
        began = monotonic()
        answer = talk(any_server, get("/", *headers, version=version))
        assert monotonic() - began < 5
    assert codes(answer) == [200]
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize(("version", "headers"), [("1.1", ()), ("1.0", ("Connection: keep-alive",))])
def test_pitfall_3_the_connection_is_kept_where_http_says_so(
    any_server: Mongrel2, version: str, headers: tuple[str, ...]
) -> None:
    with hosting(any_server, answering(echo)), any_server.dial() as connection:
        for path in ("/1", "/2", "/3"):
            connection.sendall(get(path, *headers, version=version))
            code, body = next_reply(connection)
            assert (code, json.loads(body)["path"]) == (200, path)


@pytest.mark.parametrize("option", ["--http1.0", "--http1.1"])
def test_pitfall_3_curl_gets_its_page(server: Mongrel2, option: str) -> None:
    def stream(request: Request) -> Any:
        return Response(iter([b"part ", b"by ", b"part"])) if request.path == "/stream" else echo(request)

    if shutil.which("curl") is None:
        do_without("the command curl")
    with hosting(server, answering(stream)):
        for path, text in (("/", b'"size": 3'), ("/stream", b"part by part")):
            url = f"http://127.0.0.1:{server.port}{path}"
            command = ["curl", "-sS", "--max-time", "10", option, "--data", "abc", url]
            # Not gevent's: from its first child on it reaps those of all other tests, too.
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as curl:
                wait_for(lambda: curl.poll() is not None, 20.0)
                out, err = curl.communicate()
            assert curl.returncode == 0, err
            assert text in out


# --- pitfall 4: how fast a browser reads --------------------------------------------------------


def streaming(parts: Iterable[bytes]) -> Any:
    # Of a list werkzeug would know the length: a reply in one piece.
    return answering(lambda request: Response(iter(parts)))


@pytest.mark.slow
def test_pitfall_4_hundreds_of_small_parts_arrive(
    any_server: Mongrel2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser_module, "PACE_S", 0.005)
    with hosting(any_server, streaming([b"part %d " % n for n in range(300)])):
        assert any_server.get("/").body == b"".join(b"part %d " % n for n in range(300))


@pytest.mark.slow
def test_pitfall_4_parts_arrive_at_the_usual_pace(plain_server: Mongrel2) -> None:
    with hosting(plain_server, streaming([b"part " for _ in range(30)])):
        assert plain_server.get("/").body == b"part " * 30


def test_pitfall_4_a_large_page_arrives_whole(any_server: Mongrel2) -> None:
    with hosting(any_server, answering(lambda request: Response(b"x" * 5_000_000))):
        client = any_server.client()
        assert [len(ask(client, "GET", "/").body) for _ in range(3)] == [5_000_000] * 3
        client.close()


@pytest.mark.slow
def test_pitfall_4_who_reads_slowly_is_not_cut(server: Mongrel2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_module, "SOCKET_TIMEOUT_S", 0.3)
    size, found = 20_000_000, 0
    with hosting(server, answering(lambda request: Response(b"x" * size))), server.dial() as connection:
        connection.sendall(get("/", "Connection: close"))
        began = monotonic()
        while data := connection.recv(200_000):
            found += len(data)
            gevent.sleep(0.005)
        assert monotonic() - began > 0.3
    assert found > size


def test_pitfall_4_who_stops_reading_costs_little_and_is_dropped(
    server: Mongrel2, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(browser_module, "SOCKET_TIMEOUT_S", 0.3)
    made = 0
    ended = Event()

    def endless() -> Iterator[bytes]:
        nonlocal made
        try:
            while True:
                made += 10_000
                yield b"x" * 10_000
        finally:
            ended.set()

    with caplog.at_level(logging.INFO), hosting(server, streaming(endless())) as connection:
        with server.dial() as stuck:
            stuck.sendall(get("/"))
            wait_for(lambda: connection._browsers)
            browser = next(iter(connection._browsers.values()))
            assert ended.wait(20)
            assert browser.unread_bytes <= FLOW_WINDOW
            assert made < 20_000_000  # what the kernel takes for both ends of a connection
            assert server.get("/nowhere").status == 200
            wait_for(lambda: "reply-cut" in caplog.text)
            # What had left us arrives, and then the end.
            assert len(rest_of(stuck)) <= made + 100_000


# --- whether the server says how fast browsers read ---------------------------------------------


@contextmanager
def taken_over(server: Mongrel2, app: Any) -> Iterator[tuple[Mongrel2Connection, HTTPConnection]]:
    """Serve a connection whose first request, which tells of flow control, another handler has answered."""
    with hosting(server, answering(echo)):
        client = server.client()
        assert ask(client, "GET", "/").status == 200
    with hosting(server, app) as connection:
        yield connection, client
        client.close()


def unhurried(connection: socket.socket, size: int) -> bytes:
    """Return what comes until so many bytes of a page have, with pauses."""
    found = b""
    while len(found.partition(b"\r\n\r\n")[2]) < size:
        data = connection.recv(100_000)
        assert data, f"cut after {len(found)} bytes"
        found += data
        gevent.sleep(0.005)
    return found


def test_flow_control_is_learnt_by_the_first_request_of_a_connection(server: Mongrel2) -> None:
    with hosting(server, answering(echo)) as connection:
        assert connection.has_flow_control is None
        assert server.get("/").status == 200
        assert connection.has_flow_control is True


@pytest.mark.slow
def test_flow_control_is_learnt_amid_the_first_large_reply(any_server: Mongrel2) -> None:
    has_flow_control = "plain" not in any_server.directory.name
    page = answering(lambda request: Response(b"x" * 1_000_000))
    with taken_over(any_server, page) as (connection, client):
        assert connection.has_flow_control is None
        client.sock.sendall(get("/"))
        assert unhurried(client.sock, 1_000_000).endswith(b"xxx")
        assert connection.has_flow_control is has_flow_control
        # Neither is learnt again, nor was the connection lost.
        assert len(ask(client, "GET", "/").body) == 1_000_000


@pytest.mark.slow
def test_flow_control_is_learnt_amid_a_stream(any_server: Mongrel2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_module, "PACE_S", 0.01)
    has_flow_control = "plain" not in any_server.directory.name
    parts = [b"part %d " % n for n in range(30)]
    with taken_over(any_server, streaming(parts)) as (connection, client):
        assert connection.has_flow_control is None
        assert ask(client, "GET", "/").body == b"".join(parts)
        assert connection.has_flow_control is has_flow_control


def test_a_small_reply_waits_for_no_word_of_flow_control(
    plain_server: Mongrel2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser_module, "LEARN_S", 60.0)
    with hosting(plain_server, answering(echo)) as connection:
        for _ in range(3):
            assert plain_server.get("/").status == 200
        assert connection.has_flow_control is None


def test_a_word_of_what_was_read_corrects_what_was_learnt(server: Mongrel2) -> None:
    learnt: list[bool | None] = []

    def parts() -> Iterator[bytes]:
        connection.has_flow_control = False
        yield b"one "
        wait_for(lambda: connection.has_flow_control)
        learnt.append(connection.has_flow_control)
        yield b"two"

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        return parts()

    with taken_over(server, app) as (connection, client):
        assert ask(client, "GET", "/").body == b"one two"
        assert learnt == [True]


@pytest.mark.slow
def test_of_the_next_server_nothing_is_known(tmp_path: Path) -> None:
    with running(tmp_path) as server, hosting(server, answering(echo)) as connection:
        assert server.get("/").status == 200
        assert connection.has_flow_control is True
        server.stop(signal.SIGKILL)
        wait_for(lambda: connection.has_flow_control is None)
        server.start()


# --- pitfall 5: pings ---------------------------------------------------------------------------


def test_pitfall_5_the_demo_does_not_cut_who_waits_long() -> None:
    path = ROOT / "demos" / "mongrel2.conf"
    assert re.search(r'"limits\.min_ping": 0\b', path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_pitfall_5_a_server_that_pings_cuts_who_waits_long(tmp_path: Path) -> None:
    """The same two servers, but for min_ping: the one cuts after some seconds, the other does not."""
    release = Event()

    def answer(request: Request) -> Any:
        release.wait(30)
        return "page"

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with (
        running(tmp_path / "one", limits__min_ping=1, limits__tick_timer=1) as pinging,
        running(tmp_path / "two", limits__min_ping=0, limits__tick_timer=1) as patient,
        hosting(pinging, answering(answer)),
        hosting(patient, answering(answer)),
    ):
        waiting = gevent.spawn(patient.get, "/")
        assert talk(pinging, get("/")) == b""
        gevent.joinall([waiting], timeout=1.0)  # it has waited longer than that one
        assert not waiting.ready()
        release.set()
        assert waiting.get(timeout=5).json == "page"


# --- pitfall 6: several processes on one Handler ------------------------------------------------


@pytest.mark.slow
def test_pitfall_6_two_handlers_of_one_endpoint_answer_all(
    any_server: Mongrel2, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        hosting(any_server, answering(lambda request: 1)) as one,
        hosting(any_server, answering(lambda request: 2), is_only=False),
    ):
        wait_for(lambda: one.is_connected)
        kept = [any_server.client() for _ in range(4)]
        seen = []
        for _ in range(20):
            seen += [any_server.get("/").json, *(ask(client, "GET", "/").json for client in kept)]
        for client in kept:
            client.close()
    assert len(seen) == 100
    assert set(seen) == {1, 2}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("any_server", "notice"), [("server", "credits"), ("plain_server", "disconnect")], indirect=["any_server"]
)
def test_pitfall_6_notices_of_others_connections_are_ignored(
    any_server: Mongrel2, notice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both go to the other process when they come in turns: request, notice, request, notice."""
    strays: set[str] = set()
    failures: list[BaseException] = []
    take = Mongrel2Connection._take

    def spy(self: Mongrel2Connection, data: bytes) -> None:
        message = parse(data)
        key = message.sender, message.connection
        is_stray = bool(message.notice) and key not in self._browsers
        try:
            take(self, data)
            assert not is_stray or key not in self._browsers
        except Exception as error:  # nobody else would hear of it
            failures.append(error)
        if is_stray:
            strays.add(message.notice)

    def both_have_answered() -> bool:
        # One message more than a request and its notices, lest each goes to the same one as before.
        kept.sendall(get("/"))
        assert next_reply(kept)[0] == 200
        seen.append(any_server.get("/").json)
        return set(seen) == {1, 2}

    def has_strayed() -> bool:
        any_server.get("/")
        return notice in strays

    monkeypatch.setattr(Mongrel2Connection, "_take", spy)
    seen: list[int] = []
    with (
        hosting(any_server, answering(lambda request: 1)),
        hosting(any_server, answering(lambda request: 2), is_only=False),
    ):
        wait_for(has_strayed)
        with any_server.dial() as kept:
            wait_for(both_have_answered)  # they go on
    assert not failures


# --- pitfall 7: no handler, a slow one, a dead one ----------------------------------------------


def test_pitfall_7_requests_wait_for_a_handler(server: Mongrel2) -> None:
    waiting = [gevent.spawn(server.get, f"/{n}") for n in range(5)]
    gevent.joinall(waiting, timeout=0.1)
    with hosting(server, answering(echo)):
        assert [one.get(timeout=10).json["path"] for one in waiting] == [f"/{n}" for n in range(5)]


def test_pitfall_7_a_slow_handler_is_a_504(server: Mongrel2, caplog: pytest.LogCaptureFixture) -> None:
    class Slow(WebMessageHandler):
        def get(self) -> str:
            gevent.sleep(30)
            return "never"

    slow = answering(lambda request: gevent.sleep(30))
    for context in (pages(server, [("^/$", Slow)], timeout_s=0.2), hosting(server, slow, timeout_s=0.2)):
        with context:
            assert server.get("/").status == 504
    assert "web-request-stopped" in caplog.text


HANDLER = """
    import sys, gevent
    from butler_mesh.web.mongrel2 import Mongrel2Connection

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/slow":
            print("slow begins", flush=True)
            gevent.sleep(float(sys.argv[3]))
        start_response("200 OK", [("Content-Length", "4")])
        return [b"page"]

    connection = Mongrel2Connection(sys.argv[1], sys.argv[2])
    print("starting", flush=True)
    connection.serve_wsgi(app)
    print("stopped", flush=True)
"""


@pytest.mark.slow
def test_pitfall_7_after_a_handler_was_killed_the_next_one_answers(server: Mongrel2) -> None:
    with server.dial() as stuck:
        with Program.of(HANDLER, *server.specs[0], "60") as program:
            program.says("starting")
            assert server.get("/").body == b"page"
            stuck.sendall(get("/slow"))
            program.says("slow begins")
            program.send(signal.SIGKILL)
            program.ends()
        late = gevent.spawn(server.get, "/late")
        with Program.of(HANDLER, *server.specs[0], "60") as program:
            assert late.get(timeout=20).body == b"page"
            assert server.get("/").body == b"page"


@pytest.mark.slow
def test_sigterm_drains(server: Mongrel2) -> None:
    with Program.of(HANDLER, *server.specs[0], "0.5") as program:
        client = server.client()
        assert ask(client, "GET", "/").body == b"page"
        slow = [gevent.spawn(server.get, "/slow") for _ in range(5)]
        wait_for(lambda: program.stdout.count(b"slow begins") == 5)
        program.send(signal.SIGTERM)
        assert [one.get(timeout=10).body for one in slow] == [b"page"] * 5
        assert program.ends() == 0
        assert b"stopped" in program.stdout
        assert not program.stderr
        client.close()


# --- pitfall 8: the first reply, and the server's end -------------------------------------------


def test_pitfall_8_the_first_reply_is_never_lost(server: Mongrel2) -> None:
    for n in range(20):
        early = gevent.spawn(server.get, f"/{n}")
        with hosting(server, answering(echo)):
            assert early.get(timeout=5).json["path"] == f"/{n}"


@pytest.mark.slow
def test_pitfall_8_a_handler_that_is_there_first_answers(tmp_path: Path) -> None:
    late = Mongrel2(tmp_path)
    with hosting(late, answering(echo)) as connection:
        for n in range(3):
            assert not connection.is_connected
            late.start()
            try:
                assert late.get(f"/{n}").json["path"] == f"/{n}"
            finally:
                late.stop()
            wait_for(lambda: not connection.is_connected)


@pytest.mark.slow
def test_pitfall_8_a_server_that_comes_back_gets_no_replies_of_its_predecessor(tmp_path: Path) -> None:
    stopped: list[str] = []
    release = Event()

    def answer(request: Request) -> Any:
        if request.path != "/old":
            return request.path
        try:
            release.wait(30)
        except Stopped:
            stopped.append("stopped")
            # Whoever goes on all the same speaks to nobody.
            return Response("of the old one")
        return Response("of the old one")

    with running(tmp_path) as server, hosting(server, answering(answer)) as connection:
        assert server.get("/first").json == "/first"
        old = [server.dial() for _ in range(3)]
        for one in old:
            one.sendall(get("/old"))
        wait_for(lambda: len(connection._workers.running) == 3)
        server.stop(signal.SIGKILL)
        assert [rest_of(one) for one in old] == [b""] * 3
        wait_for(lambda: len(stopped) == 3)
        server.start()
        # They have the numbers of those before.
        new = [server.dial() for _ in range(6)]
        for n, one in enumerate(new):
            one.sendall(get(f"/new/{n}", "Connection: close"))
        release.set()
        for n, one in enumerate(new):
            answer_to = rest_of(one)
            assert codes(answer_to) == [200]
            assert answer_to.endswith(f'"/new/{n}"'.encode())
        for one in (*old, *new):
            one.close()


# --- pitfall 9: notices from outside ------------------------------------------------------------


def test_pitfall_9_a_client_cannot_disconnect_anybody(any_server: Mongrel2) -> None:
    release = Event()

    class Page(WebMessageHandler):
        def get(self) -> str:
            release.wait(10)
            return "page"

    with pages(any_server, [("^/.*$", Page)]) as application:
        waiting = gevent.spawn(any_server.get, "/")
        assert isinstance(application.msg_conn, Mongrel2Connection)
        wait_for(lambda: application.msg_conn._workers.running)  # type: ignore[union-attr]
        body = '{"type":"disconnect"}'
        client = any_server.client()
        for path in ("/", "/@*"):
            assert ask(client, "JSON", path, body).status == 405
        client.close()
        head = b"JSON @* HTTP/1.1\r\nHost: x\r\nContent-Length: 21\r\n\r\n"
        assert codes(talk(any_server, head + body.encode())) == [404]
        assert codes(talk(any_server, b"@* " + body.encode() + b"\0")) == [404]
        release.set()
        assert waiting.get(timeout=5).body == b"page"


# --- several requests on one connection ---------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(any_server: Mongrel2) -> None:
    def answer(request: Request) -> Any:
        gevent.sleep(0.02 if request.path == "/0" else 0)
        return request.path

    paths = [f"/{n}" for n in range(12)]
    with hosting(any_server, answering(answer)):
        answers = talk(any_server, requests(*paths))
    assert re.findall(rb'"(/\d+)"', answers) == [path.encode() for path in paths]
    assert codes(answers) == [200] * 12


@pytest.mark.slow
def test_as_many_pipelined_requests_as_may_wait_are_all_answered(
    any_server: Mongrel2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser_module, "PACE_S", 0.01)
    with hosting(any_server, answering(echo)):
        assert codes(talk(any_server, requests(*["/"] * 60))) == [200] * 60


def test_who_sends_too_far_ahead_is_cut_and_nobody_else(any_server: Mongrel2) -> None:
    release, handled = Event(), []

    def answer(request: Request) -> Any:
        handled.append(request.path)
        if request.path == "/greedy":
            release.wait(10)
        return request.path

    with hosting(any_server, answering(answer)) as connection, any_server.dial() as other:
        other.sendall(get("/other"))
        assert next_reply(other) == (200, b'"/other"')
        assert codes(talk(any_server, requests(*["/greedy"] * 200))) == []
        wait_for(lambda: not connection._workers.running)
        other.sendall(get("/again"))
        assert next_reply(other) == (200, b'"/again"')
    assert handled == ["/other", "/greedy", "/again"]


def test_who_sends_too_far_ahead_does_not_keep_an_endless_page_going(server: Mongrel2) -> None:
    ended = Event()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
        finally:
            ended.set()

    with hosting(server, streaming(endless())), server.dial() as connection:
        connection.sendall(requests(*["/"] * 100))
        assert ended.wait(5)
        connection.close()


def test_large_requests_ahead_count_by_their_size(
    any_server: Mongrel2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser_module, "MAX_WAITING_BYTES", 100_000)
    release, large = Event(), get("/large", "Content-Length: 60000", method="POST") + b"z" * 60_000

    def answer(request: Request) -> Any:
        if request.path == "/first":
            release.wait(10)
        return request.path

    with hosting(any_server, answering(answer)) as connection:
        with any_server.dial() as moderate:
            moderate.sendall(get("/first") + large)
            (browser,) = wait_for(lambda: list(connection._browsers.values()))
            wait_for(lambda: browser.waiting)
            release.set()
            assert codes(some_of(moderate, 2)) == [200, 200]
        release.clear()
        assert codes(talk(any_server, get("/first") + large * 2)) == []


def test_who_asks_for_more_and_takes_nothing_is_dropped_sooner(
    server: Mongrel2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser_module, "IMPATIENT_S", 0.2)
    ended = Event()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 10_000
        finally:
            ended.set()

    with hosting(server, streaming(endless())), server.dial() as stuck:
        stuck.sendall(get("/") * 2)
        assert ended.wait(10)


# --- requests behind the last one ---------------------------------------------------------------


def line_of(request: Request) -> Browser:
    found: Browser = request.environ["butler_mesh.exchange"].line
    return found


UPLOAD = get("/2", "Content-Length: 100000", method="POST") + b"z" * 100_000


@pytest.mark.parametrize("behind", [get("/2"), get("/2") * 3, UPLOAD], ids=["one", "three", "upload"])
def test_nothing_stays_of_what_comes_behind_the_last_request(
    server: Mongrel2, monkeypatch: pytest.MonkeyPatch, behind: bytes
) -> None:
    monkeypatch.setattr(mongrel2, "LOOK_S", 0.02)
    monkeypatch.setattr(mongrel2, "CLOSED_S", 0.1)
    handled: list[str] = []
    lines: list[Browser] = []

    def answer(request: Request) -> Any:
        handled.append(request.path)
        lines.append(line_of(request))
        wait_for(lambda: len(lines[0].waiting) == behind.count(b"HTTP/1.1"))
        return request.path

    with hosting(server, answering(answer)) as connection:
        answers = talk(server, get("/1", "Connection: close") + behind)
        assert codes(answers) == [200]
        assert not lines[0].waiting
        assert not list(server.store.iterdir())
        wait_for(lambda: not connection._browsers)
    assert handled == ["/1"]


@pytest.mark.slow
def test_an_upload_that_waits_behind_one_without_end_is_removed_by_close(
    server: Mongrel2, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[Browser] = []
    release = Event()

    def stubborn(request: Request) -> Any:
        lines.append(line_of(request))
        while not release.is_set():
            try:
                release.wait(10)
            except Stopped:
                continue

    connection = Mongrel2Connection(*server.specs[0], upload_store=server.store)
    connection.start_wsgi(answering(stubborn))
    with server.dial() as browser:
        browser.sendall(get("/1") + UPLOAD)
        wait_for(lambda: lines and lines[0].waiting)
        assert list(server.store.iterdir())
        connection.close(0.05)
        assert not lines[0].waiting
        assert not list(server.store.iterdir())
        release.set()
        wait_for(lambda: not connection._workers.running)
    assert "drain-incomplete" in caplog.text
    server.forget_handlers()


@pytest.mark.slow
def test_a_connection_that_is_closed_takes_no_request_though_its_reply_is_being_read(
    plain_server: Mongrel2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without flow control the page is Mongrel2's to send, and while it does its connection is open."""
    monkeypatch.setattr(mongrel2, "LOOK_S", 0.02)
    handled: list[str] = []
    come: list[Message] = []

    def answer(request: Request) -> Any:
        handled.append(request.path)
        return Response(b"x" * 20_000_000)

    with hosting(plain_server, answering(answer)) as connection, plain_server.dial() as slow:
        connection.has_flow_control = False
        monkeypatch.setattr(connection._uploads, "discard", come.append)  # what is not answered
        slow.sendall(get("/1", "Connection: close"))
        (line,) = wait_for(lambda: list(connection._browsers.values()))
        wait_for(lambda: line.is_closed and line.exchange is None)
        until = monotonic() + 0.5  # many times that it is looked at what can be forgotten
        wait_for(lambda: monotonic() > until)
        slow.sendall(get("/2"))
        wait_for(lambda: come or len(handled) > 1)
        assert handled == ["/1"]
        assert connection._browsers
    assert [message.path for message in come] == [b"/2"]


# --- a browser that leaves ----------------------------------------------------------------------


@pytest.mark.slow
def test_who_leaves_stops_the_services_handler(server: Mongrel2, mesh: Mesh) -> None:
    states: list[str] = []

    def slow() -> None:
        states.append("began")
        try:
            gevent.sleep(30)
        except BaseException:
            states.append("stopped")
            raise

    mesh.service(slow)
    address = f"{mesh.endpoint}#svc"

    class Page(ServiceClientMixin, WebMessageHandler):
        def get(self) -> str:
            self.register_service(address)
            request = self.create_service_request("/slow", "request", {})
            self.send_service_request(address, request)
            return "never"

    with pages(server, [("^/$", Page)]) as application:
        connection = application.msg_conn
        assert isinstance(connection, Mongrel2Connection)
        with server.dial() as leaving:
            leaving.sendall(get("/"))
            wait_for(lambda: states == ["began"])
        wait_for(lambda: states == ["began", "stopped"])
        wait_for(lambda: not connection._workers.running and not connection._browsers)


# --- replies to many ----------------------------------------------------------------------------


def test_one_reply_goes_to_several_connections(server: Mongrel2) -> None:
    lines: list[Any] = []

    def wait(request: Request) -> Any:
        lines.append(request.environ["butler_mesh.exchange"].line)
        gevent.sleep(30)

    with hosting(server, answering(wait)) as connection:
        browsers = [server.dial() for _ in range(150)]
        for browser in browsers:
            browser.sendall(get("/"))
        wait_for(lambda: len(lines) == 150, 10.0)
        sender = lines[0].key[0]
        ids = [line.key[1] for line in lines]
        connection.reply(sender, ids, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage")
        connection.reply(sender, [b"99999999"], b"to nobody")
        connection.reply(sender, ids, b"")
        for browser in browsers:
            assert rest_of(browser).endswith(b"\r\n\r\npage")
            browser.close()
        for line in lines:
            # Over 16 replies to those who are gone, while nobody takes its notices, block Mongrel2 for ever.
            line.is_last = line.is_closed = True


# --- replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [204, 304])
def test_a_reply_without_body_leaves_the_connection_in_order(any_server: Mongrel2, code: int) -> None:
    with hosting(any_server, answering(lambda request: Response(b"never sent", code))):
        client = any_server.client()
        for _ in range(2):
            reply = ask(client, "GET", "/")
            assert (reply.status, reply.body) == (code, b"")
        client.close()


def test_head_has_the_length_of_the_page_and_no_page(any_server: Mongrel2) -> None:
    with hosting(any_server, answering(lambda request: Response(b"page"))):
        client = any_server.client()
        assert ask(client, "HEAD", "/").headers["Content-Length"] == "4"
        assert ask(client, "GET", "/").body == b"page"
        client.close()


def test_a_reply_that_belies_its_length_harms_no_other(
    any_server: Mongrel2, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", environ["QUERY_STRING"])])
        return [b"page"]

    with hosting(any_server, app):
        client = any_server.client()
        assert ask(client, "GET", "/?2").body == b"pa"
        assert ask(client, "GET", "/?4").body == b"page"
        client.close()
        assert talk(any_server, get("/?6")).endswith(b"\r\n\r\npage")
        assert any_server.get("/?4").body == b"page"
        assert any_server.get("/?-4").status == 500
    assert "reply-over-its-length" in caplog.text
    assert "reply-short-of-its-length" in caplog.text


def test_an_application_that_fails_harms_no_other_request(
    any_server: Mongrel2, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        if environ["PATH_INFO"] == "/before":
            raise ValueError("secret")
        start_response("200 OK", [])
        if environ["PATH_INFO"] == "/after":
            raise ValueError("secret")
        yield b"page"
        if environ["PATH_INFO"] == "/amid":
            raise ValueError("secret")

    with hosting(any_server, app):
        for path in ("/before", "/after"):
            answer = talk(any_server, get(path))
            assert codes(answer) == [500]
            assert b"secret" not in answer
        cut = talk(any_server, get("/amid"))
        assert cut.endswith(b"4\r\npage\r\n")
        assert any_server.get("/").body == b"page"
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 3


# --- requests -----------------------------------------------------------------------------------


def test_large_cookies_are_taken(server: Mongrel2) -> None:
    with hosting(server, answering(lambda request: [len(value) for value in request.cookies.values()])):
        cookie = "; ".join(f"c{n}={'x' * 2000}" for n in range(4))
        assert server.get("/", Cookie=cookie).json == [2000] * 4


@pytest.mark.parametrize(
    ("head", "codes_"),
    [
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", [400]),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc", [400]),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", [400]),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", [400]),
        ("GET / HTTP/1.1\r\n\r\n", [400]),
        ("GET / HTTP/1.0\r\n\r\n", [200]),
    ],
)
def test_what_two_could_read_in_two_ways_is_refused(server: Mongrel2, head: str, codes_: list[int]) -> None:
    with hosting(server, answering(echo)):
        assert codes(talk(server, head.encode()))[:1] == codes_


HEADERS = (
    "Host: example.org:81",
    "X-Forwarded-Proto: https",
    "X_Real_IP: 2.2.2.2",
    "X-Many: 1",
    "X-Many: 2",
    "Cookie: a=1; b=%C3%BC",
)
ATTRIBUTES = (
    *("method", "path", "full_path", "query_string", "url", "host", "scheme"),
    *("remote_addr", "access_route", "content_length", "content_type"),
)
FORM = b"text=gr%C3%BC%C3%9F&n=1&n=2"
PARTS = (
    b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\ngr\xc3\xbc\xc3\x9f\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    + b"x" * 100_000
    + b"\r\n--b--\r\n"
)


@pytest.mark.parametrize(
    ("method", "path", "kind", "body"),
    [
        ("GET", "/a%20b/gr%C3%BC%C3%9F?q=%26&q=2&e=", "", b""),
        ("GET", "/%00%ff%2f//a;b/../c", "", b""),
        ("DELETE", "/", "", b""),
        ("POST", "/?a=1", "application/x-www-form-urlencoded", FORM),
        ("POST", "/", "application/json", b'{"a": [1, "\xc3\xbc"]}'),
        ("POST", "/", "multipart/form-data; boundary=b", PARTS),
        ("PUT", "/", "application/octet-stream", bytes(range(256)) * 10),
    ],
)
@pytest.mark.parametrize("proxies", [0, 1])
def test_a_page_sees_the_same_request_as_by_our_own_server(
    any_server: Mongrel2, method: str, path: str, kind: str, body: bytes, proxies: int
) -> None:
    seen: list[dict[str, Any]] = []

    class Page(WebMessageHandler):
        def get(self) -> str:
            request = self.message
            seen.append(
                {
                    "json": request.json_body,
                    "form": request.form.to_dict(flat=False),
                    "files": {name: (file.filename, file.read()) for name, file in request.files.items()},
                    "body": request.body,
                    "args": request.args.to_dict(flat=False),
                    "cookies": request.cookies.to_dict(flat=False),
                    "many": request.headers.get("X-Many", "").replace(", ", ","),
                    "real": request.headers.get("X-Real-IP"),
                    "forwarded": request.headers.get("X-Forwarded-For"),
                    **{name: getattr(request, name) for name in ATTRIBUTES},
                }
            )
            return "page"

        post = put = delete = get

    head = [*HEADERS, "Connection: close", f"Content-Length: {len(body)}"]
    head += [f"Content-Type: {kind}"] if kind else []
    data = "\r\n".join([f"{method} {path} HTTP/1.1", *head, "", ""]).encode() + body
    with pages(any_server, [("^", Page)], trusted_proxies=proxies):
        assert codes(talk(any_server, data)) == [200]
    with serving([("^", Page)], trusted_proxies=proxies) as front:
        with front.dial() as connection:
            connection.sendall(data)
            assert codes(rest_of(connection)) == [200]
    assert seen[0] == seen[1]
    assert seen[0]["remote_addr"] == "127.0.0.1"


def test_a_client_is_not_who_it_claims_to_be(any_server: Mongrel2) -> None:
    def who(request: Request) -> Any:
        return [request.remote_addr, request.headers.get("X-Forwarded-For"), request.headers.get("X-Real-IP")]

    with hosting(any_server, answering(who)):
        # Mongrel2 puts its own peer in the place of what the client says.
        answer = talk(
            any_server, get("/", "X-Forwarded-For: 1.1.1.1", "X_Real_IP: 2.2.2.2", "Connection: close")
        )
        assert answer.endswith(b'["127.0.0.1", null, null]')


# --- Flask --------------------------------------------------------------------------------------


def shop(directory: Path) -> flask.Flask:
    """Return an application that knows nothing of Mongrel2."""
    app = flask.Flask("shop")
    app.secret_key = "not in the code"
    (directory / "file.txt").write_bytes(b"in a file " * 20_000)

    @app.post("/form")
    def form() -> Any:
        flask.session["name"] = flask.request.form["name"]
        return flask.redirect(flask.url_for("hello"))

    @app.get("/hello")
    def hello() -> str:
        return f"Hello, {flask.session.get('name', 'stranger')}"

    @app.get("/file")
    def file() -> Any:
        return flask.send_file(directory / "file.txt", conditional=True)

    @app.get("/stream")
    def stream() -> Any:
        return app.response_class(flask.stream_with_context(f"{n} {flask.request.path}\n" for n in range(5)))

    @app.post("/upload")
    def upload() -> Any:
        sent = flask.request.files["file"]
        return {"name": sent.filename, "size": len(sent.read())}

    @app.get("/fail")
    def fail() -> str:
        raise ValueError("secret")

    return app


def test_a_flask_application_is_served_as_it_is(any_server: Mongrel2, tmp_path: Path) -> None:
    with hosting(any_server, shop(tmp_path)):
        client = any_server.client()
        kind = "application/x-www-form-urlencoded"
        moved = ask(client, "POST", "/form", b"name=Gr%C3%BC%C3%9F", Content_Type=kind)
        assert (moved.status, moved.headers["Location"]) == (302, "/hello")
        cookie = moved.headers["Set-Cookie"].partition(";")[0]
        assert ask(client, "GET", "/hello", Cookie=cookie).text == "Hello, Grüß"
        assert ask(client, "GET", "/hello").text == "Hello, stranger"
        file = ask(client, "GET", "/file")
        assert file.body == b"in a file " * 20_000
        assert ask(client, "GET", "/file", If_None_Match=file.headers["ETag"]).status == 304
        part = ask(client, "GET", "/file", Range="bytes=3-8")
        assert (part.status, part.body) == (206, b"a file")
        assert ask(client, "GET", "/stream").text == "".join(f"{n} /stream\n" for n in range(5))
        kind = "multipart/form-data; boundary=b"
        uploaded = ask(client, "POST", "/upload", PARTS, Content_Type=kind)
        assert uploaded.json == {"name": "a.txt", "size": 100_000}
        assert ask(client, "GET", "/nowhere").status == 404
        failed = ask(client, "GET", "/fail")
        assert failed.status == 500
        assert b"secret" not in failed.body
        client.close()


# --- life ---------------------------------------------------------------------------------------


def test_what_runs_is_finished_and_what_waits_behind_it_too(server: Mongrel2) -> None:
    def answer(request: Request) -> Any:
        gevent.sleep(0.05)
        return request.path

    connection = Mongrel2Connection(*server.specs[0])
    connection.start_wsgi(answering(answer))
    browser = server.dial()
    browser.sendall(requests("/1", "/2", "/3"))
    wait_for(lambda: [len(browser.waiting) for browser in connection._browsers.values()] == [2])
    began = monotonic()
    connection.close(5.0)
    assert monotonic() - began < 2
    assert codes(some_of(browser, 3)) == [200] * 3
    browser.close()
    server.forget_handlers()


def test_what_does_not_end_in_time_is_told_so(server: Mongrel2, caplog: pytest.LogCaptureFixture) -> None:
    connection = Mongrel2Connection(*server.specs[0])
    connection.start_wsgi(answering(lambda request: gevent.sleep(30)))
    asking = gevent.spawn(server.get, "/")
    wait_for(lambda: connection._workers.running)
    connection.close(0.05)
    assert asking.get(timeout=5).status == 503
    assert "drain-incomplete 1" in caplog.text
    server.forget_handlers()


def test_what_has_come_by_the_end_is_answered(server: Mongrel2, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Mongrel2Connection(*server.specs[0])
    connection.start_wsgi(answering(echo))
    assert server.get("/").status == 200
    monkeypatch.setattr(mongrel2, "MESSAGES_A_TURN", 0)  # they stay in the socket
    browsers = [server.dial() for _ in range(30)]
    for browser in browsers:
        browser.sendall(get("/", "Connection: close"))
    for _ in range(3):
        # The server itself answers these, in turn with all that it has to do.
        assert codes(talk(server, get("@", method="JSON"))) == [404]
    connection.close(5.0)
    for browser in browsers:
        # The end of the connection waits for the next handler, which the server has notices for.
        assert codes(some_of(browser, 1)) == [200]
        browser.close()
    server.forget_handlers()


def test_a_browser_that_was_told_to_go_is_forgotten(
    server: Mongrel2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongrel2, "LOOK_S", 0.02)
    monkeypatch.setattr(mongrel2, "CLOSED_S", 0.1)
    with hosting(server, answering(echo)) as connection:
        for _ in range(10):
            assert codes(talk(server, get("/", version="1.0"))) == [200]
        wait_for(lambda: not connection._browsers)


@pytest.mark.slow
def test_a_browser_of_whose_end_another_was_told_is_forgotten(
    server: Mongrel2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongrel2, "LOOK_S", 0.02)
    monkeypatch.setattr(mongrel2, "FORGET_AFTER_S", 0.2)
    take = Mongrel2Connection._take
    release = Event()

    def deaf(self: Mongrel2Connection, data: bytes) -> None:
        if not parse(data).notice:
            take(self, data)

    def answer(request: Request) -> Any:
        if request.path == "/slow":
            release.wait(10)
        return "page"

    monkeypatch.setattr(Mongrel2Connection, "_take", deaf)
    with hosting(server, answering(answer)) as connection, server.dial() as kept, server.dial() as slow:
        slow.sendall(get("/slow"))
        (working,) = wait_for(lambda: list(connection._browsers))
        kept.sendall(get("/"))
        assert next_reply(kept)[0] == 200
        assert len(connection._browsers) == 2  # it has yet to read, for all that we know
        wait_for(lambda: list(connection._browsers) == [working])
        # The other one is not forgotten for as long as it is answered.
        until = monotonic() + 0.3
        wait_for(lambda: monotonic() > until)
        assert list(connection._browsers) == [working]
        release.set()
        assert next_reply(slow)[0] == 200
        wait_for(lambda: not connection._browsers)


def test_more_than_can_be_answered_at_once_are_told_so(
    server: Mongrel2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongrel2, "MAX_CONNECTIONS", 2)
    release = Event()

    def answer(request: Request) -> Any:
        release.wait(10)
        return "page"

    with hosting(server, answering(answer)) as connection:
        waiting = [gevent.spawn(server.get, "/") for _ in range(2)]
        wait_for(lambda: len(connection._workers.running) == 2)
        refused = talk(server, get("/"))  # and its connection is closed
        assert codes(refused) == [503]
        upload = get("/", "Content-Length: 100000", method="POST") + b"z" * 100_000
        assert codes(talk(server, upload)) == [503]
        assert not list(server.store.iterdir())
        release.set()
        assert [one.get(timeout=5).status for one in waiting] == [200, 200]
        assert server.get("/").status == 200


def test_what_no_descriptor_told_of_is_found_by_looking(
    server: Mongrel2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongrel2, "LOOK_S", 0.05)
    with hosting(server, answering(echo)) as connection:
        wait_for(lambda: connection.is_connected)
        connection._in_watcher.stop()
        connection._out_watcher.stop()
        asking = gevent.spawn(server.get, "/")
        assert asking.get(timeout=5).status == 200


def test_it_can_be_started_again(server: Mongrel2) -> None:
    connection = Mongrel2Connection(*server.specs[0])
    for _ in range(2):
        connection.start_wsgi(answering(echo))
        with pytest.raises(UsageError):
            connection.start_wsgi(answering(echo))
        assert server.get("/").status == 200
        connection.close(0.05)
        connection.close(0.05)
        server.forget_handlers()


@pytest.mark.parametrize("specs", [("tcp://127.0.0.1:1", "nonsense"), ("nonsense", "tcp://127.0.0.1:1")])
def test_what_cannot_be_connected_to_is_said_at_once(specs: tuple[str, str]) -> None:
    connection = Mongrel2Connection(*specs)
    with pytest.raises(AddressError):
        connection.start_wsgi(answering(echo))
    connection.close(0.05)


@pytest.mark.slow
def test_a_rolling_restart_loses_little(server: Mongrel2) -> None:
    """What Mongrel2 pushes in the millisecond before libzmq tells it of the closing is lost; no more is."""
    seen: list[int] = []
    lost: list[Exception] = []
    is_over = False

    def browse() -> None:
        while not is_over:
            client = server.client()
            client.sock.settimeout(1.0)
            try:
                while not is_over:
                    seen.append(ask(client, "GET", "/").status)
            except (OSError, HTTPException) as error:  # no answer, or the connection was cut
                lost.append(error)
            client.close()

    current = Mongrel2Connection(*server.specs[0])
    current.start_wsgi(answering(echo))
    browsers = [gevent.spawn(browse) for _ in range(12)]
    for restart in range(1, 5):
        following = Mongrel2Connection(*server.specs[0])
        following.start_wsgi(answering(echo))
        wait_for(partial(lambda number: len(seen) > number, 200 * restart))
        current.close(5.0)
        current = following
    is_over = True
    gevent.joinall(browsers, timeout=5.0, raise_error=True)
    current.close(0.05)
    server.forget_handlers()
    assert set(seen) == {200}
    # Each browser once a restart, at the very most: of the many that were answered some 5 %.
    assert len(lost) <= 4 * 12, lost
    assert len(seen) > 800


# --- pitfall 10: logs ---------------------------------------------------------------------------


def test_pitfall_10_none_of_this_was_malformed_to_the_server(
    server: Mongrel2, plain_server: Mongrel2
) -> None:
    """Of the logs of all tests before it."""
    for one in (server, plain_server):
        log = (one.directory / "log" / "error.log").read_text(errors="replace")
        assert "INFO" in log
        assert "Failed to parse message from handler" not in log
        assert not re.search(r"\[ERROR\] \(src/handler\.c", log), log


MALFORMED = "Failed to parse message from handler"


def test_pitfall_10_nothing_that_we_send_is_malformed_to_the_server(any_server: Mongrel2) -> None:
    log = any_server.directory / "log" / "error.log"
    before = log.stat().st_size
    lines: list[Browser] = []

    def written() -> str:
        return log.read_bytes()[before:].decode("latin-1")

    def answer(request: Request) -> Any:
        if request.path == "/many":
            lines.append(line_of(request))
            gevent.sleep(30)
        if request.path == "/stream":
            return Response(iter([b"part ", bytes(range(256))]))
        return Response(b"\0\r\n, 1:2," * 9, 200, {"X-Odd": 'a\tb\xe9\xff, "q" \\ 4:1234,'})

    with hosting(any_server, answering(answer)) as connection:
        odd = get("/", 'X-Odd: a\tb\x01c\xe9\xff "q" \\ }]{[', "Cookie: 3:abc,", "Connection: close")
        assert codes(talk(any_server, odd)) == [200]
        for path in ("/%00%ff%20", "/stream", "/?=&%25"):
            assert any_server.get(path).status == 200
        assert any_server.request("HEAD", "/").status == 200
        assert any_server.request("POST", "/", b"z" * 100_000).status == 200
        browsers = [any_server.dial() for _ in range(130)]  # over what one message may name
        for browser in browsers:
            browser.sendall(get("/many"))
        wait_for(lambda: len(lines) == len(browsers), 10.0)
        sender, ids = lines[0].key[0], [line.key[1] for line in lines]
        connection.reply(sender, ids, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage")
        connection.reply(sender, [b"99999999"], b"to nobody")
        connection.reply(sender, [], b"to nobody either")
        for wrong_sender, wrong_ids in ((b"a b", ids), (sender, [b"x"]), (sender, [b"-1"]), (b"", ids)):
            with pytest.raises(ProtocolError):
                connection.reply(wrong_sender, wrong_ids, b"data")
        for browser in browsers:
            assert next_reply(browser) == (200, b"page")
            browser.close()
        wait_for(lambda: not connection._workers.running)
        # This is; and whatever was before it has been read.
        assert connection._outlet is not None
        assert MALFORMED not in written()
        connection._outlet.send(sender + b" nonsense")
        wait_for(lambda: MALFORMED in written())
        assert written().count(MALFORMED) == 1
        assert len(re.findall(r"\[ERROR\] \(src/handler\.c", written())) == 1
