"""The loop that all else is compared with. Never to be changed: every recorded budget is a multiple of it.

It is the machines' work in small, so that an interpreter that is faster at theirs is faster at this: records
packed, joined and parsed, objects with slots in tables, sets of deadlines, and methods that call methods.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import NamedTuple

BATCH = 32
BUCKET_S = 0.016
PAYLOAD = b"\x04\x00echo" + b"x" * 120

_RECORD = Struct("<IBBQI")


class Record(NamedTuple):
    """What is packed and parsed."""

    kind: int
    flags: int
    id: int
    left_ms: int
    payload: bytes


class Item:
    """What is put into tables and taken out again."""

    __slots__ = ("deadline", "flags", "id", "is_over", "owner", "payload", "slot", "tries")

    def __init__(self, owner: Side, id_: int, flags: int, deadline: float, payload: bytes) -> None:
        self.owner = owner
        self.id = id_
        self.flags = flags
        self.deadline = deadline
        self.payload = payload
        self.slot: set[Item] | None = None
        self.is_over = False
        self.tries = 0


class Box:
    """Records on their way out."""

    __slots__ = ("count", "is_dirty", "pieces", "size")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.count = 0
        self.size = 0
        self.is_dirty = False

    def add(self, kind: int, flags: int = 0, id_: int = 0, left_ms: int = 0, payload: bytes = b"") -> None:
        if not self.is_dirty:
            self.is_dirty = True
        size = len(payload)
        pieces = self.pieces
        pieces.append(_RECORD.pack(size, kind, flags, id_, left_ms))
        pieces.append(payload)
        size += _RECORD.size
        self.size += size
        self.count += 1

    def seal(self) -> bytes:
        frame = b"".join(self.pieces)
        self.pieces = []
        self.count = self.size = 0
        self.is_dirty = False
        return frame


class Side:
    """One of two: asks, and answers what the other asks."""

    def __init__(self) -> None:
        self.box = Box()
        self.items: dict[int, Item] = {}
        self.buckets: dict[int, set[Item]] = {}
        self.waiting: deque[Item] = deque()
        self.done = 0
        self.last_id = 0
        self.acts = {4: self.asked, 6: self.answered}

    def ask(self, now: float) -> None:
        self.last_id += 1
        id_ = self.last_id
        item = Item(self, id_, 4, now + 30.0, PAYLOAD)
        self.items[id_] = item
        item.slot = self.remember(item, item.deadline)
        item.tries += 1
        left = -int((now - item.deadline) * 1000 // 1)
        self.box.add(4, item.flags, id_, left, item.payload)

    def receive(self, frame: bytes, now: float) -> None:
        acts = self.acts
        for record in self.parse(frame):
            act = acts.get(record.kind)
            if act is None:
                continue
            act(record, now)

    def parse(self, frame: bytes) -> list[Record]:
        records: list[Record] = []
        append, make = records.append, tuple.__new__
        at, size = 0, len(frame)
        while at < size:
            body = at + _RECORD.size
            if body > size:
                raise ValueError("cut short")
            length, kind, flags, id_, left_ms = _RECORD.unpack_from(frame, at)
            at = body + length
            if at > size:
                raise ValueError("too long")
            append(make(Record, (kind, flags, id_, left_ms, frame[body:at])))
        return records

    def asked(self, record: Record, now: float) -> None:
        _, flags, id_, left_ms, payload = record
        end = 2 + (payload[0] | payload[1] << 8)
        target = payload[2:end]
        if not target or flags & 0xC0:
            return
        item = Item(self, id_, flags, now + left_ms / 1000.0, payload)
        item.slot = self.remember(item, item.deadline)
        self.waiting.append(item)

    def work(self, now: float) -> None:
        waiting = self.waiting
        while waiting:
            item = waiting.popleft()
            if item.deadline <= now or item.is_over:
                continue
            item.is_over = True
            self.settle(item)
            self.box.add(6, 0, item.id, 0, item.payload)

    def answered(self, record: Record, now: float) -> None:
        item = self.items.pop(record.id, None)
        if item is not None and not item.is_over:
            self.settle(item)
            self.done += 1

    def remember(self, item: Item, deadline: float) -> set[Item]:
        number = int(deadline / BUCKET_S) + 1
        slot = self.buckets.get(number)
        if slot is None:
            slot = self.buckets[number] = set()
        slot.add(item)
        return slot

    def settle(self, item: Item) -> None:
        if item.slot is not None:
            item.slot.discard(item)
            item.slot = None


def run(turns: int) -> int:
    """Ask and answer so often, in batches; return how often it was done."""
    one, other = Side(), Side()
    now = 1000.0
    for _ in range(turns // BATCH):
        now += 0.001
        for _ in range(BATCH):
            one.ask(now)
        other.receive(one.box.seal(), now)
        other.work(now)
        one.receive(other.box.seal(), now)
    return one.done
