"""The face's worker and its iterator: what the program is given, and what callers get of its replies."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent
import majortomo as original
import pytest
import zmq
from gevent.event import Event
from gevent.hub import get_hub

from butler_mesh.compat.majortomo import Client, Worker, WorkerRequestsIterator
from butler_mesh.compat.majortomo.error import Disconnected, ProtocolError, StateError, Timeout
from tests.compat.majortomo.bodies import bodies
from tests.compat.majortomo.conftest import Serve, instances, taken
from tests.meshes import Mesh, drained
from tests.processes.parties import Parties, Party, status
from tests.programs import Program
from tests.waiting import wait_for

SOON_S = 5.0


def asked(client: Client, *frames: bytes) -> gevent.Greenlet[..., list[list[bytes]]]:
    """Send a request; return the parts of its reply, when they are there."""
    client.send("svc", *frames)
    return gevent.spawn(lambda: list(client.recv_all(SOON_S)))


# --- requests and replies -------------------------------------------------------------------------


@bodies
def test_a_request_is_whom_to_answer_and_its_frames(
    client: Client, worker: Worker, body: list[bytes]
) -> None:
    """The caller gets what the worker sends back, untouched."""
    reply = asked(client, *body)
    caller, frames = taken(worker)
    assert isinstance(caller, bytes)
    assert frames == body
    worker.send_reply_final(caller, frames)
    assert reply.get(timeout=SOON_S) == [body]


def test_parts_and_then_the_final_one(client: Client, worker: Worker) -> None:
    """The caller gets each as a part, in order."""
    reply = asked(client, b"x")
    caller, _ = taken(worker)
    worker.send_reply_partial(caller, [b"1", b"", b"\xff"])
    worker.send_reply_partial(caller, [b"2"])
    worker.send_reply_final(caller, [b"3"])
    assert reply.get(timeout=SOON_S) == [[b"1", b"", b"\xff"], [b"2"], [b"3"]]


@pytest.mark.parametrize("final", [[b"end"], [], None])
def test_parts_from_an_iterable_and_the_final_one_if_there_is_one(
    client: Client, worker: Worker, final: list[bytes] | None
) -> None:
    """Without one the reply goes on; the caller gets what is sent later as well."""
    reply = asked(client, b"x")
    caller, _ = taken(worker)
    worker.send_reply_from_iterable(caller, ([b"%d" % n] for n in range(3)), final)
    if final is None:
        worker.send_reply_final(caller, [b"later"])
    else:
        with pytest.raises(StateError):
            worker.send_reply_final(caller, [b"later"])
    last = [b"later"] if final is None else final
    assert reply.get(timeout=SOON_S) == [[b"0"], [b"1"], [b"2"], last]


def test_frames_may_come_from_any_iterable(client: Client, worker: Worker) -> None:
    """As majortomo's echo has it, which gives back ``reversed``."""
    reply = asked(client, b"a", b"b")
    caller, frames = taken(worker)
    worker.send_reply_final(caller, reversed(frames))
    assert reply.get(timeout=SOON_S) == [[b"b", b"a"]]


@pytest.mark.parametrize("frames", [["text"], b"bytes alone", [None]])
def test_what_is_not_frames_is_a_TypeError_and_the_request_may_still_be_answered(
    client: Client, worker: Worker, frames: Any
) -> None:
    """The caller notices nothing."""
    reply = asked(client, b"x")
    caller, _ = taken(worker)
    with pytest.raises(TypeError):
        worker.send_reply_final(caller, frames)
    worker.send_reply_final(caller, [b"x"])
    assert reply.get(timeout=SOON_S) == [[b"x"]]


def test_a_reply_that_is_too_large_is_500_for_the_caller_and_the_worker_goes_on() -> None:
    """The caller gets ProtocolError, and its next request is served."""
    with Mesh(max_body_bytes=10_000) as mesh, Client(mesh.endpoint) as client:
        with Worker(mesh.endpoint, "svc") as worker:
            wait_for(lambda: instances(mesh, "svc") == 1)
            for size, is_sent in ((20_000, False), (5_000, True)):
                reply = asked(client, b"x")
                caller, _ = taken(worker)
                worker.send_reply_final(caller, [b"x" * size])
                if is_sent:
                    assert reply.get(timeout=SOON_S) == [[b"x" * size]]
                else:
                    with pytest.raises(ProtocolError, match="over the maximum") as raised:
                        reply.get(timeout=SOON_S)
                    assert raised.value.status == 500


