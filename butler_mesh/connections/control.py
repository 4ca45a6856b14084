"""The second plane: a native thread that speaks for an instance while its hub is busy.

It has its own ZeroMQ context and connections, and touches neither gevent nor logging: it must run while
the hub computes, and a greenlet primitive would tie it to the hub. What it knows of the work it reads
from plain attributes; what it says is how long the hub has not turned. It can report, never register
or reply: a router takes its word only for the (wid, epoch) of a live work connection.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import zmq
from gevent import monkey
from gevent.hub import get_hub

from butler_mesh import codec
from butler_mesh.clock import monotonic
from butler_mesh.protocol import mesh
from butler_mesh.protocol.instance import InstanceProtocol
from butler_mesh.protocol.member import Member

TURN_INTERVAL_S = 0.25
"""How often the hub shows that it turns: lag below this is not told from none."""
_WAKE_MS = 250

_log = logging.getLogger("butler_mesh.service")
_STALE_BYTES = 2048
"""Some twenty heartbeats that could not be sent: nobody will want them."""

# The originals, whether or not the program has patched: a patched lock would be a greenlet's.
_start_new_thread: Any = monkey.get_original("_thread", "start_new_thread")
_allocate_lock: Any = monkey.get_original("_thread", "allocate_lock")


class ControlProtocol(Member):
    """Reports for one registration of one instance; greets anew when that changes."""

    role = "control"

    def __init__(self, now: float, instance: InstanceProtocol, report: dict[str, float]) -> None:
        super().__init__(now)
        self._instance = instance
        self._report = report
        self.epoch = ""

    def hello(self) -> dict[str, Any]:
        self.epoch = self._instance.epoch
        return {"wid": self._instance.identity.wid, "epoch": self.epoch}

    def is_outdated(self) -> bool:
        """Whether the instance has registered anew since we last greeted."""
        return self._instance.is_registered and self.epoch != self._instance.epoch

    def _beat(self, now: float) -> None:
        lag_s = max(0.0, now - self._report["turned_at"] - TURN_INTERVAL_S)
        beat = {
            "lag_ms": int(lag_s * 1000),
            "in_flight": self._instance.intake.running,
            "rss_kib": _rss_kib(),
        }
        self.outbox.add(mesh.HEARTBEAT, payload=codec.dumps(beat))


class ControlPlane:
    """The thread, and the hub's side of it: one timer that shows that the hub turns."""

    def __init__(self, links: Sequence[tuple[str, InstanceProtocol]]) -> None:
        self._links = links
        # Written by the hub, read by the thread; a float's assignment is atomic.
        self._report = {"turned_at": monotonic()}
        self._wake_read, self._wake_write = os.pipe()
        self._done = _allocate_lock()
        # What broke in the thread, which must not log.
        self.fault = ""
        self._timer = get_hub().loop.timer(TURN_INTERVAL_S, TURN_INTERVAL_S)

    def start(self) -> None:
        """Start reporting."""
        self._timer.start(self._turned)
        self._done.acquire()
        _start_new_thread(self._run, ())

    def stop(self) -> None:
        """End the thread and wait for it: it looks up at once, so this takes a few milliseconds."""
        self._timer.stop()
        self._timer.close()
        os.write(self._wake_write, b"x")
        self._done.acquire()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def abandon(self) -> None:
        """In a fork there is no thread to stop, and the pipe and timer are the parent's."""
        self._timer.stop()
        self._timer.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _turned(self) -> None:
        if self.fault:
            _log.error("control-failed %s", self.fault)
            self.fault = ""
        self._report["turned_at"] = monotonic()

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._report_until_broken():
                pass
        finally:
            self._done.release()

    def _report_until_broken(self) -> bool:
        """Speak for the instance; True when something broke, and it is worth beginning anew."""
        context: zmq.Context[Any] = zmq.Context()
        sockets: list[tuple[Any, ControlProtocol]] = []
        poller = zmq.Poller()
        poller.register(self._wake_read, zmq.POLLIN)
        try:
            for endpoint, instance in self._links:
                socket = context.socket(zmq.DEALER)
                # At once: the context's end waits for every socket to be closed.
                sockets.append((socket, ControlProtocol(monotonic(), instance, self._report)))
                socket.setsockopt(zmq.IMMEDIATE, 1)
                socket.setsockopt(zmq.LINGER, 0)
                socket.setsockopt(zmq.IPV6, int("[" in endpoint))
                socket.connect(endpoint)
                poller.register(socket, zmq.POLLIN)
            while self._wake_read not in dict(poller.poll(_WAKE_MS)):
                now = monotonic()
                for socket, machine in sockets:
                    _converse(socket, machine, now)
        except Exception as error:
            # Nobody else speaks for a busy hub. The hub logs what it finds here.
            self.fault = repr(error)
            for socket, _ in sockets:
                poller.unregister(socket)
            return self._wake_read not in dict(poller.poll(_WAKE_MS))
        finally:
            for socket, _ in sockets:
                socket.close(0)
            context.term()
        return False


def _converse(socket: Any, machine: ControlProtocol, now: float) -> None:
    """Read, tick, send; a full or absent pipe keeps the rest for the next time."""
    with suppress(zmq.Again):
        while True:
            frames = socket.recv_multipart(zmq.NOBLOCK)
            machine.receive(None, b"", frames[0], frames[1:], now)
    if machine.is_outdated():
        machine.outbox.drop()
        machine.connection_made(None, now)
    machine.tick(now)
    machine.dirty.clear()
    machine.notes.clear()
    outbox = machine.outbox
    outbox.is_dirty = False
    outbox.seal(now)
    with suppress(zmq.Again):
        while outbox.messages:
            socket.send_multipart(outbox.messages[0][1], zmq.NOBLOCK)
            outbox.sent()
    if outbox.pending_bytes > _STALE_BYTES:
        outbox.drop()


def _rss_kib() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * (resource.getpagesize() // 1024)
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
