"""JSON as the mesh speaks it: what goes round, and what is refused on both sides."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh import codec
from butler_mesh.errors import NotSerializable

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"))
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=10,
)


@given(values)
def test_what_is_written_is_read_back_the_same_here_and_by_others(value: Any) -> None:
    data = codec.dumps(value)
    assert codec.loads(data) == value
    assert json.loads(data) == value


def test_text_is_written_as_utf_8_and_slashes_as_they_are() -> None:
    assert codec.dumps({"path": "/ü"}) == '{"path":"/ü"}'.encode()


@pytest.mark.parametrize(
    "value",
    [b"bytes", {"a": b"bytes"}, float("nan"), float("-inf"), {1, 2}, object(), "\ud800"],
    ids=repr,
)
def test_a_value_json_cannot_hold_is_refused_as_a_type_error(value: Any) -> None:
    with pytest.raises(NotSerializable, match="JSON cannot hold") as caught:
        codec.dumps(value)
    assert isinstance(caught.value, TypeError)


def test_a_value_nested_too_deep_for_a_reader_is_refused() -> None:
    value: list[Any] = []
    for _ in range(2_000):
        value = [value]
    with pytest.raises(NotSerializable):
        codec.dumps(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b"[1,]",
        b"1 2",
        b'"\xff"',
        b"NaN",
        b"[-Infinity]",
        b'{"a": Infinity}',
        b"[" * 10_000,
        b"[" * 10_000 + b"]" * 10_000,
        b"[" * 10_000 + b"NaN" + b"]" * 10_000,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_not_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        codec.loads(data)


def test_the_words_nan_and_infinity_may_stand_in_a_text() -> None:
    assert codec.loads(b'{"NaN": "Infinity"}') == {"NaN": "Infinity"}


@given(st.binary() | st.text(alphabet='{}[]":,0123456789eE+-.ntfNaIinity \\u').map(str.encode))
def test_any_bytes_are_a_value_or_a_value_error(data: bytes) -> None:
    try:
        codec.loads(data)
    except ValueError:
        return


def test_a_half_of_a_surrogate_pair_in_UTF_8_is_refused_and_its_neighbours_are_not() -> None:
    with pytest.raises(ValueError):
        codec.loads(b'"\xed\xa0\x80"')
    assert codec.loads('"\ud7a3\uac00"'.encode()) == "\ud7a3\uac00"
