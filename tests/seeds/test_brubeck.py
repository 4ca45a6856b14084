"""Brubeck Services' demo as it is documented: a service, and a page that calls it in two ways."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.programs import Program
from tests.seeds.conftest import SEEDS, Examples
from tests.waiting import wait_for
from tests.web.mongrel2s import running

pytestmark = pytest.mark.slow

PAGE = "http://127.0.0.1:6767"
ROUND_TRIP = "I made a round trip, it took a while but I bring results."


def page(path: str) -> str:
    """Return a page, or its status if that is an error."""
    try:
        with urlopen(PAGE + path, timeout=30) as reply:
            text: str = reply.read().decode()
            return text
    except HTTPError as error:
        with error:
            return str(error.code)


def is_up() -> bool:
    try:
        return bool(page("/"))
    except OSError:
        return False


@pytest.fixture
def demo(examples: Examples) -> tuple[Program, Program]:
    """The service and the page, started in the documented order."""
    service = examples.start("brubeck_service.py")
    client = examples.start("brubeck_service_client.py")
    wait_for(is_up, 20.0)
    return service, client


def test_the_page_has_its_links(demo: tuple[Program, Program]) -> None:
    assert "nothing to report on my trip" in page("/")


def test_a_sync_call_brings_results_and_other_pages_do_not_wait_for_it(demo: tuple[Program, Program]) -> None:
    """The page shows what the service echoed five seconds later; in the meantime every other page is served,
    though the application is one process."""
    service, client = demo
    with ThreadPoolExecutor() as threads:
        call = threads.submit(page, "/service/sync")
        service.says("Starting request")
        for _ in range(20):
            assert "nothing to report" in page("/")
        assert not call.done()
        assert ROUND_TRIP in call.result()
    service.says("Done, sending back")
    client.says("Successfull 200:Took a while, but I am back.)!")


def test_an_async_call_returns_at_once_and_its_reply_is_handled_later(demo: tuple[Program, Program]) -> None:
    """The page is there before the service is done; then the application's own handler gets the reply."""
    service, client = demo
    assert "nothing to report on my trip" in page("/service/async")
    assert "Successfull" not in client.stderr
    service.says("Done, sending back")
    client.says("Successfull 200:Took a while, but I am back.)!")


def test_several_calls_run_side_by_side(demo: tuple[Program, Program]) -> None:
    """Ten sync calls of five seconds each take five seconds together: one service process, many greenlets."""
    service, _ = demo
    with ThreadPoolExecutor(10) as threads:
        calls = [threads.submit(page, "/service/sync") for _ in range(10)]
        wait_for(lambda: service.stderr.count("Starting request") == 10, 15.0)
        assert "Done" not in service.stderr
        assert all(ROUND_TRIP in call.result() for call in calls)


def test_a_killed_service_is_told_and_a_new_one_takes_over(
    demo: tuple[Program, Program], examples: Examples
) -> None:
    """kill -9 in the middle of a call: the page fails at once instead of waiting for ever, and works again as
    soon as there is a service."""
    service, _ = demo
    with ThreadPoolExecutor() as threads:
        call = threads.submit(page, "/service/sync")
        service.says("Starting request")
        service.process.kill()
        # The documented page takes a body for granted that a lost call does not have.
        assert call.result(5.0) == "500"
    examples.start("brubeck_service.py")
    assert ROUND_TRIP in page("/service/sync")


def test_a_service_started_later_is_found(examples: Examples) -> None:
    """The page is asked before any service is there: the call waits for it."""
    examples.start("brubeck_service_client.py")
    wait_for(is_up, 20.0)
    with ThreadPoolExecutor() as threads:
        call = threads.submit(page, "/service/sync")
        wait_for((examples.directory / "run" / "slow").exists, 10.0)
        examples.start("brubeck_service.py")
        assert ROUND_TRIP in call.result()


def test_the_passphrase_is_not_in_the_logs(demo: tuple[Program, Program]) -> None:
    page("/service/async")
    for program in demo:
        program.says("Successfull" if program is demo[1] else "Done, sending back")
        assert not re.search("my_shared_secret", program.stderr)


def test_behind_mongrel2_as_it_is_documented(examples: Examples, tmp_path: Path) -> None:
    """The page's ``msg_conn`` is the document's own; only the ports are free ones."""
    program = (SEEDS / "brubeck_service_client.py").read_text(encoding="utf-8")
    (tmp_path / "mongrel2").mkdir()
    with running(tmp_path / "mongrel2") as server:
        send_spec, recv_spec = server.specs[0]
        for old, new in (
            ("WSGIConnection(port=6767)", f"Mongrel2Connection('{send_spec}', '{recv_spec}')"),
            ("import WSGIConnection", "import Mongrel2Connection"),
        ):
            assert program.count(old) == 1
            program = program.replace(old, new)
        (tmp_path / "page.py").write_text(program, encoding="utf-8")
        service = examples.start("brubeck_service.py")
        client = examples.python(str(tmp_path / "page.py"))
        client.says("connected to Mongrel2")
        assert "nothing to report on my trip" in server.get("/").text
        reply = server.get("/service/sync")
        assert (reply.status, ROUND_TRIP in reply.text) == (200, True)
        service.says("Done, sending back")
        client.says("Successfull 200:Took a while, but I am back.)!")
