"""Service: functions and objects that answer, and what their callers see of whatever they do."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
from typing import Any

import gevent
import gevent.local
import pytest
from gevent.event import Event

from butler_mesh import deadlines
from butler_mesh.client import Client
from butler_mesh.clock import monotonic
from butler_mesh.errors import (
    AddressError,
    AddressInUse,
    BadRequest,
    NotFound,
    RemoteError,
    RouteCollision,
    UsageError,
)
from butler_mesh.protocol.mesh import RAW
from butler_mesh.router import Router
from butler_mesh.service import Service
from tests.meshes import ANY_PORT, Mesh, drained, send_raw
from tests.programs import Program
from tests.waiting import wait_for


def echo(value: Any = None) -> Any:
    """Return what it was given."""
    return value


# --- functions ---------------------------------------------------------------------------------------


def test_a_function_answers_under_its_own_name_or_another(mesh: Mesh) -> None:
    service = mesh.service(echo)
    service.register_function(echo, "other")
    service.register_function(echo, "/deep/path")
    client = mesh.client()
    for path in ("/echo", "/other", "/deep/path"):
        assert client.request("svc", path, {"value": path}).body == path


def test_the_decorator_registers_and_leaves_the_function_as_it_is(mesh: Mesh) -> None:
    service = mesh.service()

    @service.function
    def one() -> int:
        return 1

    @service.function("two")
    def another() -> int:
        return 2

    assert (one(), another()) == (1, 2)
    client = mesh.client()
    assert client.rpc("svc").one() == 1
    assert client.rpc("svc").two() == 2
    with pytest.raises(NotFound):
        client.rpc("svc").another()


def test_a_name_that_is_taken_collides_at_once() -> None:
    service = Service("memory://collide", "svc")
    service.register_function(echo)
    with pytest.raises(RouteCollision, match="/echo"):
        service.register_function(lambda: None, "echo")


class Shop:
    """An object with all that an object may have."""

    secret = "attribute"
    kind = dict  # a class is no method

    def __init__(self) -> None:
        self.callback = Private()
        self.sold = 0

    def sell(self, n: int = 1) -> int:
        """Sell some."""
        self.sold += n
        return self.sold

    @staticmethod
    def static() -> str:
        return "static"

    @classmethod
    def by_class(cls) -> str:
        return cls.__name__

    @functools.lru_cache  # noqa: B019 (that such a method is one)
    def cached(self) -> str:
        return "cached"

    @property
    def trap(self) -> Any:
        raise AssertionError("a property is not to be called")

    def _hidden(self) -> str:
        return "hidden"


class Private:
    def __call__(self) -> str:
        return "called"


def test_an_objects_public_methods_are_exposed_and_nothing_else(mesh: Mesh) -> None:
    service = mesh.service()
    service.register(Shop())
    client = mesh.client()
    assert sorted(client.describe("svc")["paths"]) == ["/by_class", "/cached", "/sell", "/static"]
    shop = client.rpc("svc")
    assert (shop.sell(2), shop.sell(n=3), shop.static(), shop.by_class(), shop.cached()) == (
        2,
        5,
        "static",
        "Shop",
        "cached",
    )
    for path in ("/_hidden", "/__init__", "/__class__", "/secret", "/kind", "/trap", "/callback"):
        assert client.request("svc", path).status_code == 404


def test_a_body_comes_before_the_other_arguments(mesh: Mesh) -> None:
    mesh.service().register_function(lambda *a, **k: [len(a), k], "both")
    client = mesh.client()
    assert client.request("svc", "/both", {"x": 1}, body=[1, 2]).body == [1, {"x": 1}]
    assert client.request("svc", "/both", {"x": 1}, body=b"ab").body == [1, {"x": 1}]
    assert client.request("svc", "/both", body=[b"a", b"b"]).body == [2, {}]


@pytest.mark.parametrize(
    "value", [None, True, 0, -1.5, "", "ü", [], {}, [None], {"a": {"b": []}}, b"", b"\xff"]
)
def test_the_value_is_the_body_as_it_is(mesh: Mesh, value: Any) -> None:
    mesh.service().register_function(lambda: value, "value")
    response = mesh.client().request("svc", "/value")
    assert (response.status_code, response.body) == (200, value)


def test_a_function_that_returns_nothing_answers_200_and_null(mesh: Mesh) -> None:
    mesh.service().register_function(lambda: None, "nothing")
    response = mesh.client().request("svc", "/nothing")
    assert (response.status_code, response.body) == (200, None)


@pytest.mark.parametrize("value", [object(), {1}, 1j, float("nan"), "\ud800", [b"a", "b"], Shop, echo])
def test_a_value_that_JSON_cannot_hold_is_500_and_the_next_request_works(mesh: Mesh, value: Any) -> None:
    service = mesh.service(echo)
    service.register_function(lambda: value, "value")
    client = mesh.client()
    response = client.request("svc", "/value")
    assert response.status_code == 500
    assert response.error["type"] == "NotSerializable"
    assert client.request("svc", "/echo", {"value": 1}).body == 1


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("half a character: \ud800"),
        Unprintable(),
        KeyError("key"),
        SystemExit(1),
        KeyboardInterrupt(),
        gevent.GreenletExit(),
        gevent.Timeout(),
        StopIteration(),
        RecursionError("x" * 100_000),
        BaseException("bare"),
        BadRequest("\ud800", status=422, body=object()),
        BadRequest("no such number", status=70_000),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_function_raises_its_caller_is_told_and_the_next_request_works(
    mesh: Mesh, error: BaseException
) -> None:
    def broken() -> None:
        raise error

    mesh.service(broken, echo)
    client = mesh.client()
    response = client.request("svc", "/broken")
    assert response.status_code in (422, 500)
    assert response.status_msg
    assert client.request("svc", "/echo", {"value": 1}).body == 1


@pytest.mark.slow
def test_endless_recursion_is_an_error_for_its_caller_only(mesh: Mesh) -> None:
    def deep() -> None:
        deep()

    mesh.service(deep, echo)
    client = mesh.client()
    with pytest.raises(RecursionError) as raised:
        client.rpc("svc").deep()
    assert isinstance(raised.value, RemoteError)
    assert len(raised.value.traceback) <= 16 * 1024
    assert client.rpc("svc").echo(1) == 1


def test_a_function_may_choose_the_status_by_what_it_raises(mesh: Mesh) -> None:
    def refuse() -> None:
        error = BadRequest("taken", status=409, body={"by": "me"}, retry_after_s=2.5)
        error.headers["X-Why"] = "because"
        raise error

    mesh.service(refuse)
    response = mesh.client().request("svc", "/refuse")
    assert (response.status_code, response.status_msg, response.body) == (409, "taken", {"by": "me"})
    assert response.headers == {"X-Why": "because", "Retry-After": "2.5"}
    assert response.error == {}


def test_a_TypeError_from_within_is_not_taken_for_arguments_that_do_not_fit(mesh: Mesh) -> None:
    def broken(a: int) -> None:
        len(a)  # type: ignore[arg-type]

    mesh.service(broken)
    client = mesh.client()
    assert client.request("svc", "/broken", {"a": 1}).status_code == 500
    response = client.request("svc", "/broken", {"b": 1})
    assert response.status_code == 422
    assert "'a'" in response.status_msg or "'b'" in response.status_msg


def test_a_built_in_function_without_a_signature_answers_too(mesh: Mesh) -> None:
    mesh.service(max)
    client = mesh.client()
    assert client.rpc("svc").max(1, 2) == 2
    assert client.describe("svc", "/max")["signature"] == "(...)"


def test_a_method_that_is_none_of_a_functions_is_405_with_Allow(mesh: Mesh) -> None:
    mesh.service(echo)
    client = mesh.client()
    for method in ("get", "post", "response", "delete", "__class__", ""):
        response = client.request("svc", "/echo", method=method)
        assert (response.status_code, response.headers["Allow"]) == (405, "REQUEST, OPTIONS")
    assert client.request("svc", "/echo", {"value": 1}, method="REQUEST").body == 1
    assert client.request("svc", "/echo", method="OPTIONS").body["doc"] == "Return what it was given."


def test_requests_run_side_by_side_as_far_as_the_credit_goes(mesh: Mesh) -> None:
    running = 0
    most = 0

    def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        gevent.sleep(0.01)
        running -= 1

    mesh.service(work, credit=3)
    client = mesh.client()
    gevent.joinall([gevent.spawn(client.request, "svc", "/work") for _ in range(12)], raise_error=True)
    assert most == 3


def test_a_handler_knows_its_deadline(mesh: Mesh) -> None:
    mesh.service().register_function(deadlines.remaining_s, "left")
    assert 4.0 < mesh.client().request("svc", "/left", timeout=5.0).body <= 5.01


def test_nothing_of_one_request_clings_to_the_next(mesh: Mesh) -> None:
    local = gevent.local.local()

    def note(value: int) -> Any:
        before = getattr(local, "value", None)
        local.value = value
        return before

    mesh.service(note)
    client = mesh.client()
    assert [client.rpc("svc").note(n) for n in range(5)] == [None] * 5


def test_without_pooled_greenlets_it_works_the_same(mesh: Mesh) -> None:
    mesh.service(echo, pooled_greenlets=False)
    client = mesh.client()
    assert [client.rpc("svc").echo(n) for n in range(20)] == list(range(20))


# --- names and addresses -----------------------------------------------------------------------------


def test_the_name_may_stand_in_the_address(mesh: Mesh) -> None:
    service = Service(f"{mesh.endpoint}/named", grace=0.05)
    service.register_function(echo)
    assert service.name == "named"
    mesh.join(service)
    assert mesh.client().request("named", "/echo", {"value": 1}).body == 1


def test_without_a_name_it_is_found_by_its_paths_and_without_those_it_cannot_be(mesh: Mesh) -> None:
    service = mesh.service(echo, name="")
    assert service.name == ""
    assert mesh.client().request(None, "/echo", {"value": 1}).body == 1
    with pytest.raises(UsageError, match="name"):
        Service(mesh.endpoint).start()


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1:99999/svc", "udp://127.0.0.1:1/svc"])
def test_a_bad_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(AddressError):
        Service(address, "svc")


def test_several_routers_are_served_at_once() -> None:
    with Mesh() as one, Mesh() as two:
        service = Service([one.endpoint, two.endpoint], "svc", grace=0.05)
        service.register_function(echo)
        with service:
            for mesh in (one, two):
                wait_for(lambda mesh=mesh: "svc" in mesh.router.status()["services"])
                assert mesh.client().request("svc", "/echo", {"value": 1}).body == 1


def test_it_registers_with_the_secret_only() -> None:
    with Mesh(register_secret="shared") as mesh:
        mesh.service(echo, register_secret="shared")
        with Service(mesh.endpoint, "other", register_secret="wrong") as service:
            assert not service.wait_until_registered(0.1)
        assert mesh.client().request("svc", "/echo", {"value": 1}).body == 1


# --- brokerless --------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", [ANY_PORT, "ipc"])
def test_a_bound_service_answers_clients_without_a_router_between(endpoint: str, tmp_path: Any) -> None:
    endpoint = f"ipc://{tmp_path}/svc.sock" if endpoint == "ipc" else endpoint
    service = Service.bind(endpoint, "svc", grace=0.05)
    service.register_function(echo)
    assert service._own_router is not None
    [bound] = service._own_router.node._sockets
    with service, Client(bound) as client:
        assert service.wait_until_registered(5.0)
        assert client.request("svc", "/echo", {"value": 1}).body == 1
        assert client.rpc("svc").echo(2) == 2


def test_a_bound_service_refuses_an_address_that_is_taken_or_malformed() -> None:
    with Router() as router:
        endpoint = router.bind(ANY_PORT)
        with pytest.raises(AddressInUse):
            Service.bind(endpoint, "svc")
    with pytest.raises(AddressError):
        Service.bind("tcp://127.0.0.1:99999", "svc")
    # Nothing was left bound: the port can be had again.
    service = Service.bind(endpoint, "svc")
    service.close()


def test_a_bound_service_that_closes_answers_what_waits_in_its_router() -> None:
    service = Service.bind(ANY_PORT, "svc", credit=1, grace=5.0)
    service.register_function(lambda: gevent.sleep(0.03), "nap")
    assert service._own_router is not None
    router = service._own_router
    [bound] = router.node._sockets
    with service, Client(bound) as client:
        assert service.wait_until_registered(5.0)
        callers = [gevent.spawn(client.request, "svc", "/nap") for _ in range(3)]
        wait_for(lambda: router.status()["services"]["svc"]["queued"] == 2)
        service.close()
        assert [caller.get(timeout=5).status_code for caller in callers] == [200, 200, 200]


# --- the manual loop ---------------------------------------------------------------------------------


def test_the_manual_loop_answers_each_request_with_the_next_recv(mesh: Mesh) -> None:
    service = Service(mesh.endpoint, "svc", grace=0.05)

    def loop() -> None:
        reply = None
        while True:
            request = service.recv(reply, timeout=0.05)
            reply = None
            if not request:
                continue  # falsy: nothing to do
            reply = {"path": request.path, "x": request.get_argument("x")}

    greenlet = gevent.spawn(loop)
    try:
        client = mesh.client()
        wait_for(lambda: "svc" in mesh.router.status()["services"])
        for n in range(5):
            assert client.request("svc", f"/any/{n}", {"x": n}).body == {"path": f"/any/{n}", "x": n}
    finally:
        greenlet.kill()
        service.close()


def test_recv_returns_None_when_nothing_came(mesh: Mesh) -> None:
    with Service(mesh.endpoint, "svc", grace=0.05) as service:
        assert service.recv(timeout=0.01) is None
        assert service.recv({"nobody": "asked"}, timeout=0.0) is None


def test_the_manual_loop_takes_one_request_at_a_time(mesh: Mesh) -> None:
    service = Service(mesh.endpoint, "svc", grace=0.05)
    client = mesh.client()
    service.recv(timeout=0.0)
    assert service.wait_until_registered(5.0)
    lazies = [client.request_lazy("svc", f"/{n}") for n in range(3)]
    first = service.recv(timeout=5.0)
    assert first is not None
    wait_for(lambda: mesh.router.status()["services"]["svc"]["queued"] == 2)
    second = service.recv("one", timeout=5.0)
    assert second is not None
    assert lazies[0].get(5.0).body == "one"
    third = service.recv("two", timeout=5.0)
    assert third is not None
    assert service.recv("three", timeout=0.0) is None
    assert [lazy.get(5.0).body for lazy in lazies] == ["one", "two", "three"]
    service.close()


def test_the_manual_loop_never_sees_a_request_whose_caller_has_given_up(mesh: Mesh) -> None:
    service = Service(mesh.endpoint, "svc", grace=0.05)
    client = mesh.client()
    service.recv(timeout=0.0)
    assert service.wait_until_registered(5.0)
    assert client.request("svc", "/expired", timeout=0.05).status_code == 504
    wait_for(lambda: drained(mesh.router.status()))
    lazy = client.request_lazy("svc", "/wanted")
    request = service.recv(timeout=5.0)
    assert request is not None
    assert request.path == "/wanted"
    service.recv("here", timeout=0.0)
    assert lazy.get(5.0).body == "here"
    service.close()


def test_a_reply_of_the_manual_loop_that_JSON_cannot_hold_is_500(mesh: Mesh) -> None:
    service = Service(mesh.endpoint, "svc", grace=0.05)
    client = mesh.client()
    service.recv(timeout=0.0)
    assert service.wait_until_registered(5.0)
    lazy = client.request_lazy("svc", "/a")
    assert service.recv(timeout=5.0) is not None
    service.recv(object(), timeout=0.0)
    assert lazy.get(5.0).status_code == 500
    service.close()


def test_a_manual_loop_that_ends_with_a_request_in_hand_answers_it_502(mesh: Mesh) -> None:
    service = Service(mesh.endpoint, "svc")
    client = mesh.client()
    service.recv(timeout=0.0)
    assert service.wait_until_registered(5.0)
    lazy = client.request_lazy("svc", "/a")
    assert service.recv(timeout=5.0) is not None
    service.close()  # not after 30 s of grace
    assert lazy.get(5.0).status_code == 502


# --- life --------------------------------------------------------------------------------------------


def test_nothing_is_opened_before_start() -> None:
    service = Service("tcp://127.0.0.1:1", "svc")
    assert not service.wait_until_registered(0.0)
    service.close()


def test_close_finishes_what_runs_and_takes_nothing_new(mesh: Mesh) -> None:
    go = Event()
    service = mesh.service(grace=5.0)
    started: list[int] = []
    service.register_function(lambda: started.append(1) or go.wait(5.0), "wait")
    client = mesh.client()
    running = client.request_lazy("svc", "/wait")
    wait_for(lambda: started)
    closing = gevent.spawn(service.close)
    gevent.sleep(0)
    late = client.request_lazy("svc", "/wait", timeout=0.05)
    gevent.sleep(0)
    assert not closing.ready()
    go.set()
    closing.get(timeout=5)
    assert running.get(5.0).body is True
    assert late.get(5.0).status_code in (503, 504)


def test_close_stops_what_does_not_end_within_the_grace(mesh: Mesh) -> None:
    log: list[str] = []

    def endless() -> None:
        log.append("started")
        try:
            gevent.sleep(3600)
        finally:
            log.append("ended")

    service = mesh.service(endless, grace=0.02)
    lazy = mesh.client().request_lazy("svc", "/endless")
    wait_for(lambda: log)
    service.close()
    assert log == ["started", "ended"]
    assert lazy.get(5.0).status_code == 502


def test_a_service_may_be_closed_twice_and_started_again(mesh: Mesh) -> None:
    service = mesh.service(echo)
    client = mesh.client()
    service.close()
    service.close()
    service.start()
    assert service.wait_until_registered(5.0)
    assert client.request("svc", "/echo", {"value": 1}).body == 1


def test_stop_makes_run_return(mesh: Mesh) -> None:
    service = Service(mesh.endpoint, "svc", grace=0.05)
    service.register_function(echo)
    running = gevent.spawn(service.run)
    wait_for(lambda: service._connection is not None)
    assert service.wait_until_registered(5.0)
    service.stop()
    running.get(timeout=5)
    assert not service.wait_until_registered(0.0)


SERVICE = """
    import sys
    import gevent
    from butler_mesh import Service

    service = Service(sys.argv[1], "svc", grace=float(sys.argv[2]))

    @service.function
    def nap(seconds):
        print("napping", flush=True)
        gevent.sleep(seconds)
        return "rested"

    service.run()
    print("left", flush=True)
