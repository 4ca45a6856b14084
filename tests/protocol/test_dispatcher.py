"""Calls find instances, replies find callers, and every call ends: over a network in memory."""

from __future__ import annotations

from time import perf_counter

import pytest

from butler_mesh import codec
from butler_mesh.protocol import directory, dispatcher, mesh
from butler_mesh.protocol.directory import MAX_POOLS
from butler_mesh.protocol.dispatcher import RETRY_AFTER_S
from butler_mesh.protocol.instance import Sign
from butler_mesh.protocol.limits import ABSENT_GRACE_S
from butler_mesh.protocol.mesh import ATTACH_OVER, IDEMPOTENT, ONE_WAY, STREAM, UNBOUNDED_WINDOW
from butler_mesh.protocol.outbox import MAX_OUTBOX_BYTES
from tests.protocol.net import Asked, Net, Raw, Worker, all_is_over, reply, request

MIB = 1024 * 1024


def tokens(raw: Raw) -> list[int]:
    """Return the tokens of the REQUESTs a raw instance got since last asked."""
    return [record.id for record in raw.got(mesh.REQUEST)]


def counted(net: Net, name: str) -> int:
    return net.router.counters[name]


# --- matching -----------------------------------------------------------------------------------


def test_a_call_reaches_the_service_it_names_and_the_reply_its_caller() -> None:
    net = Net()
    one, other = net.caller(), net.caller()
    worker, bystander = net.worker("svc"), net.worker("svc.other")
    first, second = one.ask("svc", b'{"n":1}'), other.ask("svc", b'{"n":2}')
    assert [(job.target, job.envelope) for job in worker.jobs] == [(b"svc", b'{"n":1}'), (b"svc", b'{"n":2}')]
    worker.reply(worker.jobs[1], 201, b'{"to":2}')
    worker.reply(worker.jobs[0], 200, b'{"to":1}')
    assert (first.code, first.answer) == (200, {"to": 1})
    assert (second.code, second.answer) == (201, {"to": 2})
    assert not bystander.seen
    all_is_over(net, [one, other], [worker, bystander])


@pytest.mark.parametrize(
    ("target", "who"),
    [
        ("/img", "img"),
        ("/img/", "img"),
        ("/img/a/b", "img"),
        ("/img/thumb", "thumb"),
        ("/img/thumb/7", "thumb"),
        ("/img/thumbs", "img"),
        ("/imgs", "root"),
        ("/", "root"),
        ("/x/img", "root"),
    ],
)
def test_a_path_goes_to_the_longest_prefix_of_whole_segments(target: str, who: str) -> None:
    net = Net()
    paths = {"root": ["/"], "img": ["/img/"], "thumb": ["/img/thumb"]}
    workers = [net.worker(name, paths=its) for name, its in paths.items()]
    net.caller().ask(target)
    assert [worker.machine.identity.service for worker in workers if worker.jobs] == [who]


def test_a_service_name_is_matched_whole_and_never_as_a_path() -> None:
    net = Net(register_grace_s=0.0)
    net.worker("svc", paths=["/svc"])
    caller = net.caller()
    assert [caller.ask(target).code for target in ("sv", "svc.x", "svc/x", "")] == [404] * 4
    assert caller.ask("/svc/x").code is None


def test_an_instance_without_a_name_answers_by_path_only() -> None:
    net = Net(register_grace_s=0.0)
    worker, twin = net.worker("", paths=["/b", "/a"]), net.worker("", paths=["/a", "/b"])
    caller = net.caller()
    caller.ask("/a/x")
    caller.ask("/b")
    assert len(worker.jobs) == len(twin.jobs) == 1
    assert caller.ask("").code == 404


def test_a_target_of_nothing_but_slashes_costs_no_time() -> None:
    net = Net(register_grace_s=0.0)
    net.worker("svc", paths=["/a/b"])
    began = perf_counter()
    assert net.router.dispatcher.directory.find(b"/" * 65_535) is None
    assert perf_counter() - began < 0.1


# --- credit ---------------------------------------------------------------------------------------


def test_an_instance_never_has_more_calls_than_its_credit_and_the_rest_waits_in_order() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=2)
    calls = [caller.ask("svc", b'{"n":%d}' % n) for n in range(5)]
    order = []
    while worker.jobs:
        assert len(worker.jobs) == min(2, 5 - len(order))
        order.append(worker.jobs[0].envelope)
        worker.reply()
    assert order == [b'{"n":%d}' % n for n in range(5)]
    assert [call.code for call in calls] == [200] * 5
    assert worker.peak == 2
    all_is_over(net, [caller], [worker])


def test_the_least_recently_used_instance_with_credit_is_next() -> None:
    net = Net()
    caller, a, b, c = net.caller(), net.worker(credit=2), net.worker(credit=2), net.worker(credit=1)
    for _ in range(5):
        caller.ask("svc")
    assert [len(worker.jobs) for worker in (a, b, c)] == [2, 2, 1]
    b.reply()
    a.reply()
    caller.ask("svc")
    assert len(b.jobs) == 2
    caller.ask("svc")
    assert len(a.jobs) == 2


def test_an_instance_without_credit_gets_nothing_until_a_CREDIT_comes() -> None:
    net = Net()
    caller = net.caller()
    raw = net.raw_instance(credit=0)
    caller.ask("svc")
    caller.ask("svc")
    assert tokens(raw) == []
    net.send(raw, mesh.CREDIT, payload=mesh.pack_credit(1))
    assert len(tokens(raw)) == 1
    net.send(raw, mesh.CREDIT, payload=mesh.pack_credit(-1))
    net.send(raw, mesh.CREDIT, payload=mesh.pack_credit(1))
    assert tokens(raw) == []
    net.send(raw, mesh.CREDIT, payload=mesh.pack_credit(1))
    assert len(tokens(raw)) == 1


