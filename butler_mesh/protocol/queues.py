"""The bounded queue of one service: fair between clients, and quick to leave."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)
T = TypeVar("T", bound=Hashable)


class FairQueue(Generic[C, T]):
    """Entries by client, served round-robin: one client's thousand calls delay another's one call by
    one. An entry can be discarded from the middle at once, so that timed-out calls leave nothing.
    """

    __slots__ = ("_by_client", "size")

    def __init__(self) -> None:
        self._by_client: OrderedDict[C, OrderedDict[T, None]] = OrderedDict()
        self.size = 0

    def push(self, client: C, entry: T) -> None:
        """Append to the client's own queue."""
        entries = self._by_client.get(client)
        if entries is None:
            entries = self._by_client[client] = OrderedDict()
        entries[entry] = None
        self.size += 1

    def push_front(self, client: C, entry: T) -> None:
        """Put back what was taken out: it is the next of all."""
        self.push(client, entry)
        self._by_client[client].move_to_end(entry, last=False)
        self._by_client.move_to_end(client, last=False)

    def pop(self) -> T:
        """Take the oldest entry of the client whose turn it is; IndexError when empty."""
        if not self.size:
            raise IndexError("pop from an empty queue")
        client = next(iter(self._by_client))
        entries = self._by_client[client]
        entry, _ = entries.popitem(last=False)
        if entries:
            self._by_client.move_to_end(client)
        else:
            del self._by_client[client]
        self.size -= 1
        return entry

    def discard(self, client: C, entry: T) -> bool:
        """Take one entry out, wherever it stands; tell whether it was there."""
        entries = self._by_client.get(client)
        if entries is None or entry not in entries:
            return False
        del entries[entry]
        if not entries:
            del self._by_client[client]
        self.size -= 1
        return True

    def surplus(self, client: C) -> T | None:
        """Return the entry that is to give way for one more of this client's where there is no room: the
        newest of whoever has the most. None when the client would then have more than they."""
        own = self._by_client.get(client)
        mine = 0 if own is None else len(own)
        if mine * (len(self._by_client) + (own is None)) >= self.size:
            return None  # it has an equal share or more; a flood is to be told so without a search
        most = max(self._by_client.values(), key=len)
        return next(reversed(most)) if len(most) > mine + 1 else None

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[T]:
        """Every entry, client by client; for moving a queue, not for serving it."""
        for entries in self._by_client.values():
            yield from entries
