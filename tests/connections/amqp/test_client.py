"""The client's side of ``amqp://``: what becomes of calls when broker and connection let them down."""

from __future__ import annotations

import logging
import os
import signal

import gevent
import pytest

from butler_mesh import codec
from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp import client as amqp_client
from butler_mesh.connections.amqp import waiting as amqp_waiting
from butler_mesh.connections.amqp.client import AmqpClient
from butler_mesh.connections.base import Delivery
from butler_mesh.protocol.mesh import DURABLE, IDEMPOTENT, ONE_WAY, STREAM
from tests.brokers import Broker, free_port
from tests.connections.contract import PATIENCE_S, Call, Gate, echo
from tests.connections.cutting import cut, link_of
from tests.connections.engines import RabbitEngine
from tests.waiting import wait_for


def a_client(rabbit: RabbitEngine) -> AmqpClient:
    """Return a client that is connected."""
    client = rabbit.client()
    assert isinstance(client, AmqpClient)
    wait_for(lambda: client._confirming is not None)
    return client


def test_a_service_that_does_not_exist_is_404_at_once(rabbit: RabbitEngine) -> None:
    client = a_client(rabbit)
    begun = monotonic()
    assert Call(client, to="nobody").status == 404
    assert Call(client, to="/nobodys/path/at/all").status == 404
    assert monotonic() - begun < 1.0


def test_a_target_too_long_for_a_queue_is_400(rabbit: RabbitEngine) -> None:
    assert Call(rabbit.client(), to="x" * 256).status == 400


