"""A call costs the router the same however many services, instances, clients and calls it knows.

Bytecodes are counted, by a trace function: a loop over everybody shows, on any machine, in a second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

from benchmarks import scale, swarm
from benchmarks.crowd import Crowd

CALLS = 64


def _bytecodes(work: Callable[[], object]) -> int:
    """Return how many bytecodes a piece of work takes."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def _loop(n: int) -> None:
    for _ in range(n):
        pass


def _cost(crowd: Crowd, calls: int = CALLS) -> float:
    crowd.play(crowd.prepare(crowd.at_once))
    turns = crowd.prepare(calls)
    return _bytecodes(lambda: crowd.play(turns)) / calls


@pytest.mark.parametrize("row", scale.ROWS, ids=lambda row: row.what)
def test_a_call_among_many_takes_the_bytecodes_of_one_alone(row: scale.Row) -> None:
    costs = [_cost(row.crowd(size)) for size in (row.sizes[0], 300)]
    assert scale.is_flat(costs), costs


@pytest.mark.parametrize("row", scale.ROWS, ids=lambda row: row.what)
def test_every_call_in_a_crowd_is_answered(row: scale.Row) -> None:
    crowd = row.crowd(200)
    turns = crowd.prepare(CALLS)
    # Each turn makes one message, or none and the next turn two.
    assert crowd.play(turns) == len(turns) == 2 * CALLS / crowd.at_once
    assert not crowd.hub.machine.counters
    assert len(crowd.hub.machine.dispatcher.pools[b"bench.0"].queue) == crowd.queued


def test_a_loop_over_everybody_would_be_seen() -> None:
    few, many = (_bytecodes(partial(_loop, n)) for n in (1, 300))
    assert not scale.is_flat([few, many])


@pytest.mark.parametrize("chore", scale.CHORES, ids=lambda chore: chore.text)
def test_a_chore_can_be_done(chore: scale.Chore) -> None:
    crowd = chore.crowd(3)
    chore.act(crowd)
    assert not crowd.hub.machine.counters["faults"]


@pytest.mark.parametrize(
    ("costs", "is_flat"), [([100.0, 119.0, 101.0], True), ([121.0, 100.0], False), ([1.0], True)]
)
def test_flat_is_within_a_fifth(costs: list[float], is_flat: bool) -> None:
    assert scale.is_flat(costs) is is_flat


@pytest.mark.slow
def test_light_peers_call_each_other_through_a_router_process() -> None:
    found = swarm.measure(3, 2, 0.1, warm_up_s=0.1)
    assert found.calls_s > 0
    assert found.rss_kib > 0
    assert 1 <= found.records_back <= 32
    assert 1 <= found.records_front <= 32
