"""What memory is kept by calls that are over: of each process, as the kernel counts it, between two counts
of calls after everything has warmed up."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest

from tests.processes.parties import Parties, Party

pytestmark = pytest.mark.slow

GROWTH_MIB = 5.0
IDLE_ROUTER_MIB = 40.0
TIMED_OUT = [20_000, 100_000]
ANSWERED = [200_000, 1_000_000]


def growth(
    parties: Parties,
    endpoint: str,
    watched: dict[str, Party],
    marks: list[int],
    *,
    path: str = "/never",
    arguments: dict[str, Any] | None = None,
    timeout: float,
    greenlets: int,
) -> tuple[dict[str, float], dict[str, int]]:
    """Let a client make so many calls; return each process's growth from the first mark to the last in MiB,
    and how often each status was answered."""
    counter = parties.start(
        "counter",
        endpoint,
        {
            "service": "svc",
            "path": path,
            "arguments": arguments or {},
            "timeout": timeout,
            "greenlets": greenlets,
            "marks": marks,
            "pids": {name: party.pid for name, party in watched.items()},
        },
    )
    counted = counter.wait_for_result(120)
    first, last = counted["memory"][0], counted["memory"][-1]
    return {name: round(last[name] - first[name], 2) for name in first}, counted["codes"]


def test_an_idle_router_takes_less_than_40_MiB(parties: Parties) -> None:
    """A router with an instance and a client that has called once."""
    router, endpoint = parties.router()
    parties.service(endpoint)
    client = parties.client(endpoint)
    assert client.request("svc", "/echo", {"text": "x"}).status_code == 200
    gevent.sleep(1.1)  # a heartbeat of everybody
    assert router.rss_mib < IDLE_ROUTER_MIB


def test_calls_that_time_out_in_a_handler_leave_nothing_behind(parties: Parties) -> None:
    """A hundred thousand calls to a handler that never returns, each given 20 ms: all are told 504, and no
    process grows by 5 MiB after the first twenty thousand."""
    router, endpoint = parties.router()
    service = parties.service(endpoint)
    grown, codes = growth(
        parties, endpoint, {"router": router, "service": service}, TIMED_OUT, timeout=0.02, greenlets=500
    )
    assert codes.keys() == {"504"}
    assert max(grown.values()) < GROWTH_MIB, grown


def test_calls_that_time_out_in_the_queue_leave_nothing_behind(parties: Parties) -> None:
    """The same for a service whose one instance has been told to leave: its requests wait for the next,
    none comes, and they are told 503."""
    router, endpoint = parties.router()
    service = parties.service(endpoint)
    service.process.terminate()
    assert service.wait(5) == 0
    grown, codes = growth(parties, endpoint, {"router": router}, TIMED_OUT, timeout=0.02, greenlets=500)
    assert codes.keys() <= {"503", "504"}
    assert codes["503"] > 1000
    assert max(grown.values()) < GROWTH_MIB, grown


def test_a_million_answered_calls_with_a_deadline_of_a_minute_leave_nothing_behind(parties: Parties) -> None:
    """Their deadlines lie ahead when they are answered: nothing waits for those, and no process grows by
    5 MiB after the first two hundred thousand."""
    router, endpoint = parties.router()
    service = parties.service(endpoint)
    began = time.monotonic()
    grown, codes = growth(
        parties,
        endpoint,
        {"router": router, "service": service},
        ANSWERED,
        path="/echo",
        arguments={"text": "x"},
        timeout=60,
        greenlets=256,
    )
    assert codes.keys() == {"200"}
    assert max(grown.values()) < GROWTH_MIB, (grown, time.monotonic() - began)
