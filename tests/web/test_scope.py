"""Scopes: context, deadline, and the client whose departure ends the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.hub import get_hub

from butler_mesh import deadlines, tracing
from butler_mesh.clock import monotonic
from butler_mesh.errors import Stopped
from butler_mesh.web.scope import Scope

SOCKETS = ["butler_mesh.socket", "gunicorn.socket"]
KINDS = ["tcp", "unix"]

note: ContextVar[str] = ContextVar("note", default="unset")


class Pair:
    """A connection: the server's end, and the client's."""

    def __init__(self, kind: str) -> None:
        if kind == "unix":
            self.server, self.client = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self.client = socket.create_connection(listener.getsockname())
                self.server, _ = listener.accept()

    def close(self) -> None:
        self.server.close()
        self.client.close()


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.close()


def scope_of(pair: Pair | None = None, timeout_s: float = 5.0, **environ: Any) -> Scope:
    if pair is not None:
        environ["butler_mesh.socket"] = pair.server
    return Scope(environ, timeout_s)


def never() -> None:
    Event().wait()


# --- context and deadline -----------------------------------------------------------------------


def test_what_runs_sets_its_own_context_and_sees_what_ran_before() -> None:
    scope = scope_of()
    scope.run(note.set, "mine")
    assert scope.run(note.get) == "mine"
    assert scope.clean_up(note.get) == "mine"
    assert note.get() == "unset"


def test_a_result_and_a_failure_come_out_as_they_are() -> None:
    scope = scope_of()
    assert scope.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        scope.run(divmod, 7, 0)
    with pytest.raises(StopIteration):
        scope.run(next, iter(()))


def test_calls_inherit_the_deadline_until_it_is_renewed() -> None:
    scope = scope_of(timeout_s=5.0)
    first = scope.deadline
    assert scope.run(deadlines.current.get) == first
    assert 4.0 < first - monotonic() <= 5.0
    gevent.sleep(0.01)
    assert scope.run(deadlines.current.get) == first
    scope.renew()
    assert scope.run(deadlines.current.get) == scope.deadline > first
    assert deadlines.current.get() == deadlines.NEVER


def test_what_takes_too_long_is_stopped_whatever_it_catches() -> None:
    ends: list[str] = []

    def endless() -> None:
        try:
            never()
        except Exception:
            ends.append("caught")
        finally:
            ends.append("stopped")

    with pytest.raises(Stopped, match="deadline passed") as stopped:
        scope_of(timeout_s=0.02).run(endless)
    assert stopped.value.status == 504
    assert ends == ["stopped"]


def test_two_runs_share_the_time_of_one_request() -> None:
    scope = scope_of(timeout_s=0.05)
    began = monotonic()
    scope.run(gevent.sleep, 0.03)
    with pytest.raises(Stopped):
        scope.run(gevent.sleep, 0.04)
    with pytest.raises(Stopped):  # there is nothing left
        scope.run(never)
    assert monotonic() - began < 1.0
    assert scope.clean_up(lambda: "clean") == "clean"


@pytest.mark.parametrize(
    ("trace", "is_one"), [("00-" + "a" * 32 + "-" + "b" * 16 + "-01", True), ("00-" + "a" * 32, False)]
)
def test_the_trace_of_the_request_goes_on(trace: str, is_one: bool) -> None:
    assert scope_of(HTTP_TRACEPARENT=trace).run(tracing.current.get) == (trace if is_one else "")
    assert tracing.current.get() == ""


# --- the client ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOCKETS)
def test_what_runs_is_stopped_when_the_client_leaves(pair: Pair, name: str) -> None:
    scope = Scope({name: pair.server}, 5.0)
    gevent.spawn_later(0.01, pair.client.close)
    with pytest.raises(Stopped, match="the client left") as stopped:
        scope.run(never)
    assert stopped.value.status == 499


def test_a_client_that_has_left_before_stops_what_waits_and_not_what_does_not(pair: Pair) -> None:
    pair.client.close()
    scope = scope_of(pair)
    assert scope.run(lambda: "done") == "done"
    with pytest.raises(Stopped):
        scope.run(never)


def test_a_client_that_resets_its_connection_has_left() -> None:
    pair = Pair("tcp")
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    gevent.spawn_later(0.01, pair.client.close)
    with pytest.raises(Stopped, match="the client left"):
        scope_of(pair).run(never)
    pair.close()


def test_cleaning_up_goes_on_without_the_client(pair: Pair) -> None:
    ends: list[str] = []

    def work() -> None:
        try:
            never()
        finally:
            gevent.sleep(0.02)
            ends.append("clean")

    gevent.spawn_later(0.01, pair.client.close)
    scope = scope_of(pair)
    with pytest.raises(Stopped):
        scope.run(work)
    scope.clean_up(gevent.sleep, 0.02)
    assert ends == ["clean"]


def test_a_client_that_sends_has_not_left_and_costs_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    monkeypatch.setattr("butler_mesh.web.scope._has_left", lambda number: looks.append(number))
    pair.client.sendall(b"the next request")
    scope_of(pair).run(gevent.sleep, 0.1)
    assert looks == [pair.server.fileno()]
    assert pair.server.recv(100) == b"the next request"


def test_a_client_that_sent_and_then_left_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("butler_mesh.web.scope.LOOK_AGAIN_S", 0.01)
    pair = Pair("tcp")
    pair.client.sendall(b"the next request")
    gevent.spawn_later(0.05, pair.client.close)
    with pytest.raises(Stopped, match="the client left"):
        scope_of(pair).run(never)
    pair.close()


def test_a_server_that_reads_no_more_takes_nobody_for_having_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is how ours drains: a request that has arrived by then is answered."""
    monkeypatch.setattr("butler_mesh.web.scope.LOOK_AGAIN_S", 0.01)
    pair = Pair("tcp")
    pair.server.shutdown(socket.SHUT_RD)
    scope = scope_of(pair)
    scope.run(gevent.sleep, 0.1)
    gevent.spawn_later(0.02, pair.client.close)
    with pytest.raises(Stopped, match="the client left"):
        scope.run(never)
    pair.close()


def test_a_connection_that_is_closed_already_is_not_watched(pair: Pair) -> None:
    pair.server.close()
    scope_of(pair).run(gevent.sleep, 0.01)


def test_the_connection_is_left_as_it_was(pair: Pair) -> None:
    scope = scope_of(pair)
    pair.client.sendall(b"a")
    scope.run(gevent.sleep, 0.01)
    pair.client.sendall(b"b")
    assert scope.run(pair.server.recv, 10).startswith(b"a")
    assert pair.server.fileno() >= 0


def test_nothing_is_thrown_after_the_end(pair: Pair) -> None:
    scope = scope_of(pair, timeout_s=0.02)
    for _ in range(3):
        scope.run(lambda: None)
    pair.client.close()
    gevent.sleep(0.05)


def test_runs_leave_no_watchers_behind(pair: Pair) -> None:
    loop = get_hub().loop
    scope = scope_of(pair)
    pair.client.sendall(b"x")
    scope.run(gevent.sleep, 0.01)
    before = loop.activecnt
    for _ in range(100):
        scope.run(gevent.sleep, 0)
    assert loop.activecnt <= before


def test_a_scope_within_another_has_no_more_time() -> None:
    def within() -> tuple[float, float]:
        inner = Scope({}, 60.0)
        before = inner.run(deadlines.remaining_s)
        inner.renew()
        return before, inner.run(deadlines.remaining_s)

    assert all(4.0 < left_s <= 5.0 for left_s in Scope({}, 5.0).run(within))
