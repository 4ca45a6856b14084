"""One router, a good client and many who mean no good: what the good client sees, and what it costs.

The attackers (``attacks.py``) are processes with raw sockets. The hostile *instance* of the second half
speaks the wire well enough to be registered, and is played by the test itself.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
import zmq

from butler_mesh import Client
from butler_mesh.protocol import mesh
from tests.processes import attacks
from tests.processes.attacks import GOOD_SERVICE, hello, message, ready, record
from tests.processes.parties import Parties, Party, instances, status
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

ATTACK_S = 5
FLOODS = ["never_reads", "register_flood", "name_flood", "flood"]
ROUTER_MIB = 120
"""An idle router has 32 MiB; one that is attacked may hold some outboxes full, and not one a stranger."""

# What the router's counters must say if the attacks have come through: names and how many, at least.
TRACES = {
    "dropped.malformed": 100,
    "dropped.malformed_record": 10,
    "dropped.unexpected": 10,
    "dropped.unknown_dialect": 100,
    "dropped.unknown_token": 1000,
    "refused.no_hello": 100,
    "refused.not_found": 100,
    "refused.queue_full": 100,
    "refused.ready": 100,
    "refused.version": 10,
    "skipped.unknown_kind": 100,
}


def test_every_good_call_succeeds_while_strangers_do_what_they_can(parties: Parties) -> None:
    """Noise, lies, forgeries, floods and storms from two processes, for five seconds: each call of the
    good client is answered 200 with its own text, half of them in less than 250 ms though all share two
    cores; the router's memory is bounded, it has met no bug of its own, and then it answers mmi.status."""
    seed = random.randrange(1 << 30)
    quiet = [name for name in attacks.ATTACKS if name not in FLOODS]
    router, endpoint = parties.router()
    parties.service(endpoint, GOOD_SERVICE)
    good = parties.start("good_client", endpoint, GOOD_SERVICE, "8", str(ATTACK_S))
    good.wait_for_line("ready")
    gangs = [
        parties.start("attackers", endpoint, str(ATTACK_S - 0.5), str(seed), names)
        for names in (quiet, FLOODS)
    ]
    most_mib = 0.0
    until = time.monotonic() + ATTACK_S
    while time.monotonic() < until:
        most_mib = max(most_mib, router.rss_mib)
        gevent.sleep(0.02)
    went = good.wait_for_result(20)
    struck: dict[str, int] = {}
    for gang in gangs:
        struck |= gang.wait_for_result(20)
    assert went["failures"] == 0, f"seed {seed}: {went}"
    assert went["calls"] > 200, went
    assert went["p50_s"] < 0.25, went
    assert went["max_s"] < 3.0, went
    assert struck.keys() == attacks.ATTACKS.keys()
    assert min(struck.values()) >= 50, struck
    assert most_mib < ROUTER_MIB
    client = parties.client(endpoint)
    after = status(client)
    counters = after["counters"]
    assert counters.get("faults", 0) == 0, f"seed {seed}: {router.output[-2000:]}"
    assert "Traceback" not in router.output, f"seed {seed}"
    missing = {name: counters.get(name, 0) for name, n in TRACES.items() if counters.get(name, 0) < n}
    assert not missing, f"seed {seed}: {counters}"
    assert [i["state"] for i in after["services"][GOOD_SERVICE]["instances"]] == ["ready"]
    # The attackers' connections are gone, and with them whatever they were; but for a Majordomo client,
    # whose wire has nothing that could be sent to see whether it is there.
    wait_for(lambda: status(client)["clients"] <= 2, 5.0)
    assert client.request(GOOD_SERVICE, "/echo", {"text": "still here"}).body == "still here"


def test_a_client_that_never_reads_its_replies_is_cut_and_costs_what_an_outbox_holds(
    parties: Parties,
) -> None:
    """It asks for 30 KB a call and takes none: the router gives it up, and remains below 120 MiB."""
    router, endpoint = parties.router()
    parties.service(endpoint, GOOD_SERVICE)
    client = parties.client(endpoint)
    parties.start("attackers", endpoint, "5", "1", ["never_reads"]).wait_for_line("ready")
    most_mib = 0.0
    until = time.monotonic() + 5
    while time.monotonic() < until and "cut.slow_client" not in status(client)["counters"]:
        most_mib = max(most_mib, router.rss_mib)
        assert client.request(GOOD_SERVICE, "/echo", {"text": "x"}).body == "x"
    assert status(client)["counters"]["cut.slow_client"] == 1
    assert most_mib < ROUTER_MIB


def test_floods_that_end_abruptly_do_not_take_the_router_with_them(parties: Parties) -> None:
    """Clients that send more than a pipe holds, read nothing and are reset: the router lives on. (With
    ZeroMQ's own heartbeats, often enough, it would not: libzmq 4.3.5 aborts when one falls due just then.)"""
    router, endpoint = parties.router()
    parties.service(endpoint, GOOD_SERVICE)
    client = parties.client(endpoint)
    floods = [parties.start("attackers", endpoint, seconds, "1", ["flood"]) for seconds in ("1.0", "1.5")]
    for flood in floods:
        flood.wait(20)
    gevent.sleep(1.2)  # a heartbeat, and what is left of the flood
    assert client.request(GOOD_SERVICE, "/echo", {"text": "x"}, timeout=5).status_code == 200
    assert router.is_running
    assert status(client)["counters"].get("faults", 0) == 0


