"""``memory://name``: clients and services of one process, with a router of their own between them.

The router comes with the first party that names it and goes with the last. The contract's four lines
are those of ``engine.py``: the same machines run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from gevent.hub import get_hub

from butler_mesh.connections.base import ClientConnection, InstanceConnection
from butler_mesh.connections.engine import MeshClient, MeshInstance
from butler_mesh.connections.node import RouterNode
from butler_mesh.connections.pipes import PipeEnd

# (hub, endpoint) -> the node and how many ends lead to it.
_nodes: dict[tuple[int, str], tuple[RouterNode, list[int]]] = {}


def _dial(endpoint: str) -> PipeEnd:
    key = (id(get_hub()), endpoint)
    if key not in _nodes:
        _nodes[key] = (RouterNode(), [0])
    node, users = _nodes[key]
    users[0] += 1
    return node.dial(partial(_let_go, key))


def _let_go(key: tuple[int, str]) -> None:
    node, users = _nodes[key]
    users[0] -= 1
    if not users[0]:
        del _nodes[key]
        node.close()


def client(endpoints: Sequence[str], **options: Any) -> ClientConnection:
    """Open the client side of the routers of these names."""
    return MeshClient([partial(_dial, endpoint) for endpoint in endpoints], **options)


def instance(
    endpoints: Sequence[str], service: str, paths: Sequence[str], **options: Any
) -> InstanceConnection:
    """Open the service side of the routers of these names."""
    return MeshInstance([partial(_dial, endpoint) for endpoint in endpoints], service, paths, **options)
