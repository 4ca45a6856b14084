"""What majortomo promises of its own broker, asked of our router by majortomo's own Client and Worker: order,
sharing, parts, expiry; and where our router is stricter than that broker, what its people then see."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import Any

import pytest
import zmq
from majortomo import Client as TheirClient
from majortomo import Worker as TheirWorker
from majortomo import protocol
from majortomo.error import Disconnected, StateError, Timeout

from butler_mesh import Client
from tests.processes.parties import Parties, Party, status
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

BRISK = {"heartbeat_interval": 0.5, "heartbeat_timeout": 2.0}
"""majortomo's own settings, for a worker whose test must not take half a minute."""
MUTE = {"heartbeat_interval": 60.0}
"""For a worker that is to say only what its test makes it say."""
SOON_S = 5.0
QUIET_S = 0.3
"""How long nothing must come; a reply takes a thousandth of it."""

_numbers = count(1)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a router that all tests share which do not end it."""
    parties = Parties(tmp_path_factory.mktemp("router"))
    try:
        yield parties.router()[1]
    finally:
        parties.stop()


@pytest.fixture
def name() -> str:
    """A service that no other test uses."""
    return f"service-{next(_numbers)}"


@pytest.fixture
def ours(endpoint: str) -> Iterator[Client]:
    """Our client, at the shared router."""
    with Client(endpoint) as client:
        yield client


class People:
    """majortomo's Clients and Workers in the process of the test. A Worker does what the test tells it, step
    by step, and beats only while it waits for a request."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._all: list[Any] = []

    def client(self, endpoint: str) -> TheirClient:
        """Return a Client, connected."""
        client = TheirClient(endpoint, zmq_context=self._context)
        client.connect()
        self._all.append(client)
        return client

    def worker(self, endpoint: str, name: str, **options: Any) -> TheirWorker:
        """Return a Worker, connected; the router need not have heard of it."""
        worker = TheirWorker(endpoint, name, zmq_context=self._context, **{**BRISK, **options})
        worker.connect()
        self._all.append(worker)
        return worker

    def close(self) -> None:
        """End them without a word."""
        for person in self._all:
            if person.is_connected():
                person._socket.close(0)
        self._context.destroy(0)


@pytest.fixture
def people() -> Iterator[People]:
    """Gone with the test."""
    people = People()
    yield people
    people.close()


@pytest.fixture
def theirs(endpoint: str, people: People) -> TheirClient:
    """majortomo's Client, connected to the shared router."""
    return people.client(endpoint)


Join = Callable[..., TheirWorker]


@pytest.fixture
def join(endpoint: str, ours: Client, people: People) -> Join:
    """Makes majortomo's Workers that the shared router knows."""

    def join(name: str, **options: Any) -> TheirWorker:
        before = len(pool(ours, name)["instances"])
        worker = people.worker(endpoint, name, **options)
        wait_for(lambda: len(pool(ours, name)["instances"]) == before + 1)
        return worker

    return join


def pool(client: Client, name: str) -> dict[str, Any]:
    """Return what mmi.status says of a service: ``queued`` and ``instances``."""
    services: dict[str, dict[str, Any]] = status(client)["services"]
    return services.get(name, {"queued": 0, "instances": []})


def in_flight(client: Client, name: str) -> list[int]:
    """Return how many requests each worker of a service has, the idle ones first."""
    return sorted(instance["in_flight"] for instance in pool(client, name)["instances"])


def counted(client: Client, counter: str) -> int:
    """Return one of the router's counters."""
    counters: dict[str, int] = status(client)["counters"]
    return counters.get(counter, 0)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block when it takes longer: majortomo's Worker waits for ever."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not within {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def taken(worker: TheirWorker) -> tuple[bytes, list[bytes]]:
    """Return the next request of a worker: its address and its frames."""
    with within(SOON_S):
        return worker.wait_for_request()


def is_sent_away(worker: TheirWorker) -> bool:
    """Whether a worker that waits for a request is told DISCONNECT instead."""
    with within(SOON_S):
        try:
            worker.wait_for_request()
        except Disconnected:
            return True
    return False


@contextmanager
def raw(endpoint: str, kind: int) -> Iterator[zmq.Socket[bytes]]:
    """A plain socket, for those who are not majortomo's."""
    context = zmq.Context()
    socket = context.socket(kind)
    socket.setsockopt(zmq.RCVTIMEO, int(SOON_S * 1000))
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    try:
        yield socket
    finally:
        socket.close(0)
        context.term()


