"""The part of the conversation that everybody who connects to a router shares: greet, beat, leave."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

from butler_mesh import codec, status
from butler_mesh.counters import Counters
from butler_mesh.errors import ProtocolError
from butler_mesh.protocol import mesh
from butler_mesh.protocol.liveness import DEAD_AFTER_S, HEARTBEAT_INTERVAL_S, Transit
from butler_mesh.protocol.mesh import Frame, Record
from butler_mesh.protocol.outbox import Outbox

GREET_AGAIN_S = 1.0
"""Pause before HELLO is said again to a router that was silent, or did not want us."""
STALL_S = 2.0
"""A pause in which we ourselves did nothing (ticks come every second): no silence of the router's."""
GREET_AT_LAST_S = 30.0
"""The longest such pause, reached by doubling: what a router refuses it mostly goes on refusing."""


class Phase(enum.Enum):
    """Where the conversation stands."""

    ABSENT = "absent"  # no connection, or one that was refused
    GREETING = "greeting"  # HELLO is out, WELCOME is not in
    PRESENT = "present"  # welcomed
    LEAVING = "leaving"  # GOODBYE is out, its receipt is not in
    LEFT = "left"  # it is in, or nobody is there to send one


Act = Callable[[Record, float, float], None]


class Member:
    """One connection's machine on the connecting side; the client's and the instance's build on it."""

    role = ""

    def __init__(self, now: float) -> None:
        self.phase = Phase.ABSENT
        self.counters = Counters()
        self.dirty: list[Outbox] = []
        # One line each for the log; the pump writes and clears them.
        self.notes: list[str] = []
        self.filled: list[Outbox] = []
        self.outbox = Outbox(self.dirty, filled=self.filled)
        self.router_id = ""
        self.router_epoch = ""
        self.nonce = ""
        self.max_body_bytes = mesh.MAX_BODY_BYTES
        self.heard_at = now
        self._transit = Transit()
        self._beat_at = now + HEARTBEAT_INTERVAL_S
        self._ticked_at = now
        self._greet_at = 0.0
        # How often in a row a router did not want us as what we said we are.
        self.conflicts = 0
        # Greeting a router that may know us still, after this process stood still.
        self.is_resuming = False
        self._is_connected = False
        self.acts: dict[int, Act] = {
            mesh.WELCOME: self._welcome,
            mesh.HEARTBEAT: self._heartbeat,
            mesh.GOODBYE: self._goodbye,
        }

    # --- what the transport calls -------------------------------------------------------------

    def connection_made(self, door: object, now: float) -> None:
        """There is somebody at the other end: greet."""
        if self.phase is Phase.PRESENT:
            # Nobody told of the loss in between; what the old connection owed us cannot come any more.
            self._leave(now, "connected anew")
        self._is_connected = True
        self._greet(now)

    def connection_lost(self, door: object, now: float) -> None:
        """The connection is gone, and with it every reply that was to come over it."""
        self._is_connected = False
        self._leave(now, "connection lost")

    def peer_gone(self, outbox: Outbox, now: float) -> None:
        """Nobody is at the other end to send to."""
        self.connection_lost(None, now)

    def receive(
        self, door: object, routing_id: bytes, frame: bytes, rest: Sequence[Frame], now: float
    ) -> None:
        """Act on one message from the router."""
        try:
            stamp_ms, records = mesh.parse(frame, rest)
        except ProtocolError:
            self.counters.add("dropped.malformed")
            return
        self.heard_at = now
        sent_at = now - self._transit.excess_s(stamp_ms, now)
        acts = self.acts
        for record in records:
            act = acts.get(record.kind)
            if act is None:
                self.counters.add("skipped.unknown_kind")
                continue
            try:
                act(record, sent_at, now)
            except ProtocolError:
                self.counters.add("dropped.malformed_record")
            except Exception as error:  # one bad record must not cost the others of its message
                self.counters.add("faults")
                self.notes.append(f"fault in {mesh.KIND_NAMES[record.kind]}: {error!r}")

    def tick(self, now: float, *, drained: bool = True) -> None:
        """Beat, greet again, and notice a router that fell silent."""
        slept_s, self._ticked_at = now - self._ticked_at, now
        if slept_s > STALL_S:
            self.heard_at += slept_s
        if now < self._beat_at:
            return
        self.look_at_the_clock(now)
        self._beat_at = now + HEARTBEAT_INTERVAL_S
        if self.phase is Phase.PRESENT:
            if drained and now - self.heard_at >= DEAD_AFTER_S:
                self._leave(now, "the router is silent")
            elif self.is_resuming:
                self._say_hello(now)
            else:
                self._beat(now)
        elif self._is_connected and self.phase in (Phase.ABSENT, Phase.GREETING) and now >= self._greet_at:
            self._greet(now)

    def next_due(self) -> float:
        """Return when ``tick`` is to be called next."""
        return self._beat_at

    def goodbye(self) -> None:
        """Leave; the receipt (phase LEFT) says that everything sent before has arrived."""
        if self.phase is Phase.PRESENT:
            self.phase = Phase.LEAVING
            self.outbox.add(mesh.GOODBYE, payload=mesh.pack_reason(status.OK, ""))
        elif self.phase is not Phase.LEAVING:
            self.phase = Phase.LEFT

    def look_at_the_clock(self, now: float) -> None:
        """Notice that this process stood still: a role whose router may have forgotten it greets anew."""

    # --- what the roles fill in ---------------------------------------------------------------

    def hello(self) -> dict[str, Any]:
        """Return what HELLO says beyond the role."""
        return {}

    def on_welcome(self, now: float) -> None:
        """WELCOME came."""

    def on_unsent(self, ids: set[int]) -> None:
        """The connection broke before the socket had taken these REQUESTs: they were never started."""

    def on_absence(self, now: float, reason: str) -> None:
        """The conversation broke off."""

    # --- within -------------------------------------------------------------------------------

    def _greet(self, now: float) -> None:
        if self.phase in (Phase.LEAVING, Phase.LEFT):
            return
        self.phase = Phase.GREETING
        self.heard_at = now
        self._transit = Transit()
        self._greet_at = now + GREET_AGAIN_S
        self._say_hello(now)

    def _say_hello(self, now: float) -> None:
        # The first record of a message, always.
        self.outbox.seal(now)
        hello = {"role": self.role, "versions": [mesh.VERSION], **self.hello()}
        if self.is_resuming:
            hello["resume"] = True
        self.outbox.add(mesh.HELLO, payload=codec.dumps(hello))

    def _beat(self, now: float) -> None:
        self.outbox.add(mesh.HEARTBEAT)

    def _leave(self, now: float, reason: str) -> None:
        self.on_unsent(self.outbox.unsent(mesh.REQUEST))
        self.outbox.drop()
        if self.phase in (Phase.LEAVING, Phase.LEFT):
            self.phase = Phase.LEFT
            return
        was_present = self.phase is Phase.PRESENT
        self.is_resuming = False
        self.phase = Phase.ABSENT
        self._greet_at = now + GREET_AGAIN_S
        if was_present:
            self.notes.append(f"lost router {self.router_id}: {reason}")
            self.on_absence(now, reason)

    def _welcome(self, record: Record, sent_at: float, now: float) -> None:
        if self.phase is not Phase.GREETING and not self.is_resuming:
            return
        welcome = mesh.split_object(record.payload)
        self.router_id, self.router_epoch = str(welcome.get("router")), str(welcome.get("epoch"))
        self.nonce = str(welcome.get("nonce"))
        max_bytes = welcome.get("max_bytes")
        if isinstance(max_bytes, int) and max_bytes > 0:
            self.max_body_bytes = max_bytes
        if self.is_resuming:
            self.is_resuming = False
            if welcome.get("resumed") is not True:
                self.on_absence(now, "it has forgotten us while this process stood still")
        self.phase = Phase.PRESENT
        self.on_welcome(now)

    def _heartbeat(self, record: Record, sent_at: float, now: float) -> None:
        pass

    def _goodbye(self, record: Record, sent_at: float, now: float) -> None:
        code, reason = mesh.split_reason(record.payload)
        if self.phase is Phase.LEAVING:
            self.phase = Phase.LEFT
        elif code == status.UNAUTHORIZED and (self.phase is Phase.GREETING or self.is_resuming):
            pass  # meant for what we sent over the previous connection; our HELLO is on its way
        elif code != status.OK:
            if self.phase is not Phase.PRESENT or code == status.CONFLICT:
                self.notes.append(f"refused by the router: {code} {reason}")
            self._leave(now, f"sent away, {code} {reason}")
            if code == status.UNAUTHORIZED:
                self._greet(now)
            elif code == status.CONFLICT:
                self._greet_at = now + min(GREET_AT_LAST_S, GREET_AGAIN_S * 2 ** min(self.conflicts, 5))
                self.conflicts += 1
