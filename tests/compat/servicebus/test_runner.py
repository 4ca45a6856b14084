"""One service, one request at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import GreenletExit
from gevent.pool import Group

from butler_mesh.compat.servicebus.event import Event
from butler_mesh.compat.servicebus.runner import ServiceRunner
from butler_mesh.errors import InstanceLost, NotFound, RemoteError, Stopped, Unavailable
from tests.compat.servicebus.services import Add, Fail, Gate, GoesOn, Note, Silent
from tests.waiting import wait_for


@pytest.fixture
def group() -> Group:
    return Group()


@pytest.fixture
def run(group: Group) -> Callable[..., ServiceRunner]:
    def run(service: Any, queue_len: int = 10) -> ServiceRunner:
        sender: Any = "sender"
        return ServiceRunner(service, sender, queue_len, group)

    return run


def event(params: Any = None) -> Event:
    return Event("7", "math", "add", params)


def test_a_call_returns_what_was_sent(run: Callable[..., ServiceRunner]) -> None:
    assert run(Add()).call(event([1, "2"])) == 3


def test_what_a_call_lets_out_is_raised_at_once(run: Callable[..., ServiceRunner]) -> None:
    with pytest.raises(KeyError, match="no such thing"):
        run(Fail()).call(event())


def released(error: BaseException) -> Any:
    """Return a service that lets this out, of calls and of messages."""

    def let_out(*arguments: Any) -> None:
        raise error

    return type("Bad", (), {"on_call": let_out, "on_message": let_out})()


@pytest.mark.parametrize(
    "error",
    [gevent.Timeout(1.0), SystemExit(3), GreenletExit(), KeyboardInterrupt(), Stopped(504, "late")],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_Exception_is_answered_at_once_and_ends_nothing_else(
    run: Callable[..., ServiceRunner], group: Group, error: BaseException
) -> None:
    for use in (run(released(error)).call, run(released(error)).message):
        with gevent.Timeout(5.0), pytest.raises(RemoteError) as caught:
            use(event())
        assert (caught.value.status, caught.value.type) == (500, type(error).__name__)
    group.join(timeout=5.0)
    assert run(Add()).call(event([1])) == 1


@pytest.mark.parametrize(
    "error",
    [NotFound("no such row", status=404), Unavailable("busy", status=503), InstanceLost("x", status=502)],
)
def test_a_failure_of_the_service_is_none_of_its_calls(
    run: Callable[..., ServiceRunner], error: Exception
) -> None:
    """What says that a call was not begun is said by whoever did not begin it."""
    for use in (run(released(error)).call, run(released(error)).message):
        with pytest.raises(RemoteError) as caught:
            use(event())
        assert (caught.value.status, caught.value.type) == (500, type(error).__name__)
        assert caught.value.__cause__ is error


def test_a_call_that_ends_without_an_answer_is_an_error_at_once(run: Callable[..., ServiceRunner]) -> None:
    with pytest.raises(RemoteError, match=r"math\.add sent no response"):
        run(Silent()).call(event())


def test_the_caller_has_its_answer_while_the_service_goes_on(
    run: Callable[..., ServiceRunner], group: Group
) -> None:
    service = GoesOn()
    assert run(service).call(event()) == "soon"
    assert service.done == []
    group.join(timeout=5.0)
    assert service.done == ["7"]


def test_an_error_after_the_answer_is_logged(
    run: Callable[..., ServiceRunner], group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    class Both:
        def on_call(self, request: Any, response: Any) -> None:
            response.send(1)
            raise KeyError("late")

    assert run(Both()).call(event()) == 1
    group.join(timeout=5.0)
    assert "failed-after-its-answer math.add" in caplog.text
    caplog.clear()


def test_one_at_a_time_in_the_order_in_which_they_came(run: Callable[..., ServiceRunner]) -> None:
    gate = Gate()
    runner = run(gate)
    calls = [gevent.spawn(runner.call, event(n)) for n in range(3)]
    wait_for(lambda: gate.begun == [0])
    gate.opened.set()
    assert [call.get(timeout=5.0) for call in calls] == [0, 1, 2]
    assert gate.begun == [0, 1, 2]


def test_a_burst_is_refused_as_well(run: Callable[..., ServiceRunner]) -> None:
    gate = Gate()
    runner = run(gate, 2)
    calls = [gevent.spawn(runner.call, event(n)) for n in range(10)]
    gate.opened.set()
    gevent.joinall(calls, timeout=5.0)
    assert [isinstance(call.exception, Unavailable) for call in calls] == [False] * 3 + [True] * 7


def test_one_that_is_stopped_while_it_waits_loses_nobodys_turn(run: Callable[..., ServiceRunner]) -> None:
    gate = Gate()
    runner = run(gate)
    calls = [gevent.spawn(runner.call, event(n)) for n in range(3)]
    wait_for(lambda: gate.begun == [0])
    calls[1].kill()
    gate.opened.set()
    assert (calls[0].get(timeout=5.0), calls[2].get(timeout=5.0)) == (0, 2)
    assert gate.begun == [0, 2]


def test_side_by_side_in_the_background(run: Callable[..., ServiceRunner]) -> None:
    gate = Gate()
    gate.background = True
    runner = run(gate)
    calls = [gevent.spawn(runner.call, event(n)) for n in range(3)]
    wait_for(lambda: gate.begun == [0, 1, 2])
    gate.opened.set()
    gevent.joinall(calls, timeout=5.0, raise_error=True)


def test_over_queue_len_calls_are_refused_and_messages_wait(run: Callable[..., ServiceRunner]) -> None:
    gate = Gate()
    runner = run(gate, 2)
    calls = [gevent.spawn(runner.call, event(n)) for n in range(3)]
    wait_for(lambda: gate.begun == [0])
    with pytest.raises(Unavailable) as caught:
        runner.call(event("refused"))
    assert caught.value.status == 429
    message = gevent.spawn(runner.message, event("message"))
    gate.opened.set()
    gevent.joinall([*calls, message], timeout=5.0, raise_error=True)
    assert gate.ended == [0, 1, 2, "message"]
    assert runner.call(event("again")) == "again"


def test_a_caller_that_gives_up_stops_the_service(run: Callable[..., ServiceRunner], group: Group) -> None:
    gate = Gate()
    runner = run(gate)
    first, second = (gevent.spawn(runner.call, event(n)) for n in range(2))
    wait_for(lambda: gate.begun == [0])
    first.kill()
    wait_for(lambda: gate.begun == [0, 1])
    gate.opened.set()
    assert second.get(timeout=5.0) == 1
    assert gate.ended == [1]


def test_what_a_request_keeps_in_the_service_is_its_own(run: Callable[..., ServiceRunner]) -> None:
    class Keeps:
        background = True
        kept = ""

        def on_call(self, request: Any, response: Any) -> None:
            self.kept += request.get_params()
            gevent.sleep(0)
            response.send(self.kept)

    runner = run(Keeps())
    calls = [gevent.spawn(runner.call, event(name)) for name in "abc"]
    assert [call.get(timeout=5.0) for call in calls] == ["a", "b", "c"]


def test_a_message_runs_to_its_end_and_what_it_lets_out_is_raised(
    run: Callable[..., ServiceRunner],
) -> None:
    note = Note()
    run(note).message(event("hello"))
    assert note.noted == ["hello"]

    class Bad:
        def on_message(self, request: Any) -> None:
            raise KeyError("bad")

    with pytest.raises(KeyError, match="bad"):
        run(Bad()).message(event())
