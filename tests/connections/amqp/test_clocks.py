"""How long requests waited, by clocks that differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh.connections.amqp import clocks as amqp_clocks
from butler_mesh.connections.amqp.clocks import LATELY_S, Clocks


@pytest.mark.parametrize("apart_ms", [0, 29_000, -29_000, 10**9])
def test_what_a_clock_is_off_is_not_taken_for_waiting(apart_ms: int) -> None:
    clocks = Clocks()
    for n, waited_ms in enumerate([0, 0, 700, 5, 0]):
        sent_ms = 1_000_000 + n
        assert clocks.waited_ms("me", sent_ms, sent_ms + apart_ms + waited_ms, 0.0) == waited_ms


def test_the_quickest_counts_and_each_client_by_itself() -> None:
    clocks = Clocks()
    assert clocks.waited_ms("me", 0, 500, 0.0) == 0  # nothing is known of it yet
    assert clocks.waited_ms("me", 0, 200, 0.0) == 0
    assert clocks.waited_ms("me", 0, 500, 0.0) == 300
    assert clocks.waited_ms("you", 0, 5000, 0.0) == 0


def test_a_clock_that_was_set_is_believed_after_a_while() -> None:
    clocks = Clocks()
    for now in (0.0, 0.9 * LATELY_S):
        assert clocks.waited_ms("me", 0, 0, now) == 0
    # Put back by ten seconds: all seem to have waited for them.
    assert clocks.waited_ms("me", 0, 10_000, 1.1 * LATELY_S) == 10_000
    assert clocks.waited_ms("me", 0, 10_000, 2.2 * LATELY_S) == 0
    # Put forward: believed at once.
    assert clocks.waited_ms("me", 0, -5_000, 2.2 * LATELY_S) == 0


def test_what_was_seen_long_ago_is_forgotten() -> None:
    clocks = Clocks()
    assert clocks.waited_ms("me", 0, 0, 0.0) == 0
    assert clocks.waited_ms("me", 0, 10_000, 3 * LATELY_S) == 0


def test_clients_that_come_once_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp_clocks, "MAX_CLIENTS", 10)
    clocks = Clocks()
    for n in range(1000):
        assert clocks.waited_ms(str(n), 0, n, 0.0) == 0
    assert len(clocks._least) + len(clocks._before) <= 20


@given(st.lists(st.tuples(st.integers(-(10**6), 10**6), st.floats(0, 1000)), max_size=50))
def test_nothing_has_waited_less_than_not_at_all(seen: list[tuple[int, float]]) -> None:
    clocks = Clocks()
    for apart_ms, now in seen:
        assert clocks.waited_ms("me", 0, apart_ms, now) >= 0
