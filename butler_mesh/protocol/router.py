"""The router's machine: conversations with peers, and who of them is alive.

Feed it with what arrived (``receive``), with the end of the input (``run``), with time (``tick``) and
with what the transport noticed (``connection_lost``, ``peer_gone``); take what it wants to send from
the outboxes in ``dirty`` and what it wants to tell from ``notes``. Nothing a peer sends raises here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

from butler_mesh import codec, status
from butler_mesh.counters import Counters
from butler_mesh.errors import ProtocolError
from butler_mesh.protocol import management, mesh
from butler_mesh.protocol.dispatcher import Dispatcher
from butler_mesh.protocol.heartbeats import PROBE_AGAIN_S as PROBE_AGAIN_S
from butler_mesh.protocol.heartbeats import Heartbeats
from butler_mesh.protocol.limits import Limits
from butler_mesh.protocol.liveness import State
from butler_mesh.protocol.majordomo import Majordomo
from butler_mesh.protocol.mesh import ONE_WAY, Frame, Record
from butler_mesh.protocol.outbox import MAX_OUTBOX_BYTES, Outbox
from butler_mesh.protocol.peers import ClientPeer, ControlPeer, Door, InstancePeer, Peer
from butler_mesh.signing import is_signed, ready_fields

CLIENT = "client"
INSTANCE = "instance"
CONTROL = "control"
GREETED = "greeted"  # an instance that has said HELLO and not yet READY

MAX_MMI_BYTES = 1024
"""What the router itself parses of a request: a service's name fits in."""
STATUS_BYTES = 64 * 1024
"""An answer of ``mmi.status`` that is larger is made once a second, others once a turn."""
JUDGE_INTERVAL_S = 0.25
"""How often health is judged: a stopped instance is out of rotation 3.25 s after its last sign of life."""
JUDGE_AT_LAST_S = 1.0
"""Health is judged by what was read; but a flood that is never read to its end must not keep it off."""
STALL_S = 1.0
"""A pause in which this router itself did nothing, and after which it forgives the silence of others."""
MAX_PATHS = 1000
MAX_PATH_BYTES = 255
"""Of a registered prefix; what clients ask for may be longer."""
MAX_STRANGERS = 1000
"""Peers of unknown dialect that get a line in the log; more are only counted."""

DEFAULTS = Limits()

Act = Callable[[Any, Record, float, float], None]


