"""What AMQP's driver stands on: the hub's loop as pika wants to see it, and one timer for many deadlines.

pika's own adapter opens a pipe for each connection and makes a new watcher each time there is something
to write. Here nothing is opened, so that nothing can be left behind by a reconnection, and a watcher
lives as long as its socket. Everything runs in the hub and none of it may block; no other thread may
call it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Generic, TypeVar

import gevent
import gevent.socket
from gevent.hub import get_hub
from pika.adapters.utils.io_services_utils import SocketConnectionMixin, StreamingConnectionMixin
from pika.adapters.utils.nbio_interface import (
    AbstractFileDescriptorServices,
    AbstractIOReference,
    AbstractIOServices,
    AbstractTimerReference,
)

from butler_mesh.clock import monotonic
from butler_mesh.protocol.wheel import NEVER, Wheel

T = TypeVar("T")

READ, WRITE = 1, 2  # libev's numbers

Callback = Callable[[], object]


class Alarm(Generic[T]):
    """Entries by their deadlines, under one timer: ``on_due`` is called with each whose time has come."""

    def __init__(self, on_due: Callable[[T], None]) -> None:
        self._wheel: Wheel[T] = Wheel()
        self._on_due = on_due
        self._timer: Any = get_hub().loop.timer(0.0)
        self._rings_at = NEVER
        self._has_looked = False

    def add(self, entry: T, deadline: float) -> set[T]:
        """Put an entry in; the returned set is what to discard it from when it is settled before."""
        slot = self._wheel.add(entry, deadline)
        if deadline < self._rings_at:
            self._set(deadline)
        return slot

    def close(self) -> None:
        """Stop the timer, for good."""
        self._timer.stop()
        self._timer.close()
        self._rings_at = -NEVER

    def _set(self, at: float) -> None:
        self._rings_at = at
        if at != NEVER:
            self._start(max(0.0, at - monotonic()))

    def _start(self, after_s: float) -> None:
        self._timer.stop()
        self._timer.close()
        self._timer = get_hub().loop.timer(after_s)
        self._timer.start(self._ring)

    def _ring(self) -> None:
        # A process that stood still finds its deadlines passed and the answers unread, both in one
        # turn: what came is read before anything is given up.
        if not self._has_looked:
            self._has_looked = True
            self._start(0.0)
            return
        self._has_looked = False
        self._rings_at = NEVER
        for entry in self._wheel.pop_due(monotonic()):
            self._on_due(entry)
        due = self._wheel.next_due()
        if due < self._rings_at:
            self._set(due)


class _Timer(AbstractTimerReference):
    """A call that was put off, to be cancelled once or never."""

    def __init__(self, delay_s: float, callback: Callback, running: set[_Timer]) -> None:
        self._callback = callback
        self._running = running
        running.add(self)
        self._timer: Any = get_hub().loop.timer(delay_s)
        self._timer.start(self._ring)

    def cancel(self) -> None:
        self._running.discard(self)
        self._timer.stop()
        self._timer.close()

    def _ring(self) -> None:
        self.cancel()
        self._callback()


class _Resolving(AbstractIOReference):
    """A name that is being looked up."""

    def __init__(self, look_up: Callable[[], Any], on_done: Callable[[Any], None]) -> None:
        self._on_done: Callable[[Any], None] | None = on_done
        self._greenlet = gevent.spawn(self._run, look_up)

    def cancel(self) -> bool:
        is_pending, self._on_done = self._on_done is not None, None
        self._greenlet.kill(block=False)
        return is_pending

    def _run(self, look_up: Callable[[], Any]) -> None:
        try:
            result = look_up()
        except OSError as error:
            result = error
        # In the hub, as pika's callbacks run there, and one that waits would be an error.
        get_hub().loop.run_callback(self._tell, result)

    def _tell(self, result: Any) -> None:
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(result)


class HubServices(
    SocketConnectionMixin,
    StreamingConnectionMixin,
    AbstractIOServices,
    AbstractFileDescriptorServices,
):
    """The hub's loop for one connection: what pika calls AbstractIOServices."""

    def __init__(self) -> None:
        self._loop: Any = get_hub().loop
        # (descriptor, READ or WRITE) -> watcher. That of a descriptor that is read rests when there
        # is nothing to write: to make one each time costs more than the write.
        self._watchers: dict[tuple[int, int], Any] = {}
        self._timers: set[_Timer] = set()
        self._resolving: set[_Resolving] = set()
        self._is_severed = False
        self._on_writable: Callback | None = None

    def write_now(self) -> None:
        """Write what waits for the socket: it nearly always has room, and needs no asking whether."""
        if self._on_writable is not None:
            self._on_writable()

    def sever(self) -> None:
        """Let go of the connection without a word, and without one to those who share its socket.

        A fork has its parent's socket: to shut that down would cut the parent off. So /dev/null takes its
        place, and pika is left to find that nothing can be read there.
        """
        self._is_severed = True
        for timer in list(self._timers):
            timer.cancel()
        for resolving in self._resolving:
            resolving.cancel()
        callbacks = [watcher.callback for watcher in self._watchers.values() if watcher.active]
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in {fd for fd, _ in self._watchers}:
            self._close_watchers(fd)
            os.dup2(null, fd, inheritable=False)
        os.close(null)
        for callback in callbacks:
            with suppress(Exception):
                callback()

    # --- what pika asks for -------------------------------------------------------------------

    def get_native_ioloop(self) -> Any:
        return self._loop

    def close(self) -> None:
        """Nothing is ours to close: the loop is everybody's."""

    def run(self) -> None:
        raise NotImplementedError("the hub runs by itself")

    stop = run

    def add_callback_threadsafe(self, callback: Callback) -> None:
        if self._is_severed:
            callback()
        else:
            self._loop.run_callback_threadsafe(callback)

    def call_later(self, delay: float, callback: Callback) -> _Timer:
        return _Timer(delay, callback, self._timers)

    def getaddrinfo(
        self,
        host: str,
        port: int,
        on_done: Callable[[Any], None],
        family: int = 0,
        socktype: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> AbstractIOReference:
        # A number is no name: looking it up is left to no thread, and to no name server.
        resolve = socket.getaddrinfo if _is_number(host) else gevent.socket.getaddrinfo
        resolving = _Resolving(lambda: resolve(host, port, family, socktype, proto, flags), on_done)
        self._resolving = {resolving}
        return resolving

    def set_reader(self, fd: int, on_readable: Callback) -> None:
        self._watch(fd, READ, on_readable)

    def remove_reader(self, fd: int) -> bool:
        return self._rest(fd, READ)

    def set_writer(self, fd: int, on_writable: Callback) -> None:
        self._on_writable = on_writable
        self._watch(fd, WRITE, on_writable)

    def remove_writer(self, fd: int) -> bool:
        self._on_writable = None
        return self._rest(fd, WRITE)

    def _watch(self, fd: int, event: int, callback: Callback) -> None:
        watcher = self._watchers.get((fd, event))
        if watcher is None:
            watcher = self._watchers[fd, event] = self._loop.io(fd, event)
        elif watcher.active:
            watcher.callback = callback
            return
        watcher.start(callback)

    def _rest(self, fd: int, event: int) -> bool:
        watcher = self._watchers.get((fd, event))
        if watcher is None:
            return False
        was_active = bool(watcher.active)
        watcher.stop()
        if not any(other.active for (its, _), other in self._watchers.items() if its == fd):
            # The descriptor is about to be closed, and its number somebody else's.
            self._close_watchers(fd)
        return was_active

    def _close_watchers(self, fd: int) -> None:
        for event in (READ, WRITE):
            watcher = self._watchers.pop((fd, event), None)
            if watcher is not None:
                watcher.stop()
                watcher.close()


def _is_number(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
