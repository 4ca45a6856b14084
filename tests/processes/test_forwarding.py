"""A service that answers browsers is killed, or Mongrel2 is: what browsers see, and what comes after."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest

from butler_mesh.application import Application
from butler_mesh.messages import ServiceResponse
from butler_mesh.service_client import ServiceClientMixin
from butler_mesh.web.handlers import WebMessageHandler
from butler_mesh.web.mongrel2 import Mongrel2Connection
from tests.meshes import Mesh
from tests.programs import Program
from tests.waiting import wait_for
from tests.web.fronts import Front, Reply, serving
from tests.web.mongrel2s import Mongrel2, running

pytestmark = pytest.mark.slow

SERVICE = """
    import sys, gevent
    from butler_mesh import Application, ServiceConnection, ServiceMessageHandler
    from butler_mesh.web.direct import DirectReplies

    endpoint, front = sys.argv[1:]

    class Answer(DirectReplies, ServiceMessageHandler):
        fronts = {front: "secret"}

        def request(self):
            print("working on", self.message.get_argument("name"), flush=True)
            gevent.sleep(float(self.message.get_argument("seconds")))
            return f"answer {self.message.get_argument('name')}"

    Application(ServiceConnection(endpoint, "app"), [("^/answer$", Answer)]).run()
"""


class Site:
    """Front and router are in this process, the service is a process of its own."""

    def __init__(self, kind: str, directory: Path, stack: ExitStack) -> None:
        self._stack = stack
        self.mesh = stack.enter_context(Mesh())
        is_direct = kind == "direct"
        address = f"{self.mesh.endpoint}#app"

        class Page(ServiceClientMixin, WebMessageHandler):
            def get(self) -> ServiceResponse:
                request = self.create_service_request("/answer", "request", dict(self.message.args))
                return self.forward_to_service(address, request, direct=is_direct)

        routes: list[tuple[str, Any]] = [("^/$", Page)]
        self.front: Front | Mongrel2
        self.recv_spec = "tcp://127.0.0.1:1"
        if kind == "wsgi":
            self.front = stack.enter_context(serving(routes))
        else:
            self.front = stack.enter_context(running(directory))
            self.recv_spec = self.front.specs[0][1]
            connection = Mongrel2Connection(*self.front.specs[0], hand_over_secret="secret")
            application = Application(connection, routes, grace_s=0.05)
            application.start()
            stack.callback(application.close)
            wait_for(lambda: connection.is_connected, 10.0)

    def start_service(self) -> Program:
        program = self._stack.enter_context(Program.of(SERVICE, self.mesh.endpoint, self.recv_spec))
        client = self.mesh.client()
        wait_for(lambda: client.request("mmi.service", "/", {"service": "app"}).is_success, 20.0)
        return program

    def ask(self, name: str, seconds: float = 0.0) -> Reply:
        return self.front.get(f"/?name={name}&seconds={seconds}")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.mark.parametrize("kind", ["wsgi", "mongrel2", "direct"])
def test_a_service_that_is_killed_is_502_and_the_next_one_answers(
    kind: str, tmp_path: Path, stack: ExitStack
) -> None:
    site = Site(kind, tmp_path, stack)
    service = site.start_service()
    assert site.ask("a").text == "answer a"
    waiting = gevent.spawn(site.ask, "b", 60.0)
    service.says("working on b")
    service.send(signal.SIGKILL)
    service.ends()
    reply = waiting.get(timeout=10.0)
    assert reply.status == 502
    assert "502" in reply.text
    if kind == "direct":
        assert reply.headers["Connection"] == "close"
    site.start_service()
    assert site.ask("c").text == "answer c"


@pytest.mark.parametrize("kind", ["mongrel2", "direct"])
def test_nobody_gets_the_answer_that_was_made_for_a_browser_of_the_server_before(
    kind: str, tmp_path: Path, stack: ExitStack
) -> None:
    """Each Mongrel2 numbers its connections from the beginning."""
    site = Site(kind, tmp_path, stack)
    service = site.start_service()
    assert isinstance(site.front, Mongrel2)
    old = [site.front.dial() for _ in range(5)]
    for number, sock in enumerate(old):
        sock.sendall(b"GET /?name=old%d&seconds=1.5 HTTP/1.1\r\nHost: x\r\n\r\n" % number)
    for number in range(5):
        service.says(f"working on old{number}")
    site.front.stop(signal.SIGKILL)
    site.front.start()
    for sock in old:
        sock.close()
    # As many connections, with the same numbers, and requests that take longer than those before.
    new = [gevent.spawn(site.ask, f"new{number}", 2.5) for number in range(5)]
    gevent.joinall(new, timeout=20.0, raise_error=True)
    assert [one.value.text for one in new] == [f"answer new{number}" for number in range(5)]
    assert site.ask("last").text == "answer last"