def test_credit_taken_back_while_calls_run_is_not_given_again_by_their_replies() -> None:
    net = Net()
    caller, raw = net.caller(), net.raw_instance(credit=2)
    for _ in range(4):
        caller.ask("svc")
    first, second = tokens(raw)
    net.send(raw, mesh.CREDIT, payload=mesh.pack_credit(-2))
    net.send(raw, mesh.FINAL, 0, first, 0, reply())
    net.send(raw, mesh.FINAL, 0, second, 0, reply())
    assert tokens(raw) == []


def test_a_full_credit_of_65535_is_taken() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=65_535)
    for _ in range(100):
        caller.ask("svc")
    assert len(worker.jobs) == 100


# --- queues ---------------------------------------------------------------------------------------


def test_a_full_queue_is_503_with_Retry_After_at_once() -> None:
    net = Net(queue_limit=2)
    caller, worker = net.caller(), net.worker(credit=1)
    calls = [caller.ask("svc") for _ in range(4)]
    assert [call.code for call in calls] == [None, None, None, 503]
    assert calls[3].answer["headers"] == {"Retry-After": f"{RETRY_AFTER_S:g}"}
    worker.reply()
    assert caller.ask("svc").code is None


def test_one_client_with_many_calls_delays_another_by_one() -> None:
    net = Net()
    greedy, modest, worker = net.caller(), net.caller(), net.worker(credit=1)
    for n in range(10):
        greedy.ask("svc", b'{"greedy":%d}' % n)
    modest.ask("svc", b'{"modest":1}')
    modest.ask("svc", b'{"modest":2}')
    order = []
    for _ in range(6):
        order.append(worker.jobs[0].envelope[2:8])
        worker.reply()
    assert order == [b"greedy", b"greedy", b"modest", b"greedy", b"modest", b"greedy"]


# --- deadlines --------------------------------------------------------------------------------------


def test_a_call_that_waits_for_credit_past_its_deadline_is_504_and_reaches_no_handler() -> None:
    net = Net()
    worker, caller, raw = net.worker(credit=1, is_stubborn=True), net.caller(), net.raw_client()
    caller.ask("svc")
    net.send(raw, mesh.REQUEST, 0, 7, 1000, request("svc"))
    net.advance(0.99)
    assert raw.finals() == []
    net.advance(0.05)
    assert raw.finals() == [(7, 504)]
    worker.reply()
    assert len(worker.seen) == 1


def test_a_running_call_whose_deadline_passes_is_504_cancelled_and_keeps_its_credit() -> None:
    net = Net()
    raw, client = net.raw_instance(credit=1), net.raw_client()
    net.send(client, mesh.REQUEST, 0, 7, 1000, request("svc"))
    (token,) = tokens(raw)
    net.advance(1.05)
    assert client.finals() == [(7, 504)]
    assert [record.id for record in raw.got(mesh.CANCEL)] == [token]
    net.send(client, mesh.REQUEST, 0, 8, 1000, request("svc"))
    assert tokens(raw) == []
    net.send(raw, mesh.FINAL, 0, token, 0, reply())
    assert len(tokens(raw)) == 1
    assert client.finals() == []


def test_a_call_that_lay_in_a_pipe_past_its_deadline_is_504_on_arrival() -> None:
    net = Net()
    worker, client = net.worker(), net.raw_client()
    assert client.link is not None
    client.link.is_held = True
    net.send(client, mesh.REQUEST, 0, 7, 1000, request("svc"))
    net.advance(2.0)
    client.link.is_held = False
    net.settle()
    assert client.finals() == [(7, 504)]
    assert not worker.seen
    assert counted(net, "expired.on_arrival") == 1


def test_the_time_a_call_lay_in_a_pipe_comes_off_what_remains_for_the_handler() -> None:
    net = Net()
    worker, client = net.worker(), net.raw_client()
    assert client.link is not None
    asked_at = net.now
    client.link.is_held = True
    net.send(client, mesh.REQUEST, 0, 7, 1000, request("svc"))
    net.advance(0.4)
    client.link.is_held = False
    net.settle()
    assert worker.jobs[0].deadline == pytest.approx(asked_at + 1.0, abs=0.003)


def test_the_time_a_call_waited_in_the_queue_comes_off_what_remains_for_the_handler() -> None:
    net = Net()
    worker, caller = net.worker(credit=1), net.caller()
    caller.ask("svc")
    asked_at = net.now
    caller.ask("svc", timeout_s=5.0)
    net.advance(2.0)
    worker.reply()
    assert worker.jobs[0].deadline == pytest.approx(asked_at + 5.0, abs=0.003)


def test_no_remaining_time_is_504_for_a_plain_request_and_no_deadline_for_a_stream() -> None:
    net = Net()
    worker, client = net.worker(), net.raw_client()
    net.send(client, mesh.REQUEST, 0, 1, 0, request("svc"))
    assert client.finals() == [(1, 504)]
    net.send(client, mesh.REQUEST, STREAM, 2, 0, request("svc", window=4))
    for _ in range(10):
        net.advance(10.0)
        net.send(client, mesh.HEARTBEAT)
    assert client.finals() == []
    worker.reply()
    assert client.finals() == [(2, 200)]


def test_a_deadline_that_passes_where_no_instance_ever_came_is_503() -> None:
    net = Net(register_grace_s=10.0)
    client = net.raw_client()
    net.send(client, mesh.REQUEST, 0, 7, 1000, request("svc"))
    net.advance(1.05)
    (record,) = client.got(mesh.FINAL)
    assert mesh.split_status(record.payload) == 503
    assert b"Retry-After" in record.payload
    all_is_over(net, [], [])


