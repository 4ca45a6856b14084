"""JSON as the mesh speaks it: what goes round, what is refused on both sides, and that both codecs agree."""

from __future__ import annotations

import enum
import json
import math
import os
import subprocess
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh import codec
from butler_mesh.codec import CODECS, Codec
from butler_mesh.errors import NotSerializable, UsageError

UJSON, ORJSON = codec.choose("ujson"), codec.choose("orjson")
with_both = pytest.mark.parametrize("codec_", [UJSON, ORJSON], ids=["ujson", "orjson"])

texts = st.text(st.characters(codec="utf-8"))
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    # Around the ends of what 32, 63 and 64 bits hold, where a fast parser changes its mind.
    | st.builds(
        lambda bits, n: (1 << bits) + n, st.sampled_from([31, 32, 53, 63, 64, 65]), st.integers(-2, 2)
    )
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)


class Text(str):
    """A subclass of a built-in type."""

    __slots__ = ()


class Number(float):
    """Another."""

    __slots__ = ()


class Colour(enum.Enum):
    """An enum whose members are no JSON values."""

    RED = 1


class Level(enum.IntEnum):
    """One whose members are."""

    HIGH = 1


@dataclass
class Order:
    """A dataclass."""

    n: int = 1


Pair = namedtuple("Pair", "a b")

STRANGE: list[Any] = [
    b"bytes",
    bytearray(b"bytes"),
    memoryview(b"bytes"),
    float("nan"),
    float("-inf"),
    {1, 2},
    frozenset(),
    object(),
    ...,
    int,
    (n for n in ()),
    {}.keys(),
    1j,
    "\ud800",
    Colour.RED,
    Order(),
    datetime(2026, 1, 1, tzinfo=UTC),
    date(2026, 1, 1),
    UUID(int=1),
    Decimal("NaN"),
]
"""What JSON cannot hold."""

ODD: list[Any] = [
    (1, (2,)),
    Pair(1, None),
    Text("text"),
    Number(1.5),
    Level.HIGH,
    OrderedDict(a=1),
    Decimal("1.1"),
    {1: 2, None: 3, 1.5: 5, Text("text"): 6, date(2026, 1, 1): 8},
    {True: 1},
    {Level.HIGH: 1},
    10**400,
    -(2**63) - 1,
    -0.0,
    5e-324,
    [None, -1, 127, 255, 1.7976931348623157e308],
    {"null": None, "nan": "null"},
    "\0\x1f\x7f\u2028\U0001f600",
]
"""What it can, though it is not what comes back, or lies at the edge."""


