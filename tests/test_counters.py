"""Counters: a missing one is 0, and reading one does not make it exist."""

from __future__ import annotations

from butler_mesh.counters import Counters


def test_a_counter_exists_from_its_first_increment() -> None:
    counters = Counters()
    assert counters["dropped.malformed"] == 0
    assert counters == {}
    counters.add("dropped.malformed")
    counters.add("dropped.malformed", 2)
    assert counters == {"dropped.malformed": 3}
