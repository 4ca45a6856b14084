"""One service of an agent: a request at a time, however many come."""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import copy_context
from typing import Any

from gevent import GreenletExit
from gevent.event import Event as Signal
from gevent.pool import Group

from butler_mesh.compat.servicebus.event import Event
from butler_mesh.compat.servicebus.request import Request, Response
from butler_mesh.compat.servicebus.sender import Sender
from butler_mesh.errors import RemoteError, RequestFailed, Unavailable
from butler_mesh.status import SERVER_ERROR, TOO_MANY

Method = Callable[[Any, Request, Response], None]

_log = logging.getLogger("butler_mesh.service")


class Line:
    """Lets one in at a time, in the order in which they came: gevent's locks favour whoever comes last."""

    def __init__(self) -> None:
        self._waiting: deque[Signal] = deque()
        self._is_taken = False

    def __enter__(self) -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        turn = Signal()
        self._waiting.append(turn)
        try:
            turn.wait()
        except BaseException:
            if turn.is_set():
                self.__exit__()
            else:
                self._waiting.remove(turn)
            raise

    def __exit__(self, *error: object) -> None:
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self._is_taken = False


class ServiceRunner:
    """Runs ``on_call`` and ``on_message`` of one object, of a copy each time, in greenlets of ``group``.

    One at a time, in the order in which they came; side by side where ``background`` is true of the object.
    """

    def __init__(self, service: Any, sender: Sender, queue_len: int, group: Group) -> None:
        self._service = service
        self._sender = sender
        self._queue_len = queue_len
        self._group = group
        self._present = 0
        is_background = getattr(service, "background", False)
        # How many requests it works on at once.
        self.width = max(1, queue_len) if is_background else 1
        self._turn: Any = nullcontext() if is_background else Line()

    def call(self, event: Event) -> Any:
        """Run ``on_call`` and return what it answered, as soon as it did.

        Raises what it let out, RemoteError when it ended without an answer, Unavailable (429) where
        ``queue_len`` requests wait already. When the caller gives up, it is stopped.
        """
        if self._present > self._queue_len:
            raise Unavailable("too many calls wait for the service", status=TOO_MANY, retry_after_s=1.0)
        return self._run(_on_call, event)

    def message(self, event: Event) -> None:
        """Run ``on_message`` to its end; raises what it let out. Messages are never refused: they wait."""
        self._run(_on_message, event)

    def _run(self, method: Method, event: Event) -> Any:
        request, response = Request(event, self._sender), Response()
        # In the request's context: calls that it makes inherit its deadline.
        worker = self._group.spawn(copy_context().run, self._in_turn, method, request, response)
        self._present += 1
        worker.rawlink(self._ended)
        try:
            return response.wait()
        except BaseException:
            worker.kill(block=False)
            raise

    def _ended(self, worker: object) -> None:
        self._present -= 1

    def _in_turn(self, method: Method, request: Request, response: Response) -> None:
        try:
            with self._turn:
                # What it keeps in itself belongs to this request, also while others run.
                method(copy.copy(self._service), request, response)
        except BaseException as error:
            # SystemExit and others' timeouts as well: here they would end the agent, or reach nobody.
            if response.is_sent and not isinstance(error, GreenletExit):
                event = request.event
                _log.exception("failed-after-its-answer %s.%s", event.category, event.service)
            response.fail(_let_out(error))
            if isinstance(error, GreenletExit):
                raise


def _on_call(service: Any, request: Request, response: Response) -> None:
    service.on_call(request, response)
    event = request.event
    response.fail(RemoteError(f"{event.category}.{event.service} sent no response", status=SERVER_ERROR))


def _on_message(service: Any, request: Request, response: Response) -> None:
    service.on_message(request)
    response.send()


def _let_out(error: BaseException) -> Exception:
    """Return what stands for what a service let out: never what would mean that it was not begun."""
    if isinstance(error, Exception) and not isinstance(error, RequestFailed):
        return error
    kind = error.type if isinstance(error, RemoteError) and error.type else type(error).__name__
    message = error.message if isinstance(error, RequestFailed) else str(error)
    failed = RemoteError(message or kind, status=SERVER_ERROR, type=kind)
    failed.__cause__ = error
    return failed
