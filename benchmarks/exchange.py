"""Client, router and instance without sockets: their machines, driven as the pump drives them.

A turn gives a machine what has arrived, lets it act, and seals what came of it; messages go straight to
whom they are for. As the machines are pure, what one of them was given can be given to a new one again:
so each can be measured alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from butler_mesh import status
from butler_mesh.protocol.client import ClientProtocol, Pending
from butler_mesh.protocol.instance import Identity, InstanceProtocol, Intake, Sign
from butler_mesh.protocol.limits import Limits
from butler_mesh.protocol.mesh import FINAL, ONE_WAY, STREAM
from butler_mesh.protocol.outbox import Message
from butler_mesh.protocol.router import DEFAULTS, RouterProtocol

if TYPE_CHECKING:
    from butler_mesh.connections.pump import Machine  # gevent is not to be loaded for its sake

IN_FLIGHT = 64
CALL_S = 1 / 32_000
"""How far the clock moves with each call: as many are done in a second, so timers are due as often."""
START = 1000.0
TIMEOUT_S = 30.0
PARTS = 32
WINDOW = 16
"""What a stream's reader grants at first; half of it again whenever it has read as much."""

SERVICE = "bench.echo"
_TEXT = b"x" * 89  # with its JSON around it 100 bytes of arguments
REQUEST = b'{"path":"/echo","arguments":{"text":"%b"}}' % _TEXT
RESPONSE = b'{"body":{"text":"%b"}}' % _TEXT
PART = b'{"body":"%b"}' % _TEXT

Arrived = list[tuple[bytes, Message]]
"""Messages, each with the routing id of its sender, or, at the router's exit, of its receiver."""

Tape = list[tuple[Arrived, float, int]]
"""Turns: what had arrived, the time, and how many calls were begun."""


class Party:
    """One machine, and its share of a turn."""

    def __init__(self, machine: Machine, door: object = None) -> None:
        self.machine = machine
        self.door = door
        # What every turn was given, where it is to be given to another.
        self.tape: Tape | None = None
        # Messages that its turns returned.
        self.sent = 0
        self._tick_due = 0.0

    def turn(self, arrived: Arrived, now: float, calls: int = 0) -> Arrived:
        """Take what has arrived, act, and return what is to be sent; a client begins so many calls first."""
        if self.tape is not None:
            self.tape.append((arrived, now, calls))
        machine = self.machine
        self.begin(calls, now)
        for routing_id, (frame, *rest) in arrived:
            machine.receive(self.door, routing_id, bytes(frame), rest, now)
        machine.run(now)
        if self.is_due(now):
            machine.tick(now)
        self.after(now)
        sent: Arrived = []
        while machine.dirty:
            batch = machine.dirty[:]
            machine.dirty.clear()
            for outbox in batch:
                outbox.is_dirty = False
                outbox.seal(now)
                while outbox.messages:
                    sent.append((outbox.routing_id, outbox.messages[0][1]))
                    outbox.sent()
        self._tick_due = machine.next_due()
        self.sent += len(sent)
        return sent

    def is_due(self, now: float) -> bool:
        """Tell whether the machine wants a turn though nothing came."""
        return now >= self._tick_due

    def connect(self) -> None:
        """There is somebody at the other end."""
        self.machine.connection_made(self.door, START)

    def begin(self, calls: int, now: float) -> None:
        """What callers did before the turn."""

    def after(self, now: float) -> None:
        """What the machine's owner does at the end of a turn."""


class Hub(Party):
    """The router."""

    machine: RouterProtocol

    def __init__(self, limits: Limits = DEFAULTS) -> None:
        machine = RouterProtocol(START, b"a seed of no less than 16 bytes", limits)
        super().__init__(machine, machine.open_door("both"))


