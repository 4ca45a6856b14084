"""What users rely on when RabbitMQ's nodes, or those who serve, are killed: with real nodes and processes.

What the engine does with single calls is tested in ``tests/connections``: a frozen broker, one without
memory, wrong passwords, outstanding confirmations, a crash with stored requests in ``test_amqp_client.py``
and ``test_amqp_instance.py``; TLS without a certificate in ``test_amqp.py``.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from butler_mesh.client import Client
from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp.dead import DeadLetters
from butler_mesh.connections.amqp.queues import DELIVERY_LIMIT
from butler_mesh.errors import Unavailable
from butler_mesh.operations.rabbitmq import Cluster, Node
from butler_mesh.service import Service
from tests.brokers import Broker, running_cluster
from tests.connections.cutting import cut, link_of
from tests.programs import Program
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

PATIENCE_S = 30.0
VOTERS_S = 4.0
"""RabbitMQ 3.10 writes down who votes in a new quorum queue only after a while; one that loses its leader
before then may never find another."""


class Ledger:
    """A durable service that books what it is told, by key: what comes again is known."""

    def __init__(self, address: str) -> None:
        self.seen: Counter[int] = Counter()
        self.booked: list[int] = []
        self.service = Service(address, grace=0.5, durable=True)
        self.service.register_function(self.book, "book")

    def book(self, key: int) -> None:
        self.seen[key] += 1
        if self.seen[key] == 1:
            self.booked.append(key)


class Writers:
    """Greenlets that tell a service one key after the other, each until it is confirmed."""

    def __init__(self, client: Client, service: str, n: int = 8) -> None:
        self._client, self._service = client, service
        self._last = 0
        self.confirmed: list[int] = []
        # Those that were refused meanwhile, and sent again under the same key.
        self.refused = 0
        self._are_done = False
        self._greenlets = [gevent.spawn(self._write) for _ in range(n)]

    def _write(self) -> None:
        while not self._are_done:
            self._last += 1
            key, is_confirmed = self._last, False
            while not is_confirmed:
                try:
                    self._client.request_nowait(self._service, "/book", {"key": key}, durable=True)
                    is_confirmed = True
                except Unavailable:
                    self.refused += 1
            self.confirmed.append(key)

    def finish(self) -> None:
        """Stop, when what was begun is confirmed."""
        self._are_done = True
        gevent.joinall(self._greenlets, timeout=PATIENCE_S, raise_error=True)
        assert all(one.ready() for one in self._greenlets)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("faults") / "three", 3) as made:
        yield made


def leader_of(queue: str, node: Node) -> str:
    """Return the name of the node that leads a quorum queue."""
    rows = json.loads(node.control("list_queues", "name", "leader", "--formatter", "json"))
    return str({row["name"]: row["leader"] for row in rows}[queue])


# --- three nodes ------------------------------------------------------------------------------


def test_what_was_confirmed_outlives_the_leader_and_what_comes_twice_is_known(cluster: Cluster) -> None:
    address = f"{cluster.secret_endpoint}//ledger"
    ledger = Ledger(address)
    with ledger.service, Client(address) as client:
        assert ledger.service.wait_until_registered(PATIENCE_S)
        writers, old_enough = Writers(client, "ledger"), monotonic() + VOTERS_S
        wait_for(lambda: len(writers.confirmed) >= 500 and monotonic() > old_enough, PATIENCE_S)
        name = leader_of("ledger:durable", cluster.nodes[2])
        (leader,) = [node for node in cluster.nodes if node.name == name]
        before = len(writers.confirmed)
        leader.stop(signal.SIGKILL)
        wait_for(lambda: len(writers.confirmed) >= before + 500, PATIENCE_S)
        # Calls that are not stored go on, too: their queue is made again where nodes are left. One that is
        # sent before the nodes know of the loss goes with the queue: 504.
        wait_for(
            lambda: client.request("ledger", method="options", timeout=1.0).is_success,
            PATIENCE_S,
        )
        writers.finish()
        wait_for(lambda: set(writers.confirmed) <= ledger.seen.keys(), PATIENCE_S)
        assert len(writers.confirmed) == len(set(writers.confirmed))
        assert sorted(ledger.booked) == sorted(ledger.seen)  # each once, however often it came
        assert ledger.seen.keys() == set(writers.confirmed)
    leader.start()


def test_without_a_majority_nothing_hangs_and_all_goes_on_when_it_is_back(cluster: Cluster) -> None:
    address = f"{cluster.secret_endpoint}//minority"
    ledger = Ledger(address)
    with ledger.service, Client(address) as client:
        assert ledger.service.wait_until_registered(PATIENCE_S)
        client.request_nowait("minority", "/book", {"key": 0}, durable=True)
        wait_for(lambda: ledger.booked == [0], PATIENCE_S)
        for node in cluster.nodes[:2]:
            node.stop(signal.SIGKILL)
        for key in (1, 2):
            begun = monotonic()
            with pytest.raises(Unavailable):
                client.request_nowait("minority", "/book", {"key": key}, timeout=1.5, durable=True)
            assert monotonic() - begun < 2.5
        begun = monotonic()
        with pytest.raises(Unavailable):  # in its own time, where the request has more
            client.request_nowait("minority", "/book", {"key": 3}, durable=True)
        assert monotonic() - begun < 12.0
        for node in cluster.nodes[:2]:
            node.start()
        writers = Writers(client, "minority", 2)
        wait_for(lambda: len(writers.confirmed) >= 20, PATIENCE_S)
        writers.finish()
        wait_for(lambda: set(writers.confirmed) <= ledger.seen.keys(), PATIENCE_S)


# --- one node ---------------------------------------------------------------------------------


@pytest.fixture
def address(broker: Broker) -> Iterator[Callable[[str], str]]:
    """Makes addresses of services, whose queues go with the test."""
    services: set[str] = set()

    def address(service: str) -> str:
        services.update({service, f"{service}:durable", f"{service}:dead"})
        return f"{broker.endpoint}//{service}"

    yield address
    broker.delete_queues(services)


def test_a_broker_that_restarts_under_a_thousand_lazies_leaves_none_waiting(
    broker: Broker, address: Callable[[str], str]
) -> None:
    service = Service(address("echo"), grace=0.1, credit=50)
    gate = Event()
    begun: list[int] = []

    @service.function
    def echo(n: int) -> int:
        begun.append(n)
        gate.wait()
        return n

    with service, Client(address("echo"), timeout=PATIENCE_S) as client:
        assert service.wait_until_registered(PATIENCE_S)
        lazies = [client.request_lazy("echo", "/echo", {"n": n}, idempotent=n % 2 == 0) for n in range(1000)]
        wait_for(lambda: len(begun) == 50, PATIENCE_S)  # the rest waits in the broker
        broker.stop(signal.SIGKILL)
        codes = [lazy.get().status_code for lazy in lazies[1::2]]
        assert set(codes) == {502}  # perhaps begun, and not to be repeated
        broker.start()
        gate.set()
        assert service.wait_until_registered(PATIENCE_S)
        assert client.request("echo", "/echo", {"n": 7}).body == 7
        # Sent again when the broker was back; those that ran here all the while are recognised or run again.
        assert {lazy.get().status_code for lazy in lazies[::2]} == {200}
        assert client.close() == []


def test_fifty_cuts_of_either_side_under_load_leave_descriptors_as_they_were(
    broker: Broker, address: Callable[[str], str]
) -> None:
    ledger = Ledger(address("cuts"))
    with ledger.service, Client(address("cuts")) as client:
        assert ledger.service.wait_until_registered(PATIENCE_S)
        writers = Writers(client, "cuts")
        wait_for(lambda: len(writers.confirmed) >= 20, PATIENCE_S)
        before = len(os.listdir("/proc/self/fd"))
        sides = [client._connection, ledger.service._connection]
        for n in range(50):
            confirmed = len(writers.confirmed)
            cut(link_of(sides[n % 2]))
            wait_for(lambda: len(writers.confirmed) >= confirmed + 10, PATIENCE_S)  # noqa: B023 (waited for here)
        writers.finish()
        wait_for(lambda: set(writers.confirmed) <= ledger.seen.keys(), PATIENCE_S)
        assert len(os.listdir("/proc/self/fd")) == before
        assert sorted(ledger.booked) == sorted(writers.confirmed)


MORTAL = """
    import os, sys
    from butler_mesh import Service
    service = Service(sys.argv[1], durable=True, credit=1)
    @service.function
    def work(kind):
        os.write(1, kind.encode() + b"\\n")
        if kind == "poison":
            os.kill(os.getpid(), 9)
    service.run()
"""


def test_a_poisonous_request_kills_those_who_begin_it_until_it_is_put_with_the_dead(
    broker: Broker, address: Callable[[str], str], tmp_path: Path
) -> None:
    where = address("mortal")
    with Service(where, grace=0.1, durable=True) as service:
        assert service.wait_until_registered(PATIENCE_S)
    with Client(where) as client:
        client.request_nowait("mortal", "/work", {"kind": "poison"}, durable=True)
        client.request_nowait("mortal", "/work", {"kind": "harmless"}, durable=True)
    for _ in range(1 + DELIVERY_LIMIT):
        with Program.of(MORTAL, where) as program:
            assert program.ends() == -signal.SIGKILL
            assert program.stdout.splitlines()[0] == b"poison"
    with DeadLetters([broker.endpoint], "mortal") as dead, Program.of(MORTAL, where) as program:
        program.says("harmless")
        wait_for(lambda: dead.count() == 1, PATIENCE_S)
        (one,) = dead.show(10)
        assert one.reason == "delivery_limit"
        assert b"poison" in one.envelope
        program.send(signal.SIGTERM)
        assert program.ends() == 0
        assert program.stdout == b"harmless\n"
