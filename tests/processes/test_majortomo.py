"""Majordomo's own people at our router: majortomo 0.2.0 as it comes from PyPI, and RFC 7, RFC 8 and RFC 18
frame by frame over raw sockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq
from majortomo import Client as MajortomoClient
from majortomo.error import Timeout as MajortomoTimeout

from butler_mesh import Client
from tests.processes.parties import Parties, Party, instances, status
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

BODIES = [
    pytest.param([b"hello"], id="one-frame"),
    pytest.param([b"\x00\xff\x80\r\n", b"", b"\xbe\x01\x00", b"MDPC02"], id="binary-and-empty-frames"),
    pytest.param([bytes(range(256)) * 300, b"end"], id="over-64-KiB"),
    pytest.param([b"x" * 1_000_000], id="a-million-bytes"),
    pytest.param([b"%d" % n for n in range(500)], id="500-frames"),
    pytest.param([b'{"a": [1, null]}'], id="json-text"),
]
BRISK = {"heartbeat_interval": 0.5, "heartbeat_timeout": 2.0}
"""majortomo's own settings, for a worker whose test must not take half a minute."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A router with our service ``ours`` and majortomo's worker ``theirs``; its endpoint."""
    parties = Parties(tmp_path_factory.mktemp("mesh"))
    try:
        _, endpoint = parties.router()
        parties.service(endpoint, "ours")
        worker(parties, endpoint, "theirs")
        yield endpoint
    finally:
        parties.stop()


@pytest.fixture
def client(mesh: str) -> Iterator[Client]:
    with Client(mesh) as client:
        yield client


@pytest.fixture
def theirs(mesh: str) -> Iterator[MajortomoClient]:
    """majortomo's client, connected."""
    with their_client(mesh) as client:
        yield client


@contextmanager
def their_client(endpoint: str) -> Iterator[MajortomoClient]:
    context = zmq.Context()
    try:
        with MajortomoClient(endpoint, zmq_context=context) as client:
            yield client
    finally:
        context.destroy(0)


def worker(parties: Parties, endpoint: str, service: str, **options: Any) -> Party:
    """Start majortomo's Worker and wait until the router knows it."""
    client = parties.client(endpoint)
    before = len(status(client)["services"].get(service, {"instances": []})["instances"])
    party = parties.start("majortomo_worker", endpoint, service, {**BRISK, **options})
    wait_for(
        lambda: len(status(client)["services"].get(service, {"instances": []})["instances"]) > before, 20
    )
    return party


# --- four combinations ----------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["ours", "theirs"])
@pytest.mark.parametrize("body", BODIES)
def test_majortomos_client_gets_its_frames_back_untouched(
    theirs: MajortomoClient, service: str, body: list[bytes]
) -> None:
    """Their client, our service and their worker: each frame comes back as it was, as the one FINAL."""
    theirs.send(service, *body)
    assert list(theirs.recv_all(10)) == [body]


@pytest.mark.parametrize("service", ["ours", "theirs"])
@pytest.mark.parametrize("body", BODIES)
def test_our_client_gets_its_frames_back_untouched(client: Client, service: str, body: list[bytes]) -> None:
    """Our client, our service and their worker: a list of bytes comes back as the list it was."""
    response = client.request(service, "/", body=body)
    assert (response.status_code, response.body) == (200, body)


def test_our_client_reaches_majortomos_worker_with_JSON_too(client: Client) -> None:
    """A request without a bytes body is one frame of JSON to the worker: path, arguments and all."""
    response = client.request("theirs", "/any/path", {"a": 1}, method="get")
    assert response.status_code == 200
    assert response.body == [b'{"path":"/any/path","method":"get","arguments":{"a":1}}']


def test_majortomos_client_calls_a_function_by_a_JSON_object(theirs: MajortomoClient) -> None:
    """A frame that names a path is an envelope; the answer is one JSON frame with the status in it."""
    theirs.send("ours", b'{"path": "/echo", "arguments": {"text": "hi"}}')
    assert theirs.recv_all_as_list(10) == [b'{"status":200,"body":"hi"}']
    theirs.send("ours", b'{"path": "/nowhere"}')
    (answer,) = theirs.recv_all_as_list(10)
    assert answer.startswith(b'{"status":404,')


