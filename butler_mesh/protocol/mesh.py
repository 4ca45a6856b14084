"""The mesh wire, version 1: records, coalesced into messages. ``docs/protocol.rst`` draws it whole.

::

    message  = frame 0, then one frame for each ATTACHED record, in record order
    frame 0  = u8 magic 0xBE | u8 version 1 | u32 stamp_ms | record*               little-endian
    record   = u32 length | u8 kind | u8 flags | u64 id | u32 remaining_ms | payload (length bytes)

    REQUEST         payload = u16 n | target (n bytes) | u32 window (STREAM only) | envelope
    PARTIAL, FINAL  payload = u16 status | envelope
    GOODBYE         payload = u16 status | reason, utf-8
    CREDIT          payload = i32, how much credit comes on top (negative: is taken back)
    WINDOW          payload = u32, how many more parts the reader takes
    HELLO WELCOME READY HEARTBEAT   payload = a JSON object, or nothing
    RETURN CANCEL                   no payload

What one loop turn produces for a peer leaves together, up to 32 records a message: the cost of ZeroMQ
is in frames (0.4–4.5 µs each), not in bytes. A record is sliced out as bytes, never as a memoryview: a
view of 100 bytes would keep the whole batch alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple, Protocol

from butler_mesh import codec
from butler_mesh.errors import NotSerializable, ProtocolError

MAGIC = 0xBE
VERSION = 1

# Kinds. 0 is no kind, so that zeroed memory is not a record.
HELLO = 1
WELCOME = 2
READY = 3
REQUEST = 4
PARTIAL = 5
FINAL = 6
RETURN = 7
CREDIT = 8
CANCEL = 9
WINDOW = 10
HEARTBEAT = 11
GOODBYE = 12
CONTROL = 13
EVENT = 14

KIND_NAMES: dict[int, str] = {
    HELLO: "HELLO",
    WELCOME: "WELCOME",
    READY: "READY",
    REQUEST: "REQUEST",
    PARTIAL: "PARTIAL",
    FINAL: "FINAL",
    RETURN: "RETURN",
    CREDIT: "CREDIT",
    CANCEL: "CANCEL",
    WINDOW: "WINDOW",
    HEARTBEAT: "HEARTBEAT",
    GOODBYE: "GOODBYE",
    CONTROL: "CONTROL",
    EVENT: "EVENT",
}

# Flags. The top two bits mean "refuse me if you do not know me"; other unknown bits are ignored.
ATTACHED = 0x01
ONE_WAY = 0x02
IDEMPOTENT = 0x04
STREAM = 0x08
RAW = 0x10
DURABLE = 0x20  # never on this wire: a broker's, which keeps what is one-way on its disks
CRITICAL = 0xC0

# A message is closed at 32 records or 32 KiB: uncapped, the processes work in lock-step and 1 KiB
# bodies lose 40 % of their rate (benchmarks, sizes of a batch).
MAX_BATCH_RECORDS = 32
MAX_BATCH_BYTES = 32 * 1024
# What a receiver takes: eight times what a sender of this version sends, so one message cannot hold
# a loop turn for longer than about a millisecond.
MAX_MESSAGE_RECORDS = 256
# Above this an envelope travels as a frame of its own, which the router passes on without a copy.
ATTACH_OVER = 64 * 1024

MAX_BODY_BYTES = 16 * 1024 * 1024
"""Largest envelope a router takes unless told otherwise; over it the sender gets 413."""

MAX_OBJECT_BYTES = 64 * 1024
"""Largest JSON a router parses: some milliseconds of a stranger's time, not a second."""
MAX_HELLO_BYTES = 4 * 1024
MAX_REPORT_BYTES = 1024
"""A control plane's HEARTBEAT, of which one message may hold 256."""

MAX_TARGET_BYTES = 0xFFFF
"""What the length of a REQUEST's target can say."""

MANAGEMENT = b"mgt."
"""What targets begin with that mean one instance, by its wid, whether it has credit or not."""

MAX_RAW_PARTS = 0xFFFF
"""What the count of a RAW envelope can say."""

UNBOUNDED_WINDOW = 0xFFFFFFFF
"""The window of a reader that cannot grant any (MDP): its outbox is the bound."""
MAX_REMAINING_MS = 0xFFFFFFFF

