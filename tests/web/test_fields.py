"""Header fields, as the servers, the handlers and the way to services know them."""

from __future__ import annotations

import pytest

from butler_mesh.web.fields import HOP_BY_HOP, is_field


@pytest.mark.parametrize(("name", "value"), [("X-A", "b"), ("x", ""), ("x", "a\tb: c"), ("x", "grüß")])
def test_what_can_be_sent(name: str, value: object) -> None:
    assert is_field(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "a"),
        ("x ", "a"),
        ("x y", "a"),
        ("x:", "a"),
        ("x:y", "a"),
        ("ß", "a"),
        ("x\n", "a"),
        ("x", 3),
        (b"x", "a"),
    ]
    + [("x", f"a{character}b") for character in "\r\n\0\x1f\x7f"],
)
def test_what_would_be_another_line_or_none(name: object, value: object) -> None:
    assert not is_field(name, value)


def test_what_stays_at_this_hop_is_written_as_it_is_looked_up() -> None:
    assert {name.lower() for name in HOP_BY_HOP} == HOP_BY_HOP
    assert {"connection", "transfer-encoding"} <= HOP_BY_HOP