# --- unknown services -------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["svc", "/page", "/page/deep"])
def test_a_service_that_registers_after_its_first_request_serves_it(target: str) -> None:
    net = Net()
    caller = net.caller()
    asked = caller.ask(target)
    net.advance(1.0)
    assert asked.code is None
    worker = net.worker("svc", paths=["/page"])
    worker.reply()
    assert asked.code == 200
    assert set(net.router.dispatcher.pools) == {b"svc"}


def test_requests_that_waited_for_a_path_go_to_the_longest_prefix_that_comes_and_keep_their_order() -> None:
    net = Net()
    caller = net.caller()
    for n in range(3):
        caller.ask("/a/b", b'{"n":%d}' % n)
    caller.ask("/a")
    caller.ask("/ab")
    deep = net.worker("deep", paths=["/a/b"])
    shallow = net.worker("shallow", paths=["/a"])
    assert [job.envelope for job in deep.jobs] == [b'{"n":0}', b'{"n":1}', b'{"n":2}']
    assert [job.target for job in shallow.jobs] == [b"/a"]


def test_an_unknown_service_is_404_once_the_router_has_been_up_for_the_grace() -> None:
    net = Net(register_grace_s=3.0)
    caller = net.caller()
    net.advance(2.9)
    early = caller.ask("svc", timeout_s=1.0)
    assert early.code is None
    net.advance(0.2)
    assert caller.ask("typo").code == caller.ask("/typo").code == 404
    assert early.code is None
    net.advance(1.0)
    assert early.code in (503, 504)


def test_after_its_last_instance_left_requests_wait_a_minute_then_are_503_and_after_an_hour_404() -> None:
    """Deploy, outage, gone for good: the caller is told which."""
    net = Net(register_grace_s=0.0, forget_service_s=2 * ABSENT_GRACE_S)
    caller, worker = net.caller(), net.worker(paths=["/svc"])
    net.advance(ABSENT_GRACE_S)
    net.kill(worker)
    calls = [caller.ask("svc"), caller.ask("/svc/x")]
    net.advance(20.0)
    assert [call.code for call in calls] == [None, None]
    heir = net.worker(paths=["/svc"])
    assert len(heir.jobs) == 2
    net.kill(heir)
    net.advance(ABSENT_GRACE_S + 0.5)
    assert [caller.ask("svc").code, caller.ask("/svc/x").code] == [503, 503]
    assert net.router.counters["refused.absent"] == 2
    net.advance(ABSENT_GRACE_S)
    assert [caller.ask("svc").code, caller.ask("/svc/x").code] == [404, 404]


def test_services_that_are_long_gone_or_never_came_are_forgotten() -> None:
    net = Net(register_grace_s=1.0, forget_service_s=ABSENT_GRACE_S)
    caller, worker = net.caller(), net.worker("svc", paths=["/svc"])
    asked = caller.ask("typo", timeout_s=5.0)
    net.kill(worker)
    net.advance(4.0)
    assert set(net.router.dispatcher.pools) == {b"svc", b"typo"}
    net.advance(2.0)
    assert set(net.router.dispatcher.pools) == {b"svc"}
    assert asked.finals
    net.advance(ABSENT_GRACE_S)
    assert not net.router.dispatcher.pools
    assert not net.router.dispatcher.directory.prefixes


def test_names_that_clients_make_up_do_not_grow_the_table_without_end() -> None:
    net = Net()
    client = net.raw_client()
    dispatcher = net.router.dispatcher
    net.send(client, mesh.REQUEST, 0, 1, 1000, request("svc"))
    pool = dispatcher.pools[b"svc"]
    # The table's limit, reached by the shortest way: one pool under many names.
    dispatcher.pools.update((b"%d" % n, pool) for n in range(MAX_POOLS - 1))
    net.send(client, mesh.REQUEST, 0, 2, 1000, request("one-more"))
    assert client.finals() == [(2, 503)]
    assert counted(net, "refused.too_many_services") == 1


def test_names_that_clients_make_up_keep_no_service_from_registering() -> None:
    net = Net()
    client, caller = net.raw_client(), net.caller()
    for n in range(MAX_POOLS // 100):
        for id_ in range(100):
            net.send(client, mesh.REQUEST, 0, 100 * n + id_ + 1, 60_000, request(f"made-up-{n}-{id_}"))
    assert len(net.router.dispatcher.pools) == MAX_POOLS
    net.worker("svc").handler = lambda worker, job: worker.reply(job)
    assert caller.ask("svc").code == 200


def test_paths_of_all_services_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "MAX_PREFIXES", 10)
    net = Net()
    first = net.worker("first", paths=[f"/{n}" for n in range(8)])
    again = net.worker("first", paths=[f"/{n}" for n in range(8)])
    second = net.raw_instance(wid="second", service="second", paths=["/x", "/y", "/z"])
    (goodbye,) = second.got(mesh.GOODBYE)
    assert mesh.split_reason(goodbye.payload) == (409, "too many services, or paths")
    assert sorted(net.router.instances) == sorted([first.wid, again.wid])


def test_a_one_way_request_is_no_stream_and_has_a_deadline() -> None:
    net = Net()
    client = net.raw_client()
    net.send(client, mesh.REQUEST, ONE_WAY | STREAM, 1, 0, request("svc", window=1))
    assert counted(net, "expired.on_arrival") == 1
    assert not len(net.router.dispatcher.pools[b"svc"].queue)


