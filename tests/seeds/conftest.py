"""The documented examples as they are: with fixed ports, on loopback, one test after another."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.programs import ROOT, Program
from tests.waiting import wait_for

SEEDS = ROOT / "demos" / "seeds"
PORTS = (5555, 5556, 5558, 6767)
"""What the documents name: routers' front and back end, the sink, the web page."""


class Examples:
    """Starts files of demos/seeds; all that still run are killed at the end, the latest first."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self._stack = stack
        self.directory = directory
        (directory / "run").mkdir()
        (directory / "templates").symlink_to(SEEDS / "templates")

    def start(self, name: str, *arguments: str) -> Program:
        """Start an example, in a directory with an empty ``run/`` and with ``templates/`` in it."""
        return self.python(str(SEEDS / name), *arguments)

    def python(self, *arguments: str) -> Program:
        """Start Python so that ``*`` means loopback."""
        env = {"BUTLER_MESH_BIND_HOST": "127.0.0.1"}
        return self._stack.enter_context(Program(*arguments, cwd=self.directory, env=env))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.fixture
def examples(tmp_path: Path) -> Iterator[Examples]:
    """Examples that have the documented ports to themselves."""
    with ExitStack() as stack:
        # Another run of these tests on the same machine waits for its turn.
        lock = stack.enter_context(Path(tempfile.gettempdir(), "butler_mesh-examples.lock").open("a"))

        def is_locked() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        wait_for(is_locked, 120.0)
        taken = [port for port in PORTS if not _is_free(port)]
        if taken:
            reason = f"the examples' ports {taken} are in use"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        yield Examples(stack, tmp_path)