"""


@pytest.mark.slow
def test_at_SIGTERM_what_is_in_flight_is_answered_and_the_process_ends_with_0(mesh: Mesh) -> None:
    client = mesh.client()
    with Program.of(SERVICE, mesh.endpoint, "10") as program:
        wait_for(lambda: "svc" in mesh.router.status()["services"], 20.0)
        lazy = client.request_lazy("svc", "/nap", {"seconds": 0.5})
        program.says("napping")
        program.send(signal.SIGTERM)
        assert lazy.get(10.0).body == "rested"
        assert program.ends() == 0
        assert program.stdout == b"napping\nleft\n"
        assert program.stderr == ""
    wait_for(lambda: mesh.router.status()["services"]["svc"]["instances"] == [])
    assert not mesh.router.status()["counters"].get("lost")


@pytest.mark.slow
def test_at_SIGTERM_what_outlasts_the_grace_is_stopped_and_answered_502(mesh: Mesh) -> None:
    client = mesh.client()
    with Program.of(SERVICE, mesh.endpoint, "0.1") as program:
        wait_for(lambda: "svc" in mesh.router.status()["services"], 20.0)
        lazy = client.request_lazy("svc", "/nap", {"seconds": 60})
        program.says("napping")
        program.send(signal.SIGTERM)
        assert lazy.get(10.0).status_code == 502
        assert program.ends() == 0


@pytest.mark.slow
def test_at_a_second_SIGTERM_it_ends_at_once_and_the_caller_is_told_502(mesh: Mesh) -> None:
    client = mesh.client()
    with Program.of(SERVICE, mesh.endpoint, "60") as program:
        wait_for(lambda: "svc" in mesh.router.status()["services"], 20.0)
        lazy = client.request_lazy("svc", "/nap", {"seconds": 60}, timeout=30.0)
        program.says("napping")
        program.send(signal.SIGTERM)
        [instance] = mesh.router.status()["services"]["svc"]["instances"]
        assert instance["in_flight"] == 1
        wait_for(lambda: mesh.router.status()["services"]["svc"]["instances"][0]["credit"] <= 0)
        program.send(signal.SIGTERM)
        assert program.ends(5.0) == 1
        assert lazy.get(5.0).status_code == 502


@pytest.mark.slow
def test_a_killed_instance_is_502_within_a_second_and_another_goes_on(mesh: Mesh) -> None:
    client = mesh.client()
    with Program.of(SERVICE, mesh.endpoint, "60") as program:
        wait_for(lambda: "svc" in mesh.router.status()["services"], 20.0)
        lazy = client.request_lazy("svc", "/nap", {"seconds": 60}, timeout=30.0)
        program.says("napping")
        before = monotonic()
        program.send(signal.SIGKILL)
        assert lazy.get(5.0).status_code == 502
        assert monotonic() - before < 1.0
    mesh.service(echo)
    assert client.request("svc", "/echo", {"value": 1}).body == 1


def test_a_bound_services_port_is_for_clients_a_rival_instance_is_refused() -> None:
    service = Service.bind(ANY_PORT, "svc")
    service.register_function(lambda: "mine", "whose")
    assert service._own_router is not None
    with service:
        endpoint = service._own_router.node.endpoints[0]
        with Service(endpoint, "svc") as rival, Client(endpoint) as client:
            rival.register_function(lambda: "a rival's", "whose")
            assert not rival.wait_until_registered(0.3)
            assert {client.rpc("svc").whose() for _ in range(10)} == {"mine"}


@pytest.mark.slow
def test_a_fork_that_closes_the_service_it_inherited_leaves_the_parents_alone() -> None:
    script = """
