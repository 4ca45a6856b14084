"""Stored requests that failed."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from butler_mesh.connections.amqp import retries
from butler_mesh.connections.amqp.queues import DELIVERY_LIMIT
from butler_mesh.connections.amqp.retries import PAUSES_S, Retries
from tests.waiting import wait_for


class Job:
    target = "svc"

    def __init__(self, deliveries: int) -> None:
        self.id, self.deliveries = str(deliveries), deliveries


def test_each_failure_has_its_pause_and_the_last_one_none() -> None:
    assert len(PAUSES_S) == DELIVERY_LIMIT + 1
    assert list(PAUSES_S[:-1]) == sorted(PAUSES_S[:-1])
    assert PAUSES_S[-1] == 0.0


def test_they_are_given_back_when_their_pause_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retries, "PAUSES_S", (0.03, 0.01))
    given_back: list[Any] = []
    kept = Retries(given_back.append)
    jobs: list[Any] = [Job(n) for n in (0, 1, 7)]
    with caplog.at_level(logging.WARNING, "butler_mesh"):
        for job in jobs:
            kept.add(job, 503)
    wait_for(lambda: len(given_back) == 3)
    assert given_back[-1] is jobs[0]
    assert caplog.text.count("retried") == 3
    assert "given-up" not in caplog.text
    monkeypatch.setattr(retries, "PAUSES_S", (0.01, 0.0))
    with caplog.at_level(logging.WARNING, "butler_mesh"):
        kept.add(jobs[1], 503)
    assert "given-up 1 of 'svc' after 2 attempts: 503" in caplog.text
    caplog.clear()
    kept.add(jobs[0], 503)
    kept.close()
