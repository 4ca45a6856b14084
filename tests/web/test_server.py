"""The HTTP server: what clients may not make it do, and how it stops."""

from __future__ import annotations

import logging
import re
from http.client import HTTPResponse

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from butler_mesh.web import server
from butler_mesh.web.handlers import WebMessageHandler
from tests.waiting import wait_for
from tests.web.fronts import Front, ask, read, serving


class Echo(WebMessageHandler):
    """Returns what it is sent."""

    def get(self) -> str:
        return "page"

    def post(self) -> bytes:
        return self.message.body

    def put(self) -> str:
        return "unread"


ROUTES = [("^/$", Echo)]


def talk(front: Front, *pieces: bytes) -> bytes:
    """Send bytes, then read until the server closes the connection."""
    with front.dial() as connection:
        for piece in pieces:
            connection.sendall(piece)
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


def codes(answers: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def is_open(front: Front) -> bool:
    """Tell whether the next good request works."""
    return front.get("/").body == b"page"


def test_a_connection_serves_many_requests() -> None:
    with serving(ROUTES) as front:
        client = front.client()
        assert [ask(client, "GET", "/").status for _ in range(3)] == [200] * 3
        assert ask(client, "POST", "/", b"body").body == b"body"
        assert ask(client, "GET", "/").body == b"page"
        client.close()


def test_small_answers_do_not_wait_for_nagle() -> None:
    with serving(ROUTES) as front:
        connection = wait_for(lambda: front.dial())
        listener = front.connection._server.socket  # type: ignore[union-attr]
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\xff\xfe\x00 / HTTP/1.1 what\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nContent-Length: 1_0\r\n\r\nx",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    ],
)
def test_a_head_that_is_none_or_can_be_read_in_two_ways_is_a_400(head: bytes) -> None:
    with serving(ROUTES) as front:
        assert codes(talk(front, head)) == [400]
        assert is_open(front)


def test_a_request_line_without_end_is_a_414() -> None:
    with serving(ROUTES) as front:
        assert codes(talk(front, b"GET /" + b"a" * 100_000)) == [414]


