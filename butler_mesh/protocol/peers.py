"""Who is on the other side of a router's doors: its records of peers, calls and services."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from butler_mesh.protocol.liveness import DEAD_AFTER_S, Pulse, State, Transit
from butler_mesh.protocol.mesh import CANCEL, FINAL, GOODBYE, HEARTBEAT, REQUEST, WINDOW, Frame, pack_reason
from butler_mesh.protocol.outbox import Outbox
from butler_mesh.protocol.queues import FairQueue

SHOWN_PATHS = 100
"""Of a service, in ``mmi.status``."""
CALL_BYTES = 512
"""What a queued call holds beside its bytes: the record, its places in tables and wheel."""


class Door:
    """One port of a router: a bound socket, or the local parties of its own process."""

    __slots__ = ("accepts_clients", "accepts_services", "name", "peers")

    def __init__(self, name: str, *, clients: bool = True, services: bool = True) -> None:
        self.name = name
        self.accepts_clients = clients
        self.accepts_services = services
        # Routing id -> who greeted us over it. Strangers are not kept.
        self.peers: dict[bytes, Peer] = {}


class Peer:
    """Anybody that has greeted the router."""

    __slots__ = ("door", "heard_at", "is_gone", "outbox", "patience_s", "role", "transit")

    def __init__(self, door: Door, outbox: Outbox, role: str, now: float) -> None:
        self.door = door
        self.outbox = outbox
        # Which table of the router's decides what this peer may send.
        self.role = role
        self.heard_at = now
        # Silence after which it is given up.
        self.patience_s = DEAD_AFTER_S
        # Set when the peer left: what still points here then writes into the void.
        self.is_gone = False
        self.transit = Transit()

    def heartbeat(self) -> None:
        """Queue a sign of life; a wire that has none sends nothing."""
        self.outbox.add(HEARTBEAT)

    def dismiss(self, code: int, reason: str) -> None:
        """Queue word that the router has let go of this peer; a wire that has none sends nothing."""
        # For one who does not read it is not worth keeping, nor is what stands before it.
        self.outbox.is_parting = True
        self.outbox.add(GOODBYE, payload=pack_reason(code, reason))


class ClientPeer(Peer):
    """A peer that sends requests."""

    __slots__ = ("calls", "share")

    def __init__(self, door: Door, outbox: Outbox, role: str, now: float) -> None:
        super().__init__(door, outbox, role, now)
        # By whom queues are fair: it is the connection's, however often a client greets anew over it.
        self.share = object()
        # The client's own id -> its call, from acceptance to the last reply; one-way calls are not in it.
        self.calls: dict[int, Call] = {}

    def reply(self, call: Call, kind: int, flags: int, payload: bytes, envelope: Frame | None) -> None:
        """Queue one PARTIAL or FINAL of a call."""
        self.outbox.add(kind, flags, call.id, 0, payload, envelope)

    def refuse(self, id_: int, payload: bytes) -> None:
        """Queue a FINAL that the router itself made."""
        self.outbox.add(FINAL, 0, id_, 0, payload)


class InstancePeer(Peer):
    """A peer that answers requests."""

    __slots__ = (
        "calls",
        "control",
        "credit",
        "epoch",
        "free",
        "hello",
        "host",
        "in_rotation",
        "paths",
        "pid",
        "pool",
        "pulse",
        "rss_kib",
        "state",
        "wid",
    )

    def __init__(self, door: Door, outbox: Outbox, role: str, now: float) -> None:
        super().__init__(door, outbox, role, now)
        self.wid = ""
        self.epoch = ""
        self.host = ""
        self.pid = 0
        self.rss_kib = 0
        # None until READY was accepted.
        self.pool: ServicePool | None = None
        self.paths: list[bytes] = []
        # How many calls it takes at once, and how many of them it could still be sent.
        self.credit = 0
        self.free = 0
        # Token -> call, from dispatch to FINAL or RETURN: the one reply route a token has.
        self.calls: dict[int, Call] = {}
        self.pulse = Pulse(now)
        self.state = State.READY
        # Whether it stands in its pool's rotation: only with free credit and in good health.
        self.in_rotation = False
        # Its control thread's connection, once that has greeted us with the same wid and epoch.
        self.control: ControlPeer | None = None

    def request(self, call: Call, remaining_ms: int) -> None:
        """Queue a call; the payload goes on as it came."""
        self.outbox.add(REQUEST, call.flags, call.token, remaining_ms, call.payload, call.envelope)

    def cancel(self, token: int) -> None:
        """Queue word that nobody waits for this call any more."""
        self.outbox.add(CANCEL, 0, token)

    def grant(self, token: int, window: bytes) -> None:
        """Queue a WINDOW as its reader sent it."""
        self.outbox.add(WINDOW, 0, token, 0, window)

    def judge(self, now: float) -> State:
        """Return its health by what was heard of it."""
        return self.pulse.state(now, self.patience_s)

    def describe(self) -> Mapping[str, object]:
        """Return what ``mmi.status`` says of it."""
        return {
            "wid": self.wid,
            "state": self.state.value,
            "host": self.host,
            "pid": self.pid,
            "credit": self.credit,
            "in_flight": len(self.calls),
            "lag_s": round(self.pulse.lag_s, 3),
            "rss_kib": self.rss_kib,
            "protocol": "mesh/1",
        }


class ControlPeer(Peer):
    """The native thread of an instance: it reports on it, and may do nothing else."""

    __slots__ = ("instance",)

    def __init__(self, door: Door, outbox: Outbox, role: str, now: float, instance: InstancePeer) -> None:
        super().__init__(door, outbox, role, now)
        self.instance = instance


class Call:
    """One request on its way through the router."""

    __slots__ = (
        "client",
        "deadline",
        "envelope",
        "flags",
        "grants",
        "id",
        "instance",
        "is_queued",
        "parts",
        "patience_s",
        "payload",
        "pool",
        "size",
        "slot",
        "token",
        "was_dispatched_again",
    )

    def __init__(
        self,
        client: ClientPeer,
        id_: int,
        flags: int,
        deadline: float,
        payload: bytes,
        envelope: Frame | None,
        pool: ServicePool,
    ) -> None:
        # None once nobody waits: answered, expired or cancelled. The token lives on until the
        # instance is done, for only that frees its credit.
        self.client: ClientPeer | None = client
        self.id = id_
        self.flags = flags
        self.deadline = deadline
        # Kept until the FINAL: a RETURN or a lost instance may send it out again.
        self.payload = payload
        self.envelope = envelope
        self.size = CALL_BYTES + len(payload) + (0 if envelope is None else len(envelope))
        self.pool = pool
        self.token = 0
        self.instance: InstancePeer | None = None
        self.is_queued = False
        # The wheel's slot; None where there is no deadline.
        self.slot: set[Call] | None = None
        # What a stream's deadline is renewed by with each part and each WINDOW.
        self.patience_s = 0.0
        self.was_dispatched_again = False
        # PARTIALs passed on: once the reader has seen one, a second run would repeat it.
        self.parts = 0
        # WINDOWs passed on.
        self.grants = 0


class ServicePool:
    """A service as the router sees it: who answers, whose turn it is, who waits."""

    __slots__ = (
        "instances",
        "is_due",
        "left_at",
        "name",
        "paths",
        "queue",
        "queued_bytes",
        "rotation",
        "was_registered",
    )

    def __init__(self, name: bytes, now: float) -> None:
        # The target that clients write. Instances without a name share one named by their paths.
        self.name = name
        self.paths: set[bytes] = set()
        self.instances: set[InstancePeer] = set()
        # Those with free credit and in good health, least recently used first.
        self.rotation: deque[InstancePeer] = deque()
        self.queue: FairQueue[object, Call] = FairQueue()
        self.queued_bytes = 0
        # When its last instance left (or it was first asked for): it is kept for a while after.
        self.left_at = now
        # Whether it ever had an instance, as opposed to being a name that somebody has asked for.
        self.was_registered = False
        # Whether it stands in the router's list of pools to dispatch when the turn's input is read.
        self.is_due = False

    def rotate(self, instance: InstancePeer, *, is_congested: bool) -> None:
        """Put an instance into the rotation or take it out, by its credit, its health and its pipe."""
        fits = instance.free > 0 and instance.state is State.READY and not is_congested
        if fits is not instance.in_rotation:
            instance.in_rotation = fits
            if fits:
                self.rotation.append(instance)
            else:
                self.rotation.remove(instance)

    def describe(self) -> dict[str, object]:
        """Return what ``mmi.status`` says of it."""
        return {
            "queued": len(self.queue),
            "paths": [path.decode("utf-8", "replace") for path in sorted(self.paths)[:SHOWN_PATHS]],
            "instances": [instance.describe() for instance in self.instances],
        }
