"""What a broker has confirmed, one by one and many at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from butler_mesh.connections.amqp.call import Call
from butler_mesh.connections.amqp.confirming import Confirming
from butler_mesh.protocol.mesh import ONE_WAY
from butler_mesh.protocol.wheel import NEVER


class FakeChannel:
    def __init__(self) -> None:
        self.published: list[str] = []

    def confirm_delivery(self, on_confirmed: Any) -> None:
        self._on_confirmed = on_confirmed

    def basic_publish(self, exchange: str, key: str, body: bytes, properties: Any, mandatory: bool) -> None:
        self.published.append(body.decode())

    def say(self, word: str, tag: int, *, multiple: bool = False) -> None:
        self._on_confirmed(
            SimpleNamespace(method=SimpleNamespace(NAME=f"Basic.{word}", delivery_tag=tag, multiple=multiple))
        )


def test_a_request_is_answered_by_its_number_once() -> None:
    answers: list[tuple[list[str], bool]] = []
    channel = FakeChannel()

    def on_answer(one: Confirming, calls: list[Call], is_taken: bool) -> None:
        assert one is confirming
        answers.append(([call.envelope.decode() for call in calls], is_taken))

    confirming = Confirming(channel, on_answer)
    calls = [Call(name, "svc", name.encode(), ONE_WAY, NEVER, lambda *_: None) for name in "abcdefg"]
    for call in calls:
        call.route()
        confirming.publish(call, call.properties(0.0))
    assert channel.published == list("abcdefg")
    channel.say("Ack", 2)
    confirming.forget(calls[2])
    channel.say("Ack", 4, multiple=True)  # b has been answered, c is not waited for
    channel.say("Nack", 6, multiple=True)
    channel.say("Ack", 6)
    assert answers == [(["b"], True), (["a", "d"], True), (["e", "f"], False), ([], True)]
    assert confirming.calls == {7: calls[6]}
    assert calls[6].confirming is confirming
    assert [call.confirming for call in calls[:6]] == [None] * 6
