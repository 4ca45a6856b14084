"""Seals: what one end closes the other opens, and nothing else opens."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh import codec
from butler_mesh.errors import Unavailable, UsageError
from butler_mesh.protocol.mesh import ATTACHED, DURABLE, IDEMPOTENT, ONE_WAY, RAW, STREAM, pack_raw
from butler_mesh.sealing import (
    LONGEST_MESSAGE,
    SENDINGS,
    WINDOW_S,
    BrokenSeal,
    Nonces,
    Seal,
    seal_of,
    without_seal,
)

NOW = 1_800_000_000.0
NONCE = "0123456789abcdef0123456789abcdef"
SEAL = Seal("open sesame")

flags_of_callers = st.sampled_from([0, RAW, STREAM, RAW | IDEMPOTENT, ONE_WAY])


def closed(envelope: bytes = b'{"path":"/a"}', flags: int = 0, *, now: float = NOW) -> tuple[bytes, int]:
    return SEAL.close_request("svc", envelope, flags, nonce=NONCE, now=now)


@given(st.binary(max_size=300), flags_of_callers)
def test_what_is_closed_opens_as_it_was(envelope: bytes, flags: int) -> None:
    sealed, sealed_flags = closed(envelope, flags)
    assert sealed_flags == flags | RAW
    assert SEAL.open_request("svc", sealed, sealed_flags, Nonces(), NOW) == (envelope, flags, NONCE)
    for final in (False, True):
        sealed, sealed_flags = SEAL.close_reply(NONCE, 3, 207, envelope, flags, final=final)
        assert SEAL.open_reply(NONCE, 3, 207, sealed, sealed_flags, final=final) == (envelope, flags)


def test_the_passphrase_is_nowhere_to_be_seen() -> None:
    assert b"sesame" not in closed()[0]
    assert "sesame" not in repr(SEAL)


@given(st.data())
def test_any_byte_that_was_altered_breaks_the_seal(data: st.DataObject) -> None:
    sealed, flags = closed()
    at = data.draw(st.integers(0, len(sealed) - 1))
    altered = bytearray(sealed)
    altered[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BrokenSeal):
        SEAL.open_request("svc", bytes(altered), flags, Nonces(), NOW)


@pytest.mark.parametrize("other", [STREAM, ONE_WAY, IDEMPOTENT, DURABLE])
def test_neither_target_nor_flags_can_be_changed_on_the_way(other: int) -> None:
    sealed, flags = closed()
    with pytest.raises(BrokenSeal, match="another passphrase"):
        SEAL.open_request("svc2", sealed, flags, Nonces(), NOW)
    with pytest.raises(BrokenSeal, match="another passphrase"):
        SEAL.open_request("svc", sealed, flags | other, Nonces(), NOW)
    # What the transport adds for itself is not the caller's.
    assert SEAL.open_request("svc", sealed, flags | ATTACHED, Nonces(), NOW)


def test_a_request_with_another_passphrase_is_refused() -> None:
    sealed, flags = Seal("open barley").close_request("svc", b"{}", 0, nonce=NONCE, now=NOW)
    with pytest.raises(BrokenSeal, match="another passphrase") as broken:
        SEAL.open_request("svc", sealed, flags, Nonces(), NOW)
    assert "sesame" not in str(broken.value)
    assert "barley" not in str(broken.value)


UNSEALED = [
    pytest.param(b'{"path": "/a"}', 0, id="plain"),
    pytest.param(pack_raw(b"{}", [b"x"]), RAW, id="raw"),
    pytest.param(pack_raw(b'{"raw":false}', []), RAW, id="no-part"),
    pytest.param(pack_raw(b"[]", [b"x"]), RAW, id="no-object"),
    pytest.param(pack_raw(b"\xff", [b"x"]), RAW, id="no-json"),
    pytest.param(b"\x00", RAW, id="cut-short"),
    pytest.param(
        pack_raw(codec.dumps({"raw": False, "time": True, "nonce": NONCE, "signature": ""}), [b""]),
        RAW,
        id="time-no-number",
    ),
    pytest.param(
        pack_raw(codec.dumps({"raw": False, "time": 1, "nonce": "short", "signature": None}), [b""]),
        RAW,
        id="short-nonce",
    ),
    pytest.param(
        pack_raw(codec.dumps({"raw": False, "time": 1, "nonce": NONCE, "signature": 7}), [b""]),
        RAW,
        id="signature-no-text",
    ),
]


@pytest.mark.parametrize(("envelope", "flags"), UNSEALED)
def test_what_bears_no_seal_is_refused(envelope: bytes, flags: int) -> None:
    with pytest.raises(BrokenSeal):
        SEAL.open_request("svc", envelope, flags, Nonces(), NOW)
    with pytest.raises(BrokenSeal):
        SEAL.open_reply(NONCE, 0, 200, envelope, flags, final=True)


def test_a_reply_is_good_for_its_request_its_place_and_its_status_only() -> None:
    sealed, flags = SEAL.close_reply(NONCE, 1, 200, b"{}", 0, final=False)
    for nonce, place, code, final in (
        ("f" * 32, 1, 200, False),
        (NONCE, 0, 200, False),
        (NONCE, 2, 200, False),
        (NONCE, 1, 201, False),
        (NONCE, 1, 200, True),
    ):
        with pytest.raises(BrokenSeal):
            SEAL.open_reply(nonce, place, code, sealed, flags, final=final)


def test_a_request_is_no_reply() -> None:
    sealed, flags = closed(b"")
    with pytest.raises(BrokenSeal):
        SEAL.open_reply(NONCE, 0, 200, sealed, flags, final=True)


# --- nonces -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("later_s", [0.0, 1.0, WINDOW_S])
def test_a_request_is_taken_once(later_s: float) -> None:
    nonces = Nonces()
    sealed, flags = closed()
    SEAL.open_request("svc", sealed, flags, nonces, NOW)
    with pytest.raises(BrokenSeal, match="seen before"):
        SEAL.open_request("svc", sealed, flags, nonces, NOW + later_s)


@pytest.mark.parametrize(("off_s", "kind"), [(-WINDOW_S - 0.01, BrokenSeal), (WINDOW_S + 0.01, Unavailable)])
def test_a_request_of_another_time_is_refused_with_how_far_off_it_is(
    off_s: float, kind: type[Exception]
) -> None:
    """One that waited for too long was not begun, and may be sealed anew; one of the future is strange."""
    nonces = Nonces()
    sealed, flags = closed()
    with pytest.raises(kind, match=re.escape(f"is {off_s:+.0f} s off; 30 s are allowed")):
        SEAL.open_request("svc", sealed, flags, nonces, NOW + off_s)
    assert SEAL.open_request("svc", sealed, flags, nonces, NOW + off_s * 0.99)


def test_an_idempotent_request_may_come_again_as_its_router_and_client_may_send_it_again() -> None:
    nonces = Nonces()
    sealed, flags = closed(flags=IDEMPOTENT)
    for _ in range(SENDINGS):
        SEAL.open_request("svc", sealed, flags, nonces, NOW)
    with pytest.raises(BrokenSeal, match="seen before"):
        SEAL.open_request("svc", sealed, flags, nonces, NOW)


def test_a_stored_request_may_come_at_any_time_and_again() -> None:
    nonces = Nonces(limit=0)
    sealed, flags = closed(flags=ONE_WAY | DURABLE)
    for later_s in (0.0, 5.0, 5.0, 100 * WINDOW_S, -1000.0):
        assert SEAL.open_request("svc", sealed, flags, nonces, NOW + later_s)
    with pytest.raises(BrokenSeal, match="another passphrase"):
        SEAL.open_request("svc", sealed, flags & ~DURABLE, nonces, NOW)


def test_nonces_are_forgotten_when_their_requests_would_be_refused_anyway() -> None:
    nonces = Nonces(limit=100)
    for n in range(1000):
        nonces.admit(f"{n}", NOW + n, NOW + n)
    assert nonces._total <= WINDOW_S + 2


def test_when_too_many_are_kept_requests_are_refused_and_none_is_forgotten() -> None:
    nonces = Nonces(limit=3)
    for n in range(3):
        nonces.admit(f"{n}", NOW, NOW)
    with pytest.raises(Unavailable, match="too many") as full:
        nonces.admit("3", NOW, NOW)
    assert (full.value.status, full.value.retry_after_s) == (503, 1.0)
    with pytest.raises(BrokenSeal, match="seen before"):
        nonces.admit("0", NOW, NOW)
    nonces.admit("3", NOW + WINDOW_S + 2, NOW + WINDOW_S + 2)


def test_strangers_cannot_fill_the_table() -> None:
    nonces = Nonces(limit=1)
    sealed, flags = Seal("other").close_request("svc", b"{}", 0, nonce=NONCE, now=NOW)
    for _ in range(3):
        with pytest.raises(BrokenSeal):
            SEAL.open_request("svc", sealed, flags, nonces, NOW)
    SEAL.open_request("svc", *closed(), nonces, NOW)


# --- the rest ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("passphrase", ["", b""])
def test_an_empty_passphrase_is_refused(passphrase: str | bytes) -> None:
    with pytest.raises(UsageError, match="empty"):
        Seal(passphrase)


def test_no_passphrase_is_no_seal() -> None:
    assert seal_of(None) is None
    assert isinstance(seal_of("x"), Seal)


def test_text_and_bytes_are_the_same_passphrase() -> None:
    sealed, flags = closed()
    assert Seal(b"open sesame").open_request("svc", sealed, flags, Nonces(), NOW)


def test_of_a_failure_without_a_seal_the_sentence_and_the_pause_are_believed() -> None:
    envelope = codec.dumps(
        {
            "message": "full",
            "headers": {"Retry-After": "2", "Set-Cookie": "x"},
            "body": 1,
            "error": {"type": "X"},
        }
    )
    assert codec.loads(without_seal(envelope, 0)) == {"message": "full", "headers": {"Retry-After": "2"}}
    for useless in (b"", b"[]", b'{"message": 7, "headers": []}'):
        assert without_seal(useless, 0) == b"{}"
    assert without_seal(envelope, RAW) == b"{}"


@pytest.mark.parametrize("pause", ["nan", "inf", "1e999", "-1", "2\r\nSet-Cookie: x", [], None])
def test_nothing_else_of_it_reaches_the_caller(pause: object) -> None:
    envelope = json.dumps({"message": "\ud800" + "x" * 10_000, "headers": {"Retry-After": pause}}).encode()
    kept = codec.loads(without_seal(envelope, 0))
    assert kept == {"message": "?" + "x" * (LONGEST_MESSAGE - 1)}
    huge = codec.dumps({"headers": {"Retry-After": 10**12}})
    assert codec.loads(without_seal(huge, 0)) == {"headers": {"Retry-After": "3600"}}
