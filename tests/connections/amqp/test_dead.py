"""The stored requests that nobody could serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from butler_mesh.connections.amqp import dead as amqp_dead
from butler_mesh.connections.amqp.dead import Dead, DeadLetters
from butler_mesh.connections.base import Delivery
from butler_mesh.errors import BadRequest, NotFound, Unavailable
from butler_mesh.messages import ServiceRequest, encode_request
from butler_mesh.protocol.mesh import DURABLE, ONE_WAY, RAW
from butler_mesh.sealing import Seal
from tests.brokers import Broker, free_port
from tests.connections.contract import Call
from tests.connections.cutting import cut
from tests.connections.engines import RabbitEngine
from tests.waiting import wait_for


class Moody:
    """Refuses everything until it is in a better mood."""

    def __init__(self) -> None:
        self.is_well = False
        self.served: list[bytes] = []

    def __call__(self, delivery: Delivery) -> None:
        if self.is_well:
            self.served.append(delivery.envelope)
        delivery.reply(200 if self.is_well else 422, b"")


@pytest.fixture
def moody(rabbit: RabbitEngine) -> Moody:
    """A durable service that has refused five requests."""
    rabbit._queues.update(["svc:durable", "svc:dead"])
    handler = Moody()
    rabbit.instance(handler, durable=True)
    client = rabbit.client()
    calls = [Call(client, b"%d" % n, flags=ONE_WAY | DURABLE) for n in range(5)]
    assert {call.status for call in calls} == {202}
    return handler


@pytest.fixture
def dead(broker: Broker) -> Callable[[], DeadLetters]:
    return lambda: DeadLetters([broker.endpoint], "svc")


def test_they_can_be_counted_and_looked_at_and_stay(moody: Moody, dead: Callable[[], DeadLetters]) -> None:
    with dead() as letters:
        wait_for(lambda: letters.count() == 5)
        assert [one.envelope for one in letters.show(3)] == [b"0", b"1", b"2"]
        # The broker writes down that they are back, which takes it a moment.
        wait_for(lambda: letters.count() == 5)
        everything = letters.show(100)
        assert {one.envelope for one in everything} == {b"0", b"1", b"2", b"3", b"4"}
        assert {(one.target, one.reason) for one in everything} == {("svc", "rejected")}
        wait_for(lambda: letters.count() == 5)


def test_they_can_be_given_back(moody: Moody, dead: Callable[[], DeadLetters]) -> None:
    with dead() as letters:
        wait_for(lambda: letters.count() == 5)
        moody.is_well = True
        assert letters.redrive(2) == 2
        wait_for(lambda: moody.served == [b"0", b"1"])
        assert letters.redrive(100) == 3
        wait_for(lambda: len(moody.served) == 5)
        assert letters.count() == letters.redrive(100) == 0


def test_they_can_be_thrown_away(moody: Moody, dead: Callable[[], DeadLetters]) -> None:
    with dead() as letters:
        wait_for(lambda: letters.count() == 5)
        assert letters.purge() == 5
        assert letters.count() == 0
        assert letters.show(10) == []


def test_where_there_is_none_that_is_told(broker: Broker, dead: Callable[[], DeadLetters]) -> None:
    with dead() as letters:
        with pytest.raises(NotFound, match="there is no durable service 'svc'"):
            letters.count()
    with pytest.raises(BadRequest, match="password"):
        DeadLetters([broker.endpoint.replace("mesh:", "mesh:not-")], "svc")


def test_where_no_broker_is_that_is_told_without_waiting_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp_dead, "CONNECT_TIMEOUT_S", 0.05)
    with pytest.raises(Unavailable, match="no broker can be reached"):
        DeadLetters([f"amqp://127.0.0.1:{free_port()}"], "svc")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"n": 7}, '{"path":"/a","body":{"n":7}}'),
        (b"\0\n\xff", '{"path":"/a","single":true} and 3 bytes'),
        ([b"ab", b"c"], '{"path":"/a"} and 3 bytes'),
    ],
)
@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_request_is_shown_as_a_person_reads_it(body: Any, text: str, is_sealed: bool) -> None:
    envelope, flags = encode_request(ServiceRequest("/a", body=body))
    if is_sealed:
        envelope, flags = Seal("secret").close_request("svc", envelope, flags, nonce="1" * 32, now=0.0)
        text += " (sealed)"
    assert Dead("id", "svc", "rejected", envelope, flags).text == text


def test_what_cannot_be_read_is_shown_as_it_is() -> None:
    for flags in (0, RAW):
        assert Dead("id", "svc", "rejected", b"\xff{", flags).text == "\\xff{"


def test_a_broker_that_goes_is_told(moody: Moody, dead: Callable[[], DeadLetters]) -> None:
    with dead() as letters:
        wait_for(lambda: letters.count() == 5)
        cut(letters._link)
        with pytest.raises(Unavailable):
            letters.count()
        with pytest.raises(Unavailable):
            letters.show(1)