# --- one at a time --------------------------------------------------------------------------------


def test_the_next_request_comes_when_this_one_is_answered(mesh: Mesh, worker: Worker) -> None:
    """Meanwhile it waits in the router, where another worker could take it; both callers are answered."""
    with Client(mesh.endpoint) as first, Client(mesh.endpoint) as second:
        replies = [asked(first, b"1"), asked(second, b"2")]
        caller, frames = taken(worker)
        waiting = gevent.spawn(worker.wait_for_request)
        wait_for(lambda: mesh.router.status()["services"]["svc"]["queued"] == 1)
        gevent.sleep(0.02)
        assert not waiting.ready()
        worker.send_reply_final(caller, frames)
        worker.send_reply_final(*waiting.get(timeout=SOON_S))
        assert [reply.get(timeout=SOON_S) for reply in replies] == [[[b"1"]], [[b"2"]]]


def test_workers_of_a_service_share_its_requests(mesh: Mesh, worker: Worker) -> None:
    """Two callers at once are served at once, by a worker each; start more where there is more to do."""
    with (
        Worker(mesh.endpoint, "svc") as other,
        Client(mesh.endpoint) as first,
        Client(mesh.endpoint) as second,
    ):
        wait_for(lambda: instances(mesh, "svc") == 2)
        replies = [asked(first, b"1"), asked(second, b"2")]
        in_hand = [(each, *taken(each)) for each in (worker, other)]
        for each, caller, frames in in_hand:
            each.send_reply_final(caller, frames)
        assert [reply.get(timeout=SOON_S) for reply in replies] == [[[b"1"]], [[b"2"]]]


@pytest.mark.parametrize("again", ["send_reply_final", "send_reply_partial"])
def test_a_second_answer_is_a_StateError_and_reaches_nobody(mesh: Mesh, worker: Worker, again: str) -> None:
    """With majortomo it is taken for the answer to the caller's next request. Here that gets its own."""
    with Client(mesh.endpoint) as client:
        for n in (b"1", b"2"):
            reply = asked(client, n)
            caller, frames = taken(worker)
            worker.send_reply_final(caller, frames)
            with pytest.raises(StateError):
                getattr(worker, again)(caller, [b"once more"])
            assert reply.get(timeout=SOON_S) == [[n]]


def test_an_answer_to_somebody_else_is_a_StateError_and_reaches_nobody(mesh: Mesh, worker: Worker) -> None:
    """Neither an earlier caller nor an invented one can be answered; the present one is."""
    with Client(mesh.endpoint) as client:
        with pytest.raises(StateError):
            worker.send_reply_final(b"\0" * 8, [b"x"])
        reply = asked(client, b"1")
        earlier, frames = taken(worker)
        worker.send_reply_final(earlier, frames)
        assert reply.get(timeout=SOON_S) == [[b"1"]]
        reply = asked(client, b"2")
        caller, frames = taken(worker)
        for token in (earlier, b"", b"\0" * 8, caller + b"\0"):
            with pytest.raises(StateError):
                worker.send_reply_final(token, [b"forged"])
        worker.send_reply_final(caller, frames)
        assert reply.get(timeout=SOON_S) == [[b"2"]]


def test_a_reply_to_a_caller_that_has_gone_goes_nowhere(mesh: Mesh, worker: Worker) -> None:
    """No error: the worker cannot know. It is free for the next request as soon as the caller has gone."""
    with Client(mesh.endpoint) as client:
        client.send("svc", b"1")
        caller, _ = taken(worker)
        client.connect(reconnect=True)
        wait_for(lambda: drained(mesh.router.status()))
        worker.send_reply_partial(caller, [b"late"])
        worker.send_reply_final(caller, [b"late"])
        reply = asked(client, b"2")
        caller, frames = taken(worker)
        worker.send_reply_final(caller, frames)
        assert reply.get(timeout=SOON_S) == [[b"2"]]


