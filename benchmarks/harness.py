"""What runs inside each process of a comparison: ``python -m benchmarks.harness TASK``.

A process says ``{"ready": true}`` on standard output, takes one job in JSON a line, answers each with one
line, and ends with its standard input. Nothing here needs butler_mesh: peers have environments of their own,
and what is imported here they all pay for.

A client's job is ``first`` (call until one succeeds), ``load`` (keep some calls in flight for a while) or
``notes`` (send for a while what is not answered). How calls wait for each other is the client's
``Load``: greenlets, threads, tasks, or a window of one loop. All do the same, and check every reply.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import import_module
from typing import Any

from benchmarks.system import Place, Unavailable

Body = dict[str, str]
Job = dict[str, Any]
Answer = dict[str, Any]
Call = Callable[[Body], Body]
Note = Callable[[Body], object]

clock = time.monotonic
"""Monotonic time is the machine's: moments of different processes can be compared."""

TURN = 64
"""One-way messages between two looks at the event loop: what a handler that sends a few leaves alone."""
PATIENCE_S = 20.0
"""How long the first call is tried."""
PAUSE_S = 0.002
"""Between two tries; also the error of the start-up times."""


def body(size: int) -> Body:
    """Return an object whose JSON, written without blanks, is exactly ``size`` bytes."""
    return {"text": "x" * (size - len('{"text":""}'))}


def percentile(ordered: list[float], percent: float) -> float:
    """Return the smallest value that ``percent`` of the values, which are sorted, do not exceed."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def summary(times: list[float], began: float) -> Answer:
    """Return what a load job answers, given the seconds that each call took."""
    elapsed_s = clock() - began
    times.sort()
    return {
        "calls": len(times),
        "elapsed_s": elapsed_s,
        "p50_us": percentile(times, 50) * 1e6,
        "p99_us": percentile(times, 99) * 1e6,
    }


class Tally:
    """What a worker has received of one-way messages, and when the latest came."""

    def __init__(self) -> None:
        self.n = 0
        self.at = 0.0

    def add(self) -> None:
        """Count one."""
        self.n += 1
        self.at = clock()

    def answer(self, job: Job) -> Answer:
        """Tell the count: what a worker does with a job."""
        return {"n": self.n, "at": self.at}


# --- loads ------------------------------------------------------------------------------------


class Load:
    """Calls in flight. ``connect`` returns a function that sends a body and returns the reply's."""

    def __init__(self, connect: Callable[[], Call], connect_notes: Callable[[], Note] | None = None) -> None:
        self._connect = connect
        self._connect_notes = connect_notes
        self._calls: list[Call] = []

    def answer(self, job: Job) -> Answer:
        """Do one job."""
        return getattr(self, job.pop("job"))(**job)  # type: ignore[no-any-return]

    def first(self, size: int) -> Answer:
        """Connect and call until one call succeeds; return when that was."""
        sent, until = body(size), clock() + PATIENCE_S
        while True:
            try:
                if not self._calls:
                    self._calls.append(self._connect())
                assert self._calls[0](sent) == sent
                return {"at": clock()}
            except Exception:
                # Nobody listens yet, or somebody else's answer that nobody does: each library's own.
                if clock() > until:
                    raise
                self._pause(PAUSE_S)

    def load(self, size: int, in_flight: int, seconds: float, clients: int = 1) -> Answer:
        """Keep so many calls in flight for so long, on so many connections."""
        n = self._connections(in_flight, clients)
        self._calls += [self._connect() for _ in range(n - len(self._calls))]
        times: list[float] = []
        sent, began = body(size), clock()
        end = began + seconds

        def caller(call: Call) -> None:
            start = clock()
            while start < end:
                if call(sent) != sent:
                    raise AssertionError("a reply is not what was sent")
                now = clock()
                times.append(now - start)
                start = now

        n = self._connections(in_flight, clients)
        self._together([partial(caller, self._calls[i % n]) for i in range(in_flight)])
        return summary(times, began)

    def notes(self, size: int, seconds: float) -> Answer:
        """Send one-way messages for so long; return how many, and when that began."""
        assert self._connect_notes is not None
        note = self._connect_notes()
        sent, n, began = body(size), 0, clock()
        while clock() < began + seconds:
            for _ in range(TURN):
                note(sent)
            n += TURN
            self._pause(0)
        return {"sent": n, "began": began}

    def _connections(self, in_flight: int, clients: int) -> int:
        return clients

    def _together(self, callers: list[Callable[[], None]]) -> None:
        raise NotImplementedError

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)


class Greenlets(Load):
    """A greenlet for each call in flight; they share connections."""

    def run(self) -> None:
        """Do jobs until standard input ends."""
        attend_greenlets(self.answer)

    def _together(self, callers: list[Callable[[], None]]) -> None:
        import gevent

        gevent.joinall([gevent.spawn(caller) for caller in callers], raise_error=True)

    def _pause(self, seconds: float) -> None:
        import gevent

        gevent.sleep(seconds)


class LonelyGreenlets(Greenlets):
    """Greenlets for a library whose connections carry one call at a time."""

    def _connections(self, in_flight: int, clients: int) -> int:
        return in_flight


class Threads(Load):
    """A thread for each call in flight; they share connections."""

    def run(self) -> None:
        """Do jobs until standard input ends."""
        attend(self.answer)

    def _together(self, callers: list[Callable[[], None]]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(callers)) as pool:
            for future in [pool.submit(caller) for caller in callers]:
                future.result()


