"""What py-servicebus's own senders ask of an agent of ours."""

from __future__ import annotations

import logging
from datetime import date
from typing import Any, Protocol

import gevent

from butler_mesh import connect_queues
from butler_mesh.compat.servicebus.configuration import Configuration
from butler_mesh.compat.servicebus.event import Event
from butler_mesh.errors import RequestFailed

_log = logging.getLogger("butler_mesh.service")


class Bus(Protocol):
    """What is needed of a ServiceBus."""

    configuration: Configuration

    def call(self, event: Event) -> Any: ...
    def message(self, event: Event) -> None: ...


class OldPeers:
    """Reads the node's own queue at every broker; answers in py-servicebus's words, failures by a text."""

    def __init__(self, bus: Bus, credit: int) -> None:
        from butler_mesh.compat.servicebus import xml_wire

        self._wire = xml_wire
        self._bus = bus
        self._credit = credit
        configuration = bus.configuration
        self._queues = [
            connect_queues(configuration.address(host), configuration.exchange_name)
            for host in configuration.hosts
        ]

    def start(self) -> None:
        """Begin to read."""
        for queues in self._queues:
            queues.serve(self._bus.configuration.queue_name(), self._take, credit=self._credit)

    def wait_until_registered(self, timeout: float) -> bool:
        """Wait until all brokers have our queue; False when one has it not in ``timeout`` seconds."""
        waiting = [gevent.spawn(queues.wait_until_registered, timeout) for queues in self._queues]
        return all(done.get() for done in waiting)

    def close(self, drain_s: float) -> None:
        """Read no more, finish what runs, close."""
        gevent.joinall([gevent.spawn(queues.close, drain_s) for queues in self._queues])

    def _take(self, message: Any) -> None:
        if message.body == self._wire.PING:
            message.answer(self._wire.PONG)
            return
        try:
            event, token = self._wire.parse_call(message.body)
        except self._wire.Unreadable as error:
            _log.warning("unreadable-event: %s", error)
            message.answer(self._wire.pack_response("", f"Event not valid: {error}", 400))
            return
        status, answer = self._answer(event, token, message)
        try:
            body = self._wire.pack_response(event.id, answer, status)
        except (TypeError, ValueError) as error:
            body = self._wire.pack_response(event.id, f"{type(error).__name__}: {error}", 500)
        message.answer(body)

    def _answer(self, event: Event, token: str, message: Any) -> tuple[int, Any]:
        if not self._wire.is_good_token(token, self._bus.configuration.secret_token, date.today()):
            _log.warning("refused-token %s.%s", event.category, event.service)
            return 401, self._wire.BAD_TOKEN
        try:
            if not message.reply_to:
                # Of a reader that was lost, too: a message is acknowledged when its work is done.
                self._bus.message(event)
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
