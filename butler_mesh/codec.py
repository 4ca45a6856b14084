"""JSON as the mesh speaks it: UTF-8, strict both ways; by ujson, or where asked for by orjson.

ujson reads and writes a 100-byte object in under a microsecond each, a third of the standard library's
time; it is laxer than RFC 8259. What would do harm is made up for here: NaN and Infinity, and UTF-8 that
is none. What is harmless is read: ``01``, ``1.``, control characters within strings.

orjson is faster still, and means the same: whatever it refuses, and whatever it might read or write in
another way than ujson, is left to ujson. So a mesh may mix processes with either.
"""

from __future__ import annotations

import json
import marshal
import os
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import ujson

from butler_mesh.errors import NotSerializable, UsageError

VARIABLE = "BUTLER_MESH_CODEC"
"""The environment variable that names the codec of this process."""


class Codec(NamedTuple):
    """What turns values into JSON and back."""

    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]


def choose(name: str) -> Codec:
    """Return a codec by name; raises UsageError for one that does not exist or is not installed."""
    if name not in CODECS:
        raise UsageError(f"{VARIABLE} is one of {', '.join(CODECS)}, not {name!r}")
    return CODECS[name]()


_dumps = ujson.dumps
_loads = ujson.loads
# By position, for names cost as much as writing 100 bytes: ensure_ascii, encode_html_chars,
# escape_forward_slashes, sort_keys, indent, allow_nan, reject_bytes.
_STRICT = (False, False, False, False, 0, False, True)
# Bytes as numbers: they are found six times as fast as strings of one, and those ten times as fast as words.
_N, _I, _SURROGATE = b"NI\xed"


def _dumps_by_ujson(value: Any) -> bytes:
    """Encode ``value`` as UTF-8 JSON.

    Raises NotSerializable for what JSON cannot hold: bytes, NaN, sets, lone surrogates, objects,
    and structures nested more than 1 000 deep.
    """
    try:
        return _dumps(value, *_STRICT).encode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise NotSerializable(f"JSON cannot hold this {type(value).__name__}: {error}") from error


def _loads_by_ujson(data: bytes) -> Any:
    """Decode UTF-8 JSON; raises ValueError for anything that is not."""
    if (_N in data and b"NaN" in data) or (_I in data and b"Infinity" in data):
        # Only such input pays for the strict parser: the words may also stand inside a string.
        try:
            json.loads(data, parse_constant=_refuse_constant)
        except RecursionError as error:
            raise ValueError("nested too deep") from error
    if _SURROGATE in data:
        # So begin the halves of surrogate pairs, which UTF-8 does not have; and Hangul, which it has.
        data.decode()
    return _loads(data)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _by_ujson() -> Codec:
    return Codec(_dumps_by_ujson, _loads_by_ujson)


SMALL = 1024
"""Bytes up to which ujson reads as fast as orjson and the look for long integers together."""

# Integers from 19 digits on may be beyond 64 bits, where orjson reads a float. A look at every byte costs a
# third of what parsing does; at every sixth, of which three in a row must be digits, far less. A fraction
# may be as long as it likes.
_DIGITS = bytes(
    {**dict.fromkeys(b"0123456789", ord("0")), ord("."): ord(".")}.get(byte, ord("-")) for byte in range(256)
)
_SAMPLE, _LONG, _LONG_INTEGER = b"0" * 3, b"0" * 19, b"-" + b"0" * 19


def _by_orjson() -> Codec:
    try:
        import orjson
    except ImportError as error:
        raise UsageError(
            f"{VARIABLE}=orjson needs orjson: pip install 'orjson>=3.10' (the extra 'fast')"
        ) from error
    # As locals, which a function finds faster than what belongs to a module.
    write, read, built_in = orjson.dumps, orjson.loads, marshal.dumps

    def dumps(value: Any) -> bytes:
        try:
            # marshal takes the built-in types and nothing else, which orjson cannot be told to: it also
            # writes UUIDs, dates, dataclasses and enums.
            plain = built_in(value)
            data: bytes = write(value)
        except (TypeError, ValueError):
            return _dumps_by_ujson(value)
        # orjson writes null for NaN and the infinities. marshal writes a float's eight bytes, of which the
        # last is then one of these two. That is seldom so of anything else, so null is seldom looked for.
        if (0x7F in plain or 0xFF in plain) and b"null" in data:
            return _dumps_by_ujson(value)
        return data

    def loads(data: bytes) -> Any:
        if len(data) > SMALL:
            try:
                if not _may_have_long_integer(data):
                    return read(data)
            except (ValueError, AttributeError):
                pass  # no JSON, or only by the letter, or no bytes: ujson knows
        return _loads_by_ujson(data)

    return Codec(dumps, loads)


def _may_have_long_integer(data: bytes) -> bool:
    if _SAMPLE not in data[::6].translate(_DIGITS):
        return False
    digits = data.translate(_DIGITS)
    return _LONG in digits and (_LONG_INTEGER in digits or digits.startswith(_LONG))


CODECS: dict[str, Callable[[], Codec]] = {"ujson": _by_ujson, "orjson": _by_orjson}

dumps, loads = choose(os.environ.get(VARIABLE) or "ujson")