def hears_nothing(socket: zmq.Socket[bytes]) -> bool:
    """Whether a plain socket is left alone for a while."""
    return not socket.poll(int(QUIET_S * 1000))


# --- the whole system: their Client, our router, their Workers as processes -------------------------


def started(parties: Parties, endpoint: str, name: str, n: int = 1) -> list[Party]:
    """Start majortomo's Workers as processes; return them when the router knows them all."""
    client = parties.client(endpoint)
    before = len(pool(client, name)["instances"])
    workers = [parties.start("majortomo_worker", endpoint, name, BRISK) for _ in range(n)]
    wait_for(lambda: len(pool(client, name)["instances"]) == before + n, 20)
    return workers


def served(worker: Party) -> int:
    """Return how many requests a worker's process has taken."""
    return sum(line.startswith("got ") for line in worker.output.splitlines())


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([[b"%d" % n] for n in range(1_000)], id="a-thousand"),
        pytest.param([[b"%d" % (n * m) for m in range(5)] for n in range(50)], id="of-five-frames"),
    ],
)
def test_one_message_after_the_other_comes_back_as_it_was(
    parties: Parties, endpoint: str, theirs: TheirClient, name: str, messages: list[list[bytes]]
) -> None:
    """One client, one worker: each message's own frames are its reply, a thousand times in a row."""
    started(parties, endpoint, name)
    for message in messages:
        theirs.send(name.encode(), *message)
        assert theirs.recv_all_as_list(SOON_S) == message


def test_three_workers_share_the_messages_of_one_client(
    parties: Parties, endpoint: str, theirs: TheirClient, name: str
) -> None:
    """300 messages come back, each the right one; they are taken in turn, a hundred by each worker."""
    workers = started(parties, endpoint, name, 3)
    for n in range(300):
        theirs.send(name, b"%d" % n)
        assert theirs.recv_all_as_list(SOON_S) == [b"%d" % n]
    assert [served(worker) for worker in workers] == [100, 100, 100]


def test_two_clients_of_two_workers_get_each_their_own(
    parties: Parties, endpoint: str, people: People, name: str
) -> None:
    """Both ask before either reads: the replies do not get mixed up, and both workers do their share."""
    workers = started(parties, endpoint, name, 2)
    first, second = people.client(endpoint), people.client(endpoint)
    for n in range(30):
        first.send(name, b"first %d" % n)
        second.send(name, b"second %d" % n)
        assert first.recv_all_as_list(SOON_S) == [b"first %d" % n]
        assert second.recv_all_as_list(SOON_S) == [b"second %d" % n]
    assert sum(map(served, workers)) == 60
    assert all(map(served, workers))


PARTS = [[b"%d" % (n * m) for m in range(5)] for n in range(5)]


def by_part(client: TheirClient) -> list[list[bytes] | None]:
    return [client.recv_part(SOON_S) for _ in PARTS]


def by_iteration(client: TheirClient) -> list[list[bytes] | None]:
    return list(client.recv_all(SOON_S))


@pytest.mark.parametrize("receive", [by_part, by_iteration])
def test_parts_of_several_frames_stay_apart(
    theirs: TheirClient, join: Join, name: str, receive: Callable[[TheirClient], list[list[bytes] | None]]
) -> None:
    """A worker replies from an iterable, four parts and a last one, five frames each: its client receives
    five lists of five, whether it asks for them one by one or iterates, and none after the FINAL."""
    worker = join(name)
    theirs.send(name, b"in parts, please")
    address, _ = taken(worker)
    worker.send_reply_from_iterable(address, iter(PARTS[:-1]), final=PARTS[-1])
    assert receive(theirs) == PARTS
    assert theirs.recv_part(QUIET_S) is None


def test_a_client_may_close_and_connect_again(theirs: TheirClient, join: Join, name: str) -> None:
    """Connected, closed, connected anew, and once more as a context: it is served each time."""
    worker = join(name)

    def is_served() -> bool:
        theirs.send(name, b"hello")
        worker.send_reply_final(taken(worker)[0], [b"and goodbye"])
        return theirs.recv_all_as_list(SOON_S) == [b"and goodbye"]

    assert theirs.is_connected()
    assert is_served()
    theirs.close()
    assert not theirs.is_connected()
    theirs.connect()
    assert is_served()
    theirs.close()
    with theirs:
        assert is_served()
    assert not theirs.is_connected()


