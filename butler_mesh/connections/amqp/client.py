"""The client's side of ``amqp://``: calls by id, their deadlines, and what becomes of them on the way."""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any

import gevent
from gevent.event import Event
from gevent.hub import get_hub
from pika import BasicProperties
from pika.exceptions import AMQPError

from butler_mesh import status
from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp import messages
from butler_mesh.connections.amqp.call import Call
from butler_mesh.connections.amqp.confirming import Confirming
from butler_mesh.connections.amqp.connection import Connection
from butler_mesh.connections.amqp.link import Link
from butler_mesh.connections.amqp.loop import Alarm
from butler_mesh.connections.amqp.owners import Owners
from butler_mesh.connections.amqp.waiting import Waiting
from butler_mesh.connections.base import ALL, MANAGEMENT, ClientConnection, OnReply
from butler_mesh.errors import Closed
from butler_mesh.protocol import mesh
from butler_mesh.protocol.client import CONNECT_TIMEOUT_S
from butler_mesh.protocol.mesh import DURABLE, FINAL, IDEMPOTENT, MAX_BODY_BYTES, ONE_WAY, PARTIAL, STREAM
from butler_mesh.protocol.outbox import MAX_OUTBOX_BYTES
from butler_mesh.protocol.wheel import NEVER

MAX_UNCONFIRMED = 1000
"""One-way requests on their way at once: what comes after them waits for the broker's word."""
CONFIRM_TIMEOUT_S = 10.0
"""How long the broker may be silent about a one-way request: some milliseconds are usual, and for ever
is what it takes when most of a cluster is gone."""
LOOK_AGAIN_S = 0.05
"""How often a service that may be about to register is looked for."""
REGISTER_GRACE_S = 0.0
"""After the first connection. A router begins with nothing; what a broker does not know is not there."""
RETURN_GRACE_S = 5.0
"""How long after any other connection: where a broker crashed, services have yet to return as well."""
MAX_IDS = 1000  # of calls that are given up, in one message; instances read 64 KiB of it
CLOSE_S = 1.0  # patience with the broker's goodbye

_log = logging.getLogger("butler_mesh.client")


