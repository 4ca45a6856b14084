"""A network in memory: one router, any number of members, and a clock that only the test moves.

Messages leave as the pump sends them (sealed, in order, each peer's records together) and stay whole.
Nothing moves by itself: ``settle`` lets everybody take turns until nothing is on its way, ``advance``
moves the clock from one due time to the next. A link can be dropped, held (messages lie in the pipe)
or full (they stay in the sender's outbox); a party can be stopped, as by SIGSTOP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from butler_mesh import codec, status
from butler_mesh.counters import Counters
from butler_mesh.protocol import mesh
from butler_mesh.protocol.client import ClientProtocol, Pending
from butler_mesh.protocol.instance import CREDIT, Identity, InstanceProtocol, Intake, Job, Sign
from butler_mesh.protocol.limits import Limits
from butler_mesh.protocol.mesh import FINAL, PARTIAL, Frame, Record
from butler_mesh.protocol.outbox import Outbox
from butler_mesh.protocol.peers import Door, InstancePeer
from butler_mesh.protocol.router import RouterProtocol
from butler_mesh.protocol.wheel import NEVER

Frames = list[bytes]


def ready_object(**fields: Any) -> dict[str, Any]:
    """Return what a READY says; a field given as None is left out."""
    ready = {"wid": "svc-raw", "epoch": "0123456789abcdef", "service": "svc", "paths": [], "credit": 1}
    return {name: value for name, value in {**ready, **fields}.items() if value is not None}


def request(target: str, envelope: bytes = b"{}", window: int | None = None) -> bytes:
    """Return a REQUEST's payload."""
    return mesh.pack_target(target.encode(), window) + envelope


def reply(code: int = status.OK, envelope: bytes = b"{}") -> bytes:
    """Return the payload of a PARTIAL or FINAL."""
    return mesh.pack_status(code) + envelope


class Link:
    """Two pipes between a member and a door; each keeps its order."""

    def __init__(self, door: Door, routing_id: bytes, party: Party) -> None:
        self.door = door
        self.routing_id = routing_id
        self.party = party
        self.to_router: deque[Frames] = deque()
        self.to_member: deque[Frames] = deque()
        self.is_up = True
        # Messages lie in the pipe: sent, and not yet received.
        self.is_held = False
        # A pipe takes nothing more: messages stay with their sender.
        self.is_full_to_member = False
        self.is_full_to_router = False


class Party:
    """Somebody who takes turns: a machine, and what its owner does at the end of each turn."""

    machine: Any

    def __init__(self) -> None:
        self.link: Link | None = None
        self.is_stopped = False
        self.congested: set[Outbox] = set()

    def after(self, now: float) -> None:
        """The owner's part of a turn."""


class Asked:
    """One call, and what was answered to it so far."""

    def __init__(self) -> None:
        self.pending: Pending | None = None
        # Every reply: kind, status, flags, envelope.
        self.replies: list[tuple[int, int, int, bytes]] = []

    def on_reply(self, kind: int, code: int, flags: int, envelope: bytes) -> None:
        self.replies.append((kind, code, flags, envelope))

    @property
    def finals(self) -> list[int]:
        """The status of each FINAL: one, if all is well."""
        return [code for kind, code, _, _ in self.replies if kind == FINAL]

    @property
    def code(self) -> int | None:
        """The status of the one FINAL, None as long as there is none."""
        assert len(self.finals) <= 1
        return self.finals[0] if self.finals else None

    @property
    def envelope(self) -> bytes:
        return self.replies[-1][3]

    @property
    def answer(self) -> dict[str, Any]:
        """The last envelope as an object."""
        answer = codec.loads(self.envelope)
        assert isinstance(answer, dict)
        return answer

    @property
    def parts(self) -> list[bytes]:
        return [envelope for kind, _, _, envelope in self.replies if kind == PARTIAL]


