"""Client: every way to ask, what a caller sees of everything that can go wrong, and whose it is."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from butler_mesh import deadlines
from butler_mesh.client import MIN_PAUSE_S, Client, _pause_s
from butler_mesh.clock import monotonic
from butler_mesh.connections.base import ClientConnection
from butler_mesh.errors import (
    AddressError,
    BadRequest,
    Closed,
    NotFound,
    NotSerializable,
    RequestFailed,
    Unavailable,
    UsageError,
    WrongThread,
)
from butler_mesh.messages import ServiceRequest, ServiceResponse
from butler_mesh.protocol.mesh import RAW
from butler_mesh.router import Router
from butler_mesh.service import Service
from tests.meshes import Mesh, drained, send_raw
from tests.programs import Program
from tests.waiting import wait_for


def echo(*args: Any, **kwargs: Any) -> Any:
    """Return what it was given."""
    return kwargs or (args[0] if args else None)


def sleepy(seconds: float = 60.0) -> str:
    gevent.sleep(seconds)
    return "awake"


# --- ways to ask -------------------------------------------------------------------------------------


def test_a_request_is_answered_with_the_functions_value(mesh: Mesh) -> None:
    mesh.service(echo)
    response = mesh.client().request("svc", "/echo", {"a": [1, None, "ü"]})
    assert response.status_code == 200
    assert response.is_success
    assert response.body == {"a": [1, None, "ü"]}
    assert response.path == "/echo"


@pytest.mark.parametrize("body", [b"", b"\x00\xff", [b"one", b"", b"three"], "text", 7, [1, 2], {"a": 1}])
def test_a_body_of_bytes_or_JSON_comes_back_as_it_was(mesh: Mesh, body: Any) -> None:
    def back(*parts: Any) -> Any:
        return list(parts) if len(parts) > 1 else parts[0]

    mesh.service(back)
    assert mesh.client().request("svc", "/back", body=body).body == body


def test_a_body_over_64_KiB_travels_both_ways(mesh: Mesh) -> None:
    mesh.service(echo)
    body = b"x" * 1_000_000
    assert mesh.client().request("svc", "/echo", body=body).body == body


def test_a_body_over_the_routers_maximum_is_413_and_the_next_request_works() -> None:
    with Mesh(max_body_bytes=100_000) as mesh:
        mesh.service(echo)
        client = mesh.client()
        assert client.request("svc", "/echo", body=b"x" * 200_000).status_code == 413
        assert client.request("svc", "/echo", {"a": 1}).body == {"a": 1}


def test_the_service_of_the_address_is_the_default(mesh: Mesh) -> None:
    mesh.service(echo, name="one")
    mesh.service(lambda: "two", name="two").register_function(lambda: "two", "echo")
    with Client(f"{mesh.endpoint}/one") as client:
        assert client.request(None, "/echo", {"a": 1}).body == {"a": 1}
        assert client.request("", "/echo", {"a": 1}).body == {"a": 1}
        assert client.request("two", "/echo").body == "two"


def test_without_a_service_the_owner_of_the_path_answers(mesh: Mesh) -> None:
    mesh.service(echo, name="")
    assert mesh.client().request(None, "/echo", {"a": 1}).body == {"a": 1}


def test_a_request_made_before_is_sent_by_send(mesh: Mesh) -> None:
    mesh.service(echo)
    request = ServiceRequest("/echo", arguments={"a": 1})
    assert mesh.client().send("svc", request).body == {"a": 1}


def test_many_greenlets_share_one_client_and_each_gets_its_own_reply(mesh: Mesh) -> None:
    mesh.service(echo)
    client = mesh.client()
    greenlets = [gevent.spawn(client.request, "svc", "/echo", {"n": n}) for n in range(300)]
    assert [one.get(timeout=10).body["n"] for one in greenlets] == list(range(300))
    assert mesh.router.status()["clients"] == 1


def test_only_the_calling_greenlet_waits(mesh: Mesh) -> None:
    mesh.service(echo, sleepy)
    client = mesh.client()
    slow = gevent.spawn(client.request, "svc", "/sleepy", {"seconds": 60})
    assert client.request("svc", "/echo", {"a": 1}).is_success
    assert not slow.ready()
    slow.kill()


def test_a_lazy_request_is_collected_later(mesh: Mesh) -> None:
    mesh.service(echo)
    lazies = [mesh.client().request_lazy("svc", "/echo", {"n": n}) for n in range(3)]
    assert [lazy.get(5.0).body["n"] for lazy in reversed(lazies)] == [2, 1, 0]


def test_a_nowait_request_returns_at_once_and_is_done(mesh: Mesh) -> None:
    done: list[int] = []
    mesh.service(done.append, name="svc").register_function(lambda n: done.append(n), "note")
    mesh.client().request_nowait("svc", "/note", {"n": 5})
    wait_for(lambda: done == [5])


def test_close_waits_until_nowait_requests_have_arrived_and_reports_those_refused(mesh: Mesh) -> None:
    done: list[int] = []
    mesh.service().register_function(lambda n: done.append(n), "note")
    client = mesh.client()
    for n in range(100):
        client.request_nowait("svc", "/note", {"n": n})
    client.request_nowait("nobody", "/note")
    [(code, message)] = client.close()
    assert code == 404
    assert "nobody" in message
    wait_for(lambda: len(done) == 100)


def test_butlers_call_takes_arguments_beside_the_method_or_as_args_and_kwargs(mesh: Mesh) -> None:
    mesh.service(lambda *a, **k: None).register_function(lambda *a, **k: [list(a), k], "both")
    client = mesh.client()
    assert client.call("svc", {"method": "both", "x": 1}) == [[], {"x": 1}]
    assert client.call("svc", {"method": "both", "args": [1, 2], "kwargs": {"x": 3}}) == [[1, 2], {"x": 3}]


@pytest.mark.parametrize("request_", [{}, {"method": 7}, {"method": None}])
def test_butlers_call_without_a_method_is_a_usage_error(mesh: Mesh, request_: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="method"):
        mesh.client().call("svc", request_)


def test_butlers_call_raises_what_the_function_raised(mesh: Mesh) -> None:
    def broken() -> None:
        raise LookupError("gone")

    mesh.service(broken)
    with pytest.raises(LookupError, match="gone"):
        mesh.client().call("svc", {"method": "broken"})


def test_describe_tells_paths_methods_signatures_and_docstrings(mesh: Mesh) -> None:
    mesh.service(echo, sleepy)
    client = mesh.client()
    described = client.describe("svc")
    assert described["service"] == "svc"
    assert described["paths"]["/sleepy"]["signature"].startswith("(seconds:")
    assert described["paths"]["/echo"]["doc"] == "Return what it was given."
    assert client.describe("svc", "/echo") == described["paths"]["/echo"]
    with pytest.raises(NotFound):
        client.describe("svc", "/nothing")


def test_a_client_of_a_router_object_needs_no_socket() -> None:
    with Router() as router, Service(router, "svc") as service, Client(router) as client:
        service.register_function(echo)
        assert client.request("svc", "/echo", {"a": 1}).body == {"a": 1}


def test_a_client_of_memory_meets_a_service_of_the_same_name() -> None:
    with Service("memory://test-client#svc") as service, Client("memory://test-client#svc") as client:
        service.register_function(echo)
        assert client.request(None, "/echo", {"a": 1}).body == {"a": 1}


# --- bad input ---------------------------------------------------------------------------------------

DEEP = b'{"path":"/echo","arguments":{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}}"


@pytest.mark.parametrize(
    ("envelope", "says"),
    [
        (b"not json", "not JSON"),
        (b"", "not JSON"),
        (b'{"path":"/echo"', "not JSON"),
        (b'{"path":"/echo"} trailing', "not JSON"),
        (b"[]", "object"),
        (b"7", "object"),
        (b"null", "object"),
        (b'"text"', "object"),
        (DEEP, "not JSON"),
        (b'{"path":"/echo","arguments":{"a":NaN}}', "not JSON"),
        (b'{"path":"/echo","arguments":{"a":-Infinity}}', "not JSON"),
        (b'{"path":"/echo","arguments":{"a":"\xff\xfe"}}', "not JSON"),
        (b'{"path":"/echo","arguments":{"a":"\xed\xa0\x80"}}', "not JSON"),
        (b'{"path":7}', "path"),
        (b'{"path":"echo"}', "path"),
        (b'{"path":""}', "path"),
        (b'{"path":"/echo","method":{}}', "method"),
        (b'{"path":"/echo","arguments":[1]}', "arguments"),
        (b'{"path":"/echo","headers":"x"}', "headers"),
        (b'{"path":"/echo","kwargs":[]}', "kwargs"),
        (b'{"path":"/echo","args":{}}', "args"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_an_envelope_that_is_none_is_400_and_the_next_request_works(
    mesh: Mesh, envelope: bytes, says: str
) -> None:
    mesh.service(echo)
    client = mesh.client()
    response = send_raw(client, "svc", envelope)
    assert response.status_code == 400
    assert says in response.status_msg
    assert client.request("svc", "/echo", {"a": 1}).body == {"a": 1}


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"\x01",
        b"\xff\xff\xff\xff{}",
        b"\x02\x00\x00\x00{}\x01\x00\xff\xff\xff\xff",
        b"\x02\x00\x00\x00[]\x00\x00",
    ],
)
def test_a_RAW_envelope_that_lies_is_400_and_the_next_request_works(mesh: Mesh, envelope: bytes) -> None:
    mesh.service(echo)
    client = mesh.client()
    assert send_raw(client, "svc", envelope, flags=RAW).status_code == 400
    assert client.request("svc", "/echo", {"a": 1}).body == {"a": 1}


@pytest.mark.parametrize(
    "path", ["/with spaces", "/ünïcödé/☃", "/../../etc/passwd", "/a//b", "/%2e%2e", "/echo/", "/\x00", "/\n"]
)
def test_a_strange_path_is_found_if_it_was_registered_and_else_404(mesh: Mesh, path: str) -> None:
    service = mesh.service(echo)
    client = mesh.client()
    missing = client.request("svc", path)
    assert missing.status_code == 404
    assert path in missing.status_msg
    service.register_function(lambda: "found", path)
    assert client.request("svc", path).body == "found"
    assert client.request("svc", "/echo", {"a": 1}).body == {"a": 1}


def test_a_path_with_half_a_character_is_404_and_the_next_request_works(mesh: Mesh) -> None:
    mesh.service(echo)
    client = mesh.client()
    assert send_raw(client, "svc", b'{"path":"/\\ud800"}').status_code == 404
    assert client.request("svc", "/echo", {"a": 1}).body == {"a": 1}


@pytest.mark.parametrize(
    "value", [object(), b"bytes", {1, 2}, float("nan"), "\ud800", {"deep": [float("inf")]}, 1j]
)
def test_arguments_that_JSON_cannot_hold_are_refused_before_they_are_sent(mesh: Mesh, value: Any) -> None:
    mesh.service(echo)
    client = mesh.client()
    with pytest.raises(NotSerializable):
        client.request("svc", "/echo", {"a": value})
    with pytest.raises(TypeError):
        client.request_nowait("svc", "/echo", {"a": value})
    assert client.request("svc", "/echo", {"a": 1}).body == {"a": 1}


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nonsense",
        "http://127.0.0.1:5555",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:99999",
        "tcp://:5555",
        "tcp://h:x",
    ],
)
def test_an_address_with_a_bad_scheme_or_port_is_refused_at_once(address: str) -> None:
    with pytest.raises(AddressError):
        Client(address)
    with pytest.raises(ValueError):
        Client([address])


def test_an_unknown_service_or_path_is_404_and_says_which(mesh: Mesh) -> None:
    mesh.service(echo)
    client = mesh.client()
    assert "no such service: nobody" in client.request("nobody", "/echo").status_msg
    assert client.request("nobody", "/echo").status_code == 404
    assert "no such path: /nowhere" in client.request(None, "/nowhere").status_msg
    assert "/nothing" in client.request("svc", "/nothing").status_msg


# --- deadlines ---------------------------------------------------------------------------------------


def test_a_handler_that_never_returns_is_504_for_its_caller_and_stopped(mesh: Mesh) -> None:
    ended: list[str] = []

    def endless() -> None:
        try:
            gevent.sleep(3600)
        except Exception:
            ended.append("caught")
        finally:
            ended.append("finally")

    mesh.service(endless, echo)
    client = mesh.client()
    response = client.request("svc", "/endless", timeout=0.1)
    assert response.status_code == 504
    wait_for(lambda: ended == ["finally"])
    wait_for(lambda: drained(mesh.router.status()))
    assert client.request("svc", "/echo", {"a": 1}).is_success


def test_the_clients_timeout_holds_where_a_call_sets_none(mesh: Mesh) -> None:
    mesh.service(sleepy)
    client = mesh.client(timeout=0.03)
    assert client.request("svc", "/sleepy").status_code == 504
    with pytest.raises(TimeoutError):
        client.rpc("svc").sleepy()
    client.timeout = 5.0
    assert client.request("svc", "/sleepy", {"seconds": 0.05}).body == "awake"


def test_a_deadline_that_has_passed_is_504_at_once(mesh: Mesh) -> None:
    ran: list[int] = []
    mesh.service().register_function(lambda: ran.append(1), "note")
    client = mesh.client()
    assert client.request("svc", "/note", timeout=0.0).status_code == 504
    assert client.request("svc", "/note", timeout=-1.0).status_code == 504
    assert client.request("svc", "/note").is_success
    assert ran == [1]


@pytest.mark.parametrize("timeout", [float("inf"), float("nan")])
def test_a_timeout_without_an_end_is_a_usage_error(mesh: Mesh, timeout: float) -> None:
    client = mesh.client()
    for ask in (client.request, client.request_lazy, client.request_stream, client.request_nowait):
        with pytest.raises(UsageError, match="deadline"):
            ask("svc", "/echo", timeout=timeout)
    client.timeout = timeout
    with pytest.raises(UsageError, match="deadline"):
        client.request("svc", "/echo")


def test_a_nested_call_inherits_the_deadline_and_a_nowait_request_has_its_own_60_s(mesh: Mesh) -> None:
    inner_client = mesh.client()
    left: dict[str, float] = {}

    def note(who: str) -> None:
        left[who] = deadlines.remaining_s()

    def outer() -> None:
        note("outer")
        inner_client.request("inner", "/note", {"who": "request"})
        inner_client.request("inner", "/note", {"who": "shorter"}, timeout=1.0)
        inner_client.request_lazy("inner", "/note", {"who": "lazy"}).get()
        inner_client.rpc("inner").note("rpc")
        inner_client.request_nowait("inner", "/note", {"who": "nowait"})

    mesh.service(note, name="inner")
    mesh.service(outer, name="outer")
    assert mesh.client().request("outer", "/outer", timeout=5.0).is_success
    wait_for(lambda: "nowait" in left)
    assert left["outer"] <= 5.01
    assert left["shorter"] <= 1.01
    # Remaining time is rounded up to milliseconds at each hop.
    assert all(1.0 < left[who] <= left["outer"] + 0.01 for who in ("request", "lazy", "rpc"))
    assert 55.0 < left["nowait"] <= 60.0
    assert deadlines.remaining_s() == deadlines.NEVER


def test_a_caller_that_is_killed_or_timed_out_cancels_its_call(mesh: Mesh) -> None:
    ended: list[int] = []

    def endless() -> None:
        try:
            gevent.sleep(3600)
        finally:
            ended.append(1)

    mesh.service(endless, echo)
    client = mesh.client()
    caller = gevent.spawn(client.request, "svc", "/endless")
    wait_for(lambda: mesh.router.status()["services"]["svc"]["instances"][0]["in_flight"] == 1)
    caller.kill()
    wait_for(lambda: ended == [1])
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        client.request("svc", "/endless")
    wait_for(lambda: ended == [1, 1])
    assert client.request("svc", "/echo", {"a": 1}).body == {"a": 1}


def test_a_client_that_vanishes_mid_call_stops_its_handler(mesh: Mesh) -> None:
    ended: list[int] = []

    def endless() -> None:
        try:
            gevent.sleep(3600)
        finally:
            ended.append(1)

    mesh.service(endless, echo)
    client = mesh.client()
    client.request_lazy("svc", "/endless")
    wait_for(lambda: mesh.router.status()["services"]["svc"]["instances"][0]["in_flight"] == 1)
    for pump in client._connect()._links.values():  # type: ignore[attr-defined]
        pump.close()  # without a word
    wait_for(lambda: ended == [1])
    client.close(drain=0.0)
    assert mesh.client().request("svc", "/echo", {"a": 1}).is_success


# --- retries -----------------------------------------------------------------------------------------


class Refusing:
    """A service that refuses a number of requests before it takes one."""

    def __init__(self, times: int, error: RequestFailed) -> None:
        self.times = times
        self.error = error
        self.asked_at: list[float] = []

    def ask(self) -> str:
        self.asked_at.append(monotonic())
        if len(self.asked_at) <= self.times:
            raise self.error
        return "at last"


@pytest.fixture
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("butler_mesh.client.MIN_PAUSE_S", 0.001)


@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize("code", [429, 503])
def test_what_was_never_started_is_tried_again(mesh: Mesh, code: int) -> None:
    service = Refusing(2, Unavailable("busy", status=code))
    mesh.service(service.ask)
    assert mesh.client(retries=2).request("svc", "/ask").body == "at last"
    assert len(service.asked_at) == 3


@pytest.mark.usefixtures("_eager")
def test_when_the_tries_are_used_up_the_last_failure_is_the_response(mesh: Mesh) -> None:
    service = Refusing(9, Unavailable("busy", status=503))
    mesh.service(service.ask)
    assert mesh.client(retries=2).request("svc", "/ask").status_code == 503
    assert len(service.asked_at) == 3


def test_without_retries_nothing_is_tried_again(mesh: Mesh) -> None:
    service = Refusing(1, Unavailable("busy", status=503))
    mesh.service(service.ask)
    assert mesh.client().request("svc", "/ask").status_code == 503
    assert len(service.asked_at) == 1


@pytest.mark.usefixtures("_eager")
def test_what_may_have_run_is_tried_again_only_if_it_is_idempotent(mesh: Mesh) -> None:
    service = Refusing(1, RequestFailed("lost", status=502))
    mesh.service(service.ask)
    client = mesh.client(retries=3)
    assert client.request("svc", "/ask").status_code == 502
    service.asked_at.clear()
    assert client.request("svc", "/ask", idempotent=True).body == "at last"


@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize("code", [400, 404, 409, 422, 500, 504])
def test_other_failures_are_never_tried_again(mesh: Mesh, code: int) -> None:
    service = Refusing(1, RequestFailed("no", status=code))
    mesh.service(service.ask)
    assert mesh.client(retries=3).request("svc", "/ask", idempotent=True).status_code == code
    assert len(service.asked_at) == 1


@pytest.mark.usefixtures("_eager")
def test_a_503_of_a_nested_call_does_not_mean_that_the_outer_one_never_started(mesh: Mesh) -> None:
    outer_ran: list[int] = []
    inner = Refusing(9, Unavailable("busy", status=503, retry_after_s=0.0))
    client = mesh.client()

    def outer() -> None:
        outer_ran.append(1)
        client.rpc("inner").ask()

    mesh.service(inner.ask, name="inner")
    mesh.service(outer, name="outer")
    response = mesh.client(retries=3).request("outer", "/outer")
    assert response.status_code == 500
    assert response.error["type"] == "Unavailable"
    assert outer_ran == [1]


@pytest.mark.slow
def test_a_retry_waits_as_long_as_it_is_asked_to(mesh: Mesh) -> None:
    service = Refusing(1, Unavailable("busy", status=503, retry_after_s=0.3))
    mesh.service(service.ask)
    assert mesh.client(retries=1).request("svc", "/ask").body == "at last"
    first, second = service.asked_at
    assert 0.3 <= second - first < 2.0


def test_a_retry_that_would_come_after_the_deadline_is_not_waited_for(mesh: Mesh) -> None:
    service = Refusing(1, Unavailable("busy", status=503, retry_after_s=60.0))
    mesh.service(service.ask)
    before = monotonic()
    assert mesh.client(retries=1).request("svc", "/ask", timeout=5.0).status_code == 503
    assert monotonic() - before < 4.0


@pytest.mark.parametrize("header", ["nan", "-5", "soon", "", "0"])
def test_a_Retry_After_that_makes_no_sense_is_the_shortest_pause(header: str) -> None:
    response = ServiceResponse(503, headers={"Retry-After": header})
    assert MIN_PAUSE_S <= _pause_s(response) <= MIN_PAUSE_S * 1.5


def test_pauses_spread_and_are_never_shorter_than_asked() -> None:
    response = ServiceResponse(503, headers={"Retry-After": "2"})
    pauses = {_pause_s(response) for _ in range(50)}
    assert len(pauses) > 10
    assert min(pauses) >= 2.0
    assert max(pauses) <= 3.0


# --- connections -------------------------------------------------------------------------------------


def test_nothing_is_opened_before_the_first_call() -> None:
    client = Client("tcp://127.0.0.1:1")
    assert client._connection is None
    assert client.close() == []


@pytest.mark.slow
def test_without_a_router_a_call_is_503_after_the_connect_timeout() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with Client(endpoint, connect_timeout=0.3) as client:
        response = client.request("svc", "/echo")
    assert response.status_code == 503
    assert "router" in response.status_msg


def test_a_persistent_client_keeps_its_connection(mesh: Mesh) -> None:
    mesh.service(echo)
    client = mesh.client()
    client.request("svc", "/echo")
    first = client._connection
    client.request("svc", "/echo")
    assert client._connection is first


def test_a_client_that_is_not_persistent_opens_one_for_each_call_and_closes_it(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[ClientConnection] = []
    original = Client._open

    def open_(client: Client) -> ClientConnection:
        opened.append(original(client))
        return opened[-1]

    monkeypatch.setattr(Client, "_open", open_)
    mesh.service(echo)
    client = mesh.client(persistent=False)
    for _ in range(3):
        assert client.request("svc", "/echo", {"a": 1}).body == {"a": 1}
    assert len(set(map(id, opened))) == 3
    assert client._connection is None
    wait_for(lambda: mesh.router.status()["clients"] == 0)


def test_calls_of_a_client_that_is_not_persistent_do_not_end_each_other(mesh: Mesh) -> None:
    mesh.service(echo, sleepy)
    client = mesh.client(persistent=False)
    slow = gevent.spawn(client.request, "svc", "/sleepy", {"seconds": 0.15})
    lazy = client.request_lazy("svc", "/sleepy", {"seconds": 0.15})
    wait_for(lambda: mesh.router.status()["clients"] == 2)
    assert client.request("svc", "/echo", {"a": 1}).is_success
    assert slow.get(timeout=5).body == "awake"
    assert lazy.get(5.0).body == "awake"


def test_a_client_that_is_closed_answers_what_waits_and_takes_no_more(mesh: Mesh) -> None:
    mesh.service(sleepy)
    client = mesh.client()
    caller = gevent.spawn(client.request, "svc", "/sleepy")
    wait_for(lambda: not drained(mesh.router.status()))
    client.close()
    assert caller.get(timeout=5).status_code == 499
    with pytest.raises(Closed):
        client.request("svc", "/sleepy")
    assert client.close() == []


def test_the_end_of_with_closes(mesh: Mesh) -> None:
    mesh.service(echo)
    with mesh.client() as client:
        client.request("svc", "/echo")
    wait_for(lambda: mesh.router.status()["clients"] == 0)
    with pytest.raises(Closed):
        client.request("svc", "/echo")


def test_from_another_thread_a_client_raises_WrongThread(mesh: Mesh) -> None:
    mesh.service(echo)
    client = mesh.client()
    client.request("svc", "/echo")
    raised: list[BaseException] = []

    def other() -> None:
        try:
            client.request("svc", "/echo")
        except WrongThread as error:
            raised.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert "one thread" in str(raised[0])
    assert client.request("svc", "/echo", {"a": 1}).is_success


FORK = """
    import sys
    {patch}
    import os
    import gevent, gevent.os
    from butler_mesh import Client, Router, Service

    router = Router()
    endpoint = router.bind("tcp://127.0.0.1:*")
    service = Service(endpoint, "svc")
    service.register_function(lambda: os.getpid(), "pid")
    service.start()
    client = Client(endpoint)
    parent = client.rpc("svc").pid()
    assert parent == os.getpid()

    pid = {fork}()
    if pid == 0:
        code = 1
        try:
            # The parent's router answers, over a connection of our own.
            assert client.rpc("svc").pid() == parent
            assert client._pid == os.getpid() != parent
            gevent.sleep(1.2)  # timers of the parent's that run on would show themselves
            client.close()
            code = 0
        finally:
            os._exit(code)
    while True:
        ended, status = {waitpid}(pid, os.WNOHANG)
        if ended:
            break
        gevent.sleep(0.01)
    assert os.waitstatus_to_exitcode(status) == 0, status
    for _ in range(100):
        assert client.rpc("svc").pid() == parent
    print("the parent's goes on", router.status()["clients"])
    client.close()
    service.close()
    router.stop()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "fork", "waitpid"),
    [
        ("", "gevent.os.fork_and_watch", "gevent.os.waitpid"),
        ("from gevent import monkey; monkey.patch_all()", "os.fork", "os.waitpid"),
    ],
)
def test_after_a_fork_the_parents_client_works_and_the_child_makes_its_own(
    patch: str, fork: str, waitpid: str
) -> None:
    with Program.of(FORK.format(patch=patch, fork=fork, waitpid=waitpid)) as program:
        assert program.ends() == 0, program.stderr
        assert b"the parent's goes on" in program.stdout


