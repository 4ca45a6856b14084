"""Seals: proof, on every request and reply, that both ends know one passphrase that never travels.

A sealed envelope is a RAW one whose only part is the envelope proper, and whose head says

::

    request   {"time": wall clock in ms, "nonce": 32 hex digits, "raw": bool, "signature": HMAC}
    reply     {"raw": bool, "signature": HMAC}

The HMAC of a request covers what it is for, its flags, time, nonce and bytes; that of a reply the request's
nonce, the reply's place in the sequence, whether it is the last, its status and bytes. So nothing can be
altered, repeated, put in another's place or left out between the ends; it can be read.
"""

from __future__ import annotations

from butler_mesh import codec, status
from butler_mesh.errors import Unavailable, UsageError
from butler_mesh.messages import seconds
from butler_mesh.protocol.mesh import (
    DURABLE,
    IDEMPOTENT,
    ONE_WAY,
    RAW,
    STREAM,
    Malformed,
    pack_raw,
    split_raw,
)
from butler_mesh.signing import is_signed, sign

WINDOW_S = 30.0
"""How far two clocks may differ, a request's wait in queues included; nonces are kept for as long."""
MAX_NONCES = 1_000_000
"""Of one process; about 100 MiB. Over 30 000 requests a second fill it: then it refuses, and forgets none."""
NONCE_LENGTH = 32
SENDINGS = 3
"""How often one IDEMPOTENT request may arrive: its router sends it again once, and so does its client."""
LONGEST_PAUSE_S = 3600.0
LONGEST_MESSAGE = 4096
"""Of what a failure without a seal may say."""

_SIGNED_FLAGS = IDEMPOTENT | ONE_WAY | STREAM | DURABLE


class BrokenSeal(Exception):
    """Says in a sentence what is wrong, without a word of the passphrase."""


class Nonces:
    """Numbers used once, each remembered for as long as its request would be taken."""

    def __init__(self, window_s: float = WINDOW_S, limit: int = MAX_NONCES) -> None:
        self._window_s = window_s
        self._limit = limit
        # By the second of the request's own time: a repetition looks where the first is.
        self._seen: dict[int, set[str]] = {}
        self._total = 0

    def admit(self, nonce: str, time_s: float, now: float, times: int = 1) -> None:
        """Take a nonce that came with a request of ``time_s``; both are wall clock seconds. It may come so
        many ``times``.

        Raises BrokenSeal for one of the future or that came before, Unavailable for one that is too old or
        where too many are kept: it was not begun, and may be sealed anew.
        """
        text = f"the request's time is {now - time_s:+.0f} s off; {self._window_s:g} s are allowed"
        if now - time_s > self._window_s:
            raise Unavailable(text, status=status.UNAVAILABLE)
        if time_s - now > self._window_s:
            raise BrokenSeal(text)
        second = int(time_s)
        seen = self._seen.get(second)
        if seen is None:
            self._forget(now)
            seen = self._seen[second] = set()
        for n in range(times):
            mark = f"{nonce}{n or ''}"
            if mark not in seen:
                break
        else:
            raise BrokenSeal("the request was seen before")
        if self._total >= self._limit:
            raise Unavailable("too many sealed requests", status=status.UNAVAILABLE, retry_after_s=1.0)
        seen.add(mark)
        self._total += 1

    def _forget(self, now: float) -> None:
        for second in [second for second in self._seen if second + 1 < now - self._window_s]:
            self._total -= len(self._seen.pop(second))