def test_a_request_whose_caller_left_before_it_was_taken_is_passed_over(mesh: Mesh, worker: Worker) -> None:
    """The worker is not given work that nobody waits for."""
    with Client(mesh.endpoint) as client:
        client.send("svc", b"1")
        wait_for(lambda: not drained(mesh.router.status()))
        client.connect(reconnect=True)
        wait_for(lambda: drained(mesh.router.status()))
        reply = asked(client, b"2")
        caller, frames = taken(worker)
        assert frames == [b"2"]
        worker.send_reply_final(caller, frames)
        assert reply.get(timeout=SOON_S) == [[b"2"]]


def test_a_worker_that_never_answers_is_free_when_its_caller_gives_up(mesh: Mesh, worker: Worker) -> None:
    """majortomo's would get nothing more, ever."""
    with Client(mesh.endpoint) as client:
        client.send("svc", b"1")
        taken(worker)
        client.connect(reconnect=True)
        reply = asked(client, b"2")
        caller, frames = taken(worker)
        assert frames == [b"2"]
        worker.send_reply_final(caller, frames)
        assert reply.get(timeout=SOON_S) == [[b"2"]]


def test_the_senders_pace_is_the_readers(client: Client, worker: Worker) -> None:
    """Of what nobody reads yet only so many parts are sent; the rest follows as it is read."""
    client.send("svc", b"x")
    caller, _ = taken(worker)
    sent: list[int] = []

    def send() -> None:
        for n in range(100):
            worker.send_reply_partial(caller, [b"%d" % n])
            sent.append(n)
        worker.send_reply_final(caller, [b"end"])

    sender = gevent.spawn(send)
    wait_for(lambda: len(sent) >= 16)
    gevent.sleep(0.05)
    assert len(sent) < 40
    assert client.recv_all_as_list(SOON_S) == [*(b"%d" % n for n in range(100)), b"end"]
    sender.get(timeout=SOON_S)


# --- life -----------------------------------------------------------------------------------------


def test_is_connected_from_connect_to_close(mesh: Mesh) -> None:
    """Callers reach it in between."""
    worker = Worker(mesh.endpoint, "svc")
    assert not worker.is_connected()
    worker.close()
    worker.connect()
    worker.connect()
    assert worker.is_connected()
    wait_for(lambda: instances(mesh, "svc") == 1)
    worker.close()
    assert not worker.is_connected()
    assert instances(mesh, "svc") == 0
    worker.close()
    with worker as entered:
        assert entered is worker
        wait_for(lambda: instances(mesh, "svc") == 1)
    assert instances(mesh, "svc") == 0


def test_connecting_anew_drops_the_present_request(mesh: Mesh, client: Client, worker: Worker) -> None:
    """Its caller gets Timeout with 502 at once, and nothing sent later reaches it."""
    reply = asked(client, b"x")
    caller, _ = taken(worker)
    worker.connect(reconnect=True)
    with pytest.raises(Timeout, match="502"):
        reply.get(timeout=SOON_S)
    with pytest.raises(StateError):
        worker.send_reply_final(caller, [b"late"])
    assert instances(mesh, "svc") == 1


@pytest.mark.parametrize("when", ["before connect", "after close"])
def test_without_a_connection_everything_is_Disconnected(mesh: Mesh, when: str) -> None:
    """majortomo raises AttributeError for the replies."""
    worker = Worker(mesh.endpoint, "svc")
    if when == "after close":
        worker.connect()
        worker.close()
    for use in (
        worker.wait_for_request,
        lambda: worker.send_reply_final(b"", [b"x"]),
        lambda: worker.send_reply_partial(b"", [b"x"]),
        lambda: worker.send_reply_from_iterable(b"", [], [b"x"]),
    ):
        with pytest.raises(Disconnected):
            use()


@pytest.mark.parametrize("where", ["greenlet", "hub"])
def test_closing_wakes_whoever_waits_for_a_request(mesh: Mesh, worker: Worker, where: str) -> None:
    """Also out of the hub, which is where a signal's handler may run. The router has forgotten it then."""
    waiting = gevent.spawn(worker.wait_for_request)
    gevent.sleep(0)
    if where == "hub":
        get_hub().loop.run_callback(worker.close)
    else:
        worker.close()
    with pytest.raises(Disconnected):
        waiting.get(timeout=SOON_S)
    worker.close()  # comes back when the first is done
    assert instances(mesh, "svc") == 0


