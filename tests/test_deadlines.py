"""Deadlines: a nested call has its own time, and never more than is left to whom it is made for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from butler_mesh import deadlines
from butler_mesh.deadlines import (
    DEFAULT_TIMEOUT_S,
    NEVER,
    NOWAIT_TIMEOUT_S,
    current,
    deadline_for,
    remaining_s,
)


@pytest.fixture(autouse=True)
def _at_100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "monotonic", lambda: 100.0)


@pytest.fixture
def until_105() -> Iterator[None]:
    """Be the handler of a request that has five seconds left."""
    token = current.set(105.0)
    yield
    current.reset(token)


def test_outside_of_any_handler_there_is_no_end() -> None:
    assert current.get() == NEVER
    assert remaining_s() == NEVER


@pytest.mark.usefixtures("until_105")
def test_within_a_handler_what_is_left_is_known() -> None:
    assert remaining_s() == 5.0


def test_what_is_left_is_never_negative() -> None:
    token = current.set(99.0)
    assert remaining_s() == 0.0
    current.reset(token)


def test_a_call_on_nobodys_behalf_has_its_own_timeout_or_the_default() -> None:
    assert deadline_for(2.5, 100.0) == 102.5
    assert deadline_for(None, 100.0) == 100.0 + DEFAULT_TIMEOUT_S == 130.0
    assert deadline_for(None, 100.0, NOWAIT_TIMEOUT_S) == 160.0


@pytest.mark.usefixtures("until_105")
@pytest.mark.parametrize(
    ("timeout_s", "deadline"), [(2.5, 102.5), (5.0, 105.0), (60.0, 105.0), (None, 105.0)]
)
def test_a_nested_call_ends_with_its_own_timeout_but_never_after_the_inherited_one(
    timeout_s: float | None, deadline: float
) -> None:
    assert deadline_for(timeout_s, 100.0) == deadline


@pytest.mark.usefixtures("until_105")
def test_a_timeout_of_zero_is_now_and_not_the_default() -> None:
    assert deadline_for(0.0, 100.0) == 100.0
