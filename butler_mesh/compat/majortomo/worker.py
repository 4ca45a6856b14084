"""Worker: takes a service's requests one by one, and answers each with frames, whole or in parts."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from gevent.hub import get_hub
from gevent.lock import RLock

from butler_mesh.compat.majortomo.error import Disconnected, StateError
from butler_mesh.compat.majortomo.frames import as_frames, registrable_name
from butler_mesh.compat.majortomo.hub import run_outside, turn
from butler_mesh.compat.majortomo.inbox import Inbox, Task

CONNECT_S = 0.1
"""How long ``connect`` waits for a broker that may not be there."""

_log = logging.getLogger("butler_mesh.majortomo")


class Worker:
    """A worker of the service ``service_name`` at the broker ``broker_url``.

    It finds a broker that comes late or again by itself, and is not given up while the program computes:
    heartbeats are sent by a thread of their own. So ``heartbeat_interval`` and ``heartbeat_timeout``
    (seconds) are not needed; they, ``zmq_context`` and ``zmq_linger`` are taken and not used.
    A worker belongs to the thread that connects it. Raises ValueError for a name that cannot be.
    """

    def __init__(
        self,
        broker_url: str,
        service_name: str | bytes,
        heartbeat_interval: float = 2.5,
        heartbeat_timeout: float = 10.0,
        zmq_context: object = None,
        zmq_linger: int = 2500,
    ) -> None:
        self.broker_url = broker_url
        self.service_name = registrable_name(service_name)
        self.heartbeat_interval = heartbeat_interval
        self._inbox: Inbox | None = None
        self._loop: Any = None
        # The request that was handed out last.
        self._task: Task | None = None
        # Whoever closes second comes back when the first is done.
        self._closing = RLock()

    def connect(self, reconnect: bool = False) -> None:
        """Register; where that was done before, only with ``reconnect``, which drops the present request.

        Returns after a tenth of a second at the latest, broker or not. Raises ValueError for a bad address.
        """
        if self.is_connected() and not reconnect:
            return
        self.close()
        inbox = Inbox(self.broker_url, self.service_name.decode())
        inbox.start()
        self._inbox, self._loop = inbox, get_hub().loop
        inbox.wait_until_registered(CONNECT_S)

    def is_connected(self) -> bool:
        """Tell whether requests may come; not whether a broker is there."""
        return self._inbox is not None

    def wait_for_request(self) -> tuple[bytes, list[bytes]]:
        """Wait for a request; return whom to answer, and its frames.

        The next one comes only when this one is answered, or its caller has gone. Raises Disconnected when
        the worker is not connected, or is closed meanwhile.
        """
        inbox = self._inbox
        while inbox is not None and (task := inbox.tasks.get()) is not None:
            if not task.over.is_set():
                task.is_handed_out = True
                self._task = task
                return task.token, task.frames
        raise Disconnected("the worker is not connected")

    def send_reply_final(self, client: bytes, frames: Iterable[bytes]) -> None:
        """Answer a request. It goes nowhere when the caller has gone meanwhile.

        Raises StateError unless ``client`` is whom the last request came from and is not answered yet,
        Disconnected, and TypeError for what is not bytes.
        """
        self._reply(client, frames, final=True)

    def send_reply_partial(self, client: bytes, frames: Iterable[bytes]) -> None:
        """Send part of an answer. Waits while the caller leaves too many unread; raises as the final one."""
        self._reply(client, frames, final=False)

    def send_reply_from_iterable(
        self, client: bytes, frames_iter: Iterable[Iterable[bytes]], final: Iterable[bytes] | None = None
    ) -> None:
        """Send parts, and then the final one if there is one; raises as that."""
        for frames in frames_iter:
            self.send_reply_partial(client, frames)
        if final is not None:
            self.send_reply_final(client, final)

    def close(self) -> None:
        """Leave. A request that was not answered fails for its caller at once; whoever waits for one gets
        Disconnected. May be called by a signal's handler."""
        run_outside(self._close)

    def _close(self) -> None:
        with self._closing:
            inbox, self._inbox, self._task = self._inbox, None, None
            if inbox is not None:
                inbox.tasks.put(None)
                inbox.close()

    def _wake(self) -> None:
        inbox = self._inbox
        if inbox is not None:
            self._loop.run_callback_threadsafe(inbox.tasks.put, None)

    def _reply(self, client: bytes, frames: Iterable[bytes], *, final: bool) -> None:
        listed = as_frames(frames)
        if self._inbox is None:
            raise Disconnected("the worker is not connected")
        task = self._task
        if task is None or task.token != client or task.is_answered:
            raise StateError("nobody waits for this reply: it was given, or another request came since")
        if task.over.is_set():
            _log.info("reply-dropped: its caller has gone")
        task.reply(listed, final=final)
        turn()

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class WorkerRequestsIterator:
    """The requests of a worker, one after the other; each is answered before the next is asked for.

    Iterating connects the worker and gives lists of frames, until ``stop`` or the worker is closed.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._client: bytes | None = None
        self._is_stopped = False

    def __iter__(self) -> Iterator[list[bytes]]:
        with self.worker:
            while not self._is_stopped:
                try:
                    self._client, frames = self.worker.wait_for_request()
                except Disconnected:
                    break
                yield frames

    def stop(self) -> None:
        """End the iteration when the present request is done with. May be called by a signal's handler, and
        from another thread."""
        self._is_stopped = True
        self.worker._wake()

    def stop_on_signal(self, sig_list: Iterable[int] = (signal.SIGINT, signal.SIGTERM)) -> None:
        """Make these signals stop the iteration. To be called in the main thread."""

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.stop()

        for number in sig_list:
            signal.signal(number, on_signal)

    def send_reply_final(self, frames: Iterable[bytes]) -> None:
        """Answer the present request. Raises StateError when there is none, or it was answered."""
        self.worker.send_reply_final(self._present(), frames)
        self._client = None

    def send_reply_partial(self, frames: Iterable[bytes]) -> None:
        """Send part of an answer to the present request; raises as the final one."""
        self.worker.send_reply_partial(self._present(), frames)

    def send_reply_from_iterable(
        self, frames_iter: Iterable[Iterable[bytes]], final: Iterable[bytes] | None = None
    ) -> None:
        """Send parts, and then the final one if there is one; raises as that."""
        self.worker.send_reply_from_iterable(self._present(), frames_iter, final)
        if final is not None:
            self._client = None

    def _present(self) -> bytes:
        if self._client is None:
            raise StateError("no request waits for a reply")
        return self._client
