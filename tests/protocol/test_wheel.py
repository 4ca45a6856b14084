"""The wheel of deadlines: never early, at most a bucket late, and nothing is left of what was removed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from butler_mesh.protocol.wheel import BUCKET_S, NEVER, SWEEP_OVER, Wheel

ULPS = 1e-6
"""What floating point may add to a bucket's width at the times tried here (up to a year)."""

times = st.floats(0, 365 * 86_400)


def test_an_empty_wheel_is_never_due() -> None:
    wheel: Wheel[str] = Wheel()
    assert wheel.next_due() == NEVER == float("inf")
    assert wheel.pop_due(1e9) == []
    assert len(wheel) == 0


@given(times)
def test_a_deadline_is_due_never_early_and_at_most_16_ms_late(deadline: float) -> None:
    wheel: Wheel[str] = Wheel()
    wheel.add("call", deadline)
    assert wheel.pop_due(deadline - ULPS) == []
    assert deadline <= wheel.next_due() <= deadline + BUCKET_S + ULPS
    assert wheel.pop_due(wheel.next_due()) == ["call"]
    assert len(wheel) == 0


def test_it_is_due_at_the_very_time_that_next_due_told() -> None:
    wheel: Wheel[str] = Wheel()
    wheel.add("call", 1.0)
    due = wheel.next_due()
    assert wheel.pop_due(due - 1e-9) == []
    assert wheel.pop_due(due) == ["call"]


def test_entries_come_out_by_their_buckets_order() -> None:
    wheel: Wheel[str] = Wheel()
    for name, deadline in (("late", 9.0), ("soon", 1.0), ("later", 60.0), ("middle", 5.0)):
        wheel.add(name, deadline)
    assert wheel.pop_due(10.0) == ["soon", "middle", "late"]
    assert wheel.pop_due(100.0) == ["later"]


def test_a_deadline_that_has_passed_is_due_at_once() -> None:
    wheel: Wheel[str] = Wheel()
    wheel.add("late already", 1.0)
    assert wheel.pop_due(1_000.0) == ["late already"]


def test_what_was_removed_is_not_due_and_leaves_nothing() -> None:
    wheel: Wheel[int] = Wheel()
    for n in range(1_000):
        deadline = n / 100
        wheel.remove(n, wheel.add(n, deadline))
    assert len(wheel) == 0
    assert wheel.next_due() == NEVER
    assert not wheel._buckets
    assert not wheel._order


def test_next_due_skips_and_forgets_the_buckets_that_were_emptied() -> None:
    wheel: Wheel[str] = Wheel()
    slot = wheel.add("answered", 1.0)
    wheel.add("waiting", 2.0)
    wheel.remove("answered", slot)
    assert 2.0 <= wheel.next_due() <= 2.0 + BUCKET_S + ULPS
    assert len(wheel._buckets) == len(wheel._order) == 1


def test_removing_twice_or_after_the_time_came_is_nothing() -> None:
    wheel: Wheel[str] = Wheel()
    slot = wheel.add("call", 1.0)
    assert wheel.pop_due(2.0) == ["call"]
    wheel.remove("call", slot)
    wheel.remove("call", slot)
    assert len(wheel) == 0


def test_an_old_slot_does_not_reach_a_new_entry_of_the_same_bucket() -> None:
    wheel: Wheel[str] = Wheel()
    slot = wheel.add("call", 1.0)
    wheel.remove("call", slot)
    wheel.next_due()
    wheel.add("call", 1.0)
    wheel.remove("call", slot)
    assert wheel.pop_due(2.0) == ["call"]


def test_deadlines_of_one_bucket_share_a_slot() -> None:
    wheel: Wheel[str] = Wheel()
    assert wheel.add("a", 1.0) is wheel.add("b", 1.0)
    assert sorted(wheel.pop_due(2.0)) == ["a", "b"]


class WheelAgainstAList(RuleBasedStateMachine):
    """A list of (entry, deadline) does the same, only slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.wheel: Wheel[int] = Wheel()
        self.model: dict[int, tuple[float, set[int]]] = {}
        self.now = 0.0
        self.added = 0

    @rule(ahead_s=st.floats(-0.1, 0.2) | st.floats(0, 100))
    def add(self, ahead_s: float) -> None:
        self.added += 1
        deadline = max(0.0, self.now + ahead_s)
        self.model[self.added] = (deadline, self.wheel.add(self.added, deadline))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(sorted(self.model)))
        self.wheel.remove(entry, self.model.pop(entry)[1])

    @rule(ahead_s=st.floats(0, 0.05) | st.floats(0, 100))
    def pass_time(self, ahead_s: float) -> None:
        self.now += ahead_s
        for entry in self.wheel.pop_due(self.now):
            deadline, _ = self.model.pop(entry)
            assert deadline <= self.now
        assert all(deadline > self.now - BUCKET_S - ULPS for deadline, _ in self.model.values())

    @rule()
    def ask(self) -> None:
        earliest = min((deadline for deadline, _ in self.model.values()), default=NEVER)
        assert earliest <= self.wheel.next_due() <= earliest + BUCKET_S + ULPS

    @invariant()
    def holds_what_the_list_holds(self) -> None:
        assert len(self.wheel) == len(self.model)
        assert len(self.wheel._buckets) == len(self.wheel._order)


TestWheelAgainstAList = pytest.mark.slow(WheelAgainstAList.TestCase)


def test_calls_that_ended_leave_no_buckets_behind_however_their_deadlines_are_spread() -> None:
    wheel: Wheel[int] = Wheel()
    for n in range(100_000):
        wheel.remove(n, wheel.add(n, 1000.0 + n))
    assert len(wheel._buckets) <= SWEEP_OVER + 1
    assert len(wheel._order) <= SWEEP_OVER + 1


def test_sweeping_loses_nobody() -> None:
    wheel: Wheel[int] = Wheel()
    for n in range(30_000):
        slot = wheel.add(n, 1000.0 + n)
        if n % 3:
            wheel.remove(n, slot)
    assert len(wheel) == 10_000
    assert wheel.pop_due(1000.0 + 30_001) == list(range(0, 30_000, 3))
