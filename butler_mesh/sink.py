"""Sink: collects the events that service instances push."""

from __future__ import annotations

import atexit
import os
import weakref
from types import TracebackType
from typing import Any, Self

from gevent.event import Event
from gevent.hub import get_hub

from butler_mesh import codec
from butler_mesh.addresses import check_endpoint
from butler_mesh.clock import monotonic
from butler_mesh.connections.pump import Pump
from butler_mesh.connections.sockets import dial, listen
from butler_mesh.errors import Closed, DeadlineExceeded, UsageError
from butler_mesh.protocol.member import Phase
from butler_mesh.protocol.mesh import MAX_BODY_BYTES
from butler_mesh.protocol.sink import SinkProtocol, SourceProtocol

DEFAULT_SINK = "tcp://127.0.0.1:5558"

# Those that a program may end without closing: what they were given to send must not end with it.
_open_senders: weakref.WeakSet[SinkSender] = weakref.WeakSet()


class Sink:
    """Listens at ``endpoint`` for what ``service.sink.send`` sends. Raises AddressInUse."""

    def __init__(self, endpoint: str = DEFAULT_SINK) -> None:
        check_endpoint(endpoint)
        self._machine = SinkProtocol(monotonic())
        self._arrived = Event()
        self._pump = Pump(self._machine, after=self._after, logger="butler_mesh.sink")
        try:
            port = listen(endpoint, self._machine.door)
        except BaseException:
            self._pump.close()
            raise
        self.endpoint = port.endpoint
        self._pump.attach(port)
        self._is_closed = False

    def get_message(self, timeout: float | None = None) -> Any:
        """Wait for the next event; DeadlineExceeded when none came within ``timeout`` seconds.

        Events that wait for their reader are kept, ten thousand of them; more are counted and dropped.
        """
        until = None if timeout is None else monotonic() + timeout
        while True:
            while self._machine.events:
                try:
                    return codec.loads(self._machine.pop())
                except ValueError:
                    self._machine.counters.add("dropped.malformed")
            if self._is_closed:
                raise Closed("the sink is closed")
            self._arrived.clear()
            left = None if until is None else until - monotonic()
            if left is not None and left <= 0:
                raise DeadlineExceeded("no event came")
            self._arrived.wait(left)

    @property
    def dropped(self) -> int:
        """How many events were dropped because nobody read those before them."""
        return self._machine.counters["dropped.full"]

    def close(self) -> None:
        """Stop listening; a waiting ``get_message`` raises Closed."""
        self._is_closed = True
        self._pump.close()
        self._arrived.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _after(self, now: float) -> bool:
        if self._machine.events:
            self._arrived.set()
        return False


class SinkSender:
    """A service's way to its sink; connects at the first event."""

    def __init__(self, endpoint: str) -> None:
        check_endpoint(endpoint)
        self.endpoint = endpoint
        self._machine: SourceProtocol | None = None
        self._pump: Pump | None = None
        self._pid = 0
        self._hub: object = None
        self._changed = Event()

    def send(self, event: Any) -> bool:
        """Send one event (any JSON value) and return at once; False when too much waits already.

        Raises NotSerializable, and UsageError for an event over 16 MiB.
        """
        data = codec.dumps(event)
        if len(data) > MAX_BODY_BYTES:
            raise UsageError(f"an event of {len(data)} bytes is over {MAX_BODY_BYTES}")
        if self._pump is None or self._machine is None or self._pid != os.getpid():
            if self._pump is not None:
                self._pump.abandon()
            self._machine = SourceProtocol(monotonic())
            self._pump = Pump(self._machine, after=self._after, logger="butler_mesh.sink")
            self._pump.attach(dial(self.endpoint))
            self._pid = os.getpid()
            self._hub = get_hub()
            _open_senders.add(self)
        sent = self._machine.send(data)
        self._pump.arm(monotonic())
        return sent

    def close(self, drain: float = 1.0) -> None:
        """Wait up to ``drain`` seconds until the sink has everything, then close."""
        machine, pump = self._machine, self._pump
        self._machine = self._pump = None
        if machine is None or pump is None:
            return
        until = monotonic() + drain
        while not machine.is_idle and monotonic() < until:
            self._changed.clear()
            self._changed.wait(max(0.0, until - monotonic()))
        machine.goodbye()
        pump.arm(monotonic())
        while machine.phase is not Phase.LEFT and monotonic() < until:
            self._changed.clear()
            self._changed.wait(max(0.0, until - monotonic()))
        pump.close()

    def _after(self, now: float) -> bool:
        self._changed.set()
        return False


@atexit.register
def _close_senders() -> None:
    until = monotonic() + 1.0
    for sender in list(_open_senders):
        if sender._pid == os.getpid() and sender._hub is get_hub():
            sender.close(max(0.0, until - monotonic()))