def test_closing_with_a_request_in_hand_is_502_for_its_caller(client: Client, worker: Worker) -> None:
    """At once, while majortomo's caller would wait for ever: it may have been carried out."""
    reply = asked(client, b"x")
    caller, _ = taken(worker)
    worker.close()
    with pytest.raises(Timeout, match="502"):
        reply.get(timeout=SOON_S)
    with pytest.raises(Disconnected):
        worker.send_reply_final(caller, [b"late"])


@pytest.mark.slow
def test_closing_with_a_request_not_yet_taken_sends_that_elsewhere(
    mesh: Mesh, client: Client, worker: Worker, serve: Serve
) -> None:
    """Its caller notices nothing but the time."""
    reply = asked(client, b"x")
    wait_for(lambda: not drained(mesh.router.status()))
    worker.close()
    serve()
    assert reply.get(timeout=SOON_S) == [[b"x"]]


def test_a_broker_that_comes_back_finds_the_worker_again(mesh: Mesh, client: Client, worker: Worker) -> None:
    """Without a word from the program: callers are served as before."""
    waiting = gevent.spawn(worker.wait_for_request)
    mesh.router.stop()
    mesh.router.bind(mesh.endpoint)
    client.connect(reconnect=True)  # or it might ask the one that is leaving, and be lost with it
    reply = asked(client, b"x")
    caller, frames = waiting.get(timeout=SOON_S)
    worker.send_reply_final(caller, frames)
    assert reply.get(timeout=SOON_S) == [[b"x"]]


def test_connecting_to_a_broker_that_is_not_there_takes_a_moment() -> None:
    """The worker waits for it in ``wait_for_request``."""
    began = monotonic()
    with Worker("tcp://127.0.0.1:9", "svc") as worker:
        assert worker.is_connected()
    assert monotonic() - began < 1.0


@pytest.mark.parametrize("name", ["", b"", "mmi.service", "/path", "käse", "x" * 256])
def test_a_name_that_no_service_can_have_is_a_ValueError(mesh: Mesh, name: str | bytes) -> None:
    """At once: the broker would only refuse it again and again."""
    with pytest.raises(ValueError):
        Worker(mesh.endpoint, name)


def test_an_address_that_cannot_be_is_a_ValueError_when_it_is_used() -> None:
    """And the worker is as it was."""
    worker = Worker("nonsense", "svc")
    with pytest.raises(ValueError):
        worker.connect()
    assert not worker.is_connected()


def test_what_only_majortomo_needs_is_taken_and_kept(mesh: Mesh) -> None:
    """Its parameters, in its order."""
    worker = Worker(mesh.endpoint, b"svc", 1.5, 6.0, object(), 0)
    assert (worker.broker_url, worker.service_name) == (mesh.endpoint, b"svc")
    assert worker.heartbeat_interval == 1.5


# --- the iterator ---------------------------------------------------------------------------------


def test_the_iterator_gives_frames_and_answers_the_present_request(client: Client, serve: Serve) -> None:
    """Whole, in parts, or from an iterable: the caller gets each as it was sent."""

    def answer(requests: WorkerRequestsIterator, frames: list[bytes]) -> None:
        if frames == [b"parts"]:
            requests.send_reply_partial([b"1"])
            requests.send_reply_final([b"2"])
        elif frames == [b"iterable"]:
            requests.send_reply_from_iterable(iter([[b"1"], [b"2"]]), [b"3"])
        elif frames == [b"open"]:
            requests.send_reply_from_iterable([[b"1"]])
            requests.send_reply_final([b"2"])
        else:
            requests.send_reply_final(frames)

    serve(answer)
    for ask, parts in (
        (b"parts", [[b"1"], [b"2"]]),
        (b"iterable", [[b"1"], [b"2"], [b"3"]]),
        (b"open", [[b"1"], [b"2"]]),
        (b"x", [[b"x"]]),
    ):
        assert asked(client, ask).get(timeout=SOON_S) == parts