@pytest.mark.parametrize(("old", "new", "code"), [("mesh:", "mesh:wrong-", 401), ("", "/nowhere", 403)])
def test_a_wrong_password_or_vhost_is_told_every_caller_at_once(
    broker: Broker, old: str, new: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = broker.endpoint.replace(old, new, 1) if old else broker.endpoint + new
    with caplog.at_level(logging.DEBUG, "butler_mesh"):
        client = AmqpClient([endpoint], connect_timeout_s=PATIENCE_S)
        one_way = Call(client, flags=ONE_WAY)
        assert Call(client).status == code
        assert one_way.status == code
        begun = monotonic()
        assert Call(client).status == code
        assert monotonic() - begun < 0.5
        assert [status for status, _ in client.close(1.0)] == [code]
    assert broker.password not in caplog.text


def test_without_a_broker_calls_wait_a_while_and_are_503() -> None:
    client = AmqpClient([f"amqp://127.0.0.1:{free_port()}"], connect_timeout_s=0.1)
    calls = [Call(client), Call(client, flags=IDEMPOTENT), Call(client, within_s=0.05)]
    assert [call.status for call in calls] == [503, 503, 504]
    Call(client, flags=ONE_WAY)
    ((status, message),) = client.close(1.0)
    assert (status, message) == (503, "no broker can be reached")


def test_calls_in_flight_on_a_cut_connection_are_502_or_sent_again(rabbit: RabbitEngine) -> None:
    gate = Gate()
    rabbit.instance(gate)
    client = a_client(rabbit)
    plain, idempotent, stream = Call(client), Call(client, flags=IDEMPOTENT), Call(client, flags=STREAM)
    wait_for(lambda: gate.now == 3)
    cut(link_of(client))
    assert (plain.status, stream.status) == (502, 502)
    gate.open()
    assert idempotent.status == 200
    assert Call(client).status == 200


def test_after_a_lost_connection_a_service_that_has_yet_to_return_is_waited_for(rabbit: RabbitEngine) -> None:
    client = a_client(rabbit)
    assert Call(client).status == 404
    cut(link_of(client))
    wait_for(lambda: client._confirming is None)
    wait_for(lambda: client._confirming is not None)
    call = Call(client)
    rabbit.instance(echo)
    assert call.status == 200


@pytest.mark.parametrize("target", ["/own", "/own/x", "/own/x/y"])
def test_an_idempotent_call_by_path_is_sent_again_as_well(target: str, rabbit: RabbitEngine) -> None:
    gate = Gate()
    rabbit.instance(gate, "", paths=["/own"])
    client = a_client(rabbit)
    call = Call(client, to=target, flags=IDEMPOTENT)
    wait_for(lambda: gate.now == 1)
    cut(link_of(client))
    wait_for(lambda: gate.now == 2)
    gate.open()
    assert call.status == 200


def test_a_client_that_closes_after_an_earlier_cut_stops_what_runs_for_it(rabbit: RabbitEngine) -> None:
    gate = Gate()
    rabbit.instance(gate)
    client = a_client(rabbit)
    cut(link_of(client))
    wait_for(lambda: client._calling is None)
    wait_for(lambda: client._calling is not None)
    Call(client)
    wait_for(lambda: gate.now == 1)
    client.close(1.0)
    wait_for(lambda: gate.now == 0)


def test_a_one_way_request_that_is_returned_waits_for_a_channel_that_confirms(rabbit: RabbitEngine) -> None:
    gate = Gate()
    rabbit.instance(gate, "", paths=["/own"])
    client = a_client(rabbit)
    Call(client, to="/own/x/y", flags=ONE_WAY)
    client._send_fresh()
    client._confirm_anew()
    wait_for(lambda: gate.now == 1)
    assert client.close(PATIENCE_S) == []
    gate.open()


def test_a_call_that_nobody_had_outlives_another_cut(rabbit: RabbitEngine) -> None:
    client = a_client(rabbit)
    cut(link_of(client))
    wait_for(lambda: client._confirming is None)
    wait_for(lambda: client._confirming is not None)
    calls = [Call(client), Call(client, flags=IDEMPOTENT)]
    wait_for(lambda: len(client._unknown) == 2)
    cut(link_of(client))
    wait_for(lambda: client._confirming is None)
    seen: list[bytes] = []

    def handler(delivery: Delivery) -> None:
        seen.append(delivery.envelope)
        delivery.reply(200, b"")

    rabbit.instance(handler)
    assert [call.status for call in calls] == [200, 200]
    assert Call(client).status == 200
    assert len(seen) == 3


def test_a_call_is_sent_again_once_only(rabbit: RabbitEngine) -> None:
    gate = Gate()
    rabbit.instance(gate)
    client = a_client(rabbit)
    call = Call(client, flags=IDEMPOTENT)
    for n in (1, 2):
        wait_for(lambda: gate.now == n and client._calling is not None)  # noqa: B023 (used at once)
        channel = client._calling
        cut(link_of(client))
        wait_for(lambda: client._calling is not channel)  # noqa: B023 (used at once)
    assert call.status == 502
    gate.open()


def test_one_way_requests_that_were_not_confirmed_when_the_connection_broke_are_reported(
    rabbit: RabbitEngine,
) -> None:
    rabbit.instance(echo)
    client = a_client(rabbit)
    Call(client, flags=ONE_WAY)
    client._send_fresh()
    cut(link_of(client))
    wait_for(lambda: client._refusals)
    assert client._refusals[0][0] == 502
    assert Call(client).status == 200


@pytest.mark.slow
def test_descriptors_and_tables_are_as_before_after_fifty_cuts_under_load(rabbit: RabbitEngine) -> None:
    rabbit.instance(echo)
    client = a_client(rabbit)
    before = len(os.listdir("/proc/self/fd"))
    seen: set[int] = set()
    for _ in range(50):
        calls = [Call(client, flags=IDEMPOTENT if n % 2 else 0) for n in range(10)]
        gevent.sleep(0)
        cut(link_of(client))
        seen.update(call.status for call in calls)
    assert seen <= {200, 502}
    assert Call(client).status == 200
    assert not client._calls
    assert not client._waiting[False]
    assert len(os.listdir("/proc/self/fd")) == before


def test_outstanding_confirmations_are_bounded_and_nothing_is_lost(
    rabbit: RabbitEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_client, "MAX_UNCONFIRMED", 10)
    served: list[bytes] = []

    def handler(delivery: Delivery) -> None:
        served.append(delivery.envelope)
        delivery.reply(200, b"")

    rabbit.instance(handler, credit=1)
    client = a_client(rabbit)
    for n in range(200):
        Call(client, b"%d" % n, flags=ONE_WAY)
    gevent.sleep(0)
    assert len(client._confirming.calls) == 10
    assert len(client._waiting[True]) == 190
    assert client.close(PATIENCE_S) == []
    wait_for(lambda: len(served) == 200)
    assert served == [b"%d" % n for n in range(200)]


def test_a_broker_that_refuses_what_is_to_be_stored_is_503_and_the_rest_goes_by_another_channel(
    rabbit: RabbitEngine,
) -> None:
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    with rabbit.broker.connect() as connection:
        channel = connection.channel()
        for service, arguments in (("full", full), ("empty", {})):
            channel.queue_declare(f"{service}:durable", durable=True, arguments=arguments)
        client = a_client(rabbit)
        before = client._confirming
        assert before is not None
        calls = [
            Call(client, to=service, flags=ONE_WAY | DURABLE)
            for service in ("full", "full", "empty", "full", "empty")
        ]
        assert sorted(call.status for call in calls) == [202, 202, 202, 503, 503]
        assert [calls[n].status for n in (0, 2, 4)] == [202] * 3
        wait_for(lambda: client._confirming is not None)
        wait_for(lambda: before.channel.is_closed)
        assert client._confirming is not before
        assert Call(client, to="empty", flags=ONE_WAY | DURABLE).status == 202
        assert channel.queue_declare("empty:durable", passive=True).method.message_count == 3
    rabbit.broker.delete_queues(["full:durable", "empty:durable"])


def test_over_what_may_wait_the_answer_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp_waiting, "MAX_WAITING", 3)
    client = AmqpClient([f"amqp://127.0.0.1:{free_port()}"])
    calls = []
    for _ in range(5):
        calls.append(Call(client))
        gevent.sleep(0)
    wait_for(lambda: calls[4].replies)
    assert [bool(call.replies) for call in calls] == [False, False, False, True, True]
    client.close(0.0)


