"""A channel on which the broker confirms what it took."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any

from pika import BasicProperties

from butler_mesh.connections.amqp.call import Call


class Confirming:
    """A channel, and the requests on it that the broker has not confirmed.

    ``on_answer(this, calls, is_taken)`` is called from the hub with those that it has taken, or refused.
    """

    def __init__(self, channel: Any, on_answer: Callable[[Confirming, list[Call], bool], None]) -> None:
        self.channel = channel
        # By the number that the broker counts them by, in its order.
        self.calls: dict[int, Call] = {}
        self._last_tag = 0
        self._on_answer = on_answer
        channel.confirm_delivery(self._confirmed)

    def publish(self, call: Call, properties: BasicProperties) -> None:
        """Send a request; raises AMQPError where the channel is about to be lost."""
        self._last_tag += 1
        call.tag, call.confirming = self._last_tag, self
        self.calls[call.tag] = call
        self.channel.basic_publish(*call.address, call.envelope, properties, mandatory=True)

    def forget(self, call: Call) -> None:
        """Wait no more for the word on this one."""
        self.calls.pop(call.tag, None)
        call.confirming = None

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        tags = [method.delivery_tag]
        if method.multiple:
            tags = list(takewhile(lambda tag: tag <= method.delivery_tag, self.calls))
        calls = [self.calls[tag] for tag in tags if tag in self.calls]
        for call in calls:
            self.forget(call)
        self._on_answer(self, calls, method.NAME == "Basic.Ack")