def test_a_client_that_has_given_up_is_not_sent_what_it_no_longer_waits_for(
    theirs: TheirClient, join: Join, name: str
) -> None:
    """It times out, connects anew and asks something else: the late reply to its first request reaches
    nobody, the second one's reaches it."""
    worker = join(name)
    theirs.send(name, b"first")
    address, _ = taken(worker)
    with pytest.raises(Timeout):
        theirs.recv_part(QUIET_S)
    theirs.connect(reconnect=True)
    theirs.send(name, b"second")
    worker.send_reply_final(address, [b"to the first"])
    address, frames = taken(worker)
    assert frames == [b"second"]
    worker.send_reply_final(address, [b"to the second"])
    assert theirs.recv_all_as_list(SOON_S) == [b"to the second"]


# --- workers and requests, counted ----------------------------------------------------------------


def test_workers_are_counted_as_they_come_and_go(
    theirs: TheirClient, ours: Client, join: Join, name: str
) -> None:
    """None, one, two, one, none: mmi.status counts them, and mmi.service, which majortomo's broker would
    leave waiting for ever, tells their client 404, 200 and 404."""

    def mmi() -> list[bytes]:
        theirs.send("mmi.service", name.encode())
        return theirs.recv_all_as_list(SOON_S)

    assert (mmi(), pool(ours, name)["instances"]) == ([b"404"], [])
    first, second = join(name), join(name)
    assert mmi() == [b"200"]
    assert [worker["protocol"] for worker in pool(ours, name)["instances"]] == ["majortomo/0.2"] * 2
    first.close()
    wait_for(lambda: len(pool(ours, name)["instances"]) == 1)
    assert mmi() == [b"200"]
    second.close()
    wait_for(lambda: pool(ours, name)["instances"] == [])
    assert mmi() == [b"404"]


def test_requests_wait_while_no_worker_is_free(
    endpoint: str, people: People, ours: Client, join: Join, name: str
) -> None:
    """Two wait before any worker is there; the worker that comes is given one and the other still waits; when
    the first is answered it is given the second, and then it has none."""
    first, second = people.client(endpoint), people.client(endpoint)
    first.send(name, b"1", b"frame 2")
    wait_for(lambda: pool(ours, name)["queued"] == 1)
    second.send(name, b"2", b"frame 2")
    wait_for(lambda: pool(ours, name)["queued"] == 2)
    worker = join(name)
    assert (pool(ours, name)["queued"], in_flight(ours, name)) == (1, [1])
    address, frames = taken(worker)
    assert frames == [b"1", b"frame 2"]
    worker.send_reply_final(address, frames)
    assert first.recv_all_as_list(SOON_S) == frames
    wait_for(lambda: (pool(ours, name)["queued"], in_flight(ours, name)) == (0, [1]))
    address, frames = taken(worker)
    assert frames == [b"2", b"frame 2"]
    worker.send_reply_final(address, frames)
    assert second.recv_all_as_list(SOON_S) == frames
    wait_for(lambda: in_flight(ours, name) == [0])


def test_a_request_goes_to_one_of_several_free_workers(
    theirs: TheirClient, ours: Client, join: Join, name: str
) -> None:
    """Two are free and one request comes: one is busy, the other is not, and nothing waits."""
    workers = [join(name), join(name)]
    theirs.send(name, b"only one")
    wait_for(lambda: in_flight(ours, name) == [0, 1])
    assert pool(ours, name)["queued"] == 0
    # Who has waited longest is whose turn it is.
    worker = workers[0]
    address, _ = taken(worker)
    worker.send_reply_final(address, [b"done"])
    assert theirs.recv_all_as_list(SOON_S) == [b"done"]
    wait_for(lambda: in_flight(ours, name) == [0, 0])


def test_a_worker_that_leaves_while_it_is_busy_cannot_answer_any_more(
    theirs: TheirClient, ours: Client, join: Join, name: str
) -> None:
    """It says DISCONNECT with a request in its hands: our client is told 502, their client, whose wire has no
    error, nothing; a reply that comes all the same is answered with DISCONNECT and passed on to nobody."""
    worker = join(name, **MUTE)
    call = ours.request_lazy(name, "/", body=[b"ours"])
    wait_for(lambda: in_flight(ours, name) == [1])
    address, frames = taken(worker)
    assert frames == [b"ours"]
    worker._send_disconnect()
    assert call.get(SOON_S).status_code == 502
    worker.send_reply_final(address, [b"too late"])
    assert is_sent_away(worker)
    worker.connect()
    theirs.send(name, b"theirs")
    address, frames = taken(worker)
    assert frames == [b"theirs"]
    worker._send_disconnect()
    worker.send_reply_final(address, [b"too late"])
    assert is_sent_away(worker)
    with pytest.raises(Timeout):
        theirs.recv_part(QUIET_S)


