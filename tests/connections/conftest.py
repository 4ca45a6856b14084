"""Every test here leaves the process as it found it: no descriptor, thread or greenlet, no logged error."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import gevent
import pytest
import zmq
from gevent.hub import get_hub

from butler_mesh.connections.sockets import context
from tests.brokers import Broker
from tests.waiting import wait_for

if TYPE_CHECKING:
    from butler_mesh.connections.amqp.foreign import ForeignQueues
    from tests.connections.engines import RabbitEngine

pytest.register_assert_rewrite("tests.connections.contract")


def descriptors() -> dict[str, str]:
    """Return the open descriptors of this process and what they lead to."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the one that listed the directory
            continue
    return found


def threads() -> set[str]:
    """Return the ids of this process's native threads, libzmq's among them."""
    return set(os.listdir("/proc/self/task"))


def live_greenlets() -> set[gevent.Greenlet]:
    """Return the greenlets that were started and have not ended."""
    return {one for one in gc.get_objects() if type(one) is gevent.Greenlet and one.started and not one.dead}


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    """Open, once, what a process keeps: its hub, its ZeroMQ context and that one's threads."""
    get_hub()
    context().socket(zmq.PAIR).close()
    gevent.sleep(0)


@pytest.fixture(scope="session")
def _known_greenlets() -> set[gevent.Greenlet]:
    """Those that were there before the first test: to look through all objects takes a while."""
    return live_greenlets()


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(_warm: None, _known_greenlets: set[gevent.Greenlet]) -> Iterator[None]:
    fds, tasks = descriptors(), threads()
    yield
    # libzmq closes in a thread of its own, a little after it was told to.
    wait_for(lambda: not threads() - tasks)
    wait_for(lambda: len(descriptors()) <= len(fds))
    wait_for(lambda: not live_greenlets() - _known_greenlets)


@pytest.fixture(autouse=True)
def _logs_no_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A test that provokes an error looks at it, and calls ``caplog.clear()``."""
    yield
    for phase in ("setup", "call"):
        errors = [r for r in caplog.get_records(phase) if r.levelno >= logging.ERROR]
        assert not errors, caplog.text


@pytest.fixture
def rabbit(broker: Broker) -> Iterator[RabbitEngine]:
    """The engine over AMQP, on the session's broker."""
    from tests.connections.engines import RabbitEngine

    engine = RabbitEngine(broker)
    yield engine
    engine.close()


@pytest.fixture
def open_queues(broker: Broker) -> Iterator[Callable[..., ForeignQueues]]:
    """Opens another system's queues at the broker, or elsewhere, and closes them."""
    from butler_mesh.connections.amqp.foreign import ForeignQueues

    opened: list[ForeignQueues] = []

    def open_queues(*endpoints: str, **options: float) -> ForeignQueues:
        opened.append(ForeignQueues(endpoints or [broker.endpoint], "theirs", **options))
        return opened[-1]

    yield open_queues
    for one in opened:
        one.close(0.0)
    broker.delete_queues(["node"])
