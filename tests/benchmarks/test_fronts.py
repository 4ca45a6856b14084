"""The fronts' benchmark: what it reads and how it judges, on made-up figures; and a look at real ones."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import environments, fronts, page_loads, pages, report, uploads, wrk
from benchmarks.figures import HEADLINE, Figures
from benchmarks.page_loads import OURS, THEIRS, with_call
from benchmarks.sites import Site, Sites
from benchmarks.system import Unavailable
from tests.programs import do_without
from tests.web.mongrel2s import needs_mongrel2

MACHINE = report.Machine("2026-01-01 00:00 UTC", "a <processor> & more", 2, "3.11.0", {})
SAID = """\
Running 3s test @ http://127.0.0.1:6767/page
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     8.31ms    1.51ms  1.24s    89.81%
    Req/Sec     7.65k   358.38     8.60k    55.00%
  Latency Distribution
     50%  850.00us
     75%    8.18ms
     90%    9.05ms
     99%    1.02s
  23012 requests in 3.01s, 4.05MB read
Requests/sec:   7645.50
Transfer/sec:      1.35MB
"""


def fabricated(added_us: float = 30.0, grown_mib: float = 5.0) -> Figures:
    """Return three rounds of everything; zerorpc's call adds 100 µs in the first, and more in each."""
    figures = Figures()
    for turn in range(3):
        slower = turn + 1
        for front in (*OURS, THEIRS):
            added = slower * (100.0 if front == THEIRS else added_us)
            common = {"rate": 1000.0, "p50_us": 500.0, "p99_us": 900.0, "cpu_us": 100.0, "front_us": 60.0}
            figures.add(front, HEADLINE, turn, dict(common))
            figures.add(
                with_call(front), HEADLINE, turn, {**common, "added_us": added, "added_cpu_us": added / 2}
            )
        for way in uploads.WAYS:
            # The last round is the worst.
            found = {"rate": 100.0, "front_mib": 1.0, "grown_mib": grown_mib - 1.0 + turn / 2}
            figures.add(way.text, uploads.CASE, turn, found)
    return figures


# --- wrk --------------------------------------------------------------------------------------


def test_what_wrk_says_is_read_in_its_units() -> None:
    assert wrk.parse(SAID) == (23012, 7645.5, 850.0, 1_020_000.0)


@pytest.mark.parametrize(
    "fault", ["  Non-2xx or 3xx responses: 2108", "  Socket errors: connect 0, read 3, write 0, timeout 0"]
)
def test_a_load_in_which_requests_failed_has_no_figures(fault: str) -> None:
    with pytest.raises(Unavailable, match=re.escape(fault.strip())):
        wrk.parse(SAID.replace("Requests/sec", f"{fault}\nRequests/sec"))


@pytest.mark.parametrize("said", ["", "unable to connect", SAID.replace("23012 requests", "0 requests")])
def test_what_is_no_load_has_no_figures(said: str) -> None:
    with pytest.raises(Unavailable, match="wrk said"):
        wrk.parse(said)


def test_without_wrk_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr("sys.argv", ["fronts"])
    with pytest.raises(SystemExit) as exit_:
        fronts.main()
    assert exit_.value.code == "fronts: wrk is not installed (apt-get install wrk): it makes the load"


# --- parts ------------------------------------------------------------------------------------


