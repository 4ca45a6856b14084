"""Whom the router sends signs of life, and when: doors full of peers, and a clock that the test moves."""

from __future__ import annotations

from collections import Counter

import pytest

from butler_mesh.protocol.heartbeats import BEAT_PEERS, PROBE_AGAIN_S, PROBE_S, Heartbeats
from butler_mesh.protocol.outbox import Outbox
from butler_mesh.protocol.peers import ClientPeer, Door, InstancePeer, Peer
from tests.protocol.net import Net

INTERVAL_S = 1.0
STEP_S = 0.001


class House:
    """A door with so many clients and instances behind it, and what each of them was sent when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clients: int = 0, instances: int = 0) -> None:
        self.now = 100.0
        self.door = Door("door")
        for n in range(clients):
            self.door.peers[b"c%d" % n] = ClientPeer(self.door, Outbox([]), "client", self.now)
        for n in range(instances):
            self.door.peers[b"i%d" % n] = InstancePeer(self.door, Outbox([]), "instance", self.now)
        self.heartbeats = Heartbeats([self.door], INTERVAL_S, self.now)
        self.sent: dict[Peer, list[float]] = {}
        monkeypatch.setattr(Peer, "heartbeat", lambda peer: self.sent.setdefault(peer, []).append(self.now))

    def advance(self, seconds: float, *, losing: bool = False) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += STEP_S
            if losing:
                self.heartbeats.lost(self.door, self.now)
            if self.heartbeats.next_due() <= self.now:
                self.heartbeats.tick(self.now)

    def rounds(self, kind: type[Peer]) -> int:
        """Return how often some peer of a kind was sent something."""
        return max(len(times) for peer, times in self.sent.items() if isinstance(peer, kind))


def test_everybody_is_sent_one_once_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, clients=3, instances=2)
    house.advance(4.5 * INTERVAL_S)
    assert [len(times) for times in house.sent.values()] == [4] * 5


def test_of_many_only_a_part_is_sent_one_at_a_time_and_each_once_an_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, clients=3 * BEAT_PEERS)
    house.advance(4.5 * INTERVAL_S)
    assert len(house.sent) == 3 * BEAT_PEERS
    assert {len(times) for times in house.sent.values()} <= {3, 4}
    assert max(Counter(time for times in house.sent.values() for time in times).values()) <= BEAT_PEERS


def test_when_somebody_has_left_all_are_probed_at_once_and_after_10_ms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, clients=2, instances=2)
    house.heartbeats.lost(house.door, house.now)
    assert [len(times) for times in house.sent.values()] == [1] * 4
    house.advance(0.5)
    for times in house.sent.values():
        first, second = times
        assert second - first == pytest.approx(PROBE_AGAIN_S, abs=2 * STEP_S)


def test_crowds_that_come_and_go_are_probed_for_a_tenth_of_the_time_and_instances_still_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, clients=400, instances=2)
    house.advance(0.9 * INTERVAL_S, losing=True)
    assert 4 <= house.rounds(ClientPeer) <= 2 + 0.9 * INTERVAL_S / (400 * PROBE_S)
    assert house.rounds(InstancePeer) >= 0.9 * INTERVAL_S / (2 * PROBE_AGAIN_S)


def test_so_are_crowds_of_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, instances=400)
    house.advance(0.9 * INTERVAL_S, losing=True)
    assert 4 <= house.rounds(InstancePeer) <= 2 + 0.9 * INTERVAL_S / (400 * PROBE_S)


def test_whoever_leaves_while_a_round_is_not_due_yet_is_probed_when_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, clients=400)
    house.heartbeats.lost(house.door, house.now)
    house.advance(2 * PROBE_AGAIN_S)
    assert house.rounds(ClientPeer) == 2
    house.heartbeats.lost(house.door, house.now)
    assert house.rounds(ClientPeer) == 2
    house.advance(2 * 400 * PROBE_S)
    assert house.rounds(ClientPeer) == 3


def test_a_router_among_a_crowd_that_comes_and_goes_tells_of_a_lost_instance_at_once() -> None:
    net = Net()
    for _ in range(400):
        net.caller()
    caller, worker, other = net.caller(), net.worker(), net.worker()
    asked = caller.ask("svc")
    for _ in range(20):
        net.router.connection_lost(net.both, net.now)
        net.advance(0.005)
    net.router.connection_lost(net.both, net.now)
    net.drop(worker, is_noticed=False)
    net.advance(2.5 * PROBE_AGAIN_S)
    assert asked.code == 502
    assert list(net.router.instances) == [other.wid]
