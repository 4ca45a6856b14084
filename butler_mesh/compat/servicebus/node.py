"""A node in the mesh: a service for its calls, one for the messages of each service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

import gevent
from gevent.event import Event as Signal

from butler_mesh import Service as CoreService
from butler_mesh.compat.servicebus.configuration import Configuration, message_service, service_name
from butler_mesh.compat.servicebus.event import Event
from butler_mesh.compat.servicebus.old_peers import OldPeers
from butler_mesh.compat.servicebus.routes import MESSAGE, path

CREDIT = 0xFFFF
"""All calls are taken at once and refused where their line is full, so that it keeps no other waiting."""

MESSAGES_FIRST_S = 1.0
"""How long a start waits for the queues of messages: some milliseconds, but where no broker is there yet."""


class Bus(Protocol):
    """What is needed of a ServiceBus."""

    configuration: Configuration

    def call(self, event: Event) -> Any: ...
    def message(self, event: Event) -> None: ...
    def takes(self, event: Event) -> bool: ...
    def begin(self) -> None: ...
    def end(self, grace: float) -> None: ...


class Node(CoreService):
    """The service that answers a node's calls, and what begins and ends with it.

    The messages of each message service wait in a queue of their own, with the broker: as many are handed out
    as are worked on.
    """

    def __init__(self, bus: Bus) -> None:
        configuration = bus.configuration
        super().__init__(
            configuration.address(*configuration.hosts, service=service_name(configuration.node_name)),
            passphrase=configuration.secret_token,
            independent=True,
            credit=CREDIT,
        )
        self._bus = bus
        self._messages: list[CoreService] = []
        self.old_peers = OldPeers(bus) if configuration.wire == "xml" else None
        # Whether ``run`` is to end it; whether what is added has to be started; whether it is being closed.
        self._is_running = self._has_started = self._is_closing = False
        self._is_over = Signal()
        self.register_function(lambda: "PONG", "PING")

    def add_call(self, category: str, name: str) -> None:
        """Answer calls of a service."""
        self.register_function(_function(self._bus.call, category, name), path(category, name))

    def add_message(self, category: str, name: str, credit: int) -> None:
        """Take a service's messages, ``credit`` of them at once."""
        configuration = self._bus.configuration
        service = CoreService(
            configuration.address(*configuration.hosts),
            message_service(configuration.node_name, category, name),
            passphrase=configuration.secret_token,
            independent=True,
            durable=True,
            credit=credit,
        )
        service.register_function(_function(self._bus.message, category, name), MESSAGE)
        self._messages.append(service)
        if self._has_started and not self._is_closing:
            service.start()

    def run(self) -> None:
        self._is_running = True
        super().run()

    def start(self) -> Self:
        self._bus.begin()
        self._has_started = True
        for service in self._messages:
            service.start()
        # First, so that to a node that answers a ping messages can be sent.
        gevent.joinall(self._await_messages(MESSAGES_FIRST_S))
        if self._is_closing:
            return self
        super().start()
        if self.old_peers is not None:
            self.old_peers.start()
        return self

    def wait_until_registered(self, timeout: float = 5.0) -> bool:
        """Wait until each queue is read at one broker; False when one is at none in ``timeout`` seconds.

        Raises what the brokers refuse py-servicebus's queue with.
        """
        waiting = self._await_messages(timeout)
        waiting.append(gevent.spawn(super().wait_until_registered, timeout))
        try:
            is_read = self.old_peers is None or self.old_peers.wait_until_registered(timeout)
            return is_read and all(done.get() for done in waiting)
        finally:
            gevent.killall(waiting)

    def _await_messages(self, timeout: float) -> list[gevent.Greenlet[..., bool]]:
        return [gevent.spawn(one.wait_until_registered, timeout) for one in self._messages]

    def finish(self) -> None:
        """Finish what runs, and close; by way of ``run`` where that was begun."""
        if self._is_running:
            self.stop()
        else:
            self.close()

    def close(self) -> None:
        """Finish what runs, and close, once: a command may have begun it."""
        if not self._is_closing:
            self._is_closing = True
            try:
                self._close_all()
            finally:
                self._is_over.set()
        self._is_over.wait()

    def _close_all(self) -> None:
        closing: list[gevent.Greenlet[..., Any]] = [gevent.spawn(one.close) for one in self._messages]
        if self.old_peers is not None:
            closing.append(gevent.spawn(self.old_peers.close, self.grace))
        super().close()
        gevent.joinall(closing)
        self._bus.end(self.grace)


def _function(run: Callable[[Event], Any], category: str, name: str) -> Callable[..., Any]:
    return lambda id="", params=None: run(Event(id, category, name, params))
