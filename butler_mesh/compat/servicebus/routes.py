"""The ways to a node: through one broker, on the mesh's wire or on py-servicebus's own."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from datetime import date
from typing import Any

from butler_mesh import Client, connect_queues
from butler_mesh.compat.servicebus.configuration import Configuration, message_service, service_name
from butler_mesh.compat.servicebus.event import Event
from butler_mesh.errors import DeadlineExceeded, NotFound, RequestFailed, Unavailable, failure

MESSAGE_S = 3600.0
"""How long a message may be worked on."""
PING_S = 3.0
MESSAGE = "/message"
"""Where a message service takes its messages."""


class Route(ABC):
    """A way through one broker. Every method raises RequestFailed where there is none."""

    @abstractmethod
    def call(self, node: str, event: Event, until: float, patience: float) -> Any:
        """Return the answer of a service, of whatever kind.

        ``until`` is the deadline (``time.monotonic``), ``patience`` the seconds for a broker that says
        nothing: Unavailable, and nothing was sent.
        """

    @abstractmethod
    def send(self, node: str, event: Event) -> None:
        """Send a message; returns when the broker has it."""

    @abstractmethod
    def ask(self, node: str, timeout: float) -> bool:
        """Ask whether a node is there."""

    @abstractmethod
    def close(self) -> None:
        """Send what was written, and close."""

    def ping(self, node: str, timeout: float = PING_S) -> bool:
        """Tell whether a node answers this way; raises nothing."""
        try:
            return self.ask(node, timeout)
        except RequestFailed:
            return False


class MeshRoute(Route):
    """Sealed requests to the node's services: the secret never travels, and no call can be sent twice."""

    def __init__(self, configuration: Configuration, host: str) -> None:
        self._client = Client(
            configuration.address(host),
            passphrase=configuration.secret_token,
            connect_timeout=configuration.socket_timeout / len(configuration.hosts),
        )

    def call(self, node: str, event: Event, until: float, patience: float) -> Any:
        if self._client.raw is None:
            self._reach(node, patience)
        target = path(event.category, event.service)
        return self._request(node, target, _arguments(event), until - time.monotonic())

    def send(self, node: str, event: Event) -> None:
        service = message_service(node, event.category, event.service)
        self._client.request_nowait(service, MESSAGE, _arguments(event), timeout=MESSAGE_S, durable=True)

    def ask(self, node: str, timeout: float) -> bool:
        return bool(self._request(node, "/PING", None, timeout) == "PONG")

    def close(self) -> None:
        self._client.close()

    def _reach(self, node: str, patience: float) -> None:
        """Wait for the broker's first word: a call would wait for it until its own deadline."""
        try:
            self.ask(node, patience)
        except DeadlineExceeded as error:
            # Where there is a connection it is the node that is slow, and that is the call's affair.
            if self._client.raw is None:
                raise _silent() from error

    def _request(self, node: str, target: str, arguments: dict[str, Any] | None, timeout: float) -> Any:
        response = self._client.request(service_name(node), target, arguments, timeout=timeout)
        response.raise_for_status()
        return response.body


class XmlRoute(Route):
    """py-servicebus's messages to the node's own queue."""

    def __init__(self, configuration: Configuration, host: str) -> None:
        from butler_mesh.compat.servicebus import xml_wire

        self._wire = xml_wire
        self._secret = configuration.secret_token
        self._queues = connect_queues(
            configuration.address(host),
            configuration.exchange_name,
            connect_timeout=configuration.socket_timeout / len(configuration.hosts),
        )

    def call(self, node: str, event: Event, until: float, patience: float) -> Any:
        if not self._queues.wait_until_connected(patience):
            raise _silent()
        body = self._queues.call(node, self._pack(event), until - time.monotonic())
        _, answer = self._wire.parse_response(body)
        # What py-servicebus answers where it has no answer, and without a mark.
        if answer == self._wire.BAD_TOKEN:
            raise failure(401, answer)
        if answer == event.nobody("RPC"):
            raise NotFound(answer, status=404)
        return answer

    def send(self, node: str, event: Event) -> None:
        self._queues.send(node, self._pack(event))

    def ask(self, node: str, timeout: float) -> bool:
        return self._queues.call(node, self._wire.PING, timeout) == self._wire.PONG

    def close(self) -> None:
        self._queues.close(0.0)

    def _pack(self, event: Event) -> bytes:
        return self._wire.pack_call(event, self._wire.make_token(self._secret, date.today()))


def path(category: str, name: str) -> str:
    """Return where a node's service answers calls."""
    return f"/call/{category}/{name}"


def _arguments(event: Event) -> dict[str, Any]:
    return {"id": event.id, "params": event.params}


def _silent() -> Unavailable:
    return Unavailable("no broker can be reached", status=503)
