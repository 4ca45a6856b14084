"""Calls in progress: waited for, collected later, read part by part, given up."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from butler_mesh.calls import (
    MAX_UNREAD_BYTES,
    STREAM_WINDOW,
    Answers,
    LazyResponse,
    ResponseStream,
    Waiter,
)
from butler_mesh.errors import BadRequest, DeadlineExceeded, InstanceLost, RemoteError
from butler_mesh.messages import encode_response
from butler_mesh.protocol.mesh import FINAL, PARTIAL
from tests.meshes import Mesh, drained
from tests.waiting import wait_for


class FakeConnection:
    """Notes what calls ask of their connection."""

    def __init__(self) -> None:
        self.cancelled: list[Any] = []
        self.granted: list[int] = []

    def cancel(self, call: Any) -> None:
        self.cancelled.append(call)

    def grant(self, call: Any, parts: int) -> None:
        self.granted.append(parts)


def part(body: Any) -> tuple[int, int, int, bytes]:
    envelope, flags = encode_response(body)
    return PARTIAL, 200, flags, envelope


def final(code: int = 200, body: Any = None) -> tuple[int, int, int, bytes]:
    envelope, flags = encode_response(body)
    return FINAL, code, flags, envelope


# --- one reply ---------------------------------------------------------------------------------------


def test_a_reply_that_is_there_before_the_wait_is_returned_at_once() -> None:
    waiter = Waiter()
    waiter(FINAL, 200, 0, b"{}")
    assert waiter.wait(FakeConnection(), "call") == (200, 0, b"{}")  # type: ignore[arg-type]


def test_a_stray_switch_does_not_end_the_wait() -> None:
    connection = FakeConnection()
    waiters: list[Waiter] = []

    def call() -> Any:
        waiters.append(Waiter())
        return waiters[0].wait(connection, "call")  # type: ignore[arg-type]

    caller = gevent.spawn(call)
    wait_for(lambda: waiters and waiters[0]._is_parked)
    gevent.get_hub().loop.run_callback(caller.switch, "not for you")
    gevent.sleep(0)
    gevent.sleep(0)
    assert not caller.ready()
    gevent.get_hub().loop.run_callback(waiters[0], FINAL, 200, 0, b"{}")
    assert caller.get(timeout=5) == (200, 0, b"{}")
    assert connection.cancelled == []


def test_a_part_is_not_the_reply() -> None:
    waiter = Waiter()
    waiter(PARTIAL, 200, 0, b"{}")
    assert waiter.reply is None


def test_a_waiter_that_is_killed_cancels_and_a_late_reply_reaches_nobody() -> None:
    connection = FakeConnection()
    waiters: list[Waiter] = []

    def call() -> None:
        waiters.append(Waiter())
        try:
            waiters[0].wait(connection, "call")  # type: ignore[arg-type]
        finally:
            gevent.sleep(0.01)  # the greenlet's next wait

    caller = gevent.spawn(call)
    wait_for(lambda: waiters and waiters[0]._is_parked)
    caller.kill(block=False)
    wait_for(lambda: connection.cancelled == ["call"])
    waiters[0](FINAL, 200, 0, b"{}")
    assert not caller.ready()
    caller.join(5)


# --- later -------------------------------------------------------------------------------------------


def test_a_lazy_response_is_had_once_it_is_there_and_again() -> None:
    lazy = LazyResponse("/a")
    assert not lazy.is_ready()
    lazy.on_reply(*final(200, 5))
    assert lazy.is_ready()
    assert lazy.get().body == lazy.get(1.0).body == 5
    assert lazy.get().path == "/a"


def test_a_lazy_response_that_is_not_there_in_time_may_be_asked_for_again() -> None:
    lazy = LazyResponse("/a")
    with pytest.raises(DeadlineExceeded):
        lazy.get(0.01)
    with pytest.raises(TimeoutError):
        lazy.get(0.0)
    lazy.on_reply(*final(200, 5))
    assert lazy.get(0.0).body == 5


def test_a_lazy_response_that_was_cancelled_is_499_for_whoever_asks(mesh: Mesh) -> None:
    ended: list[int] = []

    def endless() -> None:
        try:
            gevent.sleep(3600)
        finally:
            ended.append(1)

    mesh.service(endless)
    lazy = mesh.client().request_lazy("svc", "/endless")
    wait_for(lambda: not drained(mesh.router.status()))
    lazy.cancel()
    assert lazy.get().status_code == 499
    wait_for(lambda: ended == [1])
    lazy.cancel()  # twice is once


def test_a_lazy_response_ends_at_its_deadline(mesh: Mesh) -> None:
    mesh.service().register_function(lambda: gevent.sleep(60), "sleepy")
    lazy = mesh.client().request_lazy("svc", "/sleepy", timeout=0.05)
    assert lazy.get().status_code == 504


# --- streams -----------------------------------------------------------------------------------------


def count(n: int, sent: list[int] | None = None) -> Iterator[int]:
    for i in range(n):
        if sent is not None:
            sent.append(i)
        yield i


def test_a_stream_gives_its_parts_in_order_and_ends(mesh: Mesh) -> None:
    mesh.service(count)
    stream = mesh.client().request_stream("svc", "/count", {"n": 100})
    assert list(stream) == list(range(100))
    assert stream.response is not None
    assert stream.response.status_code == 200
    assert list(stream) == []


def test_parts_may_be_bytes(mesh: Mesh) -> None:
    mesh.service().register_function(lambda: iter([b"a", b"", b"\xff"]), "parts")
    assert list(mesh.client().request_stream("svc", "/parts")) == [b"a", b"", b"\xff"]


def test_one_reply_is_a_stream_of_one_part(mesh: Mesh) -> None:
    mesh.service().register_function(lambda: 7, "seven")
    assert list(mesh.client().request_stream("svc", "/seven")) == [7]


def test_a_caller_that_takes_one_reply_gets_the_parts_as_a_list(mesh: Mesh) -> None:
    mesh.service(count)
    assert mesh.client().request("svc", "/count", {"n": 3}).body == [0, 1, 2]


def test_a_stream_that_nobody_reads_stops_at_its_window_and_goes_on_as_it_is_read(mesh: Mesh) -> None:
    sent: list[int] = []
    mesh.service().register_function(lambda: count(100, sent), "count")
    stream = mesh.client().request_stream("svc", "/count")
    wait_for(lambda: len(sent) >= STREAM_WINDOW)
    assert next(stream) == 0
    wait_for(lambda: len(stream.on_reply.arrived) == STREAM_WINDOW - 1)
    assert len(sent) <= STREAM_WINDOW + 1
    assert list(stream) == list(range(1, 100))


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_a_stream_that_is_left_early_stops_its_handler(mesh: Mesh, how: str) -> None:
    ended: list[int] = []

    def endless() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            ended.append(1)

    mesh.service(endless, count)
    client = mesh.client()
    stream = client.request_stream("svc", "/endless")
    if how == "with":
        with stream:
            assert next(stream) == 0
    else:
        assert next(stream) == 0
        if how == "close":
            stream.close()
    if how == "drop":
        del stream
        gc.collect()
    else:
        assert list(stream) == []
    wait_for(lambda: ended == [1])
    wait_for(lambda: drained(mesh.router.status()))
    assert list(client.request_stream("svc", "/count", {"n": 2})) == [0, 1]


def test_a_failure_after_some_parts_is_raised_where_it_happened(mesh: Mesh) -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("the third")

    mesh.service(broken)
    stream = mesh.client().request_stream("svc", "/broken")
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(ValueError, match="the third") as raised:
        next(stream)
    assert isinstance(raised.value, RemoteError)
    with pytest.raises(StopIteration):
        next(stream)


def test_a_part_that_JSON_cannot_hold_ends_the_stream_with_a_failure(mesh: Mesh) -> None:
    mesh.service().register_function(lambda: iter([1, object()]), "parts")
    stream = mesh.client().request_stream("svc", "/parts")
    assert next(stream) == 1
    with pytest.raises(RemoteError) as raised:
        next(stream)
    assert raised.value.type == "NotSerializable"


def test_a_stream_that_fails_before_its_first_part_raises(mesh: Mesh) -> None:
    mesh.service(count)
    client = mesh.client()
    with pytest.raises(BadRequest) as raised:
        next(client.request_stream("svc", "/count", {"m": 1}))
    assert raised.value.status == 422
    with pytest.raises(BadRequest) as raised:
        next(client.request_stream("nobody", "/count"))
    assert raised.value.status == 404


def test_a_streams_timeout_runs_to_the_first_part_and_between_parts(mesh: Mesh) -> None:
    def slow(first: float, then: float) -> Iterator[int]:
        gevent.sleep(first)
        yield 0
        for i in range(1, 4):
            gevent.sleep(then)
            yield i

    mesh.service(slow)
    client = mesh.client()
    with pytest.raises(DeadlineExceeded):
        next(client.request_stream("svc", "/slow", {"first": 9, "then": 0}, timeout=0.05))
    stream = client.request_stream("svc", "/slow", {"first": 0, "then": 9}, timeout=0.05)
    assert next(stream) == 0
    with pytest.raises(DeadlineExceeded):
        next(stream)


@pytest.mark.slow
def test_a_stream_may_last_longer_than_its_timeout_in_all(mesh: Mesh) -> None:
    def slow() -> Iterator[int]:
        for i in range(5):
            gevent.sleep(0.15)
            yield i

    mesh.service(slow)
    assert list(mesh.client().request_stream("svc", "/slow", timeout=0.4)) == list(range(5))


def test_a_stream_grants_half_a_window_at_a_time() -> None:
    connection = FakeConnection()
    stream = ResponseStream("/a")
    stream.bind(connection, "call")  # type: ignore[arg-type]
    for i in range(STREAM_WINDOW):
        stream.on_reply(*part(i))
    for _ in range(STREAM_WINDOW):
        next(stream)
    assert connection.granted == [STREAM_WINDOW // 2] * 2
    stream.on_reply(*final())
    assert list(stream) == []
    stream.close()
    del stream
    gc.collect()
    assert connection.cancelled == []


def test_the_status_of_the_first_part_is_known_while_the_rest_comes() -> None:
    stream = ResponseStream("/a")
    assert stream.response is None
    envelope, flags = encode_response(1, "made", {"X": "y"})
    stream.on_reply(PARTIAL, 201, flags, envelope)
    stream.on_reply(*part(2))
    assert [next(stream), next(stream)] == [1, 2]
    assert stream.response is not None
    assert (stream.response.status_code, stream.response.headers) == (201, {"X": "y"})


def test_a_sender_that_keeps_to_no_window_is_cut_off_before_it_fills_the_process() -> None:
    stream = ResponseStream("/flood")
    parts = stream.on_reply
    for _ in range(100):
        parts(PARTIAL, 200, 0, b'{"body":"%s"}' % (b"x" * 1024 * 1024))
    taken: list[str] = []
    with pytest.raises(InstanceLost, match="more than its window"):
        taken.extend(stream)
    assert 2 * STREAM_WINDOW <= len(taken) < 3 * STREAM_WINDOW


def test_a_streams_next_part_can_be_waited_for_with_patience_of_ones_own(mesh: Mesh) -> None:
    """``wait`` tells whether ``next`` would return at once, a part or the end; the call goes on."""
    go = Event()

    def parts() -> Iterator[int]:
        yield 1
        go.wait(10.0)
        yield 2

    mesh.service(parts)
    stream = mesh.client().request_stream("svc", "/parts")
    assert stream.wait(5.0)
    assert next(stream) == 1
    assert not stream.wait(0.0)
    assert not stream.wait(0.02)
    go.set()
    assert stream.wait(5.0)
    assert next(stream) == 2
    assert stream.wait(5.0)
    assert next(stream, None) is None
    assert stream.wait(0.0)


def test_a_stream_that_another_greenlet_closes_ends_for_who_waits(mesh: Mesh) -> None:
    """Neither ``next`` nor ``wait`` waits for what will not come."""

    def parts() -> Iterator[int]:
        yield 1
        gevent.sleep(60)

    mesh.service(parts)
    stream = mesh.client().request_stream("svc", "/parts")
    assert next(stream) == 1
    reader = gevent.spawn(next, stream, "the end")
    waiter = gevent.spawn(stream.wait, 30.0)
    gevent.sleep(0)
    stream.close()
    assert reader.get(timeout=5.0) == "the end"
    assert waiter.get(timeout=5.0)


def test_a_stream_begins_with_its_response_whole_or_in_parts(mesh: Mesh) -> None:
    def whole() -> str:
        return "all"

    def parts() -> Iterator[str]:
        yield "a"
        yield "b"

    mesh.service(whole, parts)
    client = mesh.client()
    response = client.request_stream("svc", "/whole").begin()
    assert (response.status_code, response.body) == (200, "all")
    response = client.request_stream("svc", "/parts").begin()
    assert (response.status_code, list(response.body)) == (200, ["a", "b"])
    assert client.request_stream("svc", "/none").begin().status_code == 404
    assert client.request_stream("nobody", "/").begin().status_code == 404


def test_a_stream_that_is_closed_before_it_begins_says_so() -> None:
    stream = ResponseStream("/a")
    stream.bind(FakeConnection(), 1)
    waiting = gevent.spawn(stream.begin)
    gevent.sleep(0)
    stream.close()
    assert waiting.get(timeout=5.0).status_code == 499


# --- the answers to a command ------------------------------------------------------------------------


def answer(wid: str, kind: int = PARTIAL, code: int = 200) -> tuple[int, int, int, bytes]:
    envelope, flags = encode_response(wid.upper(), headers={"Wid": wid})
    return kind, code, flags, envelope


def test_answers_are_given_with_whose_they_are_whatever_their_status() -> None:
    answers = Answers("/ping")
    for reply in (answer("a"), answer("b", code=500), final()):
        answers.on_reply(*reply)
    assert [(wid, response.status_code, response.body) for wid, response in answers] == [
        ("a", 200, "A"),
        ("b", 500, "B"),
    ]
    assert list(answers) == []


def test_what_the_mesh_says_of_an_instance_is_no_answer_and_its_last_word_is_raised() -> None:
    answers = Answers("/ping")
    for reply in (part("lost"), answer("a"), final(502)):
        answers.on_reply(*reply)
    assert next(answers)[0] == "a"
    with pytest.raises(InstanceLost):
        next(answers)
    assert list(answers) == []


def test_the_only_answer_may_be_the_last() -> None:
    answers = Answers("/ping")
    answers.on_reply(*answer("a", FINAL))
    assert [wid for wid, _ in answers] == ["a"]


def test_when_nobody_was_heard_what_was_said_in_their_stead_is_raised() -> None:
    """A refusal bears nobody's name: alone it is the outcome, beside an answer it is not."""
    refusal = PARTIAL, 401, 0, b'{"message":"it bears no seal"}'
    answers = Answers("/ping")
    for reply in (refusal, part("odd"), final()):
        answers.on_reply(*reply)
    with pytest.raises(BadRequest, match="it bears no seal"):
        next(answers)
    assert list(answers) == []
    for replies in ([part("odd"), final()], [final()]):
        silent = Answers("/ping")
        for reply in replies:
            silent.on_reply(*reply)
        with pytest.raises(DeadlineExceeded, match="no instance has answered"):
            next(silent)
    heard = Answers("/ping")
    for reply in (refusal, answer("a"), final()):
        heard.on_reply(*reply)
    assert [wid for wid, _ in heard] == ["a"]


def test_answers_that_are_closed_are_cancelled_once() -> None:
    connection, call = FakeConnection(), object()
    answers = Answers("/ping")
    answers.bind(connection, call)  # type: ignore[arg-type]
    with answers:
        answers.on_reply(*answer("a"))
    answers.close()
    assert connection.cancelled == [call]
    assert list(answers) == []


def test_what_comes_while_too_much_is_unread_is_no_answer() -> None:
    answers = Answers("/ping")
    envelope, flags = encode_response(["x" * 1_000_000], headers={"Wid": "one"})
    for _ in range(100):
        answers.on_reply(PARTIAL, 200, flags, envelope)
    answers.on_reply(*final())
    assert len(list(answers)) == MAX_UNREAD_BYTES // len(envelope)


def test_whoever_waits_for_an_answer_hears_of_the_close() -> None:
    answers = Answers("/ping")
    answers.bind(FakeConnection(), None)  # type: ignore[arg-type]
    waiting = gevent.spawn(list, answers)
    gevent.sleep(0)
    answers.close()
    assert waiting.get(timeout=5.0) == []
