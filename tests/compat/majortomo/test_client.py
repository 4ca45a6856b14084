"""The face's client: what its caller sees of replies, of waiting, and of whatever goes wrong.

In the test's process; with majortomo's own worker the router is a process, and so it is where the test's
process stands still.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent
import majortomo as original
import pytest
from gevent.event import Event

from butler_mesh import Router
from butler_mesh.compat import majortomo
from butler_mesh.compat.majortomo import Client, Worker, WorkerRequestsIterator
from butler_mesh.compat.majortomo.error import Disconnected, ProtocolError, StateError, Timeout
from butler_mesh.errors import Closed, RequestFailed, Unavailable
from tests.compat.majortomo.bodies import bodies
from tests.compat.majortomo.conftest import Serve, instances, taken
from tests.meshes import Mesh
from tests.processes.parties import Parties, free_port
from tests.programs import Program
from tests.waiting import wait_for

NOBODY = "tcp://127.0.0.1:9"
"""Discard: nobody listens there."""
SOON_S = 5.0


def three_parts(requests: WorkerRequestsIterator, frames: list[bytes]) -> None:
    requests.send_reply_partial([b"1"])
    requests.send_reply_partial([b"2", b""])
    requests.send_reply_final([b"3"])


# --- requests and replies -------------------------------------------------------------------------


@bodies
def test_frames_come_back_untouched(client: Client, serve: Serve, body: list[bytes]) -> None:
    """The caller reads each frame as the worker was given it, whatever it holds."""
    serve()
    client.send(b"svc", *body)
    assert client.recv_all_as_list(SOON_S) == body


@pytest.mark.parametrize("name", ["svc", b"svc"])
def test_a_service_is_named_by_text_or_bytes(client: Client, serve: Serve, name: str | bytes) -> None:
    """The caller gets its reply by either."""
    serve()
    client.send(name, b"x")
    assert client.recv_part(SOON_S) == [b"x"]


def test_recv_part_gives_the_parts_in_order_and_then_None(client: Client, serve: Serve) -> None:
    """And None again, however often the caller asks."""
    serve(three_parts)
    client.send("svc", b"x")
    assert [client.recv_part(SOON_S) for _ in range(4)] == [[b"1"], [b"2", b""], [b"3"], None]
    assert client.recv_part(SOON_S) is None


def test_recv_all_gives_each_part_when_it_has_come(client: Client, serve: Serve) -> None:
    """The first is in the caller's hands while the worker still works on the second."""
    go = Event()

    def answer(requests: WorkerRequestsIterator, frames: list[bytes]) -> None:
        requests.send_reply_partial([b"1"])
        assert go.wait(SOON_S)
        requests.send_reply_final([b"2"])

    serve(answer)
    client.send("svc", b"x")
    parts = client.recv_all(SOON_S)
    assert next(parts) == [b"1"]
    go.set()
    assert list(parts) == [[b"2"]]


def test_recv_all_as_list_is_flat(client: Client, serve: Serve) -> None:
    """The caller cannot tell one part from the next, and need not."""
    serve(three_parts)
    client.send("svc", b"x")
    assert client.recv_all_as_list(SOON_S) == [b"1", b"2", b"", b"3"]


def test_a_reply_may_have_more_parts_than_fit_into_a_window(client: Client, serve: Serve) -> None:
    """The caller gets all of them, in order."""

    def answer(requests: WorkerRequestsIterator, frames: list[bytes]) -> None:
        requests.send_reply_from_iterable(([b"%d" % n] for n in range(200)), [b"end"])

    serve(answer)
    client.send("svc", b"x")
    assert client.recv_all_as_list(SOON_S) == [*(b"%d" % n for n in range(200)), b"end"]


