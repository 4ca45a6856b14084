"""Commands to one instance: past queue and credit, to nobody else, and answered once whatever happens."""

from __future__ import annotations

import pytest

from butler_mesh import codec
from butler_mesh.protocol import mesh
from butler_mesh.protocol.liveness import State
from butler_mesh.protocol.management import MAX_OVERDRAFT
from butler_mesh.protocol.mesh import IDEMPOTENT, ONE_WAY, STREAM
from tests.protocol.net import Net, reply, request
from tests.protocol.test_dispatcher import tokens


def test_a_command_reaches_the_instance_that_it_names_and_no_other() -> None:
    net = Net()
    caller = net.caller()
    workers = [net.worker() for _ in range(3)]
    asked = caller.ask(f"mgt.{workers[1].machine.identity.wid}", b'{"a":1}')
    assert [len(worker.jobs) for worker in workers] == [0, 1, 0]
    assert workers[1].jobs[0].envelope == b'{"a":1}'
    workers[1].reply(envelope=b"done")
    assert (asked.code, asked.envelope) == (200, b"done")


def test_a_command_overdraws_the_credit_and_the_credit_is_whole_afterwards() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=1)
    wid = worker.machine.identity.wid
    first, second = caller.ask("svc"), caller.ask("svc")
    command = caller.ask(f"mgt.{wid}")
    assert len(worker.jobs) == 2
    worker.reply()
    # The command is still there: it stands in for the credit that it has overdrawn.
    assert (first.code, len(worker.jobs)) == (200, 1)
    worker.reply()
    assert (command.code, len(worker.jobs)) == (200, 1)
    worker.reply()
    assert second.code == 200
    (instance,) = net.router.instances.values()
    assert (instance.free, instance.in_rotation) == (1, True)


def test_a_command_reaches_an_instance_that_is_blocked_or_takes_no_more() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    (instance,) = net.router.instances.values()
    net.router.dispatcher.judge(instance, State.BLOCKED)
    asked = caller.ask(f"mgt.{instance.wid}")
    assert len(worker.jobs) == 1
    worker.machine.stop_intake()
    net.settle()
    again = caller.ask(f"mgt.{instance.wid}")
    assert len(worker.jobs) == 2
    worker.reply()
    worker.reply()
    assert (asked.code, again.code) == (200, 200)


def test_a_command_for_nobody_is_404_and_one_that_streams_400() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    assert caller.ask("mgt.svc").code == 404
    assert caller.ask("mgt.").code == 404
    assert caller.ask(f"mgt.{worker.machine.identity.wid}", flags=STREAM, window=1).code == 400
    assert worker.jobs == []


def test_too_many_commands_at_once_are_503() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=2)
    target = f"mgt.{worker.machine.identity.wid}"
    taken = [caller.ask(target) for _ in range(2 + MAX_OVERDRAFT)]
    assert caller.ask(target).code == 503
    for _ in taken:
        worker.reply()
    assert [asked.code for asked in taken] == [200] * len(taken)


@pytest.mark.parametrize("flags", [0, IDEMPOTENT])
def test_a_command_whose_instance_dies_is_502_and_never_given_to_another(flags: int) -> None:
    net = Net()
    caller, other = net.caller(), net.worker()
    worker = net.worker()
    asked = caller.ask(f"mgt.{worker.machine.identity.wid}", flags=flags)
    net.drop(worker)
    net.settle()
    assert asked.code == 502
    assert other.jobs == []


def test_a_command_that_is_returned_is_502() -> None:
    net = Net()
    client, raw, other = net.raw_client(), net.raw_instance(wid="svc-one"), net.worker()
    net.send(client, mesh.REQUEST, 0, 7, 1000, request("mgt.svc-one"))
    net.send(raw, mesh.RETURN, 0, *tokens(raw))
    assert client.finals() == [(7, 502)]
    assert other.jobs == []


def test_a_command_expires_and_is_cancelled_like_any_call() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    target = f"mgt.{worker.machine.identity.wid}"
    late, given_up = caller.ask(target, timeout_s=1.0), caller.ask(target)
    caller.cancel(given_up)
    net.advance(1.5)
    assert late.code == 504
    assert given_up.replies == []
    assert worker.intake.running == 0


def test_a_command_of_one_way_is_passed_on_and_not_answered() -> None:
    net = Net()
    client, raw = net.raw_client(), net.raw_instance(wid="svc-one")
    net.send(client, mesh.REQUEST, ONE_WAY, 7, 1000, request("mgt.svc-one"))
    net.send(raw, mesh.FINAL, 0, *tokens(raw), 0, reply())
    assert client.finals() == []


def test_a_command_that_came_too_late_is_504() -> None:
    net = Net()
    client, _ = net.raw_client(), net.raw_instance(wid="svc-one")
    net.send(client, mesh.REQUEST, 0, 7, 0, request("mgt.svc-one"))
    assert client.finals() == [(7, 504)]


def test_mmi_instances_names_those_that_can_be_sent_commands() -> None:
    net = Net()
    caller = net.caller()
    question = codec.dumps({"arguments": {"service": "svc"}})
    assert caller.ask("mmi.instances", question).code == 404
    wids = sorted(net.worker(paths=["/p"]).machine.identity.wid for _ in range(2))
    net.worker("other")
    assert caller.ask("mmi.instances", question).answer == {"body": wids}
    assert caller.ask("mmi.instances", codec.dumps({"body": "/p/q"})).answer == {"body": wids}
    assert caller.ask("mmi.instances", b"[").code == 404


def test_a_service_cannot_have_a_name_that_commands_have() -> None:
    net = Net()
    net.raw_instance(service="mgt.svc")
    assert net.router.instances == {}