def test_with_nobody_to_answer_every_reply_is_a_StateError(client: Client, serve: Serve) -> None:
    """Before the first request, and after a final reply however it was given. The caller gets that one."""
    requests = WorkerRequestsIterator(Worker("tcp://127.0.0.1:9", "svc"))
    uses: list[Callable[[WorkerRequestsIterator], None]] = [
        lambda requests: requests.send_reply_final([b"x"]),
        lambda requests: requests.send_reply_partial([b"x"]),
        lambda requests: requests.send_reply_from_iterable([[b"x"]], [b"y"]),
    ]
    refused: list[str] = []

    def refuses(requests: WorkerRequestsIterator) -> None:
        for use in uses:
            try:
                use(requests)
            except StateError as error:
                refused.append(str(error))

    def answer(requests: WorkerRequestsIterator, frames: list[bytes]) -> None:
        if frames == [b"iterable"]:
            requests.send_reply_from_iterable([], [b"y"])
        else:
            requests.send_reply_final([b"y"])
        refuses(requests)

    refuses(requests)
    serve(answer)
    for ask in (b"iterable", b"final"):
        assert asked(client, ask).get(timeout=SOON_S) == [[b"y"]]
    assert len(refused) == 3 * len(uses)


def test_stop_ends_it_when_the_present_request_is_done_with(mesh: Mesh, client: Client) -> None:
    """Its caller is answered, though ``stop`` came before the answer; the router has forgotten the worker."""
    requests = WorkerRequestsIterator(Worker(mesh.endpoint, "svc"))
    served: list[list[bytes]] = []

    def loop() -> None:
        for frames in requests:
            requests.stop()
            requests.send_reply_final(frames)
            served.append(frames)

    greenlet = gevent.spawn(loop)
    wait_for(lambda: instances(mesh, "svc") == 1)
    assert asked(client, b"x").get(timeout=SOON_S) == [[b"x"]]
    greenlet.get(timeout=SOON_S)
    assert served == [[b"x"]]
    assert not requests.worker.is_connected()
    assert instances(mesh, "svc") == 0


@pytest.mark.parametrize("where", ["greenlet", "thread", "hub"])
def test_stop_wakes_the_iterator(mesh: Mesh, where: str) -> None:
    """From wherever it is called. Callers go elsewhere."""
    requests = WorkerRequestsIterator(Worker(mesh.endpoint, "svc"))
    greenlet = gevent.spawn(list, requests)
    wait_for(lambda: instances(mesh, "svc") == 1)
    if where == "thread":
        thread = threading.Thread(target=requests.stop)
        thread.start()
        thread.join()
    elif where == "hub":
        get_hub().loop.run_callback(requests.stop)
    else:
        requests.stop()
    assert greenlet.get(timeout=SOON_S) == []
    assert instances(mesh, "svc") == 0


def test_closing_the_worker_ends_the_iteration(mesh: Mesh) -> None:
    """As majortomo's echo has it, whose signal handlers close the worker."""
    requests = WorkerRequestsIterator(Worker(mesh.endpoint, "svc"))
    greenlet = gevent.spawn(list, requests)
    wait_for(lambda: instances(mesh, "svc") == 1)
    requests.worker.close()
    assert greenlet.get(timeout=SOON_S) == []


def test_an_iteration_that_is_left_closes_the_worker(mesh: Mesh, client: Client) -> None:
    """Its caller gets Timeout with 502 at once if it was not answered."""
    requests = WorkerRequestsIterator(Worker(mesh.endpoint, "svc"))

    def loop() -> None:
        for _ in requests:
            raise LookupError("a bug")

    greenlet = gevent.spawn(loop)
    reply = asked(client, b"x")
    with pytest.raises(LookupError):
        greenlet.get(timeout=SOON_S)
    with pytest.raises(Timeout, match="502"):
        reply.get(timeout=SOON_S)


# --- majortomo's own client -----------------------------------------------------------------------


