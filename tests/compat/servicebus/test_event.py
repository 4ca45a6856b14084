"""What was sent, and for whom."""

from __future__ import annotations

from butler_mesh.compat.servicebus.event import Event

EVENT = Event("1", "math", "add", [1, 2])


def test_an_event_says_that_nobody_is_there_for_it_in_py_servicebuss_words() -> None:
    assert EVENT.nobody("RPC") == "Cannot Find RPC Service: math.add"