def test_parts_and_finals_may_be_empty(client: Client, serve: Serve) -> None:
    """The caller gets a list without frames, or a frame without bytes: two different things."""

    def answer(requests: WorkerRequestsIterator, frames: list[bytes]) -> None:
        requests.send_reply_partial([])
        requests.send_reply_partial([b""])
        requests.send_reply_final([])

    serve(answer)
    client.send("svc", b"x")
    assert list(client.recv_all(SOON_S)) == [[], [b""], []]


def test_after_the_last_part_the_next_request_may_be_sent(client: Client, serve: Serve) -> None:
    """None need not be read, as with majortomo: the final part says that it is one."""
    serve()
    for n in range(3):
        client.send("svc", b"%d" % n)
        assert client.recv_part(SOON_S) == [b"%d" % n]


def test_the_whole_reply_is_read_before_the_next_request(client: Client, serve: Serve) -> None:
    """StateError at every moment before that, and nothing of the reply is lost by it."""
    serve(three_parts)
    client.send("svc", b"x")
    for part in ([b"1"], [b"2", b""], [b"3"]):
        with pytest.raises(StateError):
            client.send("svc", b"y")
        assert client.recv_part(SOON_S) == part
    client.send("svc", b"y")
    assert client.recv_all_as_list(SOON_S) == [b"1", b"2", b"", b"3"]


def test_a_request_without_frames_is_refused_before_it_is_sent(client: Client, serve: Serve) -> None:
    """majortomo's broker drops it, and its client waits for ever. Here the sender is told, and may go on."""
    serve()
    with pytest.raises(ProtocolError, match="frame"):
        client.send("svc")
    assert client.recv_part(0) is None
    client.send("svc", b"x")
    assert client.recv_part(SOON_S) == [b"x"]


@pytest.mark.parametrize("frames", [("text",), (b"x", None), (1,)])
def test_a_frame_that_is_not_bytes_is_a_TypeError(client: Client, frames: Any) -> None:
    """Before anything is sent."""
    with pytest.raises(TypeError):
        client.send("svc", *frames)


@pytest.mark.parametrize("name", ["", "/path", "käse"])
def test_a_name_that_no_service_can_have_is_a_ValueError(client: Client, name: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError):
        client.send(name, b"x")


def test_more_frames_than_a_request_can_hold_are_a_ProtocolError(client: Client, serve: Serve) -> None:
    """Before anything is sent; the next request may be sent at once."""
    serve()
    with pytest.raises(ProtocolError, match="65535") as raised:
        client.send("svc", *[b""] * 65_536)
    assert raised.value.status == 413
    client.send("svc", b"x")
    assert client.recv_part(SOON_S) == [b"x"]


# --- services of the mesh -------------------------------------------------------------------------


def test_a_service_of_the_mesh_answers_with_frames_or_JSON(mesh: Mesh, client: Client) -> None:
    """A list of bytes is frames, bytes are one, any other value is one frame of JSON."""
    answers: dict[bytes, Any] = {b"list": [b"a", b"b"], b"bytes": b"c", b"value": {"total": 7.0}}
    service = mesh.service()
    service.register_function(lambda frame: answers[frame], "/")
    for ask, frames in ((b"list", [b"a", b"b"]), (b"bytes", [b"c"]), (b"value", [b'{"total":7.0}'])):
        client.send("svc", ask)
        assert client.recv_all_as_list(SOON_S) == frames


def test_what_a_service_of_the_mesh_yields_are_parts(mesh: Mesh, client: Client) -> None:
    """The caller gets each as it is yielded; a value that is no bytes is a frame of JSON, be it null."""

    def parts(*frames: bytes) -> Iterator[Any]:
        yield from ([frame] for frame in frames)
        yield None

    mesh.service().register_function(parts, "/")
    client.send("svc", b"1", b"2")
    assert list(client.recv_all(SOON_S)) == [[b"1"], [b"2"], [b"null"]]


