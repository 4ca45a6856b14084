"""Commands to one instance: ``mgt.`` and its wid, whether the instance has credit left or not.

What manages an instance must reach it when it is busy, or blocked for all we know. So a command waits in
no queue, goes to nobody else, and overdraws the credit until its FINAL.
"""

from __future__ import annotations

from butler_mesh import status
from butler_mesh.protocol import mesh
from butler_mesh.protocol.dispatcher import RETRY_AFTER_S, Dispatcher
from butler_mesh.protocol.mesh import ONE_WAY, STREAM, Record
from butler_mesh.protocol.peers import Call, ClientPeer, InstancePeer

MAX_OVERDRAFT = 16
"""Commands that an instance has at once beside its credit: they must not be a way around it."""


def pass_on(
    dispatcher: Dispatcher,
    client: ClientPeer,
    record: Record,
    instance: InstancePeer | None,
    sent_at: float,
    now: float,
) -> None:
    """Send a command to its instance, or refuse it: 404 gone, 400 a stream, 503 too many, 504 expired."""
    _, flags, id_, remaining_ms, payload, envelope = record
    deadline = sent_at + remaining_ms / 1000.0
    if instance is None or instance.pool is None:
        client.refuse(id_, mesh.pack_failure(status.NOT_FOUND, "no such instance"))
    elif flags & STREAM:
        client.refuse(id_, mesh.pack_failure(status.BAD_REQUEST, "a command has one answer"))
    elif deadline <= now:
        client.refuse(id_, mesh.pack_failure(status.DEADLINE_PASSED, "deadline passed on the way"))
    elif instance.outbox.is_full or len(instance.calls) >= max(0, instance.credit) + MAX_OVERDRAFT:
        text = "the instance does not keep up"
        client.refuse(id_, mesh.pack_failure(status.UNAVAILABLE, text, RETRY_AFTER_S))
    else:
        call = Call(client, id_, flags, deadline, payload, envelope, instance.pool)
        call.slot = dispatcher.wheel.add(call, deadline)
        if not flags & ONE_WAY:
            client.calls[id_] = call
        dispatcher.entrust(call, instance, now)
