"""``amqp://`` keeps the contract, on a real RabbitMQ, and carries a whole mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from butler_mesh.application import Application
from butler_mesh.client import Client
from butler_mesh.errors import NotFound
from butler_mesh.handlers import ServiceMessageHandler
from butler_mesh.service import Service
from butler_mesh.service_client import ServiceClientMixin
from butler_mesh.service_connection import ServiceConnection
from tests.brokers import Broker
from tests.connections.contract import PATIENCE_S, Contract, Engine
from tests.connections.engines import RabbitEngine
from tests.waiting import wait_for


@pytest.fixture
def engine(rabbit: RabbitEngine) -> Engine:
    return rabbit


class TestRabbitMQ(Contract):
    pass


# --- a whole mesh, of which only the address tells what carries it -----------------------------


class Doubled(ServiceMessageHandler):
    def request(self) -> Any:
        self.add_to_payload("n", self.message.arguments["n"] * 2)
        self.set_status(200, "doubled")
        return self.render()


class Caller(ServiceClientMixin):
    def __init__(self, application: Any) -> None:
        self.application = application


@pytest.fixture
def address(broker: Broker) -> Iterator[Callable[[str], str]]:
    """Makes addresses of services, whose queues go with the test."""
    services: set[str] = set()

    def address(service: str = "") -> str:
        services.add(service)
        return f"{broker.endpoint}//{service}" if service else broker.endpoint

    yield address
    broker.delete_queues(services - {""})


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what tests open, latest first."""
    with ExitStack() as stack:
        yield stack


def test_a_client_speaks_to_functions_in_every_way(
    address: Callable[[str], str], stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    notices: list[str] = []
    service = Service(address("api.images"), grace=1.0)

    @service.function
    def resize(name: str, size: str = "1x1") -> Any:
        return {"name": name, "size": size}

    @service.function
    def count(to: int) -> Any:
        return iter(range(to))

    @service.function
    def fail() -> Any:
        raise KeyError("why")

    @service.function
    def note(text: str) -> None:
        notices.append(text)

    @service.function
    def raw() -> Any:
        return b"\0\xff"

    stack.enter_context(service)
    assert service.wait_until_registered(PATIENCE_S)
    client = stack.enter_context(Client(address(""), timeout=PATIENCE_S))
    response = client.request("api.images", "/resize", {"name": "a.jpg", "size": "2x2"})
    assert (response.status_code, response.body) == (200, {"name": "a.jpg", "size": "2x2"})
    assert client.rpc("api.images").resize("b.jpg") == {"name": "b.jpg", "size": "1x1"}
    with pytest.raises(KeyError, match="why"):
        client.rpc("api.images").fail()
    caplog.clear()
    with pytest.raises(NotFound):
        client.rpc("api.nobody").resize("c.jpg")
    lazies = [client.request_lazy("api.images", "/resize", {"name": str(n)}) for n in range(20)]
    assert [lazy.get().body["name"] for lazy in lazies] == [str(n) for n in range(20)]
    assert list(client.request_stream("api.images", "/count", {"to": 100})) == list(range(100))
    with client.request_stream("api.images", "/count", {"to": 100_000}) as stream:
        assert [next(stream) for _ in range(50)] == list(range(50))
    assert client.request("api.images", "/raw").body == b"\0\xff"
    client.request_nowait("api.images", "/note", {"text": "hello"})
    wait_for(lambda: notices == ["hello"])
    assert client.describe("api.images")["service"] == "api.images"
    assert client.close() == []


def test_an_application_answers_by_name_and_by_path(address: Callable[[str], str], stack: ExitStack) -> None:
    address("/double")
    connection = ServiceConnection(address("app"))
    application = Application(connection, [("^/double$", Doubled)], grace_s=0.1)
    stack.callback(application.close)
    application.start()
    assert connection.wait_until_registered(PATIENCE_S)
    client = stack.enter_context(Client(address("")))
    for service in ("app", None):
        response = client.request(service, "/double", {"n": 21})
        assert (response.status_code, response.body) == (200, {"n": 42})
    caller = Caller(SimpleNamespace())
    caller.register_service(address("app"))
    request = caller.create_service_request("/double", "request", {"n": 4})
    response, _ = caller.send_service_request(address("app"), request)
    assert response.body == {"n": 8}
    caller.unregister_service(address("app"))


def test_a_sealed_service_is_served_sealed_requests_only(
    address: Callable[[str], str], stack: ExitStack
) -> None:
    service = Service(address("sealed"), passphrase="open sesame", grace=0.1)
    service.register_function(lambda: "inside", "enter")
    stack.enter_context(service)
    assert service.wait_until_registered(PATIENCE_S)
    friend = stack.enter_context(Client(address("sealed"), passphrase="open sesame"))
    stranger = stack.enter_context(Client(address("sealed")))
    assert friend.rpc().enter() == "inside"
    assert stranger.request(None, "/enter").status_code == 401


def test_deadlines_are_inherited_over_the_broker(address: Callable[[str], str], stack: ExitStack) -> None:
    inner, outer = Service(address("inner"), grace=0.1), Service(address("outer"), grace=0.1)
    client = stack.enter_context(Client(address("")))
    inner.register_function(lambda: gevent.sleep(PATIENCE_S), "wait")
    outer.register_function(lambda: client.request("inner", "/wait").status_code, "ask")
    for service in (inner, outer):
        stack.enter_context(service)
        assert service.wait_until_registered(PATIENCE_S)
    assert client.request("outer", "/ask", timeout=0.2).status_code == 504


def test_a_client_without_persistence_has_a_connection_for_each_call(
    address: Callable[[str], str], stack: ExitStack
) -> None:
    service = Service(address("svc"), grace=0.1)
    service.register_function(lambda: "here", "where")
    stack.enter_context(service)
    assert service.wait_until_registered(PATIENCE_S)
    client = stack.enter_context(Client(address("svc"), persistent=False))
    assert [client.rpc().where() for _ in range(3)] == ["here"] * 3


def test_a_durable_request_is_stored_until_it_was_served(
    address: Callable[[str], str], stack: ExitStack
) -> None:
    address("jobs:durable")
    address("jobs:dead")
    notices: list[str] = []
    with Service(address("jobs"), grace=0.1, durable=True) as service:
        assert service.wait_until_registered(PATIENCE_S)
    client = stack.enter_context(Client(address("")))
    client.request_nowait("jobs", "/note", {"text": "kept"}, durable=True)
    with pytest.raises(NotFound):
        client.request_nowait("nobody", "/note", durable=True)
    service = Service(address("jobs"), grace=0.1, durable=True)
    service.register_function(lambda text: notices.append(text), "note")
    stack.enter_context(service)
    wait_for(lambda: notices == ["kept"])