class Caller(Party):
    """A client process."""

    machine: ClientProtocol

    def __init__(self, net: Net, **options: Any) -> None:
        super().__init__()
        self.net = net
        self.machine = ClientProtocol(net.now, **options)

    def ask(
        self,
        target: str,
        envelope: bytes = b"{}",
        *,
        timeout_s: float = 30.0,
        flags: int = 0,
        window: int = 0,
        settle: bool = True,
    ) -> Asked:
        """Submit a call, and let it get as far as it gets."""
        asked = Asked()
        now = self.net.now
        asked.pending = self.machine.submit(
            target.encode(),
            envelope,
            deadline=now + timeout_s,
            flags=flags,
            on_reply=asked.on_reply,
            now=now,
            window=window,
        )
        if settle:
            self.net.settle()
        return asked

    def cancel(self, asked: Asked) -> None:
        assert asked.pending is not None
        self.machine.cancel(asked.pending)
        self.net.settle()

    def grant(self, asked: Asked, parts: int) -> None:
        assert asked.pending is not None
        self.machine.grant(asked.pending, parts, self.net.now)
        self.net.settle()

    def after(self, now: float) -> None:
        while self.machine.replies:
            replies, self.machine.replies = self.machine.replies, []
            for call, kind, code, flags, envelope in replies:
                on_reply = call.on_reply
                if on_reply is not None:
                    if kind == FINAL:
                        call.on_reply = None
                    on_reply(kind, code, flags, envelope)


