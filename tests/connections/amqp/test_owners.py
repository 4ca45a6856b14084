"""What a client remembers of who answers for a path."""

from __future__ import annotations

import pytest

from butler_mesh.connections.amqp import owners as amqp_owners
from butler_mesh.connections.amqp.owners import MEMORY_S, Owners


def test_an_owner_is_believed_in_for_a_while_and_learned_anew() -> None:
    owners = Owners()
    assert owners.of("/a/b", 0.0) == ""
    owners.learn("/a/b", "/a", 0.0)
    owners.learn("/a/b", "/", 1.0)  # another call's, that was on its way for longer
    assert owners.of("/a/b", MEMORY_S - 0.1) == "/a"
    assert owners.of("/a/b", MEMORY_S) == ""
    owners.learn("/a/b", "/a/b", MEMORY_S)
    assert owners.of("/a/b", MEMORY_S + 1) == "/a/b"
    owners.forget("/a/b")
    owners.forget("/a/b")
    assert owners.of("/a/b", MEMORY_S + 1) == ""


def test_many_paths_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp_owners, "MAX_PATHS", 10)
    owners = Owners()
    for n in range(1000):
        owners.learn(f"/{n}", "/", 0.0)
        assert owners.of(f"/{n}", 0.0) == "/"
    assert len(owners._known) <= 10
