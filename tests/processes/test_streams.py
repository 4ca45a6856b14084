"""Streamed pages from processes of their own: memory before a reader that has stopped, and gunicorn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path
from textwrap import dedent
from time import monotonic

import pytest
from gevent import socket
from gevent.event import Event

from butler_mesh.errors import Stopped
from tests.meshes import Mesh, drained
from tests.processes.hosts import Gunicorn
from tests.programs import Program
from tests.waiting import wait_for
from tests.web.mongrel2s import running

pytestmark = pytest.mark.slow

PART = bytes(64 * 1024)
PARTS = 3200
GROWTH_MIB = 20.0

FRONT = """
    import logging, sys
    from butler_mesh import Application, Client, Mongrel2Connection, WebMessageHandler, WSGIConnection

    logging.basicConfig(level=logging.INFO)
    client = Client(sys.argv[1])

    class Page(WebMessageHandler):
        def get(self, path):
            return self.stream(client.request_stream("svc", path), "text/plain")

    connection = Mongrel2Connection(*sys.argv[2:]) if sys.argv[2:] else WSGIConnection(port=0)
    Application(connection, [("^(/.+)$", Page)]).run()
"""

HOSTED = """
    import os
    from butler_mesh import Application, Client, WebMessageHandler

    client = Client(os.environ["MESH"])

    class Page(WebMessageHandler):
        def get(self, path):
            return self.stream(client.request_stream("svc", path), "text/plain")

        def post(self, path):
            return client.request("svc", path).body

    wsgi = Application(handler_tuples=[("^(/.+)$", Page)]).wsgi
"""


class Work:
    """A service that makes parts, and what became of it."""

    def __init__(self, mesh: Mesh) -> None:
        self.made = 0
        self.ends: list[str] = []
        mesh.service(self.small, self.large, self.idle, self.broken)

    def small(self) -> Iterator[str]:
        """Make a part."""
        yield "part"

    def large(self) -> Iterator[bytes]:
        """Make 200 MiB."""
        for _ in range(PARTS):
            self.made += 1
            yield PART

    def idle(self) -> Iterator[str]:
        """Make a part, and no other."""
        try:
            yield "part"
            self.made += 1
            Event().wait()
        except Stopped as stopped:
            self.ends.append(f"stopped {stopped.status}")
            raise

    def broken(self) -> Iterator[str]:
        """Make a part and fail."""
        yield "part"
        raise ValueError("broken")


@pytest.fixture
def work(mesh: Mesh) -> Iterator[Work]:
    """A service; in the end the router knows of no open stream."""
    yield Work(mesh)
    wait_for(lambda: drained(mesh.router.status()))


@pytest.fixture(params=["wsgi", "mongrel2"])
def front(
    request: pytest.FixtureRequest, mesh: Mesh, work: Work, tmp_path: Path
) -> Iterator[tuple[Program, int]]:
    """A process that serves pages, and the port they are at."""
    if request.param == "wsgi":
        with Program.of(FRONT, mesh.endpoint) as program:
            program.says("listening on http://127.0.0.1:")
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", program.stderr)
            assert found
            yield program, int(found[1])
        return
    with running(tmp_path) as server:
        with Program.of(FRONT, mesh.endpoint, *server.specs[0]) as program:
            program.says("connected to Mongrel2")
            yield program, server.port


def peak_mib(pid: int) -> float:
    """Return the most memory that a process ever had resident."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20.0)


def has_stopped(work: Work) -> bool:
    """Wait until the service makes no more."""
    wait_for(lambda: work.made)
    last, since = work.made, monotonic()

    def is_quiet() -> bool:
        nonlocal last, since
        if work.made != last:
            last, since = work.made, monotonic()
        return monotonic() - since > 0.5

    return wait_for(is_quiet, 20.0)


def test_a_reader_that_stops_fills_no_memory(front: tuple[Program, int], work: Work) -> None:
    """200 MiB before a browser that reads nothing of them for a while, and then all."""
    program, port = front
    client = HTTPConnection("127.0.0.1", port)
    client.sock = dial(port)
    client.request("GET", "/small")
    assert client.getresponse().read() == b"part"
    before = peak_mib(program.pid)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    client.request("GET", "/large")
    assert has_stopped(work)
    assert work.made < 200  # 12 MiB: of the stream's window, and of sockets
    assert peak_mib(program.pid) - before < GROWTH_MIB
    response, length = client.getresponse(), 0
    while data := response.read(2**20):
        length += len(data)
    client.close()
    assert (length, work.made) == (PARTS * len(PART), PARTS)
    assert peak_mib(program.pid) - before < GROWTH_MIB


@pytest.fixture
def gunicorn(mesh: Mesh, work: Work, tmp_path: Path) -> Iterator[Gunicorn]:
    """An application's ``wsgi`` under a gevent worker."""
    tmp_path.joinpath("hosted.py").write_text(dedent(HOSTED))
    with Gunicorn("hosted:wsgi", cwd=tmp_path, env={"MESH": mesh.endpoint}) as running:
        yield running


@pytest.mark.parametrize("method", ["GET", "POST"], ids=["an idle stream", "a plain page"])
def test_gunicorn_tells_that_a_browser_has_left(gunicorn: Gunicorn, work: Work, method: str) -> None:
    with gunicorn.dial() as browser:
        browser.sendall(f"{method} /idle HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        if method == "GET":
            received = b""
            while b"part" not in received:
                received += browser.recv(65536)
        else:
            wait_for(lambda: work.made)
    wait_for(lambda: work.ends, 2.0)
    assert work.ends == ["stopped 499"]
    assert gunicorn.get("/small").text == "part"


def test_gunicorn_cuts_a_page_that_fails_in_its_middle(gunicorn: Gunicorn) -> None:
    client = HTTPConnection("127.0.0.1", gunicorn.port)
    client.sock = gunicorn.dial()
    client.request("GET", "/broken")
    with pytest.raises(IncompleteRead) as cut:
        client.getresponse().read()
    client.close()
    assert cut.value.partial == b"part"
    # What gunicorn has to say of a connection that broke, it says for debugging.
    assert "Socket error" not in gunicorn.stderr
    assert gunicorn.get("/nowhere").status == 404
