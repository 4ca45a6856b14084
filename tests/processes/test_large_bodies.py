"""Bodies of megabytes through a router: they arrive as they were, the router holds each of them once, and who
does not read his delays nobody else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import gevent
import pytest

from butler_mesh import Client
from tests.processes.parties import Parties, instances, status
from tests.programs import Program
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

MB = 1_000_000
MAX_BODY_BYTES = 64 * 2**20
LARGEST = 50 * MB
SLACK_MIB = 16
"""What a router holds beside bodies: its peers' buffers, and what its allocator keeps for the next."""
PIPE_MESSAGES = 64
BODIES_A_MESSAGE = 2
"""Of 1 MB: a message is closed at 1 MiB of attachments."""
OUTBOX_MIB = 8
PATIENCE_S = 20.0

SERVICE = """
    import os, sys
    import gevent
    from butler_mesh import Service

    service = Service(sys.argv[1], sys.argv[2], credit=1000)

    @service.function
    def give(size, gate=""):
        while gate and not os.path.exists(gate):
            gevent.sleep(0.005)
        return bytes(size)

    @service.function
    def take(body):
        return len(body)

    @service.function
    def swap(body):
        return body

    @service.function
    def ping():
        return "pong"

    service.start()
    assert service.wait_until_registered(10)
    print("ready")
    service.run()
"""

READER = """
    import json, sys, time
    from collections import Counter
    from butler_mesh import Client

    endpoint, n, size, gate, pause_s = sys.argv[1:]
    client = Client(endpoint, timeout=60)
    counts = Counter()

    def on_reply(response):
        time.sleep(float(pause_s))  # and with it the whole process
        is_whole = response.status_code == 200 and response.body == bytes(int(size))
        counts["whole" if is_whole else str(response.status_code)] += 1

    calls = [client.request_lazy("large", "/give", {"size": int(size), "gate": gate}) for _ in range(int(n))]
    for call in calls:
        on_reply(call.get())
    print(json.dumps(counts))
    client.close()
"""


@contextmanager
def services(endpoint: str, *names: str) -> Iterator[None]:
    """Instances of the service above, each in a process of its own."""
    with ExitStack() as stack:
        for program in [stack.enter_context(Program.of(SERVICE, endpoint, name)) for name in names]:
            program.says("ready")
        yield


def peak_mib(pid: int) -> float:
    """Return the most memory that a process ever had resident since it was last forgotten."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def forget_peak(pid: int) -> None:
    """Let the peak begin anew, at what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def call_until(is_over: Callable[[], bool], client: Client) -> int:
    """Make small calls, one after the other, until something has happened; return how many were made."""
    n = 0
    while not is_over():
        response = client.request("small", "/ping", timeout=PATIENCE_S)
        assert (response.status_code, response.body) == (200, "pong"), response
        n += 1
    return n


@pytest.mark.parametrize("size", [MB, LARGEST])
def test_a_large_request_and_its_reply_arrive_as_they_were(parties: Parties, size: int) -> None:
    """1 MB and 50 MB of random bytes there and back, alone and four at once."""
    _, endpoint = parties.router(max_body_bytes=MAX_BODY_BYTES)
    client = parties.client(endpoint, timeout=PATIENCE_S)
    body = os.urandom(size)
    with services(endpoint, "large"):
        assert client.request("large", "/ping").body == "pong"
        assert client.request("large", "/swap", body=body).body == body
        calls = [client.request_lazy("large", "/swap", body=body) for _ in range(4)]
        assert all(call.get().body == body for call in calls)


def test_the_first_call_of_a_client_may_be_larger_than_the_default_limit(parties: Parties) -> None:
    """A router that takes 64 MiB, and a client that has not met it yet."""
    _, endpoint = parties.router(max_body_bytes=MAX_BODY_BYTES)
    with services(endpoint, "large"):
        client = parties.client(endpoint, timeout=PATIENCE_S)
        assert client.request("large", "/take", body=bytes(20 * MB)).body == 20 * MB


def test_the_first_call_of_a_client_may_be_over_a_limit_it_has_not_heard_of(parties: Parties) -> None:
    """A router that takes 2 MB, and a client that has not met it: 413, and its other calls are answered."""
    _, endpoint = parties.router(max_body_bytes=2 * MB)
    with services(endpoint, "large"):
        client = parties.client(endpoint, timeout=PATIENCE_S)
        calls = [client.request_lazy("large", "/take", body=bytes(n * MB)) for n in (1, 4, 1)]
        assert [call.get().status_code for call in calls] == [200, 413, 200]


