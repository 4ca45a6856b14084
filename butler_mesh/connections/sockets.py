"""ZeroMQ sockets as ports: every frame's "more" flag read, every failure told apart.

Plain sockets, never ``zmq.green``: its machinery costs 15 µs a message where these cost 1 µs. The
hot calls go to pyzmq's backend directly, with plain integers for flags: ``SNDMORE | NOBLOCK`` of the
enum type costs more than sending a frame.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import secrets
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any
from uuid import uuid4

import zmq
from gevent.hub import get_hub
from zmq.backend import Socket as Backend

from butler_mesh.addresses import ipc_path, is_loopback, to_bind
from butler_mesh.clock import monotonic
from butler_mesh.connections.pump import Pump, Sent
from butler_mesh.errors import AddressError, AddressInUse
from butler_mesh.protocol.liveness import DEAD_AFTER_S
from butler_mesh.protocol.mesh import ATTACH_OVER, MAX_BODY_BYTES, Frame
from butler_mesh.protocol.outbox import Message

HIGH_WATER_MARK = 64
"""Messages, not records: 2 048 calls. Beyond them the outbox fills, and that is bounded in bytes."""
MAX_FRAMES = 1024
"""Frames of one message that are kept; the rest is drained and the message dropped."""
HALF_OPEN_S = 3.0
"""How long a router's kernel may leave what was sent unacknowledged: heartbeats are always on the way, so
a host that is gone is noticed. A process that is stopped is not; its silence is the machine's to judge."""
RECONNECT_S = (0.1, 1.0)
UNBIND_S = 0.25
"""How long a stop waits for libzmq's thread to stop listening: it takes well under a millisecond."""

_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_WATCHED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)

_NO_FRAMES: list[Frame] = []

_log = logging.getLogger("butler_mesh.connections")

_contexts: dict[int, zmq.Context[Any]] = {}


def context() -> zmq.Context[Any]:
    """Return this process's context: a fork must not touch its parent's."""
    pid = os.getpid()
    found = _contexts.get(pid)
    if found is None:
        # libzmq takes the routing ids it gives out from rand(), which nobody seeds: a peer that knows the
        # next one can claim it, and a ROUTER that meets its own number aborts the process.
        ctypes.CDLL(None).srand(secrets.randbits(32))
        found = _contexts[pid] = zmq.Context()
    return found


