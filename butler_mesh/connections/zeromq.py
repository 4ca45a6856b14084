"""``tcp://`` and ``ipc://``: routers reached over ZeroMQ. The contract's four lines are ``engine.py``'s."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from butler_mesh.connections.base import ClientConnection, InstanceConnection
from butler_mesh.connections.engine import MeshClient, MeshInstance
from butler_mesh.connections.sockets import dial


def client(endpoints: Sequence[str], **options: Any) -> ClientConnection:
    """Connect to the routers at these endpoints."""
    return MeshClient([partial(dial, endpoint) for endpoint in endpoints], **options)


def instance(
    endpoints: Sequence[str], service: str, paths: Sequence[str], **options: Any
) -> InstanceConnection:
    """Register with the routers at these endpoints, on both planes."""
    dials = [partial(dial, endpoint) for endpoint in endpoints]
    return MeshInstance(dials, service, paths, control_endpoints=endpoints, **options)