class LonelyThreads(Threads):
    """Threads for a library whose connections carry one call at a time."""

    def _connections(self, in_flight: int, clients: int) -> int:
        return in_flight


class Window(Load):
    """One loop that keeps calls in flight, without greenlets, threads or tasks.

    ``send`` takes a number and a body, ``receive`` waits for any reply and returns its number and body.
    """

    def __init__(
        self,
        send: Callable[[int, Body], object],
        receive: Callable[[], tuple[int, Body]],
        note: Note | None = None,
    ) -> None:
        def call(sent: Body) -> Body:
            send(0, sent)
            return receive()[1]

        super().__init__(lambda: call, None if note is None else lambda: note)
        self._send = send
        self._receive = receive

    def run(self) -> None:
        """Do jobs until standard input ends."""
        attend(self.answer)

    def load(self, size: int, in_flight: int, seconds: float, clients: int = 1) -> Answer:
        """Keep so many calls in flight for so long."""
        times: list[float] = []
        sent, began = body(size), clock()
        end = began + seconds
        starts = [clock() for _ in range(in_flight)]
        for number in range(in_flight):
            starts[number] = clock()
            self._send(number, sent)
        left = in_flight
        while left:
            number, reply = self._receive()
            if reply != sent:
                raise AssertionError("a reply is not what was sent")
            now = clock()
            times.append(now - starts[number])
            if now < end:
                starts[number] = now
                self._send(number, sent)
            else:
                left -= 1
        return summary(times, began)


class Tasks:
    """A task of asyncio for each call in flight; they share connections. As Load, but awaited."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Callable[[Body], Awaitable[Body]]]],
        connect_notes: Callable[[], Awaitable[Callable[[Body], Awaitable[object]]]] | None = None,
    ) -> None:
        self._connect = connect
        self._connect_notes = connect_notes
        self._calls: list[Callable[[Body], Awaitable[Body]]] = []

    async def run(self) -> None:
        """Do jobs until standard input ends."""
        await attend_tasks(self.answer)

    async def answer(self, job: Job) -> Answer:
        """Do one job."""
        return await getattr(self, job.pop("job"))(**job)  # type: ignore[no-any-return]

    async def first(self, size: int) -> Answer:
        """Connect and call until one call succeeds; return when that was."""
        import asyncio

        sent, until = body(size), clock() + PATIENCE_S
        while True:
            try:
                if not self._calls:
                    self._calls.append(await self._connect())
                assert await self._calls[0](sent) == sent
                return {"at": clock()}
            except Exception:
                if clock() > until:
                    raise
                await asyncio.sleep(PAUSE_S)

    async def load(self, size: int, in_flight: int, seconds: float, clients: int = 1) -> Answer:
        """Keep so many calls in flight for so long, on so many connections."""
        import asyncio

        self._calls += [await self._connect() for _ in range(clients - len(self._calls))]
        times: list[float] = []
        sent, began = body(size), clock()
        end = began + seconds

        async def caller(call: Callable[[Body], Awaitable[Body]]) -> None:
            start = clock()
            while start < end:
                if await call(sent) != sent:
                    raise AssertionError("a reply is not what was sent")
                now = clock()
                times.append(now - start)
                start = now

        await asyncio.gather(*(caller(self._calls[i % clients]) for i in range(in_flight)))
        return summary(times, began)

    async def notes(self, size: int, seconds: float) -> Answer:
        """Send one-way messages for so long; return how many, and when that began."""
        import asyncio

        assert self._connect_notes is not None
        note = await self._connect_notes()
        sent, n, began = body(size), 0, clock()
        while clock() < began + seconds:
            for _ in range(TURN):
                await note(sent)
            n += TURN
            await asyncio.sleep(0)
        return {"sent": n, "began": began}


# --- jobs -------------------------------------------------------------------------------------


def say(answer: Answer) -> None:
    """Write one line to whoever started this process."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def ready() -> None:
    """Say that this process can do its part, and how long its imports took since it was spawned."""
    say({"ready": True, "importing_s": _importing_s})


def _nothing(job: Job) -> Answer:
    return {}


def attend(answer: Callable[[Job], Answer] = _nothing) -> None:
    """Say ready and do jobs until standard input ends, blocking this thread."""
    ready()
    for line in sys.stdin:
        say(answer(json.loads(line)))


def attend_greenlets(answer: Callable[[Job], Answer] = _nothing) -> None:
    """As ``attend``, while other greenlets run."""
    from gevent.fileobject import FileObject

    stdin = FileObject(sys.stdin.fileno(), "rb", close=False)
    ready()
    while line := stdin.readline():
        say(answer(json.loads(line)))


async def attend_tasks(answer: Callable[[Job], Awaitable[Answer]]) -> None:
    """As ``attend``, while other tasks run."""
    import asyncio

    ready()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        say(await answer(json.loads(line)))


_importing_s = 0.0


def main(task: dict[str, Any]) -> None:
    """Play a role of a system until standard input ends."""
    global _importing_s
    module = import_module(f"benchmarks.systems.{task['module']}")
    try:
        if task["role"] == "worker":
            for name in task["imports"]:
                import_module(name)
        _importing_s = clock() - task["spawned"]
        getattr(module, task["role"])(task["form"], Place(*task["place"]))
    except (ImportError, Unavailable) as error:
        say({"ready": False, "reason": str(error)})


if __name__ == "__main__":
    # The module that systems import, not a second one that is called __main__.
    from benchmarks import harness

    harness.main(json.loads(sys.argv[1]))
