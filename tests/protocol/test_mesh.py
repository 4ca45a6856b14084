"""The mesh wire byte by byte: what is written, what is read back, and every way a length can lie."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh import codec
from butler_mesh.errors import NotSerializable, ProtocolError
from butler_mesh.protocol import mesh
from butler_mesh.protocol.mesh import Malformed, Record, UnsupportedVersion

HEADER = bytes.fromhex("be 01 04030201")
FINAL_7 = bytes.fromhex("04000000 06 00 0700000000000000 00000000") + b"\xc8\x00{}"
CANCEL_8 = bytes.fromhex("00000000 09 00 0800000000000000 00000000")


def record(length: int, *, flags: int = 0, payload: bytes = b"") -> bytes:
    """Return a record whose length field says just that."""
    return struct.pack("<IBBQI", length, mesh.FINAL, flags, 1, 0) + payload


# --- messages and records -------------------------------------------------------------------------


def test_a_message_opens_with_magic_version_and_the_senders_clock() -> None:
    assert mesh.pack_header(0x01020304) == HEADER


def test_the_stamp_wraps_at_32_bits() -> None:
    assert mesh.pack_header(0x1_0000_0005) == bytes.fromhex("be 01 05000000")


def test_a_record_is_length_kind_flags_id_remaining_little_endian() -> None:
    packed = mesh.pack_record(5, mesh.REQUEST, mesh.IDEMPOTENT, 0x0102030405060708, 30_000)
    assert packed == bytes.fromhex("05000000 04 04 0807060504030201 30750000")
    assert len(packed) == mesh.RECORD_SIZE == 18


def test_the_kinds_have_these_numbers_for_ever() -> None:
    kinds = "HELLO WELCOME READY REQUEST PARTIAL FINAL RETURN CREDIT CANCEL WINDOW HEARTBEAT GOODBYE"
    names = [*kinds.split(), "CONTROL", "EVENT"]
    assert [mesh.KIND_NAMES[kind] for kind in range(1, 15)] == names
    assert all(getattr(mesh, name) == kind for kind, name in mesh.KIND_NAMES.items())


def test_the_flags_have_these_bits_for_ever() -> None:
    flags = (mesh.ATTACHED, mesh.ONE_WAY, mesh.IDEMPOTENT, mesh.STREAM, mesh.RAW, mesh.CRITICAL)
    assert flags == (0x01, 0x02, 0x04, 0x08, 0x10, 0xC0)


def test_a_message_of_two_records_is_read_as_it_was_written() -> None:
    stamp, records = mesh.parse(HEADER + FINAL_7 + CANCEL_8)
    assert stamp == 0x01020304
    assert records == [
        Record(mesh.FINAL, 0, 7, 0, b"\xc8\x00{}", None),
        Record(mesh.CANCEL, 0, 8, 0, b"", None),
    ]


def test_a_message_without_records_is_allowed_and_says_nothing() -> None:
    assert mesh.parse(HEADER) == (0x01020304, [])


def test_an_unknown_kind_is_read_by_its_length_like_any_other() -> None:
    unknown = struct.pack("<IBBQI", 3, 200, 0, 9, 0) + b"new"
    _, records = mesh.parse(HEADER + unknown + CANCEL_8)
    assert [(r.kind, r.payload) for r in records] == [(200, b"new"), (mesh.CANCEL, b"")]


def test_a_payload_is_bytes_of_its_own_that_do_not_pin_the_batch() -> None:
    _, (found,) = mesh.parse(HEADER + FINAL_7)
    assert type(found.payload) is bytes


@pytest.mark.parametrize(
    ("frame", "is_mesh"),
    [
        (HEADER, True),
        (b"\xbe\x02\x00\x00\x00\x00", True),
        (b"\xbe\x01\x00\x00\x00", False),
        (b"", False),
        (b"MDPC02", False),
        (b"\x00" * 6, False),
    ],
    ids=repr,
)
def test_a_mesh_message_is_told_by_its_magic_whatever_its_version(frame: bytes, is_mesh: bool) -> None:
    assert mesh.is_mesh(frame) is is_mesh


# --- attachments ----------------------------------------------------------------------------------


def test_attachments_belong_to_the_attached_records_in_their_order() -> None:
    first, plain, second = record(0, flags=mesh.ATTACHED), CANCEL_8, record(0, flags=mesh.ATTACHED)
    _, records = mesh.parse(HEADER + first + plain + second, [b"one", b"two"])
    assert [r.envelope for r in records] == [b"one", None, b"two"]


def test_an_attachment_is_handed_on_untouched() -> None:
    frame = bytes([1, 2, 3])
    _, (found,) = mesh.parse(HEADER + record(0, flags=mesh.ATTACHED), [frame])
    assert found.envelope is frame


@pytest.mark.parametrize(
    ("records", "frames"),
    [
        (record(0, flags=mesh.ATTACHED), 0),
        (record(0, flags=mesh.ATTACHED) * 2, 1),
        (record(0), 1),
        (record(0, flags=mesh.ATTACHED), 2),
        (b"", 1),
        (record(0, flags=mesh.ATTACHED), 1_000),
    ],
    ids=["none for one", "one for two", "one for none", "two for one", "one alone", "a thousand for one"],
)
def test_frames_that_do_not_match_the_attached_flags_drop_the_message(records: bytes, frames: int) -> None:
    with pytest.raises(Malformed):
        mesh.parse(HEADER + records, [b"x"] * frames)


# --- lies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "length",
    [3, 4, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF],
    ids=["by one", "by two", "2 GiB", "negative when signed", "-2 when signed", "4 GiB"],
)
def test_a_length_that_points_past_the_message_drops_it(length: int) -> None:
    with pytest.raises(Malformed, match="past the message"):
        mesh.parse(HEADER + CANCEL_8 + record(length, payload=b"{}"))


def test_a_length_that_is_too_short_leaves_bytes_that_are_no_record() -> None:
    with pytest.raises(Malformed, match="cut short"):
        mesh.parse(HEADER + record(1, payload=b"{}"))


WHOLE = HEADER + FINAL_7 + CANCEL_8
BORDERS = {len(HEADER), len(HEADER + FINAL_7)}


@pytest.mark.parametrize("cut", [n for n in range(len(WHOLE)) if n not in BORDERS])
def test_a_message_cut_anywhere_within_a_record_is_dropped_whole(cut: int) -> None:
    with pytest.raises(Malformed):
        mesh.parse(WHOLE[:cut])


@pytest.mark.parametrize("magic", [b"\x00", b"\xbf", b"\x3e", b"M"])
def test_another_magic_is_not_a_mesh_message(magic: bytes) -> None:
    with pytest.raises(Malformed, match="not a mesh message"):
        mesh.parse(magic + HEADER[1:] + FINAL_7)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_told_from_garbage_so_that_it_can_be_answered(version: int) -> None:
    with pytest.raises(UnsupportedVersion, match=str(version)):
        mesh.parse(bytes([mesh.MAGIC, version]) + HEADER[2:] + b"whatever that version says")


def test_a_message_holds_at_most_256_records() -> None:
    _, records = mesh.parse(HEADER + CANCEL_8 * 256)
    assert len(records) == 256
    with pytest.raises(Malformed, match="too many"):
        mesh.parse(HEADER + CANCEL_8 * 257)


def test_reading_stops_at_the_257th_record_instead_of_counting_on() -> None:
    with pytest.raises(Malformed, match="too many"):
        mesh.parse(HEADER + CANCEL_8 * 257 + record(0xFFFFFFFF))


@given(st.binary(max_size=200), st.lists(st.binary(max_size=4), max_size=4))
def test_any_bytes_are_records_or_a_protocol_error(data: bytes, attachments: list[bytes]) -> None:
    for frame in (data, HEADER + data):
        try:
            _, records = mesh.parse(frame, attachments)
        except ProtocolError:
            continue
        assert mesh.HEADER_SIZE + sum(mesh.RECORD_SIZE + len(r.payload) for r in records) == len(frame)


drafts = st.tuples(
    st.integers(0, 255),
    st.integers(0, 255).map(lambda flags: flags & ~mesh.ATTACHED),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=50),
    st.none() | st.binary(max_size=9),
)


@given(st.integers(0, 2**32 - 1), st.lists(drafts, max_size=10))
def test_what_is_written_is_what_is_read(
    stamp: int, drafts: list[tuple[int, int, int, int, bytes, bytes | None]]
) -> None:
    frame, attachments, expected = mesh.pack_header(stamp), [], []
    for kind, flags, id_, remaining_ms, payload, envelope in drafts:
        if envelope is not None:
            flags |= mesh.ATTACHED
            attachments.append(envelope)
        frame += mesh.pack_record(len(payload), kind, flags, id_, remaining_ms) + payload
        expected.append(Record(kind, flags, id_, remaining_ms, payload, envelope))
    assert mesh.parse(frame, attachments) == (stamp, expected)


# --- payloads -------------------------------------------------------------------------------------


def test_a_target_is_its_length_and_its_bytes() -> None:
    payload = mesh.pack_target("ü/".encode())
    assert payload == b"\x03\x00\xc3\xbc/"
    assert mesh.split_target(payload + b"{}", 0) == ("ü/".encode(), 0, 5)


def test_a_streams_target_is_followed_by_its_first_window() -> None:
    payload = mesh.pack_target(b"echo", 16)
    assert payload == b"\x04\x00echo\x10\x00\x00\x00"
    assert mesh.split_target(payload + b"{}", mesh.STREAM) == (b"echo", 16, 10)


def test_a_target_of_over_255_bytes_uses_both_bytes_of_its_length() -> None:
    target = b"/" + b"a" * 0x1234
    assert mesh.split_target(mesh.pack_target(target), 0) == (target, 0, len(target) + 2)


@pytest.mark.parametrize("cut", range(len(mesh.pack_target(b"echo", 16))))
def test_a_streams_target_cut_anywhere_is_malformed(cut: int) -> None:
    with pytest.raises(Malformed):
        mesh.split_target(mesh.pack_target(b"echo", 16)[:cut], mesh.STREAM)


@pytest.mark.parametrize("cut", range(len(mesh.pack_target(b"echo"))))
def test_a_target_cut_anywhere_is_malformed(cut: int) -> None:
    with pytest.raises(Malformed):
        mesh.split_target(mesh.pack_target(b"echo")[:cut], 0)


def test_a_status_is_two_bytes() -> None:
    assert mesh.pack_status(404) == b"\x94\x01"
    assert mesh.split_status(b"\x94\x01{}") == 404
    for short in (b"", b"\x94"):
        with pytest.raises(Malformed):
            mesh.split_status(short)


def test_a_goodbye_says_why_and_a_short_one_says_nothing() -> None:
    assert mesh.pack_reason(503, "stöp") == b"\xf7\x01st\xc3\xb6p"
    assert mesh.split_reason(b"\xf7\x01st\xc3\xb6p") == (503, "stöp")
    assert mesh.split_reason(b"\xf7\x01\xff") == (503, "\N{REPLACEMENT CHARACTER}")
    assert mesh.split_reason(b"\xf7") == mesh.split_reason(b"") == (0, "")


def test_credit_is_signed_and_a_window_is_not() -> None:
    assert mesh.pack_credit(-2) == mesh.pack_window(0xFFFFFFFE) == b"\xfe\xff\xff\xff"
    assert mesh.split_credit(b"\xfe\xff\xff\xff") == -2
    assert mesh.split_window(b"\xfe\xff\xff\xff") == 0xFFFFFFFE


@pytest.mark.parametrize("split", [mesh.split_credit, mesh.split_window])
@pytest.mark.parametrize("size", [0, 1, 3, 5, 8])
def test_a_number_of_the_wrong_size_is_malformed(split: Callable[[bytes], int], size: int) -> None:
    with pytest.raises(Malformed):
        split(b"\x01" * size)


def test_an_object_is_what_hello_and_its_kin_carry() -> None:
    assert mesh.split_object(b'{"role": "client"}') == {"role": "client"}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not JSON",
        b'{"a": 1',
        b"[1]",
        b"7",
        b"null",
        b'"{}"',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": "\xff"}',
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b"\x00" * 10,
        b'{"a":"' + b"x" * mesh.MAX_OBJECT_BYTES + b'"}',
    ],
    ids=lambda payload: repr(payload[:16]),
)
def test_what_is_not_a_json_object_of_at_most_64_kib_is_malformed(payload: bytes) -> None:
    with pytest.raises(Malformed):
        mesh.split_object(payload)


@pytest.mark.parametrize("payload", [rb'{"a": "\ud800"}', b'{"a": 1e999}'], ids=repr)
def test_an_object_that_could_not_be_passed_on_is_malformed(payload: bytes) -> None:
    with pytest.raises(Malformed):
        mesh.split_object(payload)


def test_an_object_of_just_64_kib_is_read() -> None:
    text = "x" * (mesh.MAX_OBJECT_BYTES - len(b'{"a":""}'))
    assert mesh.split_object(b'{"a":"%s"}' % text.encode()) == {"a": text}


@given(st.binary(max_size=60))
def test_any_payload_is_split_or_malformed(payload: bytes) -> None:
    for split in (
        mesh.split_object,
        mesh.split_status,
        mesh.split_credit,
        mesh.split_window,
        mesh.split_raw,
        lambda data: mesh.split_target(data, 0),
        lambda data: mesh.split_target(data, mesh.STREAM),
    ):
        try:
            split(payload)
        except Malformed:
            continue
    mesh.split_reason(payload)


def test_a_failure_of_the_meshs_own_is_a_status_and_a_message() -> None:
    assert mesh.pack_failure(404, "no such service") == b'\x94\x01{"message":"no such service"}'


def test_a_failure_may_say_when_to_come_again() -> None:
    payload = mesh.pack_failure(503, "full", 1.0)
    assert codec.loads(payload[2:]) == {"message": "full", "headers": {"Retry-After": "1"}}


# --- remaining time -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_s", "expected"),
    [(1.0, 1000), (0.0005, 1), (1e-9, 1), (0.0, 0), (-0.0005, 0), (-2.5, -2500), (0.0125, 13)],
)
def test_remaining_time_is_rounded_up_and_never_to_zero(left_s: float, expected: int) -> None:
    assert mesh.remaining_ms(left_s, 0.0) == expected


def test_remaining_time_stops_at_what_32_bits_can_say() -> None:
    assert mesh.remaining_ms(1e12, 0.0) == 0xFFFFFFFF
    mesh.pack_record(0, mesh.REQUEST, 0, 1, mesh.remaining_ms(1e12, 0.0))


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6))
def test_remaining_time_is_never_less_than_what_is_left_nor_a_millisecond_more(
    now: float, left_s: float
) -> None:
    deadline = now + left_s
    remaining = mesh.remaining_ms(deadline, now)
    assert (deadline - now) * 1000 <= remaining < (deadline - now) * 1000 + 1


# --- RAW ------------------------------------------------------------------------------------------

RAW = b"\x02\x00\x00\x00{}\x02\x00\x03\x00\x00\x00abc\x00\x00\x00\x00"


def test_a_raw_envelope_is_a_head_and_counted_parts() -> None:
    assert mesh.pack_raw(b"{}", [b"abc", b""]) == RAW
    assert mesh.split_raw(RAW) == (b"{}", [b"abc", b""])


def test_a_raw_envelope_may_have_no_parts_and_no_head() -> None:
    assert mesh.pack_raw(b"", []) == bytes(6)
    assert mesh.split_raw(bytes(6)) == (b"", [])


@pytest.mark.parametrize("cut", range(len(RAW)))
def test_a_raw_envelope_cut_anywhere_is_malformed(cut: int) -> None:
    with pytest.raises(Malformed):
        mesh.split_raw(RAW[:cut])


@pytest.mark.parametrize(
    "envelope",
    [
        RAW + b"\x00",
        b"\xff\xff\xff\xff" + RAW[4:],
        RAW[:6] + b"\xff\xff" + RAW[8:],
        RAW[:8] + b"\xff\xff\xff\xff" + RAW[12:],
        RAW[:8] + b"\x00\x00\x00\x80" + RAW[12:],
        RAW[:6] + b"\x01\x00" + RAW[8:],
    ],
    ids=[
        "a byte too many",
        "head of 4 GiB",
        "65535 parts",
        "part of 4 GiB",
        "negative part",
        "one part left",
    ],
)
def test_a_raw_envelope_whose_lengths_lie_is_malformed(envelope: bytes) -> None:
    with pytest.raises(Malformed):
        mesh.split_raw(envelope)


@given(st.binary(max_size=20), st.lists(st.binary(max_size=20), max_size=8))
def test_raw_parts_come_back_byte_for_byte(head: bytes, parts: list[bytes]) -> None:
    assert mesh.split_raw(mesh.pack_raw(head, parts)) == (head, parts)


def test_over_65535_parts_are_refused_by_the_sender() -> None:
    with pytest.raises(NotSerializable, match="65535"):
        mesh.pack_raw(b"{}", [b""] * 65_536)


@pytest.mark.parametrize(
    ("envelope", "name"),
    [
        (b'{"arguments":{"service":"api"}}', "api"),
        (b'{"body":"api"}', "api"),
        (b'{"arguments":{"service":7}}', ""),
        (b'{"body":["api"]}', ""),
        (b"[]", ""),
        (b"\xff", ""),
    ],
)
def test_a_question_for_a_service_names_it_as_argument_or_body(envelope: bytes, name: str) -> None:
    assert mesh.split_service(envelope) == name
