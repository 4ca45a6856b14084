"""A web application under servers of other makes: gunicorn's gevent workers, and TLS by gevent.pywsgi."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from textwrap import dedent

import gevent
import pytest
from gevent import pywsgi, socket, ssl
from gevent.event import Event

from butler_mesh.application import Application
from butler_mesh.service_client import ServiceClientMixin
from butler_mesh.web.handlers import WebMessageHandler
from butler_mesh.web.wsgi import wsgi_app
from tests.meshes import Mesh
from tests.processes.hosts import Gunicorn
from tests.programs import do_without
from tests.waiting import wait_for
from tests.web.fronts import ask

pytestmark = pytest.mark.slow

# Makes application and clients when it is imported: in gunicorn's first process where that preloads it.
HOSTED = """
    import os, time
    from butler_mesh import Application, Client, ServiceClientMixin, WebMessageHandler
    from butler_mesh.web.wsgi import wsgi_app

    ADDRESS = os.environ["MESH"] + "/svc"
    client = Client(ADDRESS)
    at_import = client.rpc().who() if "CALL_AT_IMPORT" in os.environ else None

    class Who(ServiceClientMixin, WebMessageHandler):
        def get(self):
            until = time.perf_counter() + float(self.get_argument("spin", 0))
            while time.perf_counter() < until:  # so that the other workers get some requests, too
                pass
            response, _ = self.send_service_request(ADDRESS, self.create_service_request("/who"))
            return {"worker": os.getpid(), "said": [response.body, client.rpc().who()]}

        def post(self):
            return self.message.body

    class Slow(WebMessageHandler):
        def get(self):
            return client.request(None, "/slow").body

    app = wsgi_app(Application(handler_tuples=[("^/$", Who), ("^/slow$", Slow)]))
"""


def who() -> str:
    return "svc"


@pytest.fixture
def hosted(tmp_path: Path) -> Path:
    """The directory of the module ``hosted``."""
    tmp_path.joinpath("hosted.py").write_text(dedent(HOSTED))
    return tmp_path


@pytest.mark.parametrize("env", [{}, {"CALL_AT_IMPORT": "1"}], ids=["as it is", "called before the fork"])
def test_each_worker_of_a_preloaded_application_has_its_own_connections(
    mesh: Mesh, hosted: Path, env: dict[str, str]
) -> None:
    mesh.service(who)
    options = {"workers": 3, "cwd": hosted, "env": {"MESH": mesh.endpoint, **env}}
    with Gunicorn("hosted:app", "--preload", **options) as gunicorn:  # type: ignore[arg-type]
        seen = set()

        def all_seen() -> bool:
            asked = [gevent.spawn(gunicorn.get, "/?spin=0.02") for _ in range(6)]
            for reply in (one.get() for one in asked):
                assert (reply.status, reply.json["said"]) == (200, ["svc", "svc"])
                seen.add(reply.json["worker"])
            return len(seen) == 3

        wait_for(all_seen, 20.0)
        # The mixin's client and the module's own, in each of them; and the first process', if it called.
        status = mesh.router.status()
        assert status["clients"] == 2 * 3 + len(env)
        assert not [name for name in status["counters"] if name.startswith("dropped")]
        gunicorn.send(signal.SIGTERM)
        assert gunicorn.ends() == 0
        # A fork lets go of its parent's sockets without closing them, of which pyzmq warns.
        assert env or "Traceback" not in gunicorn.stderr
        wait_for(lambda: mesh.router.status()["clients"] == 0)


def test_sigterm_lets_requests_end_and_takes_no_more(mesh: Mesh, hosted: Path) -> None:
    started, may_answer = Event(), Event()

    def slow() -> str:
        started.set()
        may_answer.wait(10.0)
        return "done"

    mesh.service(slow)
    with Gunicorn("hosted:app", cwd=hosted, env={"MESH": mesh.endpoint}) as gunicorn:
        waiting = gevent.spawn(gunicorn.get, "/slow")
        assert started.wait(10.0)
        gunicorn.send(signal.SIGTERM)

        def is_closed() -> bool:
            try:
                gunicorn.dial().close()
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:
                pass  # it was in the queue of a listener that closed
            return False

        wait_for(is_closed)
        assert not waiting.ready()
        may_answer.set()
        assert waiting.get(timeout=10.0).body == b"done"
        assert gunicorn.ends() == 0


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    directory = tmp_path_factory.mktemp("hosted")
    directory.joinpath("hosted.py").write_text(dedent(HOSTED))
    with Gunicorn("hosted:app", cwd=directory, env={"MESH": "tcp://127.0.0.1:1"}) as gunicorn:
        yield gunicorn


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        # As under our own server, but for the codes: gunicorn knows 431 and 501.
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n12345", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\n12345", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 9000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n", 413),
    ],
)
def test_gunicorn_refuses_what_our_server_refuses(gunicorn: Gunicorn, request_: bytes, code: int) -> None:
    assert gunicorn.says_to(request_).startswith(f"HTTP/1.1 {code} ".encode())


def test_bodies_come_in_whole_under_gunicorn(gunicorn: Gunicorn) -> None:
    pieces = (b"x" * 100_000 for _ in range(20))
    assert gunicorn.request("POST", "/", pieces).body == b"x" * 2_000_000
    assert gunicorn.request("POST", "/", (b"x" * 100_000 for _ in range(200))).status == 413
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n"
    with gunicorn.dial() as connection:
        connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
    assert gunicorn.says_to(head + b"\r\n", b"abc").endswith(b"\r\n\r\nabc")


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1, and its key: their files."""
    openssl = shutil.which("openssl")
    if openssl is None:
        do_without("the command openssl")
    directory = tmp_path_factory.mktemp("tls")
    cert, key = str(directory / "cert.pem"), str(directory / "key.pem")
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run(
        [openssl, "req", *kind, *name, "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
        timeout=30.0,
    )
    return cert, key


def trusting(certificate: str) -> ssl.SSLContext:
    """Return the settings of a client that believes this certificate alone; waiting, it lets others work."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate)
    return context


class Echo(ServiceClientMixin, WebMessageHandler):
    """Tells the scheme, and returns what it is sent."""

    def get(self) -> str:
        return self.message.scheme

    def post(self) -> bytes:
        return self.message.body


def test_an_application_is_served_by_tls(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    application = Application(handler_tuples=[("^/$", Echo)])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = pywsgi.WSGIServer(
        ("127.0.0.1", 0),
        wsgi_app(application),
        log=None,
        environ={"SERVER_NAME": "localhost"},
        ssl_context=context,
    )
    server.start()
    try:
        client = HTTPConnection("127.0.0.1", server.server_port)
        plain = socket.create_connection(("127.0.0.1", server.server_port), timeout=10.0)
        client.sock = trusting(cert).wrap_socket(plain, server_hostname="127.0.0.1")
        assert ask(client, "GET", "/").body == b"https"
        assert ask(client, "POST", "/", b"x" * 300_000).body == b"x" * 300_000
        client.close()
    finally:
        server.stop(timeout=1.0)


def test_tls_by_gunicorn_is_an_option_of_its_own(
    certificate: tuple[str, str], mesh: Mesh, hosted: Path
) -> None:
    mesh.service(who)
    cert, key = certificate
    options = ("--certfile", cert, "--keyfile", key)
    with Gunicorn("hosted:app", *options, cwd=hosted, env={"MESH": mesh.endpoint}) as gunicorn:
        ask_ = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = gunicorn.says_to(ask_, tls=trusting(cert))
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["said"] == ["svc", "svc"]
