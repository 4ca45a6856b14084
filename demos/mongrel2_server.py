"""Mongrel2 for the demo: demos/mongrel2.conf with free ports, in a private directory that goes with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

CONFIGURATION = Path(__file__).with_name("mongrel2.conf")
LOAD_WITHIN_S = 20.0  # it takes some milliseconds


class Mongrel2:
    """A configured server, not yet started: ``command`` starts it, in ``directory``.

    The directory is new, so neither a pid file nor a socket of an earlier server is in the way. Raises
    OSError or SubprocessError where it cannot be made, and leaves nothing then.
    """

    def __init__(self, port: int, send_port: int, recv_port: int) -> None:
        self.send_spec = f"tcp://127.0.0.1:{send_port}"
        self.recv_spec = f"tcp://127.0.0.1:{recv_port}"
        self.directory = Path(tempfile.mkdtemp(prefix="butler-mesh-demo-"))  # mode 0700
        self.store = self.directory / "tmp"
        self.log = self.directory / "log" / "error.log"
        try:
            for name in ("run", "log", "tmp"):
                (self.directory / name).mkdir(mode=0o700)
            text = CONFIGURATION.read_text(encoding="utf-8")
            for old, new in (
                ("port=6767", f"port={port}"),
                ("tcp://127.0.0.1:9999", self.send_spec),
                ("tcp://127.0.0.1:9998", self.recv_spec),
            ):
                text = text.replace(old, new)
            (self.directory / "mongrel2.conf").write_text(text, encoding="utf-8")
            self._load()
        except BaseException:
            self.remove()
            raise
        found = re.search(r'uuid="([^"]+)"', text)
        self.command = ["mongrel2", "run/config.sqlite", found[1] if found else ""]

    @staticmethod
    def is_installed() -> bool:
        """Tell whether both of its programs are on PATH."""
        return all(shutil.which(program) for program in ("mongrel2", "m2sh"))

    def remove(self) -> None:
        """Remove the directory, when the server has ended."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _load(self) -> None:
        subprocess.run(
            ["m2sh", "load", "-config", "mongrel2.conf", "-db", "run/config.sqlite"],
            cwd=self.directory,
            env={**os.environ, "LOGNAME": "mesh"},  # it asks the terminal who we are, if there is one
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=LOAD_WITHIN_S,
            start_new_session=True,  # a Ctrl-C is for the demo, which ends in order
        )
