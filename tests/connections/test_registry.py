"""From an address to its engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from butler_mesh.addresses import Address
from butler_mesh.connections.base import ClientConnection, InstanceConnection
from butler_mesh.connections.node import RouterNode
from butler_mesh.connections.registry import (
    connect_client,
    connect_dead_letters,
    connect_instance,
    connect_queues,
)
from butler_mesh.errors import AddressError
from tests.connections.contract import PATIENCE_S, Call, echo


@pytest.fixture
def node() -> Iterator[RouterNode]:
    node = RouterNode()
    yield node
    node.close()


@pytest.fixture(params=["tcp", "ipc", "memory", "node"])
def target(request: pytest.FixtureRequest, node: RouterNode, tmp_path: Path) -> Address | RouterNode:
    """One of everything that can be connected to."""
    if request.param == "node":
        return node
    if request.param == "memory":
        return Address.parse("memory://registry")
    endpoint = "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/router.sock"
    return Address.parse(node.bind(endpoint))


def test_both_sides_meet_at_whatever_an_address_names(target: Address | RouterNode) -> None:
    instance = connect_instance(target, "svc", ["/path"], credit=2)
    client = connect_client(target, connect_timeout_s=PATIENCE_S)
    assert isinstance(instance, InstanceConnection)
    assert isinstance(client, ClientConnection)
    instance.serve(echo)
    assert instance.wait_until_registered(PATIENCE_S)
    assert Call(client, b"hello").final().envelope == b"hello"
    assert Call(client, b"hello", to="/path/below").final().envelope == b"hello"
    assert client.close(PATIENCE_S) == []
    instance.close(PATIENCE_S)


def test_an_address_of_several_endpoints_connects_to_all(node: RouterNode) -> None:
    other = RouterNode()
    endpoints = [node.bind("tcp://127.0.0.1:*"), other.bind("tcp://127.0.0.1:*")]
    instance = connect_instance(Address.parse(endpoints), "svc")
    instance.serve(echo)
    for endpoint in endpoints:
        client = connect_client(Address.parse(endpoint))
        assert Call(client).status == 200
        client.close(PATIENCE_S)
    instance.close(PATIENCE_S)
    other.close()


def test_a_scheme_without_an_engine_is_an_address_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules["butler_mesh.connections.registry"]._ENGINES, "tcp")
    address = Address.parse("tcp://127.0.0.1:5555")
    for connect in (connect_client, lambda address: connect_instance(address, "svc")):
        with pytest.raises(AddressError, match="tcp"):
            connect(address)


@pytest.mark.slow
def test_an_engine_is_imported_when_an_address_first_names_it() -> None:
    program = """
import sys
from butler_mesh.addresses import Address
from butler_mesh.connections.registry import connect_client
engines = {"butler_mesh.connections.memory", "butler_mesh.connections.zeromq"}
print(sorted(engines & set(sys.modules)))
connect_client(Address.parse("memory://here")).close(0.0)
print(sorted(engines & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["[]", "['butler_mesh.connections.memory']"]


@pytest.mark.slow
def test_without_pika_brokers_are_refused_with_how_to_get_it_and_the_rest_works() -> None:
    program = """
import sys
sys.modules["pika"] = None
from butler_mesh import Client, LoggingService, connect_queues
from butler_mesh.compat.servicebus.logging_service import LoggingService as theirs
from butler_mesh.errors import UsageError
for use in (lambda: connect_queues("amqp://host", "exchange"), lambda: Client("amqp://host").request("svc")):
    try:
        use()
    except UsageError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "amqp:// needs pika: pip install 'pika>=1.4,<2' (the extra 'rabbitmq')\n" * 2


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:5555", "memory://name", "nonsense", "amqp://host"])
def test_the_dead_have_a_broker_and_a_service(address: str) -> None:
    with pytest.raises(AddressError):
        connect_dead_letters(address)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:5555", "memory://name", "nonsense"])
def test_only_brokers_have_queues(address: str) -> None:
    with pytest.raises(AddressError):
        connect_queues(address, "exchange")
