"""Clients and workers of the face, and majortomo's own; in the test's process, but for their router where
majortomo's, which block the process, are of the party."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import gevent
import majortomo as original
import pytest
import zmq

from butler_mesh import Client as MeshClient
from butler_mesh.compat.majortomo import Client, Worker, WorkerRequestsIterator
from tests.meshes import Mesh
from tests.processes.parties import Parties
from tests.waiting import wait_for

BRISK: dict[str, Any] = {"heartbeat_interval": 0.5, "heartbeat_timeout": 2.0}
"""For majortomo's own worker: a test must not take half a minute."""

_numbers = count(1)


@pytest.fixture
def name() -> str:
    """A service that no other test uses."""
    return f"service-{next(_numbers)}"


@pytest.fixture
def client(mesh: Mesh) -> Iterator[Client]:
    """The face's client, at a router of this process."""
    with Client(mesh.endpoint) as client:
        yield client


@pytest.fixture
def worker(mesh: Mesh) -> Iterator[Worker]:
    """The face's worker of ``svc`` at the same router, registered."""
    with Worker(mesh.endpoint, "svc") as worker:
        wait_for(lambda: instances(mesh, "svc") == 1)
        yield worker


Serve = Callable[..., WorkerRequestsIterator]


@pytest.fixture
def serve(mesh: Mesh) -> Iterator[Serve]:
    """Starts a worker of the face in a greenlet; ``answer(requests, frames)`` replies, by default with the
    frames that came."""

    def echo(requests: WorkerRequestsIterator, frames: list[bytes]) -> None:
        requests.send_reply_final(frames)

    def serve(answer: Callable[..., Any] = echo, name: str = "svc") -> WorkerRequestsIterator:
        requests = WorkerRequestsIterator(Worker(mesh.endpoint, name))

        def loop() -> None:
            for frames in requests:
                answer(requests, frames)

        before = instances(mesh, name)
        greenlet = gevent.spawn(loop)
        wait_for(lambda: instances(mesh, name) == before + 1)
        stack.callback(greenlet.kill)
        return requests

    with ExitStack() as stack:
        yield serve


def taken(worker: Worker | original.Worker, timeout_s: float = 10.0) -> tuple[bytes, list[bytes]]:
    """Return the next request of a worker, of whichever kind; both would wait for ever."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no request within {timeout_s} s")

    if isinstance(worker, Worker):
        return gevent.with_timeout(timeout_s, worker.wait_for_request)
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        return worker.wait_for_request()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def instances(mesh: Mesh, name: str) -> int:
    """Return how many workers of a service the router of this process knows."""
    return len(mesh.router.status()["services"].get(name, {"instances": []})["instances"])


@pytest.fixture
def parties(tmp_path: Path) -> Iterator[Parties]:
    """Processes that end with the test."""
    all_of_them = Parties(tmp_path)
    yield all_of_them
    all_of_them.stop()


# --- majortomo's own ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def far_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a router in a process of its own."""
    parties = Parties(tmp_path_factory.mktemp("router"))
    try:
        yield parties.router()[1]
    finally:
        parties.stop()


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    """One for all of majortomo's people in a test; nothing lingers in it."""
    context = zmq.Context()
    yield context
    context.destroy(0)


@pytest.fixture
def their_client(far_router: str, context: zmq.Context[Any]) -> Iterator[original.Client]:
    """majortomo's client, at the router of its own process."""
    with original.Client(far_router, zmq_context=context) as client:
        yield client


@pytest.fixture
def our_client(far_router: str) -> Iterator[Client]:
    """The face's client there."""
    with Client(far_router) as client:
        yield client


@pytest.fixture
def is_known(far_router: str) -> Iterator[Callable[[str], bool]]:
    """Tells whether the router there knows a service."""
    with MeshClient(far_router) as asker:
        yield lambda name: asker.request("mmi.service", arguments={"service": name}).status_code == 200


@pytest.fixture
def their_worker(
    far_router: str, context: zmq.Context[Any], is_known: Callable[[str], bool], name: str
) -> original.Worker:
    """majortomo's worker of ``name`` there; it does what the test tells it, step by step."""
    worker = original.Worker(far_router, name, zmq_context=context, **BRISK)
    worker.connect()
    wait_for(lambda: is_known(name))
    return worker


@pytest.fixture
def our_worker(far_router: str, is_known: Callable[[str], bool], name: str) -> Iterator[Worker]:
    """The face's worker of ``name`` there."""
    with Worker(far_router, name) as worker:
        wait_for(lambda: is_known(name))
        yield worker