class RouterProtocol:
    """Matches requests to instances; attached to doors, it may live anywhere.

    ``seed`` is 16 random bytes or more, new for each router: its identity, its first token and its
    nonces come from it.
    """

    def __init__(
        self,
        now: float,
        seed: bytes,
        limits: Limits = DEFAULTS,
    ) -> None:
        self.router_id = hashlib.blake2b(seed, digest_size=10, person=b"id").hexdigest()
        self.epoch = hashlib.blake2b(seed, digest_size=16, person=b"epoch").hexdigest()
        self.counters = Counters()
        # Outboxes with something to send, for the pump to flush and clear when the turn ends.
        self.dirty: list[Outbox] = []
        # Those of them that have filled a message, for the pump to send from before the turn ends.
        self.filled: list[Outbox] = []
        # One line each on what an operator would want to know; the pump logs and clears them.
        self.notes: list[str] = []
        self.doors: list[Door] = []
        self.instances: dict[str, InstancePeer] = {}
        first_token = int.from_bytes(hashlib.blake2b(seed, digest_size=8, person=b"token").digest()) >> 2
        self.dispatcher = Dispatcher(now, first_token, self.counters, self._special, limits)
        self._majordomo = Majordomo(self.dispatcher, self.dirty, self.counters, self.notes, limits, seed=seed)
        self._limits = limits
        self._seed = seed
        self._secret = limits.register_secret
        self._welcomes = 0
        self._nonces: dict[InstancePeer, str] = {}
        self._started_at = now
        self._now = now
        # Who has sent what nobody here can read: one line in the log for each of them.
        self._strangers: set[bytes] = set()
        # The answer of mmi.status, and when it was made.
        self._status, self._status_at = b"", now - 1.0
        self._ticked_at = now
        self._judge_at = now + JUDGE_INTERVAL_S
        self._heartbeats = Heartbeats(self.doors, limits.heartbeat_interval_s, now)
        d = self.dispatcher
        # What a peer may send, by its role: everything else is counted and dropped.
        self._acts: dict[str, dict[int, Act]] = {
            CLIENT: {
                mesh.REQUEST: d.request,
                mesh.CANCEL: d.cancel,
                mesh.WINDOW: d.window,
                mesh.HEARTBEAT: self._heard,
                mesh.GOODBYE: self._goodbye,
            },
            GREETED: {mesh.READY: self._ready, mesh.HEARTBEAT: self._heard, mesh.GOODBYE: self._goodbye},
            INSTANCE: {
                mesh.FINAL: d.final,
                mesh.PARTIAL: d.partial,
                mesh.RETURN: d.returned,
                mesh.CREDIT: d.credit,
                mesh.READY: self._ready_again,
                mesh.HEARTBEAT: self._heard,
                mesh.GOODBYE: self._goodbye,
            },
            CONTROL: {mesh.HEARTBEAT: self._control_heartbeat, mesh.GOODBYE: self._goodbye},
        }

    # --- what the transport calls -------------------------------------------------------------

    def open_door(self, name: str, *, clients: bool = True, services: bool = True) -> Door:
        """Return a new door for a port; a front end takes only clients, a back end only services."""
        door = Door(name, clients=clients, services=services)
        self.doors.append(door)
        return door

    def receive(self, door: Door, routing_id: bytes, frame: bytes, rest: Sequence[Frame], now: float) -> None:
        """Act on one message: frame 0, and the frames that follow it."""
        self._now = now
        if not mesh.is_mesh(frame):
            if not self._majordomo.receive(door, routing_id, [frame, *rest], now):
                self.counters.add("dropped.unknown_dialect")
                if routing_id not in self._strangers and len(self._strangers) < MAX_STRANGERS:
                    self._strangers.add(routing_id)
                    self.notes.append(f"unknown-dialect on {door.name}: {frame[:16]!r}")
            return
        try:
            stamp_ms, records = mesh.parse(frame, rest)
        except mesh.UnsupportedVersion as error:
            self.counters.add("refused.version")
            self._send_away(door, routing_id, status.NOT_IMPLEMENTED, f"{error}; this router speaks 1")
            return
        except ProtocolError:
            self.counters.add("dropped.malformed")
            return
        peer = door.peers.get(routing_id)
        if records and records[0].kind == mesh.HELLO:
            peer = self._hello(door, routing_id, peer, records.pop(0), now)
            if peer is None:
                return
        elif peer is None or peer.role not in self._acts:
            self.counters.add("refused.no_hello")
            self._send_away(door, routing_id, status.UNAUTHORIZED, "HELLO first")
            return
        peer.heard_at = now
        sent_at = now - peer.transit.excess_s(stamp_ms, now)
        if isinstance(peer, InstancePeer):
            peer.pulse.heard_work(now)
            if peer.state is not State.READY:
                self._judge(peer, State.READY)
        acts = self._acts
        for record in records:
            act = acts[peer.role].get(record.kind)
            if act is None:
                known = record.kind in mesh.KIND_NAMES
                self.counters.add("dropped.unexpected" if known else "skipped.unknown_kind")
                continue
            try:
                act(peer, record, sent_at, now)
            except ProtocolError as error:
                self.counters.add("dropped.malformed_record")
                if record.kind == mesh.REQUEST and isinstance(peer, ClientPeer):
                    peer.refuse(record.id, mesh.pack_failure(status.BAD_REQUEST, str(error)))
            except Exception as error:  # a bug here must not cost the other peers their router
                self.counters.add("faults")
                self.notes.append(f"fault in {mesh.KIND_NAMES[record.kind]}: {error!r}")
            if peer.is_gone:
                return

    def run(self, now: float) -> None:
        """The turn's input is read: match what waits with who is free."""
        self.dispatcher.dispatch(now)

    def tick(self, now: float, *, drained: bool = True) -> None:
        """Do what time asks for. Health is judged only when everything that had arrived was read."""
        self._now = now
        self.dispatcher.expire(now)
        self._heartbeats.tick(now)
        slept_s, self._ticked_at = now - self._ticked_at, now
        if slept_s > STALL_S:
            self._forgive(slept_s)
        if now >= self._judge_at and (drained or now >= self._judge_at + JUDGE_AT_LAST_S):
            self._judge_at = now + JUDGE_INTERVAL_S
            self._judge_all(now)
            self.dispatcher.tidy(now)
        self.dispatcher.dispatch(now)

    def next_due(self) -> float:
        """Return when ``tick`` is to be called next."""
        return min(self._judge_at, self._heartbeats.next_due(), self.dispatcher.wheel.next_due())

    def connection_made(self, door: Door, now: float) -> None:
        """Somebody came through this door; they will say HELLO."""

    def connection_lost(self, door: Door, now: float) -> None:
        """Somebody left through this door."""
        self._heartbeats.lost(door, now)

    def peer_gone(self, outbox: Outbox, now: float) -> None:
        """The transport says that nobody is there any more (EHOSTUNREACH)."""
        door = outbox.door
        if isinstance(door, Door):
            peer = door.peers.get(outbox.routing_id)
            if peer is not None and peer.outbox is outbox:
                self._remove(peer, now, "connection lost")
                self.dispatcher.dispatch(now)
        outbox.drop()

    def stop_intake(self) -> None:
        """Take no new requests (503): those that came before are finished, as far as the owner waits."""
        self.dispatcher.is_draining = True

    def close(self) -> None:
        """Say GOODBYE to everybody: their calls here fail at once instead of in silence."""
        for door in self.doors:
            for peer in list(door.peers.values()):
                peer.dismiss(status.UNAVAILABLE, "the router stops")

    def status(self, now: float) -> dict[str, Any]:
        """Return the answer of ``mmi.status``: plain values, ready for JSON."""
        return {
            "router": self.router_id,
            "epoch": self.epoch,
            "uptime_s": round(now - self._started_at, 3),
            "clients": sum(isinstance(p, ClientPeer) for d in self.doors for p in d.peers.values()),
            "services": {
                name.decode("utf-8", "replace"): pool.describe()
                for name, pool in self.dispatcher.pools.items()
            },
            "counters": dict(sorted(self.counters.items())),
        }

    # --- conversation -------------------------------------------------------------------------

    def _hello(
        self, door: Door, routing_id: bytes, old: Peer | None, record: Record, now: float
    ) -> Peer | None:
        try:
            hello = mesh.split_object(record.payload, mesh.MAX_HELLO_BYTES)
        except ProtocolError:
            self.counters.add("dropped.malformed_record")
            self._send_away(door, routing_id, status.BAD_REQUEST, "HELLO is a JSON object")
            return None
        role = hello.get("role")
        if old is not None and old.role == role == CLIENT and hello.get("resume") is True:
            self._welcome(old, resumed=True)
            return old
        if old is not None:
            self._remove(old, now, "greeted anew")
            old.outbox.drop()
        outbox = Outbox(self.dirty, door, routing_id, filled=self.filled)
        peer: Peer
        if role == CLIENT and door.accepts_clients:
            peer = ClientPeer(door, outbox, CLIENT, now)
            if isinstance(old, ClientPeer):
                peer.share = old.share
        elif role == INSTANCE and door.accepts_services:
            peer = InstancePeer(door, outbox, GREETED, now)
        elif role == CONTROL and door.accepts_services:
            instance = self.instances.get(str(hello.get("wid")))
            if instance is None or instance.epoch != hello.get("epoch"):
                self._send_away(door, routing_id, status.NOT_FOUND, "no such instance")
                return None
            peer = ControlPeer(door, outbox, CONTROL, now, instance)
            if instance.control is not None:
                self._remove(instance.control, now, "replaced")
            instance.control = peer
            instance.pulse.heard_control(now, 0.0)
        else:
            self.counters.add("refused.role")
            text = f"{door.name} takes no {role!r:.32}"
            self._send_away(door, routing_id, status.FORBIDDEN, text)
            return None
        door.peers[routing_id] = peer
        peer.patience_s = self._limits.heartbeat_timeout_s
        self._welcome(peer)
        return peer

    def _welcome(self, peer: Peer, *, resumed: bool = False) -> None:
        self._welcomes += 1
        nonce = hashlib.blake2b(
            self._seed, digest_size=16, person=b"nonce", salt=self._welcomes.to_bytes(16)
        ).hexdigest()
        if isinstance(peer, InstancePeer):
            self._nonces[peer] = nonce
        welcome = {
            "version": mesh.VERSION,
            "router": self.router_id,
            "epoch": self.epoch,
            "nonce": nonce,
            "max_bytes": self.dispatcher.max_body_bytes,
            "heartbeat_ms": int(self._limits.heartbeat_interval_s * 1000),
        }
        if resumed:
            welcome["resumed"] = True
        peer.outbox.add(mesh.WELCOME, payload=codec.dumps(welcome))

    def _ready(self, peer: InstancePeer, record: Record, sent_at: float, now: float) -> None:
        try:
            reason = self._register(peer, mesh.split_object(record.payload), now)
        except (ProtocolError, LookupError, TypeError, ValueError, OverflowError):
            reason = "READY is not well-formed"
        if reason:
            self.counters.add("refused.ready")
            self.notes.append(f"refused an instance on {peer.door.name}: {reason}")
            peer.dismiss(status.CONFLICT, reason)
            self._remove(peer, now, "refused")
            return
        # The router's READY is the receipt: only now does the instance count as registered.
        peer.outbox.add(mesh.READY, payload=codec.dumps({"wid": peer.wid}))

    def _register(self, peer: InstancePeer, ready: dict[str, Any], now: float) -> str:
        """Make a greeted peer an instance; return why not, or ''."""
        wid, epoch, service = ready["wid"], ready["epoch"], ready.get("service") or ""
        paths, credit, pid = ready.get("paths") or [], ready["credit"], ready.get("pid") or 0
        texts = isinstance(paths, list) and all(isinstance(t, str) for t in (wid, epoch, service, *paths))
        if (
            not texts
            or not 0 < len(wid) <= 512
            or len(epoch) < 16
            or not isinstance(credit, int)
            or not isinstance(pid, int)
        ):
            return "READY lacks wid, epoch or credit"
        nonce = self._nonces.pop(peer, "")
        if self._secret is not None and not is_signed(
            ready.get("signature"), self._secret, *ready_fields(nonce, wid, epoch, service, paths)
        ):
            return "the register secret does not match"
        if not service and not paths:
            return "an instance needs a name or at least one path"
        if service.startswith(("mmi.", "mgt.", "/")) or len(service.encode()) > 255 or len(paths) > MAX_PATHS:
            return f"the name {service!r:.64} is not to be had"
        if not 0 <= credit <= 0xFFFF or not 0 <= pid < 1 << 32:
            return "READY's credit or pid is out of range"
        if not all(path.startswith("/") and len(path.encode()) <= MAX_PATH_BYTES for path in paths):
            return f"a path begins with a slash and has at most {MAX_PATH_BYTES} bytes"
        old = self.instances.get(wid)
        if old is not None:
            # Names are in mmi.status for all to read, epochs are not: only their owner registers anew.
            if old.epoch.partition("-")[0] != epoch.partition("-")[0]:
                return "this wid is another instance's"
            self._remove(old, now, "registered anew")
        peer.wid, peer.epoch = wid, epoch
        peer.host, peer.pid = str(ready.get("host", ""))[:255], pid
        peer.credit = peer.free = credit
        heads = [path.rstrip("/").encode() or b"/" for path in paths]
        refusal = self.dispatcher.enlist(peer, service.encode(), heads, now)
        if not refusal:
            peer.role = INSTANCE
            self.instances[wid] = peer
            self.notes.append(f"registered {wid} for {service or ' '.join(paths)} (credit {credit})")
        return refusal

    def _ready_again(self, peer: InstancePeer, record: Record, sent_at: float, now: float) -> None:
        self.counters.add("refused.ready")
        self._remove(peer, now, "READY came twice")
        peer.dismiss(status.CONFLICT, "READY came twice")

    def _heard(self, peer: Peer, record: Record, sent_at: float, now: float) -> None:
        """HEARTBEAT: that it came is all it says."""

    def _control_heartbeat(self, peer: ControlPeer, record: Record, sent_at: float, now: float) -> None:
        report = mesh.split_object(record.payload, mesh.MAX_REPORT_BYTES)
        lag_ms, rss_kib = report.get("lag_ms", 0), report.get("rss_kib", 0)
        if not isinstance(lag_ms, int | float) or not isinstance(rss_kib, int):
            raise mesh.Malformed("a heartbeat's numbers are none")
        if not (0 <= lag_ms < 1e9 and 0 <= rss_kib < 1 << 40):
            raise mesh.Malformed("a heartbeat's numbers are out of range")
        instance = peer.instance
        instance.pulse.heard_control(now, lag_ms / 1000.0)
        instance.rss_kib = rss_kib
        self._judge(instance, instance.judge(now))

    def _goodbye(self, peer: Peer, record: Record, sent_at: float, now: float) -> None:
        # An instance has answered all it had begun: what is left was on its way, and may go to another.
        unstarted = set(peer.calls) if isinstance(peer, InstancePeer) else set()
        self._remove(peer, now, "said goodbye", unstarted)
        # Acknowledged, so that the peer knows that all it sent before has arrived.
        peer.dismiss(status.OK, "")

    def _special(self, client: ClientPeer, record: Record, sent_at: float, now: float) -> None:
        """Take a request to the router itself (mmi.), or to one instance (mgt.)."""
        _, flags, id_, _, payload, attached = record
        target, _, offset = mesh.split_target(payload, flags)
        if not mesh.is_management(payload):
            size = len(payload) - offset if attached is None else len(attached)
            if size > MAX_MMI_BYTES:
                client.refuse(id_, mesh.pack_failure(status.TOO_LARGE, f"over {MAX_MMI_BYTES} bytes"))
            elif not flags & ONE_WAY:
                self._introspect(client, id_, target, payload[offset:])
            return
        instance = self.instances.get(target[4:].decode("utf-8", "replace"))
        management.pass_on(self.dispatcher, client, record, instance, sent_at, now)

    def _introspect(self, client: ClientPeer, id_: int, target: bytes, envelope: bytes) -> None:
        """Answer mmi.service, mmi.instances and mmi.status; 501 for the rest of mmi."""
        if client.outbox.pending_bytes > MAX_OUTBOX_BYTES:
            client.refuse(id_, mesh.pack_failure(status.UNAVAILABLE, "read what you have asked for first"))
            return
        if target == b"mmi.status":
            pause_s = 1.0 if len(self._status) > STATUS_BYTES else 0.0
            if self._now - self._status_at > pause_s:
                self._status_at = self._now
                self._status = mesh.pack_status(status.OK) + codec.dumps({"body": self.status(self._now)})
            client.outbox.add(mesh.FINAL, 0, id_, 0, self._status)
            return
        answer: dict[str, Any]
        if target == b"mmi.service":
            name = mesh.split_service(envelope)
            pool = self.dispatcher.pools.get(name.encode("utf-8", "replace"))
            n = len(pool.instances) if pool is not None else 0
            code = status.OK if n else status.NOT_FOUND
            answer = {"body": {"service": name, "instances": n}}
        elif target == b"mmi.instances":
            pool = self.dispatcher.directory.find(mesh.split_service(envelope).encode("utf-8", "replace"))
            wids = [] if pool is None else [one.wid for one in pool.instances if one.wid in self.instances]
            code, answer = status.OK if wids else status.NOT_FOUND, {"body": sorted(wids)}
        else:
            code, answer = status.NOT_IMPLEMENTED, {"message": "no such management interface"}
        client.outbox.add(mesh.FINAL, 0, id_, 0, mesh.pack_status(code) + codec.dumps(answer))

    # --- who is alive -------------------------------------------------------------------------

    def _forgive(self, slept_s: float) -> None:
        """It was this router that slept: nobody is to blame for its deafness."""
        for door in self.doors:
            for peer in door.peers.values():
                peer.heard_at += slept_s
                if isinstance(peer, InstancePeer):
                    peer.pulse.allow(slept_s)

    def _judge_all(self, now: float) -> None:
        for door in self.doors:
            for peer in list(door.peers.values()):
                if isinstance(peer, InstancePeer):
                    self._judge(peer, peer.judge(now))
                elif now - peer.heard_at >= peer.patience_s:
                    self._remove(peer, now, "silent")

    def _judge(self, instance: InstancePeer, state: State) -> None:
        if state is State.DEAD:
            self._remove(instance, self._now, "silent for too long")
        elif state is not instance.state:
            if instance.wid:
                self.notes.append(f"{state.value} {instance.wid}")
            self.dispatcher.judge(instance, state)

    def _remove(self, peer: Peer, now: float, why: str, unstarted: Collection[int] = ()) -> None:
        """Let go of a peer, whatever it was; ``why`` goes into the log line."""
        if peer.door.peers.get(peer.outbox.routing_id) is peer:
            del peer.door.peers[peer.outbox.routing_id]
        peer.is_gone = True
        if isinstance(peer, InstancePeer):
            self._nonces.pop(peer, None)
            if self.instances.get(peer.wid) is peer:
                del self.instances[peer.wid]
            if peer.pool is not None:
                self.notes.append(f"removed {peer.wid}: {why}, {len(peer.calls)} in flight")
                # What has not left for it never will.
                unstarted = peer.outbox.unsent(mesh.REQUEST).union(unstarted)
                peer.outbox.drop()
                self.dispatcher.lose(peer, now, unstarted)
            if peer.control is not None:
                control, peer.control = peer.control, None
                self._remove(control, now, why)
        elif isinstance(peer, ClientPeer):
            self.dispatcher.forget(peer)
        elif isinstance(peer, ControlPeer) and peer.instance.control is peer:
            peer.instance.control = None
            peer.instance.pulse.has_control = False

    def _send_away(self, door: Door, routing_id: bytes, code: int, reason: str) -> None:
        outbox = Outbox(self.dirty, door, routing_id, is_parting=True)
        outbox.add(mesh.GOODBYE, payload=mesh.pack_reason(code, reason))
