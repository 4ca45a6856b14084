"""The hub's loop as pika sees it, and the timer for many deadlines."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import gevent
import pytest

from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp.loop import Alarm, HubServices
from tests.connections.conftest import descriptors
from tests.waiting import wait_for


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_what_is_due_is_told_in_the_order_of_time_and_never_early() -> None:
    told: list[tuple[str, float]] = []
    alarm: Alarm[str] = Alarm(lambda entry: told.append((entry, monotonic())))
    now = monotonic()
    for name, after_s in (("late", 0.08), ("soon", 0.02), ("never", 5.0)):
        alarm.add(name, now + after_s)
    alarm.add("settled", now + 0.02).discard("settled")
    wait_for(lambda: len(told) == 2)
    assert [name for name, _ in told] == ["soon", "late"]
    assert told[0][1] >= now + 0.02
    assert told[1][1] >= now + 0.08
    alarm.add("again", monotonic() + 0.01)
    wait_for(lambda: told[-1][0] == "again")
    alarm.close()


def test_what_came_is_read_before_anything_is_given_up(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    order: list[str] = []
    alarm: Alarm[str] = Alarm(order.append)
    services = HubServices()
    services.set_reader(one.fileno(), lambda: order.append(one.recv(10).decode()))
    gevent.sleep(0)
    alarm.add("given up", monotonic() + 0.01)
    other.send(b"read")
    until = monotonic() + 0.05
    while monotonic() < until:
        pass  # a process that stands still
    wait_for(lambda: len(order) == 2)
    assert order == ["read", "given up"]
    alarm.close()
    services.remove_reader(one.fileno())


def test_a_watcher_rests_and_comes_back(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    services = HubServices()
    seen: list[str] = []
    services.set_reader(one.fileno(), lambda: seen.append("read " + one.recv(10).decode()))
    services.set_writer(one.fileno(), lambda: seen.append("write"))
    wait_for(lambda: "write" in seen)
    assert services.remove_writer(one.fileno())
    gevent.sleep(0.01)
    seen.clear()
    other.send(b"x")
    wait_for(lambda: seen == ["read x"])
    services.set_writer(one.fileno(), lambda: seen.append("write again"))
    wait_for(lambda: "write again" in seen)
    services.remove_writer(one.fileno())
    assert services.remove_reader(one.fileno())
    assert not services.remove_reader(one.fileno())
    assert not services._watchers


def test_timers_ring_once_or_are_cancelled() -> None:
    services = HubServices()
    rung: list[str] = []
    services.call_later(0.01, lambda: rung.append("kept"))
    services.call_later(0.005, lambda: rung.append("cancelled")).cancel()
    wait_for(lambda: rung)
    gevent.sleep(0.01)
    assert rung == ["kept"]
    assert not services._timers


def test_a_number_is_looked_up_and_a_lookup_can_be_cancelled() -> None:
    services = HubServices()
    found: list[object] = []
    services.getaddrinfo("127.0.0.1", 5672, found.append, socktype=socket.SOCK_STREAM)
    wait_for(lambda: found)
    ((_, _, _, _, address),) = found[0]  # type: ignore[misc]
    assert address == ("127.0.0.1", 5672)
    lookup = services.getaddrinfo("::1", 5672, found.append)
    assert lookup.cancel()
    assert not lookup.cancel()
    gevent.sleep(0.01)
    assert len(found) == 1


def test_severing_leaves_the_far_side_connected_to_those_who_share_the_socket(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    one, other = pair
    shared = one.dup()  # as in the parent of a fork
    before = descriptors()
    services = HubServices()
    ends: list[str] = []
    services.set_reader(one.fileno(), lambda: ends.append("looked"))
    services.call_later(0.0, lambda: ends.append("rang"))
    services.sever()
    assert os.readlink(f"/proc/self/fd/{one.fileno()}") == os.devnull
    assert ends == ["looked"]
    shared.send(b"still here")
    assert other.recv(20) == b"still here"
    shared.close()
    assert other.recv(20) == b""
    assert len(descriptors()) == len(before) - 1