@bodies
def test_majortomos_client_gets_its_frames_back_untouched(
    their_client: original.Client, our_worker: Worker, name: str, body: list[bytes]
) -> None:
    """JSON that names a path too: its client knows no paths. The reply has left when ``send_reply_final``
    returns, though nothing here turns the hub while their client blocks this process."""
    their_client.send(name, *body)
    caller, frames = taken(our_worker)
    assert frames == body
    our_worker.send_reply_final(caller, frames)
    assert list(their_client.recv_all(SOON_S)) == [body]


def test_majortomos_client_gets_PARTIAL_PARTIAL_FINAL(
    their_client: original.Client, our_worker: Worker, name: str
) -> None:
    """Each at the moment when it is sent."""
    their_client.send(name, b"x")
    caller, _ = taken(our_worker)
    for part in ([b"1", b"", b"\xff"], [b"2"]):
        our_worker.send_reply_partial(caller, part)
        assert their_client.recv_part(SOON_S) == part
    our_worker.send_reply_final(caller, [b"3"])
    assert their_client.recv_part(SOON_S) == [b"3"]
    assert their_client.recv_part(SOON_S) is None


def test_a_worker_that_answers_twice_does_not_disturb_majortomos_client(
    their_client: original.Client, our_worker: Worker, name: str
) -> None:
    """Each of its requests gets its own reply."""
    for n in (b"1", b"2"):
        their_client.send(name, n)
        caller, frames = taken(our_worker)
        our_worker.send_reply_final(caller, frames)
        with pytest.raises(StateError):
            our_worker.send_reply_final(caller, [b"once more"])
        assert list(their_client.recv_all(SOON_S)) == [[n]]


def test_a_client_of_MDP_0_1_gets_all_parts_as_its_one_reply(
    far_router: str, context: zmq.Context[Any], our_worker: Worker, name: str
) -> None:
    """RFC 7 has no PARTIAL; nothing is lost by that."""
    with context.socket(zmq.REQ) as client:
        client.setsockopt(zmq.RCVTIMEO, int(SOON_S * 1000))
        client.connect(far_router)
        client.send_multipart([b"MDPC01", name.encode(), b"x"])
        caller, _ = taken(our_worker)
        our_worker.send_reply_partial(caller, [b"1"])
        our_worker.send_reply_partial(caller, [b"2"])
        our_worker.send_reply_final(caller, [b"3"])
        assert client.recv_multipart() == [b"MDPC01", name.encode(), b"1", b"2", b"3"]


# --- whole programs, not patched ------------------------------------------------------------------

SLEEPER = """
    import sys, time
    from butler_mesh.compat.majortomo import Worker, WorkerRequestsIterator

    requests = WorkerRequestsIterator(Worker(sys.argv[1], sys.argv[2]))
    requests.stop_on_signal()
    for frames in requests:
        print("took", frames, flush=True)
        requests.send_reply_partial([b"begun"])
        time.sleep(float(frames[0]))
        requests.send_reply_final([b"done"])
    print("ended", flush=True)
"""


@pytest.fixture
def slept(parties: Parties) -> Iterator[tuple[Party, str, Program]]:
    """A router that is impatient, and a worker of ``svc`` that sleeps for as long as it is told."""
    router, endpoint = parties.router(heartbeat_interval_s=0.5, heartbeat_timeout_s=2.0)
    with Program.of(SLEEPER, endpoint, "svc") as program:
        client = parties.client(endpoint)
        wait_for(lambda: status(client)["services"].get("svc", {}).get("instances"), 20)
        yield router, endpoint, program


@pytest.mark.slow
def test_a_worker_that_stands_still_is_not_given_up_and_its_parts_leave_before(
    slept: tuple[Party, str, Program],
) -> None:
    """It sleeps twice as long as the router waits for a silent peer. The caller has the part at once, and
    the final one in the end."""
    _, endpoint, _ = slept
    with Client(endpoint) as client:
        client.send("svc", b"4")
        began = monotonic()
        assert client.recv_part(SOON_S) == [b"begun"]
        assert monotonic() - began < 1.0
        assert client.recv_part(10.0) == [b"done"]
        assert monotonic() - began > 3.5