class SocketPort:
    """A ROUTER that is bound, or a DEALER that connects. Opened by ``listen`` and ``dial``."""

    def __init__(self, socket: zmq.Socket[Any], door: object, lock: IO[bytes] | None = None) -> None:
        self.door = door
        self.is_ready = True
        self._socket = socket
        self._is_router = socket.type == zmq.ROUTER
        # Held as long as an ipc path is bound: a second bind would succeed and steal it.
        self._lock = lock
        self._receive = Backend.recv.__get__(socket)
        self._send = Backend.send.__get__(socket)
        self._get = Backend.get.__get__(socket)
        self._pump: Pump | None = None
        # Before connect or bind: a handshake that nobody watched would never be told of.
        self._monitor = _watch(socket)
        # Whether what comes next is still the rest of a message of far too many frames.
        self._is_skipping = False
        self._watchers: list[Any] = []

    @property
    def endpoint(self) -> str:
        """Where it is bound or connected, with the port that was chosen for ``*``."""
        return bytes(self._socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    def start(self, pump: Pump) -> None:
        self._pump = pump
        loop = get_hub().loop
        for socket, callback in ((self._socket, self._wake), (self._monitor, self._read_monitor)):
            watcher = loop.io(int(socket.getsockopt(zmq.FD)), 1)
            watcher.start(callback)
            self._watchers.append(watcher)
        # What happened before the watchers ran has signalled the descriptor already.
        loop.run_callback(self._read_monitor)

    def receive(self) -> tuple[bytes, bytes, Sequence[Frame]] | None:
        if self._is_skipping:
            self._rest()
            self.look()
            return b"", b"", _NO_FRAMES
        try:
            # A ROUTER puts the routing id before at least one more frame, always.
            routing_id = self._receive(_NOBLOCK) if self._is_router else b""
            first = self._receive(_NOBLOCK, False)
        except zmq.Again:
            self.is_ready = False
            return None
        rest: list[Frame] | None = self._rest() if first.more else _NO_FRAMES
        # Asking costs less than the exception of a receive in vain.
        self.is_ready = bool(self._get(_EVENTS) & _POLLIN)
        if rest is None:
            # No dialect begins with an empty message: the machine counts it, and that is all.
            return routing_id, b"", _NO_FRAMES
        return routing_id, first.bytes, rest

    def send(self, routing_id: bytes, frames: Message) -> Sent:
        try:
            if self._is_router:
                # ROUTER_MANDATORY: this frame fails or the whole message goes.
                self._send(routing_id, _SNDMORE)
            if len(frames) == 1:
                self._send(frames[0], _NOBLOCK)
                return Sent.YES
            for frame in frames[:-1]:
                self._send_frame(frame, _SNDMORE)
            self._send_frame(frames[-1], _NOBLOCK)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return Sent.GONE
            raise
        return Sent.YES

    def look(self) -> bool:
        self.is_ready = bool(self._get(_EVENTS) & _POLLIN)
        return self.is_ready

    def close(self, linger_s: float) -> None:
        self.abandon()
        self._unbind()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(int(linger_s * 1000))
        if self._lock is not None:
            # Unlocked by closing; the file stays, for removing it would race with the next owner.
            self._lock.close()

    def abandon(self) -> None:
        for watcher in self._watchers:
            watcher.stop()
            watcher.close()
        self._watchers.clear()

    def _unbind(self) -> None:
        """Stop listening, and wait until that has happened: libzmq does it in its own thread, and the
        next to bind would find its port in use, or have its ipc file unlinked by us."""
        endpoint = self.endpoint
        if not (self._is_router and endpoint):
            return
        with suppress(zmq.ZMQError):
            self._socket.unbind(endpoint)
            until = monotonic() + UNBIND_S
            while self._monitor.poll(max(0, int((until - monotonic()) * 1000))):
                if _next_event(self._monitor) == zmq.EVENT_CLOSED:
                    return

    def _wake(self) -> None:
        self.is_ready = True
        if self._pump is not None:
            self._pump.turn()

    def _rest(self) -> list[Frame] | None:
        """Return the frames that follow the first; None where there are too many. Those are read a
        thousand at a time, for a message of a million must not hold the hub."""
        frames: list[Frame] = []
        was_skipping = self._is_skipping
        for _ in range(MAX_FRAMES - 1):
            frame = self._receive(_NOBLOCK, False)
            # Large frames are passed on as they are; small ones cost less as bytes.
            frames.append(frame if len(frame) > ATTACH_OVER else frame.bytes)
            if not frame.more:
                self._is_skipping = False
                return None if was_skipping else frames
        self._is_skipping = True
        return None

    def _send_frame(self, frame: Frame, flags: int) -> None:
        if isinstance(frame, zmq.Frame):
            self._send(frame, flags, False)
        else:
            # Copied, however large: to lend bytes to libzmq, pyzmq starts a thread that takes them back,
            # and where threads are patched that is a greenlet which blocks the hub.
            self._send(frame, flags)

    def _read_monitor(self) -> None:
        pump = self._pump
        while pump is not None and not self._monitor.closed:
            if pump.is_closed:
                self.abandon()
                return
            try:
                event = _next_event(self._monitor)
            except zmq.Again:
                return
            if event == zmq.EVENT_DISCONNECTED:
                pump.connection_lost(self)
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                pump.connection_made(self)


def listen(endpoint: str, door: object, *, max_body_bytes: int = MAX_BODY_BYTES) -> SocketPort:
    """Bind a ROUTER. Raises AddressInUse, for ipc too, and AddressError for an endpoint that cannot be."""
    endpoint = to_bind(endpoint)
    path = ipc_path(endpoint)
    lock = None if path is None else _lock(path, endpoint)
    socket = context().socket(zmq.ROUTER)
    _set_common(socket, endpoint)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    # An instance that is stopped stays connected until the control plane gives it up; a shorter
    # time-out here would make *blocked* the same as *dead*.
    socket.setsockopt(zmq.TCP_MAXRT, int(DEAD_AFTER_S * 1000))
    # The hard net behind 413: a batch of inline records, or one attachment, and room for its head.
    socket.setsockopt(zmq.MAXMSGSIZE, max_body_bytes + 2 * ATTACH_OVER)
    port = SocketPort(socket, door, lock)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        port.close(0)
        if error.errno == zmq.EADDRINUSE:
            raise AddressInUse(f"{endpoint} is in use by another process") from error
        raise AddressError(f"cannot bind {endpoint}: {error.strerror}") from error
    if not is_loopback(endpoint):
        _log.warning(
            "%s can be reached from other machines: whoever can connect can send requests, and may stop the "
            "process; filter the port, or bind to 127.0.0.1",
            port.endpoint,
        )
    return port


def dial(endpoint: str) -> SocketPort:
    """Connect a DEALER; it goes on trying for as long as it is open."""
    socket = context().socket(zmq.DEALER)
    _set_common(socket, endpoint)
    # Without it a send while the router is down succeeds, and arrives, stale, after its restart.
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.TCP_MAXRT, int(HALF_OPEN_S * 1000))
    socket.setsockopt(zmq.RECONNECT_IVL, int(RECONNECT_S[0] * 1000))
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, int(RECONNECT_S[1] * 1000))
    port = SocketPort(socket, None)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        port.close(0)
        raise AddressError(f"cannot connect to {endpoint}: {error.strerror}") from error
    return port


