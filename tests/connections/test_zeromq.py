"""``tcp://`` and ``ipc://`` keep the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from butler_mesh.connections import zeromq
from butler_mesh.errors import AddressError
from tests.connections.contract import Contract, Engine
from tests.connections.engines import SocketEngine


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    kind = request.param
    engine = SocketEngine("tcp://127.0.0.1:*" if kind == "tcp" else f"ipc://{tmp_path}/router.sock")
    yield engine
    engine.close()


@pytest.mark.parametrize("engine", ["tcp", "ipc"], indirect=True)
class TestZeroMQ(Contract):
    pass


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1", "ipc://", "http://a:1"])
def test_an_endpoint_that_cannot_be_is_an_address_error_and_leaves_nothing_open(endpoint: str) -> None:
    with pytest.raises(AddressError):
        zeromq.client(["tcp://127.0.0.1:5555", endpoint])
