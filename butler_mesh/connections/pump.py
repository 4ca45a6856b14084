"""The pump: the one loop between machines and transports, shared by all roles.

A turn reads what has arrived, lets the machine and its owner act, and sends everything that came of it,
each peer's records as one message. Turns run in the gevent hub: started by a port that became readable,
by ``arm`` (a send outside a turn), or by the timer. Three rules keep it from ever going deaf:

* ZeroMQ's descriptor is edge-triggered and a send may swallow the edge: a turn ends only when a look
  at the socket *after* the last send found nothing to read, else it arms itself again;
* a turn that stopped at its bound arms itself again and does not wait for the descriptor;
* no exception leaves a turn, and ``armed`` is reset whatever happens.
"""

from __future__ import annotations

import enum
import logging
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
RETRY_FULL_S = 0.020
"""A ROUTER does not tell when one peer's full pipe has room again: ask this often."""


class Sent(enum.Enum):
    """What became of a message that was given to a port."""

    YES = "yes"
    FULL = "full"  # keep it, try again
    GONE = "gone"  # nobody is there any more


class Machine(Protocol):
    """What the pump asks of a protocol machine."""

    dirty: list[Outbox]
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

    def start(self, pump: Pump) -> None: ...
    def receive(self) -> tuple[bytes, bytes, Sequence[Frame]] | None:
        """Return (routing id, frame 0, other frames) of the next message, or None."""

    def send(self, routing_id: bytes, frames: Message) -> Sent: ...
    def has_input(self) -> bool: ...
    def close(self, linger_s: float) -> None: ...
    def abandon(self) -> None: ...


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
        # When the oldest unsent record was written: the stamp of the next message.
        self._armed_at = 0.0
        self._congested: set[Outbox] = set()
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

    def detach(self, port: Port) -> None:
        """Forget a port that is being closed."""
        self._ports.pop(port.door, None)

    def arm(self, now: float) -> None:
        """See to it that what was just written leaves in the next turn of the loop."""
        if not self._is_armed and not self._is_turning and not self._is_closed:
            self._is_armed = True
            self._armed_at = now
            self._loop.run_callback(self.turn)

    def connection_made(self, port: Port) -> None:
        """A port has somebody at its other end."""
        now = self._clock()
        self._guard(self.machine.connection_made, port.door, now)
        self.arm(now)

    def connection_lost(self, port: Port) -> None:
        """A port has lost somebody."""
        now = self._clock()
        self._guard(self.machine.connection_lost, port.door, now)
        self.arm(now)

    def turn(self) -> None:
        """Read, act, send: the whole of it, once."""
        was_armed, self._is_armed = self._is_armed, False
        if self._is_turning or self._is_closed:
            return
        self._is_turning = True
        again = True
        try:
            now = self._clock()
            stamp = self._armed_at if was_armed else now
            machine = self.machine
            again = self._drain(now)
            machine.run(now)
            if now >= self._tick_due:
                machine.tick(now, drained=not again)
            if self._after is not None and self._after(now):
                again = True
            self.flush(stamp)
            if machine.notes:
                self._tell()
            for port in list(self._ports.values()):
                if port.has_input():
                    again = True
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
        if self._congested:
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
                self._send(outbox)

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
        self._is_closed = True
        self._stop_timer()
        for port in self._ports.values():
            port.abandon()
        self._ports.clear()

    # --- within -------------------------------------------------------------------------------

    def _drain(self, now: float) -> bool:
        """Read every port until it is empty; True when the bound came first."""
        receive = self.machine.receive
        until = now + TURN_S
        for door, port in list(self._ports.items()):
            read = port.receive
            for n in range(TURN_MESSAGES):
                message = read()
                if message is None:
                    break
                receive(door, message[0], message[1], message[2], now)
                if n & 3 == 3 and self._clock() > until:
                    return True
            else:
                return True
        return False

    def _send(self, outbox: Outbox) -> None:
        port = self._ports.get(outbox.door)
        if port is None:
            outbox.drop()
            return
        messages = outbox.messages
        while messages:
            sent = port.send(outbox.routing_id, messages[0][1])
            if sent is Sent.YES:
                outbox.sent()
            elif sent is Sent.FULL:
                self._congested.add(outbox)
                return
            else:
                self.machine.peer_gone(outbox, self._clock())
                outbox.drop()
                return

    def _set_timer(self, now: float) -> None:
        due = self._tick_due = self.machine.next_due()
        if self._congested:
            due = min(due, now + RETRY_FULL_S)
        if not self._timer_due or due < self._timer_due:
            self._start_timer(due, now)

    def _start_timer(self, due: float, now: float) -> None:
        self._stop_timer()
        self._timer_due = due
        self._timer = self._loop.timer(max(0.0, due - now))
        self._timer.start(self._on_timer, update=True)

    def _on_timer(self) -> None:
        self._timer_due = 0.0
        self.turn()

    def _stop_timer(self) -> None:
        self._timer_due = 0.0
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _tell(self) -> None:
        for note in self.machine.notes:
            self._log.info("%s", note)
        self.machine.notes.clear()

    def _guard(self, act: Callable[..., object], *args: object) -> None:
        try:
            act(*args)
        except Exception:
            self._log.exception("callback-failed")
