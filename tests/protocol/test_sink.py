"""Sink and source: a pair of machines that hand events over, and nothing a stranger sends raises."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh.protocol import mesh, sink
from butler_mesh.protocol import sink as protocol
from butler_mesh.protocol.liveness import DEAD_AFTER_S, HEARTBEAT_INTERVAL_S
from butler_mesh.protocol.member import Phase
from butler_mesh.protocol.mesh import parse
from butler_mesh.protocol.outbox import Message, Outbox
from butler_mesh.protocol.sink import SinkProtocol, SourceProtocol

NOW = 1000.0
SOURCE = b"src01"


def sealed(outbox: Outbox, now: float) -> list[Message]:
    """Take what an outbox has to send."""
    outbox.is_dirty = False
    outbox.seal(now)
    messages = [frames for _, frames in outbox.messages]
    while outbox.messages:
        outbox.sent()
    return messages


class Pair:
    """A sink and a source, with a perfect wire between them."""

    def __init__(self) -> None:
        self.sink = SinkProtocol(NOW)
        self.source = SourceProtocol(NOW)

    def exchange(self, now: float = NOW) -> None:
        """Deliver until nothing is left to say."""
        while self.source.dirty or self.sink.dirty:
            self.source.dirty.clear()
            for frames in sealed(self.source.outbox, now):
                self.to_sink(frames, now)
            for outbox in self.sink.dirty[:]:
                self.sink.dirty.remove(outbox)
                for frames in sealed(outbox, now):
                    if outbox.routing_id == SOURCE:
                        self.source.receive(None, b"", bytes(frames[0]), frames[1:], now)

    def to_sink(self, frames: Message, now: float = NOW) -> None:
        self.sink.receive(self.sink.door, SOURCE, bytes(frames[0]), frames[1:], now)

    def connect(self) -> None:
        self.sink.connection_made(self.sink.door, NOW)
        self.source.connection_made(None, NOW)
        self.exchange()


@pytest.fixture
def pair() -> Pair:
    return Pair()


@pytest.fixture
def connected(pair: Pair) -> Pair:
    pair.connect()
    return pair


def record(kind: int, payload: bytes = b"", *, to: SinkProtocol, as_: bytes = SOURCE) -> Sequence[Message]:
    """Send one record to a sink and return what it says to its sender."""
    outbox = Outbox([])
    outbox.add(kind, payload=payload)
    for frames in sealed(outbox, NOW):
        to.receive(to.door, as_, bytes(frames[0]), frames[1:], NOW)
    answers = [frames for one in to.dirty for frames in sealed(one, NOW)]
    to.dirty.clear()
    return answers


def kinds(messages: Sequence[Message]) -> list[int]:
    return [one.kind for frames in messages for one in parse(bytes(frames[0]), frames[1:])[1]]


def test_a_source_greets_and_is_welcomed(pair: Pair) -> None:
    assert pair.source.phase is Phase.ABSENT
    pair.connect()
    assert pair.source.phase is Phase.PRESENT
    assert list(pair.sink.door.peers) == [SOURCE]


def test_events_arrive_in_order(connected: Pair) -> None:
    for n in range(100):
        assert connected.source.send(b"%d" % n)
    connected.exchange()
    assert list(connected.sink.events) == [b"%d" % n for n in range(100)]


def test_events_wait_for_the_welcome_and_keep_their_order(pair: Pair) -> None:
    assert pair.source.send(b"1")
    assert pair.source.send(b"2")
    assert not pair.source.is_idle
    pair.connect()
    pair.source.send(b"3")
    pair.exchange()
    assert pair.source.is_idle
    assert list(pair.sink.events) == [b"1", b"2", b"3"]


def test_what_waits_at_the_source_is_bounded_and_counted(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "MAX_EVENTS", 2)
    assert [pair.source.send(b"1") for _ in range(4)] == [True, True, False, False]
    assert pair.source.counters["dropped.full"] == 2


def test_a_source_whose_outbox_is_full_takes_no_more(connected: Pair) -> None:
    event = b"x" * (1 << 20)
    taken = 0
    while connected.source.send(event):
        taken += 1
        assert taken < 100
    assert taken == 8  # of 1 MiB and its header: with the eighth it is over
    assert connected.source.counters["dropped.full"] == 1


def test_what_waits_for_the_reader_is_bounded_and_counted(
    connected: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "MAX_EVENTS", 2)
    for n in range(4):
        connected.source.send(b"%d" % n)
    connected.exchange()
    assert list(connected.sink.events) == [b"0", b"1"]
    assert connected.sink.counters["dropped.full"] == 2
    connected.sink.events.popleft()
    connected.source.send(b"4")
    connected.exchange()
    assert list(connected.sink.events) == [b"1", b"4"]


def test_an_event_from_a_stranger_is_refused_and_the_stranger_is_told_to_greet(pair: Pair) -> None:
    answers = record(mesh.EVENT, b"1", to=pair.sink, as_=b"else1")
    assert kinds(answers) == [mesh.GOODBYE]
    assert pair.sink.counters["refused.stranger"] == 1
    assert not pair.sink.events


@pytest.mark.parametrize("hello", [b"", b"{}", b"nonsense", b"[]", b'{"role":"client"}', b'{"role":7}'])
def test_whoever_is_no_source_is_sent_away(pair: Pair, hello: bytes) -> None:
    assert kinds(record(mesh.HELLO, hello, to=pair.sink)) == [mesh.GOODBYE]
    assert not pair.sink.door.peers


def test_another_version_is_told_so(pair: Pair) -> None:
    pair.sink.receive(pair.sink.door, SOURCE, b"\xbe\x02\0\0\0\0", (), NOW)
    [answer] = [frames for one in pair.sink.dirty for frames in sealed(one, NOW)]
    assert kinds([answer]) == [mesh.GOODBYE]


def test_GOODBYE_is_acknowledged_after_everything_before_it(connected: Pair) -> None:
    connected.source.send(b"1")
    connected.source.goodbye()
    assert connected.source.phase is Phase.LEAVING
    connected.exchange()
    assert connected.source.phase is Phase.LEFT
    assert list(connected.sink.events) == [b"1"]
    assert not connected.sink.door.peers


def test_both_sides_beat_and_a_silent_source_is_forgotten(connected: Pair) -> None:
    now = NOW
    for _ in range(30):
        now += HEARTBEAT_INTERVAL_S
        connected.sink.tick(now)
        connected.source.tick(now)
        connected.exchange(now)
    assert list(connected.sink.door.peers) == [SOURCE]
    assert connected.source.phase is Phase.PRESENT
    for _ in range(int(DEAD_AFTER_S)):
        now += HEARTBEAT_INTERVAL_S
        connected.sink.tick(now, drained=False)
    assert connected.sink.door.peers  # its word may be in what was not read yet
    now += HEARTBEAT_INTERVAL_S
    connected.sink.tick(now)
    assert not connected.sink.door.peers


def test_a_sink_that_slept_blames_nobody_for_the_silence(connected: Pair) -> None:
    connected.sink.tick(NOW + 10 * DEAD_AFTER_S)
    assert list(connected.sink.door.peers) == [SOURCE]


def test_what_waits_for_a_reader_or_a_sink_is_bounded_in_bytes_too(
    connected: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_SINK_BYTES", 1000)
    for _ in range(20):
        assert connected.source.send(b"x" * 100)
    connected.exchange(NOW)
    assert len(connected.sink.events) == 10
    assert connected.sink.counters["dropped.full"] == 10
    while connected.sink.events:
        connected.sink.pop()
    assert connected.sink.waiting_bytes == 0
    alone = SourceProtocol(NOW)
    monkeypatch.setattr(protocol, "MAX_OUTBOX_BYTES", 1000)
    assert [alone.send(b"x" * 400) for _ in range(4)] == [True, True, True, False]


def test_a_tick_before_its_time_does_nothing(connected: Pair) -> None:
    assert connected.sink.next_due() == NOW + HEARTBEAT_INTERVAL_S
    connected.sink.tick(NOW)
    assert not connected.sink.dirty


def test_a_source_whose_sink_restarts_greets_it_and_sends_what_comes_after(connected: Pair) -> None:
    connected.source.connection_lost(None, NOW)
    assert connected.source.phase is Phase.ABSENT
    connected.source.send(b"meanwhile")
    connected.sink = SinkProtocol(NOW)
    connected.connect()
    assert list(connected.sink.events) == [b"meanwhile"]


def test_a_source_that_is_gone_is_forgotten(connected: Pair) -> None:
    connected.sink.connection_lost(connected.sink.door, NOW)
    [peer] = connected.sink.door.peers.values()
    connected.sink.peer_gone(peer.outbox, NOW)
    assert not connected.sink.door.peers


@pytest.mark.parametrize("kind", [*mesh.KIND_NAMES, 0, 99, 255])
def test_any_kind_from_a_source_or_a_stranger_is_taken_calmly(connected: Pair, kind: int) -> None:
    for as_ in (SOURCE, b"else1"):
        record(kind, b"payload", to=connected.sink, as_=as_)
    if SOURCE not in connected.sink.door.peers:
        connected.source.connection_lost(None, NOW)
        connected.connect()
    connected.sink.events.clear()
    connected.source.send(b"good")
    connected.exchange()
    assert list(connected.sink.events) == [b"good"]


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(
            st.sampled_from([SOURCE, b"else1"]),
            st.binary(max_size=60),
            st.lists(st.binary(max_size=9), max_size=2),
        ),
        max_size=6,
    )
)
def test_random_frames_never_raise_and_events_go_on(messages: list[tuple[bytes, bytes, list[bytes]]]) -> None:
    pair = Pair()
    pair.connect()
    for as_, frame, rest in messages:
        for head in (b"", mesh.pack_header(0)):
            pair.sink.receive(pair.sink.door, as_, head + frame, rest, NOW)
            pair.source.receive(None, b"", head + frame, rest, NOW)
    pair.exchange()
    pair.source.connection_lost(None, NOW)
    pair.connect()
    pair.sink.events.clear()
    pair.source.send(b"good")
    pair.exchange()
    assert pair.sink.events[-1] == b"good"