def test_who_greets_anew_over_one_connection_is_still_one_client_to_the_queue() -> None:
    net = Net(queue_limit=10)
    honest, sybil = net.caller(), net.raw_client()
    net.worker("svc", credit=1, is_stubborn=True)
    honest.ask("svc")
    for id_ in range(20):
        net.send(sybil, mesh.HELLO, payload=codec.dumps({"role": "client"}))
        net.send(sybil, mesh.REQUEST, ONE_WAY, id_ + 1, 60_000, request("svc"))
    asked = [honest.ask("svc") for _ in range(5)]
    assert [each.code for each in asked] == [None] * 5


# --- cancel, RETURN -----------------------------------------------------------------------------------


def test_CANCEL_of_a_queued_call_takes_it_out_of_the_queue() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=1)
    caller.ask("svc")
    second, third = caller.ask("svc", b'{"n":2}'), caller.ask("svc", b'{"n":3}')
    caller.cancel(second)
    worker.reply()
    assert [job.envelope for job in worker.jobs] == [b'{"n":3}']
    worker.reply()
    assert (second.replies, third.code) == ([], 200)
    all_is_over(net, [caller], [worker])


def test_CANCEL_reaches_the_handler_and_frees_nothing_until_its_FINAL() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=1, is_stubborn=True)
    first = caller.ask("svc")
    caller.ask("svc")
    caller.cancel(first)
    assert [sign for sign, _ in worker.signs] == [Sign.ARRIVED, Sign.CANCELLED]
    assert len(worker.jobs) == 1
    worker.reply(code=499)
    assert len(worker.seen) == 2
    assert first.replies == []
    worker.reply()
    all_is_over(net, [caller], [worker])


def test_CANCEL_of_a_call_that_is_unknown_or_another_clients_does_nothing() -> None:
    net = Net()
    one, other, worker = net.raw_client(), net.raw_client(), net.worker()
    net.send(one, mesh.REQUEST, 0, 7, 1000, request("svc"))
    net.send(other, mesh.CANCEL, 0, 7)
    net.send(one, mesh.CANCEL, 0, 8)
    worker.reply()
    assert one.finals() == [(7, 200)]


def test_a_RETURNed_call_goes_to_the_front_of_the_queue_and_to_another_instance() -> None:
    net = Net()
    client, raw = net.raw_client(), net.raw_instance(credit=1)
    for id_ in (1, 2, 3):
        net.send(client, mesh.REQUEST, 0, id_, 1000, request("svc", b'{"n":%d}' % id_))
    (token,) = tokens(raw)
    net.send(raw, mesh.RETURN, 0, token)
    worker = net.worker(credit=3)
    assert [job.envelope for job in worker.jobs] == [b'{"n":1}', b'{"n":2}', b'{"n":3}']


def test_a_RETURNed_call_does_not_go_straight_back_to_where_it_came_from() -> None:
    net = Net()
    client, raw = net.raw_client(), net.raw_instance(credit=1)
    net.send(client, mesh.REQUEST, 0, 1, 1000, request("svc"))
    (token,) = tokens(raw)
    net.send(raw, mesh.RETURN, 0, token)
    assert tokens(raw) == []
    net.send(raw, mesh.CREDIT, payload=mesh.pack_credit(1))
    (again,) = tokens(raw)
    assert again != token
    net.send(raw, mesh.FINAL, 0, again, 0, reply())
    assert client.finals() == [(1, 200)]


def test_a_RETURN_of_a_call_nobody_waits_for_ends_it() -> None:
    net = Net()
    client, raw = net.raw_client(), net.raw_instance(credit=1)
    net.send(client, mesh.REQUEST, 0, 1, 1000, request("svc"))
    net.send(client, mesh.CANCEL, 0, 1)
    net.send(raw, mesh.RETURN, 0, *tokens(raw))
    net.send(raw, mesh.CREDIT, payload=mesh.pack_credit(1))
    assert tokens(raw) == []
    all_is_over(net, [], [])


# --- tokens -----------------------------------------------------------------------------------------


def test_a_reply_for_an_unknown_token_or_somebody_elses_reaches_nobody_and_is_counted() -> None:
    net = Net()
    client, owner = net.raw_client(), net.raw_instance(wid="owner")
    thief = net.raw_instance(wid="thief", service="other")
    net.send(client, mesh.REQUEST, 0, 7, 1000, request("svc"))
    (token,) = tokens(owner)
    for forged in (token, token + 1, 7, 0, (1 << 64) - 1):
        for kind in (mesh.FINAL, mesh.PARTIAL):
            net.send(thief, kind, 0, forged, 0, reply(200, b'{"forged":1}'))
        net.send(thief, mesh.RETURN, 0, forged)
    assert client.finals() == []
    assert counted(net, "dropped.unknown_token") == 15
    net.send(owner, mesh.FINAL, 0, token, 0, reply(201))
    assert client.finals() == [(7, 201)]


def test_a_second_reply_for_a_token_reaches_nobody_and_gives_no_credit() -> None:
    net = Net()
    client, raw = net.raw_client(), net.raw_instance(credit=1)
    net.send(client, mesh.REQUEST, 0, 7, 1000, request("svc"))
    (token,) = tokens(raw)
    for _ in range(3):
        net.send(raw, mesh.FINAL, 0, token, 0, reply())
    assert client.finals() == [(7, 200)]
    assert counted(net, "dropped.unknown_token") == 2
    for id_ in (8, 9):
        net.send(client, mesh.REQUEST, 0, id_, 1000, request("svc"))
    assert len(tokens(raw)) == 1


def test_a_client_cannot_answer_and_an_instance_cannot_ask() -> None:
    net = Net()
    client, raw = net.raw_client(), net.raw_instance()
    net.send(client, mesh.REQUEST, 0, 7, 1000, request("svc"))
    (token,) = tokens(raw)
    net.send(client, mesh.FINAL, 0, token, 0, reply())
    net.send(raw, mesh.REQUEST, 0, 1, 1000, request("svc"))
    assert (client.finals(), raw.finals()) == ([], [])
    assert counted(net, "dropped.unexpected") == 2