# --- partial replies ------------------------------------------------------------------------------


def test_majortomos_worker_streams_to_majortomos_client(theirs: MajortomoClient) -> None:
    """Their worker's PARTIALs and FINAL reach their client as such, in order, nothing added."""
    body = [b"%d" % n for n in range(50)]
    theirs.send("theirs", b"parts", *body)
    assert list(theirs.recv_all(10)) == [[frame] for frame in body]


def test_majortomos_worker_streams_to_our_client(client: Client) -> None:
    """Their worker's PARTIALs are the parts of our stream; its FINAL, having a body, is the last."""
    body = [b"%d" % n for n in range(50)]
    with client.request_stream("theirs", "/", body=[b"parts", *body]) as stream:
        assert list(stream) == [[frame] for frame in body]


def test_our_service_streams_to_majortomos_client(theirs: MajortomoClient) -> None:
    """Our iterator's parts are PARTIALs; the FINAL, which has no part, is the outcome as JSON."""
    body = [b"%d" % n for n in range(50)]
    theirs.send("ours", b"parts", *body)
    *parts, outcome = theirs.recv_all(10)
    assert parts == [[frame] for frame in body]
    assert outcome == [b'{"status":200}']


def test_a_stream_of_majortomos_worker_to_a_request_for_one_reply_is_500(client: Client) -> None:
    """Who asked for one reply and is sent parts is told 500, and the worker goes on to serve the next."""
    response = client.request("theirs", "/", body=[b"parts", b"1", b"2"])
    assert response.status_code == 500
    assert client.request("theirs", "/", body=[b"next"]).body == [b"next"]


def test_a_worker_that_answers_with_more_frames_than_are_read_costs_502_and_serves_again(
    parties: Parties,
) -> None:
    """Our client's 1 100 frames come back from an echo as more than a router reads: 502 at once. The worker
    is told to begin anew; majortomo's ends at that, and its successor serves the next request."""
    _, endpoint = parties.router()
    worker(parties, endpoint, "svc")
    client = parties.client(endpoint)
    assert client.request("svc", "/", body=[b"a"] * 1000).body == [b"a"] * 1000
    assert client.request("svc", "/", body=[b"a"] * 1100, timeout=30).status_code == 502
    worker(parties, endpoint, "svc")
    assert client.request("svc", "/", body=[b"a"]).body == [b"a"]


# --- loss -----------------------------------------------------------------------------------------


def test_a_killed_majortomo_worker_costs_502_and_a_new_one_takes_over(parties: Parties) -> None:
    """kill -9 of their worker with a call of ours in flight: 502 within a second, and the next call waits
    for the worker that is started anew. Their client's lost call is silence, for its wire has no error."""
    _, endpoint = parties.router()
    first = worker(parties, endpoint, "svc")
    client = parties.client(endpoint)
    call = client.request_lazy("svc", "/", body=[b"hold"])
    first.wait_for_line("got 1")
    first.kill()
    assert call.get(1).status_code == 502
    following = client.request_lazy("svc", "/", body=[b"pid"], timeout=20)
    second = worker(parties, endpoint, "svc")
    assert following.get(5).body == [str(second.pid).encode()]
    with their_client(endpoint) as theirs:
        theirs.send("svc", b"hold")
        second.wait_for_line("got 1", n=2)
        second.kill()
        with pytest.raises(MajortomoTimeout):
            theirs.recv_part(0.5)
    third = worker(parties, endpoint, "svc")
    with their_client(endpoint) as theirs:
        theirs.send("svc", b"pid")
        assert theirs.recv_all_as_list(5) == [str(third.pid).encode()]


def test_a_majortomo_worker_finds_a_restarted_router_by_itself(parties: Parties) -> None:
    """kill -9 of our router: its successor answers their worker's heartbeat with DISCONNECT, as RFC 18 asks,
    the worker says READY again, and callers are served; in between their requests wait."""
    router, endpoint = parties.router()
    theirs = worker(parties, endpoint, "svc")
    client = parties.client(endpoint)
    assert client.request("svc", "/", body=[b"pid"]).body == [str(theirs.pid).encode()]
    router.kill()
    parties.router(endpoint)
    response = client.request("svc", "/", body=[b"pid"], timeout=10)
    assert (response.status_code, response.body) == (200, [str(theirs.pid).encode()])
    with their_client(endpoint) as majortomo:
        majortomo.send("svc", b"x")
        assert majortomo.recv_all_as_list(5) == [b"x"]


