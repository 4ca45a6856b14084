"""What programs hand over and are handed: names of services, and frames of bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

LONGEST_NAME = 255


def service_name(name: str | bytes) -> str:
    """Return the name of a service as text. Raises ValueError for one that no service can have: not ASCII,
    empty, over 255 letters, or a path."""
    text = name.decode("ascii") if isinstance(name, bytes) else name
    text.encode("ascii")
    if not 0 < len(text) <= LONGEST_NAME or text.startswith("/"):
        raise ValueError(f"{text[:LONGEST_NAME]!r} is no name of a service; a good one is 'my-service'")
    return text


def registrable_name(name: str | bytes) -> bytes:
    """Return the name of a service that is to be offered; raises ValueError also for the broker's own."""
    text = service_name(name)
    if text.startswith("mmi."):
        raise ValueError(f"{text!r}: names that begin with 'mmi.' are the broker's own")
    return text.encode()


def as_frames(frames: Iterable[Any]) -> list[bytes]:
    """Return what is to be sent, copied; raises TypeError for anything that is not bytes."""
    listed = list(frames)
    for frame in listed:
        if not isinstance(frame, bytes | bytearray | memoryview):
            raise TypeError(f"a frame is bytes, not {type(frame).__name__}")
    return [bytes(frame) for frame in listed]


def from_body(body: Any) -> list[bytes]:
    """Return a part of a reply as frames; what a service of the mesh sent as a JSON value is one frame."""
    if isinstance(body, bytes):
        return [body]
    if isinstance(body, list) and all(isinstance(frame, bytes) for frame in body):
        return body
    return [json.dumps(body, separators=(",", ":")).encode()]
