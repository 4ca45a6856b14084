"""Calls and messages to other systems' queues: each is confirmed, or says why not."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, cast

from gevent.event import AsyncResult
from pika import BasicProperties
from pika.exceptions import AMQPError

from butler_mesh import deadlines, status
from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp.kept import KeptChannel
from butler_mesh.connections.amqp.messages import REPLY_TO
from butler_mesh.errors import Closed, DeadlineExceeded, InstanceLost, MeshError, NotFound, Unavailable

CONFIRM_TIMEOUT_S = 10.0
"""Patience with the broker's word on a message: milliseconds, unless it is short of memory."""


class _Post:
    """A call that has no answer, or a message that has no confirmation."""

    def __init__(self, *, is_call: bool) -> None:
        self.id = secrets.token_hex(16)
        self.is_call = is_call
        self._result: AsyncResult[bytes] = AsyncResult()

    def end(self, answer: bytes = b"") -> None:
        if not self._result.ready():
            self._result.set(answer)

    def fail(self, error: MeshError) -> None:
        if not self._result.ready():
            self._result.set_exception(error)

    def wait(self, until: float, late: MeshError) -> bytes:
        self._result.wait(max(0.0, until - monotonic()))
        if not self._result.ready():
            raise late
        return cast(bytes, self._result.get())


class ForeignCaller:
    """Sends to the queues of one broker (or cluster), nothing twice.

    ``connect_timeout`` is how many seconds a call or message waits for a connection.
    """

    def __init__(self, endpoints: Sequence[str], exchange: str, *, connect_timeout: float) -> None:
        self._exchange = exchange
        self._connect_timeout_s = connect_timeout
        # By the id that goes with it; and those that the broker has not confirmed, by its number for them.
        self._posts: dict[str, _Post] = {}
        self._unconfirmed: dict[int, _Post] = {}
        self._last_tag = 0
        self._is_closed = False
        self._kept = KeptChannel(
            endpoints, "out", on_open=self._opened, on_lost=self._lost, on_fork=self.abandon
        )
        self._kept.start()

    def wait_until_connected(self, timeout_s: float) -> bool:
        """Wait until messages can be sent; False when they cannot in time. Raises what the broker refuses."""
        return self._kept.wait(timeout_s)

    def call(self, queue: str, body: bytes, timeout: float) -> bytes:
        """As ``ForeignQueues.call``."""
        until = deadlines.deadline_for(timeout, monotonic())
        post = _Post(is_call=True)
        try:
            # The broker may be slow with its word: it is the answer that is waited for.
            self._publish(queue, body, post, until)
            return post.wait(until, DeadlineExceeded())
        finally:
            self._posts.pop(post.id, None)

    def send(self, queue: str, body: bytes) -> None:
        """As ``ForeignQueues.send``."""
        until = deadlines.deadline_for(CONFIRM_TIMEOUT_S, monotonic())
        post = _Post(is_call=False)
        late = InstanceLost("the broker has not confirmed it, and may have it", status=status.INSTANCE_LOST)
        try:
            self._publish(queue, body, post, until)
            post.wait(until, late)
        finally:
            self._posts.pop(post.id, None)

    def close(self) -> None:
        """Close; those that wait fail."""
        self._is_closed = True
        self._fail_all(Closed("the connection was closed"))
        self._kept.close()

    def abandon(self) -> None:
        """Let go of everything without a word: this process is a fork and owns none of it."""
        self._is_closed = True
        self._kept.abandon()

    # --- the channel --------------------------------------------------------------------------

    def _opened(self, channel: Any) -> None:
        self._last_tag = 0
        channel.add_on_return_callback(self._returned)
        channel.basic_consume(REPLY_TO, self._answered, auto_ack=True)
        channel.confirm_delivery(self._confirmed)
        channel.exchange_declare(self._exchange, "direct", callback=lambda _: self._kept.ready())

    def _lost(self, error: MeshError) -> None:
        # What it refuses was not sent; of what it has confirmed before nobody knows.
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for post in unconfirmed.values():
            post.fail(error)
        self._fail_all(InstanceLost(str(error), status=status.INSTANCE_LOST))

    def _fail_all(self, error: MeshError) -> None:
        for post in self._posts.values():
            post.fail(error)

    # --- on the way ---------------------------------------------------------------------------

    def _publish(self, queue: str, body: bytes, post: _Post, until: float) -> None:
        if self._is_closed:
            raise Closed("the connection was closed")
        if not self._kept.wait(min(self._connect_timeout_s, max(0.0, until - monotonic()))):
            raise _unavailable("no broker can be reached")
        if self._kept.is_blocked:
            # It would lie in the broker's way, where it does not even expire.
            raise _unavailable("the broker is short of memory or disk")
        remaining_ms = int((until - monotonic()) * 1000)
        if remaining_ms <= 0:
            raise DeadlineExceeded("deadline passed before it was sent")
        self._posts[post.id] = post
        self._last_tag += 1
        self._unconfirmed[self._last_tag] = post
        try:
            self._kept.channel.basic_publish(
                self._exchange, queue, body, _properties(post, remaining_ms), mandatory=True
            )
        except AMQPError as error:
            raise _unavailable(f"the broker was lost: {error}") from error

    def _returned(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        post = self._posts.get(properties.correlation_id or properties.message_id or "")
        if post is not None:
            post.fail(NotFound(f"nobody reads {method.routing_key[:200]!r}", status=status.NOT_FOUND))

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        tags = [method.delivery_tag]
        if method.multiple:
            tags = [tag for tag in self._unconfirmed if tag <= method.delivery_tag]
        for tag in tags:
            post = self._unconfirmed.pop(tag, None)
            if post is None:
                continue
            if method.NAME == "Basic.Nack":
                post.fail(_unavailable("the broker could not take it"))
            elif not post.is_call:
                post.end()

    def _answered(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        post = self._posts.get(properties.correlation_id or "")
        if post is not None and post.is_call:
            post.end(body)


def _properties(post: _Post, remaining_ms: int) -> BasicProperties:
    if post.is_call:
        return BasicProperties(  # type: ignore[no-untyped-call]  # pika's slip
            delivery_mode=1, correlation_id=post.id, reply_to=REPLY_TO, expiration=str(remaining_ms)
        )
    return BasicProperties(delivery_mode=1, message_id=post.id)  # type: ignore[no-untyped-call]


def _unavailable(message: str) -> Unavailable:
    return Unavailable(message, status=status.UNAVAILABLE, retry_after_s=1.0)
