"""How requests and replies travel as AMQP messages. The body is the envelope, always as it is.

::

    request   to the queue of the service, or of a path prefix    mandatory, transient
              correlation_id  CLIENT.NUMBER     expiration  remaining milliseconds
              reply_to  amq.rabbitmq.reply-to, not for a one-way request
              headers  flags, sent (wall clock, ms), target (only where it is not the queue's name),
                       window (streams), tries (that it was begun before), clock (whose, if given back)
    durable   to the queue SERVICE:durable                        mandatory, persistent
              headers  flags, target, patience (ms, for the handler), and neither expiration nor reply_to
    command   to the instances' own queues, as cancel             mandatory, transient
              as a request, with the target mgt.SERVICE, or mgt.WID for one
    part, final                                                   to the request's reply_to
              correlation_id  the request's     reply_to  the instance's own queue (parts)
              headers  status, flags
    window                                                        to the instance's own queue, or to all
              correlation_id  the request's     headers  parts
    cancel    as window; its body is the ids of the requests, with spaces between

The kind is the message's ``type``. All instances of a service bind their own queues to the exchange
``amq.direct`` by the service's name, so whoever has a request is found without knowing who has it.
"""

from __future__ import annotations

from typing import Any

from pika import BasicProperties

from butler_mesh.connections.amqp.clocks import Clocks
from butler_mesh.protocol.mesh import DURABLE, FINAL, IDEMPOTENT, ONE_WAY, PARTIAL, RAW, STREAM

UNREADABLE = "unreadable"
REQUEST, PART, FINAL_REPLY, CANCEL, WINDOW = "request", "part", "final", "cancel", "window"

REPLY_TO = "amq.rabbitmq.reply-to"
"""RabbitMQ's direct reply-to: replies come without a queue, by the channel that asked."""
JSON_TYPE, BYTES_TYPE = "application/json", "application/octet-stream"

STORED_HEADERS = ("flags", "sent", "target", "patience")
"""All that a stored request has."""
MAX_MS = 0x7FFFFFFF
"""Of an expiration, and of a patience."""

_KNOWN_FLAGS = ONE_WAY | IDEMPOTENT | STREAM | RAW | DURABLE


def request_properties(
    id_: str, target: str, queue: str, flags: int, remaining_ms: int, sent_ms: int, window: int
) -> BasicProperties:
    """Return the properties of a request."""
    headers: dict[str, Any] = {"flags": flags, "sent": sent_ms}
    if queue != target:
        headers["target"] = target.encode()
    if flags & STREAM:
        headers["window"] = min(window, 0x7FFFFFFF)
    if flags & DURABLE:
        headers["patience"] = remaining_ms
    return BasicProperties(  # type: ignore[no-untyped-call]  # pika's slip
        content_type=BYTES_TYPE if flags & RAW else JSON_TYPE,
        headers=headers,
        delivery_mode=2 if flags & DURABLE else 1,
        correlation_id=id_,
        reply_to=None if flags & ONE_WAY else REPLY_TO,
        expiration=None if flags & DURABLE else str(remaining_ms),
        type=REQUEST,
    )


def reply_properties(
    id_: str, code: int, flags: int, *, final: bool, control: str | None = None
) -> BasicProperties:
    """Return the properties of a part, or of the last reply."""
    return BasicProperties(  # type: ignore[no-untyped-call]  # pika's slip
        content_type=BYTES_TYPE if flags & RAW else JSON_TYPE,
        headers={"status": code, "flags": flags} if flags else {"status": code},
        delivery_mode=1,
        correlation_id=id_,
        reply_to=control,
        type=FINAL_REPLY if final else PART,
    )


def control_properties(id_: str, kind: str, parts: int = 0) -> BasicProperties:
    """Return the properties of a CANCEL or WINDOW."""
    headers = {"parts": parts} if parts else None
    return BasicProperties(  # type: ignore[no-untyped-call]  # pika's slip
        headers=headers, delivery_mode=1, correlation_id=id_, type=kind
    )


def buried_properties(properties: BasicProperties) -> BasicProperties:
    """Return what a stored message that is no request is kept with: not its headers, for the broker (3.10)
    stumbles over some."""
    return BasicProperties(  # type: ignore[no-untyped-call]  # pika's slip
        delivery_mode=2, correlation_id=properties.correlation_id, type=UNREADABLE
    )


def reply_kind(properties: BasicProperties) -> tuple[int, int, int]:
    """Return (PARTIAL or FINAL, status, flags) of a reply; ValueError for what is none."""
    code, flags = number(properties, "status"), number(properties, "flags", 0)
    if properties.type not in (PART, FINAL_REPLY):
        raise ValueError("neither a part nor a final reply")
    return FINAL if properties.type == FINAL_REPLY else PARTIAL, code, flags & RAW


def request_flags(properties: BasicProperties, *, is_stored: bool = False) -> int:
    """Return a request's flags: those we know, and DURABLE if it was stored, whatever it says itself. One
    without a return address is one-way, and no stream."""
    flags = number(properties, "flags", 0) & _KNOWN_FLAGS & ~DURABLE
    if not properties.reply_to:
        flags = flags & ~STREAM | ONE_WAY
    return flags | DURABLE if is_stored else flags


def has_forged_death(properties: BasicProperties) -> bool:
    """Tell whether a message says of its deaths what no broker does: 3.10 fails when it is to add to that."""
    deaths = (properties.headers or {}).get("x-death", [])
    return not isinstance(deaths, list) or not all(isinstance(death, dict) for death in deaths)


def request_target(properties: BasicProperties, queue: str) -> str:
    """Return whom a request was meant for."""
    target = (properties.headers or {}).get("target", queue)
    return target.decode("utf-8", "replace") if isinstance(target, bytes) else str(target)


def remaining_s(properties: BasicProperties, clocks: Clocks, wall_ms: int, now: float) -> float | None:
    """Return the seconds that are left of a request's time; None where it has no end."""
    if not properties.expiration:
        # A stored request waits for as long as it takes; its time begins with its handler.
        patience_ms = number(properties, "patience", 0)
        return min(MAX_MS, patience_ms) / 1000.0 if patience_ms > 0 else None
    total = min(MAX_MS, int(properties.expiration))
    client = (properties.headers or {}).get("clock") or (properties.correlation_id or "").partition(".")[0]
    waited = clocks.waited_ms(str(client), number(properties, "sent", wall_ms), wall_ms, now)
    # The broker hands out nothing that has expired: what seems to have was sent before a clock was set.
    return (total - waited if waited < total else total) / 1000.0


def number(properties: BasicProperties, name: str, default: int | None = None) -> int:
    """Return a header that is a number; ValueError where it is missing or something else."""
    value = (properties.headers or {}).get(name, default)
    if not isinstance(value, int):
        raise ValueError(f"no number in {name}")
    return value