# --- expiry -----------------------------------------------------------------------------------------


def wids(client: Client, name: str) -> list[str]:
    """Return the registrations of a service's workers."""
    return [instance["wid"] for instance in pool(client, name)["instances"]]


def test_only_an_idle_worker_that_is_silent_expires(parties: Parties, people: People) -> None:
    """Two services with a worker each that beats and one that does not: after the router's patience those two
    are gone, and when they beat again they are told to register anew. Those that beat have kept their
    registration, and heard the router often enough not to look for another. A worker that is silent because
    it works is not given up for it."""
    patience_s = 3.0
    _, endpoint = parties.router(heartbeat_timeout_s=patience_s)
    ours, theirs = parties.client(endpoint), people.client(endpoint)
    names = ["one", "two"]
    beating: dict[str, list[str]] = {}
    for name in names:
        started(parties, endpoint, name)
        beating[name] = wids(ours, name)
    silent = {name: people.worker(endpoint, name) for name in names}
    busy = people.worker(endpoint, "busy")
    theirs.send("busy", b"think it over")
    address, _ = taken(busy)
    began = time.monotonic()
    wait_for(lambda: [len(wids(ours, name)) for name in names] == [2, 2])
    wait_for(lambda: [len(wids(ours, name)) for name in names] == [1, 1], 20)
    assert time.monotonic() - began > patience_s - 1.0
    assert {name: wids(ours, name) for name in names} == beating
    # A while later still.
    wait_for(lambda: time.monotonic() - began > patience_s + 1.0)
    assert in_flight(ours, "busy") == [1]
    busy.send_reply_final(address, [b"done"])
    assert theirs.recv_all_as_list(SOON_S) == [b"done"]
    assert {name: wids(ours, name) for name in names} == beating
    for name, worker in silent.items():
        assert is_sent_away(worker)
        worker.connect()
        wait_for(lambda name=name: len(wids(ours, name)) == 2)


def test_a_busy_worker_expires_only_when_it_does_not_beat_either(parties: Parties, people: People) -> None:
    """majortomo's broker gives a busy worker up after ``busy_worker_timeout`` although it be there and beat,
    and never tells the client. With ours the time is one of silence: the worker that beats is waited for, the
    other is lost, and our client is told 502."""
    _, endpoint = parties.router(busy_timeout_s=1.5)
    ours, theirs = parties.client(endpoint), people.client(endpoint)
    beating, silent = people.worker(endpoint, "beating"), people.worker(endpoint, "silent", **MUTE)
    theirs.send("beating", b"take your time")
    call = ours.request_lazy("silent", "/", body=[b"take your time"])
    wait_for(lambda: in_flight(ours, "beating") == in_flight(ours, "silent") == [1])
    address, _ = taken(beating)
    late, _ = taken(silent)
    began = time.monotonic()

    def is_time_over() -> bool:
        beating._check_send_heartbeat()
        return time.monotonic() - began > 3.0

    wait_for(is_time_over)
    assert call.get(SOON_S).status_code == 502
    assert (in_flight(ours, "beating"), in_flight(ours, "silent")) == ([1], [])
    beating.send_reply_final(address, [b"done"])
    assert theirs.recv_all_as_list(SOON_S) == [b"done"]
    silent.send_reply_final(late, [b"too late"])
    assert is_sent_away(silent)


# --- misbehaviour -----------------------------------------------------------------------------------


def test_a_worker_that_says_READY_twice_is_sent_away_and_may_come_back(
    theirs: TheirClient, ours: Client, join: Join, name: str
) -> None:
    """RFC 18 asks for DISCONNECT, and that is what it hears from us; majortomo's broker fails to decode the
    worker's id instead, and keeps it. Over a new socket its READY is as good as anybody's."""
    worker = join(name, **MUTE)
    worker._send_ready()
    assert is_sent_away(worker)
    wait_for(lambda: pool(ours, name)["instances"] == [])
    worker.connect()
    theirs.send(name, b"again")
    address, _ = taken(worker)
    worker.send_reply_final(address, [b"here"])
    assert theirs.recv_all_as_list(SOON_S) == [b"here"]


