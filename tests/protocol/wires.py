"""A router in memory: frames in by routing id, frames out by routing id, the time as a plain number.

``Wires`` holds one ``RouterProtocol`` and plays the pump: after each message it ends the turn, seals
what the machine wrote and files it under the peer it is for. A ``Wire`` is one peer; it writes raw
frames (``send``) or records (``say``), and reads what came for it (``take``, ``records``). A real
machine of the connecting side can be put at its end (``attach``): a pair that talks without sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from butler_mesh import codec
from butler_mesh.protocol import mesh
from butler_mesh.protocol.limits import Limits
from butler_mesh.protocol.member import Member
from butler_mesh.protocol.mesh import Record
from butler_mesh.protocol.outbox import Outbox
from butler_mesh.protocol.peers import Door
from butler_mesh.protocol.router import STALL_S, RouterProtocol

START = 1_000.0
"""When every test begins; past the wheel's and the stamps' small numbers."""
SEED = bytes(range(16))
EPOCH = "e" * 32


class Wires:
    """One router, its doors and everybody connected to it."""

    def __init__(self, *, now: float = START, **options: Any) -> None:
        self.now = now
        self.router = RouterProtocol(now, SEED, Limits(**options))
        self.wires: dict[tuple[str, bytes], Wire] = {}
        # Peers that do not read: what is for them stays in their outbox, as with a full pipe.
        self.deaf: set[bytes] = set()
        self._doors: dict[str, Door] = {}

    def door(self, name: str = "both", *, clients: bool = True, services: bool = True) -> Door:
        """Return the door of that name, opened when first asked for."""
        if name not in self._doors:
            self._doors[name] = self.router.open_door(name, clients=clients, services=services)
        return self._doors[name]

    def wire(self, routing_id: bytes, door: Door | None = None) -> Wire:
        """Return the peer of that routing id, silent so far; the same one when asked for again."""
        door = self.door() if door is None else door
        key = (door.name, routing_id)
        if key not in self.wires:
            self.wires[key] = Wire(self, door, routing_id)
        return self.wires[key]

    def client(self, routing_id: bytes, door: Door | None = None) -> Wire:
        """Return a mesh client that has been welcomed."""
        wire = self.wire(routing_id, door)
        wire.greet("client")
        return wire

    def instance(
        self,
        routing_id: bytes,
        service: str = "echo",
        *,
        credit: int = 4,
        paths: Sequence[str] = (),
        door: Door | None = None,
    ) -> Wire:
        """Return a mesh instance that is registered."""
        wire = self.wire(routing_id, door)
        wire.register(service, credit=credit, paths=paths)
        return wire

    def attach(self, machine: Member, routing_id: bytes, door: Door | None = None) -> Wire:
        """Put a real machine at the end of a wire and let the two of them talk."""
        wire = self.wire(routing_id, door)
        wire.machine = machine
        machine.connection_made(None, self.now)
        self.settle()
        return wire

    def advance(self, seconds: float, *, drained: bool = True) -> None:
        """Let time pass, in one step, and do what it asks for on all sides. A router that is ticked so
        late has slept, and blames nobody for the silence; ``wait`` is for one that was awake."""
        self.now += seconds
        self.router.tick(self.now, drained=drained)
        for wire in list(self.wires.values()):
            if wire.machine is not None:
                wire.machine.tick(self.now, drained=drained)
        self.settle()

    def wait(self, seconds: float) -> None:
        """Let time pass at a router that is awake all the while."""
        end = self.now + seconds
        while self.now < end:
            self.advance(min(STALL_S, end - self.now))

    def settle(self) -> None:
        """End the turn, and turn after turn until the attached machines have no more to say."""
        while True:
            self.router.run(self.now)
            self._flush()
            said = [
                (wire, frames)
                for wire in list(self.wires.values())
                if wire.machine is not None
                for frames in drain(wire.machine.dirty, self.now)
            ]
            for wire, frames in said:
                self.router.receive(wire.door, wire.routing_id, frames[0], frames[1:], self.now)
            if not said:
                return

    def counted(self, name: str) -> int:
        """Return one of the router's counters."""
        return self.router.counters[name]

    def _flush(self) -> None:
        dirty = list(self.router.dirty)
        self.router.dirty.clear()
        for outbox in dirty:
            outbox.is_dirty = False
            outbox.seal(self.now)
            door = outbox.door
            assert isinstance(door, Door)
            if outbox.routing_id in self.deaf:
                outbox.is_dirty = outbox.has_waited = True
                self.router.dirty.append(outbox)
                continue
            wire = self.wire(outbox.routing_id, door)
            while outbox.messages:
                frames = [bytes(frame) for frame in outbox.messages[0][1]]
                outbox.sent()
                wire.arrived(frames)


