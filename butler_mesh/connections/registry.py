"""From an address to its engine; the driver is imported when an address first names it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from butler_mesh.addresses import Address
from butler_mesh.connections.base import MANAGEMENT, ClientConnection, InstanceConnection
from butler_mesh.connections.engine import MeshClient, MeshInstance
from butler_mesh.connections.node import RouterNode
from butler_mesh.connections.sealed import SealedClient, SealedInstance
from butler_mesh.connections.several import SeveralInstances
from butler_mesh.errors import AddressError, UsageError
from butler_mesh.sealing import Seal

if TYPE_CHECKING:
    from butler_mesh.connections.amqp.dead import DeadLetters
    from butler_mesh.connections.amqp.foreign import ForeignQueues

_ENGINES = {
    "tcp": "butler_mesh.connections.zeromq",
    "ipc": "butler_mesh.connections.zeromq",
    "memory": "butler_mesh.connections.memory",
    "amqp": "butler_mesh.connections.rabbitmq",
    "amqps": "butler_mesh.connections.rabbitmq",
}


def connect_client(
    target: Address | RouterNode, *, seal: Seal | None = None, **options: Any
) -> ClientConnection:
    """Open the client side of the routers an address names, or of a router in this process."""
    if isinstance(target, RouterNode):
        connection: ClientConnection = MeshClient([target.dial], **options)
    else:
        connection = _engine(target).client(_shuffled(target.endpoints), **options)
    return connection if seal is None else SealedClient(connection, seal)


def connect_instance(
    target: Address | RouterNode,
    service: str,
    paths: Sequence[str] = (),
    *,
    seal: Seal | None = None,
    durable: bool = False,
    independent: bool = False,
    **options: Any,
) -> InstanceConnection:
    """Open the service side of the routers an address names, or of a router in this process.

    The brokers of an ``independent`` list do not know of each other: each is read.

    Raises UsageError for a name that is the router's own, and for ``durable`` where nothing is stored.
    """
    if service.startswith(("mmi.", MANAGEMENT)):
        raise UsageError(f"{service!r}: names that begin with 'mmi.' or 'mgt.' are the router's own")
    if durable:
        if isinstance(target, RouterNode) or target.scheme not in ("amqp", "amqps"):
            raise UsageError("a durable service needs an amqp:// address")
        options["durable"] = True
    if isinstance(target, RouterNode):
        connection: InstanceConnection = MeshInstance([target.dial], service, paths, **options)
    elif independent and target.scheme in ("amqp", "amqps"):
        engine = _engine(target)
        connection = SeveralInstances(
            [engine.instance([endpoint], service, paths, **options) for endpoint in target.endpoints]
        )
    else:
        connection = _engine(target).instance(_shuffled(target.endpoints), service, paths, **options)
    # Around all of them, so that what one has taken is a repetition at the others.
    return connection if seal is None else SealedInstance(connection, seal, service, paths)


def connect_queues(address: str, exchange: str, **options: Any) -> ForeignQueues:
    """Open the queues of a broker for messages in the words of another system, as ``ForeignQueues``.

    Raises AddressError for what is no amqp:// address, UsageError where pika is not installed.
    """
    parsed = _broker(address)
    from butler_mesh.connections.amqp.foreign import ForeignQueues

    return ForeignQueues(parsed.endpoints, exchange, **options)


def connect_dead_letters(address: str) -> DeadLetters:
    """Open the dead of the durable service that an address names, as ``DeadLetters``.

    Raises AddressError for what is no amqp:// address with a service, and as ``DeadLetters``.
    """
    parsed = _broker(address)
    if not parsed.service:
        raise AddressError("the address names no service; a good one is amqp://user@host//api.images")
    from butler_mesh.connections.amqp.dead import DeadLetters

    return DeadLetters(parsed.endpoints, parsed.service)


def _broker(address: str) -> Address:
    """Return an address that is a broker's, of which there is the driver here."""
    parsed = Address.parse(address)
    if parsed.scheme not in ("amqp", "amqps"):
        raise AddressError(f"{parsed.scheme}:// has no queues; an amqp:// address is needed")
    _engine(parsed)
    return parsed


def _shuffled(endpoints: Sequence[str]) -> list[str]:
    # Each has its own favourite: so routers, and nodes, share the work, and each is another's reserve.
    return random.sample(endpoints, k=len(endpoints))


def _engine(address: Address) -> Any:
    name = _ENGINES.get(address.scheme)
    if name is None:
        raise AddressError(f"no engine is installed for {address.scheme}://")
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "pika":
            raise
        raise UsageError(
            f"{address.scheme}:// needs pika: pip install 'pika>=1.4,<2' (the extra 'rabbitmq')"
        ) from error