@pytest.mark.slow
def test_a_caller_that_stands_still_may_find_itself_given_up(slept: tuple[Party, str, Program]) -> None:
    """Not patched, it sleeps for longer than the router waits for a silent peer. A part that came before is
    there; in the place of the final one, which came after, it is told 502, at once. Connected anew it is
    served; and between its requests it may sleep for as long as it likes."""
    _, endpoint, _ = slept
    with Client(endpoint) as client:
        client.send("svc", b"3.5")
        time.sleep(4.0)
        assert client.recv_part(SOON_S) == [b"begun"]
        with pytest.raises(Timeout, match="502"):
            client.recv_part(20.0)
        client.connect(reconnect=True)
        client.send("svc", b"0")
        assert client.recv_all_as_list(SOON_S) == [b"begun", b"done"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_idle_worker_with_0(
    slept: tuple[Party, str, Program], number: signal.Signals
) -> None:
    """And the router knows at once: callers' requests go to others."""
    _, endpoint, program = slept
    program.send(number)
    assert program.ends() == 0
    assert program.stdout == b"ended\n"
    with Client(endpoint) as client:
        client.send("mmi.service", b"svc")
        assert client.recv_all_as_list(SOON_S) == [b"404"]


@pytest.mark.slow
def test_a_signal_while_it_works_lets_it_finish(slept: tuple[Party, str, Program]) -> None:
    """The caller is answered; then the worker leaves."""
    _, endpoint, program = slept
    with Client(endpoint) as client:
        client.send("svc", b"1")
        assert client.recv_part(SOON_S) == [b"begun"]
        program.send(signal.SIGTERM)
        assert client.recv_part(SOON_S) == [b"done"]
        assert program.ends() == 0
        assert b"ended" in program.stdout


@pytest.mark.slow
def test_a_broker_that_is_killed_and_started_again_finds_the_worker(
    slept: tuple[Party, str, Program], parties: Parties
) -> None:
    """majortomo's iterator ends there, and the program with it. Here callers are served again."""
    router, endpoint, program = slept
    router.kill()
    parties.router(endpoint)
    with Client(endpoint) as client:
        client.send("svc", b"0")
        assert client.recv_all_as_list(10.0) == [b"begun", b"done"]
    assert program.process.poll() is None


CLOSER = """
    import signal, sys
    from butler_mesh.compat.majortomo import Worker, WorkerRequestsIterator

    worker = Worker(sys.argv[1], sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: worker.close())
    requests = WorkerRequestsIterator(worker)
    for frames in requests:
        requests.send_reply_final(frames)
    print("ended", flush=True)
"""


@pytest.mark.slow
def test_a_signal_handler_that_closes_the_worker_ends_the_program(parties: Parties) -> None:
    """As majortomo's echo ends; the router knows at once."""
    _, endpoint = parties.router()
    with Program.of(CLOSER, endpoint, "svc") as program, Client(endpoint) as client:
        client.send("svc", b"x")
        assert client.recv_all_as_list(20.0) == [b"x"]
        program.send(signal.SIGTERM)
        assert program.ends() == 0
        assert program.stdout == b"ended\n"
        assert program.stderr == ""
        client.send("mmi.service", b"svc")
        assert client.recv_all_as_list(SOON_S) == [b"404"]


@pytest.mark.slow
def test_a_worker_may_live_in_a_thread(far_router: str, our_client: Client, name: str) -> None:
    """In one of its own, and be stopped from another; its caller is answered."""
    requests = WorkerRequestsIterator(Worker(far_router, name))

    def loop() -> None:
        for frames in requests:
            requests.send_reply_final(frames)

    thread = threading.Thread(target=loop)
    thread.start()
    our_client.send(name, b"x")
    assert our_client.recv_all_as_list(20.0) == [b"x"]
    requests.stop()
    thread.join(SOON_S)
    assert not thread.is_alive()


def test_an_event_of_gevent_may_be_waited_for_while_a_request_is_in_hand(
    client: Client, serve: Serve
) -> None:
    """Other greenlets go on meanwhile, and the caller is answered when it is time."""
    go = Event()
    serve(lambda requests, frames: go.wait(SOON_S) and requests.send_reply_final(frames))
    reply = asked(client, b"x")
    gevent.sleep(0.01)
    assert not reply.ready()
    go.set()
    assert reply.get(timeout=SOON_S) == [[b"x"]]
