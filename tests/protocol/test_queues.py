"""The fair queue: clients take turns, their own requests keep their order, any can leave at once."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from butler_mesh.protocol.queues import FairQueue


def drained(queue: FairQueue[str, int]) -> list[int]:
    """Return everything in the order in which it is served."""
    return [queue.pop() for _ in range(len(queue))]


@pytest.fixture
def queue() -> FairQueue[str, int]:
    return FairQueue()


def test_one_client_is_served_in_order(queue: FairQueue[str, int]) -> None:
    for entry in (3, 1, 2):
        queue.push("a", entry)
    assert drained(queue) == [3, 1, 2]


def test_a_thousand_calls_of_one_client_delay_anothers_one_call_by_one(queue: FairQueue[str, int]) -> None:
    for entry in range(1_000):
        queue.push("busy", entry)
    queue.push("modest", 5_000)
    assert queue.pop() == 0
    assert queue.pop() == 5_000
    assert queue.pop() == 1


def test_where_there_is_no_room_the_newest_of_whoever_has_the_most_gives_way(
    queue: FairQueue[str, int],
) -> None:
    for client, entry in (("busy", 1), ("busy", 2), ("busy", 3), ("other", 4)):
        queue.push(client, entry)
    assert queue.surplus("modest") == 3
    assert queue.surplus("other") == 3
    assert queue.surplus("busy") is None


def test_nobody_gives_way_to_one_who_would_then_have_more_than_they(queue: FairQueue[str, int]) -> None:
    assert queue.surplus("a") is None
    queue.push("a", 1)
    assert queue.surplus("b") is None
    queue.push("a", 2)
    assert queue.surplus("b") == 2


def test_clients_take_turns(queue: FairQueue[str, int]) -> None:
    for client, entry in (("a", 1), ("a", 2), ("a", 3), ("b", 4), ("b", 5), ("c", 6)):
        queue.push(client, entry)
    assert drained(queue) == [1, 4, 6, 2, 5, 3]


def test_what_is_put_back_is_the_next_of_all(queue: FairQueue[str, int]) -> None:
    for client, entry in (("a", 1), ("a", 2), ("b", 3)):
        queue.push(client, entry)
    taken = queue.pop()
    queue.push_front("a", taken)
    assert drained(queue) == [1, 3, 2]


def test_what_is_put_back_of_a_client_that_has_nothing_else_is_the_next_too(
    queue: FairQueue[str, int],
) -> None:
    queue.push("b", 3)
    queue.push_front("a", 1)
    assert drained(queue) == [1, 3]


def test_an_entry_leaves_from_the_middle_at_once(queue: FairQueue[str, int]) -> None:
    for entry in (1, 2, 3):
        queue.push("a", entry)
    assert queue.discard("a", 2)
    assert len(queue) == 2
    assert drained(queue) == [1, 3]


def test_discarding_tells_whether_the_entry_was_there(queue: FairQueue[str, int]) -> None:
    queue.push("a", 1)
    assert not queue.discard("a", 2)
    assert not queue.discard("b", 1)
    assert queue.discard("a", 1)
    assert not queue.discard("a", 1)
    assert len(queue) == 0


def test_a_client_whose_last_entry_left_leaves_nothing_behind(queue: FairQueue[str, int]) -> None:
    queue.push("a", 1)
    queue.push("b", 2)
    queue.discard("a", 1)
    queue.pop()
    assert not queue._by_client


def test_an_empty_queue_has_nothing_to_pop(queue: FairQueue[str, int]) -> None:
    with pytest.raises(IndexError, match="empty"):
        queue.pop()


def test_it_can_be_read_without_being_served(queue: FairQueue[str, int]) -> None:
    for client, entry in (("a", 1), ("b", 2), ("a", 3)):
        queue.push(client, entry)
    assert list(queue) == [1, 3, 2]
    assert len(queue) == 3


class FairQueueAgainstLists(RuleBasedStateMachine):
    """A list of clients, each with a list of entries, does the same, only slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[str, int] = FairQueue()
        self.model: list[tuple[str, list[int]]] = []
        self.taken: list[tuple[str, int]] = []
        self.added = 0

    def entries(self, client: str) -> list[int]:
        for name, entries in self.model:
            if name == client:
                return entries
        self.model.append((client, []))
        return self.model[-1][1]

    @rule(client=st.sampled_from("abc"))
    def push(self, client: str) -> None:
        self.added += 1
        self.queue.push(client, self.added)
        self.entries(client).append(self.added)

    @precondition(lambda self: self.model)
    @rule()
    def pop(self) -> None:
        client, entries = self.model.pop(0)
        entry = entries.pop(0)
        if entries:
            self.model.append((client, entries))
        assert self.queue.pop() == entry
        self.taken.append((client, entry))

    @precondition(lambda self: self.taken)
    @rule()
    def put_back(self) -> None:
        client, entry = self.taken.pop()
        self.queue.push_front(client, entry)
        entries = self.entries(client)
        entries.insert(0, entry)
        self.model.remove((client, entries))
        self.model.insert(0, (client, entries))

    @rule(client=st.sampled_from("abc"), data=st.data())
    def discard(self, client: str, data: st.DataObject) -> None:
        there = [entry for _, entries in self.model for entry in entries]
        entry = data.draw(st.sampled_from([0, *there]))
        found = next((pair for pair in self.model if pair[0] == client and entry in pair[1]), None)
        assert self.queue.discard(client, entry) is (found is not None)
        if found is not None:
            found[1].remove(entry)
            if not found[1]:
                self.model.remove(found)

    @invariant()
    def holds_what_the_lists_hold(self) -> None:
        there = [entry for _, entries in self.model for entry in entries]
        assert list(self.queue) == there
        assert len(self.queue) == len(there)


TestFairQueueAgainstLists = pytest.mark.slow(FairQueueAgainstLists.TestCase)
