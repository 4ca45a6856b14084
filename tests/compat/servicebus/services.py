"""Services as users of py-servicebus write them."""

from __future__ import annotations

from typing import Any

import gevent
from gevent.event import Event


class Add:
    """The documented one."""

    def on_call(self, request: Any, response: Any) -> None:
        response.send(sum(int(one) for one in request.get_params()))


class Fail:
    """Answers nothing, and says why in its own way."""

    def on_call(self, request: Any, response: Any) -> None:
        raise KeyError("no such thing")


class Silent:
    """Forgets to answer."""

    def on_call(self, request: Any, response: Any) -> None:
        pass


class Gate:
    """Notes what begins, and lets nothing end before it is opened."""

    background = False

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self.opened = Event()

    def on_call(self, request: Any, response: Any) -> None:
        self.on_message(request)
        response.send(request.get_params())

    def on_message(self, request: Any) -> None:
        self.begun.append(request.get_params())
        self.opened.wait()
        self.ended.append(request.get_params())


class Note:
    """Keeps the parameters of its messages."""

    def __init__(self) -> None:
        self.noted: list[Any] = []

    def on_message(self, request: Any) -> None:
        self.noted.append(request.get_params())


class GoesOn:
    """Answers, and works on."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def on_call(self, request: Any, response: Any) -> None:
        response.send("soon")
        gevent.sleep(0.05)
        self.done.append(request.get_event().id)