def test_a_token_of_an_earlier_registration_means_nothing() -> None:
    net = Net()
    client, raw = net.raw_client(), net.raw_instance()
    net.send(client, mesh.REQUEST, 0, 7, 1000, request("svc"))
    (token,) = tokens(raw)
    again = net.raw_instance()
    assert client.finals() == [(7, 502)]
    for late in (raw, again):
        net.send(late, mesh.FINAL, 0, token, 0, reply())
    assert client.finals() == []
    assert counted(net, "dropped.unknown_token") == 1


def test_tokens_are_never_reused_and_differ_from_router_to_router() -> None:
    firsts = []
    for _ in range(2):
        net = Net()
        for _ in range(3 * len(firsts)):
            net.number()
        net.start_router()
        client, raw = net.raw_client(), net.raw_instance(credit=5)
        for id_ in range(5):
            net.send(client, mesh.REQUEST, 0, id_, 1000, request("svc"))
        seen = tokens(raw)
        assert len(set(seen)) == 5
        assert 0 < min(seen) <= max(seen) < 1 << 63
        firsts.append(seen[0])
    assert firsts[0] != firsts[1]


# --- requests that are refused ------------------------------------------------------------------------


def test_a_second_request_with_the_id_of_one_that_runs_is_dropped_and_counted() -> None:
    net = Net()
    client, worker = net.raw_client(), net.worker()
    for _ in range(2):
        net.send(client, mesh.REQUEST, 0, 7, 1000, request("svc"))
    assert len(worker.jobs) == 1
    assert counted(net, "dropped.duplicate_id") == 1
    worker.reply()
    assert client.finals() == [(7, 200)]
    net.send(client, mesh.REQUEST, 0, 7, 1000, request("svc"))
    assert len(worker.jobs) == 1


def test_two_clients_may_use_the_same_id() -> None:
    net = Net()
    one, other, worker = net.raw_client(), net.raw_client(), net.worker()
    for client in (one, other):
        net.send(client, mesh.REQUEST, 0, 7, 1000, request("svc"))
    worker.reply(code=201)
    worker.reply(code=202)
    assert (one.finals(), other.finals()) == ([(7, 201)], [(7, 202)])


@pytest.mark.parametrize("bit", [0x40, 0x80, 0xC0])
def test_a_request_with_a_critical_flag_is_501(bit: int) -> None:
    net = Net()
    client, worker = net.raw_client(), net.worker()
    net.send(client, mesh.REQUEST, bit, 7, 1000, request("svc"))
    assert client.finals() == [(7, 501)]
    assert not worker.seen


def test_a_reply_with_a_critical_flag_is_502() -> None:
    net = Net()
    client, raw = net.raw_client(), net.raw_instance()
    net.send(client, mesh.REQUEST, 0, 7, 1000, request("svc"))
    net.send(raw, mesh.FINAL, 0x40, *tokens(raw), 0, reply())
    assert client.finals() == [(7, 502)]


def test_a_router_that_drains_refuses_what_is_new_with_503_and_finishes_the_rest() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=1)
    calls = [caller.ask("svc"), caller.ask("svc")]
    net.router.stop_intake()
    refused = caller.ask("svc")
    assert (refused.code, "Retry-After" in refused.answer["headers"]) == (503, True)
    for _ in calls:
        assert net.router.dispatcher.directory.has_work()
        worker.reply()
    assert [call.code for call in calls] == [200, 200]
    assert not net.router.dispatcher.directory.has_work()


def test_an_unknown_flag_that_is_not_critical_is_passed_on() -> None:
    net = Net()
    client, worker = net.raw_client(), net.worker()
    net.send(client, mesh.REQUEST, 0x20, 7, 1000, request("svc"))
    assert worker.jobs[0].flags == 0x20


@pytest.mark.parametrize("attached", [False, True])
def test_a_body_over_the_routers_maximum_is_413(attached: bool) -> None:
    net = Net(max_body_bytes=1000)
    client, worker = net.raw_client(), net.worker()
    for id_, size in ((1, 1000), (2, 1001)):
        envelope = b"x" * size
        if attached:
            net.send(client, mesh.REQUEST, 0, id_, 1000, request("svc", b""), envelope)
        else:
            net.send(client, mesh.REQUEST, 0, id_, 1000, request("svc", envelope))
    assert client.finals() == [(2, 413)]
    assert len(worker.jobs) == 1


@pytest.mark.parametrize("payload", [b"", b"\x05", b"\x05\x00svc", b"\xff\xffsvc"])
def test_a_request_whose_target_is_cut_short_is_answered_400_and_counted(payload: bytes) -> None:
    net = Net()
    client = net.raw_client()
    net.send(client, mesh.REQUEST, 0, 7, 1000, payload)
    net.send(client, mesh.REQUEST, STREAM, 8, 1000, request("svc", b""))
    assert client.finals() == [(7, 400), (8, 400)]
    assert counted(net, "dropped.malformed_record") == 2


def test_what_waits_is_bounded_in_bytes_too_and_what_leaves_the_queue_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher, "MAX_QUEUED_BYTES", 2000)
    net = Net()
    caller = net.caller()
    first = caller.ask("svc", b"x" * 900)
    second = caller.ask("svc", b"x" * 900)
    third = caller.ask("svc", b"x")
    assert (first.code, second.code, third.code) == (None, None, 503)
    assert second.pending is not None
    caller.machine.cancel(second.pending)
    net.settle()
    fourth = caller.ask("svc", b"x")
    worker = net.worker()
    worker.reply()
    worker.reply()
    assert (first.code, fourth.code) == (200, 200)
    assert net.router.dispatcher.queued_bytes == 0


