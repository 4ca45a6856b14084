"""Processes that are killed, stopped, busy or asked to leave, and what their callers see of it.

Every service here has the default settings (but for the credit where that is what is tested): what
tells *dead* from *blocked* is not tuned to the test.
"""

from __future__ import annotations

import time
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM
from typing import Any

import gevent
import pytest

from butler_mesh import Client
from butler_mesh.calls import LazyResponse
from tests.processes.parties import Parties, Party, instances, status
from tests.programs import Program
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

AT_ONCE_S = 1.0
"""How soon a caller is to hear that an instance or router has died."""
BLOCKED_WITHIN_S = 4.0


def answers(calls: list[LazyResponse], timeout_s: float) -> list[Any]:
    """Return (status, body) of each call, all of which must come in time."""
    until = time.monotonic() + timeout_s
    return [(r.status_code, r.body) for r in (c.get(max(0.001, until - time.monotonic())) for c in calls)]


def in_flight(client: Client, party: Party) -> int:
    found = instances(client).get(party.pid)
    return -1 if found is None else int(found["in_flight"])


def state(client: Client, party: Party) -> str:
    found = instances(client).get(party.pid)
    return "absent" if found is None else str(found["state"])


def ask_again_and_again(client: Client, calls: list[tuple[float, LazyResponse]]) -> None:
    """Ask for a pid twenty times a second."""
    while True:
        calls.append((time.monotonic(), client.request_lazy("svc", "/nap", {"seconds": 0})))
        gevent.sleep(0.05)


# --- an instance dies -----------------------------------------------------------------------------


def test_callers_of_a_killed_instance_get_502_within_a_second_and_idempotent_calls_another_instance(
    parties: Parties, tmp_path: Path
) -> None:
    """kill -9 with 20 calls in flight: 10 are told 502 at once, 10 are answered by the second instance."""
    _, endpoint = parties.router()
    first = parties.service(endpoint, gate=str(tmp_path / "never"))
    client = parties.client(endpoint)
    plain = [client.request_lazy("svc", "/work") for _ in range(10)]
    idempotent = [client.request_lazy("svc", "/work", idempotent=True) for _ in range(10)]
    wait_for(lambda: in_flight(client, first) == 20)
    second = parties.service(endpoint)
    killed_at = time.monotonic()
    first.kill()
    assert answers(plain, AT_ONCE_S) == [(502, None)] * 10
    assert answers(idempotent, AT_ONCE_S) == [(200, second.pid)] * 10
    assert time.monotonic() - killed_at < AT_ONCE_S
    assert instances(client).keys() == {second.pid}


def test_a_client_killed_in_mid_call_has_its_handlers_stopped_and_gives_the_credit_back(
    parties: Parties,
) -> None:
    """kill -9 of a client: its handlers are stopped with 499, and the next caller is served at once."""
    _, endpoint = parties.router()
    service = parties.service(endpoint, credit=2)
    holder = parties.start("holder", endpoint, "svc", "2")
    service.wait_for_line("holding", n=2)
    client = parties.client(endpoint)
    assert in_flight(client, service) == 2
    queued = client.request_lazy("svc", "/nap", {"seconds": 0})
    holder.kill()
    assert answers([queued], 2.0) == [(200, service.pid)]
    service.wait_for_line("stopped 499", n=2)
    wait_for(lambda: in_flight(client, service) == 0)


# --- an instance that does not answer -------------------------------------------------------------


