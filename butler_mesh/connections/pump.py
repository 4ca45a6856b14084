"""The pump: the one loop between machines and transports, shared by all roles.

A turn reads what has arrived, lets the machine and its owner act, and sends everything that came of it,
each peer's records together in few messages; a message that is full does not wait for the turn's end.
Turns run in the gevent hub: started by a port that became readable, by ``arm`` (a send outside a turn), or
by the timer. Three rules keep it from ever going deaf:

* ZeroMQ's descriptor is edge-triggered and a send may swallow the edge: a port is taken off ``is_ready``
  only by a look that found nothing to read, and each port is looked at after the turn's last send to it;
* a turn that stopped at its bound arms itself again and does not wait for the descriptor;
* no exception leaves a turn, and ``armed`` is reset whatever happens.
"""

from __future__ import annotations

import enum
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gevent.hub import get_hub

from butler_mesh.clock import Clock, monotonic
from butler_mesh.counters import Counters
from butler_mesh.protocol.mesh import Frame
from butler_mesh.protocol.outbox import Message, Outbox

TURN_S = 0.002
"""How long a turn may read, or run handlers, before others in the hub get their turn."""
TURN_MESSAGES = 64
HEAVY_BYTES = 16 * 1024
"""A message after which the clock is looked at; of lighter ones after every fourth."""
TURN_BYTES = 4 * 1024 * 1024
"""Of attachments: half of what may wait for a peer, so that the replies of one turn, which nobody has had
a chance to read, are not taken for a client that does not read."""
STAMP_STEP_S = 0.005
"""Records written further apart than this do not share a stamp: their receiver takes what a message is old
off each of its deadlines, and a caller that computes between two calls is not to pay for it."""
RETRY_FULL_S = 0.020
"""A ROUTER does not tell when one peer's full pipe has room again: ask this often."""
RETRY_AT_ONCE = 4
"""So few full pipes are tried again in every turn; a crowd of slow readers must not slow the turns."""


class Sent(enum.Enum):
    """What became of a message that was given to a port."""

    YES = "yes"
    FULL = "full"  # keep it, try again
    GONE = "gone"  # nobody is there any more


class Machine(Protocol):
    """What the pump asks of a protocol machine."""

    # Outboxes with something to send; and those of them that have filled a message.
    dirty: list[Outbox]
    filled: list[Outbox]
    notes: list[str]
    counters: Counters

    def receive(
        self, door: Any, routing_id: bytes, frame: bytes, rest: Sequence[Frame], now: float
    ) -> None: ...
    def run(self, now: float) -> None: ...
    def tick(self, now: float, *, drained: bool = True) -> None: ...
    def next_due(self) -> float: ...
    def connection_made(self, door: Any, now: float) -> None: ...
    def connection_lost(self, door: Any, now: float) -> None: ...
    def peer_gone(self, outbox: Outbox, now: float) -> None: ...


class Port(Protocol):
    """One transport end: a socket, or one end of a pipe inside the process."""

    door: object
    # Whether there may be something to read. Set by the port when it is woken and by ``look``; a turn
    # reads only ports that are ready, for a vain read costs more than a message.
    is_ready: bool

    def start(self, pump: Pump) -> None: ...
    def receive(self) -> tuple[bytes, bytes, Sequence[Frame]] | None:
        """Return (routing id, frame 0, other frames) of the next message, or None; then ``look``."""

    def send(self, routing_id: bytes, frames: Message) -> Sent: ...
    def look(self) -> bool:
        """Set and return ``is_ready`` by what the transport says now."""

    def close(self, linger_s: float) -> None: ...
    def abandon(self) -> None: ...


_pumps: weakref.WeakSet[Pump] = weakref.WeakSet()


def _disown_all() -> None:
    for pump in _pumps:
        pump.disown()


os.register_at_fork(after_in_child=_disown_all)