@pytest.mark.parametrize("status", [400, 401, 409, 422, 500, 501])
def test_a_refusal_or_failure_is_a_ProtocolError_with_its_status(
    mesh: Mesh, client: Client, status: int
) -> None:
    """Not in any reply of majortomo's, whose caller waits. The next request may be sent at once."""

    def fail(frame: bytes) -> bytes:
        if frame == b"fail":
            raise RequestFailed("no good", status=status)
        return frame

    mesh.service().register_function(fail, "/")
    client.send("svc", b"fail")
    with pytest.raises(ProtocolError, match=f"svc: {status} no good") as raised:
        client.recv_part(SOON_S)
    assert raised.value.status == status
    assert client.recv_part(SOON_S) is None
    client.send("svc", b"x")
    assert client.recv_part(SOON_S) == [b"x"]


def test_an_exception_of_a_handler_is_a_ProtocolError_with_500(mesh: Mesh, client: Client) -> None:
    """The caller reads the exception's own message."""

    def fail(frame: bytes) -> bytes:
        raise LookupError("no such cake")

    mesh.service().register_function(fail, "/")
    client.send("svc", b"x")
    with pytest.raises(ProtocolError, match="500 no such cake"):
        client.recv_all_as_list(SOON_S)


def test_a_failure_after_parts_comes_after_them(mesh: Mesh, client: Client) -> None:
    """The caller has the part; the failure is a Timeout, for to ask again would repeat the part."""

    def fail(frame: bytes) -> Iterator[list[bytes]]:
        yield [frame]
        raise Unavailable("not any more", status=503)

    mesh.service().register_function(fail, "/")
    client.send("svc", b"x")
    assert client.recv_part(SOON_S) == [b"x"]
    with pytest.raises(Timeout) as raised:
        client.recv_part(SOON_S)
    assert raised.value.status == 503


def test_a_request_that_is_too_large_is_a_ProtocolError_with_413() -> None:
    """The caller is told; majortomo's would wait for ever."""
    with Mesh(max_body_bytes=10_000) as mesh, Client(mesh.endpoint) as client:
        client.send("svc", b"x" * 10_001)
        with pytest.raises(ProtocolError) as raised:
            client.recv_part(SOON_S)
        assert raised.value.status == 413


def test_mmi_service_says_whether_a_service_is_there(client: Client, serve: Serve) -> None:
    """RFC 8, which majortomo's broker leaves unanswered."""
    serve()
    for name, answer in ((b"svc", b"200"), (b"nobody", b"404")):
        client.send(b"mmi.service", name)
        assert client.recv_all_as_list(SOON_S) == [answer]
    client.send(b"mmi.other", b"x")
    with pytest.raises(ProtocolError) as raised:
        client.recv_part(SOON_S)
    assert raised.value.status == 501


# --- waiting --------------------------------------------------------------------------------------


def test_a_timeout_is_raised_when_it_has_passed_and_the_reply_may_still_be_read(
    client: Client, serve: Serve
) -> None:
    """The caller is told how long it waited, may not send, and gets the reply by waiting again."""
    go = Event()
    serve(lambda requests, frames: go.wait(SOON_S) and requests.send_reply_final(frames))
    client.send("svc", b"x")
    began = monotonic()
    with pytest.raises(Timeout, match=r"0\.05") as raised:
        client.recv_part(0.05)
    assert 0.05 <= monotonic() - began < 1.0
    assert raised.value.status == 0
    with pytest.raises(StateError):
        client.send("svc", b"y")
    go.set()
    assert client.recv_all_as_list(SOON_S) == [b"x"]


def test_timeout_0_takes_what_is_there_and_does_not_wait(client: Client, serve: Serve) -> None:
    """With majortomo it waits for ever."""
    go = Event()
    serve(lambda requests, frames: go.wait(SOON_S) and requests.send_reply_final(frames))
    client.send("svc", b"x")
    began = monotonic()
    with pytest.raises(Timeout):
        client.recv_part(0)
    assert monotonic() - began < 0.25
    go.set()

    def part() -> list[bytes] | None:
        try:
            return client.recv_part(0)
        except Timeout:
            return None

    assert wait_for(part) == [b"x"]