def test_a_stopped_instance_gets_no_new_work_and_answers_what_it_has_when_it_goes_on(
    parties: Parties,
) -> None:
    """SIGSTOP: within 4 s it reads *blocked* and callers are served by the second instance; after SIGCONT
    everything it had been given is answered by it, and nobody was ever told 502."""
    _, endpoint = parties.router()
    stopped, second = parties.service(endpoint), parties.service(endpoint)
    client = parties.client(endpoint)
    calls: list[tuple[float, LazyResponse]] = []
    asking = gevent.spawn(ask_again_and_again, client, calls)
    wait_for(lambda: {c.get(2).body for _, c in calls} == {stopped.pid, second.pid})
    began = time.monotonic()
    stopped.signal(SIGSTOP)
    wait_for(lambda: state(client, stopped) == "blocked", BLOCKED_WITHIN_S)
    blocked_at = time.monotonic()
    assert blocked_at - began < BLOCKED_WITHIN_S
    gevent.sleep(1)
    asking.kill()
    later = [call for sent_at, call in calls if sent_at > blocked_at]
    assert len(later) >= 10
    assert answers(later, 1.0) == [(200, second.pid)] * len(later)
    kept = [call for _, call in calls if not call.is_ready()]
    assert kept
    assert in_flight(client, stopped) == len(kept)
    stopped.signal(SIGCONT)
    assert answers(kept, 2.0) == [(200, stopped.pid)] * len(kept)
    wait_for(lambda: state(client, stopped) == "ready", 2.0)
    assert {c.get(1).status_code for _, c in calls} == {200}


def test_an_instance_whose_handler_computes_for_ten_seconds_is_blocked_and_never_dead(
    parties: Parties,
) -> None:
    """A handler spins in pure Python: mmi.status says *blocked* within 4 s, other calls are answered by the
    second instance, and after ten seconds the call is answered as if nothing had been."""
    _, endpoint = parties.router()
    both = [parties.service(endpoint), parties.service(endpoint)]
    client = parties.client(endpoint)
    began = time.monotonic()
    spinning = client.request_lazy("svc", "/spin", {"seconds": 10})
    wait_for(lambda: any("spinning" in party.output for party in both))
    busy, second = both if "spinning" in both[0].output else both[::-1]
    calls: list[tuple[float, LazyResponse]] = []
    asking = gevent.spawn(ask_again_and_again, client, calls)
    wait_for(lambda: state(client, busy) == "blocked", BLOCKED_WITHIN_S)
    blocked_at = time.monotonic()
    assert blocked_at - began < BLOCKED_WITHIN_S
    seen = set()
    while not spinning.is_ready() and time.monotonic() - began < 9.5:
        seen.add(state(client, busy))
        gevent.sleep(0.1)
    asking.kill()
    assert seen == {"blocked"}
    later = [call for sent_at, call in calls if sent_at > blocked_at]
    assert answers(later, 0.5) == [(200, second.pid)] * len(later)
    assert answers([spinning], 3.0) == [(200, busy.pid)]
    assert time.monotonic() - began >= 10
    assert {c.get(2).status_code for _, c in calls} == {200}
    wait_for(lambda: state(client, busy) == "ready", 2.0)
    assert busy.output.count("registered as") == 1


# --- the router -----------------------------------------------------------------------------------


def test_callers_of_a_killed_router_get_502_within_a_second_and_a_new_one_is_found_by_all(
    parties: Parties, tmp_path: Path
) -> None:
    """kill -9 of the router: calls in flight are told 502 at once; one is started on the same port, the
    instances register by themselves, and the same client's next calls, and its idempotent ones, go on."""
    router, endpoint = parties.router()
    gate = tmp_path / "gate"
    both = [parties.service(endpoint, gate=str(gate)) for _ in range(2)]
    client = parties.client(endpoint)
    plain = [client.request_lazy("svc", "/work") for _ in range(8)]
    idempotent = [client.request_lazy("svc", "/work", idempotent=True) for _ in range(8)]
    wait_for(lambda: sum(in_flight(client, party) for party in both) == 16)
    router.kill()
    assert answers(plain, AT_ONCE_S) == [(502, None)] * 8
    assert not any(call.is_ready() for call in idempotent)
    gate.touch()
    restarted_at = time.monotonic()
    parties.router(endpoint)
    after = client.request("svc", "/work")
    assert (after.status_code, after.body in {party.pid for party in both}) == (200, True)
    assert {code for code, _ in answers(idempotent, 3.0)} == {200}
    wait_for(lambda: instances(client).keys() == {party.pid for party in both})
    assert time.monotonic() - restarted_at < 5
    # Handlers of the old router's calls have ended, and their credit came back here.
    wait_for(lambda: {i["credit"] for i in instances(client).values()} == {64})