_HEADER = Struct("<BBI")
_RECORD = Struct("<IBBQI")
_U16 = Struct("<H")
_U32 = Struct("<I")
_I32 = Struct("<i")
HEADER_SIZE = _HEADER.size
RECORD_SIZE = _RECORD.size

_MESSAGE = range(MAX_MESSAGE_RECORDS)

pack_record = _RECORD.pack
_unpack_record = _RECORD.unpack_from


class Frame(Protocol):
    """A frame as a transport hands it over: bytes, or something that can become bytes for the asking."""

    def __len__(self) -> int: ...
    def __bytes__(self) -> bytes: ...


class Malformed(ProtocolError):
    """A message that breaks the layout; nothing of it was acted on."""


class UnsupportedVersion(ProtocolError):
    """The magic is the mesh's, the version is not."""


class Record(NamedTuple):
    """One record as it came: ``envelope`` is the attached frame of an ATTACHED record, else None."""

    kind: int
    flags: int
    id: int
    remaining_ms: int
    payload: bytes
    envelope: Frame | None


def is_mesh(frame: bytes) -> bool:
    """Tell whether frame 0 begins as a mesh message (of any version)."""
    return len(frame) >= HEADER_SIZE and frame[0] == MAGIC


def pack_header(stamp_ms: int) -> bytes:
    """Return the six bytes that open frame 0; ``stamp_ms`` is the sender's monotonic clock."""
    return _HEADER.pack(MAGIC, VERSION, stamp_ms & 0xFFFFFFFF)


def parse(frame: bytes, attachments: Sequence[Frame] = ()) -> tuple[int, list[Record]]:
    """Return (stamp_ms, records) of one message.

    Raises UnsupportedVersion, or Malformed when a length lies, more than 256 records came, or the
    frames do not match the ATTACHED flags: a message is taken whole or not at all.
    """
    size = len(frame)
    if size < HEADER_SIZE or frame[0] != MAGIC:
        raise Malformed("not a mesh message")
    _, version, stamp = _HEADER.unpack_from(frame)
    if version != VERSION:
        raise UnsupportedVersion(f"version {version}")
    records: list[Record] = []
    append, make = records.append, tuple.__new__
    at = HEADER_SIZE
    claimed = 0
    try:
        for _ in _MESSAGE:
            if at >= size:
                break
            length, kind, flags, id_, remaining_ms = _unpack_record(frame, at)
            body = at + RECORD_SIZE
            at = body + length
            if at > size:
                raise Malformed("a record's length points past the message")
            if flags & ATTACHED:
                if claimed == len(attachments):
                    raise Malformed("an attachment is missing")
                append(Record(kind, flags, id_, remaining_ms, frame[body:at], attachments[claimed]))
                claimed += 1
            else:
                # Past the NamedTuple's own constructor: 0.13 µs instead of 0.33, four times a call.
                append(make(Record, (kind, flags, id_, remaining_ms, frame[body:at], None)))
    except StructError as error:
        raise Malformed("a record is cut short") from error
    if at < size:
        # Here 16 MiB of empty records have cost a microsecond each for 256 of them.
        raise Malformed("too many records")
    if claimed != len(attachments):
        raise Malformed("a frame belongs to no record")
    return stamp, records


def pack_target(target: bytes, window: int | None = None) -> bytes:
    """Return the head of a REQUEST's payload; ``window`` (parts) belongs to STREAM requests only."""
    if window is None:
        return _U16.pack(len(target)) + target
    return _U16.pack(len(target)) + target + _U32.pack(window)


def split_target(payload: bytes, flags: int) -> tuple[bytes, int, int]:
    """Return (target, initial window or 0, offset of the envelope) of a REQUEST's payload.

    Raises Malformed when the payload is shorter than it says.
    """
    size = len(payload)
    if size < 2:
        raise Malformed("a request without a target")
    end = 2 + (payload[0] | payload[1] << 8)
    if flags & STREAM:
        if end + 4 > size:
            raise Malformed("a stream without a window")
        return payload[2:end], _U32.unpack_from(payload, end)[0], end + 4
    if end > size:
        raise Malformed("a request's target is cut short")
    return payload[2:end], 0, end


def is_management(payload: bytes) -> bool:
    """Tell whether a REQUEST's payload is for one instance, beside its credit."""
    return payload[2:6] == MANAGEMENT


pack_status = _U16.pack


