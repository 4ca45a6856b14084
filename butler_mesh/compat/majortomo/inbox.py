"""Where a worker's requests come in: one at a time, as the frames that their senders sent."""

from __future__ import annotations

from collections.abc import Generator
from itertools import count

from gevent.event import Event
from gevent.queue import Queue, SimpleQueue

from butler_mesh import Service, status
from butler_mesh.errors import Stopped, Unavailable


class Task:
    """A request in the hands of the program. The mesh's side of it is a greenlet that takes the replies."""

    def __init__(self, token: bytes, frames: list[bytes]) -> None:
        self.token = token
        self.frames = frames
        self.is_handed_out = False
        # The program has given its last reply.
        self.is_answered = False
        # Set when nobody takes replies any more: the last is on its way, or the caller has gone.
        self.over = Event()
        # (frames, whether they are the last). One at a time: the reader's pace is the sender's.
        self._replies: Queue[tuple[list[bytes], bool]] = Queue(maxsize=1)

    def reply(self, frames: list[bytes], *, final: bool) -> None:
        """Pass a reply on. Waits while the caller takes no more, with the last until it is on its way. What
        comes too late goes nowhere."""
        self.is_answered = final
        if not self.over.is_set():
            self._replies.put((frames, final))
            if final:
                self.over.wait()

    def parts(self) -> Generator[list[bytes], None, list[bytes]]:
        """Give the replies to the mesh as they come, the last as the value returned."""
        try:
            while True:
                frames, is_final = self._replies.get()
                if is_final:
                    return frames
                yield frames
        except Stopped as stopped:
            if stopped.status == status.INSTANCE_LOST and not self.is_handed_out:
                # Nobody has seen it: another worker may have it.
                raise Unavailable("the worker left", status=status.UNAVAILABLE) from None
            raise
        finally:
            self.over.set()
            if self._replies.full():
                # Whoever waits to put the next one is let go.
                self._replies.get_nowait()


class Inbox(Service):
    """Registers with the router and gathers what it sends: one task, until that has its last reply."""

    def __init__(self, broker_url: str, service: str) -> None:
        super().__init__(broker_url, service, credit=1, grace=0.0, frames=True)
        # None wakes whoever waits, because the worker is closed.
        self.tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._tokens = count(1)
        self.register_function(self._take, "/")

    def _take(self, *frames: bytes) -> Generator[list[bytes], None, list[bytes]]:
        task = Task(next(self._tokens).to_bytes(8), list(frames))
        self.tasks.put(task)
        return task.parts()
