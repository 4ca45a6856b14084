"""A router's node: ports for those who are let in, and none left behind."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest

from butler_mesh.connections import zeromq
from butler_mesh.connections.base import ClientConnection, InstanceConnection
from butler_mesh.connections.engine import MeshClient, MeshInstance
from butler_mesh.connections.node import RouterNode
from butler_mesh.errors import AddressError, AddressInUse
from butler_mesh.protocol.member import Phase
from tests.connections.contract import PATIENCE_S, Call, Gate, echo
from tests.connections.engines import machine_of
from tests.waiting import wait_for

ANY = "tcp://127.0.0.1:*"


@pytest.fixture
def node() -> Iterator[RouterNode]:
    node = RouterNode(register_grace_s=0.0)
    yield node
    node.close()


@pytest.fixture
def parties() -> Iterator[list[ClientConnection | InstanceConnection]]:
    """Clients and instances to close at the end."""
    parties: list[ClientConnection | InstanceConnection] = []
    yield parties
    for party in parties:
        party.close(0.0)


Parties = list[ClientConnection | InstanceConnection]


def join(parties: Parties, endpoint: str, service: str = "svc") -> InstanceConnection:
    """Start an instance that echoes."""
    instance = zeromq.instance([endpoint], service, ())
    parties.append(instance)
    instance.serve(echo)
    return instance


def test_bind_returns_the_endpoint_with_the_chosen_port(node: RouterNode) -> None:
    endpoints = {node.bind(ANY) for _ in range(3)}
    assert len(endpoints) == 3
    assert all(endpoint.rpartition(":")[2].isdecimal() for endpoint in endpoints)


def test_a_front_end_and_a_back_end_serve_together(node: RouterNode, parties: Parties) -> None:
    front, back = node.bind(ANY, services=False), node.bind(ANY, clients=False)
    assert join(parties, back).wait_until_registered(PATIENCE_S)
    client = zeromq.client([front])
    parties.append(client)
    assert Call(client, b"through").final().envelope == b"through"


def test_a_front_end_takes_no_services(node: RouterNode, parties: Parties) -> None:
    instance = join(parties, node.bind(ANY, services=False))
    wait_for(lambda: node.machine.counters["refused.role"])
    assert not instance.wait_until_registered(0.0)
    assert node.status()["services"] == {}


def test_a_back_end_takes_no_clients(node: RouterNode, parties: Parties) -> None:
    back = node.bind(ANY, clients=False)
    assert join(parties, back).wait_until_registered(PATIENCE_S)
    client = zeromq.client([back], connect_timeout_s=0.1)
    parties.append(client)
    assert Call(client).status == 503


def test_parties_of_this_process_and_of_others_meet(node: RouterNode, parties: Parties) -> None:
    inside = MeshInstance([node.dial], "inside")
    parties.append(inside)
    inside.serve(echo)
    endpoint = node.bind(ANY)
    assert join(parties, endpoint, "outside").wait_until_registered(PATIENCE_S)
    for client in (MeshClient([node.dial]), zeromq.client([endpoint])):
        parties.append(client)
        assert [Call(client, to=to).status for to in ("inside", "outside", "neither")] == [200, 200, 404]


def test_all_local_parties_come_through_one_door(node: RouterNode, parties: Parties) -> None:
    parties += [MeshClient([node.dial]) for _ in range(3)]
    assert len(node.machine.doors) == 1
    wait_for(lambda: len(node.machine.doors[0].peers) == 3)


def test_a_bind_that_fails_leaves_the_router_as_it_was(node: RouterNode, parties: Parties) -> None:
    endpoint = node.bind(ANY)
    with pytest.raises(AddressInUse):
        node.bind(endpoint)
    with pytest.raises(AddressError):
        node.bind("ipc:///no/such/directory/x")
    assert len(node.machine.doors) == 1
    assert join(parties, endpoint).wait_until_registered(PATIENCE_S)


def test_status_tells_who_is_there(node: RouterNode, parties: Parties) -> None:
    endpoint = node.bind(ANY)
    assert join(parties, endpoint).wait_until_registered(PATIENCE_S)
    client = zeromq.client([endpoint])
    parties.append(client)
    assert Call(client).status == 200
    status = node.status()
    assert status["clients"] == 1
    (instance,) = status["services"]["svc"]["instances"]
    assert instance["state"] == "ready"


def test_close_tells_everybody_at_once(node: RouterNode, parties: Parties) -> None:
    endpoint = node.bind(ANY)
    instance = join(parties, endpoint)
    assert instance.wait_until_registered(PATIENCE_S)
    clients = [zeromq.client([endpoint]), MeshClient([node.dial])]
    parties += clients
    machines = [machine_of(client) for client in clients]
    wait_for(lambda: all(machine.phase is Phase.PRESENT for machine in machines))
    node.close()
    node.close()
    wait_for(lambda: all(machine.phase is Phase.ABSENT for machine in machines), 0.5)
    wait_for(lambda: not instance.is_registered, 0.5)  # type: ignore[attr-defined]


def test_a_closed_routers_endpoint_is_free(node: RouterNode) -> None:
    endpoint = node.bind(ANY)
    node.close()
    other = RouterNode()
    assert other.bind(endpoint) == endpoint
    other.close()


def test_drain_waits_for_what_came_and_takes_nothing_new(node: RouterNode, parties: Parties) -> None:
    gate = Gate()
    instance = MeshInstance([node.dial], "svc")
    client = MeshClient([node.dial])
    parties += [instance, client]
    instance.serve(gate)
    assert instance.wait_until_registered(PATIENCE_S)
    call = Call(client)
    wait_for(lambda: gate.now)
    draining = gevent.spawn(node.drain, PATIENCE_S)
    gevent.sleep(0)
    assert Call(client).status == 503
    assert not draining.ready()
    gate.open()
    draining.get(timeout=PATIENCE_S)
    assert call.status == 200


def test_drain_does_not_wait_for_ever(node: RouterNode, parties: Parties) -> None:
    gate = Gate()
    instance = MeshInstance([node.dial], "svc")
    client = MeshClient([node.dial])
    parties += [instance, client]
    instance.serve(gate)
    assert instance.wait_until_registered(PATIENCE_S)
    call = Call(client)
    wait_for(lambda: gate.now)
    with gevent.Timeout(5.0):
        node.drain(0.05)
    assert not call.replies
    gate.open()
