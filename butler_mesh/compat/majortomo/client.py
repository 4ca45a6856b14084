"""Client: one request at a time, its reply read part by part."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Self

from butler_mesh import Client as MeshClient
from butler_mesh import status
from butler_mesh.compat.majortomo.error import Disconnected, Error, ProtocolError, StateError, Timeout
from butler_mesh.compat.majortomo.frames import as_frames, from_body, service_name
from butler_mesh.compat.majortomo.hub import run_outside, turn
from butler_mesh.compat.majortomo.request import END, FOREVER_S, NotYet, Request
from butler_mesh.errors import Closed, NotSerializable, RequestFailed

NOW_S = 0.005
"""What timeout 0 waits: until what has arrived has been read, a turn or two of the hub."""
CONNECT_S = 0.1
CLOSE_S = 0.5
"""How long ``connect`` and ``close`` wait for a router that may not be there."""

_NO_REPLY = (
    status.NOT_FOUND,
    status.TOO_MANY,
    status.INSTANCE_LOST,
    status.UNAVAILABLE,
    status.DEADLINE_PASSED,
)


class Client:
    """Sends requests through the broker at ``broker_url``; connected by ``connect`` or as a context manager.

    One request at a time: its whole reply is read, or the client connects anew, before the next. A broker or
    a worker that is not there is waited for. ``zmq_context`` and ``zmq_linger`` are taken and not used.
    A client belongs to the thread that connects it.

    A program that gevent has not patched may stand still (``time.sleep``, or a computation) for as long as it
    likes between its requests; while a reply is on its way the broker waits for it only as long as for any
    silent peer, and what comes later is lost (Timeout, 502).
    """

    def __init__(self, broker_url: str, zmq_context: object = None, zmq_linger: int = 2000) -> None:
        self.broker_url = broker_url
        self._mesh: MeshClient | None = None
        self._request: Request | None = None

    def connect(self, reconnect: bool = False) -> None:
        """Connect; where that was done before, only with ``reconnect``, which gives up an unread reply.

        Returns after a tenth of a second at the latest, broker or not. Raises ValueError for a bad address.
        """
        if self.is_connected() and not reconnect:
            return
        self.close()
        mesh = MeshClient(self.broker_url)
        # A question that every router answers: if this one is there, what is sent next leaves at once.
        mesh.request("mmi.service", timeout=CONNECT_S)
        self._mesh = mesh

    def is_connected(self) -> bool:
        """Tell whether ``send`` may be used; not whether a broker is there."""
        return self._mesh is not None

    def close(self) -> None:
        """Disconnect, and give up what is unread. Whoever waits for it gets Disconnected."""
        mesh, self._mesh, self._request = self._mesh, None, None
        if mesh is not None:
            run_outside(partial(mesh.close, CLOSE_S))

    def send(self, service: str | bytes, *frames: bytes) -> None:
        """Send a request of one or more frames. What becomes of it, ``recv_*`` tells: nobody need be there.

        Raises Disconnected, StateError while the reply to the request before is unread, ProtocolError for
        no frames at all or over 65 535, ValueError and TypeError for a name or a frame that is none.
        """
        name, body = service_name(service), as_frames(frames)
        if self._mesh is None:
            raise Disconnected("connect first")
        if self._request is not None and not self._request.is_read():
            raise StateError("the reply to the request before is unread: read it, or connect anew")
        if not body:
            raise ProtocolError("a request has at least one frame")
        try:
            self._request = Request(self._mesh, name, body)
        except NotSerializable as error:
            raise ProtocolError(str(error), status=status.TOO_LARGE) from error
        turn()

    def recv_part(self, timeout: float | None = None) -> list[bytes] | None:
        """Return the next part of the reply, a list of frames; None after the last, or if nothing was asked.

        ``timeout`` is in seconds; None waits for ever, 0 takes what is there. Raises

        * Timeout when it passes: the part may still come, for the next to call this;
        * Timeout with a ``status``, at once, when none will come: the worker was lost (502), say. The client
          is to connect anew before it sends again;
        * ProtocolError with a ``status`` when the request was refused or its handler failed;
        * Disconnected.
        """
        if self._mesh is None:
            raise Disconnected("connect first")
        request = self._request
        if request is None:
            return None
        patience_s = FOREVER_S if timeout is None else min(max(timeout, NOW_S), FOREVER_S)
        try:
            body = request.take(monotonic() + patience_s)
        except NotYet as why:
            raise Timeout(f"no reply from {request.service} within {timeout} s: {why}") from None
        except Closed:
            raise Disconnected("the client was closed while it waited") from None
        except RequestFailed as failure:
            error = _error(request.service, failure)
            if not isinstance(error, Timeout):
                self._forget(request)
            raise error from failure
        if body is END:
            self._forget(request)
            return None
        return from_body(body)

    def recv_all(self, timeout: float | None = None) -> Iterator[list[bytes]]:
        """Return an iterator over the parts of the reply; ``timeout`` is for each. Raises what ``recv_part``
        does."""
        while (part := self.recv_part(timeout)) is not None:
            yield part

    def recv_all_as_list(self, timeout: float | None = None) -> list[bytes]:
        """Return the frames of all parts in one list; otherwise as ``recv_all``."""
        return [frame for part in self.recv_all(timeout) for frame in part]

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forget(self, request: Request) -> None:
        # While we waited somebody may have connected anew, and asked something else.
        if self._request is request:
            self._request = None


def _error(service: str, failure: RequestFailed) -> Error:
    """Return what a failure is to majortomo's programs: worth another try, or not."""
    text = f"{service}: {failure.status} {failure.message}"
    if failure.status in _NO_REPLY:
        return Timeout(f"there will be no reply from {text}", status=failure.status)
    if failure.status == status.CANCELLED:
        return Disconnected("the client was closed while it waited")
    return ProtocolError(text, status=failure.status)
