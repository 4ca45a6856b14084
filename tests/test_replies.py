"""From what a handler returned or raised to what its caller is sent, without a wire between."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from butler_mesh import replies, tracing
from butler_mesh.connections.base import Delivery
from butler_mesh.errors import BadRequest, NotSerializable, RemoteError, Stopped, Unavailable, UsageError
from butler_mesh.messages import ServiceRequest, ServiceResponse, decode_response, encode_request
from butler_mesh.protocol.mesh import ONE_WAY, STREAM
from butler_mesh.replies import MAX_MESSAGE, MAX_TRACEBACK, answer, send_reply


class Recorder(Delivery):
    """A delivery that keeps its replies."""

    def __init__(self, request: ServiceRequest | bytes = b"{}", flags: int = 0) -> None:
        if isinstance(request, ServiceRequest):
            self.envelope, own = encode_request(request)
            flags |= own
        else:
            self.envelope = request
        self.flags = flags
        self.target = "svc"
        self.deadline = 100.0
        self.number = 7
        self.replies: list[tuple[ServiceResponse, bool]] = []

    def reply(self, status: int, envelope: bytes, *, flags: int = 0, final: bool = True) -> None:
        self.replies.append((decode_response(status, flags, envelope), final))

    def wait_for_window(self) -> None:
        pass

    @property
    def only(self) -> ServiceResponse:
        [(response, final)] = self.replies
        assert final
        return response


def answered(handle: Callable[[ServiceRequest], Any], **options: Any) -> ServiceResponse:
    delivery = Recorder()
    answer(delivery, handle, **options)
    return delivery.only


def raising(error: BaseException) -> Callable[[ServiceRequest], ServiceResponse]:
    def handle(request: ServiceRequest) -> ServiceResponse:
        raise error

    return handle


def test_what_a_handler_returns_to_a_one_way_request_is_not_even_encoded() -> None:
    delivery = Recorder(flags=ONE_WAY)
    assert answer(delivery, lambda request: ServiceResponse(201, body=object()))
    assert (delivery.only.status_code, delivery.only.body) == (201, None)


def test_but_a_refusal_keeps_its_words() -> None:
    delivery = Recorder(flags=ONE_WAY)
    assert answer(delivery, lambda request: ServiceResponse(503, "the disk is full"))
    assert (delivery.only.status_code, delivery.only.status_msg) == (503, "the disk is full")


def test_a_handler_finds_what_was_sent_and_where_it_came_from() -> None:
    delivery = Recorder(ServiceRequest("/a", "get", {"x": 1}))
    seen: list[ServiceRequest] = []

    def handle(request: ServiceRequest) -> ServiceResponse:
        seen.append(request)
        return ServiceResponse(201, "made", [1], {"X": "y"})

    answer(delivery, handle)
    [request] = seen
    assert (request.path, request.method, request.arguments) == ("/a", "get", {"x": 1})
    assert (request.deadline, request.target, request.conn_id) == (100.0, "svc", 7)
    response = delivery.only
    assert (response.status_code, response.status_msg, response.body) == (201, "made", [1])
    assert response.headers == {"X": "y"}


def test_an_envelope_that_is_none_is_400_and_reaches_no_handler() -> None:
    delivery = Recorder(b"nonsense")
    answer(delivery, raising(AssertionError("reached")))
    assert delivery.only.status_code == 400


def test_a_failure_that_is_meant_as_the_reply_is_it(caplog: pytest.LogCaptureFixture) -> None:
    response = answered(raising(Unavailable("later", status=503, body=[1], retry_after_s=0.5)))
    assert (response.status_code, response.status_msg, response.body) == (503, "later", [1])
    assert response.headers["Retry-After"] == "0.5"
    assert response.error == {}
    assert not caplog.records


def test_a_failure_whose_body_JSON_cannot_hold_goes_without_it() -> None:
    response = answered(raising(BadRequest("why", status=409, body=object())))
    assert (response.status_code, response.status_msg, response.body) == (409, "why", None)


def test_the_failure_of_a_nested_call_is_500_with_its_type() -> None:
    nested = ServiceResponse(503, "busy", headers={"Retry-After": "1"}).failure()
    response = answered(raising(nested))
    assert (response.status_code, response.error["type"]) == (500, "Unavailable")
    assert "Retry-After" not in response.headers


def test_a_remote_error_of_a_nested_call_keeps_the_type_and_message_it_had() -> None:
    nested = ServiceResponse(
        500, error={"type": "TypeError", "message": "why", "traceback": "there"}
    ).failure()
    assert isinstance(nested, RemoteError)
    response = answered(raising(nested))
    assert (response.error["type"], response.error["message"]) == ("TypeError", "why")
    assert "there" in response.error["traceback"]


def test_any_other_exception_is_500_with_type_message_and_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "butler_mesh.service"):
        response = answered(raising(ValueError("why")))
    assert (response.status_code, response.status_msg) == (500, "ValueError: why")
    assert response.error["type"] == "ValueError"
    assert response.error["message"] == "why"
    assert response.error["traceback"].startswith("Traceback (most recent call last)")
    assert [record.getMessage() for record in caplog.records] == ["handler-failed 'svc'"]


def test_tracebacks_can_be_kept_at_home() -> None:
    response = answered(raising(ValueError("why")), tracebacks=False)
    assert dict(response.error) == {"type": "ValueError", "message": "why"}


def test_the_message_of_a_KeyError_is_its_key_and_not_its_repr() -> None:
    assert answered(raising(KeyError("missing key"))).error["message"] == "missing key"


def test_of_a_long_traceback_the_innermost_part_travels() -> None:
    response = answered(raising(ValueError("x" * 50_000 + "the end")))
    assert len(response.error["traceback"]) == MAX_TRACEBACK
    assert response.error["traceback"].rstrip().endswith("the end")


def test_a_handler_that_is_stopped_answers_nothing_here_but_in_the_engine() -> None:
    delivery = Recorder()
    with pytest.raises(Stopped):
        answer(delivery, raising(Stopped(504, "deadline")))
    assert delivery.replies == []


@pytest.mark.parametrize("code", [0, 99, 600, 70_000, -1, "200", None, 200.0])
def test_a_number_that_is_no_status_is_500(code: Any) -> None:
    with pytest.raises(UsageError, match="no status"):
        send_reply(Recorder(), code, None)
    response = answered(lambda request: ServiceResponse(code))
    assert response.status_code == 500
    assert "no status" in response.status_msg


@pytest.mark.parametrize("code", [100, 299, 599])
def test_any_status_from_100_to_599_is_a_handlers_to_choose(code: int) -> None:
    assert answered(lambda request: ServiceResponse(code)).status_code == code


def test_a_reply_that_JSON_cannot_hold_is_not_sent() -> None:
    delivery = Recorder()
    with pytest.raises(NotSerializable):
        send_reply(delivery, 200, object())
    assert delivery.replies == []


def test_an_iterator_goes_out_part_by_part_to_a_stream_and_as_a_list_to_others() -> None:
    streaming = Recorder(flags=STREAM)
    answer(streaming, lambda request: ServiceResponse(206, "parts", iter([1, 2])))
    assert [(r.status_code, r.body, final) for r, final in streaming.replies] == [
        (206, 1, False),
        (206, 2, False),
        (206, None, True),
    ]
    plain = Recorder()
    answer(plain, lambda request: ServiceResponse(206, "parts", iter([1, 2])))
    assert (plain.only.status_code, plain.only.body) == (206, [1, 2])


def test_the_trace_of_a_request_is_the_handlers() -> None:
    token = tracing.current.set("")
    seen: list[str] = []

    def handle(request: ServiceRequest) -> ServiceResponse:
        seen.append(tracing.current.get())
        return ServiceResponse()

    answer(Recorder(ServiceRequest(headers={"traceparent": "00-abc"})), handle)
    assert seen == ["00-abc"]
    tracing.current.reset(token)


def test_what_a_generator_returns_is_the_body_of_the_last_reply() -> None:
    """The parts as they come, and with the outcome what was said last; all in one where one is asked for."""

    def parts() -> Any:
        yield b"1"
        yield b"2"
        return b"end"

    def nothing_before() -> Any:
        return b"end"
        yield

    for make, streamed, gathered in (
        (parts, [b"1", b"2", b"end"], [b"1", b"2", b"end"]),
        (nothing_before, [b"end"], [b"end"]),
    ):
        stream = Recorder(flags=STREAM)
        answer(stream, lambda request, make=make: ServiceResponse(body=make()))
        assert [response.body for response, _ in stream.replies] == streamed
        assert [final for _, final in stream.replies] == [False] * (len(streamed) - 1) + [True]
        assert answered(lambda request, make=make: ServiceResponse(body=make())).body == gathered


@pytest.mark.parametrize("kind", [ValueError, KeyError])
def test_of_a_message_without_an_end_the_beginning_travels(kind: type[Exception]) -> None:
    """Its caller gets the type, and a text that can be printed."""

    def fail(request: ServiceRequest) -> Any:
        raise kind("x" * 9_000_000)

    response = answered(fail)
    assert (response.status_code, response.error["type"]) == (500, kind.__name__)
    assert response.error["message"] == "x" * MAX_MESSAGE + "…"
    assert len(response.status_msg) < MAX_MESSAGE + 20
    assert len(response.error["traceback"]) <= MAX_TRACEBACK


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([[b"1", b"2"], [b"3"]], [b"1", b"2", b"3"]),
        ([b"1", [], [b"2"]], [b"1", b"2"]),
        ([[], []], []),
        ([], []),
    ],
)
def test_parts_of_frames_gather_into_one_list_for_a_caller_who_takes_one_reply(
    parts: Any, whole: Any
) -> None:
    assert answered(lambda request: ServiceResponse(body=iter(parts)), frames=True).body == whole


def test_a_generator_without_end_keeps_neither_its_deadline_from_itself_nor_all_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replies, "MAX_PARTS", 5 * replies.PARTS_IN_A_TURN)
    response = answered(lambda request: ServiceResponse(body=itertools.count()))
    with pytest.raises(RemoteError, match="too many for one reply"):
        response.raise_for_status()

    def turns() -> Any:
        with gevent.Timeout(0.0, Stopped(504, "too late")):
            yield from itertools.count()

    monkeypatch.undo()
    with pytest.raises(Stopped, match="too late"):
        answered(lambda request: ServiceResponse(body=turns()))
