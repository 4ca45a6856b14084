"""Programs as processes of their own, watched through what they write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent
from types import TracebackType
from typing import NoReturn, Self

import pytest

from tests.waiting import wait_for

ROOT = Path(__file__).parents[1]


def do_without(part: str) -> NoReturn:
    """Skip the test for want of a part that is not on this machine; fail it in CI, where all of them are."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"needs {part}")
    pytest.skip(f"needs {part}")


class Program:
    """``python *arguments`` in a directory; its output goes to files. Killed at the end of ``with``."""

    def __init__(self, *arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 (closed in __exit__)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BUTLER_MESH_")}
        path = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", *arguments],
            cwd=cwd,
            env={**clean, **path, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
        )

    @classmethod
    def of(cls, source: str, *arguments: str) -> Self:
        """Return a program of which this is the text."""
        return cls("-c", dedent(source), *arguments)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def stdout(self) -> bytes:
        """What it has written so far."""
        return os.pread(self._out.fileno(), 1 << 20, 0)

    @property
    def stderr(self) -> str:
        """What it has complained of so far."""
        return os.pread(self._err.fileno(), 1 << 20, 0).decode()

    def says(self, text: str, timeout_s: float = 20.0) -> None:
        """Wait until it has written the text, to stdout or stderr."""

        def has_said() -> bool:
            assert self.process.poll() is None or text in self._all(), self._all()
            return text in self._all()

        wait_for(has_said, timeout_s)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def ends(self, timeout_s: float = 20.0) -> int:
        """Wait until it has ended, and return its exit status."""
        wait_for(lambda: self.process.poll() is not None, timeout_s)
        return self.process.returncode

    def _all(self) -> str:
        return self.stdout.decode("utf-8", "replace") + self.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10.0)
        self._out.close()
        self._err.close()


def run(*arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> tuple[int, bytes, str]:
    """Run ``python *arguments`` to its end; return (exit status, stdout, stderr)."""
    with Program(*arguments, cwd=cwd, env=env) as program:
        return program.ends(30.0), program.stdout, program.stderr


def mesh(*arguments: Sequence[str] | str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Program:
    """Start ``butler-mesh *arguments``."""
    return Program("-m", "butler_mesh", *map(str, arguments), cwd=cwd, env=env)
