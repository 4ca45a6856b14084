"""Where a worker's requests come in: one at a time, as the frames that their senders sent."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

from gevent.event import Event
from gevent.queue import Queue, SimpleQueue

from butler_mesh import Application, ServiceConnection, ServiceResponse, status
from butler_mesh.errors import InstanceLost, Stopped

# Flags of a request, as docs/protocol.rst has them: its caller reads parts; its body is frames, not JSON.
_STREAM = 0x08
_RAW = 0x10


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

    def parts(self, *, is_stream: bool) -> Generator[list[bytes], None, list[bytes]]:
        """Give the replies to the mesh as they come, the last as the value returned; for a caller that takes
        one reply all frames in that."""
        gathered: list[bytes] = []
        try:
            while True:
                frames, is_final = self._replies.get()
                if is_stream and not is_final:
                    yield frames
                    continue
                gathered += frames
                if is_final:
                    return gathered
        except Stopped as stopped:
            if stopped.status == status.UNAVAILABLE and self.is_handed_out:
                # 503 would say that it was never started, and have it sent again.
                raise InstanceLost("the worker left", status=status.INSTANCE_LOST) from None
            raise
        finally:
            self.over.set()
            if self._replies.full():
                # Whoever waits to put the next one is let go.
                self._replies.get_nowait()


class Inbox(Application):
    """Registers with the router and gathers what it sends: one task, until that has its last reply."""

    def __init__(self, broker_url: str, service: str) -> None:
        self.connection = ServiceConnection(broker_url, service, credit=1)
        super().__init__(self.connection, grace_s=0.0)
        # None wakes whoever waits, because the worker is closed.
        self.tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._is_stream = False

    def deliver(self, delivery: Any) -> bool:
        """Take a request from the mesh. One of JSON is a frame to us, whatever a path in it may say: clients
        of Majordomo, who know no paths, send what they like."""
        # Read by ``answer``, before another greenlet runs.
        self._is_stream = bool(delivery.flags & _STREAM)
        arrives: Any = delivery if delivery.flags & _RAW else _Verbatim(delivery)
        return super().deliver(arrives)

    def answer(self, kind: Any, message: Any) -> ServiceResponse:
        """Hand a request over; its replies come from the program."""
        body = message.raw_body
        if isinstance(body, str):
            body = body.encode("latin-1")
        frames = [body] if isinstance(body, bytes) else list(body)
        task = Task(message.conn_id.to_bytes(8), frames)
        self.tasks.put(task)
        return ServiceResponse(body=task.parts(is_stream=self._is_stream))


class _Verbatim:
    """A delivery whose JSON arrives untouched, in the body of one that nobody need parse."""

    def __init__(self, delivery: Any) -> None:
        self._delivery = delivery
        # Latin-1 has a character for every byte: there and back nothing changes.
        self.envelope = json.dumps({"body": delivery.envelope.decode("latin-1")}).encode()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._delivery, name)
