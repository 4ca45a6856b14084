"""The comparison: its arithmetic and its reports on made-up figures, and one short run of our own."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import ujson

from benchmarks import compare, environments, rabbitmq, report, systems
from benchmarks.figures import HEADLINE, Case, Figures, Spread
from benchmarks.harness import body, percentile
from benchmarks.parties import Meeting, free_ports
from benchmarks.system import System, Unavailable
from benchmarks.targets import ROUTED, TARGETS, judge

MACHINE = report.Machine("2026-01-01 00:00 UTC", "a <processor> & more", 2, "3.11.0", {})
(OURS,) = (system for system in compare.SYSTEMS if system.name == ROUTED)


def fabricated(factor: float = 1.0) -> Figures:
    """Return three rounds of every system in every case of a quick run; ours better by a factor."""
    figures = Figures()
    for turn in range(3):
        figures.add(report.BASE, HEADLINE, turn, {"importing_s": 0.04})
        for system in compare.SYSTEMS:
            advantage = factor if system.name == ROUTED else 1.0
            for case in compare.QUICK:
                if not compare.can(system, case):
                    continue
                # The machine slows down from round to round: only ratios within a round are right.
                rate = 1000.0 * advantage / (turn + 1)
                found = {"rate": rate, "cpu_us": 100.0 / advantage, "client_us": 60.0 / advantage}
                if case.in_flight:
                    found |= {"p50_us": 500.0 / advantage, "p99_us": 900.0 / advantage}
                else:
                    found |= {"lost": 0.0}
                if case == HEADLINE:
                    found |= {"start_s": 0.2, "importing_s": 0.1, "client_mib": 20.0, "start_beyond_s": 0.16}
                figures.add(system.name, case, turn, found)
    return figures


# --- arithmetic -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([7.0], 50, 7.0), ([1.0, 2.0], 50, 1.0), ([1.0, 2.0, 3.0], 50, 2.0), ([1.0, 2.0, 3.0], 0, 1.0)],
)
def test_a_percentile_is_a_value_that_was_measured(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


def test_one_call_in_a_hundred_takes_longer_than_the_99th_percentile() -> None:
    assert percentile([float(i) for i in range(1, 101)], 99) == 99.0


@pytest.mark.parametrize("size", [100, 1024, 102_400])
def test_a_body_is_exactly_as_long_as_it_is_said_to_be(size: int) -> None:
    assert len(ujson.dumps(body(size))) == size


def test_a_spread_has_the_median_of_its_values() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 9.0]) == (statistics.median([1, 2, 3, 9]), 1.0, 9.0)


def test_a_ratio_is_taken_within_rounds_and_to_the_best_of_several() -> None:
    figures = Figures()
    for turn, (ours, slow, fast) in enumerate([(100.0, 1.0, 50.0), (10.0, 1.0, 5.0), (8.0, 2.0, 1.0)]):
        for name, rate in (("ours", ours), ("slow", slow), ("fast", fast)):
            figures.add(name, HEADLINE, turn, {"rate": rate})
    assert figures.ratio("ours", ["slow", "fast"], HEADLINE, "rate") == (2.0, 2.0, 4.0)
    assert figures.ratio("ours", ["absent"], HEADLINE, "rate") is None


# --- targets ----------------------------------------------------------------------------------


def test_every_target_is_about_systems_that_there_are_and_cases_that_are_measured() -> None:
    names = {system.name for system in compare.SYSTEMS}
    assert len(names) == len(compare.SYSTEMS)
    for target in TARGETS:
        assert {target.system, *target.against} <= names, target.text
        assert target.case in compare.QUICK, target.text
        assert (target.at_least is None) != (target.at_most is None), target.text


@pytest.mark.parametrize(("factor", "is_met"), [(1000.0, True), (0.001, False)])
def test_a_target_is_met_or_not(factor: float, is_met: bool) -> None:
    verdicts = [each for each in judge(fabricated(factor)) if each.target.system == ROUTED]
    # Start-up is the same in both.
    assert {each.is_met for each in verdicts if each.target.figure != "start_beyond_s"} == {is_met}


def test_a_target_that_was_not_measured_is_neither() -> None:
    assert {(each.value, each.is_met) for each in judge(Figures())} == {(None, None)}


# --- reports ----------------------------------------------------------------------------------


def test_the_chart_is_well_formed_and_its_text_is_text() -> None:
    root = ElementTree.fromstring(report.as_svg(fabricated()))
    words = {element.text for element in root.iter() if element.tag.endswith("}text")}
    # Those in C are named below the bars, which would be too long.
    in_bars = {system.name for system in compare.SYSTEMS if "(bytes)" not in system.name}
    assert in_bars <= words


def test_the_table_is_restructured_text_without_a_warning() -> None:
    core = pytest.importorskip("docutils.core", reason="docutils is in the extra 'dev'")
    figures = fabricated()
    figures.absent["somebody"] = "nobody knows why"
    settings = {"report_level": 2, "halt_level": 2}
    tree = core.publish_doctree(report.as_rst(figures, MACHINE), settings_overrides=settings)
    assert len(list(tree.findall(lambda node: node.tagname == "row"))) == 1 + len(compare.SYSTEMS)
    assert "nobody knows why" in tree.astext()


def test_every_round_is_in_the_json() -> None:
    whole: dict[str, Any] = json.loads(report.as_json(fabricated(), MACHINE))
    ours = [row for row in whole["rows"] if row["system"] == ROUTED and Case(row["size"]) == HEADLINE]
    assert {row["round"] for row in ours} == {0, 1, 2}
    assert whole["machine"]["cores"] == 2
    assert len(whole["targets"]) == len(TARGETS)


def test_the_terminal_shows_figures_verdicts_and_who_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    figures = fabricated(1000.0)
    figures.absent["somebody"] = "[it] is not installed"
    report.show(figures, MACHINE)
    out = capsys.readouterr().out
    assert "left out: somebody: [it] is not installed" in out
    assert " met " in out
    assert "zerorpc" in out


# --- processes --------------------------------------------------------------------------------


def test_ports_are_below_those_of_the_kernel() -> None:
    ports = free_ports(3)
    assert len(set(ports)) == 3
    assert max(ports) < 32_768


@pytest.mark.slow
def test_a_short_run_of_our_own_has_figures_of_every_kind() -> None:
    figures = Figures()
    compare.measure(figures, [OURS], [HEADLINE, compare.ONE_WAY], rounds=1, seconds=0.1)
    assert not figures.absent
    for name in ("rate", "p50_us", "p99_us", "client_mib", "broker_mib", "worker_mib", "start_beyond_s"):
        assert figures.spread(OURS.name, HEADLINE, name).median > 0, name
    assert figures.spread(OURS.name, compare.ONE_WAY, "lost").median == 0


@pytest.mark.slow
def test_no_process_outlives_its_meeting() -> None:
    with Meeting(OURS) as meeting:
        pids = [party.pid for party in meeting.parties]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_what_cannot_be_imported_is_one_line_of_the_report() -> None:
    broken = OURS._replace(imports=("no_such_module",))
    with pytest.raises(Unavailable, match="No module named 'no_such_module'"):
        Meeting(broken)


@pytest.mark.slow
def test_what_fails_is_one_line_of_the_report_and_the_others_go_on() -> None:
    figures = Figures()
    # With this no interpreter starts.
    failing = OURS._replace(name="failing", environ=(("PYTHONMALLOC", "nonsense"),))
    compare.measure(figures, [failing, OURS], [HEADLINE], rounds=1, seconds=0.1)
    assert list(figures.absent) == ["failing"]
    assert "\n" not in figures.absent["failing"]
    assert figures.has(OURS.name, HEADLINE, "rate")


def test_what_cannot_be_installed_is_one_line_of_the_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environments, "HOME", tmp_path)

    def fail(*command: str) -> str:
        raise Unavailable("not installed: no network")

    monkeypatch.setattr(environments, "_run", fail)
    figures = Figures()
    peer = System(name="peer", module="majortomo", requires=("no-such-distribution==0",))
    compare.measure(figures, [peer], [HEADLINE], rounds=1, seconds=0.1)
    assert figures.absent == {"peer": "not installed: no network"}


def test_the_environment_of_the_project_is_the_one_we_run_in() -> None:
    assert environments.python(()) == sys.executable


def test_the_reason_of_a_failure_is_the_line_that_names_an_error() -> None:
    output = "Collecting it\nERROR: no matching distribution\n\n[notice] a new release of pip\n"
    assert environments.reason(output) == "ERROR: no matching distribution"
    assert environments.reason("") == "it does not say why"


def test_every_file_of_a_competitor_competes() -> None:
    directory = Path(systems.__file__).parent
    files = {path.stem for path in directory.glob("*.py")} - {"__init__"}
    assert files == {system.module for system in (*compare.SYSTEMS, *rabbitmq.SYSTEMS)}
