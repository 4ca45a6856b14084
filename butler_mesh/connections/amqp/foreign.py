"""A broker's queues as other systems use them: messages as they are, without a word of the mesh's.

::

    call      to EXCHANGE by the queue's name    mandatory, correlation_id, expiration,
                                                 reply_to amq.rabbitmq.reply-to
    answer    to the call's reply_to             its correlation_id
    message   to EXCHANGE by the queue's name    mandatory, message_id, no reply_to

A queue that is read is durable, without arguments, and bound by its own name to a direct exchange that is
not. A message is acknowledged when its handler has ended; one whose reader was lost comes again, marked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from butler_mesh.connections.amqp.foreign_caller import ForeignCaller
from butler_mesh.connections.amqp.foreign_reader import ForeignMessage, ForeignReader
from butler_mesh.errors import Closed, UsageError

CONNECT_TIMEOUT_S = 3.0
CEILING_S = 3600.0
"""How long a call is worked on that does not say how long its answer is of use."""


class ForeignQueues:
    """Connections to one broker (or cluster) that come back, for calls, messages, and one queue to read.

    ``connect_timeout`` is how many seconds a call or message waits for a connection. Nothing is sent twice.
    """

    def __init__(
        self, endpoints: Sequence[str], exchange: str, *, connect_timeout: float = CONNECT_TIMEOUT_S
    ) -> None:
        self._endpoints = endpoints
        self._exchange = exchange
        self._connect_timeout_s = connect_timeout
        # Each is opened when it is first wanted.
        self._reader: ForeignReader | None = None
        self._caller: ForeignCaller | None = None
        self._is_closed = False

    def serve(
        self,
        queue: str,
        handler: Callable[[ForeignMessage], object],
        *,
        credit: int,
        ceiling_s: float = CEILING_S,
    ) -> None:
        """Read a queue: ``handler(message)`` runs in a greenlet of its own for each, ``credit`` at once.

        It is stopped after what the message's sender has granted, or after ``ceiling_s`` seconds where that
        one waits for an answer and has not said how long.
        """
        self._check()
        if self._reader is not None:
            raise UsageError("a queue is read already")
        self._reader = ForeignReader(
            self._endpoints, self._exchange, queue, handler, credit=credit, ceiling_s=ceiling_s
        )

    def wait_until_registered(self, timeout_s: float) -> bool:
        """Wait until the queue is read; False when it is not in time.

        Raises RequestFailed where the broker refuses it: 401 our user, 403 what that may do, 409 a queue or
        exchange that is there and is another kind.
        """
        return self._reader is not None and self._reader.wait_until_registered(timeout_s)

    def wait_until_connected(self, timeout_s: float) -> bool:
        """Wait until something can be sent; False when it cannot in time. Raises as ``call``."""
        return self._open().wait_until_connected(timeout_s)

    def call(self, queue: str, body: bytes, timeout: float) -> bytes:
        """Send a call to whoever reads a queue, and return the answer.

        Raises NotFound where there is no such queue, Unavailable without a broker or for one short of memory,
        DeadlineExceeded when no answer came in ``timeout`` seconds, InstanceLost when the broker was lost
        meanwhile, and for what it refuses as ``wait_until_registered``.
        """
        return self._open().call(queue, body, timeout)

    def send(self, queue: str, body: bytes) -> None:
        """Send a message that nobody answers; returns when the broker has it.

        Raises as ``call``; InstanceLost also where the broker does not say whether it has it.
        """
        self._open().send(queue, body)

    def close(self, drain_s: float) -> None:
        """Read no more, wait up to ``drain_s`` for handlers that run, close. Calls that wait fail."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._reader is not None:
            self._reader.close(drain_s)
        if self._caller is not None:
            self._caller.close()

    def abandon(self) -> None:
        """Let go of everything without a word: this process is a fork and owns none of it."""
        self._is_closed = True
        for one in (self._reader, self._caller):
            if one is not None:
                one.abandon()

    def _open(self) -> ForeignCaller:
        self._check()
        if self._caller is None:
            self._caller = ForeignCaller(
                self._endpoints, self._exchange, connect_timeout=self._connect_timeout_s
            )
        return self._caller

    def _check(self) -> None:
        if self._is_closed:
            raise Closed("the connection was closed")