def test_a_majortomo_worker_that_leaves_is_gone_at_once(parties: Parties) -> None:
    """Their worker's DISCONNECT takes it out: mmi.service says so, and requests wait for the next one."""
    _, endpoint = parties.router()
    client = parties.client(endpoint)
    with raw(endpoint, zmq.DEALER) as dealer:
        dealer.send_multipart([b"", b"MDPW02", b"\x01", b"svc"])
        wait_for(lambda: client.request("mmi.service", arguments={"service": "svc"}).status_code == 200)
        dealer.send_multipart([b"", b"MDPW02", b"\x06"])
        wait_for(lambda: client.request("mmi.service", arguments={"service": "svc"}).status_code == 404)
    assert instances(client, "svc") == {}


# --- the RFCs, byte by byte -----------------------------------------------------------------------


@contextmanager
def raw(endpoint: str, kind: int) -> Iterator[zmq.Socket[bytes]]:
    """A plain socket, as somebody would write who has only read the RFC."""
    context = zmq.Context()
    socket = context.socket(kind)
    socket.setsockopt(zmq.RCVTIMEO, 5000)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    try:
        yield socket
    finally:
        socket.close(0)
        context.term()


def command(socket: zmq.Socket[bytes], heartbeat: list[bytes]) -> list[bytes]:
    """Receive what is not a heartbeat."""
    while (frames := socket.recv_multipart()) == heartbeat:
        pass
    return frames


Register = Callable[[str], None]


@pytest.fixture
def known(client: Client) -> Register:
    """Waits until the router knows a service."""

    def wait(name: str) -> None:
        wait_for(lambda: client.request("mmi.service", arguments={"service": name}).status_code == 200)

    return wait


def test_RFC_7_a_REQ_client_and_a_DEALER_worker(mesh: str, known: Register) -> None:
    """MDP/0.1 frame by frame: READY, HEARTBEAT, REQUEST, REPLY, and DISCONNECT for what is out of order."""
    beat = [b"", b"MDPW01", b"\x04"]
    with raw(mesh, zmq.REQ) as req, raw(mesh, zmq.DEALER) as dealer:
        req.send_multipart([b"MDPC01", b"rfc7", b"one", b"", b"\x00\xff"])  # waits for a worker to come
        dealer.send_multipart([b"", b"MDPW01", b"\x01", b"rfc7"])
        known("rfc7")
        empty, header, code, address, empty2, *body = command(dealer, beat)
        assert (empty, header, code, empty2) == (b"", b"MDPW01", b"\x02", b"")
        assert body == [b"one", b"", b"\x00\xff"]
        assert dealer.recv_multipart() == beat
        dealer.send_multipart(beat)
        dealer.send_multipart([b"", b"MDPW01", b"\x03", address, b"", b"two", b""])
        assert req.recv_multipart() == [b"MDPC01", b"rfc7", b"two", b""]
        # The address was good for one reply.
        dealer.send_multipart([b"", b"MDPW01", b"\x03", address, b"", b"forged"])
        req.send_multipart([b"MDPC01", b"rfc7", b"again"])
        *_, address, _, body_ = command(dealer, beat)
        assert body_ == b"again"
        dealer.send_multipart([b"", b"MDPW01", b"\x03", address, b"", b"fine"])
        assert req.recv_multipart() == [b"MDPC01", b"rfc7", b"fine"]
        dealer.send_multipart([b"", b"MDPW01", b"\x01", b"rfc7"])
        assert command(dealer, beat) == [b"", b"MDPW01", b"\x05"]


