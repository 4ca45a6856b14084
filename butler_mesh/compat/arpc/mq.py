"""arpc's ``mq``: workers with ``c_`` methods, callers, and management by the keys ``mgt.…``.

A routing key is the name of a service. A document ``{'c': 'add', 'x': 4, 'y': 8}`` is a request to ``/add``,
with the document as its body.
"""

from __future__ import annotations

from butler_mesh.compat.arpc.caller import LazyResult, ServiceCaller
from butler_mesh.compat.arpc.operations import AMQPOperations
from butler_mesh.compat.arpc.server import Server, make_json_server, make_server

__all__ = ["AMQPOperations", "LazyResult", "Server", "ServiceCaller", "make_json_server", "make_server"]
