"""The outbox: records are coalesced up to the caps, and its count of bytes always returns to 0."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh.protocol import mesh
from butler_mesh.protocol.mesh import FINAL, HEADER_SIZE, RECORD_SIZE
from butler_mesh.protocol.outbox import FRAME_BYTES, MAX_OUTBOX_BYTES, MESSAGE_BYTES, Outbox


@pytest.fixture
def outbox() -> Outbox:
    return Outbox([])


def sizes(outbox: Outbox) -> list[int]:
    """Return how many records each waiting message holds."""
    return [len(mesh.parse(bytes(frames[0]), frames[1:])[1]) for _, frames in outbox.messages]


def test_nothing_added_is_no_message(outbox: Outbox) -> None:
    outbox.seal(1.0)
    assert not outbox.messages
    assert outbox.pending_bytes == 0


def test_what_one_turn_adds_leaves_as_one_message_with_the_turns_stamp(outbox: Outbox) -> None:
    outbox.add(FINAL, mesh.RAW, 7, 0, b"\xc8\x00{}")
    outbox.add(mesh.REQUEST, 0, 8, 30_000, b"\x00\x00")
    outbox.seal(2.5)
    ((_, (frame,)),) = outbox.messages
    assert mesh.parse(bytes(frame)) == (
        2500,
        [
            mesh.Record(FINAL, mesh.RAW, 7, 0, b"\xc8\x00{}", None),
            mesh.Record(mesh.REQUEST, 0, 8, 30_000, b"\x00\x00", None),
        ],
    )


def test_a_message_is_closed_at_32_records(outbox: Outbox) -> None:
    for id_ in range(65):
        outbox.add(FINAL, 0, id_)
    outbox.seal(1.0)
    assert sizes(outbox) == [32, 32, 1]


def test_a_message_is_closed_at_32_kib(outbox: Outbox) -> None:
    for _ in range(5):
        outbox.add(FINAL, payload=bytes(16 * 1024))
    outbox.seal(1.0)
    assert sizes(outbox) == [2, 2, 1]


def test_a_record_larger_than_the_cap_closes_its_message_and_no_other(outbox: Outbox) -> None:
    outbox.add(FINAL, payload=bytes(64 * 1024))
    outbox.add(FINAL)
    outbox.seal(1.0)
    assert sizes(outbox) == [1, 1]


def test_attachments_do_not_count_for_the_cap_of_a_message(outbox: Outbox) -> None:
    for _ in range(3):
        outbox.add(FINAL, payload=b"\xc8\x00", envelope=bytes(100_000))
    outbox.seal(1.0)
    assert sizes(outbox) == [3]


def test_a_message_is_closed_at_1_MiB_of_attachments(outbox: Outbox) -> None:
    for _ in range(4):
        outbox.add(FINAL, payload=b"\xc8\x00", envelope=bytes(600_000))
    outbox.add(FINAL)
    outbox.seal(1.0)
    assert sizes(outbox) == [2, 2, 1]


def test_an_outbox_that_has_filled_a_message_says_so_once_and_keeps_what_it_is_filling() -> None:
    dirty: list[Outbox] = []
    full: list[Outbox] = []
    outbox = Outbox(dirty, filled=full)
    for id_ in range(2 * mesh.MAX_BATCH_RECORDS + 1):
        assert full == ([outbox] if id_ >= mesh.MAX_BATCH_RECORDS else [])
        outbox.add(FINAL, 0, id_)
    outbox.seal_filled(1.0)
    assert sizes(outbox) == [mesh.MAX_BATCH_RECORDS] * 2
    outbox.seal(2.0)
    assert sizes(outbox) == [mesh.MAX_BATCH_RECORDS] * 2 + [1]


def test_records_stay_in_order_across_messages(outbox: Outbox) -> None:
    for id_ in range(100):
        outbox.add(FINAL, 0, id_)
    outbox.seal(1.0)
    ids = [record.id for _, frames in outbox.messages for record in mesh.parse(bytes(frames[0]))[1]]
    assert ids == list(range(100))


def test_an_envelope_of_its_own_becomes_a_frame_and_sets_the_flag(outbox: Outbox) -> None:
    envelope = b"large"
    outbox.add(FINAL, mesh.RAW, 7, 0, b"\xc8\x00", envelope)
    outbox.add(FINAL, 0, 8)
    outbox.seal(1.0)
    ((_, (frame, attached)),) = outbox.messages
    assert attached is envelope
    _, (first, second) = mesh.parse(bytes(frame), [attached])
    assert (first.flags, first.envelope) == (mesh.RAW | mesh.ATTACHED, envelope)
    assert (second.flags, second.envelope) == (0, None)


def test_a_foreign_message_is_kept_frame_by_frame(outbox: Outbox) -> None:
    frames = [b"", b"MDPW01", b"\x04"]
    outbox.put(frames)
    # Not its seven bytes alone: the objects that hold them weigh more, and the bound is for memory.
    size = 7 + MESSAGE_BYTES + 3 * FRAME_BYTES
    assert outbox.pending_bytes == size
    assert outbox.messages[0] == (size, frames)
    outbox.sent()
    assert outbox.pending_bytes == 0


def test_pending_bytes_count_attachments_and_return_to_zero(outbox: Outbox) -> None:
    outbox.add(FINAL, payload=b"abc", envelope=b"12345")
    outbox.add(FINAL, payload=b"de")
    assert outbox.pending_bytes == 2 * RECORD_SIZE + 3 + 5 + 2
    outbox.seal(1.0)
    assert outbox.pending_bytes == 2 * RECORD_SIZE + 3 + 5 + 2
    outbox.sent()
    assert outbox.pending_bytes == 0


def test_dropping_forgets_what_is_open_filled_and_sealed(outbox: Outbox) -> None:
    outbox.add(FINAL)
    outbox.seal(1.0)
    for id_ in range(33):
        outbox.add(FINAL, 0, id_, envelope=b"x")
    outbox.drop()
    assert outbox.pending_bytes == 0
    outbox.seal(1.0)
    assert not outbox.messages


def test_after_a_drop_it_can_be_used_again(outbox: Outbox) -> None:
    outbox.add(FINAL, payload=b"old", envelope=b"old")
    outbox.drop()
    outbox.add(FINAL, 0, 9)
    outbox.seal(1.0)
    ((_, (frame,)),) = outbox.messages
    _, (record,) = mesh.parse(bytes(frame))
    assert record.id == 9


def test_it_enters_the_list_of_the_dirty_once_until_the_pump_has_looked() -> None:
    dirty: list[Outbox] = []
    outbox = Outbox(dirty)
    outbox.add(FINAL)
    outbox.add(FINAL)
    outbox.put([b"x"])
    assert dirty == [outbox]
    dirty.clear()
    outbox.is_dirty = False
    outbox.put([b"x"])
    assert dirty == [outbox]


def test_it_knows_the_way_back() -> None:
    door = object()
    outbox = Outbox([], door, b"id")
    assert (outbox.door, outbox.routing_id) == (door, b"id")


def test_it_is_full_over_8_mib_attachments_included(outbox: Outbox) -> None:
    outbox.put([bytes(MAX_OUTBOX_BYTES)])
    outbox.is_dirty = False  # its turn to leave has come, and it is still there
    assert not outbox.is_full
    outbox.add(FINAL, envelope=b"")
    assert outbox.is_full
    outbox.sent()
    assert not outbox.is_full


def test_one_turns_records_do_not_fill_it_whatever_their_size(outbox: Outbox) -> None:
    outbox.put([bytes(2 * MAX_OUTBOX_BYTES)])
    outbox.add(FINAL)
    assert not outbox.is_full


def test_it_tells_which_requests_the_socket_has_not_taken(outbox: Outbox) -> None:
    outbox.add(mesh.REQUEST, 0, 1)
    outbox.seal(1.0)
    outbox.sent()
    outbox.add(mesh.REQUEST, 0, 2, envelope=b"large")
    outbox.add(mesh.CANCEL, 0, 3)
    outbox.seal(1.0)
    outbox.put([b"", b"MDPW01", b"\x04"])
    outbox.add(mesh.REQUEST, 0, 4)
    assert outbox.unsent(mesh.REQUEST) == {2, 4}
    assert outbox.unsent(mesh.CANCEL) == {3}
    assert Outbox([]).unsent(mesh.REQUEST) == set()


steps = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 20_000), st.none() | st.integers(0, 90_000)),
    st.tuples(st.just("put"), st.integers(0, 3), st.none()),
    st.tuples(st.sampled_from(["seal", "send", "drop"]), st.just(0), st.none()),
)


@given(st.lists(steps, max_size=60))
def test_whatever_is_done_the_count_is_what_waits_and_ends_at_zero(
    steps: list[tuple[str, int, int | None]],
) -> None:
    outbox = Outbox([])
    added, left = 0, 0
    for step, size, attached in steps:
        if step == "add":
            outbox.add(FINAL, 0, added, 0, bytes(size), None if attached is None else bytes(attached))
            added += 1
        elif step == "put":
            outbox.put([b"frame"] * size)
        elif step == "seal":
            outbox.seal(1.0)
        elif step == "send" and outbox.messages:
            outbox.sent()
        elif step == "drop":
            outbox.drop()
            assert outbox.pending_bytes == 0
    outbox.seal(1.0)
    for size, frames in outbox.messages:
        if frames and mesh.is_mesh(bytes(frames[0])):
            _, records = mesh.parse(bytes(frames[0]), frames[1:])
            assert 1 <= len(records) <= mesh.MAX_BATCH_RECORDS
            inline = sum(RECORD_SIZE + len(record.payload) for record in records)
            assert inline - RECORD_SIZE - len(records[-1].payload) < mesh.MAX_BATCH_BYTES
            assert size == sum(map(len, frames)) - HEADER_SIZE
        left += size
    assert outbox.pending_bytes == left
    while outbox.messages:
        outbox.sent()
    assert outbox.pending_bytes == 0