class Pump:
    """Drives one machine over its ports. ``after`` is the owner's part of a turn: it is called with the
    turn's time once the input is read, and returns True when it wants another turn at once."""

    def __init__(
        self,
        machine: Machine,
        *,
        after: Callable[[float], bool] | None = None,
        clock: Clock = monotonic,
        logger: str = "butler_mesh",
    ) -> None:
        self.machine = machine
        self._after = after
        self._clock = clock
        self._log = logging.getLogger(logger)
        self._loop = get_hub().loop
        self._ports: dict[object, Port] = {}
        # A turn is scheduled / is running: in both cases nobody needs to schedule another.
        self._is_armed = False
        self._is_turning = False
        self._is_closed = False
        # Ports that are a parent process's, and whose watchers are still ours.
        self._left_behind: list[Port] = []
        _pumps.add(self)
        # When the oldest unsealed record was written: the stamp of the next message.
        self._written_at = 0.0
        self._congested: set[Outbox] = set()
        self._retry_at = 0.0
        # Ports that were sent to and not looked at since.
        self._touched: set[Port] = set()
        self._timer: Any = None
        # When the timer will fire; 0.0 when it is not running.
        self._timer_due = 0.0
        self._tick_due = 0.0
        self._set_timer(clock())

    def attach(self, port: Port) -> None:
        """Read from and send to this port from now on."""
        self._ports[port.door] = port
        port.start(self)
        self.arm(self._clock())

    def arm(self, now: float) -> None:
        """See to it that what is written now leaves in this turn of the loop, or the next.

        To be called before a request is written, for its time to run from now; after other records.
        """
        if now - self._written_at > STAMP_STEP_S:
            self._date(now)
        if not self._is_armed and not self._is_turning and not self._is_closed:
            self._is_armed = True
            self._loop.run_callback(self.turn)

    def connection_made(self, port: Port) -> None:
        """A port has somebody at its other end."""
        now = self._clock()
        self.arm(now)
        self._guard(self.machine.connection_made, port.door, now)

    def connection_lost(self, port: Port, *, was_last: bool = False) -> None:
        """A port has lost somebody; if that was all it had, what it still holds is read first: replies
        that came before are none that were lost. (Of a socket's, libzmq has dropped them by now.)"""
        now = self._clock()
        self.arm(now)
        if was_last:
            self._guard(self._read_out, port, now)
        self._guard(self.machine.connection_lost, port.door, now)

    def turn(self) -> None:
        """Read, act, send: the whole of it, once."""
        self._is_armed = False
        if self._is_turning or self._is_closed:
            if self._left_behind:
                self.abandon()
            return
        self._is_turning = True
        again = True
        try:
            now = self._clock()
            if now - self._written_at > STAMP_STEP_S:
                self._date(now)
            machine = self.machine
            again = self._drain(now)
            machine.run(now)
            if now >= self._tick_due:
                machine.tick(now, drained=not again)
            if self._after is not None and self._after(now):
                again = True
            self.flush(self._written_at)
            if machine.notes:
                self._tell()
                again = again or bool(machine.dirty)  # whoever handles the log may have sent something
            for port in self._touched:
                if port.look():
                    again = True
            self._touched.clear()
            self._set_timer(now)
        except Exception:
            # A bug. The socket must go on being read, or everything behind it goes silent; but not at
            # once, or a bug that stays would spin.
            self._log.exception("turn-failed")
            again = False
            self._start_timer(self._clock() + RETRY_FULL_S, self._clock())
        finally:
            self._is_turning = False
            if again:
                self.arm(self._clock())

    def flush(self, stamp: float) -> None:
        """Send what waits; ``stamp`` is when its oldest record was written."""
        machine = self.machine
        if self._congested and (len(self._congested) <= RETRY_AT_ONCE or stamp >= self._retry_at):
            self._retry_at = stamp + RETRY_FULL_S
            for outbox in self._congested:
                if not outbox.is_dirty:
                    outbox.is_dirty = True
                    machine.dirty.append(outbox)
            self._congested.clear()
        while machine.dirty:
            batch = machine.dirty[:]
            machine.dirty.clear()
            for outbox in batch:
                outbox.is_dirty = False
                outbox.seal(stamp)
                self._send_guarded(outbox)
        machine.filled.clear()

    def flush_filled(self) -> None:
        """Send the messages that are full, while the turn goes on: processes that wait for each other's
        whole turns leave every other core idle."""
        filled = self.machine.filled
        while filled:
            outbox = filled.pop()
            outbox.seal_filled(self._written_at)
            self._send_guarded(outbox)

    def close(self, linger_s: float = 0.0) -> None:
        """Send what can be sent, close the ports, stop the timer."""
        if self._is_closed:
            return
        self._guard(self.flush, self._clock())
        self._is_closed = True
        self._stop_timer()
        for port in self._ports.values():
            port.close(linger_s)
        self._ports.clear()

    def abandon(self) -> None:
        """Stop watching, close nothing: after a fork the sockets are the parent's."""
        self.disown()
        self._stop_timer()
        while self._left_behind:
            self._left_behind.pop().abandon()

    def disown(self) -> None:
        """In the child of a fork, at once: touch no socket any more. libzmq answers a child's every call
        with EINTR, which pyzmq would repeat for ever. The watchers go when they first wake, for the
        loop they belong to is the child's own only once gevent has made it so."""
        self._is_closed = True
        self._left_behind += self._ports.values()
        self._ports.clear()
        self._touched.clear()
        self._congested.clear()

    @property
    def is_closed(self) -> bool:
        """Whether its ports are to be left alone."""
        return self._is_closed

    # --- within -------------------------------------------------------------------------------

    def _drain(self, now: float) -> bool:
        """Read the ports that are ready; True when a bound came before the end of some port's input.

        Each has its share of the turn: a flood at one door must not silence the other.
        """
        receive = self.machine.receive
        ports = list(self._ports.items())
        again = False
        size = 0
        for door, port in ports:
            if not port.is_ready:
                continue
            until = self._clock() + TURN_S / len(ports)
            n = 0
            while port.is_ready:
                message = port.receive()
                if message is None:
                    break
                try:
                    receive(door, message[0], message[1], message[2], now)
                except Exception:
                    # A bug; it must not cost others the turn.
                    self.machine.counters.add("faults")
                    self._log.exception("receive-failed")
                if self.machine.filled:
                    self.flush_filled()
                n += 1
                if message[2] or len(message[1]) > HEAVY_BYTES:
                    size += sum(map(len, message[2]))
                    if self._clock() > until:
                        size = TURN_BYTES + 1
                if size > TURN_BYTES or (n & 3 == 0 and (n >= TURN_MESSAGES or self._clock() > until)):
                    again = again or port.is_ready
                    break
        return again

    def _read_out(self, port: Port, now: float) -> None:
        while port.look() and (message := port.receive()) is not None:
            self.machine.receive(port.door, *message, now)

    def _send_guarded(self, outbox: Outbox) -> None:
        try:
            self._send(outbox)
        except Exception:
            # A bug, or a frame that is none: it must cost neither this peer its other messages
            # nor the other peers theirs.
            outbox.sent()
            self._congested.add(outbox)
            # Last, for whoever handles the log may send.
            self._log.exception("send-failed")

    def _send(self, outbox: Outbox) -> None:
        port = self._ports.get(outbox.door)
        if port is None:
            outbox.drop()
            return
        messages = outbox.messages
        if messages:
            self._touched.add(port)
        while messages:
            sent = port.send(outbox.routing_id, messages[0][1])
            if sent is Sent.YES:
                outbox.sent()
            elif sent is Sent.FULL:
                if outbox.is_parting:
                    outbox.drop()
                    return
                self._congested.add(outbox)
                return
            else:
                self.machine.peer_gone(outbox, self._clock())
                outbox.drop()
                return

    def _date(self, now: float) -> None:
        """Give what was written up to now its own stamp; what follows gets a later one."""
        for outbox in self.machine.dirty:
            outbox.seal(self._written_at)
        self._written_at = now

    def _set_timer(self, now: float) -> None:
        due = self._tick_due = self.machine.next_due()
        if self._congested:
            due = min(due, now + RETRY_FULL_S)
        if not self._timer_due or due < self._timer_due:
            self._start_timer(due, now)

    def _start_timer(self, due: float, now: float) -> None:
        self._stop_timer()
        if self._is_closed:
            return  # by somebody whom this very turn has woken
        self._timer_due = due
        self._timer = self._loop.timer(max(0.0, due - now))
        self._timer.start(self._on_timer, update=True)

    def _on_timer(self) -> None:
        self._timer_due = 0.0
        # Whoever judges a silence has read first; also what came while the hub did not turn.
        for port in list(self._ports.values()):
            port.look()
        self.turn()

    def _stop_timer(self) -> None:
        self._timer_due = 0.0
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _tell(self) -> None:
        for note in self.machine.notes:
            # Peers have a say in it: one line it must stay, and not a long one.
            # Refusals are warnings: a program that has set no logging up still shows them.
            level = logging.WARNING if note.startswith(("refused", "fault")) else logging.INFO
            self._log.log(level, "%s", note[:300] if note.isprintable() else repr(note[:300]))
        self.machine.notes.clear()

    def _guard(self, act: Callable[..., object], *args: object) -> None:
        try:
            act(*args)
        except Exception:
            self._log.exception("callback-failed")