def test_RFC_18_a_DEALER_client_and_a_DEALER_worker(mesh: str, known: Register) -> None:
    """MDP/0.2 frame by frame: no empty frame in front, PARTIAL 03 becomes 02, FINAL 04 becomes 03, and
    the service's name is put in."""
    beat = [b"MDPW02", b"\x05"]
    with raw(mesh, zmq.DEALER) as client, raw(mesh, zmq.DEALER) as dealer:
        dealer.send_multipart([b"MDPW02", b"\x01", b"rfc18"])
        known("rfc18")
        client.send_multipart([b"MDPC02", b"\x01", b"rfc18", b"one", b""])
        header, code, address, empty, *body = command(dealer, beat)
        assert (header, code, empty, body) == (b"MDPW02", b"\x02", b"", [b"one", b""])
        dealer.send_multipart([b"MDPW02", b"\x03", address, b"", b"part 1"])
        assert client.recv_multipart() == [b"MDPC02", b"\x02", b"rfc18", b"part 1"]
        dealer.send_multipart([b"MDPW02", b"\x03", address, b"", b"part 2", b"\xff"])
        assert client.recv_multipart() == [b"MDPC02", b"\x02", b"rfc18", b"part 2", b"\xff"]
        dealer.send_multipart([b"MDPW02", b"\x04", address, b"", b"end"])
        assert client.recv_multipart() == [b"MDPC02", b"\x03", b"rfc18", b"end"]
        # After FINAL nothing more reaches the client.
        dealer.send_multipart([b"MDPW02", b"\x04", address, b"", b"forged"])
        client.send_multipart([b"MDPC02", b"\x01", b"rfc18", b"two"])
        *_, address, _, _ = command(dealer, beat)
        dealer.send_multipart([b"MDPW02", b"\x04", address, b"", b"fine"])
        assert client.recv_multipart() == [b"MDPC02", b"\x03", b"rfc18", b"fine"]
        dealer.send_multipart([b"MDPW02", b"\x07"])
        assert command(dealer, beat) == [b"MDPW02", b"\x06"]
        # It has been sent away, so that even its heartbeat is out of order.
        dealer.send_multipart(beat)
        assert command(dealer, beat) == [b"MDPW02", b"\x06"]


def test_an_RFC_18_worker_may_be_busy_for_long_without_heartbeats(mesh: str, known: Register) -> None:
    """A worker that computes says nothing, and is not given up for it."""
    with raw(mesh, zmq.DEALER) as client, raw(mesh, zmq.DEALER) as dealer:
        dealer.send_multipart([b"MDPW02", b"\x01", b"busy"])
        known("busy")
        client.send_multipart([b"MDPC02", b"\x01", b"busy", b"x"])
        address = command(dealer, [b"MDPW02", b"\x05"])[2]
        time.sleep(4)
        dealer.send_multipart([b"MDPW02", b"\x04", address, b"", b"done"])
        assert client.recv_multipart() == [b"MDPC02", b"\x03", b"busy", b"done"]


def test_RFC_8_as_the_guides_client_asks_it(mesh: str, known: Register) -> None:
    """mmi.service is 200 for a service with a worker and 404 for one without, every other mmi. is 501, and
    a worker that wants such a name is sent away."""
    with raw(mesh, zmq.REQ) as req:
        for service, name, code in (
            (b"mmi.service", b"ours", b"200"),
            (b"mmi.service", b"theirs", b"200"),
            (b"mmi.service", b"nobody", b"404"),
            (b"mmi.other", b"x", b"501"),
        ):
            req.send_multipart([b"MDPC01", service, name])
            assert req.recv_multipart() == [b"MDPC01", service, code]
    with raw(mesh, zmq.DEALER) as dealer:
        dealer.send_multipart([b"MDPC02", b"\x01", b"mmi.service", b"ours"])
        assert dealer.recv_multipart() == [b"MDPC02", b"\x03", b"mmi.service", b"200"]
    with raw(mesh, zmq.DEALER) as dealer:
        dealer.send_multipart([b"", b"MDPC02", b"\x02", b"mmi.service", b"nobody"])
        assert dealer.recv_multipart() == [b"", b"MDPC02", b"\x04", b"404"]
    with raw(mesh, zmq.DEALER) as dealer:
        dealer.send_multipart([b"", b"MDPW01", b"\x01", b"mmi.mine"])
        assert dealer.recv_multipart() == [b"", b"MDPW01", b"\x05"]
