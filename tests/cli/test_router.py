"""``butler-mesh router`` as a process: where it listens, what it says, how it ends."""

from __future__ import annotations

import re
import resource
import signal
import socket
from pathlib import Path

import gevent
import pytest

from butler_mesh.cli.router import BACKEND, FRONTEND
from butler_mesh.client import Client
from butler_mesh.service import Service
from tests.programs import Program, mesh
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

ANY = "tcp://127.0.0.1:*"


def bound(program: Program, n: int = 1) -> list[str]:
    """Wait until so many endpoints are announced, and return them."""
    program.says("listening on")
    wait_for(lambda: program.stderr.count("listening on") >= n)
    return re.findall(r"listening on (\S+)", program.stderr)


@pytest.fixture
def free() -> int:
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return int(port)


def answers(front: str, back: str) -> bool:
    """Tell whether a service at one endpoint answers a client at the other."""
    with Service(back, "svc", grace=0.05) as service, Client(front) as client:
        service.register_function(lambda: "here", "where")
        assert service.wait_until_registered(10.0)
        return bool(client.rpc("svc").where() == "here")


def test_it_routes_between_front_and_back_ends_and_ends_with_0_at_SIGTERM() -> None:
    with mesh("router", "--frontend", ANY, "--backend", ANY) as program:
        front, back = bound(program, 2)
        assert answers(front, back)
        program.send(signal.SIGTERM)
        assert program.ends() == 0
        assert program.stdout == b""
        assert "Traceback" not in program.stderr


def test_each_option_may_be_given_several_times(tmp_path: Path) -> None:
    sockets = [f"ipc://{tmp_path}/{name}.sock" for name in "abcd"]
    a, b, c, d = sockets
    with mesh("router", "--frontend", a, "--frontend", b, "--backend", c, "--bind", d) as program:
        assert sorted(bound(program, 4)) == sockets
        assert answers(a, c)
        assert answers(b, d)
        assert answers(d, d)


def test_with_bind_alone_there_are_no_default_ports(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/mesh.sock"
    with mesh("router", "--bind", endpoint) as program:
        assert answers(endpoint, endpoint)
        program.send(signal.SIGINT)
        assert program.ends() == 0
        assert bound(program) == [endpoint]


def test_the_environment_says_where(free: int) -> None:
    env = {"BUTLER_MESH_FRONTEND": f"tcp://127.0.0.1:{free} {ANY}", "BUTLER_MESH_BACKEND": ANY}
    with mesh("router", env=env) as program:
        first, second, back = bound(program, 3)
        assert first == f"tcp://127.0.0.1:{free}"
        assert answers(first, back)
        assert answers(second, back)


def test_an_option_wins_over_the_environment(free: int) -> None:
    env = {"BUTLER_MESH_FRONTEND": "nonsense", "BUTLER_MESH_BACKEND": ANY}
    with mesh("router", "--frontend", f"tcp://127.0.0.1:{free}", env=env) as program:
        assert bound(program, 2)[0] == f"tcp://127.0.0.1:{free}"


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert (FRONTEND, BACKEND) == ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556")


@pytest.mark.parametrize("option", ["--frontend", "--backend", "--bind"])
def test_a_taken_address_is_one_line_and_exit_2(option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        others = {"--frontend", "--backend"} - {option} if option != "--bind" else set()
        with mesh("router", option, endpoint, *(x for other in others for x in (other, ANY))) as program:
            assert program.ends() == 2
            lines = [line for line in program.stderr.splitlines() if "INFO" not in line]
            assert lines == [f"butler-mesh router: {endpoint} is in use by another process"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bind", "nonsense"], "tcp://"),
        (["--bind", "tcp://127.0.0.1:99999"], "65535"),
        (["--bind", "tcp://0.0.0.0:0"], "loopback"),
        (["--frontend", "memory://name", "--backend", ANY], "memory://name"),
        (["--frontend", ANY, "--backend", "tcp://127.0.0.1"], "port"),
    ],
)
def test_an_address_that_cannot_be_is_one_line_and_exit_2(arguments: list[str], says: str) -> None:
    with mesh("router", *arguments) as program:
        assert program.ends() == 2
        [line] = [line for line in program.stderr.splitlines() if "INFO" not in line]
        assert line.startswith("butler-mesh router: ")
        assert says in line


def test_at_SIGTERM_it_finishes_what_is_in_flight(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/mesh.sock"
    with mesh("router", "--bind", endpoint) as program:
        with Service(endpoint, "svc", grace=0.05) as service, Client(endpoint) as client:
            started: list[int] = []
            service.register_function(lambda: started.append(1) or gevent.sleep(0.5) or "rested", "nap")
            assert service.wait_until_registered(10.0)
            lazy = client.request_lazy("svc", "/nap")
            wait_for(lambda: started)
            program.send(signal.SIGTERM)
            assert lazy.get(10.0).body == "rested"
            assert program.ends() == 0


def test_the_log_level_says_how_much_it_tells(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/mesh.sock"
    with mesh("router", "--bind", endpoint, "--log-level", "error") as program:
        assert answers(endpoint, endpoint)
        program.send(signal.SIGTERM)
        assert program.ends() == 0
        assert program.stderr == ""


def test_bodies_over_a_limit_of_ones_own_are_refused_and_the_next_call_is_answered() -> None:
    with mesh("router", "--bind", ANY, "--max-body-bytes", "200000") as program:
        (endpoint,) = bound(program)
        with Service(endpoint, "svc", grace=0.05) as service, Client(endpoint) as client:
            service.register_function(len, "size")
            assert service.wait_until_registered(10.0)
            assert client.request("svc", "/size", body=b"x" * 300_000).status_code == 413
            assert client.request("svc", "/size", body=b"x" * 100_000).body == 100_000


def test_it_may_have_as_many_connections_as_the_system_allows() -> None:
    with mesh("router", "--bind", ANY) as program:
        bound(program)
        soft, hard = resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard
