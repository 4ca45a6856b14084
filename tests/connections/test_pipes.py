"""Pipes: what goes in at one end comes out at the other, and both learn when the other is gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from butler_mesh.clock import monotonic
from butler_mesh.connections.pipes import PipeEnd, PipeHub
from butler_mesh.connections.pump import Pump, Sent
from butler_mesh.protocol import mesh
from butler_mesh.protocol.client import ClientProtocol
from butler_mesh.protocol.limits import Limits
from butler_mesh.protocol.member import Phase
from butler_mesh.protocol.router import RouterProtocol
from tests.waiting import wait_for


class Sides:
    """A router's machine with its hub of pipes, and clients at their far ends."""

    def __init__(self) -> None:
        self.router = RouterProtocol(monotonic(), b"seed" * 8, Limits(register_grace_s=0.0))
        self.hub = PipeHub(self.router.open_door("inside"))
        self.pump = Pump(self.router)
        self.pump.attach(self.hub)
        self.closed: list[int] = []
        self._pumps = [self.pump]

    def connect(self) -> tuple[PipeEnd, ClientProtocol, Pump]:
        """Return a far end with a client's machine on it."""
        n = len(self._pumps)
        end = self.hub.connect(lambda: self.closed.append(n))
        machine = ClientProtocol(monotonic())
        pump = Pump(machine)
        self._pumps.append(pump)
        pump.attach(end)
        return end, machine, pump

    def close(self) -> None:
        for pump in self._pumps:
            pump.close()


@pytest.fixture
def sides() -> Iterator[Sides]:
    sides = Sides()
    yield sides
    sides.close()


def submit(machine: ClientProtocol, pump: Pump, target: bytes = b"nobody") -> Any:
    now = monotonic()
    pump.arm(now)
    return machine.submit(
        target, b"", deadline=now + 5.0, flags=0, on_reply=lambda *reply: None, now=now, window=0
    )


def test_both_sides_talk(sides: Sides) -> None:
    _, machine, pump = sides.connect()
    wait_for(lambda: machine.phase is Phase.PRESENT)
    assert machine.router_id == sides.router.router_id
    submit(machine, pump)
    wait_for(lambda: [reply[2] for reply in machine.replies] == [404])


def test_ends_are_told_apart(sides: Sides) -> None:
    parties = [sides.connect() for _ in range(5)]
    wait_for(lambda: all(machine.phase is Phase.PRESENT for _, machine, _ in parties))
    for n, (_, machine, pump) in enumerate(parties):
        for _ in range(n):
            submit(machine, pump)
    wait_for(lambda: [len(machine.replies) for _, machine, _ in parties] == [0, 1, 2, 3, 4])
    assert len({end.routing_id for end, _, _ in parties}) == 5


def test_messages_keep_their_order_and_attachments() -> None:
    hub = PipeHub("door")
    end = hub.connect()
    for n in range(3):
        assert end.send(b"", [b"%d" % n, b"attached"]) is Sent.YES
    assert hub.is_ready
    assert [hub.receive() for _ in range(3)] == [(end.routing_id, b"%d" % n, [b"attached"]) for n in range(3)]
    assert not hub.is_ready
    assert hub.receive() is None
    for n in range(3):
        assert hub.send(end.routing_id, [b"%d" % n]) is Sent.YES
    assert end.is_ready
    assert [end.receive() for _ in range(3)] == [(b"", b"%d" % n, []) for n in range(3)]
    assert not end.look()
    assert end.receive() is None


def test_a_send_to_an_end_that_was_closed_or_never_was_says_gone() -> None:
    hub = PipeHub("door")
    end = hub.connect()
    end.close(0.0)
    assert hub.send(end.routing_id, [b"x"]) is Sent.GONE
    assert hub.send(b"never", [b"x"]) is Sent.GONE
    assert end.send(b"", [b"x"]) is Sent.GONE


def test_a_router_learns_that_an_end_was_closed(sides: Sides) -> None:
    _, machine, pump = sides.connect()
    (door,) = sides.router.doors
    wait_for(lambda: machine.phase is Phase.PRESENT)
    assert len(door.peers) == 1
    pump.close()
    wait_for(lambda: not door.peers)
    assert sides.closed == [1]


def test_an_end_learns_that_the_router_was_closed(sides: Sides) -> None:
    _, machine, _ = sides.connect()
    wait_for(lambda: machine.phase is Phase.PRESENT)
    sides.pump.close()
    assert machine.phase is Phase.ABSENT
    assert sides.closed == []  # it is the end's owner who closes it


def test_replies_that_came_before_the_router_was_closed_are_read(sides: Sides) -> None:
    _, machine, pump = sides.connect()
    wait_for(lambda: machine.phase is Phase.PRESENT)
    call = submit(machine, pump)
    (door,) = sides.router.doors
    gevent.sleep(0)  # the request leaves
    (peer,) = door.peers.values()
    peer.outbox.add(mesh.FINAL, 0, call.id, 0, mesh.pack_status(200))
    sides.pump.close()
    assert [(reply[0], reply[2]) for reply in machine.replies] == [(call, 200)]


def test_an_ends_owner_hears_once_that_it_is_closed(sides: Sides) -> None:
    end, _, _ = sides.connect()
    end.close(0.0)
    end.close(0.0)
    assert sides.closed == [1]


def test_an_abandoned_end_says_nothing_to_anybody(sides: Sides) -> None:
    end, machine, pump = sides.connect()
    wait_for(lambda: machine.phase is Phase.PRESENT)
    (door,) = sides.router.doors
    pump.abandon()
    assert len(door.peers) == 1
    assert sides.closed == []
    assert end.send(b"", [b"x"]) is Sent.GONE
