"""Several brokers, all of them read: as one, whichever of them is there."""

from __future__ import annotations

import gevent
import pytest

from butler_mesh import status
from butler_mesh.client import Client
from butler_mesh.clock import monotonic
from butler_mesh.connections.base import Delivery, Handler, InstanceConnection
from butler_mesh.connections.sealed import SealedInstance
from butler_mesh.connections.several import SeveralInstances
from butler_mesh.sealing import Seal
from butler_mesh.service import Service
from tests.brokers import Broker, free_port


class FakeInstance(InstanceConnection):
    """Notes what it is told; registered when ``is_there``."""

    def __init__(self, wid: str = "svc-here-1", *, is_there: bool = True) -> None:
        self.wid = wid
        self.log: list[str] = []
        self.handler: Handler | None = None
        self._is_there = is_there

    @property
    def raw(self) -> object:
        return self if self._is_there else None

    def serve(self, handler: Handler) -> None:
        self.handler = handler

    def wait_until_registered(self, timeout_s: float) -> bool:
        if not self._is_there:
            gevent.sleep(timeout_s)
        return self._is_there

    def stop_intake(self) -> None:
        self.log.append("stop_intake")

    def close(self, drain_s: float) -> None:
        self.log.append(f"close {drain_s:g}")
        gevent.sleep(drain_s)

    def abandon(self) -> None:
        self.log.append("abandon")


class FakeDelivery(Delivery):
    """A request that notes the status of its reply."""

    def __init__(self, envelope: bytes, flags: int) -> None:
        self.target, self.envelope, self.flags = "svc", envelope, flags
        self.deadline, self.number = monotonic() + 10, 1
        self.answers: list[int] = []

    def reply(self, status: int, envelope: bytes, *, flags: int = 0, final: bool = True) -> None:
        self.answers.append(status)

    def wait_for_window(self) -> None:
        pass


def test_it_is_registered_as_soon_as_one_is() -> None:
    several = SeveralInstances([FakeInstance(is_there=False), FakeInstance()])
    began = monotonic()
    assert several.wait_until_registered(5.0)
    assert monotonic() - began < 2.0


def test_it_is_not_registered_when_none_is() -> None:
    several = SeveralInstances([FakeInstance(is_there=False), FakeInstance(is_there=False)])
    assert not several.wait_until_registered(0.01)


def test_all_take_nothing_more_before_any_is_closed_and_drain_side_by_side() -> None:
    both = [FakeInstance(), FakeInstance()]
    began = monotonic()
    SeveralInstances(both).close(0.1)
    assert [one.log for one in both] == [["stop_intake", "close 0.1"]] * 2
    assert monotonic() - began < 0.19


def test_a_fork_lets_go_of_all() -> None:
    both = [FakeInstance(), FakeInstance()]
    SeveralInstances(both).abandon()
    assert [one.log for one in both] == [["abandon"]] * 2


def test_it_has_one_wid_at_all_brokers() -> None:
    both = [FakeInstance("svc-here-1"), FakeInstance("svc-here-2")]
    assert SeveralInstances(both).wid == "svc-here-1"
    assert {one.wid for one in both} == {"svc-here-1"}


def test_its_raw_connection_is_the_first_that_is_there() -> None:
    away, there = FakeInstance(is_there=False), FakeInstance()
    assert SeveralInstances([away, there, FakeInstance()]).raw is there
    assert SeveralInstances([away]).raw is None


def test_what_one_broker_has_brought_is_a_repetition_at_the_other() -> None:
    both = [FakeInstance(), FakeInstance()]
    seal = Seal("secret")
    sealed = SealedInstance(SeveralInstances(both), seal, "svc", clock=lambda: 1000.0)
    sealed.serve(lambda delivery: delivery.reply(200, b"{}"))
    envelope, flags = seal.close_request("svc", b"{}", 0, nonce="0" * 32, now=1000.0)
    deliveries = [FakeDelivery(envelope, flags) for _ in both]
    for one, delivery in zip(both, deliveries, strict=True):
        assert one.handler is not None
        one.handler(delivery)
    assert [delivery.answers for delivery in deliveries] == [[200], [status.UNAUTHORIZED]]


@pytest.mark.slow
def test_a_service_is_served_at_the_broker_that_is_there(broker: Broker) -> None:
    away = f"127.0.0.1:{free_port()}"
    address = f"amqp://{broker.user}:{broker.password}@{away},127.0.0.1:{broker.port}#several"
    service = Service(address, independent=True, grace=0.1)
    service.register_function(lambda: "here", "where")
    with service, Client(f"{broker.endpoint}#several") as client:
        assert service.wait_until_registered(10.0)
        assert client.rpc().where() == "here"
        answers = client.manage(None, "ping", wid=service.wid, timeout=5)
        assert [wid for wid, _ in answers] == [service.wid]
        assert service.raw is not None
    broker.delete_queues(["several"])