def test_a_router_that_slept_for_five_seconds_loses_no_call_and_expires_nobody(
    parties: Parties, tmp_path: Path
) -> None:
    """SIGSTOP for 5 s: on waking it calls nobody silent or blocked, for it was itself deaf; nobody has to
    register again, and the calls that were in flight are answered."""
    router, endpoint = parties.router()
    gate = tmp_path / "gate"
    both = [parties.service(endpoint, gate=str(gate)) for _ in range(2)]
    client = parties.client(endpoint)
    calls = [client.request_lazy("svc", "/work") for _ in range(8)]
    wait_for(lambda: sum(in_flight(client, party) for party in both) == 8)
    router.signal(SIGSTOP)
    gate.touch()
    gevent.sleep(5)
    assert not any(call.is_ready() for call in calls)
    router.signal(SIGCONT)
    assert [code for code, _ in answers(calls, 1.0)] == [200] * 8
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        assert {pid: i["state"] for pid, i in instances(client).items()} == {p.pid: "ready" for p in both}
    assert "removed" not in router.output
    assert "blocked" not in router.output
    assert status(client)["counters"].get("faults", 0) == 0


# --- leaving, and sharing -------------------------------------------------------------------------


def test_an_instance_that_is_told_to_leave_under_load_costs_no_call(parties: Parties) -> None:
    """SIGTERM while 32 greenlets call: it finishes what it has and exits 0, the second instance does the
    rest, and every single call is answered 200."""
    _, endpoint = parties.router()
    leaving, staying = parties.service(endpoint), parties.service(endpoint)
    client = parties.client(endpoint)
    until = time.monotonic() + 3
    answered: list[tuple[float, int, Any]] = []

    def call(n: int) -> None:
        while time.monotonic() < until:
            response = client.request("svc", "/nap", {"seconds": 0.001 * (n % 4)})
            answered.append((time.monotonic(), response.status_code, response.body))

    callers = [gevent.spawn(call, n) for n in range(32)]
    wait_for(lambda: {pid for _, _, pid in answered} == {leaving.pid, staying.pid})
    gevent.sleep(0.5)
    told_at = time.monotonic()
    leaving.signal(SIGTERM)
    assert leaving.wait(5) == 0
    left_at = time.monotonic()
    gevent.joinall(callers, raise_error=True)
    assert {code for _, code, _ in answered} == {200}
    assert {pid for at, _, pid in answered if at > left_at + 0.1} == {staying.pid}
    assert len([at for at, _, _ in answered if at > told_at]) > 100


def test_two_processes_with_credit_one_halve_the_time_of_two_parallel_calls(parties: Parties) -> None:
    """One process of credit 1 takes two calls one after the other, two take them side by side."""
    _, endpoint = parties.router()
    parties.service(endpoint, credit=1)
    client = parties.client(endpoint)

    def two_calls_s() -> float:
        began = time.monotonic()
        calls = [client.request_lazy("svc", "/nap", {"seconds": 0.5}) for _ in range(2)]
        assert {code for code, _ in answers(calls, 5.0)} == {200}
        return time.monotonic() - began

    alone = two_calls_s()
    parties.service(endpoint, credit=1)
    together = two_calls_s()
    assert alone >= 1.0
    assert 0.5 <= together < 0.75 * alone


SLEEPER = """
    import sys, time
    from butler_mesh import Client

    with Client(sys.argv[1], timeout=10.0) as client:
        for _ in range(3):
            print(client.request("svc", "/echo", {"text": "hi"}).status_code, flush=True)
            time.sleep(3.5)
        lazy = client.request_lazy("svc", "/echo", {"text": "hi"})
        print(lazy.get().status_code)
"""


def test_a_program_without_gevent_may_sleep_between_its_calls(parties: Parties) -> None:
    """It does not beat while it sleeps, and the router forgets it after two seconds; its next call is
    answered as if nothing had been."""
    _, endpoint = parties.router(heartbeat_interval_s=0.5, heartbeat_timeout_s=2.0)
    parties.service(endpoint, "svc")
    with Program.of(SLEEPER, endpoint) as program:
        assert program.ends(60.0) == 0, program.stderr
        assert program.stdout.split() == [b"200"] * 4