class Caller(Party):
    """A client, and its callers."""

    machine: ClientProtocol

    def __init__(self, flags: int = 0) -> None:
        super().__init__(ClientProtocol(START))
        # Calls that were answered 200; of one-way calls, those that were sent.
        self.done = 0
        # Parts that streams brought.
        self.parts = 0
        self._flags = flags
        self._target = SERVICE.encode()
        # Parts read of each stream since its last WINDOW.
        self._unread: dict[Pending, int] = {}

    def begin(self, calls: int, now: float) -> None:
        submit, flags, window = self.machine.submit, self._flags, WINDOW if self._flags & STREAM else 0
        for _ in range(calls):
            submit(
                self._target,
                REQUEST,
                deadline=now + TIMEOUT_S,
                flags=flags,
                on_reply=self._on_reply,
                now=now,
                window=window,
            )
        if flags & ONE_WAY:
            self.done += calls

    def after(self, now: float) -> None:
        while self.machine.replies:
            replies, self.machine.replies = self.machine.replies, []
            for call, kind, code, flags, envelope in replies:
                on_reply = call.on_reply
                if on_reply is None:
                    continue
                if kind == FINAL:
                    call.on_reply = None
                else:
                    self._read(call, now)
                on_reply(kind, code, flags, envelope)

    def _on_reply(self, kind: int, code: int, flags: int, envelope: bytes) -> None:
        if code != status.OK:
            raise AssertionError(f"{code} {envelope!r}")
        if kind == FINAL:
            self.done += 1
        else:
            self.parts += 1

    def _read(self, call: Pending, now: float) -> None:
        read = self._unread.get(call, 0) + 1
        if read == WINDOW // 2:
            self.machine.grant(call, read, now)
            read = 0
        self._unread[call] = read


class Worker(Party):
    """An instance, whose handlers answer at once; streams with so many parts, as their window allows."""

    machine: InstanceProtocol

    def __init__(self, wid: str = "bench-1") -> None:
        identity = Identity(wid, SERVICE)
        super().__init__(InstanceProtocol(START, identity, Intake(IN_FLIGHT), "0123456789abcdef" * 2))
        # Jobs that have come; those of one-way calls are heard of nowhere else.
        self.done = 0
        self._parts: dict[int, int] = {}

    def after(self, now: float) -> None:
        signs, self.machine.signs = self.machine.signs, []
        for sign, job in signs:
            if sign is Sign.ARRIVED:
                self.done += 1
            elif sign is not Sign.WINDOW:
                raise AssertionError(f"{sign} of a job")
            if not job.flags & STREAM:
                self.machine.reply(job, status.OK, RESPONSE, now)
                continue
            sent = self._parts.pop(job.token, 0)
            while job.window > 0 and sent < PARTS:
                self.machine.reply(job, status.OK, PART, now, final=False)
                sent += 1
            if sent < PARTS:
                self._parts[job.token] = sent
            elif not job.is_over:
                self.machine.reply(job, status.OK, b"{}", now)


class Exchange:
    """The three of them. ``is_taped``: each keeps what it is given, for ``replay``."""

    def __init__(self, flags: int = 0, *, is_taped: bool = False) -> None:
        self.now = START
        self.hub, self.caller, self.worker = Hub(), Caller(flags), Worker()
        # By routing id.
        self._members: dict[bytes, Party] = {b"client": self.caller, b"instance": self.worker}
        if is_taped:
            for party in (self.hub, *self._members.values()):
                party.tape = []
        self._is_connected = False

    def run(self, calls: int) -> int:
        """Make so many calls, ``IN_FLIGHT`` at once; return how many were done, to the last reply."""
        if not self._is_connected:
            self._connect()
        begun, had_come = self.caller.done, self.worker.done
        while calls > 0:
            at_once = min(calls, IN_FLIGHT)
            self._settle({b"client": self.caller.turn([], self.now, at_once)})
            self.now += at_once * CALL_S
            calls -= at_once
        return min(self.caller.done - begun, self.worker.done - had_come)

    def _connect(self) -> None:
        self._is_connected = True
        for name, member in self._members.items():
            member.connect()
            self._settle({name: member.turn([], START)})
        if not self.worker.machine.is_registered:
            raise AssertionError("the instance is not registered")

    def _settle(self, sent: dict[bytes, Arrived]) -> None:
        while any(sent.values()):
            to_hub = [(name, message) for name, messages in sent.items() for _, message in messages]
            # By whom it is for: a member takes all that is there for it in one turn, as the router does.
            to_members: dict[bytes, Arrived] = {}
            for name, message in self.hub.turn(to_hub, self.now):
                to_members.setdefault(name, []).append((b"", message))
            sent = {name: self._members[name].turn(got, self.now) for name, got in to_members.items()}


def replay(party: Party, tape: Tape) -> None:
    """Give a new party what another was given, turn by turn."""
    turn = party.turn
    for given in tape:
        turn(*given)