IDLE_FORK = """
    import os, resource
    import gevent, gevent.os
    from butler_mesh import Client, Router, Service

    with Router() as router:
        endpoint = router.bind("tcp://127.0.0.1:*")
        with Service(endpoint, "svc") as service, Client(endpoint) as client:
            service.register_function(lambda: 1, "one")
            client.rpc("svc").one()
            pid = gevent.os.fork_and_watch()
            if pid == 0:
                gevent.sleep(1.5)  # a child that has no use for what it inherited
                usage = resource.getrusage(resource.RUSAGE_SELF)
                os._exit(0 if usage.ru_utime + usage.ru_stime < 1.2 else 1)
            while not (ended := gevent.os.waitpid(pid, os.WNOHANG))[0]:
                gevent.sleep(0.01)
                client.rpc("svc").one()
            assert os.waitstatus_to_exitcode(ended[1]) == 0, ended
            client.rpc("svc").one()
"""


@pytest.mark.slow
def test_a_fork_that_uses_nothing_of_the_mesh_disturbs_nobody() -> None:
    with Program.of(IDLE_FORK) as program:
        assert program.ends() == 0, program.stderr


FORGETFUL = """
    import sys
    from butler_mesh import Client

    for n in range(3):
        Client(sys.argv[1]).request_nowait("svc", "/take", {"n": n})
"""


