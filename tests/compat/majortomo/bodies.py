"""Frames that must arrive as they were sent."""

from __future__ import annotations

import pytest

BODIES = [
    pytest.param([b"hello"], id="one-frame"),
    pytest.param([b""], id="one-empty-frame"),
    pytest.param([b"\x00\xff\x80\r\n", b"", b"\xbe\x01\x00", b"MDPC02", b""], id="binary-and-empty-frames"),
    pytest.param([bytes(range(256)) * 300, b"end"], id="over-64-KiB"),
    pytest.param([b"x" * 1_000_000], id="a-million-bytes"),
    pytest.param([b"%d" % n for n in range(500)], id="500-frames"),
    pytest.param([b'{"a": [1, null]}'], id="json-text"),
    pytest.param([b'{"path": "/x"}'], id="json-that-names-a-path"),
    pytest.param([b"null"], id="json-null"),
]

bodies = pytest.mark.parametrize("body", BODIES)
