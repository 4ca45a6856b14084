"""Requests that were given up before they came."""

from __future__ import annotations

import pytest

from butler_mesh.connections.amqp import cancelled
from butler_mesh.connections.amqp.cancelled import Cancelled


def test_each_is_remembered_until_it_comes() -> None:
    ids = Cancelled()
    ids.add("a")
    assert not ids.take("b")
    assert ids.take("a")
    assert not ids.take("a")


def test_of_many_the_latest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancelled, "MAX_CANCELLED", 3)
    ids = Cancelled()
    for name in "abcde":
        ids.add(name)
    assert [ids.take(name) for name in "abcde"] == [False, False, True, True, True]
