"""The budget's workloads really do their work, and its verdicts are right; without valgrind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import budget, counting
from benchmarks.exchange import Exchange
from benchmarks.workloads import WORKLOADS
from butler_mesh.protocol.mesh import ONE_WAY, STREAM

FEW = 128


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_does_all_that_it_says(name: str) -> None:
    assert WORKLOADS[name].prepare(FEW)() == FEW


@pytest.mark.parametrize("flags", [0, ONE_WAY, STREAM])
def test_every_call_of_an_exchange_ends(flags: int) -> None:
    exchange = Exchange(flags)
    assert exchange.run(150) == 150
    assert not exchange.caller.machine.calls
    assert not exchange.worker.machine.jobs
    assert not exchange.hub.machine.dispatcher.directory.has_work()
    for party in (exchange.hub, exchange.caller, exchange.worker):
        assert not party.machine.counters


def test_64_calls_in_flight_travel_as_two_messages() -> None:
    exchange = Exchange()
    exchange.run(64)
    sent = exchange.caller.sent
    exchange.run(64)
    assert exchange.caller.sent - sent == 2


@pytest.mark.parametrize(
    ("ratio", "is_over"), [(1.049, False), (1.051, True), (0.5, False), (1.0, False), (2.0, True)]
)
def test_what_grew_by_over_five_percent_is_over_its_budget(ratio: float, is_over: bool) -> None:
    (finding,) = budget.compare({"call": 3.0 * ratio}, {"call": 3.0})
    assert finding.is_over is is_over
    assert finding.growth == pytest.approx(ratio - 1.0)


def test_what_has_no_budget_yet_is_not_over_it() -> None:
    (finding,) = budget.compare({"new": 3.0}, {"call": 3.0})
    assert not finding.is_over
    assert finding.growth == 0.0


def test_a_ratio_is_a_unit_of_work_in_turns_of_the_reference() -> None:
    counted = {"reference": 100 * WORKLOADS["reference"].n, "call": 250 * WORKLOADS["call"].n}
    assert budget.ratios(counted) == {"call": 2.5}


@pytest.mark.parametrize(
    ("environment", "code", "word"),
    [
        ({}, 0, "skipped"),
        ({"CI": ""}, 0, "skipped"),
        ({"CI": "false"}, 0, "skipped"),
        ({"CI": "true"}, 2, "error"),
    ],
)
def test_what_cannot_be_counted_is_skipped_but_in_ci(
    environment: dict[str, str], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert counting.excuse("no scales", environment) == code
    assert capsys.readouterr().out == f"{word}: no scales\n"


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 2)])
def test_without_valgrind_the_check_says_why_it_does_nothing(
    ci: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert budget.main([]) == code
    assert "valgrind is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 2)])
def test_a_python_without_budgets_is_named(
    ci: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(budget, "version", lambda: "3.99")
    assert budget.main([]) == code
    assert "Python 3.99" in capsys.readouterr().out


def test_a_child_that_fails_fails_the_count() -> None:
    with pytest.raises(RuntimeError, match="failed"):
        counting.measure("wrong", lambda: 1 // 0)


def _counted(growth: float) -> dict[str, int]:
    return {name: round(workload.n * 1000 * growth) for name, workload in WORKLOADS.items()} | {
        "reference": WORKLOADS["reference"].n * 1000
    }


def test_what_is_over_its_budget_fails_the_check_until_it_is_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    budgets = tmp_path / "budget.json"
    budgets.write_text(json.dumps({"3.99": {"ratios": {"call": 1.0}}}))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(budget, "BUDGETS", budgets)
    for growth, arguments, code in [
        (1.0, ["--record"], 0),
        (1.04, [], 0),
        (1.06, [], 1),
        (1.06, ["--record"], 0),
        (1.06, [], 0),
    ]:
        monkeypatch.setattr(counting, "count", lambda module, growth=growth: _counted(growth))
        assert budget.main(arguments) == code
        assert ("over budget: call, client" in capsys.readouterr().out) is bool(code)
    assert json.loads(budgets.read_text())["3.99"] == {"ratios": {"call": 1.0}}