import os, time
import gevent, gevent.os
from butler_mesh import Client, Router, Service

with Router() as router:
    endpoint = router.bind("tcp://127.0.0.1:*")
    with Service(endpoint, "svc") as service, Client(endpoint) as client:
        service.register_function(lambda: os.getpid(), "pid")
        assert client.rpc("svc").pid() == os.getpid()
        (instance,) = router.node.machine.instances.values()
        until = time.monotonic() + 10
        while instance.control is None:
            assert time.monotonic() < until, "no control connection"
            gevent.sleep(0.02)
        done, closed = os.pipe()
        if gevent.os.fork() == 0:
            service.close()
            os.write(closed, b"x")
            os._exit(0)
        with gevent.Timeout(10):
            assert gevent.os.tp_read(done, 1) == b"x"
        for _ in range(30):
            assert client.rpc("svc").pid() == os.getpid()
            gevent.sleep(0.05)
        assert instance.control is not None
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "fine\n", done.stderr


def test_a_service_of_frames_is_called_with_those_of_any_request(mesh: Mesh) -> None:
    """Whatever path or method it has, and JSON as one frame byte by byte: Majordomo knows neither."""
    service = Service(mesh.endpoint, "svc", frames=True, grace=0.05)
    service.register_function(lambda *frames: list(frames), "/")
    mesh.join(service)
    client = mesh.client()
    assert client.request("svc", "/any/path", body=[b"a", b"\xff"]).body == [b"a", b"\xff"]
    assert client.request("svc", "/x", {"n": 1}, method="options").body == [
        b'{"path":"/x","method":"options","arguments":{"n":1}}'
    ]
    assert send_raw(client, "svc", b'{"path": 5}').body == [b'{"path": 5}']
    assert send_raw(client, "svc", b"cut", flags=RAW).status_code == 400
    assert client.request("svc", body=b"").body == [b""]


def test_a_service_of_frames_has_one_function_that_takes_them(mesh: Mesh) -> None:
    for functions in ((), (echo,)):
        with pytest.raises(UsageError, match="one function"):
            mesh.service(*functions, frames=True)
    service = Service(mesh.endpoint, "svc", frames=True, grace=0.05)
    service.register_function(lambda one, two: two, "/")
    mesh.join(service)
    assert mesh.client().request("svc", body=[b"a"]).status_code == 422
    assert mesh.client().request("svc", body=[b"a", b"b"]).body == b"b"
