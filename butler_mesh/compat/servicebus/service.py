"""The agent: a node's services, read from every broker of its list."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Self

import gevent
from gevent.pool import Group

from butler_mesh import Service as CoreService
from butler_mesh.compat.servicebus.configuration import Configuration, service_name
from butler_mesh.compat.servicebus.event import Event
from butler_mesh.compat.servicebus.old_peers import OldPeers
from butler_mesh.compat.servicebus.routes import path
from butler_mesh.compat.servicebus.runner import ServiceRunner
from butler_mesh.compat.servicebus.sender import SharedSender
from butler_mesh.errors import NotFound

MAX_CREDIT = 0xFFFF
_log = logging.getLogger("butler_mesh.service")

Hook = Callable[[], object]


class ServiceBus:
    """A node: objects with ``on_call(request, response)`` or ``on_message(request)``, by category and name.

    Each object is a line of its own: one request at a time, and up to ``queue_len`` that wait; calls over
    that are answered 503. One whose ``background`` is true has as many at once. All brokers of the
    configuration are read; one that dies is read again when it is back.
    """

    def __init__(self, configuration: Configuration, queue_len: int = 100) -> None:
        self.configuration = configuration
        self.queue_len = queue_len
        self.sender = SharedSender(configuration)
        self.group = Group()
        self.rpc_services: dict[str, ServiceRunner] = {}
        self.message_services: dict[str, ServiceRunner] = {}
        self.after_fork_hook: Hook | None = None
        self.on_exit_hook: Hook | None = None
        # Whoever still runs py-servicebus, while the wire is 'xml'.
        self.old_peers: OldPeers | None = None
        self._node: _Node | None = None

    def add_rpc_service(self, category: str, name: str, service: Any) -> None:
        """Answer calls of ``category.name`` by the object's ``on_call``."""
        self.rpc_services[f"{category}.{name}"] = self._runner(service)

    def add_message_service(self, category: str, name: str, service: Any) -> None:
        """Take messages to ``category.name`` by the object's ``on_message``."""
        self.message_services[f"{category}.{name}"] = self._runner(service)

    add_message_services = add_message_service

    def set_after_fork_hook(self, hook: Hook) -> None:
        """Call this in the process that serves, before it does."""
        self.after_fork_hook = hook

    def set_on_exit_hook(self, hook: Hook) -> None:
        """Call this when everything has stopped."""
        self.on_exit_hook = hook

    def run_services(self, join: bool = True) -> None:
        """Serve until SIGTERM, SIGINT or ``stop``; then finish what runs, and return.

        Without ``join`` it serves in the background, until ``stop``.
        """
        self._node = _Node(self)
        if join:
            self._node.run()
        else:
            self._node.start()

    def stop(self) -> None:
        """Finish what runs, and stop."""
        node, self._node = self._node, None
        if node is not None:
            node.finish()

    def wait_until_registered(self, timeout: float = 5.0) -> bool:
        """Wait until one broker has our queue; False when none has it in ``timeout`` seconds."""
        return self._node is not None and self._node.wait_until_registered(timeout)

    def call(self, event: Event) -> Any:
        """Run an RPC service; NotFound where there is none."""
        return _find(self.rpc_services, event, "RPC").call(event)

    def message(self, event: Event) -> None:
        """Run a message service; NotFound where there is none."""
        _find(self.message_services, event, "Message").message(event)

    def _runner(self, service: Any) -> ServiceRunner:
        return ServiceRunner(service, self.sender, self.queue_len, self.group)


class _Node(CoreService):
    """The mesh's service below a bus, and what begins and ends with it."""

    def __init__(self, bus: ServiceBus) -> None:
        configuration = bus.configuration
        count = len(bus.rpc_services) + len(bus.message_services)
        # So that a line that is full keeps no other waiting.
        credit = min(MAX_CREDIT, (count + 1) * (bus.queue_len + 1))
        super().__init__(
            configuration.address(*configuration.hosts, service=service_name(configuration.node_name)),
            passphrase=configuration.secret_token,
            independent=True,
            credit=credit,
        )
        self._bus = bus
        self._old_peers = bus.old_peers = OldPeers(bus, credit) if configuration.wire == "xml" else None
        self._is_running = False
        self.register_function(lambda: "PONG", "PING")
        for kind, services, run in (
            ("call", bus.rpc_services, bus.call),
            ("message", bus.message_services, bus.message),
        ):
            for key in services:
                self.register_function(_function(run, *key.split(".", 1)), path(kind, *key.split(".", 1)))

    def run(self) -> None:
        self._is_running = True
        super().run()

    def start(self) -> Self:
        if self._bus.after_fork_hook is not None:
            self._bus.after_fork_hook()
        if self._old_peers is not None:
            self._old_peers.start()
        return super().start()

    def finish(self) -> None:
        if self._is_running:
            self.stop()
        else:
            self.close()

    def close(self) -> None:
        old_peers = None if self._old_peers is None else gevent.spawn(self._old_peers.close, self.grace)
        super().close()
        if old_peers is not None:
            old_peers.join()
        # Those that have answered and went on.
        self._bus.group.join(self.grace)
        self._bus.group.kill()
        self._bus.sender.close_all()
        if self._bus.on_exit_hook is not None:
            try:
                self._bus.on_exit_hook()
            except Exception:
                _log.exception("on-exit-hook-failed")


def _function(run: Callable[[Event], Any], category: str, name: str) -> Callable[..., Any]:
    return lambda id="", params=None: run(Event(id, category, name, params))


def _find(services: dict[str, ServiceRunner], event: Event, kind: str) -> ServiceRunner:
    runner = services.get(f"{event.category}.{event.service}")
    if runner is None:
        raise NotFound(event.nobody(kind), status=404)
    return runner
