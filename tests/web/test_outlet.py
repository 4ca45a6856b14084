"""The way to a server's browsers, with a SUB socket in the server's place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest
import zmq
from gevent.hub import get_hub

from butler_mesh.connections.sockets import context
from butler_mesh.errors import AddressError
from butler_mesh.web.outlet import Outlet
from tests.waiting import wait_for
from tests.web.mongrel2s import free_ports


@contextmanager
def server(endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """Listen as Mongrel2 does."""
    socket = context().socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    wait_for(lambda: has_bound(socket, endpoint))
    # It tells its peers of the subscription when somebody calls it.
    calling = gevent.spawn(keep_calling, socket)
    try:
        yield socket
    finally:
        calling.kill()
        socket.close(linger=0)


def has_bound(socket: zmq.Socket[bytes], endpoint: str) -> bool:
    """Bind; False where the one before is still about to leave."""
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno != zmq.EADDRINUSE:
            raise
        return False
    return True


def keep_calling(socket: zmq.Socket[bytes]) -> None:
    while True:
        socket.poll(0)
        gevent.sleep(0.005)


@pytest.fixture
def endpoint() -> str:
    return f"tcp://127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture
def outlet(endpoint: str) -> Iterator[Outlet]:
    made = Outlet(endpoint)
    yield made
    made.close()


def test_it_is_open_when_a_server_listens(outlet: Outlet, endpoint: str) -> None:
    assert not outlet.wait(0.01)
    with server(endpoint) as listener:
        assert outlet.wait(5.0)
        outlet.send(b"hello")
        wait_for(lambda: listener.poll(0))
        assert listener.recv() == b"hello"


def test_each_server_that_comes_is_another_one(outlet: Outlet, endpoint: str) -> None:
    for epoch in (1, 2, 3):
        with server(endpoint):
            assert outlet.wait(5.0)
            assert outlet.epoch == epoch
        wait_for(lambda: not outlet.look())


def test_a_server_that_came_and_went_unseen_is_counted(outlet: Outlet, endpoint: str) -> None:
    with server(endpoint):
        assert outlet.wait(5.0)
    events = 0

    def watch() -> None:
        nonlocal events
        events += 1

    watcher = get_hub().loop.io(outlet.fd, 1)
    watcher.start(watch)
    try:
        with server(endpoint) as listener:
            wait_for(lambda: events)
            # Nobody has looked: both the end of the one and the beginning of the other are in store.
            wait_for(lambda: outlet.look() and outlet.epoch == 2)
            outlet.send(b"x")
            wait_for(lambda: listener.poll(0))
    finally:
        watcher.stop()
        watcher.close()


def test_a_server_that_comes_ends_the_waiting(outlet: Outlet, endpoint: str) -> None:
    waiting = gevent.spawn(outlet.wait, 10.0)
    gevent.idle()
    assert not waiting.ready()
    with server(endpoint):
        assert waiting.get(timeout=5.0)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
def test_who_has_no_time_is_told_at_once(outlet: Outlet, endpoint: str, timeout_s: float) -> None:
    others = gevent.spawn(lambda: None)
    assert not outlet.wait(timeout_s)
    assert not others.ready()
    with server(endpoint):
        wait_for(lambda: outlet._socket.poll(0))  # there, but nobody has looked
        others = gevent.spawn(lambda: None)
        assert outlet.wait(timeout_s)
        assert not others.ready()


def test_what_was_sent_before_the_end_arrives(endpoint: str) -> None:
    with server(endpoint) as listener:
        outlet = Outlet(endpoint)
        assert outlet.wait(5.0)
        for n in range(100):
            outlet.send(b"%d" % n + b"x" * 200_000)  # more than the kernel takes at once
        outlet.close()
        for n in range(100):
            wait_for(lambda: listener.poll(0))
            assert listener.recv().rstrip(b"x") == b"%d" % n


def test_what_is_sent_to_nobody_is_kept_for_nobody(outlet: Outlet, endpoint: str) -> None:
    with server(endpoint):
        assert outlet.wait(5.0)
    wait_for(lambda: not outlet.look())
    outlet.send(b"to the one before")
    with server(endpoint) as listener:
        assert outlet.wait(5.0)
        outlet.send(b"to this one")
        wait_for(lambda: listener.poll(0))
        assert listener.recv() == b"to this one"


def test_waiting_lets_others_work(outlet: Outlet) -> None:
    worked = gevent.spawn(lambda: "done")
    assert not outlet.wait(0.05)
    assert worked.value == "done"


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://", "tcp://127.0.0.1"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(AddressError, match="cannot connect"):
        Outlet(endpoint)
