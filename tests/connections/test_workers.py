"""Handler greenlets: used again when nothing of the last job clings to them, and never otherwise."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import gevent
import gevent.local
import pytest
from gevent.event import Event
from gevent.hub import get_hub
from greenlet import getcurrent

from butler_mesh.connections import workers as module
from butler_mesh.connections.workers import Worker, Workers
from tests.waiting import wait_for

Job = Callable[[], object]


class Gone(BaseException):
    """What the tests throw."""


class Crew:
    """Workers whose jobs are functions; remembers in which greenlet each ran and how it ended."""

    def __init__(self, **options: Any) -> None:
        self.ran: list[int] = []
        self.ended: list[object] = []
        self.workers: Workers[Job] = Workers(self._serve, **options)
        # So that no two greenlets of a test have the same id.
        self._seen: list[object] = []

    def _serve(self, job: Job) -> bool:
        self.ran.append(id(getcurrent()))
        try:
            self.ended.append(job())
        except BaseException as error:
            self.ended.append(type(error))
            return False
        return True

    def start(self, job: Job) -> Worker[Job]:
        """Start a job from the hub, and return its greenlet."""
        started: list[Worker[Job]] = []
        get_hub().loop.run_callback(lambda: started.append(self.workers.start(job)))
        wait_for(lambda: started)
        return started.pop()

    def run(self, job: Job) -> int:
        """Start a job, wait for its end, and return the id of its greenlet."""
        n = len(self.ended)
        worker = self.start(job)
        wait_for(lambda: len(self.ended) > n)
        return id(worker)

    def stop(self, worker: Worker[Job], job: Job) -> None:
        """Throw from the hub, and come back when that is done."""
        done = Event()

        def stop() -> None:
            self.workers.stop(worker, job, Gone())
            done.set()

        get_hub().loop.run_callback(stop)
        assert done.wait(5.0)


@pytest.fixture
def crew() -> Crew:
    return Crew()


def quick() -> None:
    """End at once."""


def slow() -> None:
    """Give way, and then end."""
    gevent.sleep(0)


@pytest.mark.parametrize("job", [quick, slow])
def test_a_greenlet_is_used_again(crew: Crew, job: Job) -> None:
    for _ in range(5):
        crew.run(job)
    assert len(set(crew.ran)) == 1
    assert not crew.workers.running


def test_jobs_at_the_same_time_have_greenlets_of_their_own(crew: Crew) -> None:
    gate = Event()
    for _ in range(3):
        crew.start(gate.wait)
    assert len(crew.workers.running) == 3
    gate.set()
    wait_for(lambda: len(crew.ended) == 3)
    assert len(set(crew.ran)) == 3
    assert not crew.workers.running


def test_start_returns_when_the_job_first_waits(crew: Crew) -> None:
    gate = Event()
    worker = crew.start(gate.wait)
    assert worker.job == gate.wait
    gate.set()
    wait_for(lambda: worker.job is None)


def test_a_greenlet_that_was_thrown_into_is_not_used_again(crew: Crew) -> None:
    def stubborn() -> None:
        try:
            Event().wait()
        except Gone:
            slow()

    worker = crew.start(stubborn)
    crew.stop(worker, stubborn)
    wait_for(lambda: crew.ended)
    assert crew.ended == [None]
    assert worker.dead
    assert crew.run(quick) != id(worker)


def test_a_greenlet_whose_job_failed_is_not_used_again(crew: Crew) -> None:
    def fail() -> None:
        raise RuntimeError

    worker = crew.start(fail)
    assert crew.ended == [RuntimeError]
    assert worker.dead
    assert crew.run(quick) != id(worker)


def test_a_greenlet_that_touched_a_greenlet_local_is_not_used_again(crew: Crew) -> None:
    local = gevent.local.local()
    worker = crew.start(lambda: setattr(local, "user", "somebody"))
    assert worker.dead
    assert crew.run(lambda: getattr(local, "user", None)) != id(worker)
    assert crew.ended[-1] is None


def test_a_greenlet_that_somebody_still_holds_is_not_used_again(crew: Crew) -> None:
    crew.run(quick)
    crew.run(quick)
    held: list[object] = []
    crew.run(lambda: held.append(getcurrent()))
    crew.run(quick)
    assert crew.ran[0] == crew.ran[1] == crew.ran[2] != crew.ran[3]


def test_a_timeout_that_a_job_forgot_does_not_hit_the_next(crew: Crew) -> None:
    crew.run(quick)
    crew.run(quick)

    def forgetful() -> None:
        gevent.Timeout.start_new(0.03)

    crew.run(forgetful)
    crew.run(lambda: gevent.sleep(0.06))
    assert crew.ended == [None] * 4


def test_without_a_pool_every_job_has_a_new_greenlet() -> None:
    crew = Crew(is_pooled=False)
    workers = [crew.start(quick) for _ in range(3)]
    assert all(worker.dead for worker in workers)


def test_only_so_many_idle_greenlets_are_kept(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IDLE", 2)
    gate = Event()
    workers = [crew.start(gate.wait) for _ in range(5)]
    gate.set()
    wait_for(lambda: len(crew.ended) == 5)
    assert sum(worker.dead for worker in workers) == 3


def test_stop_is_nothing_when_the_job_has_ended(crew: Crew) -> None:
    worker = crew.start(quick)
    crew.stop(worker, quick)
    assert crew.ended == [None]
    assert not worker.dead


def test_stop_is_nothing_when_the_greenlet_has_another_job(crew: Crew) -> None:
    gate = Event()
    crew.run(quick)
    worker = crew.start(gate.wait)
    assert crew.ran[0] == crew.ran[1]
    crew.stop(worker, quick)
    assert not crew.ended[1:]
    gate.set()
    wait_for(lambda: crew.ended == [None, True])


def test_stop_throws_at_once(crew: Crew) -> None:
    job = Event().wait
    worker = crew.start(job)
    crew.stop(worker, job)
    assert crew.ended == [Gone]
    assert not crew.workers.running


@pytest.mark.parametrize("value", [None, 7])
def test_a_stray_switch_to_an_idle_greenlet_starts_nothing(crew: Crew, value: object) -> None:
    worker = crew.start(quick)
    get_hub().loop.run_callback(worker.switch, value)
    gevent.sleep(0)
    assert crew.ended == [None]
    assert not worker.dead
    del worker
    crew.run(quick)
    assert crew.ended == [None, None]


def test_a_stray_throw_into_an_idle_greenlet_costs_no_job(crew: Crew) -> None:
    worker = crew.start(quick)
    get_hub().loop.run_callback(worker.throw, RuntimeError("late"))
    gevent.sleep(0)
    assert worker.dead
    crew.run(quick)
    assert crew.ended == [None, None]


@pytest.fixture
def variable() -> Iterator[ContextVar[str]]:
    variable: ContextVar[str] = ContextVar("variable", default="default")
    token = variable.set("of the owner")
    yield variable
    variable.reset(token)


@pytest.mark.parametrize("is_pooled", [True, False])
def test_each_job_sees_a_fresh_copy_of_its_owners_context(variable: ContextVar[str], is_pooled: bool) -> None:
    crew = Crew(is_pooled=is_pooled)
    variable.set("later")

    def job() -> str:
        before = variable.get()
        variable.set("of the job")
        slow()
        assert variable.get() == "of the job"
        return before

    for _ in range(3):
        crew.run(job)
    assert crew.ended == ["of the owner"] * 3
    assert variable.get() == "later"


def test_an_idle_greenlet_holds_neither_its_first_job_nor_its_last(crew: Crew) -> None:
    class Callback:
        def __call__(self) -> None:
            slow()

    first, last = Callback(), Callback()
    refs = [weakref.ref(first), weakref.ref(last)]
    gc.disable()
    try:
        crew.run(first)
        crew.run(last)
        del first, last
        wait_for(lambda: [ref() for ref in refs] == [None, None])
    finally:
        gc.enable()
    assert crew.ran[0] == crew.ran[1]
