"""Forms: what their parsing may cost. What is in them is test_request's."""

from __future__ import annotations

import io
from time import process_time

import gevent
import pytest
from werkzeug.exceptions import RequestEntityTooLarge

from butler_mesh.web.forms import MAX_HEAD_BYTES, MAX_PART_LINES
from tests.web.fronts import made


def form(*parts: tuple[bytes, bytes]) -> bytes:
    """Return a multipart body; a part is its head, without the name, and its content."""
    pieces = [
        b'--x\r\nContent-Disposition: form-data; name="a"' + head + b"\r\n\r\n" + content
        for head, content in parts
    ]
    return b"\r\n".join([*pieces, b"--x--\r\n"])


def request(body: bytes):  # type: ignore[no-untyped-def]
    return made("/", "POST", data=body, content_type="multipart/form-data; boundary=x")


@pytest.mark.parametrize(
    "head",
    [
        b';a=""' * (MAX_HEAD_BYTES // 5),
        b"\r\nX-A: b" * MAX_PART_LINES,
        b'; filename="f"' + b';a*=""' * (MAX_HEAD_BYTES // 6),
    ],
)
def test_the_head_of_a_part_is_small(head: bytes) -> None:
    with pytest.raises(RequestEntityTooLarge):
        list(request(form((head, b"content"))).form)


def test_heads_that_would_hold_the_process_are_refused_unread() -> None:
    body = form(*[(b'; filename="f"' + b';a=""' * 186_000, b"")] * 16)
    assert len(body) > 14_000_000
    began = process_time()
    with pytest.raises(RequestEntityTooLarge):
        list(request(body).files)
    assert process_time() - began < 1.0  # it took seven seconds


def test_a_head_of_the_usual_size_is_read() -> None:
    head = b'; filename="' + b"f" * 1000 + b'"\r\nContent-Type: text/plain\r\nX-Note: ' + b"n" * 1000
    found = request(form((head, b"content"), (b"", b"text")))
    assert found.files["a"].read() == b"content"
    assert found.files["a"].filename == "f" * 1000
    assert found.form["a"] == "text"
    found.close()


def test_others_have_their_turn_while_a_form_is_read() -> None:
    turns: list[int] = []
    body = form(*[(b"", b"v" * 1000)] * 2000)
    read = gevent.spawn(lambda: request(body).form)

    def count() -> None:
        while not read.ready():
            turns.append(1)
            gevent.sleep(0)

    counting = gevent.spawn(count)
    assert len(read.get(timeout=10.0).getlist("a")) == 2000
    counting.join()
    assert len(turns) > len(body) // 65536


def test_a_part_that_is_text_is_bounded_however_it_comes() -> None:
    class Dribble(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(1000, size or 0))

    found = request(form((b"", b"v" * 1_100_000)))
    found.environ["wsgi.input"] = Dribble(found.environ["wsgi.input"].read())
    with pytest.raises(RequestEntityTooLarge):
        list(found.form)
