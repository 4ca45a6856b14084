"""Majordomo peers at a mesh router: their frames become calls, calls become their frames.

A foreign request travels as a RAW body of method ``request`` and path ``/``; a single JSON object that
names a path, method or arguments is taken for an envelope. A mesh reply reaches a foreign client as its
RAW parts, or as one JSON frame with the status in it. The dialects have no error code, so what would be
an error for a mesh client is dropped and counted, as RFC 7 expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct

from butler_mesh import codec, status
from butler_mesh.counters import Counters
from butler_mesh.protocol import mdp, mesh
from butler_mesh.protocol.dispatcher import Dispatcher
from butler_mesh.protocol.limits import Limits
from butler_mesh.protocol.liveness import State
from butler_mesh.protocol.mesh import ATTACH_OVER, FINAL, PARTIAL, RAW, STREAM, Frame, Record
from butler_mesh.protocol.outbox import Outbox
from butler_mesh.protocol.peers import Call, ClientPeer, Door, InstancePeer

_ADDRESS = Struct(">Q")


class ForeignClient(ClientPeer):
    """A client of one of the dialects; it has no ids, so the router counts its requests."""

    __slots__ = ("counters", "dialect", "last_id")

    def __init__(
        self,
        door: Door,
        outbox: Outbox,
        now: float,
        dialect: mdp.Dialect,
        counters: Counters,
        patience_s: float,
    ) -> None:
        super().__init__(door, outbox, dialect.name, now)
        # It says nothing between its requests, and that is its right.
        self.patience_s = patience_s
        self.dialect = dialect
        self.counters = counters
        self.last_id = 0

    def reply(self, call: Call, kind: int, flags: int, payload: bytes, envelope: Frame | None) -> None:
        service, _, _ = mesh.split_target(call.payload, call.flags)
        body = _body(flags, payload, 2, envelope)
        if body is None:
            envelope_json = payload[2:] if envelope is None else bytes(envelope)
            body = [_with_status(mesh.split_status(payload), envelope_json)]
        self.outbox.put(self.dialect.reply(service, body, final=kind == FINAL))

    def refuse(self, id_: int, payload: bytes) -> None:
        self.counters.add("dropped.foreign_refusal")

    def heartbeat(self) -> None:
        pass  # no dialect has a word for it

    def dismiss(self, code: int, reason: str) -> None:
        pass  # nor for this


class ForeignWorker(InstancePeer):
    """A worker of one of the dialects: one request at a time, heartbeats only from its own loop."""

    __slots__ = ("busy_patience_s", "dialect", "idle_at")

    def __init__(self, door: Door, outbox: Outbox, now: float, dialect: mdp.Dialect, limits: Limits) -> None:
        super().__init__(door, outbox, dialect.name, now)
        self.patience_s = limits.heartbeat_timeout_s
        # When it was last seen to have no request: reference workers do not beat while they work.
        self.idle_at = now
        busy_s = limits.busy_timeout_s
        self.busy_patience_s = limits.foreign_patience_s if busy_s is None else busy_s
        self.dialect = dialect
        self.credit = self.free = 1

    def request(self, call: Call, remaining_ms: int) -> None:
        _, _, offset = mesh.split_target(call.payload, call.flags)
        body = _body(call.flags, call.payload, offset, call.envelope)
        if body is None:
            body = [call.payload[offset:] if call.envelope is None else call.envelope]
        self.outbox.put(self.dialect.request(_ADDRESS.pack(call.token), body))

    def cancel(self, token: int) -> None:
        pass  # no dialect has a word for it

    def grant(self, token: int, window: bytes) -> None:
        pass  # nor for this

    def heartbeat(self) -> None:
        self.outbox.put(self.dialect.heartbeat())

    def dismiss(self, code: int, reason: str) -> None:
        self.outbox.put(self.dialect.disconnect())

    def judge(self, now: float) -> State:
        if not self.calls:
            self.idle_at = now
            return State.DEAD if now - self.heard_at >= self.patience_s else State.READY
        silent_s = now - max(self.heard_at, self.idle_at)
        return State.DEAD if silent_s >= self.busy_patience_s else State.READY

    def describe(self) -> dict[str, object]:
        return {**super().describe(), "protocol": self.dialect.name}


class Majordomo:
    """The foreign half of a router: reads the dialects, feeds the dispatcher."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        dirty: list[Outbox],
        counters: Counters,
        notes: list[str],
        limits: Limits,
        *,
        seed: bytes = b"",
    ) -> None:
        self._dispatcher = dispatcher
        self._dirty = dirty
        self._counters = counters
        # One line each on who comes and goes; the router's own.
        self._notes = notes
        self._limits = limits
        # No dialect can show a register secret: where one is asked for, none of their workers may come.
        self._accepts_workers = limits.register_secret is None
        self._key = blake2b(seed, digest_size=16).digest()
        # Its entry is kept for as long as a reply to its last request may come.
        self._client_patience_s = limits.foreign_patience_s

    def receive(self, door: Door, routing_id: bytes, frames: Sequence[Frame], now: float) -> bool:
        """Act on one message; False when it is of no known dialect."""
        peer = door.peers.get(routing_id)
        try:
            message = mdp.parse(frames)
        except mdp.MalformedMDP:
            self._counters.add("dropped.malformed")
            if isinstance(peer, ForeignWorker):
                self._dismiss(peer, now)
            return True
        if message is None:
            if isinstance(peer, ForeignWorker):
                # Or of more frames than anybody reads: its call would wait for ever.
                self._counters.add("dropped.malformed")
                self._dismiss(peer, now)
                return True
            return False
        if isinstance(message, mdp.ClientRequest):
            if not door.accepts_clients or not isinstance(peer, ForeignClient | None):
                self._counters.add("dropped.wrong_door")
                return True
            self._request(door, routing_id, peer, message, now)
        else:
            if not door.accepts_services or not isinstance(peer, ForeignWorker | None):
                self._counters.add("dropped.wrong_door")
                return True
            self._command(door, routing_id, peer, message, now)
        return True

    def _request(
        self,
        door: Door,
        routing_id: bytes,
        client: ForeignClient | None,
        request: mdp.ClientRequest,
        now: float,
    ) -> None:
        dialect = request.dialect
        if client is not None and client.dialect is not dialect:
            self._counters.add("dropped.unexpected")
            return
        if client is None:
            outbox = Outbox(self._dirty, door, routing_id)
            client = ForeignClient(door, outbox, now, dialect, self._counters, self._client_patience_s)
            door.peers[routing_id] = client
        client.heard_at = now
        if client.outbox.is_full:
            self._dispatcher.cut(client)
            return
        if request.service.startswith(b"mmi."):
            code = self._mmi(request.service, request.body)
            client.outbox.put(dialect.reply(request.service, [code], final=True))
            return
        size, parts = sum(map(len, request.body)), len(request.body)
        if len(request.service) > 255 or size > self._dispatcher.max_body_bytes or parts > mesh.MAX_RAW_PARTS:
            self._counters.add("refused.too_large")
            return
        flags, envelope = _envelope(request.body)
        if dialect.has_partial:
            flags |= STREAM
        head = mesh.pack_target(request.service, mesh.UNBOUNDED_WINDOW if dialect.has_partial else None)
        client.last_id += 1
        payload, attached = _attach(head, envelope)
        deadline = now + self._limits.foreign_deadline_s
        self._dispatcher.accept(
            client, client.last_id, flags, deadline, request.service, payload, attached, now, must_queue=True
        )

    def _mmi(self, service: bytes, body: Sequence[Frame]) -> bytes:
        """RFC 8: 200 or 404 for mmi.service, 501 for every other name."""
        if service != b"mmi.service":
            return b"501"
        pool = self._dispatcher.pools.get(bytes(body[-1]))
        return b"200" if pool is not None and pool.instances else b"404"

    def _command(
        self,
        door: Door,
        routing_id: bytes,
        worker: ForeignWorker | None,
        message: mdp.WorkerCommand,
        now: float,
    ) -> None:
        command, rest = message.command, message.rest
        if worker is None:
            if command == mdp.READY:
                self._ready(door, routing_id, message, now)
            elif command != mdp.DISCONNECT:
                # It outlived its registration, or never had one: it must begin a new conversation.
                self._counters.add("dropped.unregistered")
                self._send_away(door, routing_id, message.dialect)
            return
        worker.heard_at = now
        if command == mdp.HEARTBEAT:
            return
        is_reply = command in (mdp.REPLY_PARTIAL, mdp.REPLY_FINAL)
        if is_reply and 2 <= len(rest) <= mesh.MAX_RAW_PARTS + 2 and not len(rest[1]):
            self._reply(worker, command, rest, now)
            return
        if command == mdp.DISCONNECT:
            self._remove(worker, now, "said goodbye")
        else:
            # Valid but unexpected (READY twice), or not as the table says: DISCONNECT and nothing more.
            self._counters.add("dropped.unexpected")
            self._dismiss(worker, now)

    def _dismiss(self, worker: ForeignWorker, now: float) -> None:
        """Send a worker away that broke the rules; it may begin a new conversation."""
        worker.outbox.put(worker.dialect.disconnect())
        self._remove(worker, now, "broke the rules")

    def _remove(self, worker: ForeignWorker, now: float, why: str) -> None:
        worker.door.peers.pop(worker.outbox.routing_id, None)
        self._notes.append(f"removed {worker.wid}: {why}, {len(worker.calls)} in flight")
        self._dispatcher.lose(worker, now)

    def _ready(self, door: Door, routing_id: bytes, message: mdp.WorkerCommand, now: float) -> None:
        name = bytes(message.rest[0]) if len(message.rest) == 1 else b""
        if (
            not self._accepts_workers
            or not name
            or len(name) > 255
            or name.startswith((b"mmi.", b"mgt.", b"/"))
        ):
            self._counters.add("refused.ready")
            self._send_away(door, routing_id, message.dialect)
            return
        outbox = Outbox(self._dirty, door, routing_id)
        worker = ForeignWorker(door, outbox, now, message.dialect, self._limits)
        # Not its routing id: wids are for all to read, and whoever knows one id can guess the next.
        digest = blake2b(routing_id, digest_size=8, key=self._key).hexdigest()
        worker.wid = f"{message.dialect.name}-{digest}"
        door.peers[routing_id] = worker
        self._dispatcher.enlist(worker, name, [], now)
        self._notes.append(f"registered {worker.wid} for {name.decode('utf-8', 'replace')} (credit 1)")

    def _send_away(self, door: Door, routing_id: bytes, dialect: mdp.Dialect) -> None:
        Outbox(self._dirty, door, routing_id, is_parting=True).put(dialect.disconnect())

    def _reply(self, worker: ForeignWorker, command: str, rest: Sequence[Frame], now: float) -> None:
        address = bytes(rest[0])
        if len(address) != _ADDRESS.size:
            self._counters.add("dropped.unknown_token")
            return
        envelope = mesh.pack_raw(b"{}", rest[2:])
        payload, attached = _attach(mesh.pack_status(status.OK), envelope)
        is_final = command == mdp.REPLY_FINAL
        record = Record(
            FINAL if is_final else PARTIAL, RAW, _ADDRESS.unpack(address)[0], 0, payload, attached
        )
        act = self._dispatcher.final if is_final else self._dispatcher.partial
        act(worker, record, now, now)


