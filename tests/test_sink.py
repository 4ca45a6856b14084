"""Sink: events from services, one way, kept as far as the bounds go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from butler_mesh.errors import (
    AddressError,
    AddressInUse,
    Closed,
    DeadlineExceeded,
    NotSerializable,
    UsageError,
)
from butler_mesh.protocol import sink as protocol
from butler_mesh.router import Router
from butler_mesh.service import Service
from butler_mesh.sink import DEFAULT_SINK, Sink, SinkSender
from tests.meshes import ANY_PORT, Mesh
from tests.programs import Program
from tests.waiting import wait_for


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink(ANY_PORT) as made:
        yield made


@pytest.fixture
def sender(sink: Sink) -> Iterator[SinkSender]:
    made = SinkSender(sink.endpoint)
    yield made
    made.close()


@pytest.mark.parametrize("event", [None, 0, "ü", [], {"kind": "resized", "n": 1}, [None], "x" * 500_000])
def test_an_event_is_any_JSON_value(sink: Sink, sender: SinkSender, event: Any) -> None:
    assert sender.send(event)
    assert sink.get_message(5.0) == event


def test_events_of_one_sender_arrive_in_order(sink: Sink, sender: SinkSender) -> None:
    for n in range(1000):
        assert sender.send(n)
    assert [sink.get_message(5.0) for _ in range(1000)] == list(range(1000))


def test_many_senders_share_a_sink(sink: Sink) -> None:
    senders = [SinkSender(sink.endpoint) for _ in range(5)]
    for n, sender in enumerate(senders):
        sender.send(n)
    assert sorted(sink.get_message(5.0) for _ in senders) == list(range(5))
    for sender in senders:
        sender.close()


def test_a_service_sends_events_to_its_sink(mesh: Mesh, sink: Sink) -> None:
    service = Service(mesh.endpoint, "svc", sink=sink.endpoint, grace=0.05)

    @service.function
    def work(n: int) -> bool:
        return service.sink.send({"worked": n})

    mesh.join(service)
    assert mesh.client().rpc("svc").work(5) is True
    assert sink.get_message(5.0) == {"worked": 5}


def test_a_services_sink_is_where_the_seed_had_it() -> None:
    assert DEFAULT_SINK == "tcp://127.0.0.1:5558"
    assert Service("memory://s", "svc").sink.endpoint == DEFAULT_SINK


def test_waiting_ends_when_nothing_came_in_time(sink: Sink) -> None:
    for timeout in (0.0, 0.01):
        with pytest.raises(DeadlineExceeded):
            sink.get_message(timeout)
        with pytest.raises(TimeoutError):
            sink.get_message(timeout)


def test_a_waiting_reader_is_woken_by_an_event_and_by_close(sink: Sink, sender: SinkSender) -> None:
    reader = gevent.spawn(sink.get_message)
    gevent.sleep(0)
    sender.send("wake")
    assert reader.get(timeout=5) == "wake"
    reader = gevent.spawn(sink.get_message)
    gevent.sleep(0)
    sink.close()
    with pytest.raises(Closed):
        reader.get(timeout=5)
    with pytest.raises(Closed):
        sink.get_message(0.0)
    sink.close()


def test_events_that_came_before_the_end_can_still_be_read(sink: Sink, sender: SinkSender) -> None:
    sender.send(1)
    wait_for(lambda: sink._machine.events)
    sink.close()
    assert sink.get_message(0.0) == 1


def test_events_nobody_reads_are_bounded_and_counted(
    sink: Sink, sender: SinkSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_EVENTS", 10)
    sender.send("first")
    wait_for(lambda: sink._machine.events)
    for n in range(15):
        sender.send(n)
    wait_for(lambda: sink.dropped == 6)
    assert [sink.get_message(0.0) for _ in range(10)] == ["first", *range(9)]


def test_an_event_that_JSON_cannot_hold_is_refused_and_the_next_one_goes(
    sink: Sink, sender: SinkSender
) -> None:
    for value in (object(), b"bytes", float("nan")):
        with pytest.raises(NotSerializable):
            sender.send(value)
    sender.send("good")
    assert sink.get_message(5.0) == "good"


def test_sending_never_waits_and_what_was_sent_before_the_sink_came_arrives() -> None:
    with Sink(ANY_PORT) as first:
        endpoint = first.endpoint
    sender = SinkSender(endpoint)
    assert sender.send("early")
    with Sink(endpoint) as sink:
        assert sink.get_message(10.0) == "early"
    sender.close()


def test_without_a_sink_events_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_EVENTS", 3)
    sender = SinkSender("tcp://127.0.0.1:1")
    assert [sender.send(n) for n in range(5)] == [True, True, True, False, False]
    sender.close(drain=0.01)


def test_close_waits_until_the_sink_has_everything(sink: Sink) -> None:
    sender = SinkSender(sink.endpoint)
    for n in range(200):
        sender.send(n)
    sender.close(drain=5.0)
    assert [sink.get_message(1.0) for _ in range(200)] == list(range(200))
    sender.close()


def test_a_sender_may_send_again_after_close(sink: Sink) -> None:
    sender = SinkSender(sink.endpoint)
    sender.close()
    for n in range(2):
        sender.send(n)
        sender.close()
    assert [sink.get_message(5.0) for _ in range(2)] == [0, 1]


def test_an_address_in_use_is_AddressInUse_and_a_bad_one_AddressError(sink: Sink) -> None:
    with pytest.raises(AddressInUse):
        Sink(sink.endpoint)
    for endpoint in ("", "tcp://127.0.0.1", "http://127.0.0.1:1", "tcp://127.0.0.1:99999"):
        with pytest.raises(AddressError):
            Sink(endpoint)
        with pytest.raises(AddressError):
            SinkSender(endpoint)
    with Router() as router, pytest.raises(AddressInUse):
        router.bind(sink.endpoint)


def test_garbage_from_a_sender_is_counted_and_the_next_event_arrives(sink: Sink, sender: SinkSender) -> None:
    sender.send("first")
    assert sink.get_message(5.0) == "first"
    assert sender._machine is not None
    for garbage in (b"not json", b"", b"[" * 10_000, b"\xff", b"NaN"):
        sender._machine.send(garbage)
    sender.send("good")
    assert sink.get_message(5.0) == "good"
    assert sink._machine.counters["dropped.malformed"] == 5


FORK = """
    import os
    import gevent, gevent.os
    from butler_mesh.sink import Sink, SinkSender

    with Sink("tcp://127.0.0.1:*") as sink:
        sender = SinkSender(sink.endpoint)
        sender.send("parent")
        assert sink.get_message(5) == "parent"
        pid = gevent.os.fork_and_watch()
        if pid == 0:
            sender.send("child")
            sender.close(5.0)
            os._exit(0)
        assert sink.get_message(10) == "child"
        sender.send("parent again")
        assert sink.get_message(5) == "parent again"
        sender.close()
"""


@pytest.mark.slow
def test_after_a_fork_parent_and_child_send_each_over_its_own_connection() -> None:
    with Program.of(FORK) as program:
        assert program.ends() == 0, program.stderr


FORGETFUL = """
    import sys
    from butler_mesh import Service

    for n in range(100):
        Service("tcp://127.0.0.1:1", "svc", sink=sys.argv[1]).sink.send(n)
"""


@pytest.mark.slow
def test_events_of_a_program_that_ends_without_closing_arrive(sink: Sink) -> None:
    with Program.of(FORGETFUL, sink.endpoint) as program:
        assert {sink.get_message(20.0) for _ in range(100)} == set(range(100))
        assert program.ends() == 0, program.stderr


def test_an_event_over_16_mib_is_refused_where_it_is_sent() -> None:
    sender = SinkSender(DEFAULT_SINK)
    with pytest.raises(UsageError, match="over 16777216"):
        sender.send("x" * (16 * 1024 * 1024))
