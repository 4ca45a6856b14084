"""Requests that have yet to be sent."""

from __future__ import annotations

import pytest

from butler_mesh.connections.amqp import waiting as amqp_waiting
from butler_mesh.connections.amqp.call import Call
from butler_mesh.connections.amqp.waiting import Waiting
from butler_mesh.protocol.wheel import NEVER


def a_call(name: str, size: int = 1) -> Call:
    return Call(name, "svc", bytes(size), 0, NEVER, lambda *_: None)


def test_they_keep_their_order_and_each_is_in_once() -> None:
    waiting, calls = Waiting(), [a_call(name) for name in "abcd"]
    for call in [*calls, calls[0]]:
        waiting.add(call)
    waiting.discard(calls[1])
    waiting.discard(calls[1])
    assert len(waiting) == 3
    assert [waiting.pop() for _ in range(3)] == [calls[0], *calls[2:]]
    assert not waiting


def test_they_are_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp_waiting, "MAX_WAITING", 3)
    monkeypatch.setattr(amqp_waiting, "MAX_OUTBOX_BYTES", 1000)
    waiting = Waiting()
    for name in "abc":
        assert not waiting.is_full
        waiting.add(a_call(name))
    assert waiting.is_full
    for _ in range(2):
        waiting.pop()
    waiting.add(a_call("large", 999))
    assert waiting.is_full
    waiting.pop()
    waiting.pop()
    assert not waiting.is_full
