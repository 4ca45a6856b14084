"""The demo of streamed pages, as its users run it, in a real browser on both fronts."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import ROOT, Program
from tests.waiting import wait_for
from tests.web.browser import Browser, driver
from tests.web.mongrel2s import running

pytestmark = pytest.mark.slow

DEMO = str(ROOT / "demos" / "progress.py")
STEPS = 8
STEP_S = 0.4


@pytest.fixture(scope="module")
def chromedriver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with driver(tmp_path_factory.mktemp("chromedriver")) as port:
        yield port


@pytest.fixture(params=["wsgi", "mongrel2"])
def demo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Program, str]]:
    """The demo and the address of its page."""
    seconds = ("--seconds", str(STEP_S))
    if request.param == "wsgi":
        with Program(DEMO, "--port", "0", *seconds) as program:
            program.says("listening on http://127.0.0.1:")
            found = re.search(r"listening on (\S+)", program.stderr)
            assert found
            yield program, found[1]
            ends(program)
        return
    with running(tmp_path) as server:
        send, recv = server.specs[0]
        specs = ("--front", "mongrel2", "--send-spec", send, "--recv-spec", recv)
        with Program(DEMO, *specs, *seconds) as program:
            program.says("connected to Mongrel2")
            yield program, f"http://127.0.0.1:{server.port}/"
            ends(program)


def ends(program: Program) -> None:
    program.send(signal.SIGTERM)
    assert program.ends() == 0
    assert "Traceback" not in program.stderr, program.stderr


def test_a_browser_sees_parts_while_others_are_being_made_and_may_leave(
    demo: tuple[Program, str], chromedriver: int, tmp_path: Path
) -> None:
    program, url = demo
    browser = Browser(chromedriver, tmp_path / "profile")
    picture = tmp_path / "progress.png"

    def shown() -> int:
        return len(browser.text("#steps").split("\n")) // 2 if browser.text("#steps") else 0

    try:
        browser.open(url)
        assert browser.text("#state") == "not begun"
        browser.click("#start")
        browser.wait(lambda: shown() >= 3, 10.0, "three steps")
        before = shown()
        browser.screenshot(picture)
        # Before the picture three were there, and after it not yet all.
        assert 3 <= before <= shown() < STEPS
        assert browser.text("#state") == "under way"
        assert picture.stat().st_size > 10_000  # an empty page is a tenth of it
        browser.wait(lambda: browser.text("#state") == "the loaf is ready", 10.0, "the end")
        assert shown() == STEPS
        times = [float(one) for one in re.findall(r"(\d+\.\d\d) s", browser.text("#steps"))]
        assert len(times) == STEPS
        assert times[-1] - times[0] > (STEPS - 1) * STEP_S * 0.8
        assert f"a loaf ends after {STEPS} of {STEPS} steps" in program.stderr

        browser.click("#start")
        browser.wait(lambda: shown() in (1, 2), 10.0, "a step of another")
    finally:
        browser.close()
    wait_for(lambda: re.search(r"a loaf ends after [1-7] of", program.stderr), 3.0)
    assert program.stderr.count("a loaf is begun") == 2