def test_the_second_answer_to_a_request_reaches_nobody(
    theirs: TheirClient, ours: Client, join: Join, name: str
) -> None:
    """A worker that sends FINAL twice, and a PARTIAL after it: its client has one reply, and what it reads
    next is the reply to its next request. The worker stays."""
    worker = join(name)
    before = counted(ours, "dropped.unknown_token")
    theirs.send(name, b"one")
    address, _ = taken(worker)
    worker.send_reply_final(address, [b"to one"])
    worker.send_reply_final(address, [b"to one, again"])
    worker.send_reply_partial(address, [b"and again"])
    assert theirs.recv_all_as_list(SOON_S) == [b"to one"]
    theirs.send(name, b"two")
    address, _ = taken(worker)
    worker.send_reply_final(address, [b"to two"])
    assert theirs.recv_all_as_list(SOON_S) == [b"to two"]
    assert counted(ours, "dropped.unknown_token") == before + 2


def test_an_answer_from_somebody_who_never_registered_reaches_nobody(
    endpoint: str, theirs: TheirClient, join: Join, name: str
) -> None:
    """A stranger who knows the very address of a request sends PARTIAL and FINAL for it. majortomo's broker
    would pass both on; ours tells the stranger DISCONNECT, and the client reads the worker's reply."""
    worker = join(name)
    theirs.send(name, b"true?")
    address, _ = taken(worker)
    with raw(endpoint, zmq.DEALER) as stranger:
        for command in (protocol.PARTIAL, protocol.FINAL):
            stranger.send_multipart([b"", b"MDPW02", command, address, b"", b"forged"])
            assert stranger.recv_multipart() == [b"", b"MDPW02", protocol.DISCONNECT]
    with pytest.raises(Timeout):
        theirs.recv_part(QUIET_S)
    worker.send_reply_final(address, [b"true"])
    assert theirs.recv_all_as_list(SOON_S) == [b"true"]