def split_status(payload: bytes) -> int:
    """Return the status at the head of a PARTIAL, FINAL or GOODBYE; Malformed when there is none."""
    if len(payload) < 2:
        raise Malformed("a reply without a status")
    return payload[0] | payload[1] << 8


def pack_reason(status: int, reason: str) -> bytes:
    """Return a GOODBYE's payload."""
    return _U16.pack(status) + reason.encode()


def split_reason(payload: bytes) -> tuple[int, str]:
    """Return (status, reason) of a GOODBYE; a short payload reads as (0, '')."""
    if len(payload) < 2:
        return 0, ""
    return split_status(payload), payload[2:].decode("utf-8", "replace")


pack_credit = _I32.pack
pack_window = _U32.pack


def split_credit(payload: bytes) -> int:
    """Return the signed number in a CREDIT; Malformed when it is not four bytes."""
    return _number(_I32, payload)


def split_window(payload: bytes) -> int:
    """Return the number of parts in a WINDOW; Malformed when it is not four bytes."""
    return _number(_U32, payload)


def _number(layout: Struct, payload: bytes) -> int:
    try:
        number: int = layout.unpack(payload)[0]
    except StructError as error:
        raise Malformed("a number of the wrong size") from error
    return number


def split_object(payload: bytes, most: int = MAX_OBJECT_BYTES) -> dict[str, Any]:
    """Return the JSON object in a HELLO, WELCOME, READY or HEARTBEAT; Malformed for anything else, and
    for one of over ``most`` bytes."""
    if len(payload) > most:
        raise Malformed("an object too large for this kind")
    try:
        value = codec.loads(payload)
    except ValueError as error:
        raise Malformed("a payload that is not JSON") from error
    if not isinstance(value, dict):
        raise Malformed("a payload that is not an object")
    try:
        # What JSON reads and cannot write (lone surrogates, 1e999) would spoil every status answer.
        codec.dumps(value)
    except NotSerializable as error:
        raise Malformed("a payload that could not be passed on") from error
    return value


def split_service(envelope: bytes) -> str:
    """Return the name in an mmi.service request: its argument ``service``, or its body."""
    try:
        value = split_object(envelope)
    except ProtocolError:
        return ""
    arguments = value.get("arguments")
    name = arguments.get("service") if isinstance(arguments, dict) else value.get("body")
    return name if isinstance(name, str) else ""


def pack_failure(status: int, message: str, retry_after_s: float | None = None) -> bytes:
    """Return the FINAL payload of a failure that the mesh itself reports."""
    envelope: dict[str, Any] = {"message": message}
    if retry_after_s is not None:
        envelope["headers"] = {"Retry-After": f"{retry_after_s:g}"}
    return _U16.pack(status) + codec.dumps(envelope)


def remaining_ms(deadline: float, now: float) -> int:
    """Return the milliseconds left, rounded up; 0 or less when it has passed."""
    left = ceil((deadline - now) * 1000)
    return left if left < MAX_REMAINING_MS else MAX_REMAINING_MS


def pack_raw(head: bytes, parts: Sequence[Frame]) -> bytes:
    """Return a RAW envelope: how bytes travel.

    ``u32 n | head JSON (n bytes) | u16 count | count × (u32 length | bytes)``; raises NotSerializable
    over 65 535 parts.
    """
    if len(parts) > MAX_RAW_PARTS:
        raise NotSerializable(f"a RAW body holds at most {MAX_RAW_PARTS} parts")
    pieces = [_U32.pack(len(head)), head, _U16.pack(len(parts))]
    for part in parts:
        pieces.append(_U32.pack(len(part)))
        pieces.append(bytes(part))
    return b"".join(pieces)


def split_raw(envelope: bytes) -> tuple[bytes, list[bytes]]:
    """Return (head JSON, parts) of a RAW envelope; Malformed when a length lies or bytes are left."""
    try:
        (n,) = _U32.unpack_from(envelope, 0)
        head = envelope[4 : 4 + n]
        (count,) = _U16.unpack_from(envelope, 4 + n)
        at = 6 + n
        parts: list[bytes] = []
        for _ in range(count):
            (length,) = _U32.unpack_from(envelope, at)
            at += 4 + length
            parts.append(envelope[at - length : at])
    except StructError as error:
        raise Malformed("a RAW envelope is cut short") from error
    if at != len(envelope):
        raise Malformed("a RAW envelope's lengths do not add up")
    return head, parts
