"""How requests and replies travel as AMQP messages."""

from __future__ import annotations

import pytest
from pika import BasicProperties

from butler_mesh.connections.amqp import messages
from butler_mesh.connections.amqp.clocks import Clocks
from butler_mesh.protocol.mesh import FINAL, IDEMPOTENT, ONE_WAY, PARTIAL, RAW, STREAM


def over_the_wire(properties: BasicProperties) -> BasicProperties:
    """Return properties as the far side has them."""
    return BasicProperties().decode(b"".join(properties.encode()))


def a_request(
    flags: int = 0, *, target: str = "svc", remaining_ms: int = 3000, sent_ms: int = 10_000
) -> BasicProperties:
    return over_the_wire(
        messages.request_properties("me.1", target, "svc", flags, remaining_ms, sent_ms, window=7)
    )


@pytest.mark.parametrize("flags", [0, ONE_WAY, IDEMPOTENT, STREAM, RAW, RAW | STREAM | IDEMPOTENT])
def test_a_requests_flags_arrive(flags: int) -> None:
    properties = a_request(flags)
    assert messages.request_flags(properties) == flags
    assert bool(properties.reply_to) is not bool(flags & ONE_WAY)
    assert properties.delivery_mode == 1


def test_who_has_no_return_address_gets_no_reply() -> None:
    properties = a_request()
    properties.reply_to = None
    assert messages.request_flags(properties) & ONE_WAY


@pytest.mark.parametrize("target", ["svc", "/path/below", "/größer"])
def test_a_requests_target_arrives(target: str) -> None:
    assert messages.request_target(a_request(target=target), "svc") == target


@pytest.mark.parametrize(
    ("wall_ms", "left_s"),
    [
        (10_000, 3.0),
        (11_000, 2.0),
        (12_999, 0.001),
        (9_000, 3.0),  # a clock that is behind
        (13_000, 3.0),  # one that is ahead: what has expired is not handed out
        (99_000, 3.0),
    ],
)
def test_the_time_in_the_queue_is_taken_off_unless_a_clock_was_set(wall_ms: int, left_s: float) -> None:
    clocks = Clocks()
    assert messages.remaining_s(a_request(), clocks, 10_000, 0.0) == 3.0
    assert messages.remaining_s(a_request(), clocks, wall_ms, 0.0) == left_s


def test_a_request_without_an_end_has_none() -> None:
    assert messages.remaining_s(BasicProperties(), Clocks(), 0, 0.0) is None


@pytest.mark.parametrize(("final", "kind"), [(True, FINAL), (False, PARTIAL)])
def test_a_reply_arrives(final: bool, kind: int) -> None:
    properties = over_the_wire(messages.reply_properties("me.1", 207, RAW | ONE_WAY, final=final))
    assert messages.reply_kind(properties) == (kind, 207, RAW)


@pytest.mark.parametrize(
    "properties",
    [
        BasicProperties(),
        BasicProperties(type="final"),
        BasicProperties(type="final", headers={"status": "200"}),
        BasicProperties(type="request", headers={"status": 200}),
        BasicProperties(type="final", headers={"status": 200, "flags": None}),
    ],
)
def test_what_is_no_reply_is_a_value_error(properties: BasicProperties) -> None:
    with pytest.raises(ValueError, match=r"number|neither"):
        messages.reply_kind(properties)


def test_a_request_that_was_given_back_tells_nothing_of_its_clients_clock() -> None:
    clocks = Clocks()
    own, again = a_request(remaining_ms=8000), a_request(remaining_ms=8000, sent_ms=15_000)
    again.headers["clock"] = "svc-host-1"
    # The client's clock is five seconds behind; the instance's, which gave one back, is not.
    assert messages.remaining_s(own, clocks, 15_000, 0.0) == 8.0
    assert messages.remaining_s(again, clocks, 15_000, 0.0) == 8.0
    assert messages.remaining_s(own, clocks, 15_000, 0.0) == 8.0