class Worker(Party):
    """A service process: jobs wait in ``jobs`` until the test, or ``handler``, replies to them.

    Jobs that were cancelled or ran out of time are answered at once, as the engine does, unless the
    worker ``is_stubborn``.
    """

    machine: InstanceProtocol

    def __init__(
        self,
        net: Net,
        service: str = "svc",
        *,
        paths: Sequence[str] = (),
        wid: str = "",
        intake: Intake | None = None,
        credit: int = CREDIT,
        secret: str | None = None,
        handler: Callable[[Worker, Job], None] | None = None,
        is_stubborn: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        number = net.number()
        identity = Identity(wid or f"{service or 'paths'}-{number}", service, tuple(paths), secret=secret)
        self.intake = intake or Intake(credit)
        self.machine = InstanceProtocol(net.now, identity, self.intake, f"{number:032x}")
        self.handler = handler
        self.is_stubborn = is_stubborn
        self.jobs: list[Job] = []
        # All that ever arrived, ended or not.
        self.seen: list[Job] = []
        self.signs: list[tuple[Sign, Job]] = []
        # The most jobs it ever had at once.
        self.peak = 0

    @property
    def wid(self) -> str:
        return self.machine.identity.wid

    @property
    def peer(self) -> InstancePeer:
        """The router's view of it."""
        return self.net.router.instances[self.wid]

    def reply(
        self,
        job: Job | None = None,
        code: int = status.OK,
        envelope: bytes = b"{}",
        *,
        flags: int = 0,
        final: bool = True,
        settle: bool = True,
    ) -> None:
        """Answer a job (the oldest, unless told otherwise)."""
        job = job or self.jobs[0]
        self.machine.reply(job, code, envelope, self.net.now, flags=flags, final=final)
        if final and job in self.jobs:
            self.jobs.remove(job)
        if settle:
            self.net.settle()

    def after(self, now: float) -> None:
        signs, self.machine.signs = self.machine.signs, []
        for sign, job in signs:
            self.signs.append((sign, job))
            if sign is Sign.ARRIVED:
                if job.deadline <= now:
                    self.reply(job, status.DEADLINE_PASSED, settle=False)
                    continue
                self.seen.append(job)
                self.jobs.append(job)
                self.peak = max(self.peak, self.intake.running)
                if self.handler is not None:
                    self.handler(self, job)
            elif sign is not Sign.WINDOW and not self.is_stubborn and job in self.jobs:
                code = status.DEADLINE_PASSED if sign is Sign.EXPIRED else status.CANCELLED
                self.reply(job, code, settle=False)


class Raw(Party):
    """A peer without a machine: sends whatever the test likes, keeps whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = self
        self.dirty: list[Outbox] = []
        self.notes: list[str] = []
        self.counters = Counters()
        self.outbox = Outbox(self.dirty)
        self.records: list[Record] = []

    def got(self, kind: int) -> list[Record]:
        """Return what came of one kind, and forget it."""
        found = [record for record in self.records if record.kind == kind]
        self.records = [record for record in self.records if record.kind != kind]
        return found

    def finals(self) -> list[tuple[int, int]]:
        """Return (id, status) of each FINAL that came, and forget them."""
        return [(record.id, mesh.split_status(record.payload)) for record in self.got(FINAL)]

    def goodbyes(self) -> list[int]:
        """Return the status of each GOODBYE that came, and forget them."""
        return [mesh.split_reason(record.payload)[0] for record in self.got(mesh.GOODBYE)]

    def receive(
        self, door: object, routing_id: bytes, frame: bytes, rest: Sequence[Frame], now: float
    ) -> None:
        if mesh.is_mesh(frame):
            self.records += mesh.parse(frame, rest)[1]

    def run(self, now: float) -> None: ...
    def tick(self, now: float, *, drained: bool = True) -> None: ...
    def connection_made(self, door: object, now: float) -> None: ...
    def connection_lost(self, door: object, now: float) -> None: ...
    def peer_gone(self, outbox: Outbox, now: float) -> None: ...

    def next_due(self) -> float:
        return NEVER


class Net(Party):
    """The network, and the router in the middle of it: ``both`` is a door for everybody."""

    machine: RouterProtocol

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.now = 1000.0
        self.links: list[Link] = []
        self.parties: list[Party] = [self]
        self._options = options
        self._routes: dict[tuple[Door, bytes], Link] = {}
        self._last_number = 0
        self.start_router()

    @property
    def router(self) -> RouterProtocol:
        return self.machine

    def number(self) -> int:
        """Return a number that was not used before."""
        self._last_number += 1
        return self._last_number

    # --- who is there -------------------------------------------------------------------------

    def start_router(self) -> None:
        """Put a new router in the place of the old one, which nobody is connected to any more."""
        for link in self.links[:]:
            self._cut(link)
        self.machine = RouterProtocol(self.now, self.number().to_bytes(16, "big"), Limits(**self._options))
        self.both = self.machine.open_door("both")
        self.front = self.machine.open_door("front", services=False)
        self.back = self.machine.open_door("back", clients=False)
        self.congested.clear()

    def caller(self, door: Door | None = None, **options: Any) -> Caller:
        """Return a connected client."""
        caller = Caller(self, **options)
        self.connect(caller, door)
        return caller

    def worker(self, service: str = "svc", *, door: Door | None = None, **options: Any) -> Worker:
        """Return a connected instance."""
        worker = Worker(self, service, **options)
        self.connect(worker, door)
        return worker

    def raw(self, door: Door | None = None, hello: dict[str, Any] | None = None) -> Raw:
        """Return a connected peer without a machine; ``hello`` is sent if given."""
        raw = Raw()
        self.connect(raw, door)
        if hello is not None:
            self.send(raw, mesh.HELLO, payload=codec.dumps(hello))
        return raw

    def raw_client(self, door: Door | None = None) -> Raw:
        """Return a raw peer that has been welcomed as a client."""
        raw = self.raw(door, {"role": "client"})
        assert raw.got(mesh.WELCOME)
        return raw

    def raw_instance(self, door: Door | None = None, **ready: Any) -> Raw:
        """Return a raw peer that has said HELLO and READY; READY's fields are given, or plain ones."""
        raw = self.raw(door, {"role": "instance"})
        self.send(raw, mesh.READY, payload=codec.dumps(ready_object(**ready)))
        return raw

    def send(
        self,
        raw: Raw,
        kind: int,
        flags: int = 0,
        id_: int = 0,
        remaining_ms: int = 0,
        payload: bytes = b"",
        envelope: bytes | None = None,
    ) -> None:
        """Send one record of a raw peer."""
        raw.outbox.add(kind, flags, id_, remaining_ms, payload, envelope)
        self.settle()

    # --- links --------------------------------------------------------------------------------

    def connect(self, party: Party, door: Door | None = None) -> Link:
        """Connect, or connect anew: a reconnected DEALER has another routing id."""
        routing_id = self.number().to_bytes(5, "big")
        link = party.link = Link(door or self.both, routing_id, party)
        self.links.append(link)
        self._routes[link.door, routing_id] = link
        if party not in self.parties:
            self.parties.append(party)
        self.router.connection_made(link.door, self.now)
        party.machine.connection_made(link.door, self.now)
        self.settle()
        return link

    def drop(self, party: Party, *, is_noticed: bool = True) -> None:
        """Cut a party's connection. ``is_noticed``: both sides are told, the router not by whom."""
        link = party.link
        assert link is not None
        self._cut(link, is_noticed=is_noticed)
        if is_noticed:
            self.router.connection_lost(link.door, self.now)
        self.settle()

    def kill(self, party: Party) -> None:
        """End a process: its connection breaks, and it does nothing any more."""
        party.is_stopped = True
        self.drop(party)

    def _cut(self, link: Link, *, is_noticed: bool = True) -> None:
        link.is_up = False
        link.to_router.clear()
        link.to_member.clear()
        self._routes.pop((link.door, link.routing_id), None)
        self.links.remove(link)
        if is_noticed:
            link.party.machine.connection_lost(link.door, self.now)
        if link.party.link is link:
            link.party.link = None

    # --- time and turns -----------------------------------------------------------------------

    def settle(self) -> None:
        """Let everybody take turns until nothing is on its way."""
        # A sum, not any(): everybody gets a turn in each round.
        while sum(self._turn(party) for party in self.parties if not party.is_stopped):
            pass

    def advance(self, seconds: float) -> None:
        """Move the clock, and let everybody do what is due on the way."""
        until = self.now + seconds
        self.settle()
        while True:
            awake = [party for party in self.parties if not party.is_stopped]
            due = min(party.machine.next_due() for party in awake)
            if due > until:
                break
            self.now = max(self.now, due)
            for party in awake:
                if self.now >= party.machine.next_due():
                    party.machine.tick(self.now)
            self.settle()
        self.now = until
        self.settle()

    def _turn(self, party: Party) -> bool:
        received = False
        for link in self.links[:]:
            if link.is_held or not link.is_up:
                continue
            inbox = link.to_router if party is self else link.to_member if link.party is party else None
            while inbox and link.is_up:
                frame, *rest = inbox.popleft()
                routing_id = link.routing_id if party is self else b""
                party.machine.receive(link.door, routing_id, frame, rest, self.now)
                received = True
        party.machine.run(self.now)
        party.after(self.now)
        return self._flush(party) or received

    def _flush(self, party: Party) -> bool:
        dirty = party.machine.dirty
        for outbox in party.congested:
            if not outbox.is_dirty:
                outbox.is_dirty = True
                dirty.append(outbox)
        party.congested.clear()
        has_sent = False
        while dirty:
            batch = dirty[:]
            dirty.clear()
            for outbox in batch:
                outbox.is_dirty = False
                outbox.seal(self.now)
                has_sent |= self._send(party, outbox)
        return has_sent

    def _send(self, party: Party, outbox: Outbox) -> bool:
        if party is self:
            link = self._routes.get((outbox.door, outbox.routing_id))  # type: ignore[arg-type]  # a Door
            if link is None:
                self.router.peer_gone(outbox, self.now)
                outbox.drop()
                return True
        else:
            link = party.link
        has_sent = False
        while outbox.messages:
            if link is None or (link.is_full_to_member if party is self else link.is_full_to_router):
                party.congested.add(outbox)
                break
            pipe = link.to_member if party is self else link.to_router
            pipe.append([bytes(frame) for frame in outbox.messages[0][1]])
            outbox.sent()
            has_sent = True
        return has_sent


def all_is_over(net: Net, callers: Sequence[Caller], workers: Sequence[Worker]) -> None:
    """Assert that nothing of any call is left anywhere."""
    dispatcher = net.router.dispatcher
    assert len(dispatcher.wheel) == 0
    assert all(len(pool.queue) == 0 for pool in dispatcher.pools.values())
    for door in net.router.doors:
        for peer in door.peers.values():
            assert not getattr(peer, "calls", None)
    for caller in callers:
        assert not caller.machine.calls
        assert not caller.machine.replies
        assert len(caller.machine._wheel) == 0
    for worker in workers:
        assert not worker.machine.jobs
        assert not worker.machine.signs
        assert len(worker.machine._wheel) == 0
        assert worker.intake.running == 0
    for party in net.parties:
        assert party.machine.counters["faults"] == 0, party.machine.notes
