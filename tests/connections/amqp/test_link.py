"""Places on the one connection of a process: what they share, and what is each one's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from pika.exceptions import ChannelClosedByBroker

from butler_mesh.connections.amqp import link as amqp_link
from butler_mesh.connections.amqp.link import Link
from butler_mesh.protocol.mesh import ONE_WAY
from tests.brokers import Broker, free_port
from tests.connections.contract import Call, Gate, echo
from tests.connections.cutting import cut, link_of
from tests.connections.engines import RabbitEngine
from tests.programs import Program
from tests.waiting import wait_for


class Place:
    """A link that has one channel, and what it was told."""

    def __init__(self, endpoint: str, direction: Any = "out") -> None:
        self.said: list[str] = []
        self.channel: Any = None
        self.link = Link(
            [endpoint], direction, on_up=self._up, on_down=self._down, on_refused=lambda *_: None
        )
        self.link.start()

    def _up(self) -> None:
        self.said.append("up")
        self.link.open(self._opened)

    def _opened(self, channel: Any) -> None:
        self.channel = channel

    def _down(self, reason: str) -> None:
        self.said.append("down")
        self.channel = None


@pytest.fixture
def place(broker: Broker) -> Iterator[Callable[..., Place]]:
    made: list[Place] = []

    def open_(*arguments: Any, is_open: bool = True) -> Place:
        one = Place(broker.endpoint, *arguments)
        made.append(one)
        if is_open:
            wait_for(lambda: one.channel is not None)
        return one

    yield open_
    for one in made:
        one.link.close(1.0)
    assert not amqp_link._keepers


def test_all_of_one_direction_share_a_connection(place: Callable[..., Place]) -> None:
    first, second, third, other = place(), place(is_open=False), place(is_open=False), place("in")
    wait_for(lambda: second.channel and third.channel)
    assert first.link.connection is second.link.connection is third.link.connection
    assert other.link.connection is not first.link.connection
    assert len({id(one.channel) for one in (first, second, third)}) == 3


def test_brokers_are_the_same_in_whatever_order(broker: Broker, place: Callable[..., Place]) -> None:
    there, away = broker.endpoint, f"amqp://127.0.0.1:{free_port()}"
    links = [
        Link(endpoints, "out", on_up=lambda: None, on_down=lambda _: None)
        for endpoints in ([there, away], [away, there])
    ]
    for link in links:
        link.start()
    wait_for(lambda: all(link.connection for link in links))
    assert links[0].connection is links[1].connection
    for link in links:
        link.close(1.0)


def test_whoever_leaves_closes_its_channels_and_the_last_one_the_connection(
    place: Callable[..., Place],
) -> None:
    first, second = place(), place()
    connection, channel = first.link.connection, first.channel
    assert connection is not None
    first.link.close(5.0)
    assert channel.is_closed
    assert second.channel.is_open
    second.link.close(5.0)
    assert connection.is_closed
    assert first.said == second.said == ["up"]
    assert place().link.connection is not connection


@pytest.mark.parametrize("how", ["close", "abandon"])
def test_a_channel_that_is_opened_after_its_link_has_gone_is_closed(
    how: str, place: Callable[..., Place]
) -> None:
    stays, goes = place(), place()
    connection, opened = stays.link.connection, []
    assert connection is not None
    goes.link.open(opened.append)
    if how == "close":
        goes.link.close(5.0)
    else:
        goes.link.abandon()
    wait_for(lambda: len(connection._channels) == 1)
    assert opened == []
    assert stays.channel.is_open


def test_what_a_broker_closes_is_one_places_affair(
    place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(amqp_link, "RESET_PAUSE_S", 0.05)
    wrong, other = place(), place()
    wrong.channel.queue_declare("no-such-queue", passive=True)
    wait_for(lambda: wrong.said == ["up", "down", "up"] and wrong.channel)
    assert other.said == ["up"]
    assert other.channel.is_open
    assert "no-such-queue" in caplog.text


def test_whoever_asks_is_told_why_a_channel_was_closed(place: Callable[..., Place]) -> None:
    one, reasons = place(), []
    one.link.open(lambda channel: channel.queue_declare("no-such-queue", passive=True), reasons.append)
    wait_for(lambda: reasons)
    assert isinstance(reasons[0], ChannelClosedByBroker)
    assert one.said == ["up"]


def test_all_hear_of_a_connection_that_is_lost_also_when_one_of_them_fails(
    place: Callable[..., Place], caplog: pytest.LogCaptureFixture
) -> None:
    def fails(reason: str) -> None:
        raise RuntimeError("on purpose")

    first, second = place(), place()
    first.link._on_down = fails
    cut(first.link)
    wait_for(lambda: second.said == ["up", "down", "up"] and second.channel)
    assert "on purpose" in caplog.text
    caplog.clear()
    wait_for(lambda: first.channel.is_open)


def test_a_thread_has_a_connection_of_its_own(broker: Broker, place: Callable[..., Place]) -> None:
    connections = [place().link.connection]

    def run() -> None:
        one = Place(broker.endpoint)
        with gevent.Timeout(5.0):
            while one.channel is None:
                gevent.sleep(0.005)
        connections.append(one.link.connection)
        one.link.close(1.0)
        gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: not thread.is_alive())
    assert len(set(map(id, connections))) == 2


def test_a_client_that_closes_leaves_the_calls_of_others_alone(rabbit: RabbitEngine) -> None:
    gate = Gate()
    rabbit.instance(gate)
    stays, goes = rabbit.client(), rabbit.client()
    calls = [Call(client) for client in (stays, goes) for _ in range(20)]
    wait_for(lambda: gate.now == 40)
    goes.close(1.0)
    wait_for(lambda: gate.now == 20)  # the others were stopped
    gate.open()
    assert [call.status for call in calls] == [200] * 20 + [499] * 20


def test_an_instance_that_vanishes_leaves_its_work_to_its_neighbour(rabbit: RabbitEngine) -> None:
    gate = Gate()
    goes = rabbit.instance(gate, credit=1)
    client = rabbit.client()
    begun = Call(client)
    wait_for(lambda: gate.now == 1)
    waiting = [Call(client), Call(client, flags=ONE_WAY)]
    stays = rabbit.instance(echo)
    assert link_of(stays).connection is link_of(goes).connection
    goes.abandon()
    assert begun.status == 502
    assert waiting[0].status == 200
    assert Call(client).status == 200


FORK = """
    import os, sys
    import gevent
    from butler_mesh import Client, Service

    address = sys.argv[1]
    seen = []

    def pid(n=0):
        seen.append(n)
        gevent.sleep(0.001)
        return os.getpid()

    with Service(address) as service, Client(address) as client:
        service.register_function(pid)
        service.start()
        assert service.wait_until_registered(5.0)
        assert client.rpc().pid() == os.getpid()
        # On their way, or about to be, when the process forks.
        lazy = [client.request_lazy(None, "/pid", {"n": n}) for n in range(1, 11)]
        for n in range(11, 21):
            client.request_nowait(None, "/pid", {"n": n})
        child = os.fork()
        if child == 0:
            gevent.sleep(1.0)  # whatever its hub would do with what it inherited
            os._exit(0 if seen == [0] else 1)
        assert {call.get().body for call in lazy} == {os.getpid()}
        for n in range(21, 321):
            assert client.rpc().pid(n) == os.getpid()
        with gevent.Timeout(5.0):
            while len(seen) < 321:
                gevent.sleep(0.01)
        assert sorted(seen) == list(range(321)), seen
        assert client.close() == []
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.slow
def test_a_fork_that_only_turns_its_hub_takes_nothing_of_its_parents(broker: Broker) -> None:
    with Program.of(FORK, f"{broker.endpoint}#forked") as program:
        assert program.ends() == 0, program.stderr
    broker.delete_queues(["forked"])
