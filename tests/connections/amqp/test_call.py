"""Where a request goes."""

from __future__ import annotations

import pytest

from butler_mesh.connections.amqp.call import Call
from butler_mesh.connections.base import ALL
from butler_mesh.protocol.mesh import DURABLE, ONE_WAY
from butler_mesh.protocol.wheel import NEVER


def routed(target: str, flags: int = 0, owner: str = "") -> tuple[str, list[str]]:
    call = Call("me.1", target, b"", flags, 0.0, lambda *reply: None)
    call.route(owner)
    return call.queue, call.queues


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("svc", ("svc", [])),
        ("/a/b", ("/a/b", ["/a", "/"])),
        ("/", ("/", [])),
        ("x" * 255, ("x" * 255, [])),
        ("x" * 256, ("", [])),
        ("ö" * 128, ("", [])),
        ("", ("", [])),
    ],
)
def test_a_name_is_a_queue_and_a_path_has_several_in_question(
    target: str, expected: tuple[str, list[str]]
) -> None:
    assert routed(target) == expected


def test_a_known_owner_is_asked_first_and_the_others_if_it_is_gone() -> None:
    assert routed("/a/b", owner="/a") == ("/a", ["/a/b", "/a", "/"])


@pytest.mark.parametrize(("target", "queue"), [("svc", "svc:durable"), ("/a", ""), ("x" * 250, "")])
def test_what_is_to_be_stored_has_a_queue_of_its_own(target: str, queue: str) -> None:
    assert routed(target, DURABLE | ONE_WAY)[0] == queue


@pytest.mark.parametrize(
    ("target", "scope", "key"),
    [
        ("mgt.svc", ALL, "mesh.svc"),
        ("mgt.svc-here-0123456789", "svc-here-0123456789", "mesh.mgt.svc-here-0123456789"),
    ],
)
def test_a_command_goes_to_the_queues_that_instances_have_of_their_own(
    target: str, scope: str, key: str
) -> None:
    call = Call("me.1", target, b"", 0, 0.0, lambda *reply: None)
    call.scope = scope
    call.route()
    assert call.address == ("amq.direct", key)


def test_a_request_goes_to_the_queue_of_its_service() -> None:
    call = Call("me.1", "svc", b"", 0, 0.0, lambda *reply: None)
    call.route()
    assert call.address == ("", "svc")


@pytest.mark.parametrize(
    ("deadline", "expiration"), [(12.5, "2500"), (10.0, "1"), (1e12, "2147483647"), (NEVER, "2147483647")]
)
def test_its_time_in_the_queue_is_what_is_left_of_it(deadline: float, expiration: str) -> None:
    call = Call("me.1", "svc", b"", 0, deadline, lambda *reply: None)
    call.route()
    properties = call.properties(10.0)
    assert properties.expiration == expiration
    assert "target" not in properties.headers


def test_a_command_says_whom_it_is_for() -> None:
    call = Call("me.1", "mgt.svc", b"", 0, NEVER, lambda *reply: None)
    call.scope = ALL
    call.route()
    assert call.properties(0.0).headers["target"] == b"mgt.svc"


def test_the_time_of_a_stored_request_is_its_handlers_in_full_however_late_it_was_sent() -> None:
    call = Call("me.1", "svc", b"{}", DURABLE | ONE_WAY, 10.0, lambda *_: None)
    call.patience_s = 8.0
    call.route()
    properties = call.properties(9.5)
    assert properties.expiration is None
    assert properties.headers["patience"] == 8000
