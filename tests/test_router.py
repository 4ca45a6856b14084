"""Router: where it listens, who may come through which door, how it stops, and who takes over."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest

from butler_mesh.client import Client
from butler_mesh.errors import AddressError, AddressInUse, UsageError
from butler_mesh.router import Embedded, Router
from butler_mesh.service import Service
from tests.meshes import ANY_PORT, Mesh, drained
from tests.programs import Program
from tests.waiting import wait_for


def echo(value: Any = None) -> Any:
    return value


# --- listening ---------------------------------------------------------------------------------------


def test_bind_returns_the_endpoint_with_the_port_that_was_chosen() -> None:
    with Router() as router:
        endpoint = router.bind(ANY_PORT)
        assert endpoint.startswith("tcp://127.0.0.1:")
        assert int(endpoint.rpartition(":")[2]) > 0
        assert router.frontend.bind("tcp://127.0.0.1:0") != router.backend.bind("tcp://127.0.0.1:*")


def test_front_and_back_end_are_ports_of_their_own() -> None:
    with Router() as router:
        front, back = router.frontend.bind(ANY_PORT), router.backend.bind(ANY_PORT)
        with Service(back, "svc", grace=0.05) as service, Client(front) as client:
            service.register_function(echo)
            assert service.wait_until_registered(5.0)
            assert client.request("svc", "/echo", {"value": 1}).body == 1


def test_a_front_end_takes_no_services_and_a_back_end_no_clients() -> None:
    with Router() as router:
        front, back = router.frontend.bind(ANY_PORT), router.backend.bind(ANY_PORT)
        with Service(front, "svc") as service:
            assert not service.wait_until_registered(0.1)
            wait_for(lambda: router.status()["counters"].get("refused.role"))
        with Client(back, connect_timeout=0.1) as client:
            assert client.request("svc", "/echo").status_code == 503
        assert router.status()["clients"] == 0
        assert router.status()["services"] == {}


def test_it_may_listen_at_several_places(tmp_path: Path) -> None:
    with Router() as router:
        endpoints = [router.bind(ANY_PORT), router.bind(f"ipc://{tmp_path}/mesh.sock")]
        with Service(endpoints[0], "svc", grace=0.05) as service:
            service.register_function(echo)
            for endpoint in endpoints:
                with Client(endpoint) as client:
                    assert client.request("svc", "/echo", {"value": endpoint}).body == endpoint


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_an_address_in_use_is_AddressInUse_and_the_owner_keeps_it(scheme: str, tmp_path: Path) -> None:
    with Router() as owner, Router() as other:
        endpoint = owner.bind(ANY_PORT if scheme == "tcp" else f"ipc://{tmp_path}/mesh.sock")
        for bind in (other.bind, other.frontend.bind, other.backend.bind, owner.bind):
            with pytest.raises(AddressInUse, match="in use") as raised:
                bind(endpoint)
            assert isinstance(raised.value, OSError)
        with Service(endpoint, "svc", grace=0.05) as service, Client(endpoint) as client:
            service.register_function(echo)
            assert client.request("svc", "/echo", {"value": 1}).body == 1


def test_a_port_that_some_other_program_has_is_AddressInUse() -> None:
    with socket.socket() as taken, Router() as router:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(AddressInUse):
            router.bind(f"tcp://127.0.0.1:{taken.getsockname()[1]}")


def test_an_ipc_path_left_behind_by_the_dead_can_be_bound(tmp_path: Path) -> None:
    path = tmp_path / "mesh.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Router() as router:
        assert router.bind(f"ipc://{path}") == f"ipc://{path}"


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "nonsense",
        "http://127.0.0.1:5555",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1:port",
        "tcp://127.0.0.1:5555/service",
        "ipc://",
        "ipc:///nowhere/at/all/mesh.sock",
        "memory://name",
        "amqp://127.0.0.1",
    ],
)
def test_an_endpoint_that_cannot_be_is_an_AddressError_and_the_next_one_works(endpoint: str) -> None:
    with Router() as router:
        for bind in (router.bind, router.frontend.bind, router.backend.bind):
            with pytest.raises(AddressError):
                bind(endpoint)
        assert router.bind(ANY_PORT)


@pytest.mark.parametrize(
    "endpoint", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://10.0.0.1:5555", "tcp://example.org:1"]
)
def test_both_roles_on_one_port_are_for_loopback_and_ipc(endpoint: str) -> None:
    with pytest.raises(UsageError, match="loopback"):
        Router().bind(endpoint)
    with pytest.raises(UsageError, match="loopback"):
        Router.embed(endpoint)


def test_an_option_that_it_does_not_know_is_an_error() -> None:
    with pytest.raises(TypeError, match="queue_limits"):
        Router(queue_limits=5).start()


def test_the_limits_are_the_routers_own() -> None:
    with Mesh(queue_limit=1) as mesh:
        mesh.service(credit=1).register_function(lambda: gevent.sleep(60), "sleepy")
        client = mesh.client()
        lazies = [client.request_lazy("svc", "/sleepy")]
        wait_for(lambda: not drained(mesh.router.status()))
        lazies.append(client.request_lazy("svc", "/sleepy"))
        wait_for(lambda: mesh.router.status()["services"]["svc"]["queued"] == 1)
        response = client.request("svc", "/sleepy")
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        for lazy in lazies:
            lazy.cancel()


def test_status_tells_services_instances_and_counters(mesh: Mesh) -> None:
    service = mesh.service(echo, credit=5)
    mesh.client().request("svc", "/echo")
    status = mesh.router.status()
    assert status["clients"] == 1
    [instance] = status["services"]["svc"]["instances"]
    assert (instance["state"], instance["credit"], instance["pid"]) == ("ready", 5, os.getpid())
    assert instance["wid"].startswith("svc-")
    assert mesh.client().request("mmi.status", "/").body["services"].keys() == {"svc"}
    service.close()
    wait_for(lambda: mesh.router.status()["services"]["svc"]["instances"] == [])


# --- stopping ----------------------------------------------------------------------------------------


def test_a_router_that_was_stopped_may_be_bound_again(mesh: Mesh) -> None:
    router = Router()
    endpoint = router.bind(ANY_PORT)
    router.stop()
    router.stop()
    assert router.bind(endpoint) == endpoint
    with Service(endpoint, "svc", grace=0.05) as service, Client(endpoint) as client:
        service.register_function(echo)
        assert client.request("svc", "/echo", {"value": 1}).body == 1
    router.stop()


def test_calls_in_flight_on_a_router_that_stops_are_answered_at_once(mesh: Mesh) -> None:
    mesh.service().register_function(lambda: gevent.sleep(60), "sleepy")
    lazy = mesh.client().request_lazy("svc", "/sleepy")
    wait_for(lambda: not drained(mesh.router.status()))
    mesh.router.stop()
    response = lazy.get(2.0)
    assert response.status_code == 502
    assert "router" in response.status_msg


def test_a_client_and_a_service_survive_a_restart_of_the_router() -> None:
    router = Router()
    endpoint = router.bind(ANY_PORT)
    with Service(endpoint, "svc", grace=0.05) as service, Client(endpoint) as client:
        service.register_function(echo)
        assert client.request("svc", "/echo", {"value": 1}).body == 1
        router.stop()
        router.bind(endpoint)
        # Idempotent: it may have been on its way to the router that stopped.
        assert client.request("svc", "/echo", {"value": 2}, idempotent=True).body == 2
    router.stop()


def test_run_finishes_what_is_in_flight_and_takes_nothing_new() -> None:
    router = Router(grace=10.0)
    endpoint = router.bind(ANY_PORT)
    running = gevent.spawn(router.run)
    with Service(endpoint, "svc", credit=1, grace=0.05) as service, Client(endpoint) as client:
        service.register_function(lambda: gevent.sleep(0.05) or "rested", "nap")
        assert service.wait_until_registered(5.0)
        lazies = [client.request_lazy("svc", "/nap") for _ in range(2)]
        wait_for(lambda: router.status()["services"]["svc"]["queued"] == 1)
        router._lifetime.stop()  # as a signal does
        wait_for(lambda: router.node.machine.dispatcher.is_draining)
        late = client.request("svc", "/nap")
        assert (late.status_code, late.headers["Retry-After"]) == (503, "1")
        running.get(timeout=5)
        assert [lazy.get(5.0).body for lazy in lazies] == ["rested", "rested"]


def test_run_does_not_wait_longer_than_the_grace_nor_for_what_cannot_be_answered() -> None:
    for function, options in (("sleepy", {"grace": 0.05}), ("absent", {"grace": 30.0})):
        router = Router(**options)
        endpoint = router.bind(ANY_PORT)
        running = gevent.spawn(router.run)
        with Service(endpoint, "svc", grace=0.0) as service, Client(endpoint) as client:
            service.register_function(lambda: gevent.sleep(60), "sleepy")
            assert service.wait_until_registered(5.0)
            target = "svc" if function == "sleepy" else "nobody"
            lazy = client.request_lazy(target, "/sleepy")
            wait_for(lambda router=router, target=target: not drained_or_empty(router, target))
            router._lifetime.stop()
            running.get(timeout=5)
            lazy.cancel()


def drained_or_empty(router: Router, target: str) -> bool:
    status = router.status()
    return target not in status["services"] or drained(status, target)


# --- embedding ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_to_embed_hosts_and_the_second_joins(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/mesh.sock"
    first = Router.embed(endpoint)
    second = Embedded(endpoint)
    assert (first.is_host, second.is_host) == (True, False)
    with Service(endpoint, "svc", grace=0.05) as service, Client(endpoint) as client:
        service.register_function(echo)
        assert client.request("svc", "/echo", {"value": 1}).body == 1
        first.stop()
        wait_for(lambda: second.is_host)
        assert client.request("svc", "/echo", {"value": 2}).body == 2
    second.stop()
    assert not second.is_host
    first.stop()


def test_a_joined_process_that_stops_races_no_more(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/mesh.sock"
    first, second = Embedded(endpoint), Embedded(endpoint)
    second.stop()
    first.stop()
    gevent.sleep(0)
    assert not second.is_host
    with Router() as router:
        assert router.bind(endpoint)


EMBEDS = """
    import os, sys
    import gevent
    from butler_mesh import Client, Router, Service

    endpoint, number = sys.argv[1:]
    embedded = Router.embed(endpoint)
    service = Service(endpoint, f"svc-{number}").start()
    service.register_function(lambda: os.getpid(), "pid")
    with Client(endpoint, timeout=5) as client:
        was_host = None
        while True:
            if embedded.is_host is not was_host:
                was_host = embedded.is_host
                print("host" if was_host else "joined", flush=True)
            answers = [client.request(f"svc-{n}", "/pid", timeout=0.5).status_code for n in "123"]
            if answers.count(200) >= 2 and answers[int(number) - 1] == 200:
                print("ok", answers.count(200), flush=True)
            gevent.sleep(0.05)
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_when_the_host_of_three_is_killed_another_takes_over_and_calls_go_on(
    scheme: str, tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/mesh.sock"
    if scheme == "tcp":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with ExitStack() as stack:
        programs = [stack.enter_context(Program.of(EMBEDS, endpoint, number)) for number in "123"]
        for program in programs:
            program.says("ok 3")
        [host] = [program for program in programs if b"host" in program.stdout]
        others = [program for program in programs if program is not host]
        assert all(b"joined" in program.stdout for program in others)
        host.send(signal.SIGKILL)
        assert host.ends() == -signal.SIGKILL
        wait_for(lambda: sum(b"host" in program.stdout for program in others) == 1, 20.0)
        for program in others:
            before = program.stdout.count(b"ok")
            wait_for(lambda program=program, before=before: program.stdout.count(b"ok") > before + 2, 20.0)
            assert program.process.poll() is None, program.stderr


def test_both_roles_on_one_public_port_is_for_those_who_say_so(caplog: pytest.LogCaptureFixture) -> None:
    """And the log says once what that means; a loopback port is nobody's business."""
    with Router() as router:
        router.bind(ANY_PORT)
        assert not [record for record in caplog.records if record.levelname == "WARNING"]
        bound = router.bind("tcp://0.0.0.0:*", public=True)
        [line] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert line.startswith(f"{bound} can be reached from other machines")


def test_a_star_is_loopback_where_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BUTLER_MESH_BIND_HOST", "127.0.0.1")
    with Router() as router:
        for bind in (router.bind, router.frontend.bind, router.backend.bind):
            assert bind("tcp://*:*").startswith("tcp://127.0.0.1:")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
