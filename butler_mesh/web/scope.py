"""Scope: what the work for one web request runs in: a context, a deadline, and a client that may leave."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from gevent.hub import get_hub
from gevent.monkey import get_original
from greenlet import getcurrent

from butler_mesh import deadlines, status, tracing
from butler_mesh.clock import monotonic
from butler_mesh.errors import Stopped

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

T = TypeVar("T")

LOOK_AGAIN_S = 1.0
"""A client that sends meanwhile (a body nobody reads yet, its next request) is looked at again after that."""

# Where servers put the connection: ours, and gunicorn's.
_SOCKETS = ("butler_mesh.socket", "gunicorn.socket")
_ESTABLISHED = b"\1"
"""The first byte of Linux's TCP_INFO while neither side has ended the connection: net/tcp_states.h."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


class Scope:
    """Runs functions for a request in one copy of the present context.

    Each run must end within ``timeout_s`` seconds, and within those of a scope around it; calls of the mesh
    inherit that. What does not is stopped (Stopped, 504), and so is what runs when the client leaves (499),
    where the server lets us see its connection. A greenlet is in one run at a time.
    """

    def __init__(self, environ: WSGIEnvironment, timeout_s: float) -> None:
        self.deadline = deadlines.deadline_for(timeout_s, monotonic())
        self._timeout_s = timeout_s
        self._context = copy_context()
        self._connection = next((environ[name] for name in _SOCKETS if name in environ), None)
        trace = environ.get("HTTP_TRACEPARENT", "")
        if _TRACEPARENT.fullmatch(trace):
            self._context.run(tracing.current.set, trace)

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return what the function returns; raises Stopped, and what it raises."""
        return self._run(self._connection, function, *args)

    def clean_up(self, function: Callable[..., T], *args: Any) -> T:
        """The same in a time of its own, whether the client is there or has left."""
        self.renew()
        return self._run(None, function, *args)

    def renew(self) -> None:
        """Begin the time anew: a stream has as long for each of its parts."""
        self.deadline = deadlines.deadline_for(self._timeout_s, monotonic())

    def _run(self, connection: Any, function: Callable[..., T], *args: Any) -> T:
        self._context.run(deadlines.current.set, self.deadline)
        guard = _Guard(self.deadline - monotonic(), connection)
        try:
            return self._context.run(function, *args)
        finally:
            guard.close()


class _Guard:
    """Throws Stopped into the greenlet that made it, when its time is over or its client leaves.

    ``Stopped``, and no Timeout: like a service's handler it is stopped, whatever it catches.
    """

    __slots__ = ("_again", "_greenlet", "_number", "_readable", "_timer")

    def __init__(self, left_s: float, connection: Any) -> None:
        self._greenlet = getcurrent()
        loop = get_hub().loop
        self._timer = loop.timer(max(left_s, 0.0))
        self._timer.start(self._stop, status.DEADLINE_PASSED, "deadline passed")
        self._readable: Any = None
        self._again: Any = None
        self._number = -1 if connection is None else connection.fileno()
        if self._number >= 0:
            self._readable = loop.io(self._number, 1)
            self._readable.start(self._look)

    def close(self) -> None:
        """Throw no more."""
        for watcher in (self._timer, self._readable, self._again):
            if watcher is not None:
                watcher.stop()
                watcher.close()

    def _look(self) -> None:
        # What it has sent may stay unread: the descriptor would be readable for ever.
        self._readable.stop()
        if _has_left(self._number):
            self._stop(status.CANCELLED, "the client left")
            return
        if self._again is None:
            self._again = get_hub().loop.timer(LOOK_AGAIN_S)
        self._again.start(self._readable.start, self._look)

    def _stop(self, code: int, why: str) -> None:
        self._greenlet.throw(Stopped(code, why))


def _has_left(number: int) -> bool:
    # Neither a patched socket, which would wait, nor one that closes the descriptor.
    bare = get_original("socket", "socket")(fileno=number)
    try:
        if sys.platform == "linux" and bare.family in (socket.AF_INET, socket.AF_INET6):
            # Sees the end behind what was sent before it, and takes no server that is draining, and reads
            # no more, for a client that left.
            return bool(bare.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != _ESTABLISHED)
        return not bare.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:  # reset
        return True
    finally:
        bare.detach()
