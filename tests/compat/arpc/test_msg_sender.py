"""The sender command: what it prints, and its exit status."""

from __future__ import annotations

import logging

import pytest

from butler_mesh.compat.arpc import msg_sender
from butler_mesh.compat.arpc.operations import ADDRESS
from tests.compat.arpc.conftest import KEY, ExampleService, Operations, Start


@pytest.fixture(autouse=True)
def _sends_to_the_workers(operations: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, operations().address)


def test_it_prints_the_result(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    start(ExampleService())
    with caplog.at_level(logging.INFO, "msg_sender"):
        assert msg_sender.main([KEY, '{"c":"add", "x":10, "y":20}']) == 0
    said = [record.getMessage() for record in caplog.records if record.name == "msg_sender"]
    assert said == ["Message sent, waiting for response", "Result: <{'res': 30}>"]


@pytest.mark.slow
def test_it_prints_a_result_for_each_worker(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    workers = [start(ExampleService()) for _ in range(2)]
    with caplog.at_level(logging.INFO, "msg_sender"):
        assert msg_sender.main([f"mgt.{KEY}", '{"c":"ping"}', "--timeout", "1"]) == 0
    said = [record.getMessage() for record in caplog.records if record.name == "msg_sender"]
    assert len(said) == 3
    assert all(any(worker.wid in line for line in said[1:]) for worker in workers)


@pytest.mark.slow
def test_it_prints_results_and_failures_side_by_side(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    bold, careful = start(ExampleService(), allow_eval=True), start(ExampleService())
    document = '{"c": "eval", "expression": "6 * 7"}'
    with caplog.at_level(logging.INFO, "msg_sender"):
        assert msg_sender.main([f"mgt.{KEY}", document, "--timeout", "1"]) == 1
        assert msg_sender.main([f"mgt.{bold.wid}", document]) == 0
    said = [record.getMessage() for record in caplog.records if record.name == "msg_sender"]
    assert said.count("Result: <42>") == 2
    (failure,) = [line for line in said if line.startswith(careful.wid)]
    assert failure.startswith(f"{careful.wid}: 404 no command 'eval'")
    caplog.clear()


def test_a_failure_is_told_and_exit_1(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    start(ExampleService())
    assert msg_sender.main([KEY, '{"c":"fail"}']) == 1
    assert "500 " in caplog.text
    assert "in c_fail" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("message", ["{", "[]", "{}", '{"c": 1}'])
def test_what_is_no_request_is_exit_2(message: str, caplog: pytest.LogCaptureFixture) -> None:
    assert msg_sender.main([KEY, message]) == 2
    caplog.clear()
