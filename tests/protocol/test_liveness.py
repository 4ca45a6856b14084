"""Liveness by arithmetic: pulses that stop, and stamps of clocks that are not ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh.protocol.liveness import BLOCKED_AFTER_S, BLOCKED_LAG_S, DEAD_AFTER_S, Pulse, State, Transit

# --- Pulse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("silence_s", "state"),
    [
        (0.0, State.READY),
        (2.99, State.READY),
        (3.0, State.BLOCKED),
        (14.99, State.BLOCKED),
        (15.0, State.DEAD),
        (1e6, State.DEAD),
    ],
)
@pytest.mark.parametrize("has_control", [False, True])
def test_silence_of_3_s_is_blocked_and_of_15_s_is_dead(
    silence_s: float, state: State, has_control: bool
) -> None:
    pulse = Pulse(0.0)
    if has_control:
        pulse.heard_control(0.0, 0.0)
    assert pulse.state(silence_s) is state


def test_before_the_control_thread_came_the_work_connection_speaks_alone() -> None:
    pulse = Pulse(0.0)
    pulse.heard_work(10.0)
    assert pulse.state(12.0) is State.READY
    assert pulse.state(10.0 + BLOCKED_AFTER_S) is State.BLOCKED


def test_a_hub_that_computes_for_a_minute_is_blocked_and_never_dead_while_its_control_thread_beats() -> None:
    pulse = Pulse(0.0)
    for second in range(1, 61):
        pulse.heard_control(float(second), lag_s=float(second))
        assert pulse.state(second + 0.5) is State.BLOCKED


def test_either_connection_keeps_an_instance_alive() -> None:
    pulse = Pulse(0.0)
    pulse.heard_control(0.0, 0.0)
    pulse.heard_work(14.0)
    assert pulse.state(16.0) is State.READY


def test_a_reported_lag_of_a_second_is_blocked_at_once() -> None:
    pulse = Pulse(0.0)
    pulse.heard_control(1.0, BLOCKED_LAG_S - 0.01)
    assert pulse.state(1.0) is State.READY
    pulse.heard_control(1.0, BLOCKED_LAG_S)
    assert pulse.state(1.0) is State.BLOCKED


def test_anything_heard_of_the_hub_itself_ends_its_lag() -> None:
    pulse = Pulse(0.0)
    pulse.heard_control(1.0, 5.0)
    pulse.heard_work(1.1)
    assert pulse.lag_s == 0.0
    assert pulse.state(1.1) is State.READY


def test_a_listener_that_slept_forgives_the_silence_it_slept_through() -> None:
    pulse = Pulse(0.0)
    pulse.heard_control(0.0, 0.0)
    pulse.allow(20.0)
    assert pulse.state(20.0) is State.READY
    assert pulse.state(20.0 + DEAD_AFTER_S) is State.DEAD


def test_the_states_have_the_words_that_status_shows() -> None:
    assert [state.value for state in State] == ["ready", "blocked", "dead"]


# --- Transit --------------------------------------------------------------------------------------

WRAP = 1 << 32
FAR = 1_000.0


def stamp(now: float, *, ahead_s: float = 0.0) -> int:
    """Return what a sender stamps at our ``now`` whose clock is so far ahead of ours."""
    return int((now + ahead_s) * 1000) % WRAP


def test_the_first_message_is_taken_for_one_that_did_not_wait() -> None:
    assert Transit().excess_s(stamp(FAR, ahead_s=12345.0), FAR) == 0.0


@pytest.mark.parametrize("ahead_s", [0.0, 1e6, -900.0, 4e6, -0.5])
def test_a_clock_that_differs_by_any_amount_changes_nothing(ahead_s: float) -> None:
    transit = Transit()
    transit.excess_s(stamp(FAR, ahead_s=ahead_s), FAR)
    assert transit.excess_s(stamp(FAR + 1, ahead_s=ahead_s), FAR + 1) == pytest.approx(0.0, abs=0.0011)
    assert transit.excess_s(stamp(FAR + 2, ahead_s=ahead_s), FAR + 7) == pytest.approx(5.0, abs=0.0011)


def test_a_wait_shows_as_excess_and_leaves_with_it() -> None:
    transit = Transit()
    transit.excess_s(stamp(FAR), FAR)
    assert transit.excess_s(stamp(FAR + 1), FAR + 3.5) == 2.5
    assert transit.excess_s(stamp(FAR + 4), FAR + 4) == 0.0


def test_a_first_message_that_waited_is_forgotten_with_the_first_quicker_one() -> None:
    transit = Transit()
    assert transit.excess_s(stamp(FAR), FAR + 10) == 0.0
    assert transit.excess_s(stamp(FAR + 11), FAR + 11) == 0.0
    assert transit.excess_s(stamp(FAR + 12), FAR + 13) == 1.0


def test_the_stamps_wrap_after_49_days_makes_no_excess() -> None:
    transit = Transit()
    before, after = WRAP - 500, 500
    assert transit.excess_s(before, FAR) == 0.0
    assert transit.excess_s(after, FAR + 1.0) == 0.0
    assert transit.excess_s(after + 1000, FAR + 4.0) == 2.0


@pytest.mark.parametrize("ppm", [100, -100, 500, -500])
def test_clocks_that_drift_apart_for_a_day_make_no_excess(ppm: int) -> None:
    transit = Transit()
    worst = 0.0
    for second in range(0, 86_400, 7):
        now = FAR + second
        worst = max(worst, transit.excess_s(stamp(now + second * ppm * 1e-6), now))
    # What drifts away within the minute that is remembered, and the rounding of two clocks.
    assert worst <= 67 * abs(ppm) * 1e-6 + 0.002


def test_a_usual_transit_that_grew_is_the_new_usual_after_a_minute() -> None:
    transit = Transit()
    for second in range(10):
        transit.excess_s(stamp(FAR + second), FAR + second)
    excess = [transit.excess_s(stamp(FAR + second - 0.2), FAR + second) for second in range(10, 100)]
    assert excess[0] == pytest.approx(0.2, abs=0.0011)
    assert excess[-1] == 0.0


def test_one_slow_message_at_the_turn_of_a_window_does_not_become_the_usual() -> None:
    transit = Transit()
    transit.excess_s(stamp(FAR), FAR)
    assert transit.excess_s(stamp(FAR + 20), FAR + 30) == 10.0
    assert transit.excess_s(stamp(FAR + 31), FAR + 31) == 0.0


@given(
    st.floats(0, 1e7),
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, WRAP - 1)), min_size=1, max_size=30),
)
def test_any_stamps_whatever_make_an_excess_that_is_never_negative(
    now: float, messages: list[tuple[float, int]]
) -> None:
    transit = Transit()
    for later_s, stamp_ms in messages:
        now += later_s
        assert 0.0 <= transit.excess_s(stamp_ms, now) < WRAP / 1000


@given(st.integers(0, WRAP - 1), st.lists(st.tuples(st.floats(0, 5), st.floats(0, 20)), max_size=30))
def test_the_excess_never_exceeds_how_much_longer_a_message_took_than_the_quickest(
    base: int, messages: list[tuple[float, float]]
) -> None:
    transit = Transit()
    sent_at, quickest = FAR, float("inf")
    for later_s, took_s in messages:
        sent_at += later_s
        quickest = min(quickest, took_s)
        excess = transit.excess_s((base + stamp(sent_at)) % WRAP, sent_at + took_s)
        assert excess <= took_s - quickest + 0.0021
