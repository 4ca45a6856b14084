"""gevent's hub in programs that do not know of it."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.hub import get_hub

from butler_mesh.compat.majortomo.hub import run_outside, turn
from tests.waiting import wait_for


def test_turn_lets_others_go_on_for_a_few_steps() -> None:
    """A greenlet that hands on to another, and that to the loop, has done so when ``turn`` returns."""
    done: list[str] = []

    def first() -> None:
        gevent.spawn(second)

    def second() -> None:
        get_hub().loop.run_callback(done.append, "sent")

    gevent.spawn(first)
    turn()
    assert done == ["sent"]


def test_in_a_greenlet_what_is_to_be_done_is_done_at_once() -> None:
    """When the call returns it is done."""
    done: list[Any] = []
    run_outside(lambda: done.append(gevent.getcurrent()))
    assert done == [gevent.getcurrent()]


def test_in_the_hub_it_is_done_by_a_greenlet_that_may_wait() -> None:
    """As a signal's handler needs it, which strikes in the hub where everybody waits."""
    done: list[str] = []
    go = Event()

    def act() -> None:
        go.wait()
        done.append("done")

    get_hub().loop.run_callback(run_outside, act)
    turn()
    assert done == []
    go.set()
    wait_for(lambda: done == ["done"])


def test_what_goes_wrong_in_a_greenlet_is_raised_there() -> None:
    """The caller sees it."""
    with pytest.raises(ZeroDivisionError):
        run_outside(lambda: 1 // 0)