class AmqpClient(ClientConnection):
    """Two channels: calls, answered by direct reply-to, and confirmed one-way requests."""

    can_store = True

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        register_grace_s: float | None = None,
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._grace_s = REGISTER_GRACE_S if register_grace_s is None else register_grace_s
        # Until when an unknown service may be about to register; set by every connection.
        self._grace_ends_at: float | None = None
        self._name = secrets.token_hex(6)
        self._last_id = 0
        self._calls: dict[str, Call] = {}
        # By whether they are one-way.
        self._waiting = {False: Waiting(), True: Waiting()}
        # Those of this turn, which are published at its end: one that is cancelled before is never sent.
        # pika would write them no earlier.
        self._fresh: list[Call] = []
        self._fresh_bytes = 0
        self._calling: Any = None
        self._confirming: Confirming | None = None
        # Those that nothing more is sent on, until the broker has said its word on what was.
        self._retired: set[Confirming] = set()
        self._owners = Owners()
        # Calls to be told their last reply, in the next turn: never within submit.
        self._replies: list[tuple[Call, int, bytes]] = []
        # Ids of calls given up in this turn, by whom to tell.
        self._cancels: dict[tuple[str, str], list[str]] = {}
        self._refusals: deque[tuple[int, str]] = deque(maxlen=100)
        self._alarm: Alarm[Call] = Alarm(self._expire)
        self._again: Any = None
        self._unknown: list[Call] = []
        self._changed = Event()
        self._is_closed = False
        self._link = Link(
            endpoints,
            "out",
            on_up=self._up,
            on_down=self._down,
            on_refused=self._refused,
            on_unblocked=self._flush,
            on_fork=self.abandon,
        )
        self._link.start()

    # --- what callers do ----------------------------------------------------------------------

    @property
    def raw(self) -> Connection | None:
        return self._link.connection

    def submit(
        self,
        target: str,
        envelope: bytes,
        *,
        deadline: float,
        flags: int,
        on_reply: OnReply,
        window: int = 0,
        scope: str = "",
    ) -> Call:
        if self._is_closed:
            raise Closed("the client is closed")
        now = monotonic()
        self._last_id += 1
        if scope:
            target = MANAGEMENT + (target if scope == ALL else scope)
        call = Call(f"{self._name}.{self._last_id}", target, envelope, flags, deadline, on_reply)
        call.window = window
        call.scope = scope
        if flags & (STREAM | DURABLE) and deadline != NEVER:
            call.patience_s = deadline - now
        self._route(call, now)
        wrong = self._wrong(call, now)
        if wrong is not None:
            self._answer(call, *wrong)
            return call
        self._calls[call.id] = call
        if not self._fresh:
            get_hub().loop.run_callback(self._send_fresh)
        self._fresh.append(call)
        self._fresh_bytes += len(envelope)
        return call

    def cancel(self, call: Call) -> None:
        call.on_reply = None
        if call.flags & ONE_WAY and call.was_sent:
            return  # The broker's word is awaited all the same.
        if self._settle(call):
            self._give_up(call)

    def grant(self, call: Call, parts: int) -> None:
        if call.id in self._calls:
            self._renew(call, monotonic())
            if call.was_sent:
                self._tell(
                    *call.control_address, messages.control_properties(call.id, messages.WINDOW, parts)
                )

    def close(self, drain_s: float) -> list[tuple[int, str]]:
        if not self._is_closed:
            self._is_closed = True
            until = monotonic() + drain_s
            self._send_fresh()
            for call in list(self._calls.values()):
                if not call.flags & ONE_WAY:
                    self._give_up(call)
                    self._answer(call, status.CANCELLED, "the client was closed")
            while self._calls and monotonic() < until:
                self._changed.clear()
                self._changed.wait(max(0.0, until - monotonic()))
            for call in list(self._calls.values()):
                # What was sent may be stored all the same.
                code = status.INSTANCE_LOST if call.flags & DURABLE and call.was_sent else status.CANCELLED
                self._answer(call, code, "the client was closed")
            self._send_cancels()
            self._link.close(CLOSE_S)
            self._end()
            # One turn more: it tells those whose calls have failed just now.
            gevent.sleep(0)
        return list(self._refusals)

    def abandon(self) -> None:
        self._is_closed = True
        # What was about to be sent is its owner's affair.
        self._calls.clear()
        self._link.abandon()
        self._end()

    def _end(self) -> None:
        self._alarm.close()
        if self._again is not None:
            self._again.stop()
            self._again.close()
            self._again = None

    # --- the connection -----------------------------------------------------------------------

    def _up(self) -> None:
        grace_s = self._grace_s if self._grace_ends_at is None else RETURN_GRACE_S
        self._grace_ends_at = monotonic() + grace_s
        self._link.open(self._calling_opened)

    def _calling_opened(self, channel: Any) -> None:
        channel.add_on_return_callback(self._returned)
        channel.basic_consume(messages.REPLY_TO, self._replied, auto_ack=True)
        self._calling = channel
        self._link.open(self._confirming_opened)
        self._flush()

    def _confirming_opened(self, channel: Any) -> None:
        channel.add_on_return_callback(self._returned)
        self._confirming = Confirming(channel, self._confirmed)
        self._flush()

    def _down(self, reason: str) -> None:
        now = monotonic()
        self._calling = self._confirming = None
        self._retired.clear()
        for call in list(self._calls.values()):
            if not call.was_sent:
                continue
            call.confirming = None
            if call.flags & DURABLE or (call.flags & IDEMPOTENT and call.tries < 2 and not call.parts):
                self._wait(call, now)
            else:
                self._answer(call, status.INSTANCE_LOST, f"the broker was lost: {reason}")

    def _refused(self, code: int, reason: str) -> None:
        for call in list(self._calls.values()):
            self._answer(call, code, reason)

    def _route(self, call: Call, now: float) -> None:
        call.route(self._owners.of(call.target, now))

    # --- on the way ---------------------------------------------------------------------------

    def _wrong(self, call: Call, now: float) -> tuple[int, str] | None:
        """Return the answer to a request that is not to be sent."""
        if not call.queue:
            return status.BAD_REQUEST, "that cannot be the name of a service"
        if len(call.envelope) > MAX_BODY_BYTES:
            return status.TOO_LARGE, f"the body is over {MAX_BODY_BYTES} bytes"
        if call.deadline <= now:
            return status.DEADLINE_PASSED, "deadline passed before the request was sent"
        connection = self._link.connection
        if connection is None:
            if self._link.refusal is not None:
                return self._link.refusal
        elif connection.unsent_bytes + self._fresh_bytes > MAX_OUTBOX_BYTES:
            return status.UNAVAILABLE, "too much waits to be sent"
        if self._waiting[bool(call.flags & ONE_WAY)].is_full:
            return status.UNAVAILABLE, "too much waits to be sent"
        return None

    def _has_room(self, is_one_way: bool) -> bool:
        """Tell whether one more may be sent at present."""
        if self._link.is_blocked:
            return False
        if is_one_way:
            return self._confirming is not None and len(self._confirming.calls) < MAX_UNCONFIRMED
        return self._calling is not None

    def _wait(self, call: Call, now: float) -> None:
        call.was_sent = False
        self._waiting[bool(call.flags & ONE_WAY)].add(call)
        patience_s = self._connect_timeout_s
        if call.tries:
            # It was on its way, and a broker that is started again needs longer than a connection.
            patience_s = CONFIRM_TIMEOUT_S if call.flags & ONE_WAY else NEVER
        self._set_alarm(call, min(call.deadline, now + patience_s))

    def _send_fresh(self) -> None:
        """Send what was submitted in this turn, or let it wait behind what waits already."""
        fresh, self._fresh, self._fresh_bytes = self._fresh, [], 0
        now = monotonic()
        for call in fresh:
            if call.id not in self._calls:
                continue
            is_one_way = bool(call.flags & ONE_WAY)
            if not self._waiting[is_one_way] and self._has_room(is_one_way):
                self._send(call, now)
            else:
                self._wait(call, now)

    def _flush(self) -> None:
        """Send what has waited, as far as it may go."""
        now = monotonic()
        for is_one_way, waiting in self._waiting.items():
            while waiting and self._has_room(is_one_way):
                self._send(waiting.pop(), now)

    def _send(self, call: Call, now: float) -> None:
        call.was_sent = True
        call.tries += 1
        is_one_way = call.flags & ONE_WAY
        self._set_alarm(call, min(call.deadline, now + CONFIRM_TIMEOUT_S) if is_one_way else call.deadline)
        properties = call.properties(now)
        try:
            if self._confirming is not None and is_one_way:
                self._confirming.publish(call, properties)
            else:
                self._calling.basic_publish(*call.address, call.envelope, properties, mandatory=True)
        except AMQPError as error:
            # The channel is closing, and what it was is about to be told to us.
            _log.debug("publish-failed %s", error)

    def _tell(self, exchange: str, key: str, properties: BasicProperties, body: bytes = b"") -> None:
        """Tell whoever has a call something about it."""
        if self._calling is not None and self._calling.is_open:
            self._calling.basic_publish(exchange, key, body, properties)

    def _give_up(self, call: Call) -> None:
        """Tell whoever has a call, at the end of the turn, that nobody waits for it."""
        if call.was_sent:
            if not self._cancels:
                get_hub().loop.run_callback(self._send_cancels)
            self._cancels.setdefault(call.control_address, []).append(call.id)

    def _send_cancels(self) -> None:
        # All instances of a service hear each of these: a thousand calls that expire together are one.
        cancels, self._cancels = self._cancels, {}
        for address, ids in cancels.items():
            for n in range(0, len(ids), MAX_IDS):
                body = " ".join(ids[n : n + MAX_IDS]).encode()
                self._tell(*address, messages.control_properties("", messages.CANCEL), body)

    def _returned(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        """Nobody reads that queue: it is tried at the next, or there is no such service."""
        call = self._calls.get(properties.correlation_id or "")
        if call is None or method.routing_key != call.address[1]:
            return
        if call.confirming is not None:
            call.confirming.forget(call)
        now = monotonic()
        self._owners.forget(call.target)
        # It was in nobody's hands.
        call.tries -= 1
        if call.queues:
            call.queue, *call.queues = call.queues
            if self._has_room(bool(call.flags & ONE_WAY)):
                self._send(call, now)
            else:
                self._wait(call, now)
        elif self._grace_ends_at is not None and now < self._grace_ends_at:
            call.has_waited, call.was_sent = True, False
            self._unknown.append(call)
            self._look_again()
        else:
            what = "owner of" if call.target.startswith("/") else "service"
            what = "durable service" if call.flags & DURABLE else "instance of" if call.scope else what
            code = status.UNAVAILABLE if call.has_waited else status.NOT_FOUND
            self._answer(call, code, f"no {what} {call.target[:200]!r}")

    def _look_again(self) -> None:
        if self._again is None:
            self._again = get_hub().loop.timer(LOOK_AGAIN_S)
            self._again.start(self._ask_again)

    def _ask_again(self) -> None:
        self._again.close()
        self._again = None
        unknown, self._unknown = self._unknown, []
        now = monotonic()
        for call in unknown:
            if call.id in self._calls:
                self._route(call, now)
                self._wait(call, now)
        self._flush()

    # --- answers ------------------------------------------------------------------------------

    def _replied(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        call = self._calls.get(properties.correlation_id or "")
        if call is None:
            return  # A late reply.
        try:
            kind, code, flags = messages.reply_kind(properties)
        except ValueError as error:
            _log.warning("reply-unreadable: %s", error)
            return
        now = monotonic()
        if call.scope == ALL:
            # There may be others, who answer as well.
            call.parts += 1
            kind = PARTIAL
        elif call.queue != call.target:
            self._owners.learn(call.target, call.queue, now)
        if kind == FINAL:
            self._settle(call)
        elif call.scope != ALL:
            if not call.flags & STREAM:
                return
            call.parts += 1
            call.control = properties.reply_to or ""
            self._renew(call, now)
        self._hand_out(call, kind, code, flags, body)

    def _confirmed(self, confirming: Confirming, calls: list[Call], is_taken: bool) -> None:
        for call in calls:
            if not is_taken:
                self._answer(call, status.UNAVAILABLE, "the broker could not take it, or is full")
                continue
            self._settle(call)
            if call.flags & DURABLE:
                self._hand_out(call, FINAL, status.ACCEPTED, 0, b"{}")
        if not is_taken and confirming is self._confirming and any(call.flags & DURABLE for call in calls):
            # One that met a quorum queue without a leader may refuse for ever (3.10).
            self._confirm_anew()
        self._drop_retired()
        self._changed.set()
        if self._waiting[True]:
            self._flush()

    def _confirm_anew(self) -> None:
        """Send no more on the present channel, but on another."""
        if self._confirming is not None:
            self._retired.add(self._confirming)
            self._confirming = None
            self._link.open(self._confirming_opened)

    def _drop_retired(self) -> None:
        for confirming in [one for one in self._retired if not one.calls]:
            self._retired.discard(confirming)
            self._link.drop(confirming.channel)

    def _expire(self, call: Call) -> None:
        if call.id not in self._calls:
            return
        if call.scope == ALL and call.parts:
            # Whoever has not answered will not any more.
            self._settle(call)
            self._hand_out(call, FINAL, status.OK, 0, b"{}")
        elif call.deadline <= monotonic() and not call.flags & DURABLE:
            # (Of what is to be stored the deadline is its handler's: here it only ends the wait for the
            # broker.) It may have been long on its way, and its time in the queue begins there.
            if not call.flags & ONE_WAY:
                self._give_up(call)
            self._answer(call, status.DEADLINE_PASSED, "deadline passed")
        elif call.was_sent:
            if call.confirming is self._confirming:
                # Others need not wait behind what has no answer.
                self._confirm_anew()
            self._answer(call, status.UNAVAILABLE, "the broker has not confirmed it")
            self._drop_retired()
        elif self._link.is_blocked:
            self._answer(call, status.UNAVAILABLE, "the broker is short of memory or disk")
        elif self._link.connection is None:
            self._answer(call, status.UNAVAILABLE, "no broker can be reached")
        else:
            self._answer(call, status.UNAVAILABLE, "too much waits to be confirmed")

    def _answer(self, call: Call, code: int, message: str) -> None:
        """Give a call its last reply ourselves."""
        self._settle(call)
        if call.flags & ONE_WAY and not call.flags & DURABLE:
            self._refusals.append((code, message))
        retry_after_s = 1.0 if code == status.UNAVAILABLE else None
        if not self._replies:
            get_hub().loop.run_callback(self._hand_out_replies)
        self._replies.append((call, code, mesh.pack_failure(code, message, retry_after_s)[2:]))

    def _hand_out_replies(self) -> None:
        replies, self._replies = self._replies, []
        for call, code, envelope in replies:
            self._hand_out(call, FINAL, code, 0, envelope)

    def _hand_out(self, call: Call, kind: int, code: int, flags: int, envelope: bytes) -> None:
        on_reply = call.on_reply
        if on_reply is None:
            return
        if kind == FINAL:
            call.on_reply = None
        try:
            on_reply(kind, code, flags, envelope)
        except Exception:
            # What a woken greenlet lets out ends here, not in pika, which would end the connection.
            _log.exception("reply-callback-failed")

    def _renew(self, call: Call, now: float) -> None:
        """A stream's deadline runs between parts."""
        if call.flags & STREAM and call.patience_s and call.was_sent:
            call.deadline = now + call.patience_s
            self._set_alarm(call, call.deadline)

    def _set_alarm(self, call: Call, due: float) -> None:
        if call.slot is not None:
            call.slot.discard(call)
        call.slot = None if due == NEVER else self._alarm.add(call, due)

    def _settle(self, call: Call) -> bool:
        """Take a call off the tables; False when it was off already."""
        if call.slot is not None:
            call.slot.discard(call)
            call.slot = None
        if call.confirming is not None:
            call.confirming.forget(call)
        if self._calls.pop(call.id, None) is None:
            return False
        self._waiting[bool(call.flags & ONE_WAY)].discard(call)
        self._changed.set()
        return True