@pytest.mark.slow
def test_without_a_timeout_it_waits_for_as_long_as_it_takes(client: Client, serve: Serve) -> None:
    """The caller gets its reply when it comes."""

    def answer(requests: WorkerRequestsIterator, frames: list[bytes]) -> None:
        gevent.sleep(0.3)
        requests.send_reply_final(frames)

    serve(answer)
    client.send("svc", b"x")
    assert client.recv_all_as_list() == [b"x"]


@pytest.mark.slow
def test_a_timeout_is_between_parts_and_not_for_all_of_them(client: Client, serve: Serve) -> None:
    """The caller gets a reply that takes longer than its timeout in all."""

    def answer(requests: WorkerRequestsIterator, frames: list[bytes]) -> None:
        for n in range(4):
            gevent.sleep(0.15)
            requests.send_reply_partial([b"%d" % n])
        requests.send_reply_final([b"end"])

    serve(answer)
    client.send("svc", b"x")
    assert client.recv_all_as_list(0.4) == [b"0", b"1", b"2", b"3", b"end"]


@pytest.mark.slow
def test_a_service_that_nobody_knows_is_waited_for(mesh: Mesh, client: Client, serve: Serve) -> None:
    """The router says 404 at once; majortomo's people start their workers when they please, so it is asked
    again until somebody is there, without end where there is no timeout."""
    client.send("late", b"x")
    reader = gevent.spawn(client.recv_all_as_list)
    wait_for(lambda: mesh.router.status()["counters"].get("refused.not_found", 0) >= 3)
    assert not reader.ready()
    serve(name="late")
    assert reader.get(timeout=SOON_S) == [b"x"]


def test_a_service_that_stays_away_is_a_Timeout_that_says_so(client: Client) -> None:
    """The caller reads the router's reason, also when it looks again."""
    client.send("nobody", b"x")
    with pytest.raises(Timeout, match="404 no such service: nobody"):
        client.recv_part(0.05)
    with pytest.raises(Timeout, match="404"):
        client.recv_part(0)


@pytest.mark.slow
def test_a_service_that_has_gone_is_waited_for() -> None:
    """The router says 503 and when to ask again."""
    with Mesh(absent_grace_s=0.0) as mesh, Client(mesh.endpoint) as client:
        with Worker(mesh.endpoint, "svc"):
            wait_for(lambda: instances(mesh, "svc") == 1)
        wait_for(lambda: instances(mesh, "svc") == 0)
        client.send("svc", b"x")
        with pytest.raises(Timeout, match="503"):
            client.recv_part(0.1)
        with Worker(mesh.endpoint, "svc") as worker:
            reader = gevent.spawn(client.recv_all_as_list, SOON_S)
            caller, frames = taken(worker)
            worker.send_reply_final(caller, frames)
            assert reader.get(timeout=SOON_S) == [b"x"]


@pytest.mark.slow
def test_a_broker_that_is_not_there_is_waited_for() -> None:
    """Connecting and sending raise nothing; the reader times out or, with more patience, gets its reply from
    whoever comes to listen there."""
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with Client(endpoint) as client:
        client.send("svc", b"x")
        with pytest.raises(Timeout):
            client.recv_part(0.3)
        with Router() as router, Worker(endpoint, "svc") as worker:
            router.bind(endpoint)
            caller, frames = taken(worker)
            worker.send_reply_final(caller, frames)
            assert client.recv_all_as_list(SOON_S) == [b"x"]