def test_a_program_that_ends_with_a_client_that_nobody_holds_has_sent_what_it_was_given(mesh: Mesh) -> None:
    taken: list[int] = []

    def take(n: int) -> None:
        taken.append(n)

    mesh.service(take)
    with Program.of(FORGETFUL, mesh.endpoint) as program:
        assert program.ends() == 0, program.stderr
    wait_for(lambda: sorted(taken) == [0, 1, 2])


def test_the_connection_is_one_for_all_ways_to_ask(mesh: Mesh) -> None:
    def parts() -> Iterator[int]:
        yield from range(3)

    mesh.service(echo, parts)
    client = mesh.client()
    assert client.request("svc", "/echo", {"a": 1}).is_success
    assert list(client.request_stream("svc", "/parts")) == [0, 1, 2]
    assert client.request_lazy("svc", "/echo").get(5.0).is_success
    assert client.rpc("svc").echo(1) == 1
    assert mesh.router.status()["clients"] == 1


def test_raise_for_status_raises_what_stands_for_the_reply(mesh: Mesh) -> None:
    mesh.service(echo)
    client = mesh.client()
    client.request("svc", "/echo").raise_for_status()
    with pytest.raises(NotFound) as found:
        client.request("svc", "/nothing").raise_for_status()
    assert isinstance(found.value, BadRequest)
    assert found.value.status == 404


def test_a_client_that_becomes_persistent_in_mid_call_keeps_its_connection(mesh: Mesh) -> None:
    """The call that runs ends its own connection or none, whatever is set meanwhile."""
    go = Event()
    mesh.service(lambda: go.wait(10.0), name="svc").register_function(lambda: 1, "one")
    client = mesh.client()
    call = gevent.spawn(client.request, "svc", "/<lambda>")
    wait_for(lambda: mesh.router.status()["services"]["svc"]["instances"][0]["in_flight"] == 1)
    client.persistent = False
    go.set()
    assert call.get(timeout=5.0).status_code == 200
    client.persistent = True
    assert client.request("svc", "/one").body == 1


def test_clients_spread_over_the_routers_of_an_address() -> None:
    routers = [Router() for _ in range(3)]
    address = [router.bind("tcp://127.0.0.1:*") for router in routers]
    drawn = set()
    for _ in range(60):  # one time in 10^10 they all miss one of three
        with Client(address) as client:
            drawn.add(client.request("mmi.status").body["router"])
    assert drawn == {router.node.machine.router_id for router in routers}
    for router in routers:
        router.stop()
