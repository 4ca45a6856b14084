"""UploadStore: bodies that Mongrel2 has put into files, for they are large, or came in chunks."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import IO

from butler_mesh import status
from butler_mesh.errors import UsageError
from butler_mesh.protocol.mongrel2 import Message, Upload, upload

_log = logging.getLogger("butler_mesh.web")


class UploadStore:
    """The directory of a server's ``upload.temp_store``, as this process sees it; None: no uploads.

    Each file is taken once: its name is removed as it is opened.
    """

    def __init__(self, directory: str | Path | None, max_bytes: int) -> None:
        self._directory = None if directory is None else Path(directory)
        self._max_bytes = max_bytes

    def check(self) -> None:
        """Raise UsageError where there is no such directory: uploads would be lost, and nobody would know."""
        if self._directory is not None and not self._directory.is_dir():
            raise UsageError(f"no directory of uploads at {self._directory.absolute()}")

    def is_due(self, message: Message) -> bool:
        """Tell whether a request is to be answered now: not if its body has only begun to come, and may."""
        found = upload(message)
        return found is None or found.is_done or self._refuses(found)

    def take(self, message: Message) -> tuple[IO[bytes] | None, int]:
        """Return the file that holds a request's body, or None; and 200, or the status that refuses it."""
        found = upload(message)
        if found is None:
            return None, status.OK
        if self._directory is None:
            _log.warning("upload-refused %.200r: no upload_store was given", message.path)
            return None, status.TOO_LARGE
        if not found.is_done:
            return None, status.TOO_LARGE
        try:
            file = _open(self._directory, found)
        except OSError as error:
            _log.error("upload-lost %.200r: %s", message.path, error)
            return None, status.SERVER_ERROR
        if os.fstat(file.fileno()).st_size > self._max_bytes:
            file.close()
            return None, status.TOO_LARGE
        return file, status.OK

    def discard(self, message: Message) -> None:
        """Remove what was sent with a request that is not answered."""
        file, _ = self.take(message)
        if file is not None:
            file.close()

    def _refuses(self, found: Upload) -> bool:
        return self._directory is None or (found.length or 0) > self._max_bytes


def _open(directory: Path, found: Upload) -> IO[bytes]:
    """Open an upload's file and remove its name; raises OSError where it is not what the server wrote.

    Only the last part of the path counts: the server may see the directory elsewhere (chroot), and no
    client can lead us out of it.
    """
    name = os.path.basename(found.path)
    if name in ("", ".", "..") or "\0" in name:
        raise FileNotFoundError(f"no name of a file: {found.path!r}")
    path = directory / name
    # Neither a link, nor a pipe that would make us wait.
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        it = os.fstat(number)
        if not stat.S_ISREG(it.st_mode) or found.length not in (None, it.st_size):
            raise FileNotFoundError(f"not the upload that was announced: {str(path)!r}")
        path.unlink()
    except OSError:
        os.close(number)
        raise
    return os.fdopen(number, "rb")