@pytest.mark.slow
def test_a_frozen_broker_lets_nobody_wait_beyond_the_deadline(
    rabbit: RabbitEngine, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_client, "CONFIRM_TIMEOUT_S", 0.2)
    rabbit.instance(echo)
    client = a_client(rabbit)
    assert Call(client).status == 200
    broker.signal(signal.SIGSTOP)
    try:
        Call(client, flags=ONE_WAY)
        assert Call(client, within_s=0.3).status == 504
        wait_for(lambda: client._refusals)
        assert client._refusals[0] == (503, "the broker has not confirmed it")
    finally:
        broker.signal(signal.SIGCONT)
    assert Call(client).status == 200


@pytest.mark.slow
def test_a_broker_without_memory_is_given_nothing_until_it_has_some(
    rabbit: RabbitEngine, broker: Broker
) -> None:
    rabbit.instance(echo)
    client = rabbit.client(connect_timeout_s=0.2)
    assert Call(client).status == 200
    broker.control("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        # The broker says so to those who publish; what made it say so is not lost.
        first = Call(client, within_s=60.0)
        wait_for(lambda: link_of(client).is_blocked)
        reply = Call(client).final()
        assert reply.status == 503
        assert "memory" in codec.loads(reply.envelope)["message"]
        assert Call(client, flags=ONE_WAY).status == 503
    finally:
        broker.control("set_vm_memory_high_watermark", "absolute", "1GB")
    assert first.final(60.0).status == 200
    wait_for(lambda: not link_of(client).is_blocked)
    assert Call(client).status == 200
    assert [status for status, _ in client.close(PATIENCE_S)] == [503]


@pytest.mark.slow
def test_a_restarted_broker_finds_clients_and_instances_again(rabbit: RabbitEngine, broker: Broker) -> None:
    gate = Gate()
    rabbit.instance(gate)
    client = a_client(rabbit)
    plain = [Call(client) for _ in range(100)]
    idempotent = [Call(client, flags=IDEMPOTENT, within_s=30.0) for _ in range(1000)]
    wait_for(lambda: gate.now)
    broker.stop(signal.SIGKILL)
    assert {call.status for call in plain} == {502}
    gate.open()
    lost = Call(client, within_s=0.5)
    assert lost.status == 504
    broker.start()
    wait_for(lambda: client._calling is not None)
    instance = rabbit._opened[0]
    assert instance.wait_until_registered(PATIENCE_S)  # type: ignore[union-attr]
    assert Call(client).status == 200
    assert {call.final(30.0).status for call in idempotent} == {200}


def test_the_owner_of_a_path_is_remembered_and_found_again(rabbit: RabbitEngine) -> None:
    rabbit.instance(lambda delivery: delivery.reply(200, b"a"), "", paths=["/a"])
    client = a_client(rabbit)
    assert Call(client, to="/a/b/c/d").final().envelope == b"a"
    assert client._owners.of("/a/b/c/d", monotonic()) == "/a"
    assert Call(client, to="/a/b/c/d").final().envelope == b"a"
    rabbit.instance(lambda delivery: delivery.reply(200, b"b"), "", paths=["/a/b/"])
    rabbit.broker.delete_queues(["/a"])
    assert Call(client, to="/a/b/c/d").final().envelope == b"b"


def test_a_fork_leaves_the_connection_to_its_parent(rabbit: RabbitEngine) -> None:
    rabbit.instance(echo)
    client = a_client(rabbit)
    assert Call(client).status == 200
    pid = os.fork()  # not gevent.os.fork, which would reap the children of other tests
    if not pid:
        try:
            os._exit(0 if client._is_closed and not link_of(client)._keeper.users else 1)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    gevent.sleep(0.05)
    assert Call(client).status == 200
    assert link_of(client)._keeper._turn == 0
