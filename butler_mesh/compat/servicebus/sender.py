"""Calls and messages to ``NODE.category.name``."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import gevent

from butler_mesh.compat.servicebus.configuration import Configuration
from butler_mesh.compat.servicebus.event import Event
from butler_mesh.compat.servicebus.routes import PING_S, MeshRoute, Route, XmlRoute
from butler_mesh.errors import DeadlineExceeded, InstanceLost, NotFound, Unavailable, UsageError
from butler_mesh.status import TOO_MANY

T = TypeVar("T")

CALL_S = 300.0
BEHIND_S = 30.0
"""How long a broker through which a node was not reached is asked last."""


class Sender:
    """Calls services by way of the first broker that works, in the order of the hosts.

    With ``smart_route`` a node is looked for at all the brokers, side by side, before it is first called. All
    failures are errors of the mesh: NotFound for a node or service that is not there, Unavailable when no
    broker is: nothing was begun, and the next broker is tried. Not tried again are DeadlineExceeded,
    RemoteError for what a service let out, InstanceLost when a broker was lost with the call on its way, and
    Unavailable with status 429 when ``queue_len`` calls wait already.
    """

    def __init__(self, configuration: Configuration, smart_route: bool = True) -> None:
        self.configuration = configuration
        self.smart_route = smart_route
        self._routes: list[Route] = []
        self._pid = 0
        # (node, route) -> since when it has not worked.
        self._behind: dict[tuple[str, Route], float] = {}
        self._known: set[str] = set()

    def call(
        self, target: str, params: Any = None, timeout: float = CALL_S, reverse: bool = False
    ) -> tuple[str, Any]:
        """Call ``NODE.category.name``; return (event id, what the service answered).

        ``reverse`` turns the order of the hosts round.
        """
        node, event = _event(target, params)
        until = time.monotonic() + timeout
        if self.smart_route and node not in self._known and len(self._open()) > 1:
            self._known.add(node)
            self._ping_each(node, min(PING_S, self._patience(until, len(self._routes) + 1)))
        answer = self._try_each(
            node, reverse, lambda route, left: route.call(node, event, until, self._patience(until, left))
        )
        return event.id, answer

    def send(self, target: str, params: Any = None, reverse: bool = False) -> None:
        """Send a message to ``NODE.category.name``, which nobody answers; returns when it is stored.

        Raises NotFound where no broker has such a service, present or away, otherwise as ``call``. (By the
        XML wire the broker has it, but for a node that may not have the service.)
        """
        node, event = _event(target, params)
        self._try_each(node, reverse, lambda route, left: route.send(node, event))

    def ping(self, target: str, timeout: float = PING_S) -> bool:
        """Tell whether a node can be reached."""
        return any(route.ping(target, timeout) for route in self._ordered(target, reverse=False))

    def ping_all(self, target: str, timeout: float = PING_S) -> tuple[int, int]:
        """Return (through how many brokers a node answers, how many there are)."""
        answers = self._ping_each(target, timeout)
        return sum(answers.values()), len(answers)

    def close(self) -> None:
        """Close the connections; the next call opens others."""
        routes, self._routes = self._routes, []
        self._behind.clear()
        self._known.clear()
        for route in routes:
            route.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> list[Route]:
        if self._pid != os.getpid():
            # In a fork nothing is open any more.
            self._routes, self._pid = [], os.getpid()
        if not self._routes:
            kind = XmlRoute if self.configuration.wire == "xml" else MeshRoute
            self._routes = [kind(self.configuration, host) for host in self.configuration.hosts]
        return self._routes

    def _patience(self, until: float, left: int) -> float:
        """Return how long to wait for a broker's first word, with so many of them left to try."""
        share_s = self.configuration.socket_timeout / len(self.configuration.hosts)
        return max(0.0, min(share_s, (until - time.monotonic()) / left))

    def _try_each(self, node: str, reverse: bool, use: Callable[[Route, int], T]) -> T:
        routes = self._ordered(node, reverse)
        failed: Exception | None = None
        for n, route in enumerate(routes):
            try:
                return use(route, len(routes) - n)
            except (NotFound, Unavailable) as error:
                if error.status == TOO_MANY:
                    # The node's own word, and the same at any broker.
                    raise
                # Never begun: another broker may know better.
                self._behind[node, route] = time.monotonic()
                failed = failed or error
            except (InstanceLost, DeadlineExceeded):
                self._behind[node, route] = time.monotonic()
                raise
        assert failed is not None
        raise failed

    def _ordered(self, node: str, reverse: bool) -> list[Route]:
        """Return the routes in the order of the hosts, those that did not work lately last."""
        routes = self._open()[::-1] if reverse else self._open()
        late = time.monotonic() - BEHIND_S
        return sorted(routes, key=lambda route: self._behind.get((node, route), late) > late)

    def _ping_each(self, node: str, timeout: float) -> dict[Route, bool]:
        asking = {route: gevent.spawn(route.ping, node, timeout) for route in self._open()}
        answers = {route: bool(asked.get()) for route, asked in asking.items()}
        for route, is_there in answers.items():
            if is_there:
                self._behind.pop((node, route), None)
            else:
                self._behind[node, route] = time.monotonic()
        return answers


class SharedSender(Sender):
    """What a request is given: the agent's connections, which nobody else may close."""

    def close(self) -> None:
        """Do nothing: the agent closes them when it stops."""

    def close_all(self) -> None:
        """Close the connections."""
        super().close()


def _event(target: str, params: Any) -> tuple[str, Event]:
    # A node is often called by its host, whose name may have dots.
    parts = target.rsplit(".", 2)
    if len(parts) != 3 or not all(parts):
        raise UsageError(f"{target!r} is no target: those are NODE.category.name")
    node, category, name = parts
    return node, Event(secrets.token_hex(16), category, name, params)
