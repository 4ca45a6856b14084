"""A request that is asked again while nobody is there, and given up only where that is honest."""

from __future__ import annotations

from time import monotonic
from typing import Any

import pytest

from butler_mesh.compat.majortomo.request import END, FOREVER_S, LONGEST_PAUSE_S, PAUSE_S, NotYet, Request
from butler_mesh.errors import RequestFailed, failure

Outcome = Any


class Stream:
    """What a client gives for a request: parts, then the end, or a failure; or, for a while, nothing."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)

    def wait(self, timeout: float) -> bool:
        """Tell whether there is an outcome; nothing comes by waiting."""
        return bool(self.outcomes)

    def __next__(self) -> Any:
        found = self.outcomes.pop(0)
        if self.outcomes == [] and isinstance(found, StopIteration):
            self.outcomes.append(StopIteration())
        if isinstance(found, Exception):
            raise found
        return found


class FakeClient:
    """Gives these streams, one for each time that it is asked; notes what was asked."""

    def __init__(self, *streams: Stream) -> None:
        self.streams = list(streams)
        self.asked: list[tuple[Any, ...]] = []

    def request_stream(self, service: str, path: str, **options: Any) -> Stream:
        self.asked.append((service, path, options))
        return self.streams[len(self.asked) - 1]


def request(*streams: Stream, service: str = "svc") -> tuple[Request, FakeClient]:
    client = FakeClient(*streams)
    return Request(client, service, [b"x"]), client  # type: ignore[arg-type]


def refusal(status: int, retry_after_s: float | None = None) -> RequestFailed:
    return failure(status, "why", retry_after_s=retry_after_s)


def soon(seconds: float = 5.0) -> float:
    return monotonic() + seconds


def test_it_is_asked_once_with_its_frames_and_a_deadline_that_the_wire_can_say() -> None:
    """A month: the wire counts milliseconds in 32 bits, which end at 49 days."""
    _, client = request(Stream())
    assert client.asked == [("svc", "/", {"body": [b"x"], "timeout": FOREVER_S})]
    assert FOREVER_S * 1000 < 0xFFFFFFFF


def test_parts_come_in_order_and_then_the_end() -> None:
    """END is none of the values that a part may have."""
    made, _ = request(Stream([b"1"], [b"2"], StopIteration()))
    assert [made.take(soon()) for _ in range(3)] == [[b"1"], [b"2"], END]


def test_a_part_may_be_anything_that_JSON_holds() -> None:
    """Also null, which is not the end."""
    made, _ = request(Stream(None, StopIteration()))
    assert [made.take(soon()) for _ in range(2)] == [None, END]


def test_nothing_in_time_is_NotYet_and_the_part_may_be_taken_later() -> None:
    """It is not sent again for that."""
    stream = Stream()
    made, client = request(stream)
    with pytest.raises(NotYet):
        made.take(soon(0.01))
    stream.outcomes += [[b"late"], StopIteration()]
    assert made.take(soon()) == [b"late"]
    assert len(client.asked) == 1


@pytest.mark.slow
@pytest.mark.parametrize("status", [404, 429, 503])
def test_what_was_not_started_is_asked_again_after_a_pause(status: int) -> None:
    """Its reader does not learn of it, unless it runs out of time."""
    made, client = request(Stream(refusal(status)), Stream(refusal(status)), Stream([b"answer"]))
    began = monotonic()
    assert made.take(soon()) == [b"answer"]
    assert len(client.asked) == 3
    assert 2 * PAUSE_S <= monotonic() - began < 3 * PAUSE_S + 1.0


@pytest.mark.slow
def test_the_pause_is_what_the_router_asks_for_but_not_over_a_second() -> None:
    """Or whoever waits would wait for a worker that has long been there."""
    made, _ = request(Stream(refusal(503, 0.6)), Stream(refusal(503, 600)), Stream([b"answer"]))
    began = monotonic()
    made.take(soon())
    assert 0.6 + LONGEST_PAUSE_S <= monotonic() - began < 3.0


def test_time_that_runs_out_in_a_pause_is_NotYet_and_says_why() -> None:
    """The next to wait goes on where this one stopped: it is asked again when the pause is over."""
    made, client = request(Stream(refusal(404)), Stream([b"answer"]))
    with pytest.raises(NotYet, match="404 why"):
        made.take(soon(0.02))
    assert len(client.asked) == 1
    assert made.take(soon()) == [b"answer"]


@pytest.mark.parametrize("status", [400, 401, 413, 422, 500, 502, 504])
def test_what_may_have_been_started_or_is_refused_for_good_is_not_asked_again(status: int) -> None:
    """Whoever waits is told at once."""
    made, client = request(Stream(refusal(status)))
    with pytest.raises(RequestFailed) as raised:
        made.take(soon())
    assert raised.value.status == status
    assert len(client.asked) == 1


@pytest.mark.parametrize("status", [404, 429, 503])
def test_what_has_begun_is_not_asked_again(status: int) -> None:
    """Its reader has parts of a reply: asked again they would come twice."""
    made, client = request(Stream([b"1"], refusal(status)))
    assert made.take(soon()) == [b"1"]
    with pytest.raises(RequestFailed):
        made.take(soon())
    assert len(client.asked) == 1


def test_who_asks_again_for_what_will_not_come_is_told_again_but_not_at_once() -> None:
    """A loop that only waits for the reply does not spin; with timeout 0 it looks, and is told."""
    made, _ = request(Stream(refusal(502)))
    for patience_s, at_least_s in ((5.0, 0.0), (5.0, PAUSE_S), (0.0, 0.0)):
        began = monotonic()
        with pytest.raises(RequestFailed):
            made.take(soon(patience_s))
        assert at_least_s <= monotonic() - began < PAUSE_S + 1.0


def test_a_part_does_not_say_that_it_is_the_last_but_what_follows_does() -> None:
    """So the next request may be sent when the last part was taken."""
    made, _ = request(Stream([b"1"], [b"2"], StopIteration()))
    assert not made.is_read()
    assert made.take(soon()) == [b"1"]
    assert not made.is_read()
    assert made.take(soon()) == [b"2"]
    assert made.is_read()
    assert made.take(soon()) is END


def test_a_reply_that_may_go_on_is_not_read() -> None:
    """Until its end has come."""
    stream = Stream([b"1"])
    made, _ = request(stream)
    made.take(soon())
    assert not made.is_read()
    stream.outcomes.append(StopIteration())
    assert made.is_read()


def test_looking_whether_it_is_read_loses_neither_part_nor_failure() -> None:
    """Whoever reads on gets both."""
    made, _ = request(Stream([b"1"], [b"2"], refusal(502)))
    assert made.take(soon()) == [b"1"]
    assert [made.is_read(), made.is_read()] == [False, False]
    assert made.take(soon()) == [b"2"]
    assert [made.is_read(), made.is_read()] == [False, False]
    with pytest.raises(RequestFailed):
        made.take(soon())


@pytest.mark.parametrize(("outcome", "answer"), [({"instances": 1}, b"200"), (refusal(404), b"404")])
def test_mmi_service_is_answered_by_a_status(outcome: Outcome, answer: bytes) -> None:
    """RFC 8: a name in a frame, a status in a frame; 404 is an answer and nothing to wait for."""
    made, client = request(Stream(outcome, StopIteration()), service="mmi.service")
    assert client.asked[0][2]["arguments"] == {"service": "x"}
    assert made.take(soon()) == [answer]
    assert made.take(soon()) is END
