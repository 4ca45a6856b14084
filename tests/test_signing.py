"""Signatures: a known vector, fields that do not run into each other, and forgeries of every type."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from butler_mesh.signing import is_signed, ready_fields, sign

SECRET = "shared"


def test_a_signature_is_hmac_sha256_over_length_prefixed_fields() -> None:
    message = b"\0\0\0\0\0\0\0\x02\xc3\xbc" + b"\0\0\0\0\0\0\0\x00" + b"\0\0\0\0\0\0\0\x03abc"
    assert sign(SECRET, "ü", "", "abc") == hmac.new(b"shared", message, hashlib.sha256).hexdigest()


def test_a_secret_is_the_same_as_text_and_as_bytes() -> None:
    assert sign("shared", "a") == sign(b"shared", "a")


@pytest.mark.parametrize(
    ("fields", "others"),
    [
        (("ab", "c"), ("a", "bc")),
        (("a", ""), ("a",)),
        (("", "a"), ("a", "")),
        ((), ("",)),
        (("a", "b"), ("b", "a")),
    ],
)
def test_no_field_runs_into_the_next(fields: tuple[str, ...], others: tuple[str, ...]) -> None:
    assert sign(SECRET, *fields) != sign(SECRET, *others)


def test_what_was_signed_is_signed() -> None:
    assert is_signed(sign(SECRET, "a", "b"), SECRET, "a", "b")


def test_another_secret_or_other_fields_are_not_signed() -> None:
    signature = sign(SECRET, "a", "b")
    assert not is_signed(signature, "other", "a", "b")
    assert not is_signed(signature, SECRET, "a", "c")
    assert not is_signed(signature, SECRET, "a")


@pytest.mark.parametrize(
    "signature",
    [
        None,
        7,
        b"",
        sign(SECRET, "a").encode(),
        [],
        {},
        "",
        "ü",
        "\ud800",
        sign(SECRET, "a").upper(),
        "0" * 64,
    ],
    ids=repr,
)
def test_whatever_else_a_peer_sends_for_a_signature_is_none(signature: object) -> None:
    assert not is_signed(signature, SECRET, "a")


def test_a_ready_is_signed_for_one_connection_one_identity_and_its_paths() -> None:
    fields = ready_fields("nonce", "wid", "epoch", "echo", ["/a", "/b"])
    assert fields == ["nonce", "wid", "epoch", "echo", "/a", "/b"]
    assert sign(SECRET, *fields) != sign(SECRET, *ready_fields("other", "wid", "epoch", "echo", ["/a", "/b"]))
