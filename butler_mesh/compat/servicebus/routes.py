"""The ways to a node: through one broker, on the mesh's wire or on py-servicebus's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import date
from typing import Any

from butler_mesh import Client, connect_queues
from butler_mesh.compat.servicebus.configuration import Configuration, service_name
from butler_mesh.compat.servicebus.event import Event
from butler_mesh.errors import NotFound, RequestFailed, Unavailable, failure

MESSAGE_S = 3600.0
"""How long a message may be worked on."""
PING_S = 3.0


class Route(ABC):
    """A way through one broker. Every method raises RequestFailed where there is none."""

    @abstractmethod
    def call(self, node: str, event: Event, timeout: float) -> Any:
        """Return the answer of a service, of whatever kind."""

    @abstractmethod
    def send(self, node: str, event: Event) -> None:
        """Send a message; nothing is said of what becomes of it."""

    @abstractmethod
    def ask(self, node: str, timeout: float) -> bool:
        """Ask whether a node is there."""

    @abstractmethod
    def close(self) -> None:
        """Send what was written, and close."""

    def abandon(self) -> None:  # noqa: B027 (few have anything to do)
        """Let go of it: this process is a fork, and its parent goes on with it."""

    def ping(self, node: str, timeout: float = PING_S) -> bool:
        """Tell whether a node answers this way; raises nothing."""
        try:
            return self.ask(node, timeout)
        except RequestFailed:
            return False


class MeshRoute(Route):
    """Sealed requests to the node's service: the secret never travels, and nothing can be sent twice."""

    def __init__(self, configuration: Configuration, host: str) -> None:
        self._client = Client(
            configuration.address(host),
            passphrase=configuration.secret_token,
            connect_timeout=configuration.socket_timeout / len(configuration.hosts),
        )

    def call(self, node: str, event: Event, timeout: float) -> Any:
        return self._request(node, path("call", event.category, event.service), _arguments(event), timeout)

    def send(self, node: str, event: Event) -> None:
        # A message is not answered, so it is the ping that tells whether this is the way.
        if not self.ping(node):
            raise Unavailable(f"{node} does not answer", status=503)
        target = path("message", event.category, event.service)
        self._client.request_nowait(service_name(node), target, _arguments(event), timeout=MESSAGE_S)

    def ask(self, node: str, timeout: float) -> bool:
        return bool(self._request(node, "/PING", None, timeout) == "PONG")

    def close(self) -> None:
        self._client.close()

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

    def call(self, node: str, event: Event, timeout: float) -> Any:
        _, answer = self._wire.parse_response(self._queues.call(node, self._pack(event), timeout))
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

    def abandon(self) -> None:
        self._queues.abandon()

    def _pack(self, event: Event) -> bytes:
        return self._wire.pack_call(event, self._wire.make_token(self._secret, date.today()))


def path(kind: str, category: str, name: str) -> str:
    """Return where a node's service answers calls, or takes messages."""
    return f"/{kind}/{category}/{name}"


def _arguments(event: Event) -> dict[str, Any]:
    return {"id": event.id, "params": event.params}