@pytest.mark.parametrize("header", [b"MDPW09", b"MDPC09"])
def test_a_header_of_another_version_is_not_answered(
    endpoint: str, people: People, ours: Client, name: str, header: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their Worker and Client with a version that is not ours: counted, not answered, not registered; and the
    router goes on."""
    monkeypatch.setattr(protocol, "WORKER_HEADER" if header == b"MDPW09" else "CLIENT_HEADER", header)
    before = counted(ours, "dropped.unknown_dialect")
    person = people.client(endpoint)
    if header == b"MDPW09":
        person = people.worker(endpoint, name)
    else:
        person.send(name, b"hello")
    wait_for(lambda: counted(ours, "dropped.unknown_dialect") == before + 1)
    assert hears_nothing(person._socket)
    assert pool(ours, name) == {"queued": 0, "instances": []}


def test_a_client_asks_again_only_when_it_has_read_the_reply(
    theirs: TheirClient, join: Join, name: str
) -> None:
    """Their Client refuses a second request itself, with StateError, and nothing of it is sent; once the
    reply is read it may ask again."""
    worker = join(name)
    theirs.send(name, b"one")
    with pytest.raises(StateError):
        theirs.send(name, b"two")
    address, frames = taken(worker)
    assert frames == [b"one"]
    with pytest.raises(StateError):
        theirs.send(name, b"three")
    worker.send_reply_final(address, [b"to one"])
    assert theirs.recv_all_as_list(SOON_S) == [b"to one"]
    theirs.send(name, b"four")
    address, frames = taken(worker)
    assert frames == [b"four"]
    worker.send_reply_final(address, [b"to four"])
    assert theirs.recv_all_as_list(SOON_S) == [b"to four"]


def test_a_client_that_asks_again_all_the_same_gets_all_its_replies(
    endpoint: str, join: Join, name: str
) -> None:
    """Somebody who speaks majortomo's wire without its Client sends three requests at once: one worker
    answers them one by one, so the replies come in order."""
    worker = join(name)
    with raw(endpoint, zmq.DEALER) as eager:
        for n in range(3):
            eager.send_multipart([b"", b"MDPC02", protocol.REQUEST, name.encode(), b"%d" % n])
        for n in range(3):
            address, frames = taken(worker)
            assert frames == [b"%d" % n]
            worker.send_reply_final(address, [b"to %d" % n])
            assert eager.recv_multipart() == [b"", b"MDPC02", protocol.FINAL, b"to %d" % n]


# --- other dialects ---------------------------------------------------------------------------------


def test_an_MDP_0_1_client_over_REQ_is_served_by_majortomos_worker(
    endpoint: str, join: Join, name: str
) -> None:
    """RFC 7's frames in, majortomo's out, and back: the service's name returns to who expects it."""
    worker = join(name)
    with raw(endpoint, zmq.REQ) as req:
        for body in ([b"one"], [b"two", b"", b"\x00\xff"]):
            req.send_multipart([b"MDPC01", name.encode(), *body])
            address, frames = taken(worker)
            assert frames == body
            worker.send_reply_final(address, [b"reply", *body])
            assert req.recv_multipart() == [b"MDPC01", name.encode(), b"reply", *body]


def test_an_MDP_0_1_client_over_DEALER_is_served_by_majortomos_workers(
    endpoint: str, join: Join, name: str
) -> None:
    """It makes the empty frame itself and may ask twice at once: two workers have a request each, and each
    reply comes when it is ready."""
    workers = [join(name), join(name)]
    with raw(endpoint, zmq.DEALER) as dealer:
        for n in range(2):
            dealer.send_multipart([b"", b"MDPC01", name.encode(), b"%d" % n])
        addresses = {}
        for worker in workers:
            address, (body,) = taken(worker)
            addresses[body] = (worker, address)
        for body in (b"1", b"0"):
            worker, address = addresses[body]
            worker.send_reply_final(address, [b"to " + body])
            assert dealer.recv_multipart() == [b"", b"MDPC01", name.encode(), b"to " + body]


def test_majortomos_client_is_served_by_an_MDP_0_1_worker(
    endpoint: str, theirs: TheirClient, ours: Client, name: str
) -> None:
    """An RFC 7 worker's one REPLY is the FINAL that their Client waits for."""
    beat = [b"", b"MDPW01", b"\x04"]
    with raw(endpoint, zmq.DEALER) as dealer:
        dealer.send_multipart([b"", b"MDPW01", b"\x01", name.encode()])
        wait_for(lambda: pool(ours, name)["instances"])
        theirs.send(name, b"one", b"")
        while (request := dealer.recv_multipart()) == beat:
            pass
        assert request == [b"", b"MDPW01", b"\x02", request[3], b"", b"one", b""]
        dealer.send_multipart([b"", b"MDPW01", b"\x03", request[3], b"", b"two", b"\xff"])
        assert list(theirs.recv_all(SOON_S)) == [[b"two", b"\xff"]]


def test_parts_of_majortomos_worker_reach_an_RFC_18_client(endpoint: str, join: Join, name: str) -> None:
    """PARTIAL, PARTIAL, FINAL: 03, 03, 04 from the worker; 02, 02, 03 and the service's name for the client,
    and nothing after them."""
    worker = join(name)
    with raw(endpoint, zmq.DEALER) as dealer:
        dealer.send_multipart([b"MDPC02", b"\x01", name.encode(), b"in parts"])
        address, frames = taken(worker)
        assert frames == [b"in parts"]
        worker.send_reply_partial(address, [b"1", b"a"])
        assert dealer.recv_multipart() == [b"MDPC02", b"\x02", name.encode(), b"1", b"a"]
        worker.send_reply_from_iterable(address, [[b"2"]], final=[b"3", b""])
        assert dealer.recv_multipart() == [b"MDPC02", b"\x02", name.encode(), b"2"]
        assert dealer.recv_multipart() == [b"MDPC02", b"\x03", name.encode(), b"3", b""]
        assert hears_nothing(dealer)


def test_parts_of_an_RFC_18_worker_reach_majortomos_client(
    endpoint: str, theirs: TheirClient, ours: Client, name: str
) -> None:
    """PARTIAL, PARTIAL, FINAL without the empty frame in front: their Client receives the two parts as they
    come, and the last."""
    with raw(endpoint, zmq.DEALER) as dealer:
        dealer.send_multipart([b"MDPW02", b"\x01", name.encode()])
        wait_for(lambda: pool(ours, name)["instances"])
        theirs.send(name, b"in parts")
        while (request := dealer.recv_multipart()) == [b"MDPW02", b"\x05"]:
            pass
        assert request == [b"MDPW02", b"\x02", request[2], b"", b"in parts"]
        dealer.send_multipart([b"MDPW02", b"\x03", request[2], b"", b"1", b"a"])
        assert theirs.recv_part(SOON_S) == [b"1", b"a"]
        dealer.send_multipart([b"MDPW02", b"\x03", request[2], b"", b"2"])
        dealer.send_multipart([b"MDPW02", b"\x04", request[2], b"", b"3", b""])
        assert list(theirs.recv_all(SOON_S)) == [[b"2"], [b"3", b""]]


# --- loss -------------------------------------------------------------------------------------------


def pid_of_worker(client: TheirClient, name: str) -> int:
    """Ask who answers; 0 when nobody does in a second. The client then begins anew, as any does that must
    not wait for ever."""
    try:
        client.send(name, b"pid")
        return int(client.recv_all_as_list(1.0)[0])
    except Timeout:
        client.connect(reconnect=True)
        return 0


def test_router_and_workers_may_be_killed_in_any_order(parties: Parties, people: People, name: str) -> None:
    """kill -9 of the worker, of the router, of both, with the worker started first: nobody else is told
    anything, and each time their client, which tries again after a second, is soon answered by the worker
    that lives."""
    router, endpoint = parties.router()
    worker = parties.start("majortomo_worker", endpoint, name, BRISK)
    client = people.client(endpoint)
    wait_for(lambda: pid_of_worker(client, name) == worker.pid, 20)
    for is_router_lost, is_worker_lost in ((False, True), (True, False), (True, True)) * 2:
        if is_router_lost:
            router.kill()
        if is_worker_lost:
            worker.kill()
            worker = parties.start("majortomo_worker", endpoint, name, BRISK)
            worker.wait_for_line("ready")
        if is_router_lost:
            router, _ = parties.router(endpoint)
        wait_for(lambda pid=worker.pid: pid_of_worker(client, name) == pid, 20)


def test_a_worker_finds_a_router_that_was_away_for_longer_than_its_patience(
    parties: Parties, people: People, name: str
) -> None:
    """No router for twice the worker's ``heartbeat_timeout``: it has begun anew more than once by then, and
    is one worker, not several, soon after there is a router again."""
    router, endpoint = parties.router()
    (worker,) = started(parties, endpoint, name)
    router.kill()
    until = time.monotonic() + 2 * BRISK["heartbeat_timeout"]
    wait_for(lambda: time.monotonic() > until, 10)
    parties.router(endpoint)
    theirs = people.client(endpoint)
    wait_for(lambda: pid_of_worker(theirs, name) == worker.pid, 20)
    ours = parties.client(endpoint)
    wait_for(lambda: len(pool(ours, name)["instances"]) == 1, 20)
    assert ours.request(name, "/", body=[b"pid"]).body == [b"%d" % worker.pid]


def test_a_reply_of_before_the_routers_restart_is_answered_with_DISCONNECT(
    parties: Parties, people: People, name: str
) -> None:
    """The router is killed while their worker works: our client is told 502 at once. The worker sends its
    reply to the successor, which passes it on to nobody, and serves again over a new socket."""
    router, endpoint = parties.router()
    ours = parties.client(endpoint)
    worker = people.worker(endpoint, name, **MUTE)
    call = ours.request_lazy(name, "/", body=[b"one"])
    wait_for(lambda: in_flight(ours, name) == [1])
    address, _ = taken(worker)
    router.kill()
    assert call.get(SOON_S).status_code == 502
    parties.router(endpoint)
    following = ours.request_lazy(name, "/", body=[b"two"], timeout=20)
    wait_for(lambda: pool(ours, name)["queued"] == 1)
    worker.send_reply_final(address, [b"to one"])
    assert is_sent_away(worker)
    worker.connect()
    address, frames = taken(worker)
    assert frames == [b"two"]
    worker.send_reply_final(address, [b"to two"])
    assert following.get(SOON_S).body == [b"to two"]


def test_workers_are_sent_away_when_the_router_stops(parties: Parties, people: People, name: str) -> None:
    """SIGTERM of the router: their worker hears DISCONNECT, long before it would miss a heartbeat."""
    router, endpoint = parties.router()
    ours = parties.client(endpoint)
    worker = people.worker(endpoint, name, heartbeat_timeout=60.0)
    wait_for(lambda: pool(ours, name)["instances"])
    router.signal(signal.SIGTERM)
    assert is_sent_away(worker)
    assert router.wait(10) == 0
