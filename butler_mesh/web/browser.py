"""Browser: one connection that Mongrel2 holds for us, its requests, and the pace of its replies."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import gevent
from gevent.event import Event

from butler_mesh.clock import monotonic
from butler_mesh.connections.workers import Worker
from butler_mesh.errors import UsageError
from butler_mesh.protocol.mongrel2 import FLOW_WINDOW, Message
from butler_mesh.web.exchange import SLICE_BYTES, Exchange, Line
from butler_mesh.web.handover import REPLY_TO, ReplyTo
from butler_mesh.web.request import MAX_BODY_BYTES
from butler_mesh.web.server import SOCKET_TIMEOUT_S

MAX_WAITING = 64
"""Requests that one browser may have sent ahead; with one more its connection is closed."""
MAX_WAITING_BYTES = 256 * 1024
"""Of several that it has sent ahead; a single one may be as large as Mongrel2 lets it."""
MAX_ALL_WAITING_BYTES = 64 * 1024 * 1024
"""Of what all browsers have sent ahead: over it, who sends more is cut."""
IMPATIENT_S = 10.0
"""How long a browser that has sent requests ahead may take nothing of a reply."""
PACE_S = 0.05
"""Between the parts of a streamed reply where Mongrel2 does not say how fast the browser reads: it cuts a
browser that has over 16 messages to read."""
HEAD_BYTES = 16 * 1024
"""Of the room that a browser's connection has, what is left for the head of a direct reply."""
LEARN_S = 0.25
"""How long to wait for a word of what has been read, to learn whether the server says it. Once, and only
where the first request of a connection, which tells, came to the process before."""


class Server(Protocol):
    """The Mongrel2 that holds the connection, as we reach it."""

    has_flow_control: bool | None
    hand_over_secret: str | bytes
    recv_spec: str
    waiting_bytes: int

    def reply(self, sender: bytes, connections: Sequence[bytes], data: bytes) -> None:
        """Send bytes as they are to connections; none closes them."""

    def discard(self, browser: Browser) -> None:
        """Drop the requests that a browser sent ahead."""


class Browser(Line):
    """A connection that Mongrel2 holds for us, and the requests that came on it, answered in order."""

    def __init__(self, server: Server, key: tuple[bytes, bytes]) -> None:
        self.key = key
        self.waiting: deque[tuple[Message, int]] = deque()
        self._waiting_bytes = 0
        self.exchange: Exchange | None = None
        self.worker: Worker[Exchange] | None = None
        # Carries no further request: it is to be closed, or was handed over to a service for its one reply.
        self.is_last = False
        self.is_closed = False
        # What Mongrel2 has yet to send on.
        self.unread_bytes = 0
        self.idle_since = monotonic()
        self._server = server
        self._has_read = Event()
        self._sent_at = 0.0

    @property
    def can_send_parts(self) -> bool:
        """Whether a large reply may go in several messages."""
        return self._server.has_flow_control is not False

    def may_wait(self, size: int) -> bool:
        """Tell whether one more request, of so many bytes, may wait behind those that came before."""
        if self.exchange is None and not self.waiting:
            return True  # it need not wait
        if self._server.waiting_bytes + size > MAX_ALL_WAITING_BYTES:
            return False
        is_one_of_several = bool(self.waiting)
        is_too_much = len(self.waiting) >= MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES
        return not (is_one_of_several and is_too_much)

    def wait(self, message: Message, size: int) -> None:
        """Add a request to those that wait."""
        self.waiting.append((message, size))
        self._waiting_bytes += size
        self._server.waiting_bytes += size

    def next_message(self) -> Message:
        """Return the request that has waited longest."""
        message, size = self.waiting.popleft()
        self._waiting_bytes -= size
        self._server.waiting_bytes -= size
        return message

    def send(self, data: bytes) -> None:
        """Send bytes of a reply, as fast as the browser reads. Raises TimeoutError when it does not."""
        if self.is_closed:
            return  # nobody is there, or a service has answered
        for at in range(0, len(data), SLICE_BYTES):
            if self._server.has_flow_control is None and self._sent_at:
                self._learn()
            if self._server.has_flow_control is False:
                gevent.sleep(max(0.0, self._sent_at + PACE_S - monotonic()))
                self._write(data[at:])
                return
            part = data[at : at + SLICE_BYTES]
            while self.unread_bytes + len(part) > FLOW_WINDOW:
                self._has_read.clear()
                # One who asks for more, and takes nothing, may have left: Mongrel2 notices when it sends.
                if not self._has_read.wait(IMPATIENT_S if self.waiting else SOCKET_TIMEOUT_S):
                    raise TimeoutError("the browser reads nothing")
            self.unread_bytes += len(part)
            self._write(part)

    def has_read(self, number: int) -> None:
        """Note that so many bytes have left Mongrel2."""
        self.unread_bytes = max(0, self.unread_bytes - number)
        self._server.has_flow_control = True
        self._has_read.set()

    def hang_up(self) -> None:
        """Close the connection, once what was sent has arrived."""
        if not self.is_closed:
            self._end()
            self._write(b"")

    def hand_over(self, message: Message) -> dict[str, str]:
        """Let a service answer a request; returns the headers that tell it how.

        Whatever is sent here instead is followed by the connection's end. Raises UsageError without a secret.
        """
        secret = self._server.hand_over_secret
        if not secret:
            raise UsageError("direct replies take a hand_over_secret of Mongrel2Connection")
        self.is_last = True
        self._server.discard(self)
        room = FLOW_WINDOW - self.unread_bytes if self.can_send_parts else MAX_BODY_BYTES
        method, version = message.header("METHOD"), message.header("VERSION")
        sender, connection = (part.decode() for part in self.key)
        spec = self._server.recv_spec
        reply_to = ReplyTo(spec, sender, connection, method, version, room - HEAD_BYTES)
        return {REPLY_TO: reply_to.header(secret)}

    def handed_over(self) -> None:
        """Note that the service has answered, and closed the connection."""
        self._end()

    def _learn(self) -> None:
        """Wait for a word of what has been read, to whichever browser: silence means that there is none."""
        if not self._has_read.wait(LEARN_S) and self._server.has_flow_control is None:
            self._server.has_flow_control = False

    def _end(self) -> None:
        self.is_last = self.is_closed = True
        self._server.discard(self)

    def _write(self, data: bytes) -> None:
        self._sent_at = monotonic()
        self._server.reply(self.key[0], [self.key[1]], data)
