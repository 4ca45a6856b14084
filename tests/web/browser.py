"""A real browser for tests: headless Chromium, driven by chromedriver over W3C WebDriver."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id: WebDriver, section 12.1
_STARTED = re.compile(r"started successfully on port (\d+)")


class Browser:
    """One browser window."""

    def __init__(self, port: int, profile: Path, *, has_scripts: bool = True) -> None:
        self._base = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless=new",
            "--no-sandbox",  # it has no rights to drop where tests run as root
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--no-proxy-server",
            "--window-size=1000,900",
            f"--user-data-dir={profile}",
        ]
        options: dict[str, Any] = {"args": arguments}
        if not has_scripts:
            options["prefs"] = {"profile.managed_default_content_settings.javascript": 2}
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        session = self._call("POST", "/session", {"capabilities": capabilities})
        self._base += f"/session/{session['sessionId']}"

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self._find(selector)}/click", {})

    def text(self, selector: str) -> str:
        """Return an element's text as it is seen; '' where there is no such element."""
        try:
            return str(self._call("GET", f"/element/{self._find(selector)}/text"))
        except LookupError:
            return ""

    @property
    def url(self) -> str:
        return str(self._call("GET", "/url"))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until, f"not within {timeout_s} s: {what}"
            time.sleep(0.05)

    def close(self) -> None:
        self._call("DELETE", "")

    def _find(self, selector: str) -> str:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        return str(found[_ELEMENT])

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"})
        request.method = method
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            with error:
                problem = json.load(error)["value"]
            if problem["error"] in ("no such element", "stale element reference"):
                raise LookupError(problem["message"]) from None
            raise AssertionError(f"{problem['error']}: {problem['message']}") from None


@contextlib.contextmanager
def driver(directory: Path) -> Iterator[int]:
    """Run chromedriver; yields its port. Skips the test where there is none, but fails it in CI."""
    program = shutil.which("chromedriver")
    if program is None or shutil.which("chromium") is None:
        message = "needs chromium and chromedriver"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    log = directory / "chromedriver.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "--port=0"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the browser can be ended with it
            env={**os.environ, "HOME": str(directory), "TMPDIR": str(directory)},
        )
    try:
        until = time.monotonic() + 30
        while (found := _STARTED.search(log.read_text(errors="replace"))) is None:
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < until, "chromedriver did not start"
            time.sleep(0.05)
        yield int(found[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
