"""The agent: a node's services, read from every broker of its list."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from gevent.pool import Group

from butler_mesh.compat.servicebus.configuration import Configuration
from butler_mesh.compat.servicebus.event import Event
from butler_mesh.compat.servicebus.node import Node
from butler_mesh.compat.servicebus.old_peers import OldPeers
from butler_mesh.compat.servicebus.runner import ServiceRunner
from butler_mesh.compat.servicebus.sender import SharedSender
from butler_mesh.errors import NotFound, UsageError

_log = logging.getLogger("butler_mesh.service")

Hook = Callable[[], object]

# By the method that an object has to have: what takes those with the other one.
_OTHERS = {
    "on_call": ("add_message_service", "on_message"),
    "on_message": ("add_rpc_service", "on_call"),
}


class ServiceBus:
    """A node: objects with ``on_call(request, response)`` or ``on_message(request)``, by category and name.

    Each object is a line of its own: one request at a time. Of calls up to ``queue_len`` wait, and those over
    that are answered 429. Messages wait with the broker, are tried again when ``on_message`` failed, and put
    with the dead after five times. One whose ``background`` is true has as many at once. All brokers of the
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
        self._node: Node | None = None

    @property
    def old_peers(self) -> OldPeers | None:
        """Whoever still runs py-servicebus, while the wire is 'xml' and this one serves."""
        return None if self._node is None else self._node.old_peers

    def add_rpc_service(self, category: str, name: str, service: Any) -> None:
        """Answer calls of ``category.name`` by the object's ``on_call``; at once where it serves.

        Raises UsageError for an object without one.
        """
        is_new = f"{category}.{name}" not in self.rpc_services
        self.rpc_services[f"{category}.{name}"] = self._runner(service, "on_call")
        if self._node is not None and is_new:
            self._node.add_call(category, name)

    def add_message_service(self, category: str, name: str, service: Any) -> None:
        """Take messages to ``category.name`` by the object's ``on_message``; at once where it serves.

        Each is worked on at least once: again where it failed, or its agent or broker was lost. Raises
        UsageError for an object without ``on_message``.
        """
        is_new = f"{category}.{name}" not in self.message_services
        self.message_services[f"{category}.{name}"] = runner = self._runner(service, "on_message")
        if self._node is not None and is_new:
            self._node.add_message(category, name, runner.width)

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
        self._node = node = Node(self)
        for key in self.rpc_services:
            category, name = key.rsplit(".", 1)
            node.add_call(category, name)
        for key, runner in self.message_services.items():
            category, name = key.rsplit(".", 1)
            node.add_message(category, name, runner.width)
        if join:
            node.run()
        else:
            node.start()

    def stop(self) -> None:
        """Finish what runs, and stop."""
        node, self._node = self._node, None
        if node is not None:
            node.finish()

    def wait_until_registered(self, timeout: float = 5.0) -> bool:
        """Wait until each of our queues is read at a broker; False when one is not in ``timeout`` seconds.

        Raises RequestFailed for what the brokers refuse, where the wire is 'xml'.
        """
        return self._node is not None and self._node.wait_until_registered(timeout)

    # --- what the node asks for ---------------------------------------------------------------

    def call(self, event: Event) -> Any:
        """Run an RPC service; NotFound where there is none."""
        runner = self.rpc_services.get(f"{event.category}.{event.service}")
        if runner is None:
            raise NotFound(event.nobody("RPC"), status=404)
        return runner.call(event)

    def message(self, event: Event) -> None:
        """Run a message service, which is there."""
        self.message_services[f"{event.category}.{event.service}"].message(event)

    def takes(self, event: Event) -> bool:
        """Tell whether there is a message service for it."""
        return f"{event.category}.{event.service}" in self.message_services

    def begin(self) -> None:
        """Run the hook."""
        if self.after_fork_hook is not None:
            self.after_fork_hook()

    def end(self, grace: float) -> None:
        """Wait up to ``grace`` seconds for those that have answered and went on; close; run the hook."""
        self.group.join(grace)
        self.group.kill()
        self.sender.close_all()
        if self.on_exit_hook is not None:
            try:
                self.on_exit_hook()
            except Exception:
                _log.exception("on-exit-hook-failed")

    def _runner(self, service: Any, method: str) -> ServiceRunner:
        if not callable(getattr(service, method, None)):
            # Here, and not at each request: a message would be tried five times for nothing.
            other, its = _OTHERS[method]
            raise UsageError(f"{type(service).__name__} has no {method}: {other} is for objects with {its}")
        return ServiceRunner(service, self.sender, self.queue_len, self.group)