def test_a_body_over_the_routers_limit_is_refused_and_the_next_call_is_answered(parties: Parties) -> None:
    """413 for a request, 500 for a reply that its handler could not send; the connection stays."""
    _, endpoint = parties.router(max_body_bytes=2 * MB)
    client = parties.client(endpoint, timeout=PATIENCE_S)
    with services(endpoint, "large"):
        assert client.request("large", "/take", body=bytes(MB)).body == MB
        assert client.request("large", "/take", body=bytes(2 * MB)).status_code == 413
        assert client.request("large", "/take", body=bytes(MB)).body == MB
        assert client.request("large", "/give", {"size": 2 * MB}).status_code == 500
        assert client.request("large", "/give", {"size": MB}).body == bytes(MB)
        assert status(client)["clients"] == 1


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize(
    ("path", "ask"), [("/take", {"body": bytes(LARGEST)}), ("/give", {"arguments": {"size": LARGEST}})]
)
def test_a_router_holds_each_body_in_flight_once(
    parties: Parties, path: str, ask: dict[str, Any], at_once: int
) -> None:
    """50 MB requests, and 50 MB replies: the router's peak is what it had before and one times what is in
    flight, and when all is answered it has given that back."""
    router, endpoint = parties.router(max_body_bytes=MAX_BODY_BYTES)
    client = parties.client(endpoint, timeout=PATIENCE_S)
    with services(endpoint, "large"):
        assert client.request("large", "/ping").status_code == 200
        forget_peak(router.pid)
        before = router.rss_mib
        calls = [client.request_lazy("large", path, **ask) for _ in range(at_once)]
        assert [call.get().status_code for call in calls] == [200] * at_once
        grown = peak_mib(router.pid) - before
        assert grown < at_once * LARGEST / 2**20 + SLACK_MIB
        wait_for(lambda: router.rss_mib < before + LARGEST / 2**20 + SLACK_MIB)


def test_who_stops_reading_his_large_replies_delays_nobody_and_costs_the_router_a_bounded_amount(
    parties: Parties, tmp_path: Path
) -> None:
    """A client with 200 calls is stopped (SIGSTOP) before their replies of 1 MB are made. Others' calls are
    all answered meanwhile, the router holds no more than 64 messages and the outbox for him, and on waking
    each of his calls has its reply or an honest failure."""
    n, gate = 200, tmp_path / "gate"
    router, endpoint = parties.router()
    client = parties.client(endpoint)
    with (
        services(endpoint, "large", "small"),
        Program.of(READER, endpoint, str(n), str(MB), str(gate), "0") as reader,
    ):
        assert call_until(lambda: in_flight(client) == n, client) > 0
        forget_peak(router.pid)
        before = router.rss_mib
        reader.send(SIGSTOP)
        gate.touch()
        assert call_until(lambda: in_flight(client) == 0, client) > 0
        grown = peak_mib(router.pid) - before
        reader.send(SIGCONT)
        assert reader.ends(PATIENCE_S) == 0, reader.stderr
        counts = json.loads(reader.stdout)
        assert counts.keys() <= {"whole", "502", "503"}
        assert sum(counts.values()) == n
        assert grown < PIPE_MESSAGES * BODIES_A_MESSAGE * MB / 2**20 + OUTBOX_MIB + SLACK_MIB


def test_who_reads_his_large_replies_slowly_gets_them_all_and_delays_nobody(
    parties: Parties, tmp_path: Path
) -> None:
    """A client that takes 20 ms for each of 50 replies of 1 MB, reading nothing meanwhile; another one's
    small calls are all answered, from the first reply to the last."""
    n, gate = 50, tmp_path / "gate"
    _, endpoint = parties.router()
    client = parties.client(endpoint)
    with (
        services(endpoint, "large", "small"),
        Program.of(READER, endpoint, str(n), str(MB), str(gate), "0.02") as reader,
    ):
        assert call_until(lambda: in_flight(client) == n, client) > 0
        gate.touch()
        assert call_until(lambda: reader.process.poll() is not None, client) > 0
        assert reader.process.returncode == 0, reader.stderr
        assert json.loads(reader.stdout) == {"whole": n}


def in_flight(client: Client) -> int:
    """Return how many calls the large service has."""
    gevent.sleep(0.01)
    return sum(int(instance["in_flight"]) for instance in instances(client, "large").values())