class Trickle(io.BytesIO):
    """Gives less than it is asked for, as a socket may."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(3, size or 0))


@pytest.mark.parametrize("source", [io.BytesIO, Trickle])
@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        (b"", [(b"", True)]),
        (b"12", [(b"12", True)]),
        (b"12345678", [(b"12345678", True)]),
        (b"123456789", [(b"12345678", False), (b"9", True)]),
        (b"1234567890123456", [(b"12345678", False), (b"90123456", True)]),
    ],
)
def test_an_upload_goes_on_in_full_parts_of_which_one_is_the_last(
    source: type[io.BytesIO], whole: bytes, expected: list[tuple[bytes, bool]]
) -> None:
    assert list(pages.parts(source(whole), 8)) == expected


@pytest.mark.parametrize("size", [0, 1, pages.PART, pages.PART + 1])
def test_content_is_as_long_as_it_is_asked_to_be(size: int) -> None:
    whole = b"".join(uploads.content(size))
    assert len(whole) == size
    assert hashlib.sha256(whole).hexdigest() == uploads.digest(size)


def test_a_part_that_is_out_of_order_is_refused() -> None:
    stored = uploads.Stored()
    with stored.file:
        stored.add(b"x", 0)
        with pytest.raises(ValueError, match="part 2 came when 1 was expected"):
            stored.add(b"x", 2)


# --- judging ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("added_us", "is_met"), [(49.0, True), (50.0, False), (51.0, False)])
def test_a_call_adds_less_than_half_of_what_zerorpcs_adds(added_us: float, is_met: bool) -> None:
    verdicts = page_loads.judge(fabricated(added_us=added_us))
    assert [verdict.is_met for verdict in verdicts] == [is_met] * len(OURS)
    assert {verdict.value for verdict in verdicts} == {added_us / 100}


@pytest.mark.parametrize(("grown_mib", "is_met"), [(29.9, True), (30.0, False), (31.0, False)])
def test_the_worst_round_of_a_large_body_counts(grown_mib: float, is_met: bool) -> None:
    verdicts = uploads.judge(fabricated(grown_mib=grown_mib))
    assert [verdict.is_met for verdict in verdicts] == [is_met] * len(uploads.WAYS)


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert {(each.value, each.is_met) for each in fronts.verdicts(Figures())} == {(None, None)}


@pytest.mark.parametrize(
    ("others", "n"),
    [([0.0, 0.1], 1), ([0.5, 0.0, 0.0, 0.0], 2), ([0.5] * 2 * page_loads.TRIES, page_loads.TRIES)],
)
def test_a_turn_in_which_others_were_busy_is_taken_again_but_not_for_ever(
    others: list[float], n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = [{"rate": 1000.0 + i, "cpu_us": 100.0, "others": each} for i, each in enumerate(others)]
    left = iter([dict(each) for each in loads])
    monkeypatch.setattr(page_loads, "load", lambda site, path, seconds: next(left))
    figures = Figures()
    page_loads.take_turn(figures, "pywsgi", Site(0, []), 0, 1)
    assert not list(left)
    page, called = loads[2 * n - 2 :]
    assert figures.spread("pywsgi", HEADLINE, "rate").median == page["rate"]
    added_us = 1e6 / called["rate"] - 1e6 / page["rate"]
    assert figures.spread(with_call("pywsgi"), HEADLINE, "added_us").median == added_us


def test_rounds_go_there_and_back() -> None:
    assert page_loads.by_turns("abc", 0) == ["a", "b", "c"]
    assert page_loads.by_turns("abc", 1) == ["c", "b", "a"]


# --- reports ----------------------------------------------------------------------------------


def test_the_terminal_shows_figures_verdicts_and_who_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    figures = fabricated(grown_mib=31.0)
    figures.absent["somebody"] = "[it] is not installed"
    fronts.show(figures, MACHINE)
    out = capsys.readouterr().out
    assert "left out: somebody: [it] is not installed" in out
    assert " met " in out
    assert " not met " in out
    assert "0.30 (0.30–0.30)" in out


def test_every_round_is_in_the_json() -> None:
    whole = json.loads(fronts.as_json(fabricated(), MACHINE))
    assert {row["round"] for row in whole["rows"] if row["system"] == with_call("pywsgi")} == {0, 1, 2}
    assert len(whole["targets"]) == len(OURS) + len(uploads.WAYS)


# --- processes --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_short_look_at_a_page_with_a_call_has_figures_of_every_kind() -> None:
    if shutil.which("wrk") is None:
        do_without("wrk")
    with Sites() as sites:
        site = page_loads.start(sites, "pywsgi", sites.mesh())
        page_loads.check(site, "/call")
        found = page_loads.load(site, "/call", seconds=1)
        pids = [process.pid for process in site.processes]
    for name in ("rate", "p50_us", "p99_us", "cpu_us", "front_us", "router_us", "service_us"):
        assert found[name] > 0, name
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
@pytest.mark.parametrize("way", [uploads.WAYS[1], uploads.WAYS[3]], ids=lambda way: way.text)
def test_a_large_body_arrives_through_every_process(way: uploads.Way) -> None:
    if way.front == "mongrel2":
        needs_mongrel2()
    found = uploads.measure(way)
    assert found["rate"] > 0
    assert {"front_mib", "router_mib", "service_mib"} <= set(found)
    assert ("mongrel2_mib" in found) == (way.front == "mongrel2")


@pytest.mark.slow
def test_a_page_that_fails_is_one_line_of_the_report() -> None:
    with Sites() as sites:
        site = page_loads.start(sites, "pywsgi", [])
        with pytest.raises(Unavailable, match="GET /nowhere: 404"):
            page_loads.check(site, "/nowhere")


def test_a_front_that_is_not_installed_is_left_out_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*command: str) -> str:
        raise Unavailable("not installed: no network")

    monkeypatch.setattr(environments, "python", fail)
    figures = Figures()
    fronts.measure_pages(figures, [THEIRS], rounds=1, seconds=1)
    assert figures.absent == {THEIRS: "not installed: no network"}
