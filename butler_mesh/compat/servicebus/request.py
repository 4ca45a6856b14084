"""A call or message in the hands of a service, and the way to answer it."""

from __future__ import annotations

from typing import Any

from gevent.event import AsyncResult

from butler_mesh.compat.servicebus.event import Event
from butler_mesh.compat.servicebus.sender import Sender


class Request:
    """One event, with a sender for calling on."""

    def __init__(self, event: Event, sender: Sender) -> None:
        self.event = event
        self.sender = sender

    def get_params(self) -> Any:
        """Return the parameters."""
        return self.event.params

    def get_event(self) -> Event:
        """Return the event."""
        return self.event

    def get_sender(self) -> Sender:
        """Return a sender; its connections are the agent's, and need not be closed."""
        return self.sender


class Response:
    """The one answer to a call."""

    def __init__(self) -> None:
        self._answer: AsyncResult[Any] = AsyncResult()

    @property
    def is_sent(self) -> bool:
        """Whether the caller has an answer."""
        return bool(self._answer.ready())

    def send(self, message: Any = None) -> None:
        """Answer, at once; the service may go on. A second answer reaches nobody."""
        if not self.is_sent:
            self._answer.set(message)

    def fail(self, error: BaseException) -> None:
        """Answer by an error, unless there was an answer."""
        if not self.is_sent:
            self._answer.set_exception(error, (type(error), error, error.__traceback__))

    def wait(self) -> Any:
        """Wait for the answer; raises the error."""
        return self._answer.get()
