"""What a service's queues are called, and what they are declared with.

::

    SERVICE, /PREFIX     requests; with the last reader's leave it expires, and with it what waits there
    mgt.full.SERVICE     those that found no room in it, or expired there; read by the same instances
    SERVICE:durable      stored requests, on most nodes of the cluster
    SERVICE:dead         those of them that nobody could serve
    amq.gen-…            an instance's own: what is meant for it, or for all of its service

The arguments are part of a queue's identity: a queue that exists with others is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from butler_mesh.connections.base import MANAGEMENT
from butler_mesh.errors import UsageError

CONTROL_EXCHANGE = "amq.direct"
"""There from the start, so nobody needs the right to declare one."""
LONGEST_NAME = 255  # bytes, of queues and routing keys
MAX_WAITING, MAX_WAITING_BYTES = 10_000, 256 * 1024 * 1024
"""Requests that wait for a service; over it the answer is 503 at once."""
DELIVERY_LIMIT = 5
"""How often a stored request that failed is tried again before it is put with the dead."""


def request_queues(service: str, paths: Sequence[str], *, is_durable: bool = False) -> list[str]:
    """Return the queues of a service's requests: its own, where it has a name, and its paths'.

    Raises UsageError for what cannot be the name of a queue, of stored requests neither.
    """
    if is_durable and not service:
        raise UsageError("a durable service needs a name")
    if service.endswith((durable_queue(""), dead_queue(""))):
        raise UsageError(f"{service[:80]!r} is the name of another service's queue")
    found = [*([service] if service else []), *dict.fromkeys(path.rstrip("/") or "/" for path in paths)]
    for name in [*found, durable_queue(service)] if is_durable else found:
        if name.startswith("amq.") or len(name.encode()) > LONGEST_NAME:
            raise UsageError(f"{name[:80]!r} cannot be the name of a queue")
    return found


def control_key(queue: str) -> str:
    """Return what the instances that read a queue bind their own queues by.

    Cut off it may be another's as well: who has a request knows its id, the rest pass over it.
    """
    return _short(f"mesh.{queue}")


def full_queue(queue: str) -> str:
    """Return the name of the queue of requests that found no room in another.

    Cut off it may be another's as well: whoever reads it tells the caller the same.
    """
    return _short(f"{MANAGEMENT}full.{queue}")


def durable_queue(service: str) -> str:
    """Return the name of the queue that keeps a service's stored requests."""
    return f"{service}:durable"


def dead_queue(service: str) -> str:
    """Return the name of the queue of those that nobody could serve."""
    return f"{service}:dead"


def prefixes(path: str) -> list[str]:
    """Return the queues that may own a path, the longest prefix of whole segments first."""
    head = path.rstrip("/") or "/"
    found = [head]
    while len(head) > 1:
        head = head.rpartition("/")[0] or "/"
        found.append(head)
    return [one for one in found if len(one.encode()) <= LONGEST_NAME]


def request_arguments(queue: str, expires_ms: int) -> dict[str, Any]:
    """Return what a queue of requests is declared with: it goes with its last reader, and is bounded.

    Whoever awaits the broker's word on a request hears that it was refused; for those who do not, it is
    handed to the instances.
    """
    return {
        "x-expires": expires_ms,
        "x-max-length": MAX_WAITING,
        "x-max-length-bytes": MAX_WAITING_BYTES,
        "x-overflow": "reject-publish-dlx",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": full_queue(queue),
    }


FULL_ARGUMENTS = {"x-expires": 60_000, "x-max-length": 1000, "x-message-ttl": 5000}
"""What a queue of those without room is declared with: of those who are to be told, how many wait for that,
and how long."""


def durable_arguments(service: str) -> dict[str, Any]:
    """Return what a queue of stored requests is declared with: a copy on most nodes of the cluster, a limit
    of attempts, and a way to the dead on which nothing is lost either (at-least-once needs the overflow)."""
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead_queue(service),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


DEAD_ARGUMENTS = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
"""What a queue of the dead is declared with. To look at them counts as a delivery, and RabbitMQ 4 drops what
was delivered 20 times unless it is told otherwise."""


def _short(name: str) -> str:
    return name.encode()[:LONGEST_NAME].decode("utf-8", "ignore")