class Wire:
    """One peer, as the router's transport knows it: a door and a routing id."""

    def __init__(self, wires: Wires, door: Door, routing_id: bytes) -> None:
        self.wires = wires
        self.door = door
        self.routing_id = routing_id
        self.inbox: list[list[bytes]] = []
        self.machine: Member | None = None

    def __repr__(self) -> str:
        return f"<Wire {self.routing_id!r} at {self.door.name}>"

    # --- frames -------------------------------------------------------------------------------

    def send(self, *frames: bytes) -> Wire:
        """Let the router receive one message, and end its turn."""
        self.wires.router.receive(self.door, self.routing_id, frames[0], frames[1:], self.wires.now)
        self.wires.settle()
        return self

    def take(self) -> list[list[bytes]]:
        """Return the messages that came since the last time, each a list of frames."""
        inbox, self.inbox = self.inbox, []
        return inbox

    def arrived(self, frames: list[bytes]) -> None:
        """File one message, or hand it to the machine at this end."""
        if self.machine is None:
            self.inbox.append(frames)
        else:
            self.machine.receive(None, b"", frames[0], frames[1:], self.wires.now)

    def gone(self) -> None:
        """The transport has noticed that nobody is there any more."""
        peer = self.door.peers[self.routing_id]
        self.wires.router.peer_gone(peer.outbox, self.wires.now)
        self.wires.settle()

    # --- records ------------------------------------------------------------------------------

    def say(
        self,
        kind: int,
        id_: int = 0,
        payload: bytes = b"",
        *,
        flags: int = 0,
        remaining_ms: int = 0,
        envelope: bytes | None = None,
    ) -> Wire:
        """Send a message of one record."""
        return self.send(*message(self.wires.now, (kind, flags, id_, remaining_ms, payload, envelope)))

    def records(self, *kinds: int) -> list[Record]:
        """Return the records that came since the last time, heartbeats left out; ``kinds`` asked for only."""
        found = [record for frames in self.take() for record in mesh.parse(frames[0], frames[1:])[1]]
        return [r for r in found if (r.kind in kinds if kinds else r.kind != mesh.HEARTBEAT)]

    def greet(self, role: str, **hello: Any) -> dict[str, Any]:
        """Say HELLO; return the WELCOME, or raise AssertionError for another answer."""
        self.say(mesh.HELLO, payload=codec.dumps({"role": role, "versions": [mesh.VERSION], **hello}))
        (welcome,) = self.records()
        assert welcome.kind == mesh.WELCOME, welcome
        return mesh.split_object(welcome.payload)

    def register(
        self, service: str, *, credit: int = 4, paths: Sequence[str] = (), wid: str = "", **ready: Any
    ) -> None:
        """Say HELLO and READY; AssertionError unless the router confirms."""
        self.greet("instance")
        wid = wid or self.routing_id.decode("latin-1")
        self.ready(wid=wid, epoch=EPOCH, service=service, paths=list(paths), credit=credit, **ready)
        answer = self.records()[0]
        assert answer.kind == mesh.READY, answer

    def ready(self, **ready: Any) -> Wire:
        """Say READY with just these fields."""
        return self.say(mesh.READY, payload=codec.dumps(ready))

    def request(
        self,
        id_: int,
        target: bytes = b"echo",
        envelope: bytes = b"{}",
        *,
        flags: int = 0,
        remaining_ms: int = 30_000,
        window: int | None = None,
    ) -> Wire:
        """Send a REQUEST; ``window`` makes it a STREAM."""
        if window is not None:
            flags |= mesh.STREAM
        payload = mesh.pack_target(target, window) + envelope
        return self.say(mesh.REQUEST, id_, payload, flags=flags, remaining_ms=remaining_ms)

    def final(self, token: int, status: int = 200, envelope: bytes = b"{}", *, flags: int = 0) -> Wire:
        """Answer a request with its FINAL."""
        return self.say(mesh.FINAL, token, mesh.pack_status(status) + envelope, flags=flags)

    def partial(self, token: int, status: int = 200, envelope: bytes = b"{}", *, flags: int = 0) -> Wire:
        """Answer a request with a PARTIAL."""
        return self.say(mesh.PARTIAL, token, mesh.pack_status(status) + envelope, flags=flags)


Draft = tuple[int, int, int, int, bytes, bytes | None]
"""A record to be: kind, flags, id, remaining_ms, payload, envelope."""


def message(now: float, *records: Draft) -> list[bytes]:
    """Return the frames of one message that holds just these records."""
    pieces = [mesh.pack_header(int(now * 1000))]
    attachments = []
    for kind, flags, id_, remaining_ms, payload, envelope in records:
        if envelope is not None:
            flags |= mesh.ATTACHED
            attachments.append(envelope)
        pieces += [mesh.pack_record(len(payload), kind, flags, id_, remaining_ms), payload]
    return [b"".join(pieces), *attachments]


def drain(dirty: list[Outbox], now: float) -> list[list[bytes]]:
    """Seal the outboxes of a machine and return the messages in them, as the pump would send them."""
    found = []
    for outbox in dirty:
        outbox.is_dirty = False
        outbox.seal(now)
        while outbox.messages:
            found.append([bytes(frame) for frame in outbox.messages[0][1]])
            outbox.sent()
    dirty.clear()
    return found
