"""Callers: results, exceptions, timeouts, lazies, requests without reply, and management."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import pytest

from butler_mesh.compat.arpc import mq
from butler_mesh.errors import DeadlineExceeded, NotFound, RemoteError, RequestFailed, UsageError, WrongThread
from tests.compat.arpc.conftest import KEY, ExampleService, Operations, Start
from tests.waiting import wait_for


def caller(operations: Operations, key: str = KEY, **options: Any) -> mq.ServiceCaller:
    return mq.ServiceCaller(operations(**options), key, want_replies=True)


def test_an_exception_is_raised_with_its_name_and_the_workers_traceback(
    operations: Operations, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    start(ExampleService())
    with pytest.raises(KeyError, match="no such thing") as caught:
        caller(operations).send_request({"c": "fail"})
    caplog.clear()
    error = caught.value
    assert isinstance(error, RemoteError)
    assert error.type == "KeyError"
    assert "in c_fail" in error.traceback


def test_a_timeout_is_an_argument_of_the_request(operations: Operations, start: Start) -> None:
    start(ExampleService())
    with pytest.raises(DeadlineExceeded):
        caller(operations).send_request({"c": "wait"}, timeout=0.05)
    with pytest.raises(TimeoutError):
        caller(operations).send_lazy_request({"c": "wait"}, timeout=0.05).get()


def test_lazy_results_are_collected_in_any_order(operations: Operations, start: Start) -> None:
    start(ExampleService())
    one = caller(operations)
    lazies = [one.send_lazy_request({"c": "add", "x": n, "y": n}) for n in range(20)]
    assert [lazy.get() for lazy in reversed(lazies)] == [{"res": 2 * n} for n in reversed(range(20))]


def test_a_lazy_result_may_be_waited_for_again(operations: Operations, start: Start) -> None:
    service = ExampleService()
    start(service)
    lazy = caller(operations).send_lazy_request({"c": "wait"})
    with pytest.raises(DeadlineExceeded):
        lazy.get(timeout=0.01)
    service.gate.set()
    assert lazy.get() == {}


def test_without_replies_wanted_there_is_none(operations: Operations, start: Start) -> None:
    service = ExampleService()
    start(service)
    silent = mq.ServiceCaller(operations(), KEY)
    assert silent.send_request({"c": "note", "n": 1}) is None
    wait_for(lambda: len(service.seen) == 1)
    with pytest.raises(UsageError):
        silent.send_lazy_request({"c": "note"})


def test_a_persistent_request_waits_for_a_worker_to_come(operations: Operations, start: Start) -> None:
    """On a broker: it is stored. Elsewhere it waits as any request does for a service that left just now."""
    service, options = ExampleService(), {"useack": True, "persistent": True}
    first = start(ExampleService(), **options)
    first.stop()
    wait_for(lambda: first.service._connection is None)
    mq.ServiceCaller(operations(**options), KEY).send_request({"c": "note", "n": 1})
    start(service, **options)
    wait_for(lambda: service.seen == [{"c": "note", "n": 1}], 20.0)


def test_a_document_without_a_method_is_not_sent(operations: Operations) -> None:
    for document in ({}, {"c": 1}, {"c": ""}, ["c"], "c"):
        with pytest.raises(UsageError):
            caller(operations).send_request(document)  # type: ignore[arg-type]


@pytest.mark.slow
def test_every_worker_answers_ping_and_one_by_its_id(operations: Operations, start: Start) -> None:
    workers = [start(ExampleService()) for _ in range(3)]
    answers = caller(operations, f"mgt.{KEY}").send_request({"c": "ping"}, timeout=1.0)
    assert sorted(answer["wid"] for answer in answers) == sorted(worker.wid for worker in workers)
    assert len({worker.wid for worker in workers}) == 3
    for answer in answers:
        assert (answer["pid"], answer["host"]) == (os.getpid(), socket.gethostname())
    one = caller(operations, f"mgt.{workers[1].wid}").send_request({"c": "ping"})
    assert [answer["wid"] for answer in one] == [workers[1].wid]


@pytest.mark.slow
def test_one_worker_that_fails_hides_no_others_result(operations: Operations, start: Start) -> None:
    bold = [start(ExampleService(), allow_eval=True).wid for _ in range(2)]
    careful = start(ExampleService()).wid
    one, document = caller(operations, f"mgt.{KEY}"), {"c": "eval", "expression": "service.wid"}
    results = one.send_request(document, timeout=1.0)
    (failed,) = [result for result in results if isinstance(result, RequestFailed)]
    assert isinstance(failed, NotFound)
    assert "no command 'eval'" in str(failed)
    assert sorted(result for result in results if result is not failed) == sorted(bold)
    answers = dict(one.answers(document, timeout=1.0))
    assert isinstance(answers.pop(careful), NotFound)
    assert answers == {wid: wid for wid in bold}


@pytest.mark.slow
def test_a_failure_of_all_workers_is_raised(operations: Operations, start: Start) -> None:
    for _ in range(2):
        start(ExampleService(), allow_eval=True)
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        caller(operations, f"mgt.{KEY}").send_request({"c": "eval", "expression": "1 / 0"}, timeout=1.0)
    assert isinstance(caught.value, RemoteError)
    assert "in _eval" in caught.value.traceback


def test_stats_tell_what_a_worker_has_done(
    operations: Operations, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    worker = start(ExampleService())
    one = caller(operations)
    for n in range(12):
        one.send_request({"c": "add", "x": n, "y": 0})
    with pytest.raises(KeyError):
        one.send_request({"c": "fail"})
    caplog.clear()
    (stats,) = caller(operations, f"mgt.{worker.wid}").send_request({"c": "stats"})
    assert sorted(stats) == ["exceptions", "host", "pid", "processed", "waittimes", "wid"]
    assert (stats["processed"], stats["exceptions"]) == (12, 1)
    assert len(stats["waittimes"]) == 10
    assert all(float(wait) >= 0 and len(wait.partition(".")[2]) == 4 for wait in stats["waittimes"])


def test_a_key_that_ends_like_a_workers_id_is_a_key(operations: Operations) -> None:
    with pytest.raises(NotFound):
        caller(operations, "mgt.example-0123456789").send_request({"c": "ping"}, timeout=0.5)


def test_a_caller_belongs_to_one_thread(operations: Operations, start: Start) -> None:
    start(ExampleService())
    one, caught = caller(operations), list[BaseException]()
    one.send_request({"c": "add", "x": 1, "y": 1})

    def elsewhere() -> None:
        try:
            one.send_request({"c": "add", "x": 1, "y": 1})
        except WrongThread as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(10.0)
    assert len(caught) == 1


def test_the_drivers_connection_can_be_reached(
    operations: Operations, start: Start, request: pytest.FixtureRequest
) -> None:
    start(ExampleService())
    amqp = operations()
    mq.ServiceCaller(amqp, KEY, want_replies=True).send_request({"c": "add", "x": 1, "y": 1})
    if "amqp" in request.node.name:
        assert amqp.raw.is_open
        opened: list[Any] = []
        amqp.raw.channel(on_open_callback=opened.append)
        wait_for(lambda: bool(opened))
        opened[0].close()
    else:
        assert amqp.raw is None