def test_an_instance_with_more_messages_than_a_pipe_holds_is_not_cut_off_while_it_computes(
    parties: Parties,
) -> None:
    """A handler spins for six seconds while 70 calls come and time out: it is blocked, not dead, and its
    own call is answered. (ZeroMQ's heartbeats would not be seen in a full pipe, and cut it off.)"""
    _, endpoint = parties.router()
    service = parties.service(endpoint)
    client = parties.client(endpoint)
    spinning = client.request_lazy("svc", "/spin", {"seconds": 6})
    service.wait_for_line("spinning")
    calls = []
    for _ in range(70):
        calls.append(client.request_lazy("svc", "/nap", {"seconds": 0}, timeout=0.5))
        gevent.sleep(0.01)
    assert {call.get(2).status_code for call in calls} == {504}
    wait_for(lambda: instances(client)[service.pid]["state"] == "blocked", 4)
    assert spinning.get(8).status_code == 200
    wait_for(lambda: instances(client)[service.pid]["in_flight"] == 0)
    assert service.output.count("registered as") == 1


# --- a hostile instance ---------------------------------------------------------------------------


class Evil:
    """An instance in the test's own hands; and a good client and a good service of the same router."""

    def __init__(self, endpoint: str, good: Party, client: Client, name: str) -> None:
        self.endpoint = endpoint
        self.good = good
        self.client = client
        self.name = name
        self._context: zmq.Context[Any] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self.dealer = self.register(ready(name, name, f"/{name}", credit=64))
        assert self.said(self.dealer, mesh.READY)

    def register(self, record_: bytes) -> zmq.Socket[bytes]:
        """Return a new connection that has said HELLO and this READY."""
        dealer = self._context.socket(zmq.DEALER)
        self._sockets.append(dealer)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(self.endpoint)
        dealer.send(message(hello("instance"), record_))
        return dealer

    def said(self, dealer: zmq.Socket[bytes], kind: int) -> list[mesh.Record]:
        """Return the records of this kind in the next message that has one."""

        def look() -> list[mesh.Record]:
            try:
                frame, *rest = dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return []
            return [r for r in mesh.parse(frame, rest)[1] if r.kind == kind]

        return wait_for(look)

    def asked(self) -> mesh.Record:
        """Return the next request."""
        (request,) = self.said(self.dealer, mesh.REQUEST)
        return request

    def reply(self, token: int, payload: bytes, kind: int = mesh.FINAL, flags: int = 0) -> None:
        self.dealer.send(message(record(kind, flags, token, 0, payload)))

    def counted(self, name: str) -> int:
        return int(status(self.client)["counters"].get(name, 0))

    def close(self) -> None:
        for dealer in self._sockets:
            dealer.close(0)
        self._context.term()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Party, Client]]:
    """A router, a good service and a good client, for all that an evil instance tries."""
    parties = Parties(tmp_path_factory.mktemp("evil"))
    try:
        _, endpoint = parties.router()
        yield endpoint, parties.service(endpoint, GOOD_SERVICE), parties.client(endpoint)
    finally:
        parties.stop()


@pytest.fixture
def evil(scene: tuple[str, Party, Client]) -> Iterator[Evil]:
    """An instance of a service of its own; the good ones must be well before and after."""
    evil = Evil(*scene, name=f"evil-{time.monotonic_ns()}")
    yield evil
    assert evil.client.request(GOOD_SERVICE, "/echo", {"text": "x"}).body == "x"
    assert evil.counted("faults") == 0
    evil.close()


UNREADABLE = {
    "no-json": (b"\xff\xfe\x00", 0),
    "not-an-object": (b"[1,2,3]", 0),
    "nested-10000-deep": (b"[" * 10_000, 0),
    "object-nested-10000-deep": (b'{"a":' * 10_000, 0),
    "cut-short": (b'{"body":"x', 0),
    "invalid-utf-8": (b'{"body":"\xff"}', 0),
    "raw-that-is-json": (b'{"body":1}', mesh.RAW),
    "raw-with-a-count-that-lies": (struct.pack("<I", 2) + b"{}" + struct.pack("<H", 9), mesh.RAW),
    "raw-with-a-length-of-4-GiB": (
        struct.pack("<I", 2) + b"{}" + struct.pack("<HI", 1, 0xFFFFFFFF) + b"x",
        mesh.RAW,
    ),
}


