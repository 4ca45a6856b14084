"""One command for many: whom it asks, what it hands on, and when it ends."""

from __future__ import annotations

from typing import Any

from butler_mesh import codec
from butler_mesh.connections.base import ClientConnection, OnReply
from butler_mesh.connections.gathering import Gathering
from butler_mesh.protocol.mesh import FINAL, PARTIAL

ANSWER = b'{"body":1}'


class Recorder(ClientConnection):
    """Notes what is submitted, for the test to answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, OnReply]] = []
        self.cancelled: list[Any] = []

    def submit(
        self,
        target: str,
        envelope: bytes,
        *,
        deadline: float,
        flags: int,
        on_reply: OnReply,
        window: int = 0,
        scope: str = "",
    ) -> Any:
        assert deadline == 7.0
        self.asked.append((scope or target, on_reply))
        return len(self.asked)

    def cancel(self, call: Any) -> None:
        self.cancelled.append(call)

    def grant(self, call: Any, parts: int) -> None: ...

    def close(self, drain_s: float) -> list[tuple[int, str]]:
        return []

    def abandon(self) -> None: ...

    def answer(self, which: int, code: int, envelope: bytes = ANSWER) -> None:
        self.asked[which][1](FINAL, code, 0, envelope)


def gather(*wids: str) -> tuple[Recorder, Gathering, list[tuple[int, int, bytes]]]:
    """Return the client, the gathering and what it hands on, the router having named these instances."""
    client, heard = Recorder(), list[tuple[int, int, bytes]]()
    gathering = Gathering(
        client,
        "svc",
        b"{}",
        deadline=7.0,
        flags=0,
        on_reply=lambda kind, code, flags, envelope: heard.append((kind, code, envelope)),
    )
    client.answer(0, 200 if wids else 404, codec.dumps({"body": wids}))
    return client, gathering, heard


def test_each_is_asked_by_its_name_and_the_last_answer_is_followed_by_the_end() -> None:
    client, _, heard = gather("one", "two")
    assert [whom for whom, _ in client.asked] == ["mmi.instances", "one", "two"]
    client.answer(2, 200)
    assert heard == [(PARTIAL, 200, ANSWER)]
    client.answer(1, 500)
    assert heard == [(PARTIAL, 200, ANSWER), (PARTIAL, 500, ANSWER), (FINAL, 200, b"{}")]


def test_where_nobody_is_the_end_is_404_and_names_the_service() -> None:
    _, _, heard = gather()
    ((kind, code, envelope),) = heard
    assert (kind, code, b"svc" in envelope) == (FINAL, 404, True)


def test_a_router_that_cannot_be_asked_is_the_end() -> None:
    client, heard = Recorder(), list[int]()
    Gathering(
        client,
        "svc",
        b"{}",
        deadline=7.0,
        flags=0,
        on_reply=lambda kind, code, *_: heard.extend((kind, code)),
    )
    client.answer(0, 503)
    assert heard == [FINAL, 503]


def test_those_who_do_not_answer_in_time_are_passed_over_unless_it_is_everybody() -> None:
    client, _, heard = gather("one", "two")
    client.answer(1, 504)
    client.answer(2, 200)
    assert [(kind, code) for kind, code, _ in heard] == [(PARTIAL, 200), (FINAL, 200)]
    client, _, heard = gather("one", "two")
    client.answer(1, 504)
    client.answer(2, 504)
    assert [(kind, code) for kind, code, _ in heard] == [(FINAL, 504)]


def test_a_client_that_is_closed_is_the_end() -> None:
    client, _, heard = gather("one", "two")
    client.answer(1, 499)
    client.answer(2, 499)
    assert [(kind, code) for kind, code, _ in heard] == [(FINAL, 499)]


def test_who_cancels_hears_no_more() -> None:
    client, gathering, heard = gather("one", "two")
    gathering.cancel()
    assert client.cancelled == [1, 2, 3]
    client.answer(1, 200)
    assert heard == []


def test_who_cancels_before_the_router_has_spoken_asks_nobody() -> None:
    client = Recorder()
    gathering = Gathering(client, "svc", b"{}", deadline=7.0, flags=0, on_reply=lambda *_: None)
    gathering.cancel()
    client.answer(0, 200, codec.dumps({"body": ["one"]}))
    assert len(client.asked) == 1