def test_envelopes_over_64_KiB_arrive_whole_in_both_directions() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    there, back = b"a" * (ATTACH_OVER + 1), b"b" * (2 * ATTACH_OVER)
    big, small = caller.ask("svc", there), caller.ask("svc", b'{"small":1}')
    assert [job.envelope for job in worker.jobs] == [there, b'{"small":1}']
    worker.reply(worker.jobs[1])
    worker.reply(worker.jobs[0], envelope=back)
    assert (big.envelope, small.code) == (back, 200)
    all_is_over(net, [caller], [worker])


# --- one-way ------------------------------------------------------------------------------------------


def test_a_one_way_request_is_not_answered_and_gives_its_credit_back() -> None:
    net = Net()
    client, worker = net.raw_client(), net.worker(credit=1)
    for id_ in (1, 2):
        net.send(client, mesh.REQUEST, ONE_WAY, id_, 1000, request("svc"))
        worker.reply(code=500)
    assert len(worker.seen) == 2
    assert client.finals() == []
    all_is_over(net, [], [worker])


def test_the_parts_of_a_one_way_stream_are_sent_to_nobody() -> None:
    net = Net()
    client, worker = net.raw_client(), net.worker()
    net.send(client, mesh.REQUEST, ONE_WAY | STREAM, 1, 1000, request("svc", window=8))
    worker.reply(final=False)
    worker.reply()
    assert client.got(mesh.PARTIAL) == client.got(mesh.FINAL) == []


def test_a_one_way_request_that_is_refused_or_lost_is_reported() -> None:
    net = Net(register_grace_s=0.0, queue_limit=1)
    client, worker = net.raw_client(), net.worker(credit=1)
    net.send(client, mesh.REQUEST, ONE_WAY, 1, 1000, request("typo"))
    for id_ in (2, 3, 4):
        net.send(client, mesh.REQUEST, ONE_WAY, id_, 60_000, request("svc"))
    assert client.finals() == [(1, 404), (4, 503)]
    net.kill(worker)
    assert client.finals() == [(2, 502)]


def test_a_one_way_request_goes_on_when_its_client_has_left() -> None:
    net = Net()
    client, worker = net.raw_client(), net.worker(credit=1)
    for id_ in (1, 2):
        net.send(client, mesh.REQUEST, ONE_WAY, id_, 1000, request("svc"))
    net.drop(client)
    worker.reply()
    worker.reply()
    assert len(worker.seen) == 2
    all_is_over(net, [], [worker])


def test_the_calls_of_a_client_that_left_are_taken_out_of_the_queue_or_cancelled() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=1, is_stubborn=True)
    caller.ask("svc")
    caller.ask("svc")
    net.kill(caller)
    assert [sign for sign, _ in worker.signs] == [Sign.ARRIVED, Sign.CANCELLED]
    worker.reply()
    assert len(worker.seen) == 1
    all_is_over(net, [], [worker])


# --- lost instances ---------------------------------------------------------------------------------


def test_calls_of_a_lost_instance_are_502_at_once_and_queued_ones_go_to_the_next() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=1)
    running, queued = caller.ask("svc"), caller.ask("svc")
    net.kill(worker)
    assert (running.code, queued.code) == (502, None)
    heir = net.worker()
    heir.reply()
    assert queued.code == 200
    all_is_over(net, [caller], [heir])


def test_an_idempotent_call_of_a_lost_instance_is_dispatched_again_once() -> None:
    net = Net()
    caller, first, second = net.caller(), net.worker(credit=1), net.worker(credit=1)
    asked = caller.ask("svc", flags=IDEMPOTENT)
    net.kill(first)
    assert len(second.jobs) == 1
    assert asked.code is None
    third = net.worker()
    net.kill(second)
    net.advance(0.02)
    assert asked.code == 502
    assert not third.seen


def test_an_idempotent_stream_of_which_a_part_was_read_is_not_run_again() -> None:
    net = Net()
    caller, first, second = net.caller(), net.worker(), net.worker()
    asked = caller.ask("svc", flags=IDEMPOTENT | STREAM, window=4)
    first.reply(final=False)
    net.kill(first)
    assert (len(asked.parts), asked.code) == (1, 502)
    assert not second.seen


def test_a_call_that_could_not_be_sent_to_a_lost_instance_was_never_started_and_goes_to_another() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(credit=4)
    assert worker.link is not None
    sent = caller.ask("svc")
    worker.link.is_full_to_member = True
    unsent = [caller.ask("svc"), caller.ask("svc", b"x" * (2 * ATTACH_OVER))]
    net.kill(worker)
    assert [call.code for call in (sent, *unsent)] == [502, None, None]
    heir = net.worker()
    assert len(heir.jobs) == 2
    heir.reply()
    heir.reply()
    assert [call.code for call in unsent] == [200, 200]
    all_is_over(net, [caller], [heir])


def test_the_deadline_goes_on_while_a_call_is_dispatched_again() -> None:
    net = Net()
    client, first = net.raw_client(), net.worker()
    net.send(client, mesh.REQUEST, IDEMPOTENT, 7, 2000, request("svc"))
    asked_at = net.now
    net.advance(1.0)
    net.kill(first)
    second = net.worker()
    assert second.jobs[0].deadline == pytest.approx(asked_at + 2.0, abs=0.003)


# --- full pipes ---------------------------------------------------------------------------------------


