"""Gunicorn as a process of its own, on a free loopback port, and how to ask it for pages."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from gevent import ssl

from tests.processes.gunicorn_conf import READY
from tests.programs import ROOT, Program
from tests.waiting import wait_for
from tests.web.fronts import Site


class Gunicorn(Program, Site):
    """``gunicorn -k gevent`` with the application ``module:name``; ready when this is made."""

    def __init__(
        self,
        target: str,
        *options: str,
        workers: int = 1,
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
    ) -> None:
        fixed = ("--bind", "127.0.0.1:0", "--worker-class", "gevent", "--no-control-socket")
        config = ("--config", str(ROOT / "tests" / "processes" / "gunicorn_conf.py"))
        super().__init__(
            *("-m", "gunicorn", *config, *fixed, "--workers", str(workers), *options, target),
            cwd=cwd,
            env=env,
        )
        self.says(READY)
        wait_for(lambda: self.stderr.count(READY) >= workers, 20.0)
        found = re.search(r"Listening at: https?://127\.0\.0\.1:(\d+)", self.stderr)
        assert found, self.stderr
        self.port = int(found[1])

    def says_to(self, *pieces: bytes, tls: ssl.SSLContext | None = None) -> bytes:
        """Return what it answers to bytes, until it closes the connection."""
        found = b""
        with self.dial() as connection:
            if tls is not None:
                connection = tls.wrap_socket(connection, server_hostname="127.0.0.1")
            for piece in pieces:
                connection.sendall(piece)
            with suppress(ConnectionResetError):  # it did not want to hear all of it
                while data := connection.recv(65536):
                    found += data
            connection.close()
        return found
