"""JSON as the mesh speaks it: UTF-8, strict both ways, by ujson.

ujson reads and writes a 100-byte object in 4 µs, a third of the standard library's time; it is
laxer than RFC 8259. What would do harm is made up for here: NaN and Infinity, and UTF-8 that is none.
What is harmless is read: ``01``, ``1.``, control characters within strings.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import ujson

from butler_mesh.errors import NotSerializable

_dumps = ujson.dumps
_loads = ujson.loads


def dumps(value: Any) -> bytes:
    """Encode ``value`` as UTF-8 JSON.

    Raises NotSerializable for what JSON cannot hold: bytes, NaN, sets, lone surrogates, objects,
    and structures nested more than 1 000 deep.
    """
    try:
        return _dumps(
            value,
            ensure_ascii=False,
            escape_forward_slashes=False,
            allow_nan=False,
            reject_bytes=True,
        ).encode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise NotSerializable(f"JSON cannot hold this {type(value).__name__}: {error}") from error


def loads(data: bytes) -> Any:
    """Decode UTF-8 JSON; raises ValueError for anything that is not."""
    # One byte is found ten times as fast as a word.
    if (b"N" in data and b"NaN" in data) or (b"I" in data and b"Infinity" in data):
        # Only such input pays for the strict parser: the words may also stand inside a string.
        try:
            json.loads(data, parse_constant=_refuse_constant)
        except RecursionError as error:
            raise ValueError("nested too deep") from error
    if b"\xed" in data:
        # So begin the halves of surrogate pairs, which UTF-8 does not have; and Hangul, which it has.
        data.decode()
    return _loads(data)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
