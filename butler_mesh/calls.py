"""Calls in progress, as their callers hold them: awaited at once, later, or part by part."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, cast

from gevent.event import AsyncResult, Event
from gevent.hub import get_hub
from gevent.queue import SimpleQueue
from greenlet import getcurrent, greenlet

from butler_mesh.clock import monotonic
from butler_mesh.connections.base import ClientConnection
from butler_mesh.errors import DeadlineExceeded, UsageError
from butler_mesh.messages import WID, Body, ServiceResponse, decode_response
from butler_mesh.protocol.mesh import FINAL
from butler_mesh.status import CANCELLED, DEADLINE_PASSED, INSTANCE_LOST

MAX_UNREAD_BYTES = 16 * 1024 * 1024
"""What a stream whose sender keeps to no window may have waiting for its reader."""
_OVERRUN = b'{"message":"the stream sent more than its window"}'

STREAM_WINDOW = 16
"""Parts of a stream on their way at once: its reader holds at most this many unread."""


class Waiter:
    """A greenlet that waits for one reply: woken straight from the turn that read it."""

    __slots__ = ("_greenlet", "_is_parked", "reply")

    def __init__(self) -> None:
        self._greenlet: greenlet = getcurrent()
        if self._greenlet is get_hub():
            raise UsageError("a callback of the hub cannot wait; spawn a greenlet for it")
        self._is_parked = False
        self.reply: tuple[int, int, bytes] | None = None

    def __call__(self, kind: int, status: int, flags: int, envelope: bytes) -> None:
        """Take the reply (the engine's ``on_reply``)."""
        if kind == FINAL:
            self.reply = (status, flags, envelope)
            if self._is_parked:
                self._greenlet.switch(self)

    def wait(self, connection: ClientConnection, call: Any) -> tuple[int, int, bytes]:
        """Return (status, flags, envelope). A caller that is killed or timed out cancels the call."""
        hub = get_hub()
        try:
            while self.reply is None:
                self._is_parked = True
                # Any stray switch lands here too: what counts is whether the reply is there.
                hub.switch()
        finally:
            self._is_parked = False
            if self.reply is None:
                connection.cancel(call)
        return self.reply


class LazyResponse:
    """A call that was sent and is collected later; several may be on their way at once."""

    def __init__(self, path: str, owner: object = None) -> None:
        self._path = path
        # The client: it closes when nobody holds it, and whoever waits for its reply does.
        self._owner = owner
        self._result: AsyncResult[Any] = AsyncResult()
        self._connection: ClientConnection | None = None
        self._call: Any = None

    def bind(self, connection: ClientConnection, call: Any) -> None:
        """Remember what ``cancel`` is to cancel."""
        self._connection, self._call = connection, call

    def on_reply(self, kind: int, status: int, flags: int, envelope: bytes) -> None:
        """Take the reply (the engine's ``on_reply``)."""
        if kind == FINAL:
            self._result.set(decode_response(status, flags, envelope, self._path))

    def get(self, timeout: float | None = None) -> ServiceResponse:
        """Wait for the response, at the longest until the call's deadline.

        With ``timeout`` (seconds) raises DeadlineExceeded when it is not there by then; the call goes
        on, and ``get`` may be tried again.
        """
        if timeout is not None and not self._result.wait(timeout) and not self._result.ready():
            raise DeadlineExceeded("not answered yet")
        return cast(ServiceResponse, self._result.get())

    def is_ready(self) -> bool:
        """Tell whether ``get`` would return at once."""
        return self._result.ready()

    def cancel(self) -> None:
        """Give the call up; ``get`` then returns status 499."""
        if not self._result.ready() and self._connection is not None:
            self._connection.cancel(self._call)
            self._result.set(ServiceResponse(499, "cancelled by its caller", path=self._path))


class Answers:
    """An iterator over the answers to a command: (wid, response) of each instance, in the order they come.

    What comes while 16 MiB are unread is lost. What bears nobody's name, as a refusal for want of the
    passphrase or the mesh's word that an instance was lost just now, is no answer, and passed over. At the
    end the failure of the whole is raised: NotFound where nobody was there to be asked; where nobody has
    answered, the last failure that was passed over, or DeadlineExceeded.
    """

    def __init__(self, path: str, owner: object = None) -> None:
        self._path = path
        # The client: it closes when nobody holds it.
        self._owner = owner
        self._arrived: SimpleQueue[tuple[int, int, int, bytes]] = SimpleQueue()
        self._connection: ClientConnection | None = None
        self._call: Any = None
        self._is_over = False
        self._unread_bytes = 0
        # What is raised at the end; None once somebody has answered, unless the end itself is a failure.
        self._failure: ServiceResponse | None = ServiceResponse(DEADLINE_PASSED, "no instance has answered")

    def bind(self, connection: ClientConnection, call: Any) -> None:
        """Remember what ``close`` is to cancel."""
        self._connection, self._call = connection, call

    def on_reply(self, kind: int, status: int, flags: int, envelope: bytes) -> None:
        """Take an answer, or the end (the engine's ``on_reply``)."""
        self._unread_bytes += len(envelope)
        if kind == FINAL or self._unread_bytes <= MAX_UNREAD_BYTES:
            self._arrived.put((kind, status, flags, envelope))
        else:
            self._unread_bytes -= len(envelope)

    def __iter__(self) -> Iterator[tuple[str, ServiceResponse]]:
        return self

    def __next__(self) -> tuple[str, ServiceResponse]:
        """Return the next answer, whatever its status."""
        while not self._is_over:
            kind, status, flags, envelope = self._arrived.get()
            self._unread_bytes -= len(envelope)
            self._is_over = kind == FINAL
            response = decode_response(status, flags, envelope, self._path)
            wid = response.headers.get(WID, "")
            if wid:
                self._failure = None
                return wid, response
            if not response.is_success and (self._is_over or self._failure is not None):
                self._failure = response
        failure, self._failure = self._failure, None
        if failure is not None:
            failure.raise_for_status()
        raise StopIteration

    def close(self) -> None:
        """Want no more."""
        self._failure = None
        if not self._is_over and self._connection is not None:
            self._is_over = True
            self._connection.cancel(self._call)
            # For whoever waits for the next.
            self._arrived.put((FINAL, 200, 0, b"{}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Parts:
    """What has arrived of a stream. The engine holds this and not the stream itself, so that a stream
    which nobody holds any more is noticed."""

    __slots__ = ("arrived", "changed", "is_over", "unread_bytes")

    def __init__(self) -> None:
        self.arrived: deque[tuple[int, int, int, bytes]] = deque()
        # Nothing is taken after this: the end has come, or far more than was asked for.
        self.is_over = False
        self.unread_bytes = 0
        self.changed = Event()

    def __call__(self, kind: int, status: int, flags: int, envelope: bytes) -> None:
        """Take a part or the end (the engine's ``on_reply``)."""
        self.unread_bytes += len(envelope)
        if kind != FINAL and len(self.arrived) >= 2 * STREAM_WINDOW and self.unread_bytes > MAX_UNREAD_BYTES:
            # More than was ever granted. A Majordomo worker knows no windows and may be ahead of its
            # reader, but it must not fill the process.
            kind, status, flags, envelope = FINAL, INSTANCE_LOST, 0, _OVERRUN
        if not self.is_over:
            self.arrived.append((kind, status, flags, envelope))
        self.is_over = self.is_over or kind == FINAL
        self.changed.set()


class ResponseStream:
    """An iterator over the parts of a reply. The reader's pace is the sender's: it is granted more
    parts as those before are taken. Leaving it early (``close``, or the end of ``with``) cancels."""

    def __init__(self, path: str, owner: object = None) -> None:
        self._path = path
        # The client: it closes when nobody holds it, and whoever waits for its reply does.
        self._owner = owner
        self.on_reply = _Parts()
        self._connection: ClientConnection | None = None
        self._call: Any = None
        self._taken = 0
        self._is_over = False
        # Of the first part, and of the outcome once it is known.
        self.response: ServiceResponse | None = None

    def bind(self, connection: ClientConnection, call: Any) -> None:
        """Remember whom to grant windows to."""
        self._connection, self._call = connection, call

    def __iter__(self) -> Iterator[Body]:
        return self

    def wait(self, timeout: float) -> bool:
        """Wait for the next part, or the end; False when neither came within ``timeout`` seconds.

        With True, ``next`` returns (or raises) at once. The call goes on either way.
        """
        parts = self.on_reply
        until = monotonic() + timeout
        while not (parts.arrived or self._is_over):
            parts.changed.clear()
            left = until - monotonic()
            if left <= 0 or not parts.changed.wait(left):
                break
        return bool(parts.arrived) or self._is_over

    def begin(self) -> ServiceResponse:
        """Wait for the first reply and return the response, whatever its status: one that came whole as it
        is, one that comes in parts with this stream, from its first part on, as its body."""
        parts = self.on_reply
        if not self._await_part():
            return ServiceResponse(CANCELLED, "closed by its reader", path=self._path)
        kind, status, flags, envelope = parts.arrived[0]
        response = decode_response(status, flags, envelope, self._path)
        if kind == FINAL:
            parts.arrived.clear()
            self.response, self._is_over = response, True
        else:
            response.body = self
        return response

    def __next__(self) -> Body:
        """Return the next part's body; raises the failure if the stream ended in one."""
        if self._is_over:
            raise StopIteration
        parts = self.on_reply
        if not self._await_part():
            raise StopIteration
        kind, status, flags, envelope = parts.arrived.popleft()
        parts.unread_bytes -= len(envelope)
        response = decode_response(status, flags, envelope, self._path)
        if self.response is None or kind == FINAL:
            self.response = response
        if kind != FINAL:
            self._taken += 1
            if self._taken >= STREAM_WINDOW // 2 and self._connection is not None:
                self._connection.grant(self._call, self._taken)
                self._taken = 0
            return response.body
        self._is_over = True
        if status == INSTANCE_LOST and self._connection is not None:
            # Nothing where the end came over the wire; a sender that was cut off is told to stop.
            self._connection.cancel(self._call)
        response.raise_for_status()
        if response.body is None:
            raise StopIteration
        return response.body

    def _await_part(self) -> bool:
        """Wait for the next part, or the end; False when another greenlet has closed the stream."""
        parts = self.on_reply
        while not parts.arrived:
            if self._is_over:
                return False
            parts.changed.clear()
            parts.changed.wait()
        return not self._is_over

    def close(self) -> None:
        """Want no more: the handler is stopped."""
        if not self._is_over and self._connection is not None:
            self._is_over = True
            self._connection.cancel(self._call)
            self.on_reply.changed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # An iterator that was dropped half-read must not leave a handler waiting for its window.
        if not self._is_over and self._connection is not None:
            self._connection.cancel(self._call)
