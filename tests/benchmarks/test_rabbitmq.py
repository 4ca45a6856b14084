"""RabbitMQ's benchmark: how it judges and tells, on made-up figures; and a look at real ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from benchmarks import rabbitmq, report
from benchmarks.figures import Case, Figures
from benchmarks.rabbitmq import CASES, OURS, OURS_DURABLE, SYSTEMS, TARGETS, show, verdicts
from tests.brokers import needs_rabbitmq
from tests.programs import ROOT

MACHINE = report.Machine("2026-01-01 00:00 UTC", "a processor", 2, "3.11.0", {})


def fabricated(without: str = "", **rates: float) -> Figures:
    """Return three rounds: each system has its rate in the first, and more in each; all of one factor."""
    figures = Figures()
    for turn in range(3):
        for system in SYSTEMS:
            rate = rates.get(system.name.replace(" ", "_"), 1000.0) * (turn + 1)
            found = {"rate": rate, "p50_us": 400.0, "p99_us": 900.0, "client_us": 50.0, "worker_us": 60.0}
            for case in CASES:
                if system.name != without:
                    figures.add(system.name, case, turn, dict(found))
    if without:
        figures.absent[without] = "not installed: no network"
    return figures


def rows(shown: str, system: str) -> int:
    return len(re.findall(rf"│ {re.escape(system)} +│", shown))


def met(figures: Figures) -> dict[tuple[str, int], bool | None]:
    return {(each.target.against[0], each.target.case.in_flight): each.is_met for each in verdicts(figures)}


def test_the_targets_are_what_was_asked_for_in_both_cases() -> None:
    assert [case.in_flight for case in CASES] == [1, 64]
    wanted = {(each.system, each.against[0]): each.at_least for each in TARGETS}
    assert wanted == {
        (OURS, "bare pika"): 0.8,
        (OURS, "nameko"): 5,
        (OURS, "celery"): 5,
        (OURS_DURABLE, "bare pika durable"): 0.8,
    }
    assert len(TARGETS) == 2 * len(wanted)
    names = {system.name for system in SYSTEMS}
    assert {name for pair in wanted for name in pair} == names


def test_ratios_are_judged_within_rounds() -> None:
    figures = fabricated(bare_pika=1250.0, nameko=200.0, celery=201.0, bare_pika_durable=1251.0)
    assert met(figures) == {
        (peer, n): is_met
        for peer, is_met in (
            ("bare pika", True),
            ("nameko", True),
            ("celery", False),
            ("bare pika durable", False),
        )
        for n in (1, 64)
    }


def test_what_could_not_be_measured_is_told_and_not_judged(capsys: pytest.CaptureFixture[str]) -> None:
    figures = fabricated(without="nameko")
    assert met(figures)["nameko", 64] is None
    show(figures, MACHINE)
    shown = capsys.readouterr().out
    assert "left out: nameko: not installed: no network" in shown
    assert "not measured" in shown


def test_every_case_has_a_table_with_all_systems(capsys: pytest.CaptureFixture[str]) -> None:
    show(fabricated(), MACHINE)
    shown = capsys.readouterr().out
    for case in CASES:
        assert str(case) in shown
    for system in SYSTEMS:
        assert rows(shown, system.name) == len(CASES)
    assert "2,000 (1,000–3,000)" in shown


def test_an_unknown_system_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rabbitmq", "--only", "kafka"])
    with pytest.raises(SystemExit) as ended:
        rabbitmq.main()
    assert ended.value.code == 2
    assert "bare pika" in capsys.readouterr().err


@pytest.mark.slow
def test_ours_and_bare_pika_are_measured_side_by_side() -> None:
    needs_rabbitmq()
    command = [sys.executable, "-m", "benchmarks.rabbitmq", "--rounds", "1", "--seconds", "0.2"]
    command += ["--only", "butler_mesh", "--only", "bare pika"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert run.returncode == 0, run.stderr
    for name in (OURS, OURS_DURABLE, "bare pika", "bare pika durable"):
        assert rows(run.stdout, name) == len(CASES), run.stdout + run.stderr
    assert "left out" not in run.stdout
    assert str(Case(in_flight=64)) in run.stdout
