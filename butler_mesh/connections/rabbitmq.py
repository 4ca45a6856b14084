"""``amqp://`` and ``amqps://``: RabbitMQ in a router's place, under the same code.

* Ordering: the calls of one client to one service reach it in order, and so do its one-way requests; with
  several instances or more than one credit they run side by side. Parts of one stream arrive in order.
* Delivery: at most once, as nothing is written to disk; an IDEMPOTENT request may run twice if its
  instance or broker dies. A one-way request is confirmed by the broker, not by whoever serves it.
  A DURABLE one is stored, on most nodes of the cluster when its caller goes on, and served at least once.
* A dying instance: the broker gives its requests to another, which runs the IDEMPOTENT ones and answers
  502 to the rest; where there is no other, callers get 504 at their deadline. A lost connection to the
  broker is 502 at once for calls in flight, unless IDEMPOTENT: those are sent again. A DURABLE request goes
  to another instance, now or later; after six failures it is put with the dead, in ``SERVICE:dead``.
* An absent far side: a call waits up to 3 s for a broker, then 503; a service without a queue is 404 at
  once, but for 5 s after a lost connection it is waited for. The queue outlives its last reader by a minute,
  in which requests wait for the next one; a broker that crashes forgets it. A queue of 10 000 is full: 503.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from butler_mesh.connections.amqp.client import AmqpClient
from butler_mesh.connections.amqp.instance import AmqpInstance
from butler_mesh.connections.base import ClientConnection, InstanceConnection


def client(endpoints: Sequence[str], **options: Any) -> ClientConnection:
    """Connect to one of the brokers at these endpoints."""
    return AmqpClient(endpoints, **options)


def instance(
    endpoints: Sequence[str], service: str, paths: Sequence[str], **options: Any
) -> InstanceConnection:
    """Read the queues of a service, and of paths, at one of the brokers at these endpoints."""
    return AmqpInstance(endpoints, service, paths, **options)