def test_chunks_that_lie_are_a_400_and_what_follows_is_no_request() -> None:
    with serving(ROUTES) as front:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        answers = talk(front, head + b"zz\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert codes(answers) == [400]
        assert b"page" not in answers
        assert is_open(front)


def test_an_upgrade_request_cannot_pass_its_body_off_as_another_request() -> None:
    with serving(ROUTES) as front:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\n"
        answers = talk(front, head + b"12345GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert codes(answers) == [200, 200]
        assert b"\r\n\r\n12345HTTP/1.1 200" in answers


def test_a_body_that_is_too_large_is_answered_before_it_has_come() -> None:
    with serving(ROUTES, max_body_bytes=1000) as front, front.dial() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        response = HTTPResponse(connection)
        response.begin()
        reply = read(response)
        assert (reply.status, reply.headers["Connection"]) == (413, "close")
        # The client may still be sending: it must not be reset before it has read the answer.
        connection.sendall(b"x" * 100_000)


def test_a_client_that_sends_all_of_a_body_too_large_reads_the_answer() -> None:
    with serving(ROUTES, max_body_bytes=1000) as front:
        assert front.request("POST", "/", b"x" * 3_000_000).status == 413
        pieces = (b"x" * 1000 for _ in range(1000))
        assert front.request("POST", "/", pieces).status == 413
        assert is_open(front)


def test_a_small_body_that_nobody_read_does_not_cost_the_connection() -> None:
    with serving(ROUTES) as front:
        client = front.client()
        assert ask(client, "PUT", "/", b"x" * server.DISCARD_BYTES).body == b"unread"
        kept = client.sock
        assert ask(client, "GET", "/").body == b"page"
        assert client.sock is kept
        client.close()


def test_a_large_body_that_nobody_read_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER_S", 0.05)
    with serving(ROUTES) as front:
        head = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n"
        answers = talk(front, head, b"x" * 200_000)
        assert codes(answers) == [200]


def test_a_client_that_was_not_told_to_continue_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER_S", 0.05)
    with serving(ROUTES) as front:
        head = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n"
        assert codes(talk(front, head)) == [200]


def test_a_client_that_waits_to_be_told_is_told() -> None:
    with serving(ROUTES) as front, front.dial() as connection:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n"
        connection.sendall(head + b"Connection: close\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"abc")
        assert rest_of(connection).endswith(b"\r\n\r\nabc")


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_says_nothing_more_is_let_go(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SOCKET_TIMEOUT_S", 0.05)
    with serving(ROUTES) as front:
        assert codes(talk(front, sent)) in ([], [400])


def test_a_head_that_comes_byte_by_byte_has_no_more_time_than_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "SOCKET_TIMEOUT_S", 0.1)
    with serving(ROUTES) as front, front.dial() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        closed = gevent.spawn(rest_of, connection)

        def trickle() -> bool:
            if not closed.ready():
                connection.send(b"A")
                gevent.sleep(0.01)
            return closed.ready()

        wait_for(trickle)


def test_a_client_that_goes_away_leaves_no_trace_but_a_line(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(ROUTES) as front:
        for sent in (b"", b"GE", b"GET / HTTP/1.1\r\nA", b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab"):
            with front.dial() as connection:
                connection.sendall(sent)
        assert is_open(front)
        wait_for(lambda: not front.connection._server.connections)  # type: ignore[union-attr]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert capfd.readouterr().err == ""


def test_a_request_is_logged_in_one_line_without_its_query(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "butler_mesh.web")
    with serving(ROUTES) as front:
        front.get("/?password=secret")
        talk(front, b"GET /\x1b[31m?x HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert re.search(r"request 'GET /' 200 \d+\.\d ms", caplog.text)
    assert "secret" not in caplog.text
    assert "\x1b" not in caplog.text


# --- stopping -----------------------------------------------------------------------------------


class Slow(WebMessageHandler):
    """Answers when it may."""

    started = Event()
    may_answer = Event()

    def get(self) -> str:
        self.started.set()
        self.may_answer.wait(10.0)
        return "done"


@pytest.fixture
def slow() -> type[Slow]:
    class Fresh(Slow):
        started = Event()
        may_answer = Event()

    return Fresh


def test_a_stop_lets_requests_end_and_closes_idle_connections_at_once(slow: type[Slow]) -> None:
    with serving([("^/slow$", slow), *ROUTES], grace_s=10.0) as front:
        idle = front.client()
        assert ask(idle, "GET", "/").status == 200
        waiting = gevent.spawn(front.get, "/slow")
        assert slow.started.wait(5.0)
        closing = gevent.spawn(front.application.close)
        assert idle.sock.recv(1) == b""  # closed, while the other request still runs
        assert not closing.ready()
        with pytest.raises(ConnectionRefusedError):
            front.get("/")
        slow.may_answer.set()
        reply = waiting.get(timeout=5.0)
        assert (reply.body, reply.headers["Connection"]) == (b"done", "close")
        closing.get(timeout=5.0)
        idle.close()


def test_a_stop_does_not_wait_longer_than_its_grace(
    slow: type[Slow], caplog: pytest.LogCaptureFixture
) -> None:
    with serving([("^/slow$", slow)], grace_s=0.05) as front:
        with front.dial() as connection:
            connection.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            assert slow.started.wait(5.0)
            front.application.close()
            assert codes(rest_of(connection)) == [503]
    assert "drain-incomplete 1 " in caplog.text


def test_a_request_that_arrived_before_the_stop_is_answered() -> None:
    with serving(ROUTES, grace_s=5.0) as front:
        with front.dial() as connection:
            wait_for(lambda: front.connection._server.idle)  # type: ignore[union-attr]
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            front.application.close()
            answer = rest_of(connection)
        assert codes(answer) == [200]
        assert b"Connection: close" in answer
