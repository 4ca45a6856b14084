"""The heart of the router: calls find instances, replies find callers, and every call ends.

It knows neither sockets nor greetings. ``RouterProtocol`` and ``Majordomo`` feed it what peers said;
it writes into the peers' outboxes. The invariants:

* a call accepted from a client is answered exactly once (one-way calls: only when refused or lost),
* a token is in exactly one instance's table from dispatch to FINAL or RETURN, and only a record that
  came over that instance's connection can end it: a forged or late reply reaches nobody,
* an instance is never sent more calls than it announced credit for, but by those who manage it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from butler_mesh import status
from butler_mesh.counters import Counters
from butler_mesh.protocol import mesh
from butler_mesh.protocol.directory import Directory
from butler_mesh.protocol.limits import Limits
from butler_mesh.protocol.liveness import State
from butler_mesh.protocol.mesh import IDEMPOTENT, ONE_WAY, PARTIAL, STREAM, Record
from butler_mesh.protocol.outbox import MAX_OUTBOX_BYTES
from butler_mesh.protocol.peers import Call, ClientPeer, InstancePeer, ServicePool
from butler_mesh.protocol.wheel import NEVER, Wheel

MAX_POOL_BYTES = 64 * 1024 * 1024
"""What the queue of one service may hold."""
MAX_ABSENT_BYTES = 2 * 1024 * 1024
"""What may wait for a service that has no instance."""
MAX_QUEUED_BYTES = 256 * 1024 * 1024
"""What all queued requests together may hold: a thousand of the largest bodies would be 16 GiB."""
MAX_GRANTS = 1024
"""WINDOWs that a stream may have had more than parts: they must not fill the pipe of its instance."""
MAX_CREDIT = 0xFFFF
RETRY_AFTER_S = 1.0
SPECIAL = (b"mmi.", mesh.MANAGEMENT)


class Dispatcher:
    """Pools, tokens, credit and deadlines. ``first_token`` is a random 63-bit number: tokens are never
    reused, so those of an earlier router mean nothing to this one."""

    def __init__(
        self,
        now: float,
        first_token: int,
        counters: Counters,
        special: Callable[[ClientPeer, Record, float, float], None],
        limits: Limits,
    ) -> None:
        self.directory = Directory(now, limits)
        self.pools = self.directory.pools
        self.wheel: Wheel[Call] = Wheel()
        self.counters = counters
        self.queue_limit = limits.queue_limit
        self.max_body_bytes = limits.max_body_bytes
        # Takes requests to the router itself (MMI), and to one instance.
        self._special = special
        # What all queued requests hold together.
        self.queued_bytes = 0
        # Set when the router is about to stop: what has come is finished, nothing new is taken.
        self.is_draining = False
        self._token = first_token
        # Pools with a request and, perhaps, somebody free: looked at once the turn's input is read.
        self._due: list[ServicePool] = []
        # Instances out of rotation because their outbox is full.
        self._congested: set[InstancePeer] = set()

    # --- from clients -------------------------------------------------------------------------

    def request(self, client: ClientPeer, record: Record, sent_at: float, now: float) -> None:
        """Take a REQUEST; ``sent_at`` is when its remaining time began to run."""
        if client.outbox.has_waited and client.outbox.is_full:  # the first spares a call
            self.cut(client)  # it reads neither replies nor refusals
            return
        _, flags, id_, remaining_ms, payload, envelope = record
        target, _, offset = mesh.split_target(payload, flags)
        size = len(payload) - offset if envelope is None else len(envelope)
        if size > self.max_body_bytes:
            self.counters.add("refused.too_large")
            client.refuse(id_, mesh.pack_failure(status.TOO_LARGE, f"over {self.max_body_bytes} bytes"))
        elif flags & mesh.CRITICAL:
            self.counters.add("refused.unknown_flag")
            client.refuse(id_, mesh.pack_failure(status.NOT_IMPLEMENTED, "a flag this router does not know"))
        elif id_ in client.calls:
            # Answering would answer the call that owns the id.
            self.counters.add("dropped.duplicate_id")
        elif target[:4] in SPECIAL:
            self._special(client, record, sent_at, now)
        else:
            is_timed = remaining_ms or not flags & STREAM or flags & ONE_WAY
            deadline = sent_at + remaining_ms / 1000.0 if is_timed else NEVER
            self.accept(client, id_, flags, deadline, target, payload, envelope, now)

    def accept(
        self,
        client: ClientPeer,
        id_: int,
        flags: int,
        deadline: float,
        target: bytes,
        payload: bytes,
        envelope: mesh.Frame | None,
        now: float,
        *,
        must_queue: bool = False,
    ) -> None:
        """Pass one call on, queue it, or refuse it: 404 unknown, 503 full, 504 expired. ``must_queue`` is
        for dialects without an error code, whose requests wait for a service to come (RFC 7)."""
        if self.is_draining:
            self.counters.add("refused.draining")
            client.refuse(id_, mesh.pack_failure(status.UNAVAILABLE, "the router stops", RETRY_AFTER_S))
            return
        directory = self.directory
        pool = directory.find(target)
        if pool is None or not (pool.instances or must_queue or directory.is_expected(pool, now)):
            is_known = pool is not None and pool.was_registered
            pool = self._imagine(client, id_, target, now, must_queue=must_queue, is_known=is_known)
            if pool is None:
                return
        if deadline <= now:
            self.counters.add("expired.on_arrival")
            client.refuse(id_, mesh.pack_failure(status.DEADLINE_PASSED, "deadline passed on the way"))
            return
        # Nobody waits and somebody is free, as nearly always: no queue. Else the matching is done when all
        # of the turn's input is read, to be fair.
        is_matched = bool(pool.rotation) and not pool.is_due and not pool.rotation[0].outbox.has_waited
        if not is_matched and not self._make_room(pool, client, id_, now):
            return
        call = Call(client, id_, flags, deadline, payload, envelope, pool)
        if deadline != NEVER:
            call.slot = self.wheel.add(call, deadline)
            if flags & STREAM:
                call.patience_s = deadline - now
        if not flags & ONE_WAY:
            client.calls[id_] = call
        if is_matched:
            self._assign(call, now)
        else:
            self._enqueue(call)

    def entrust(self, call: Call, instance: InstancePeer, now: float) -> None:
        """Send a call to this one instance, blocked or busy: its credit is overdrawn until the FINAL."""
        call.instance = instance
        token = call.token = self._token = self._token + 1
        instance.calls[token] = call
        instance.request(call, mesh.remaining_ms(call.deadline, now))
        instance.free -= 1
        self._rotate(instance)

    def cancel(self, client: ClientPeer, record: Record, sent_at: float, now: float) -> None:
        """Take a CANCEL: the client has given up and wants no answer."""
        call = client.calls.pop(record.id, None)
        if call is not None:
            self.counters.add("cancelled")
            self._abandon(call)

    def window(self, client: ClientPeer, record: Record, sent_at: float, now: float) -> None:
        """Take a WINDOW: the reader has room for more parts, and patience with them."""
        mesh.split_window(record.payload)
        call = client.calls.get(record.id)
        if call is None or call.instance is None or not call.flags & STREAM:
            return
        self._renew(call, now)
        call.grants += 1
        if call.instance.outbox.is_full or call.grants > call.parts + MAX_GRANTS:
            # The instance does not read, or the reader grants without end: either way it is over.
            self._call_off(call)
            self._fail(call, status.UNAVAILABLE, "the instance does not keep up", RETRY_AFTER_S)
        else:
            call.instance.grant(call.token, record.payload)

    def forget(self, client: ClientPeer) -> None:
        """Give up everything a client that left was waiting for. Its one-way calls go on."""
        client.is_gone = True
        calls, client.calls = list(client.calls.values()), {}
        for call in calls:
            self._abandon(call)

    def cut(self, client: ClientPeer) -> None:
        """A client that does not read its replies: forget it, and tell it should it ever look."""
        self.counters.add("cut.slow_client")
        client.door.peers.pop(client.outbox.routing_id, None)
        self.forget(client)
        client.outbox.drop()
        client.dismiss(status.UNAVAILABLE, "replies were not read")

    # --- from instances -----------------------------------------------------------------------

    def final(self, instance: InstancePeer, record: Record, sent_at: float, now: float) -> None:
        """Take a FINAL: answer the caller, free the credit."""
        kind, flags, token, _, payload, envelope = record
        code = mesh.split_status(payload)
        call = instance.calls.pop(token, None)
        if call is None:
            self.counters.add("dropped.unknown_token")
            return
        self._refund(instance)
        client = call.client
        if client is None:
            return
        if flags & mesh.CRITICAL:
            self._fail(call, status.INSTANCE_LOST, "the reply has a flag this router does not know")
            return
        self._settle(call)
        if not call.flags & ONE_WAY or code in status.REFUSALS:
            client.reply(call, kind, flags, payload, envelope)
            if client.outbox.has_waited and client.outbox.is_full:
                self.cut(client)

    def partial(self, instance: InstancePeer, record: Record, sent_at: float, now: float) -> None:
        """Take a PARTIAL: pass it on, and renew the stream's deadline."""
        _, flags, token, _, payload, envelope = record
        mesh.split_status(payload)
        call = instance.calls.get(token)
        if call is None:
            self.counters.add("dropped.unknown_token")
            return
        client = call.client
        if client is None:
            return
        if flags & mesh.CRITICAL:
            self._fail(call, status.INSTANCE_LOST, "the reply has a flag this router does not know")
            instance.cancel(token)
            return
        if not call.flags & STREAM:
            self.counters.add("refused.partial")
            self._fail(call, status.SERVER_ERROR, "the handler streamed to a request that takes one reply")
            instance.cancel(token)
            return
        call.parts += 1
        self._renew(call, now)
        if call.flags & ONE_WAY:
            return
        client.reply(call, PARTIAL, flags, payload, envelope)
        if client.outbox.is_full:
            self.cut(client)

    def returned(self, instance: InstancePeer, record: Record, sent_at: float, now: float) -> None:
        """Take a RETURN: never started, so it goes to the front of the queue. The credit stays spent
        until the instance tops it up: giving it back would send the call straight there again."""
        call = instance.calls.pop(record.id, None)
        if call is None:
            self.counters.add("dropped.unknown_token")
            return
        instance.credit -= 1  # the top-up that will make up for it is credit on top
        self.counters.add("returned")
        if call.client is not None:
            self._requeue(call)

    def credit(self, instance: InstancePeer, record: Record, sent_at: float, now: float) -> None:
        """Take a CREDIT: more room at the instance, or (negative) less."""
        change = mesh.split_credit(record.payload)
        change = min(change, MAX_CREDIT - instance.credit)
        instance.credit += change
        instance.free += change
        self._rotate(instance)

    def enlist(self, instance: InstancePeer, name: bytes, paths: list[bytes], now: float) -> str:
        """Put an instance into the pool of its service; return why not, or ''."""
        instance.paths = paths
        if not self.directory.has_room(name, paths):
            return "too many services, or paths"
        taken = self.directory.owner(name, paths)
        if taken is not None:
            return f"path {taken.decode('utf-8', 'replace')} belongs to another service"
        pool = instance.pool = self.directory.claim(name, paths, now)
        pool.instances.add(instance)
        for call in self.directory.inherit(pool):
            if call.client is not None:
                pool.queue.push(call.client.share, call)
                pool.queued_bytes += call.size
        self._rotate(instance)
        return ""

    def lose(self, instance: InstancePeer, now: float, unstarted: Collection[int] = ()) -> None:
        """Take an instance out: its calls are dispatched again where that is sound, else 502. Those whose
        tokens are ``unstarted`` it has not begun: they never left for it, or it left without them."""
        instance.is_gone = True
        pool = instance.pool
        if pool is None:
            return
        instance.free = 0
        self._rotate(instance)
        instance.pool = None
        self._congested.discard(instance)
        pool.instances.discard(instance)
        if pool.instances:
            self.directory.release(pool)
        else:
            pool.left_at = now
        calls = list(instance.calls.values())
        instance.calls.clear()
        for call in calls:
            if call.client is None:
                continue
            if call.token in unstarted and not call.parts:
                self._requeue(call)
                continue
            may_repeat = call.flags & IDEMPOTENT and not call.was_dispatched_again and not call.parts
            if may_repeat and call.deadline > now:
                call.was_dispatched_again = True
                self.counters.add("dispatched_again")
                self._requeue(call)
            else:
                self.counters.add("lost")
                self._fail(call, status.INSTANCE_LOST, f"instance {instance.wid} was lost")

    def judge(self, instance: InstancePeer, state: State) -> None:
        """Note an instance's health: a blocked one gets nothing new and keeps what it has."""
        if state is not instance.state:
            instance.state = state
            self._rotate(instance)

    # --- turns and time -----------------------------------------------------------------------

    def dispatch(self, now: float) -> None:
        """Send queued calls to free instances, client by client, least recently used first."""
        due, self._due = self._due, []
        for pool in due:
            pool.is_due = False
            queue, rotation = pool.queue, pool.rotation
            while rotation and queue.size:
                instance = rotation[0]
                if instance.outbox.is_full:
                    self._congested.add(instance)
                    self._rotate(instance)
                    continue
                call = queue.pop()
                call.is_queued = False
                self.queued_bytes -= call.size
                pool.queued_bytes -= call.size
                if call.deadline <= now:
                    self._expire(call)
                    continue
                self._assign(call, now)

    def expire(self, now: float) -> None:
        """Answer 504 (503 where no instance ever came) to every call whose deadline has passed."""
        for call in self.wheel.pop_due(now):
            if call.client is not None:
                self._expire(call)

    def tidy(self, now: float) -> None:
        """Let uncongested instances back in, forget services that are long gone; for a slow timer."""
        for instance in list(self._congested):
            if instance.outbox.pending_bytes <= MAX_OUTBOX_BYTES // 2:
                self._congested.discard(instance)
                self._rotate(instance)
        self.directory.tidy(now)

    # --- within -------------------------------------------------------------------------------

    def _imagine(
        self, client: ClientPeer, id_: int, target: bytes, now: float, *, must_queue: bool, is_known: bool
    ) -> ServicePool | None:
        """Return a pool for a service nobody has registered yet, or refuse the request."""
        if is_known:
            self.counters.add("refused.absent")
            text = f"{target[:255].decode('utf-8', 'replace')} has no instances"
            client.refuse(id_, mesh.pack_failure(status.UNAVAILABLE, text, RETRY_AFTER_S))
            return None
        if not must_queue and now >= self.directory.grace_until:
            self.counters.add("refused.not_found")
            what = "path" if target[:1] == b"/" else "service"
            text = f"no such {what}: {target[:255].decode('utf-8', 'replace')}"
            client.refuse(id_, mesh.pack_failure(status.NOT_FOUND, text))
            return None
        pool = self.directory.imagine(target, now)
        if pool is None:
            self.counters.add("refused.too_many_services")
            client.refuse(id_, mesh.pack_failure(status.UNAVAILABLE, "too many services", RETRY_AFTER_S))
        return pool

    def _assign(self, call: Call, now: float) -> None:
        """Send a call to the instance whose turn it is."""
        rotation = call.pool.rotation
        instance = call.instance = rotation[0]
        token = call.token = self._token = self._token + 1
        instance.calls[token] = call
        instance.request(call, 0 if call.slot is None else mesh.remaining_ms(call.deadline, now))
        instance.free -= 1
        if instance.free <= 0:
            rotation.popleft()
            instance.in_rotation = False
        elif len(rotation) > 1:
            rotation.rotate(-1)

    def _make_room(self, pool: ServicePool, client: ClientPeer, id_: int, now: float) -> bool:
        """Tell whether the pool's queue takes one more; the client's request is refused where not."""
        if self._is_full(pool):
            # What this turn has read was not matched yet: only what nobody is free for fills the queue.
            self.dispatch(now)
        if not self._is_full(pool):
            return True
        self.counters.add("refused.queue_full")  # one client that floods must not cost others their place
        other = pool.queue.surplus(client.share)
        if other is None or self.queued_bytes > MAX_QUEUED_BYTES:
            client.refuse(id_, mesh.pack_failure(status.UNAVAILABLE, "the queue is full", RETRY_AFTER_S))
            return False
        self._unqueue(other)
        self._fail(other, status.UNAVAILABLE, "the queue is full", RETRY_AFTER_S)
        return True

    def _is_full(self, pool: ServicePool) -> bool:
        # Those that nobody answers get little, and half of all there is: they must not starve the others.
        own, share = (MAX_POOL_BYTES, 2) if pool.instances else (MAX_ABSENT_BYTES, 1)
        is_heavy = pool.queued_bytes > own or self.queued_bytes > share * MAX_QUEUED_BYTES
        return is_heavy or pool.queue.size >= self.queue_limit

    def _enqueue(self, call: Call, *, front: bool = False) -> None:
        client, pool = call.client, call.pool
        if client is None:
            return
        if front:
            pool.queue.push_front(client.share, call)
        else:
            pool.queue.push(client.share, call)
        call.is_queued = True
        self.queued_bytes += call.size
        pool.queued_bytes += call.size
        self._mark_due(pool)

    def _unqueue(self, call: Call) -> None:
        if call.is_queued and call.client is not None:
            call.pool.queue.discard(call.client.share, call)
            call.is_queued = False
            self.queued_bytes -= call.size
            call.pool.queued_bytes -= call.size

    def _mark_due(self, pool: ServicePool) -> None:
        if not pool.is_due and pool.queue.size:
            pool.is_due = True
            self._due.append(pool)

    def _refund(self, instance: InstancePeer) -> None:
        instance.free += 1
        if not instance.in_rotation:
            self._rotate(instance)
        elif instance.pool is not None and instance.pool.queue.size:
            self._mark_due(instance.pool)

    def _rotate(self, instance: InstancePeer) -> None:
        if instance.pool is not None:
            instance.pool.rotate(instance, is_congested=instance in self._congested)
            self._mark_due(instance.pool)

    def _renew(self, call: Call, now: float) -> None:
        if call.slot is not None:
            self.wheel.remove(call, call.slot)
            call.deadline = now + call.patience_s
            call.slot = self.wheel.add(call, call.deadline)

    def _settle(self, call: Call) -> None:
        """Close the client's side of a call: its id is free, its deadline off the wheel."""
        client = call.client
        if client is not None and not call.flags & ONE_WAY:
            client.calls.pop(call.id, None)
        call.client = None
        if call.slot is not None:
            self.wheel.remove(call, call.slot)

    def _fail(self, call: Call, code: int, message: str, retry_after_s: float | None = None) -> None:
        client = call.client
        self._release(call)
        if client is not None and not client.is_gone:
            client.refuse(call.id, mesh.pack_failure(code, message, retry_after_s))

    def _release(self, call: Call) -> None:
        self._settle(call)
        # The token may live on for as long as the handler does; what was asked need not.
        call.payload, call.envelope = b"", None

    def _abandon(self, call: Call) -> None:
        """Nobody waits any more: out of the queue, or word to the instance that has it."""
        self._unqueue(call)
        self._release(call)
        self._call_off(call)

    def _expire(self, call: Call) -> None:
        was_queued = call.instance is None
        self._unqueue(call)
        self.counters.add("expired")
        if was_queued and not call.pool.instances:
            self._fail(call, status.UNAVAILABLE, "no instance of the service is registered", RETRY_AFTER_S)
        else:
            self._fail(call, status.DEADLINE_PASSED, "deadline passed")
        self._call_off(call)

    def _call_off(self, call: Call) -> None:
        if call.instance is not None and call.token in call.instance.calls:
            call.instance.cancel(call.token)

    def _requeue(self, call: Call) -> None:
        if mesh.is_management(call.payload):
            self._fail(call, status.INSTANCE_LOST, "it was for that instance alone")
            return
        call.instance = None
        self._enqueue(call, front=True)