def _attach(head: bytes, envelope: bytes) -> tuple[bytes, Frame | None]:
    return (head, envelope) if len(envelope) > ATTACH_OVER else (head + envelope, None)


def _body(flags: int, payload: bytes, offset: int, envelope: Frame | None) -> list[Frame] | None:
    """Return the parts of a RAW body; None when it is JSON. Lengths that lie: the whole as one part."""
    if not flags & RAW:
        return None
    raw = payload[offset:] if envelope is None else bytes(envelope)
    try:
        return list(mesh.split_raw(raw)[1])
    except mesh.Malformed:
        return [raw]


def _envelope(body: Sequence[Frame]) -> tuple[int, bytes]:
    """Return (flags, envelope) for a foreign body."""
    if len(body) == 1 and len(body[0]) <= ATTACH_OVER:
        only = bytes(body[0])
        if only[:1] == b"{":
            try:
                value = codec.loads(only)
            except ValueError:
                value = None
            if isinstance(value, dict) and not value.keys().isdisjoint(("path", "method", "arguments")):
                return 0, only
    return RAW, mesh.pack_raw(b"{}", body)


def _with_status(code: int, envelope: bytes) -> bytes:
    """Put the status in front of a reply's JSON object without parsing it."""
    inner = envelope[1:]
    return b'{"status":%d%s%s' % (code, b"" if inner[:1] in (b"", b"}") else b",", inner or b"}")