def _watch(socket: zmq.Socket[Any]) -> Any:
    """Return the end of a monitor that is never full: libzmq's thread waits where it cannot tell, and
    with it every connection of the process, which takes no more than a hub that computes for a while."""
    address = f"inproc://monitor-{uuid4().hex}"
    socket.monitor(address, _WATCHED)
    end = context().socket(zmq.PAIR)
    end.setsockopt(zmq.RCVHWM, 0)
    end.setsockopt(zmq.LINGER, 0)
    end.connect(address)
    return end


def _next_event(monitor: Any) -> int:
    # zmq_socket_monitor(3): frame 0 is a u16 event and an i32 value, in the machine's order. pyzmq's own
    # parser would import asyncio, a sixth of what we import (14 ms of 85).
    return int.from_bytes(monitor.recv_multipart(_NOBLOCK)[0][:2], sys.byteorder)


def _set_common(socket: zmq.Socket[Any], endpoint: str) -> None:
    # No ZMQ_HEARTBEAT_IVL. A pipe at its high-water mark is not read, so PINGs and PONGs are not seen and
    # a busy peer is cut off; and if the peer is reset meanwhile, the next one aborts the whole process
    # ("Assertion failed: !_io_error", libzmq 4.3.5). The mesh's own heartbeats and TCP_MAXRT see to it.
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.LINGER, 0)
    # Only where asked for: with it, 127.0.0.1 would read back as [::ffff:127.0.0.1].
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))


def _lock(path: str, endpoint: str) -> IO[bytes]:
    try:
        # Nobody else's to open: whoever can, can hold the lock, and keep the router from its path.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.fdopen(os.open(f"{path}.lock", flags, 0o600), "r+b")
    except OSError as error:
        raise AddressError(f"cannot bind {endpoint}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise AddressInUse(f"{endpoint} is in use by another process") from error
    wrong: str | None = None
    try:
        # Left behind by an owner that was killed; the lock says that nobody listens there.
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
        else:
            wrong = "what is there is not a socket"
    except FileNotFoundError:
        pass
    except OSError as error:
        wrong = error.strerror
    if wrong:
        lock.close()
        raise AddressError(f"cannot bind {endpoint}: {wrong}")
    return lock
