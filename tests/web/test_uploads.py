"""Files that Mongrel2 wrote, and what only claims to be one. Whole uploads are in test_mongrel2."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from butler_mesh.errors import UsageError
from butler_mesh.protocol.mongrel2 import Message, Upload
from butler_mesh.web import uploads
from butler_mesh.web.mongrel2 import Mongrel2Connection
from butler_mesh.web.uploads import UploadStore


def _link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"abc")
    path.symlink_to(target)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.write_bytes(b"abcd"),
        _link,
    ],
    ids=["nothing", "directory", "pipe", "another size", "link"],
)
def test_pitfall_2_only_a_regular_file_of_its_length_is_an_upload(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "file")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        uploads._open(tmp_path, Upload("tmp/file", 3, is_done=True))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["", "/", "..", "a/..", "tmp/.", "a\0b"])
def test_pitfall_2_only_a_file_within_the_store_is_an_upload(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError):
        uploads._open(tmp_path, Upload(name, None, is_done=True))


def test_pitfall_2_the_servers_own_directory_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with uploads._open(tmp_path, Upload("/seen/from/a/chroot/file", 3, is_done=True)) as file:
        assert file.read() == b"abc"
    assert not (tmp_path / "file").exists()


def message(**headers: str) -> Message:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Message(b"sender", b"1", b"/", {"METHOD": "PUT", **names}, b"")


def announced(length: int, path: str = "tmp/file", done: str | None = None) -> Message:
    headers = {"x-mongrel2-upload-start": path, "content-length": str(length)}
    if done is not None:
        headers["x-mongrel2-upload-done"] = done
    return message(**headers)


def test_a_request_without_a_file_is_due_and_has_none(tmp_path: Path) -> None:
    store = UploadStore(tmp_path, 10)
    assert store.is_due(message())
    assert store.take(message()) == (None, 200)


def test_a_body_that_has_begun_is_waited_for_unless_it_is_refused(tmp_path: Path) -> None:
    assert not UploadStore(tmp_path, 10).is_due(announced(10))
    assert UploadStore(tmp_path, 9).is_due(announced(10))
    assert UploadStore(tmp_path, 9).take(announced(10)) == (None, 413)
    assert UploadStore(None, 10).is_due(announced(10))
    assert UploadStore(None, 10).take(announced(10)) == (None, 413)


def test_a_file_is_taken_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    store, done = UploadStore(tmp_path, 10), announced(10, done="tmp/file")
    assert store.is_due(done)
    file, code = store.take(done)
    assert file is not None
    with file:
        assert (file.read(), code) == (b"0123456789", 200)
    assert store.take(done) == (None, 500)


def test_what_is_discarded_is_removed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    UploadStore(tmp_path, 10).discard(announced(10, done="tmp/file"))
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_not_there_is_told_at_the_start(tmp_path: Path) -> None:
    UploadStore(None, 1).check()
    UploadStore(tmp_path, 1).check()
    with pytest.raises(UsageError, match=r"no directory of uploads at /.*none"):
        UploadStore(tmp_path / "none", 1).check()
    with pytest.raises(UsageError):
        Mongrel2Connection(upload_store=tmp_path / "none").start_wsgi(lambda environ, start_response: [])
