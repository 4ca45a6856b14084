"""The mesh's own engines, as the contract wants them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from butler_mesh.connections import memory, rabbitmq, zeromq
from butler_mesh.connections.base import ClientConnection, InstanceConnection
from butler_mesh.connections.engine import MeshClient, MeshInstance
from butler_mesh.connections.node import RouterNode
from butler_mesh.protocol.client import ClientProtocol
from tests.brokers import Broker
from tests.connections.contract import Engine


def machine_of(client: ClientConnection) -> ClientProtocol:
    """Return the machine of a client's first router."""
    assert isinstance(client, MeshClient)
    return next(iter(client._links))


class MeshEngine(Engine):
    """What memory, tcp and ipc share: the same machines run."""

    def vanish(self, instance: InstanceConnection) -> None:
        assert isinstance(instance, MeshInstance)
        # The thread first: it is of this process and would outlive the instance.
        control, instance._control = instance._control, None
        if control is not None:
            control.stop()
        for pump in instance._links.values():
            # What a killed process had not sent is not sent.
            pump.machine.dirty.clear()
            pump.close()
        instance.abandon()


class MemoryEngine(MeshEngine):
    """``memory://``: the router comes with the first who names it, and goes with the last."""

    ENDPOINT = "memory://contract"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._monkeypatch = monkeypatch

    def set_grace(self, seconds: float) -> None:
        self._monkeypatch.setattr(memory, "RouterNode", partial(RouterNode, register_grace_s=seconds))

    def open_client(self, **options: Any) -> ClientConnection:
        return memory.client([self.ENDPOINT], **options)

    def open_instance(self, service: str, **options: Any) -> InstanceConnection:
        return memory.instance([self.ENDPOINT], service, options.pop("paths", ()), **options)


class SocketEngine(MeshEngine):
    """``tcp://`` and ``ipc://``: a router is bound, and bound again by ``restart``."""

    def __init__(self, endpoint: str, **options: Any) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.router: RouterNode | None = None
        self._options = options

    def start(self) -> RouterNode:
        """Bind a router where the one before was bound; on a free port the first time."""
        if self.router is None:
            self.router = RouterNode(**self._options)
            self.endpoint = self.router.bind(self.endpoint)
        return self.router

    def stop(self) -> None:
        """Close the router."""
        if self.router is not None:
            self.router.close()
            self.router = None

    def crash(self) -> None:
        """Close the router's sockets without a word, as when its process is killed."""
        if self.router is not None:
            self.router._pump.close()
            self.router = None

    def set_grace(self, seconds: float) -> None:
        self._options["register_grace_s"] = seconds

    def open_client(self, **options: Any) -> ClientConnection:
        self.start()
        return zeromq.client([self.endpoint], **options)

    def open_instance(self, service: str, **options: Any) -> InstanceConnection:
        self.start()
        return zeromq.instance([self.endpoint], service, options.pop("paths", ()), **options)

    def close(self) -> None:
        super().close()
        self.stop()


class RabbitEngine(Engine):
    """``amqp://``: one broker for all tests, whose queues go with the test that made them."""

    def __init__(self, broker: Broker) -> None:
        super().__init__()
        self.broker = broker
        self._client_options: dict[str, Any] = {}
        self._queues: set[str] = set()

    def set_grace(self, seconds: float) -> None:
        self._client_options["register_grace_s"] = seconds

    def vanish(self, instance: InstanceConnection) -> None:
        instance.abandon()

    def open_client(self, **options: Any) -> ClientConnection:
        return rabbitmq.client([self.broker.endpoint], **self._client_options, **options)

    def open_instance(self, service: str, **options: Any) -> InstanceConnection:
        paths = options.pop("paths", ())
        self._queues.update([service, *paths])
        return rabbitmq.instance([self.broker.endpoint], service, paths, **options)

    def close(self) -> None:
        super().close()
        self.broker.delete_queues(self._queues - {""})
