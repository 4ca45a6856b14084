"""What py-servicebus's own senders ask of an agent of ours."""

from __future__ import annotations

import logging
from datetime import date
from functools import partial
from typing import Any, Protocol

import gevent

from butler_mesh import connect_queues
from butler_mesh.compat.servicebus.configuration import Configuration
from butler_mesh.compat.servicebus.event import Event
from butler_mesh.compat.servicebus.routes import MeshRoute
from butler_mesh.errors import NotFound, RequestFailed
from butler_mesh.status import BAD_REQUEST, TOO_LARGE

CREDIT = 0xFFFF
"""All that come are taken at once: calls are run or refused, messages are put where the mesh's wait."""
STORE_AGAIN_S, MAX_STORE_AGAIN_S = 0.5, 30.0
"""Before a message is stored that the broker could not take, twice as long each time."""

_log = logging.getLogger("butler_mesh.service")


class Bus(Protocol):
    """What is needed of a ServiceBus."""

    configuration: Configuration

    def call(self, event: Event) -> Any: ...
    def takes(self, event: Event) -> bool: ...


class OldPeers:
    """Reads the node's own queue at every broker; answers in py-servicebus's words, failures by a text.

    A message goes on into the queue of its service, and is acknowledged when it is safe there. There it waits
    and is tried again as the mesh's own.
    """

    def __init__(self, bus: Bus) -> None:
        from butler_mesh.compat.servicebus import xml_wire

        self._wire = xml_wire
        self._bus = bus
        configuration = bus.configuration
        self._queues = [
            connect_queues(configuration.address(host), configuration.exchange_name)
            for host in configuration.hosts
        ]
        # Where the messages of each broker go on: at the same.
        self._routes = [MeshRoute(configuration, host) for host in configuration.hosts]

    def start(self) -> None:
        """Begin to read."""
        for queues, route in zip(self._queues, self._routes, strict=True):
            queues.serve(self._bus.configuration.queue_name(), partial(self._take, route), credit=CREDIT)

    def wait_until_registered(self, timeout: float) -> bool:
        """Wait until one broker has our queue; False when none has it in ``timeout`` seconds.

        Raises what the brokers refuse it with, where all that are there do.
        """
        waiting = [gevent.spawn(_is_registered, queues, timeout) for queues in self._queues]
        refusal: RequestFailed | None = None
        try:
            for done in gevent.iwait(waiting):
                answer = done.get()
                if isinstance(answer, RequestFailed):
                    refusal = answer
                elif answer:
                    return True
        finally:
            gevent.killall(waiting)
        if refusal is not None:
            raise refusal
        return False

    def close(self, drain_s: float) -> None:
        """Read no more, finish what runs, close."""
        gevent.joinall([gevent.spawn(queues.close, drain_s) for queues in self._queues])
        for route in self._routes:
            route.close()

    def _take(self, route: MeshRoute, message: Any) -> None:
        if message.body == self._wire.PING:
            message.answer(self._wire.PONG)
            return
        try:
            event, token = self._wire.parse_call(message.body)
        except self._wire.Unreadable as error:
            # Acknowledged, and so dropped, however often it came.
            _log.warning("unreadable-event: %s", error)
            message.answer(self._wire.pack_response("", f"Event not valid: {error}", 400))
            return
        status, answer = self._answer(event, token, message, route)
        try:
            body = self._wire.pack_response(event.id, answer, status)
        except (TypeError, ValueError) as error:
            body = self._wire.pack_response(event.id, f"{type(error).__name__}: {error}", 500)
        message.answer(body)

    def _answer(self, event: Event, token: str, message: Any, route: MeshRoute) -> tuple[int, Any]:
        if not self._wire.is_good_token(token, self._bus.configuration.secret_token, date.today()):
            _log.warning("refused-token %s.%s", event.category, event.service)
            return 401, self._wire.BAD_TOKEN
        try:
            if not message.reply_to:
                self._store(event, route)
                return 200, None
            if message.is_repeated:
                return 502, "the agent that had the call was lost"
            return 200, self._bus.call(event)
        except RequestFailed as error:
            _log.warning("failed %s.%s: %s", event.category, event.service, error.message)
            return error.status, error.message
        except Exception as error:
            _log.exception("handler-failed %s.%s", event.category, event.service)
            return 500, f"{type(error).__name__}: {error}"

    def _store(self, event: Event, route: MeshRoute) -> None:
        """Put a message into the queue of its service; it stays with its own broker until it is there."""
        pause_s = STORE_AGAIN_S
        while True:
            if not self._bus.takes(event):
                raise NotFound(event.nobody("Message"), status=404)
            try:
                route.send(self._bus.configuration.node_name, event)
                return
            except RequestFailed as error:
                # It is the way that is wrong; where the service is not found, it is ours, and to be.
                if error.status in (BAD_REQUEST, TOO_LARGE):
                    raise
                _log.warning("message-waits %s.%s: %s", event.category, event.service, error.message)
                gevent.sleep(pause_s)
                pause_s = min(MAX_STORE_AGAIN_S, 2.0 * pause_s)


def _is_registered(queues: Any, timeout: float) -> bool | RequestFailed:
    # Returned, for what a greenlet raises is printed.
    try:
        return bool(queues.wait_until_registered(timeout))
    except RequestFailed as refusal:
        return refusal