@pytest.mark.slow
def test_a_broker_may_stay_away_for_longer_than_the_mesh_itself_waits() -> None:
    """The mesh answers 503 after 3 s; whoever waits without end is not told, and served in the end."""
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with Client(endpoint) as client:
        client.send("svc", b"x")
        with pytest.raises(Timeout, match="503 no router"):
            client.recv_part(3.5)
        with Router() as router, Worker(endpoint, "svc") as worker:
            router.bind(endpoint)
            reader = gevent.spawn(client.recv_all_as_list)
            caller, frames = taken(worker)
            worker.send_reply_final(caller, frames)
            assert reader.get(timeout=SOON_S) == [b"x"]


# --- loss -----------------------------------------------------------------------------------------


def test_a_lost_worker_is_a_Timeout_at_once_and_the_documented_retry_helps(
    mesh: Mesh, client: Client, serve: Serve
) -> None:
    """502: it may have run, so it is not sent again by itself. Until the client connects anew it is as it
    was: a send is a StateError, reading raises Timeout again."""
    with Worker(mesh.endpoint, "svc") as worker:
        wait_for(lambda: instances(mesh, "svc") == 1)
        client.send("svc", b"x")
        taken(worker)
    began = monotonic()
    with pytest.raises(Timeout, match="502") as raised:
        client.recv_all_as_list(60.0)
    assert monotonic() - began < 1.0
    assert raised.value.status == 502
    with pytest.raises(StateError):
        client.send("svc", b"x")
    with pytest.raises(Timeout) as raised:
        client.recv_part(SOON_S)
    assert raised.value.status == 502
    serve()
    client.connect(reconnect=True)
    client.send("svc", b"x")
    assert client.recv_all_as_list(SOON_S) == [b"x"]


def test_a_deadline_that_has_passed_further_on_is_a_Timeout_at_once(mesh: Mesh, client: Client) -> None:
    """The caller need not wait for its own timeout to know."""

    def late(frame: bytes) -> None:
        raise RequestFailed("too late", status=504)

    mesh.service().register_function(late, "/")
    client.send("svc", b"x")
    with pytest.raises(Timeout, match="504 too late") as raised:
        client.recv_part(SOON_S)
    assert raised.value.status == 504


@pytest.mark.slow
def test_a_killed_broker_is_a_Timeout_at_once_and_its_successor_is_found(parties: Parties) -> None:
    """kill -9 of the router while the worker has the request: 502, and after connecting anew all is well,
    worker included."""
    router, endpoint = parties.router()
    with Client(endpoint) as client, Worker(endpoint, "svc") as worker:
        client.send("svc", b"x")
        caller, _ = taken(worker)
        router.kill()
        with pytest.raises(Timeout, match="502"):
            client.recv_part(20.0)
        parties.router(endpoint)
        client.connect(reconnect=True)
        client.send("svc", b"again")
        worker.send_reply_final(caller, [b"to nobody"])
        caller, frames = taken(worker)
        worker.send_reply_final(caller, frames)
        assert client.recv_all_as_list(SOON_S) == [b"again"]


# --- life -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["send", "recv_part", "recv_all", "recv_all_as_list"])
@pytest.mark.parametrize("when", ["before connect", "after close"])
def test_without_a_connection_everything_is_Disconnected(mesh: Mesh, use: str, when: str) -> None:
    """majortomo raises AttributeError, or gives nothing."""
    client = Client(mesh.endpoint)
    if when == "after close":
        client.connect()
        client.send("svc", b"x")
        client.close()
    calls: dict[str, Callable[[], object]] = {
        "send": lambda: client.send("svc", b"x"),
        "recv_part": client.recv_part,
        "recv_all": lambda: list(client.recv_all()),
        "recv_all_as_list": client.recv_all_as_list,
    }
    with pytest.raises(Disconnected):
        calls[use]()


def test_nothing_is_received_where_nothing_was_asked(client: Client) -> None:
    """The caller does not wait."""
    assert client.recv_part() is None
    assert list(client.recv_all()) == []
    assert client.recv_all_as_list() == []