@pytest.mark.parametrize(("envelope", "flags"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_reply_that_cannot_be_read_is_502_for_its_caller(evil: Evil, envelope: bytes, flags: int) -> None:
    """Garbage where the reply's envelope should be: 502, with a message that says *unreadable*."""
    call = evil.client.request_lazy(evil.name, "/")
    asked = evil.asked()
    evil.reply(asked.id, mesh.pack_status(200) + envelope, flags=flags)
    response = call.get(2)
    assert response.status_code == 502
    assert "unreadable" in response.status_msg


def test_a_reply_for_somebody_elses_token_reaches_nobody(evil: Evil) -> None:
    """It answers for the tokens next to its own, which are calls in flight at the good service: they are
    answered by the good service alone, and the forgeries are counted."""
    before = evil.counted("dropped.unknown_token")
    held = [evil.client.request_lazy(GOOD_SERVICE, "/nap", {"seconds": 0.5}) for _ in range(10)]
    call = evil.client.request_lazy(evil.name, "/")
    asked = evil.asked()
    forged = mesh.pack_status(200) + b'{"body":"forged"}'
    for away in range(1, 30):
        for kind in (mesh.FINAL, mesh.PARTIAL, mesh.RETURN):
            evil.reply(asked.id - away, forged, kind)
            evil.reply(asked.id + away, forged, kind)
    evil.reply(asked.id, mesh.pack_status(200) + b'{"body":"own"}')
    assert call.get(2).body == "own"
    evil.reply(asked.id, forged)  # once more, when it is nobody's
    assert {c.get(2).body for c in held} == {evil.good.pid}
    wait_for(lambda: evil.counted("dropped.unknown_token") - before == 29 * 3 * 2 + 1)


def test_a_part_for_a_request_that_takes_one_reply_is_500(evil: Evil) -> None:
    """PARTIAL to a plain request: its caller is told 500 at once, and the FINAL that follows is void."""
    call = evil.client.request_lazy(evil.name, "/")
    asked = evil.asked()
    evil.reply(asked.id, mesh.pack_status(200) + b'{"body":1}', mesh.PARTIAL)
    assert call.get(2).status_code == 500
    assert evil.said(evil.dealer, mesh.CANCEL)[0].id == asked.id
    evil.reply(asked.id, mesh.pack_status(200) + b'{"body":"late"}')


def test_a_reply_too_short_for_its_status_is_dropped_and_its_caller_hears_504(evil: Evil) -> None:
    """A FINAL of one byte is no reply: counted, and the call goes on until its deadline."""
    call = evil.client.request_lazy(evil.name, "/", timeout=0.5)
    asked = evil.asked()
    before = evil.counted("dropped.malformed_record")
    evil.reply(asked.id, b"\xc8")
    assert call.get(2).status_code == 504
    assert evil.counted("dropped.malformed_record") == before + 1


def test_a_path_of_another_service_is_not_to_be_had(evil: Evil) -> None:
    """READY for a path that another service owns: GOODBYE 409, and requests go where they went before."""
    thief = evil.register(ready("thief", "thief", f"/{evil.name}", credit=64))
    (goodbye,) = evil.said(thief, mesh.GOODBYE)
    code, reason = mesh.split_reason(goodbye.payload)
    assert code == 409
    assert "belongs to another service" in reason
    call = evil.client.request_lazy(None, f"/{evil.name}/deeper")
    asked = evil.asked()
    evil.reply(asked.id, mesh.pack_status(200) + b'{"body":"owner"}')
    assert call.get(2).body == "owner"


@pytest.mark.parametrize(
    "name",
    [pytest.param("mmi.service", id="mmi"), pytest.param("", id="none"), pytest.param("/x", id="a-path")],
)
def test_an_instance_cannot_have_every_name(evil: Evil, name: str) -> None:
    """READY for mmi's names, for none, for a path as a name: GOODBYE 409, and it is not in mmi.status."""
    (goodbye,) = evil.said(evil.register(ready("namer", name)), mesh.GOODBYE)
    assert mesh.split_reason(goodbye.payload)[0] == 409
    assert name not in status(evil.client)["services"]


def test_an_instance_that_takes_another_ones_wid_does_not_take_its_calls(evil: Evil) -> None:
    """wids are in mmi.status, for all to read; a READY with the good instance's wid and another epoch must
    not end the good instance's calls."""
    held = [evil.client.request_lazy(GOOD_SERVICE, "/nap", {"seconds": 0.5}) for _ in range(4)]
    wait_for(lambda: instances(evil.client, GOOD_SERVICE)[evil.good.pid]["in_flight"] == 4)
    wid = instances(evil.client, GOOD_SERVICE)[evil.good.pid]["wid"]
    (goodbye,) = evil.said(evil.register(ready(wid, "thief")), mesh.GOODBYE)
    assert mesh.split_reason(goodbye.payload)[0] == 409
    assert {c.get(2).body for c in held} == {evil.good.pid}


def test_an_instance_that_never_answers_costs_its_own_callers_only(evil: Evil) -> None:
    """Its credit is spent and its callers hear 504 in time; everybody else is served as ever."""
    calls = [evil.client.request_lazy(evil.name, "/", timeout=0.5) for _ in range(200)]
    assert evil.client.request(GOOD_SERVICE, "/echo", {"text": "x"}, timeout=0.4).body == "x"
    assert {call.get(2).status_code for call in calls} == {504}
    (found,) = status(evil.client)["services"][evil.name]["instances"]
    assert found["in_flight"] == 64
