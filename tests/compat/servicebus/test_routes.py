"""The way through one broker, on either wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic

import pytest

from butler_mesh.compat.servicebus.event import Event
from butler_mesh.compat.servicebus.routes import MeshRoute, Route, XmlRoute
from butler_mesh.errors import NotFound, RequestFailed, Unavailable
from tests.brokers import free_port
from tests.compat.servicebus.conftest import Bench
from tests.compat.servicebus.services import Add, Note
from tests.waiting import wait_for

Open = Callable[..., Route]


@pytest.fixture(params=["mesh", "xml"])
def open_route(request: pytest.FixtureRequest, bench: Bench) -> Iterator[Open]:
    """Opens routes on one of the wires, and closes them."""
    opened: list[Route] = []

    def open_route(host: str = "", **options: str) -> Route:
        kind = XmlRoute if request.param == "xml" else MeshRoute
        configuration = bench.configuration(*([host] if host else []), wire=request.param, **options)
        opened.append(kind(configuration, configuration.hosts[0]))
        return opened[-1]

    yield open_route
    for route in opened:
        route.close()


def soon(patience: float = 2.5) -> tuple[float, float]:
    """Return a deadline, and the patience with a broker."""
    return monotonic() + 5.0, patience


@pytest.fixture
def note(bench: Bench) -> Note:
    """A node that adds, and notes messages."""
    note = Note()
    bus = bench.bus(wire="xml")
    bus.add_rpc_service("math", "add", Add())
    bus.add_message_service("util", "note", note)
    bench.start(bus)
    return note


def test_calls_messages_and_pings(open_route: Open, note: Note) -> None:
    route = open_route()
    assert route.ping("NODE-01")
    assert not route.ping("NODE-02")
    assert route.call("NODE-01", Event("1", "math", "add", [1, 2]), *soon()) == 3
    route.send("NODE-01", Event("2", "util", "note", {"text": "hello"}))
    wait_for(lambda: note.noted == [{"text": "hello"}])


def test_a_service_or_node_that_is_not_there_is_NotFound(open_route: Open, note: Note) -> None:
    route = open_route()
    with pytest.raises(NotFound):
        route.call("NODE-01", Event("1", "math", "sub", [1, 2]), *soon())
    with pytest.raises(NotFound):
        route.call("NODE-02", Event("1", "math", "add", [1, 2]), *soon())
    with pytest.raises(NotFound):
        route.send("NODE-02", Event("1", "util", "note", 1))


def test_another_secret_is_refused(open_route: Open, note: Note) -> None:
    with pytest.raises(RequestFailed) as caught:
        open_route(secret_token="another").call("NODE-01", Event("1", "math", "add", [1, 2]), *soon())
    assert caught.value.status == 401


def test_a_broker_that_says_nothing_is_given_up_in_time(open_route: Open, silent: str) -> None:
    route = open_route(silent)
    for _ in range(2):
        began = monotonic()
        with pytest.raises(Unavailable):
            route.call("NODE-01", Event("1", "math", "add", [1, 2]), *soon(0.05))
        assert monotonic() - began < 1.0


def test_without_a_broker_nothing_answers(open_route: Open, caplog: pytest.LogCaptureFixture) -> None:
    route = open_route(f"127.0.0.1:{free_port()}", socket_timeout="0.05")
    assert not route.ping("NODE-01")
    with pytest.raises(Unavailable):
        route.call("NODE-01", Event("1", "math", "add", [1, 2]), *soon(0.1))
    with pytest.raises(Unavailable):
        route.send("NODE-01", Event("1", "util", "note", 1))