def test_is_connected_from_connect_to_close(mesh: Mesh) -> None:
    """Whether a broker is there or not; closing twice is no error."""
    client = Client(mesh.endpoint)
    assert not client.is_connected()
    client.close()
    client.connect()
    assert client.is_connected()
    client.close()
    assert not client.is_connected()
    client.close()
    with client as entered:
        assert entered is client
        assert client.is_connected()
    assert not client.is_connected()


def test_connecting_twice_changes_nothing(client: Client, serve: Serve) -> None:
    """The caller still gets the reply that it waits for."""
    serve()
    client.send("svc", b"x")
    client.connect()
    assert client.recv_all_as_list(SOON_S) == [b"x"]


def test_the_reply_to_an_abandoned_request_never_comes(client: Client, serve: Serve) -> None:
    """Connecting anew gives it up: what its worker says then reaches neither the next request nor anybody."""
    go = Event()
    done: list[bytes] = []

    def answer(requests: WorkerRequestsIterator, frames: list[bytes]) -> None:
        if frames == [b"slow"]:
            assert go.wait(SOON_S)
        requests.send_reply_final(frames)
        done.extend(frames)

    serve(answer)
    client.send("svc", b"slow")
    with pytest.raises(Timeout):
        client.recv_part(0.02)
    client.connect(reconnect=True)
    assert client.recv_part() is None
    client.send("svc", b"next")
    go.set()
    assert list(client.recv_all(SOON_S)) == [[b"next"]]
    assert done == [b"slow", b"next"]


def test_closing_wakes_whoever_waits(mesh: Mesh, serve: Serve) -> None:
    """With Disconnected."""
    serve(lambda requests, frames: None)
    client = Client(mesh.endpoint)
    client.connect()
    client.send("svc", b"x")
    reader = gevent.spawn(client.recv_part)
    gevent.sleep(0.01)
    client.close()
    with pytest.raises(Disconnected):
        reader.get(timeout=SOON_S)


def test_closing_wakes_whoever_waits_for_a_service_to_come(client: Client) -> None:
    """With Disconnected, when the request would be sent again."""
    client.send("nobody", b"x")
    reader = gevent.spawn(client.recv_part)
    gevent.sleep(0.05)
    client.close()
    with pytest.raises(Disconnected):
        reader.get(timeout=SOON_S)


def test_connecting_to_a_broker_that_is_not_there_takes_a_moment() -> None:
    """The caller is connected in majortomo's sense: it may send."""
    began = monotonic()
    with Client(NOBODY) as client:
        assert client.is_connected()
    assert monotonic() - began < 1.0


@pytest.mark.parametrize("url", ["nonsense", "tcp://127.0.0.1", "tcp://127.0.0.1:99999"])
def test_an_address_that_cannot_be_is_a_ValueError_when_it_is_used(url: str) -> None:
    """And the client is as it was."""
    client = Client(url)
    with pytest.raises(ValueError):
        client.connect()
    assert not client.is_connected()


def test_what_only_ZeroMQ_needs_is_taken_and_not_used(mesh: Mesh, serve: Serve) -> None:
    """Programs that pass it need no change."""
    serve()
    with Client(mesh.endpoint, zmq_context=object(), zmq_linger=0) as client:
        client.send("svc", b"x")
        assert client.recv_all_as_list(SOON_S) == [b"x"]


def test_the_names_are_majortomos() -> None:
    """Every public method of its client is one of ours."""
    for name in ("connect", "is_connected", "close", "send", "recv_part", "recv_all", "recv_all_as_list"):
        assert callable(getattr(original.Client, name))
        assert callable(getattr(majortomo.Client, name))
    assert not issubclass(Closed, Disconnected)  # the mesh's own does not reach the program


# --- majortomo's own worker -----------------------------------------------------------------------


@bodies
def test_majortomos_worker_is_given_the_frames_and_gives_them_back(
    our_client: Client, their_worker: original.Worker, name: str, body: list[bytes]
) -> None:
    """The request has left when ``send`` returns, though nothing here turns the hub: their worker, which
    blocks this process, has it."""
    our_client.send(name, *body)
    caller, frames = taken(their_worker)
    assert frames == body
    their_worker.send_reply_final(caller, frames)
    assert our_client.recv_all_as_list(SOON_S) == body