def test_a_client_that_does_not_read_its_replies_is_cut_over_8_MiB() -> None:
    net = Net()
    client, good, worker = net.raw_client(), net.caller(), net.worker()
    assert client.link is not None
    for id_ in range(10):
        net.send(client, mesh.REQUEST, 0, id_, 60_000, request("svc"))
    client.link.is_full_to_member = True
    while worker.jobs:
        worker.reply(envelope=b"x" * MIB)
    assert counted(net, "cut.slow_client") == 1
    assert [sign for sign, _ in worker.signs].count(Sign.CANCELLED) == 2
    asked = good.ask("svc")
    worker.reply()
    assert asked.code == 200
    client.link.is_full_to_member = False
    net.settle()
    assert client.finals() == []
    assert client.goodbyes() == [503]


@pytest.mark.parametrize("target", ["typo", "mmi.status", "mmi.nothing"])
def test_a_client_that_does_not_read_refusals_either_is_cut(target: str) -> None:
    net = Net(register_grace_s=0.0)
    client = net.raw_client()
    (peer,) = net.both.peers.values()
    assert client.link is not None
    client.link.is_full_to_member = True
    peer.outbox.add(mesh.HEARTBEAT, payload=b"x" * (MAX_OUTBOX_BYTES + 1))
    net.settle()
    peer.outbox.add(mesh.HEARTBEAT)
    net.send(client, mesh.REQUEST, 0, 1, 1000, request(target))
    assert counted(net, "cut.slow_client") == 1
    assert peer.outbox.pending_bytes < 1000


def test_an_instance_whose_pipe_is_full_gets_nothing_over_8_MiB_until_half_of_it_has_left() -> None:
    net = Net()
    caller, stuck = net.caller(), net.worker(credit=1000)
    assert stuck.link is not None
    stuck.link.is_full_to_member = True
    for _ in range(8):
        caller.ask("svc", b"x" * MIB)
    other = net.worker()
    for _ in range(4):
        caller.ask("svc")
    assert len(other.jobs) == 4
    stuck.link.is_full_to_member = False
    net.advance(0.5)
    assert len(stuck.jobs) == 8
    for _ in range(2):
        caller.ask("svc")
    assert (len(stuck.jobs), len(other.jobs)) == (9, 5)


# --- streams ------------------------------------------------------------------------------------------


def stream(net: Net, *, timeout_s: float = 30.0, window: int = 2) -> tuple[Worker, Asked]:
    worker = net.worker()
    asked = net.caller().ask("svc", flags=STREAM, window=window, timeout_s=timeout_s)
    return worker, asked


def test_the_parts_of_a_stream_arrive_in_order_and_before_its_FINAL() -> None:
    net = Net()
    worker, asked = stream(net)
    for n in range(2):
        worker.reply(code=206, envelope=b"%d" % n, final=False)
    worker.reply(envelope=b"end")
    assert asked.parts == [b"0", b"1"]
    assert [code for _, code, _, _ in asked.replies] == [206, 206, 200]
    assert asked.envelope == b"end"


def test_a_window_flows_from_the_reader_to_the_handler() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc", flags=STREAM, window=2)
    job = worker.jobs[0]
    for left in (1, 0):
        worker.reply(final=False)
        assert job.window == left
    caller.grant(asked, 3)
    assert job.window == 3
    assert worker.signs[-1] == (Sign.WINDOW, job)


def test_an_unbounded_window_never_shrinks_nor_grows() -> None:
    net = Net()
    client, worker = net.raw_client(), net.worker()
    net.send(client, mesh.REQUEST, STREAM, 7, 1000, request("svc", window=UNBOUNDED_WINDOW))
    worker.reply(final=False)
    net.send(client, mesh.WINDOW, 0, 7, 0, mesh.pack_window(9))
    assert worker.jobs[0].window == UNBOUNDED_WINDOW


@pytest.mark.parametrize("who", ["part", "window"])
def test_a_streams_deadline_runs_between_parts_and_is_renewed_by_WINDOW(who: str) -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc", flags=STREAM, window=9, timeout_s=1.0)
    for _ in range(5):
        net.advance(0.8)
        if who == "part":
            worker.reply(final=False)
        else:
            caller.grant(asked, 1)
    assert asked.code is None
    net.advance(1.1)
    assert asked.code == 504
    assert (Sign.EXPIRED in {sign for sign, _ in worker.signs}) or not worker.jobs
    all_is_over(net, [caller], [worker])


def test_a_stream_without_a_first_part_is_504_at_its_deadline() -> None:
    net = Net()
    _, asked = stream(net, timeout_s=1.0)
    net.advance(1.1)
    assert asked.code == 504


def test_a_PARTIAL_to_a_request_that_takes_one_reply_is_500_and_the_handler_is_stopped() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(is_stubborn=True)
    asked = caller.ask("svc")
    worker.reply(final=False)
    assert (asked.code, asked.parts) == (500, [])
    assert worker.signs[-1][0] is Sign.CANCELLED
    worker.reply()
    assert asked.code == 500
    all_is_over(net, [caller], [worker])


def test_a_reader_without_windows_is_cut_when_its_outbox_is_full() -> None:
    net = Net()
    client, worker = net.raw_client(), net.worker()
    assert client.link is not None
    net.send(client, mesh.REQUEST, STREAM, 7, 1000, request("svc", window=UNBOUNDED_WINDOW))
    client.link.is_full_to_member = True
    while worker.jobs:
        worker.reply(envelope=b"x" * MIB, final=False)
    assert counted(net, "cut.slow_client") == 1
    assert worker.signs[-1][0] is Sign.CANCELLED


