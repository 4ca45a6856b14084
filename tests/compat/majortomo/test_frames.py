"""Names and frames, as programs give them and get them."""

from __future__ import annotations

from typing import Any

import pytest

from butler_mesh.compat.majortomo.frames import as_frames, from_body, registrable_name, service_name


@pytest.mark.parametrize("name", ["mdp-echo", b"mdp-echo"])
def test_a_name_is_text_or_ASCII_bytes(name: str | bytes) -> None:
    """Programs use both."""
    assert service_name(name) == "mdp-echo"
    assert registrable_name(name) == b"mdp-echo"


@pytest.mark.parametrize("name", ["", b"", "/path", "käse", "käse".encode(), "x" * 256])
def test_a_name_that_no_service_can_have_is_a_ValueError(name: str | bytes) -> None:
    """The program is told at once, not by waiting for ever."""
    with pytest.raises(ValueError):
        service_name(name)


def test_the_brokers_own_names_may_be_asked_and_not_be_offered() -> None:
    """A worker of such a name would be sent away again and again."""
    assert service_name(b"mmi.service") == "mmi.service"
    with pytest.raises(ValueError, match=r"mmi\."):
        registrable_name(b"mmi.service")


def test_frames_are_whatever_holds_bytes_from_any_iterable() -> None:
    """What ZeroMQ takes for a frame is one."""
    given = (frame for frame in (b"a", bytearray(b"b"), memoryview(b"c"), b""))
    assert as_frames(given) == [b"a", b"b", b"c", b""]


def test_frames_are_copied() -> None:
    """What a program does with its buffer after it was sent changes nothing."""
    buffer = bytearray(b"before")
    frames = as_frames([buffer])
    buffer[:] = b"after!"
    assert frames == [b"before"]


@pytest.mark.parametrize("frames", ["text", ["text"], [1], b"bytes alone", [None], [[b"nested"]]])
def test_what_is_not_frames_is_a_TypeError(frames: Any) -> None:
    """That names the type it got."""
    with pytest.raises(TypeError, match="frame"):
        as_frames(frames)


@pytest.mark.parametrize(
    ("body", "frames"),
    [
        ([b"a", b""], [b"a", b""]),
        (b"alone", [b"alone"]),
        ({"total": 1.5}, [b'{"total":1.5}']),
        ("text", [b'"text"']),
        ("\ud800", [b'"\\ud800"']),
        ([1, 2], [b"[1,2]"]),
        (0, [b"0"]),
        ([], []),
    ],
)
def test_a_part_of_a_reply_is_its_frames_or_one_of_JSON(body: Any, frames: list[bytes]) -> None:
    """The reader always gets a list of bytes."""
    assert from_body(body) == frames