def test_majortomos_worker_replies_in_parts(
    our_client: Client, their_worker: original.Worker, name: str
) -> None:
    """PARTIAL, PARTIAL, FINAL: three parts and None."""
    our_client.send(name, b"x")
    caller, _ = taken(their_worker)
    their_worker.send_reply_partial(caller, [b"1", b""])
    their_worker.send_reply_partial(caller, [b"2"])
    their_worker.send_reply_final(caller, [b"3"])
    assert [our_client.recv_part(SOON_S) for _ in range(4)] == [[b"1", b""], [b"2"], [b"3"], None]


def test_majortomos_worker_that_leaves_is_a_Timeout_at_once(
    our_client: Client, their_worker: original.Worker, name: str
) -> None:
    """Its DISCONNECT with the request in hand: their own client would wait for ever."""
    our_client.send(name, b"x")
    taken(their_worker)
    their_worker.close()
    with pytest.raises(Timeout, match="502"):
        our_client.recv_part(SOON_S)


def test_a_second_reply_of_majortomos_worker_reaches_nobody(
    our_client: Client, their_worker: original.Worker, name: str
) -> None:
    """With their broker the next request would be answered by it."""
    our_client.send(name, b"1")
    caller, _ = taken(their_worker)
    their_worker.send_reply_final(caller, [b"1"])
    their_worker.send_reply_final(caller, [b"once more"])
    assert our_client.recv_all_as_list(SOON_S) == [b"1"]
    our_client.send(name, b"2")
    caller, frames = taken(their_worker)
    their_worker.send_reply_final(caller, frames)
    assert our_client.recv_all_as_list(SOON_S) == [b"2"]


# --- programs that know nothing of gevent, and such that do -----------------------------------------


@pytest.mark.slow
def test_a_program_may_stand_still_between_its_requests(parties: Parties) -> None:
    """Nothing is patched, and it sleeps for longer than the router's patience with a silent client: the next
    request is served as if nothing had been."""
    _, endpoint = parties.router(heartbeat_interval_s=0.5, heartbeat_timeout_s=2.0)
    parties.service(endpoint, "svc")
    with Client(endpoint) as client:
        for _ in range(2):
            client.send("svc", b"x")
            assert client.recv_all_as_list(SOON_S) == [b"x"]
            time.sleep(3.5)
        client.send("svc", b"y")
        time.sleep(1.0)
        assert client.recv_all_as_list(SOON_S) == [b"y"]


PATCHED = """
    from gevent import monkey; monkey.patch_all()
    import sys, threading, time
    from butler_mesh.compat import majortomo

    url, said = sys.argv[1], []

    def work():
        requests = majortomo.WorkerRequestsIterator(majortomo.Worker(url, "patched"))
        for frames in requests:
            time.sleep(0.05)
            requests.send_reply_final([b"re:" + frame for frame in frames])

    def ask(n):
        with majortomo.Client(url) as client:
            for i in range(3):
                client.send(b"patched", b"%d.%d" % (n, i))
                said.append(client.recv_all_as_list(timeout=10.0))
                time.sleep(0.05)

    threading.Thread(target=work, daemon=True).start()
    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(sorted(frame for frames in said for frame in frames))
"""


@pytest.mark.slow
def test_in_a_program_that_gevent_has_patched_many_wait_at_once(far_router: str) -> None:
    """Threads are greenlets there, and a client and a worker in each do not stop the others."""
    with Program.of(PATCHED, far_router) as program:
        assert program.ends() == 0, program.stderr
        assert program.stdout.decode().strip() == str(
            sorted(b"re:%d.%d" % (n, i) for n in range(4) for i in range(3))
        )
        assert program.stderr == ""