def test_a_window_for_a_queued_or_unknown_call_or_of_the_wrong_size_does_nothing() -> None:
    net = Net()
    client, worker = net.raw_client(), net.worker(credit=1)
    for id_ in (1, 2):
        net.send(client, mesh.REQUEST, STREAM, id_, 1000, request("svc", window=1))
    for id_ in (2, 3):
        net.send(client, mesh.WINDOW, 0, id_, 0, mesh.pack_window(5))
    net.send(client, mesh.WINDOW, 0, 1, 0, b"12345")
    assert counted(net, "dropped.malformed_record") == 1
    assert worker.jobs[0].window == 1
    worker.reply()
    assert worker.jobs[0].window == 1


def test_a_burst_of_one_turn_fills_the_queue_only_with_what_nobody_is_free_for() -> None:
    net = Net(queue_limit=1)
    caller, worker = net.caller(), net.worker(credit=1)
    asked = [caller.ask("svc", settle=False) for _ in range(3)]
    net.settle()
    assert [call.code for call in asked] == [None, None, 503]
    worker.reply()
    worker.reply()
    assert [call.code for call in asked] == [200, 200, 503]


def test_what_waits_for_a_service_without_instances_does_not_starve_those_that_have_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher, "MAX_ABSENT_BYTES", 10_000)
    monkeypatch.setattr(dispatcher, "MAX_QUEUED_BYTES", 20_000)
    net = Net()
    hoarder, caller, worker = net.caller(), net.caller(), net.worker()
    hoarded = [hoarder.ask(f"absent-{n}", b"x" * 9000) for n in range(5)]
    assert [call.code for call in hoarded] == [None, None, None, 503, 503]
    asked = caller.ask("svc", b"x" * 9000)
    worker.reply()
    assert asked.code == 200


def test_the_router_parses_no_more_than_a_kilobyte_of_a_question_to_itself() -> None:
    net = Net()
    client = net.raw_client()
    envelope = b'{"body":"' + b"x" * 2000 + b'"}'
    net.send(client, mesh.REQUEST, 0, 1, 1000, request("mmi.service", envelope))
    net.send(client, mesh.REQUEST, 0, 2, 1000, request("mmi.service", b'{"body":"svc"}'))
    assert client.finals() == [(1, 413), (2, 404)]


def test_an_instance_that_leaves_takes_the_paths_along_that_only_it_had() -> None:
    net = Net(register_grace_s=0.0)
    net.worker("svc", paths=["/a"])
    other = net.worker("svc", paths=["/a", "/b"])
    directory = net.router.dispatcher.directory
    assert set(directory.prefixes) == {b"/a", b"/b"}
    net.drop(other)
    assert set(directory.prefixes) == {b"/a"}
    assert net.caller().ask("/b").code == 404


def test_a_cancelled_call_keeps_its_token_but_not_its_bytes() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker()
    asked = caller.ask("svc", b"x" * 50_000)
    assert asked.pending is not None
    caller.machine.cancel(asked.pending)
    net.settle()
    assert all(not call.payload and call.envelope is None for call in worker.peer.calls.values())


def test_an_instance_that_has_returned_ever_so_many_requests_is_still_sent_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher, "MAX_CREDIT", 5)
    net = Net()
    client, raw = net.raw_client(), net.raw_instance(credit=2)
    (instance,) = net.router.instances.values()
    net.send(client, mesh.REQUEST, 0, 1, 60_000, request("svc"))
    for _ in range(20):
        (token,) = tokens(raw)
        net.send(raw, mesh.RETURN, 0, token)
        net.send(raw, mesh.CREDIT, payload=mesh.pack_credit(1))
    assert (instance.credit, instance.free) == (2, 1)
    (token,) = tokens(raw)
    net.send(raw, mesh.FINAL, 0, token, 0, reply())
    assert client.finals() == [(1, 200)]
    assert (instance.credit, instance.free) == (2, 2)


def test_what_was_asked_is_let_go_when_the_deadline_passes_though_the_handler_runs_on() -> None:
    net = Net()
    caller, worker = net.caller(), net.worker(is_stubborn=True)
    asked = caller.ask("svc", bytes(ATTACH_OVER + 1), timeout_s=1.0)
    (peer,) = net.router.instances.values()
    (call,) = peer.calls.values()
    assert call.envelope is not None
    net.advance(1.5)
    assert asked.code == 504
    assert list(peer.calls.values()) == [call]
    assert (call.payload, call.envelope) == (b"", None)
    assert worker.jobs


def test_services_with_instances_share_a_bound_in_bytes_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "MAX_QUEUED_BYTES", 5_000)
    net = Net()
    caller = net.caller()
    names = [f"svc-{n}" for n in range(20)]
    for name in names:
        net.worker(name, credit=1, is_stubborn=True)
        assert caller.ask(name).code is None
    asked = [caller.ask(name, bytes(1_000)) for name in names]
    refused = [each.code for each in asked if each.code is not None]
    assert set(refused) == {503}
    assert 5 <= len(asked) - len(refused) <= 8


def test_a_reader_that_grants_without_end_loses_its_stream_and_fills_nobodys_pipe() -> None:
    net = Net()
    client, raw = net.raw_client(), net.raw_instance(credit=2)
    net.send(client, mesh.REQUEST, STREAM, 1, 60_000, request("svc", window=1))
    (token,) = tokens(raw)
    for _ in range(dispatcher.MAX_GRANTS):
        net.send(client, mesh.WINDOW, 0, 1, payload=mesh.pack_window(1))
    assert not client.finals()
    net.send(raw, mesh.PARTIAL, 0, token, 0, reply())
    net.send(client, mesh.WINDOW, 0, 1, payload=mesh.pack_window(1))
    assert not client.finals()
    net.send(client, mesh.WINDOW, 0, 1, payload=mesh.pack_window(1))
    assert client.finals() == [(1, 503)]
    assert len(raw.got(mesh.CANCEL)) == 1
    assert len(raw.got(mesh.WINDOW)) == dispatcher.MAX_GRANTS + 1
