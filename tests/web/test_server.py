"""The HTTP server: what clients may not make it do, and how it stops."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from functools import partial
from http.client import HTTPResponse
from io import BytesIO
from time import monotonic
from typing import ClassVar

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from werkzeug.wrappers import Response

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


# --- what could be read in two ways ---------------------------------------------------------------


def post(*fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """Return a POST of these header fields."""
    lines = [b"POST / HTTP/" + version, b"Host: x", *fields]
    return b"\r\n".join([*lines, b"", body])


CHUNKED = b"Transfer-Encoding: chunked"
FOLLOWING = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        post(b"Content-Length : 5", body=b"12345"),
        post(b"Content-Length\t: 5", body=b"12345"),
        post(b" Content-Length: 5", body=b"12345"),
        post(b"A: b", b"  folded", b"Content-Length: 0"),
        post(b"A: b", b"\tTransfer-Encoding: chunked", body=b"0\r\n\r\n"),
        post(b"Content-Length: 5", b"Content-Length: 5", body=b"12345"),
        post(b"Content-Length: 5, 5", body=b"12345"),
        post(b"Content-Length: 0x5", body=b"12345"),
        post(b"Content-Length: \xb2", body=b"12"),
        post(b"Content-Length:", body=b""),
        post(b"Content-Length: " + b"9" * 5000),
        post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"),
        post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
        post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
        post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
        post(b"Transfer-Encoding:", body=b"0\r\n\r\n"),
        post(CHUNKED, body=b"0\r\n\r\n", version=b"1.0"),
        post(b"A: b\rContent-Length: 5", body=b"12345"),
        post(b"A: b\nContent-Length: 5", body=b"12345"),
        post(b"A: b\0c"),
        post(b"A: \x1b[31m"),
        post(b"A\0: b"),
        post(b"A b: c"),
        post(b": c"),
        post(b"no field"),
        post(b"Host: y"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET /\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
        b"GET\x85/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"G(T / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / http/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_a_head_that_another_might_read_otherwise_ends_the_connection(request_: bytes) -> None:
    with serving(ROUTES) as front:
        assert codes(talk(front, request_ + FOLLOWING)) == [400]
        assert is_open(front)


@pytest.mark.parametrize(
    "body",
    [
        b"+5\r\n12345\r\n0\r\n\r\n",
        b"-5\r\n12345\r\n0\r\n\r\n",
        b"0x5\r\n12345\r\n0\r\n\r\n",
        b"0_5\r\n12345\r\n0\r\n\r\n",
        b" 5\r\n12345\r\n0\r\n\r\n",
        b"5 \r\n12345\r\n0\r\n\r\n",
        b"\r\n12345\r\n0\r\n\r\n",
        b";a=b\r\n12345\r\n0\r\n\r\n",
        b"5\n12345\r\n0\r\n\r\n",
        b"5\r12345\r\n0\r\n\r\n",
        b"5;a=\nb\r\n12345\r\n0\r\n\r\n",
        b"5;" + b"a" * 5000 + b"\r\n12345\r\n0\r\n\r\n",
        b"5\r\n12345\n0\r\n\r\n",
        b"5\r\n123456\r\n0\r\n\r\n",
        b"4\r\n12345\r\n0\r\n\r\n",
        b"1" + b"0" * 16 + b"\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\nA: b\r\n folded\r\n\r\n",
        b"0\r\nno field\r\n\r\n",
        b"0\r\nA: b\n\r\n",
    ],
)
def test_a_chunk_that_another_might_read_otherwise_ends_the_connection(body: bytes) -> None:
    with serving(ROUTES) as front:
        assert codes(talk(front, post(CHUNKED, body=body) + FOLLOWING)) == [400]
        assert is_open(front)


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (post(b"Content-Length:5", body=b"12345"), b"12345"),
        (post(b"content-LENGTH: \t 5 \t", body=b"12345"), b"12345"),
        (post(b"A: \xe4 b\tc", b"B:", b"Content-Length: 05", body=b"12345"), b"12345"),
        (post(b"Transfer-Encoding: Chunked ", body=b"5\r\n12345\r\n0\r\n\r\n"), b"12345"),
        (post(CHUNKED, body=b'00A;x="y"\r\n0123456789\r\n000\r\n\r\n'), b"0123456789"),
        (post(CHUNKED, body=b"1\r\na\r\n2 ;x\r\n\r\n\r\n0\r\nA: b\r\nC: d\r\n\r\n"), b"a\r\n"),
        (post(CHUNKED, body=b"0\r\n\r\n"), b""),
    ],
)
def test_what_is_allowed_is_read_as_it_is_meant(request_: bytes, body: bytes) -> None:
    with serving(ROUTES) as front:
        answers = talk(front, request_ + FOLLOWING)
        assert codes(answers) == [200, 200]
        assert b"\r\n\r\n" + body + b"HTTP/1.1 200" in answers


@pytest.mark.parametrize("size", [1, 3, 5, 7, 1000])
@pytest.mark.parametrize("step", [None, 2, 10, 4096])
def test_a_body_is_the_same_however_it_is_cut(size: int, step: int | None) -> None:
    data = bytes(range(256)) * 20
    cut = b"".join(
        b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (data[i : i + size] for i in range(0, 5120, size))
    )
    for read_ in ("read", "readline"):
        body = server.Body(BytesIO(cut + b"0\r\n\r\nrest"), None, None, True)
        plain = server.Body(BytesIO(data + b"rest"), len(data), None, False)
        for one in (body, plain):
            pieces = list(iter(partial(getattr(one, read_), step), b""))
            assert b"".join(pieces) == data
            if read_ == "readline":
                assert all(b"\n" not in piece[:-1] for piece in pieces)
                assert step or all(piece.endswith(b"\n") for piece in pieces[:-1])
            assert one.rfile.read() == b"rest"


def test_a_body_that_was_lost_hold_of_is_not_read_on() -> None:
    class Interrupted(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            super().read(5)
            raise TimeoutError

    rfile = Interrupted(b"0123456789rest")
    body = server.Body(rfile, 10, None, False)
    for _ in range(2):
        with pytest.raises(OSError):
            body.read(10)
    assert rfile.tell() == 5
    body._discard()
    assert body.is_left
    assert rfile.tell() == 5


# --- clients that keep the server busy ------------------------------------------------------------


def flood(front: Front, start: bytes, more: bytes) -> bytes:
    """Send ``more`` again and again until the server has enough; return what it says."""
    with front.dial() as connection:
        connection.sendall(start)
        answer = gevent.spawn(rest_of, connection)
        with suppress(OSError):
            while not answer.ready():
                connection.sendall(more)
        return answer.get(timeout=10.0)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"0\r\n", b"A: b\r\n" * 1000),
        (b"", b"1\r\nx\r\n" * 1000),
        (b"", (b"1;" + b"x" * 1000 + b"\r\nx\r\n") * 10),
    ],
    ids=["trailers", "chunks of one byte", "extensions"],
)
def test_a_body_that_is_nearly_nothing_but_framing_is_a_400(start: bytes, more: bytes) -> None:
    with serving(ROUTES) as front:
        assert codes(flood(front, post(CHUNKED, body=start), more)) == [400]
        assert is_open(front)


def test_a_head_without_end_is_a_400() -> None:
    with serving(ROUTES) as front:
        assert codes(flood(front, b"GET / HTTP/1.1\r\nHost: x\r\n", b"A: " + b"b" * 9000 + b"\r\n")) == [400]
        assert is_open(front)


class Recorder(Echo):
    """Remembers in which order requests were answered."""

    answered: ClassVar[list[str]]

    def get(self) -> str:
        self.answered.append(self.message.query_string.decode())
        return "page"

    def post(self) -> bytes:
        body = self.message.body
        self.answered.append(f"post {len(body)}")
        return b"thanks"


@pytest.fixture
def recorder() -> type[Recorder]:
    class Fresh(Recorder):
        answered: ClassVar[list[str]] = []

    return Fresh


def test_many_requests_sent_at_once_do_not_keep_others_waiting(recorder: type[Recorder]) -> None:
    with serving([("^/$", recorder)]) as front, front.dial() as greedy, front.dial() as modest:
        both = front.connection._server.idle  # type: ignore[union-attr]
        wait_for(lambda: len(both) == 2)
        greedy.sendall(b"GET /?greedy HTTP/1.1\r\nHost: x\r\n\r\n" * 300)
        modest.sendall(b"GET /?modest HTTP/1.1\r\nHost: x\r\n\r\n")
        assert modest.recv(1000)
        wait_for(lambda: len(recorder.answered) == 301)
        assert recorder.answered.index("modest") < 30


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\n12345\r\n" * 20_000 + b"0\r\n\r\n",
        b"186A0\r\n" + b"x" * 100_000 + b"\r\n0\r\n" + b"A:\r\n" * 30_000 + b"\r\n",
    ],
    ids=["chunks", "trailers"],
)
def test_a_body_in_many_lines_does_not_keep_others_waiting(recorder: type[Recorder], body: bytes) -> None:
    with serving([("^/$", recorder)]) as front, front.dial() as greedy, front.dial() as modest:
        both = front.connection._server.idle  # type: ignore[union-attr]
        wait_for(lambda: len(both) == 2)
        sending = gevent.spawn(greedy.sendall, post(CHUNKED, body=body))
        modest.sendall(b"GET /?modest HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: len(recorder.answered) == 2)
        sending.get(timeout=5.0)
        assert recorder.answered == ["modest", "post 100000"]


# --- slow clients -----------------------------------------------------------------------------------


def dribble(front: Front, start: bytes, piece: bytes, times: int) -> bytes:
    """Send a piece every 10 ms until the server answers; return what it says until it closes."""
    with front.dial() as connection:
        connection.sendall(start)
        answer = gevent.spawn(rest_of, connection)
        with suppress(OSError):
            for _ in range(times):
                if answer.ready():
                    break
                connection.sendall(piece)
                gevent.sleep(0.01)
        return answer.get(timeout=10.0)


@pytest.mark.parametrize(
    ("field", "start", "piece"),
    [
        (b"Content-Length: 100000", b"", b"x"),
        (CHUNKED, b"FFFF\r\n", b"x"),
        (CHUNKED, b"", b"1\r\nx\r\n"),
        (CHUNKED, b"0\r\nA: ", b"x"),
    ],
)
def test_a_body_that_hardly_moves_is_given_up(
    field: bytes, start: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SOCKET_TIMEOUT_S", 0.1)
    monkeypatch.setattr(server, "LINGER_S", 0.05)
    with serving(ROUTES) as front:
        assert codes(dribble(front, post(field, body=start), piece, 1000)) == [400]
        monkeypatch.undo()
        assert is_open(front)


def test_a_slow_body_has_more_time_for_what_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SOCKET_TIMEOUT_S", 0.1)
    monkeypatch.setattr(server, "MIN_PACE", 20)
    monkeypatch.setattr(server, "PIECE_BYTES", 4)
    with serving(ROUTES) as front:
        answer = dribble(front, post(b"Connection: close", b"Content-Length: 40"), b"xx", 20)
        assert codes(answer) == [200]
        assert answer.endswith(b"x" * 40)


def test_a_body_given_up_by_its_handler_does_not_become_the_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "LINGER_S", 0.05)
    with serving(ROUTES, timeout_s=0.05) as front, front.dial() as connection:
        connection.sendall(post(b"Content-Length: 100", body=b"x" * 50))
        answer = connection.recv(12)
        connection.sendall(b"y" * 50 + FOLLOWING)
        assert codes(answer + rest_of(connection)) == [504]


class Large(WebMessageHandler):
    """A page that fits into no buffer on the way."""

    size = 24_000_000

    def get(self) -> bytes:
        return b"x" * self.size


@pytest.mark.slow
def test_a_slow_reader_of_a_large_page_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SOCKET_TIMEOUT_S", 0.15)
    with serving([("^/$", Large)]) as front, front.dial() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received, began = 0, monotonic()
        while data := connection.recv(500_000):
            received += len(data)
            gevent.sleep(0.001)
        assert received > Large.size
        assert monotonic() - began > 0.15, "it was no slow reader"


# --- what else a request may say ----------------------------------------------------------------------


def test_a_head_request_has_no_body_and_keeps_the_connection() -> None:
    with serving(ROUTES) as front:
        client = front.client()
        reply = ask(client, "HEAD", "/")
        assert (reply.status, reply.headers["Content-Length"], reply.body) == (200, "4", b"")
        assert ask(client, "GET", "/").body == b"page"
        client.close()


@pytest.mark.parametrize(("version", "is_told"), [(b"1.1", True), (b"1.0", False)])
def test_only_a_client_that_knows_what_it_means_is_told_to_continue(version: bytes, is_told: bool) -> None:
    with serving(ROUTES) as front, front.dial() as connection:
        connection.sendall(
            post(b"Connection: close", b"Expect: 100-Continue", b"Content-Length: 3", version=version)
        )
        if is_told:
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"abc")
        assert codes(rest_of(connection)) == [200]


def test_a_handler_can_find_the_connection() -> None:
    found = []

    class Look(WebMessageHandler):
        def get(self) -> str:
            found.append(self.message.environ["butler_mesh.socket"].getpeername())
            return "seen"

    with serving([("^/$", Look)]) as front, front.dial() as connection:
        connection.sendall(FOLLOWING)
        rest_of(connection)
        assert found == [connection.getsockname()]


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


# --- responses whose length is not what they say --------------------------------------------------


def of_length(declared: str, *parts: bytes) -> type[WebMessageHandler]:
    class Wrong(WebMessageHandler):
        def get(self) -> Response:
            return Response(iter(parts), headers={"Content-Length": declared})

    return Wrong


@pytest.mark.parametrize(
    ("declared", "parts", "body", "log"),
    [
        ("9", [b"abc", b"def"], b"abcdef", "reply-short-of-its-length '/wrong' by 3 bytes"),
        ("4", [b"abc", b"HTTP/1.1 200 OK\r\n\r\n"], b"abcH", "reply-over-its-length"),
        ("4", [b"abcd", b"more"], b"abcd", "reply-over-its-length"),
    ],
)
def test_no_response_runs_into_the_next_one(
    declared: str, parts: list[bytes], body: bytes, log: str, caplog: pytest.LogCaptureFixture
) -> None:
    requests = (
        b"GET /wrong HTTP/1.1\r\nHost: x\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    with serving([("^/wrong$", of_length(declared, *parts))]) as front:
        received = talk(front, requests)
    _, _, rest = received.partition(b"\r\n\r\n")
    assert rest[: len(body)] == body
    if int(declared) > len(body):
        assert rest == body  # the end of the connection tells that the rest is missing
    else:
        assert rest[len(body) :].startswith(b"HTTP/1.1 404 ")
    assert log in caplog.text


@pytest.mark.parametrize("declared", ["-1", "4x", "²"])
def test_a_length_that_is_none_is_a_fault_of_the_application(declared: str) -> None:
    with serving([("^/wrong$", of_length(declared, b"abcd"))]) as front:
        assert front.get("/wrong").status == 500
        assert front.get("/nowhere").status == 404


def test_head_has_a_length_and_no_body_and_keeps_the_connection() -> None:
    class Page(WebMessageHandler):
        def get(self) -> str:
            return "page"

    with serving([("^/$", Page)]) as front:
        received = talk(
            front,
            b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" * 2,
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
        assert codes(received) == [200, 200, 200]
        assert received.endswith(b"\r\n\r\npage")


@pytest.mark.parametrize(
    "name", ["transfer-encoding ", "content-length\t", "x y", "x\0", "", "größe", "x\x7f"]
)
def test_a_header_that_is_none_never_leaves(name: str) -> None:
    class Wrong(WebMessageHandler):
        def get(self) -> Response:
            response = Response("page")
            response.headers._list.append((name, "5"))  # werkzeug looks at values only
            return response

    with serving([("^/$", Wrong)]) as front:
        received = talk(front, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert codes(received) == [500]


def test_idle_connections_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 5)
    with serving([("^/$", Echo)]) as front:
        idle = [front.client() for _ in range(5)]
        for client in idle:
            assert ask(client, "GET", "/").status == 200
        for _ in range(10):
            assert front.get("/").status == 200
        for client in idle:
            client.close()


def test_who_is_at_work_is_not_sent_away_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    gate = Event()

    class Slow(WebMessageHandler):
        def get(self) -> str:
            gate.wait(10.0)
            return "done"

    with serving([("^/$", Slow)]) as front:
        working = [gevent.spawn(front.get, "/") for _ in range(3)]
        one_more = gevent.spawn(front.get, "/")
        gevent.sleep(0.05)
        assert not one_more.ready()
        gate.set()
        gevent.joinall([*working, one_more], timeout=10.0, raise_error=True)
        assert {one.value.text for one in [*working, one_more]} == {"done"}
