"""``memory://`` keeps the contract, and its router lives as long as somebody uses it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from butler_mesh.connections import memory
from tests.connections.contract import Call, Contract, Engine, echo
from tests.connections.engines import MemoryEngine
from tests.waiting import wait_for


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    engine = MemoryEngine(monkeypatch)
    yield engine
    engine.close()
    assert not memory._nodes


class TestMemory(Contract):
    pass


def test_names_are_apart(engine: Engine) -> None:
    engine.set_grace(0.0)
    engine.instance(echo)
    stranger = memory.client(["memory://elsewhere"])
    assert Call(stranger).status == 404
    stranger.close(1.0)
    assert Call(engine.client()).status == 200


def test_the_router_goes_with_its_last_user_and_comes_back_as_another() -> None:
    first = memory.client(["memory://gone"])
    second = memory.client(["memory://gone"])
    ((node, _),) = memory._nodes.values()
    first.close(1.0)
    assert memory._nodes
    second.close(1.0)
    assert not memory._nodes
    third = memory.client(["memory://gone"])
    assert next(iter(memory._nodes.values()))[0] is not node
    third.close(1.0)


def test_several_names_are_several_routers() -> None:
    instance = memory.instance(["memory://a", "memory://b"], "svc", ())
    instance.serve(echo)
    clients = [memory.client([name]) for name in ("memory://a", "memory://b")]
    assert [Call(client).status for client in clients] == [200, 200]
    for client in clients:
        client.close(1.0)
    instance.close(1.0)
    wait_for(lambda: not memory._nodes)