class Seal:
    """One passphrase, as a key. Raises UsageError for an empty one."""

    def __init__(self, passphrase: str | bytes) -> None:
        if not passphrase:
            raise UsageError("an empty passphrase proves nothing")
        self._key = passphrase.encode() if isinstance(passphrase, str) else passphrase

    def __repr__(self) -> str:
        return "<Seal>"

    def close_request(
        self, target: str, envelope: bytes, flags: int, *, nonce: str, now: float
    ) -> tuple[bytes, int]:
        """Return (envelope, flags) sealed; ``now`` is the wall clock in seconds."""
        time_ms = int(now * 1000)
        signature = sign(self._key, *_request_fields(target, flags, time_ms, nonce, envelope))
        head = {"time": time_ms, "nonce": nonce, "raw": bool(flags & RAW), "signature": signature}
        return pack_raw(codec.dumps(head), [envelope]), flags | RAW

    def open_request(
        self, target: str, envelope: bytes, flags: int, nonces: Nonces, now: float
    ) -> tuple[bytes, int, str]:
        """Return (envelope, flags, nonce) as they were; raises BrokenSeal, and Unavailable as ``Nonces``.

        A stored (DURABLE) request may come at any time and more than once: that is what it is stored for.
        """
        head, inner, flags = _take_apart(envelope, flags)
        time_ms, nonce = head.get("time"), head.get("nonce")
        if type(time_ms) is not int or not isinstance(nonce, str):
            raise BrokenSeal("it bears no seal")
        if len(nonce) != NONCE_LENGTH or not nonce.isascii():
            raise BrokenSeal("it bears no seal")
        fields = _request_fields(target, flags, time_ms, nonce, inner)
        if not is_signed(head.get("signature"), self._key, *fields):
            raise BrokenSeal("the request was sealed with another passphrase")
        # After the signature: strangers must not fill the table.
        if not flags & DURABLE:
            nonces.admit(nonce, time_ms / 1000, now, SENDINGS if flags & IDEMPOTENT else 1)
        return inner, flags, nonce

    def close_reply(
        self, nonce: str, place: int, code: int, envelope: bytes, flags: int, *, final: bool
    ) -> tuple[bytes, int]:
        """Return (envelope, flags) of the reply in this ``place`` (from 0), sealed."""
        signature = sign(self._key, *_reply_fields(nonce, place, code, flags, envelope, final=final))
        head = {"raw": bool(flags & RAW), "signature": signature}
        return pack_raw(codec.dumps(head), [envelope]), flags | RAW

    def open_reply(
        self, nonce: str, place: int, code: int, envelope: bytes, flags: int, *, final: bool
    ) -> tuple[bytes, int]:
        """Return (envelope, flags) as they were; raises BrokenSeal."""
        head, inner, flags = _take_apart(envelope, flags)
        fields = _reply_fields(nonce, place, code, flags, inner, final=final)
        if not is_signed(head.get("signature"), self._key, *fields):
            raise BrokenSeal("the reply's seal is broken")
        return inner, flags


def without_seal(envelope: bytes, flags: int) -> bytes:
    """Return what may be believed of a failure that bears no seal, as those that a router makes do: its
    sentence, and when to try again."""
    try:
        head = {} if flags & RAW else codec.loads(envelope)
    except ValueError:
        head = {}
    kept: dict[str, object] = {}
    if isinstance(head, dict):
        if isinstance(head.get("message"), str):
            # Halves of characters are none that JSON could hold.
            kept["message"] = head["message"][:LONGEST_MESSAGE].encode("utf-8", "replace").decode()
        headers = head.get("headers")
        pause_s = seconds(headers.get("Retry-After")) if isinstance(headers, dict) else None
        if pause_s is not None:
            kept["headers"] = {"Retry-After": f"{min(pause_s, LONGEST_PAUSE_S):g}"}
    return codec.dumps(kept)


def unproven(envelope: bytes, flags: int) -> tuple[bytes, int] | None:
    """Return (envelope, flags) of what was sealed, with whatever passphrase; None where nothing was.

    To be shown and no more: a seal hides nothing, and here nothing is proven.
    """
    try:
        return _take_apart(envelope, flags)[1:]
    except BrokenSeal:
        return None


def seal_of(passphrase: str | bytes | None) -> Seal | None:
    """Return the seal of a passphrase, or None for None. Raises UsageError for an empty one."""
    return None if passphrase is None else Seal(passphrase)


def _take_apart(envelope: bytes, flags: int) -> tuple[dict[str, object], bytes, int]:
    """Return (head, inner envelope, its flags) of what looks like a sealed envelope."""
    try:
        if not flags & RAW:
            raise BrokenSeal("it bears no seal")
        packed, parts = split_raw(envelope)
        head = codec.loads(packed)
    except (ValueError, Malformed) as error:
        raise BrokenSeal("it bears no seal") from error
    if not isinstance(head, dict) or len(parts) != 1 or not isinstance(head.get("raw"), bool):
        raise BrokenSeal("it bears no seal")
    return head, parts[0], flags if head["raw"] else flags & ~RAW


def _request_fields(target: str, flags: int, time_ms: int, nonce: str, envelope: bytes) -> list[str | bytes]:
    return ["request", target, str(flags & (_SIGNED_FLAGS | RAW)), str(time_ms), nonce, envelope]


def _reply_fields(
    nonce: str, place: int, code: int, flags: int, envelope: bytes, *, final: bool
) -> list[str | bytes]:
    return ["reply", nonce, str(place), "last" if final else "part", str(code), str(flags & RAW), envelope]