@pytest.fixture(autouse=True, scope="module")
def _as_if_large() -> Iterator[None]:
    """Have orjson read everything, also what is so small that ujson would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "SMALL", 0)
        yield


def decoded(codec_: Codec, data: bytes) -> object:
    """Return what the bytes mean, as something that tells 1 from 1.0 and True; ValueError for nothing."""
    try:
        return repr(codec_.loads(data))
    except ValueError:
        return ValueError


def encoded(codec_: Codec, value: Any) -> object:
    """Return what the value reads as once it is JSON; NotSerializable when it cannot be."""
    try:
        return decoded(UJSON, codec_.dumps(value))
    except NotSerializable:
        return NotSerializable


@with_both
@given(value=values)
def test_what_is_written_is_read_back_the_same_here_and_by_others(codec_: Codec, value: Any) -> None:
    data = codec_.dumps(value)
    assert codec_.loads(data) == value
    assert json.loads(data) == value


@with_both
def test_text_is_written_as_utf_8_and_slashes_as_they_are(codec_: Codec) -> None:
    assert codec_.dumps({"path": "/ü"}) == '{"path":"/ü"}'.encode()


@with_both
@pytest.mark.parametrize(
    "wrap", [lambda value: value, lambda value: {"a": [None, value]}], ids=["", "within"]
)
@pytest.mark.parametrize("value", STRANGE, ids=lambda value: type(value).__name__)
def test_a_value_json_cannot_hold_is_refused_as_a_type_error(codec_: Codec, wrap: Any, value: Any) -> None:
    with pytest.raises(NotSerializable, match="JSON cannot hold") as caught:
        codec_.dumps(wrap(value))
    assert isinstance(caught.value, TypeError)


@with_both
def test_a_value_nested_too_deep_for_a_reader_is_refused(codec_: Codec) -> None:
    value: list[Any] = []
    for _ in range(2_000):
        value = [value]
    with pytest.raises(NotSerializable):
        codec_.dumps(value)


@with_both
def test_a_value_that_contains_itself_is_refused(codec_: Codec) -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(NotSerializable):
        codec_.dumps(value)


@with_both
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"{'a': 1}",
        b"{1: 1}",
        b"[1,]",
        b'{"a": 1,}',
        b"1 2",
        b"1\0",
        b"\xef\xbb\xbf1",
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\\x"',
        b"NaN",
        b"[-Infinity]",
        b'{"a": Infinity}',
        b"[" * 10_000,
        b"[" * 10_000 + b"]" * 10_000,
        b"[" * 10_000 + b"NaN" + b"]" * 10_000,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_not_json_is_a_value_error(codec_: Codec, data: bytes) -> None:
    with pytest.raises(ValueError):
        codec_.loads(data)
    with pytest.raises(ValueError):
        codec_.loads(bytearray(data))


@with_both
def test_the_words_nan_and_infinity_may_stand_in_a_text(codec_: Codec) -> None:
    assert codec_.loads(b'{"NaN": "Infinity"}') == {"NaN": "Infinity"}


@with_both
def test_harmless_laxities_are_read(codec_: Codec) -> None:
    data = b'[01, 1., 1e400, "\n", "\\ud800", {"a": 1, "a": 2}]'
    assert codec_.loads(data) == [1, 1.0, math.inf, "\n", "\ud800", {"a": 2}]


@with_both
@given(data=st.binary() | st.text(alphabet='{}[]":,0123456789eE+-.ntfNaIinity \\u').map(str.encode))
def test_any_bytes_are_a_value_or_a_value_error(codec_: Codec, data: bytes) -> None:
    try:
        codec_.loads(data)
    except ValueError:
        return


@with_both
def test_a_half_of_a_surrogate_pair_in_UTF_8_is_refused_and_its_neighbours_are_not(codec_: Codec) -> None:
    with pytest.raises(ValueError):
        codec_.loads(b'"\xed\xa0\x80"')
    assert codec_.loads('"\ud7a3\uac00"'.encode()) == "\ud7a3\uac00"


@with_both
@pytest.mark.parametrize("data", [memoryview(b"1"), memoryview(b"NaN"), "1", None], ids=repr)
def test_what_is_neither_bytes_nor_bytearray_is_a_type_error(codec_: Codec, data: Any) -> None:
    with pytest.raises(TypeError):
        codec_.loads(data)


# --- both codecs, side by side --------------------------------------------------------------------


@given(
    st.recursive(
        scalars | st.floats() | st.sampled_from(STRANGE + ODD),
        lambda inner: (
            st.lists(inner)
            | st.tuples(inner)
            | st.dictionaries(texts | st.integers() | st.none() | st.booleans(), inner)
        ),
        max_leaves=10,
    )
)
def test_a_value_means_the_same_written_by_either(value: Any) -> None:
    assert encoded(ORJSON, value) == encoded(UJSON, value)


@pytest.mark.parametrize("value", STRANGE + ODD, ids=lambda value: type(value).__name__)
def test_an_odd_value_means_the_same_written_by_either(value: Any) -> None:
    assert encoded(ORJSON, value) == encoded(UJSON, value)


@pytest.mark.parametrize("depth", [250, 254, 255, 1000, 1023, 1024, 1025, 2001])
def test_a_depth_is_too_much_for_both_or_for_neither(depth: int) -> None:
    value: Any = []
    for _ in range(depth):
        value = [value]
    outcomes = []
    for codec_ in (UJSON, ORJSON):
        try:
            outcomes.append(codec_.dumps(value))
        except NotSerializable:
            outcomes.append(b"")
        try:
            codec_.loads(b"[" * depth + b"]" * depth)
        except ValueError:
            outcomes[-1] += b"!"
    assert outcomes[0] == outcomes[1]


number = r"-?[0-9]{1,40}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?"
pieces = st.one_of(
    st.from_regex(number, fullmatch=True),
    scalars.map(json.dumps),
    texts.map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(
        ["NaN", "-Infinity", "01", "1.", "-", '"\\ud800"', '"\n"', "[", "]", "{", "}", '"', ",", ":"]
    ),
)


@given(
    st.lists(pieces, max_size=6).map(lambda found: f"[{', '.join(found)}]".encode())
    | st.lists(pieces, max_size=6).map(lambda found: "".join(found).encode())
    | st.lists(st.tuples(texts, pieces), max_size=4).map(
        lambda found: ("{" + ",".join(f"{json.dumps(name)}:{piece}" for name, piece in found) + "}").encode()
    )
    | values.map(json.dumps).map(str.encode)
    | st.binary()
)
def test_bytes_mean_the_same_read_by_either(data: bytes) -> None:
    assert decoded(ORJSON, data) == decoded(UJSON, data)


@pytest.mark.parametrize("around", ["{}", "[{}]", '{{"a":{}}}', '["{}"]', "[-{}]", "[0.{}]", "[ {}.5e3]"])
@pytest.mark.parametrize("digits", [18, 19, 20, 21, 40])
def test_an_integer_of_any_length_at_any_place_is_read_the_same_by_either(digits: int, around: str) -> None:
    for shift in range(19):
        for first in ("1", "9"):
            data = (" " * shift + around.format(first + "9" * (digits - 1))).encode()
            assert decoded(ORJSON, data) == decoded(UJSON, data)


@pytest.mark.parametrize("small", [0, 10_000])
@pytest.mark.parametrize("value", ["text", {"n": 2**64}, [0.1] * 100, None], ids=repr)
def test_what_is_small_means_the_same_as_what_is_large(
    monkeypatch: pytest.MonkeyPatch, small: int, value: Any
) -> None:
    monkeypatch.setattr(codec, "SMALL", small)
    data = UJSON.dumps(value) + b" " * 2_000
    assert ORJSON.loads(data) == UJSON.loads(data) == value


# --- the choice -----------------------------------------------------------------------------------


def test_every_codec_can_be_chosen() -> None:
    assert {name: codec.choose(name).loads(b"1") for name in CODECS} == {"ujson": 1, "orjson": 1}


def test_an_unknown_codec_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(UsageError, match="one of ujson, orjson, not 'bson'"):
        codec.choose("bson")


def test_a_codec_that_is_not_installed_is_refused_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "orjson", None)
    with pytest.raises(UsageError, match=r"pip install 'orjson>=3.10' \(the extra 'fast'\)"):
        codec.choose("orjson")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "ujson"),
        ("ujson", "ujson"),
        ("orjson", "orjson"),
        ("bson", "UsageError: BUTLER_MESH_CODEC is one of"),
    ],
)
def test_the_environment_chooses_at_the_start_of_a_process(name: str, expected: str) -> None:
    program = "import sys, butler_mesh.codec; print('orjson' if 'orjson' in sys.modules else 'ujson')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "BUTLER_MESH_CODEC": name},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert expected in done.stdout + done.stderr
