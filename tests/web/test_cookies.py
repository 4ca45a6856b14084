"""Cookies: lines that hold what they should and nothing else; signatures that bind value, name and time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import TimestampSigner
from werkzeug.http import parse_cookie

from butler_mesh.errors import NotSerializable, UsageError
from butler_mesh.web import cookies

ODD = "\x1a\x1b\x1c\x1d\x1e\x1f"  # control characters that werkzeug does not escape

SECRET = "51cRa%76fa^O9h$4cwl$"

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
    max_leaves=5,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time of day that signatures know, as a list of one."""
    now = [1_000_000]
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda self: now[0])
    return now


# --- lines --------------------------------------------------------------------------------------


def test_a_line_has_the_cookie_and_its_options() -> None:
    assert cookies.line("a", "b") == "a=b; Path=/"
    made = cookies.line(
        "a", "b", path="/x", domain="shop.test", secure=True, httponly=True, samesite="lax", max_age=60
    )
    for attribute in ("Domain=shop.test", "Max-Age=60", "Secure", "HttpOnly", "Path=/x", "SameSite=Lax"):
        assert attribute in made.split("; ")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=ODD), max_size=300))
def test_any_text_comes_back_as_it_was_and_ends_no_line(value: str) -> None:
    made = cookies.line("a", value)
    assert made.isprintable()
    assert parse_cookie(made.rpartition("; ")[0]).to_dict() == {"a": value}


@pytest.mark.parametrize("name", ["", "a b", "a=b", "a;b", "a,b", 'a"', "a\r\nX: y", "\x00", "a\n", "\x7f"])
def test_a_name_that_no_browser_would_send_back_is_refused(name: str) -> None:
    assert not cookies.is_name(name)
    with pytest.raises(UsageError, match="no cookie can have the name"):
        cookies.line(name, "b")


@pytest.mark.parametrize("name", ["a", "__Host-id", "a[b]", "grüße"])
def test_other_names_are_taken(name: str) -> None:
    assert cookies.is_name(name)
    assert cookies.line(name, "b").encode("latin-1").decode().startswith(f"{name}=b;")


@pytest.mark.parametrize("option", ["domain", "path", "expires", "samesite", "max_age"])
@pytest.mark.parametrize("bad", ["a\r\nSet-Cookie: b=c", "a; Domain=evil.test", "a\x00"])
def test_no_option_can_smuggle_another_one_in(option: str, bad: str) -> None:
    with pytest.raises(UsageError, match=option):
        cookies.line("a", "b", **{option: bad})


@pytest.mark.parametrize(
    ("value", "options"),
    [
        *((f"a{odd}b", {}) for odd in ODD),
        ("b", {"samesite": "sometimes"}),
        ("b", {"colour": "red"}),
        ("\ud800", {}),
        ("b", {"domain": "a" * 99}),
    ],
)
def test_what_cannot_be_written_is_told(value: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the cookie 'a' cannot be written"):
        cookies.line("a", value, **options)


@pytest.mark.parametrize("value", [b"bytes", 3, None, {"a": 1}])
def test_a_plain_cookie_holds_text(value: Any) -> None:
    with pytest.raises(UsageError, match="holds text"):
        cookies.line("a", value)


def test_a_cookie_that_browsers_would_drop_is_refused() -> None:
    most = cookies.MAX_COOKIE_BYTES - len("a=; Path=/")
    assert len(cookies.line("a", "v" * most)) == 4093
    with pytest.raises(UsageError, match="takes 4094 bytes; browsers keep 4093"):
        cookies.line("a", "v" * (most + 1))


# --- signatures ---------------------------------------------------------------------------------


@given(values)
def test_a_signed_value_comes_back_and_needs_no_quotes(value: Any) -> None:
    signed = cookies.sign("a", value, SECRET)
    assert cookies.line("a", signed) == f"a={signed}; Path=/"
    assert cookies.unsign("a", signed, SECRET) == value


def test_a_signature_is_of_its_secret_and_of_its_name() -> None:
    signed = cookies.sign("user", "ada", SECRET)
    for name, secret in (("user", "another"), ("admin", SECRET), ("use", f"r{SECRET}"), ("User", SECRET)):
        with pytest.raises(ValueError, match="not a value of the cookie"):
            cookies.unsign(name, signed, secret)


def test_a_signature_changed_anywhere_is_none() -> None:
    signed = cookies.sign("a", {"role": "guest"}, SECRET)
    for at in range(len(signed) - 1):  # the last letter has two bits that mean nothing
        for letter in {"A", "."} - {signed[at]}:
            with pytest.raises(ValueError):
                cookies.unsign("a", f"{signed[:at]}{letter}{signed[at + 1 :]}", SECRET)


@given(st.text(max_size=60) | st.text(".aA-_", max_size=60))
def test_any_text_but_a_signed_value_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        cookies.unsign("a", text, SECRET)


def test_a_value_is_good_for_as_long_as_the_reader_says(clock: list[int]) -> None:
    signed = cookies.sign("a", 1, SECRET)
    clock[0] += 60
    assert cookies.unsign("a", signed, SECRET) == 1
    assert cookies.unsign("a", signed, SECRET, max_age=60) == 1
    clock[0] += 1
    with pytest.raises(ValueError, match="age 61 > 60"):
        cookies.unsign("a", signed, SECRET, max_age=60)


@pytest.mark.parametrize("secret", ["", b""])
def test_without_a_secret_nothing_is_signed_or_believed(secret: str | bytes) -> None:
    with pytest.raises(UsageError, match="needs a secret"):
        cookies.sign("a", "b", secret)
    with pytest.raises(UsageError, match="needs a secret"):
        cookies.unsign("a", "b", secret)


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}])
def test_a_value_that_json_cannot_hold_is_not_signed(value: object) -> None:
    with pytest.raises(NotSerializable, match="the cookie 'a'"):
        cookies.sign("a", value, SECRET)
