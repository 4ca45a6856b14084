"""Lifetime: run until told to stop, then orderly, then by force."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import gevent
import pytest

from butler_mesh.lifetime import Lifetime
from tests.programs import Program
from tests.waiting import wait_for

TERM, INT = signal.SIGTERM, signal.SIGINT


def test_run_starts_waits_for_stop_and_closes() -> None:
    log: list[str] = []
    lifetime = Lifetime()
    running = gevent.spawn(lifetime.run, lambda: log.append("start"), lambda: log.append("close"))
    wait_for(lambda: log == ["start"])
    gevent.sleep(0)
    assert log == ["start"]
    lifetime.stop()
    running.get(timeout=5)
    assert log == ["start", "close"]


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_signal_that_comes_as_soon_as_there_is_a_handler_counts(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = signal.signal
    sent: list[signal.Signals] = []

    def install_and_send(which: signal.Signals, handler: Any) -> Any:
        before = install(which, handler)
        if which is number and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return before

    monkeypatch.setattr(signal, "signal", install_and_send)
    with gevent.Timeout(5.0):
        Lifetime().run(lambda: None, lambda: None)
    assert sent == [number]


def test_what_start_raises_comes_out_after_closing() -> None:
    log: list[str] = []

    def start() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        Lifetime().run(start, lambda: log.append("close"))
    assert log == ["close"]


def test_the_handlers_of_signals_are_put_back_also_when_closing_fails() -> None:
    before = [signal.getsignal(number) for number in (TERM, INT)]

    def close() -> None:
        raise ValueError("broken")

    lifetime = Lifetime()
    running = gevent.spawn(lifetime.run, lambda: None, close)
    wait_for(lambda: signal.getsignal(TERM) is not before[0])
    lifetime.stop()
    with pytest.raises(ValueError, match="broken"):
        running.get(timeout=5)
    assert [signal.getsignal(number) for number in (TERM, INT)] == before


def test_it_can_be_run_again() -> None:
    lifetime = Lifetime()
    for _ in range(2):
        started: list[int] = []
        running = gevent.spawn(lifetime.run, lambda started=started: started.append(1), lambda: None)
        wait_for(lambda started=started: started)
        lifetime.stop()
        running.get(timeout=5)


def test_in_another_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(TERM)
    seen: list[Any] = []

    def run() -> None:
        lifetime = Lifetime()

        def start() -> None:
            seen.append(signal.getsignal(TERM))
            lifetime.stop()

        lifetime.run(start, lambda: seen.append("closed"))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert seen == [before, "closed"]


PROGRAM = """
    import sys, time
    import gevent
    from butler_mesh.lifetime import Lifetime

    def start():
        print("started", flush=True)
        if "spin" in sys.argv:
            gevent.spawn(spin)

    def spin():
        print("spinning", flush=True)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            pass

    def close():
        print("closing", flush=True)
        if "slow" in sys.argv:
            gevent.sleep(60)
        print("closed", flush=True)

    lifetimes = [Lifetime(), Lifetime()] if "two" in sys.argv else [Lifetime()]
    gevent.joinall([gevent.spawn(one.run, start, close) for one in lifetimes])
    print("returned")
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [TERM, INT])
def test_a_signal_closes_and_returns(number: signal.Signals) -> None:
    with Program.of(PROGRAM) as program:
        program.says("started")
        program.send(number)
        assert program.ends() == 0
        assert program.stdout.split() == [b"started", b"closing", b"closed", b"returned"]


@pytest.mark.slow
def test_a_signal_means_all_that_run_in_the_process() -> None:
    with Program.of(PROGRAM, "two") as program:
        program.says("started\nstarted")
        program.send(TERM)
        assert program.ends() == 0
        assert program.stdout.count(b"closed") == 2


@pytest.mark.slow
@pytest.mark.parametrize("second", [TERM, INT])
def test_a_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    with Program.of(PROGRAM, "slow") as program:
        program.says("started")
        program.send(TERM)
        program.says("closing")
        program.send(second)
        assert program.ends(5.0) == 1
        assert b"closed" not in program.stdout


@pytest.mark.slow
def test_a_second_signal_ends_the_process_also_while_a_greenlet_computes() -> None:
    with Program.of(PROGRAM, "spin") as program:
        program.says("spinning")
        program.send(TERM)
        program.send(INT)
        assert program.ends(5.0) == 1
