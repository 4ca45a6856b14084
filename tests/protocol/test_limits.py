"""A router's limits: what may be set, and what cannot work."""

from __future__ import annotations

import pytest

from butler_mesh.errors import UsageError
from butler_mesh.protocol.limits import FOREIGN_DEADLINE_S, Limits
from tests.protocol.net import Net


@pytest.mark.parametrize("interval_s", [0.0, -1.0, 5.1, float("nan")])
def test_a_heartbeat_interval_that_peers_would_not_survive_is_refused(interval_s: float) -> None:
    with pytest.raises(UsageError, match="up to 5 seconds"):
        Limits(heartbeat_interval_s=interval_s)


def test_a_heartbeat_timeout_shorter_than_two_heartbeats_is_refused() -> None:
    with pytest.raises(UsageError, match="under 2 seconds"):
        Limits(heartbeat_timeout_s=1.9)


def test_a_limit_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="queue_limits"):
        Limits(queue_limits=3)  # type: ignore[call-arg]


def test_patience_with_a_majordomo_client_covers_its_longest_request() -> None:
    assert Limits(foreign_deadline_s=1.0).foreign_patience_s == FOREIGN_DEADLINE_S
    assert Limits(foreign_deadline_s=5000.0).foreign_patience_s == 5000.0


def test_the_heartbeat_timeout_decides_when_a_silent_instance_is_dead() -> None:
    """An instance that hangs is given up, and its caller told, after just that time."""
    net = Net(heartbeat_timeout_s=4.0)
    caller, worker = net.caller(), net.worker("svc")
    call = caller.ask("svc", timeout_s=60.0)
    worker.is_stopped = True
    net.advance(3.9)
    assert call.code is None
    net.advance(0.5)
    assert call.code == 502


def test_the_defaults_are_those_that_are_documented() -> None:
    """docs/running.rst and docs/protocol.rst name these."""
    limits = Limits()
    assert (limits.queue_limit, limits.max_body_bytes) == (1000, 16 * 1024 * 1024)
    assert (limits.register_grace_s, limits.absent_grace_s, limits.forget_service_s) == (3.0, 60.0, 3600.0)
    assert (limits.heartbeat_interval_s, limits.heartbeat_timeout_s) == (1.0, 15.0)
    assert (limits.foreign_deadline_s, limits.foreign_patience_s) == (900.0, 900.0)


@pytest.mark.parametrize(
    "options",
    [
        {"queue_limit": -1},
        {"max_body_bytes": 0},
        {"heartbeat_timeout_s": float("nan")},
        {"heartbeat_timeout_s": float("inf")},
        {"absent_grace_s": -1.0},
        {"forget_service_s": float("nan")},
        {"foreign_deadline_s": 0.0},
        {"busy_timeout_s": -1.0},
    ],
)
def test_what_cannot_work_is_refused_where_it_is_asked_for(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="number"):
        Limits(**options)  # type: ignore[arg-type]
