"""The programs that the tests run as processes: ``python -m tests.processes.roles ROLE ...``.

Each prints ``ready`` when it is. None outlives LONGEST_S, whatever becomes of the test that started it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent.event import Event

LONGEST_S = 200


def say(line: str) -> None:
    """Print one line, whole, whatever is buffered."""
    os.write(1, f"{line}\n".encode())


def result(value: Any) -> None:
    """Print the outcome for ``Party.wait_for_result``."""
    say(f"result {json.dumps(value)}")


# --- the mesh -------------------------------------------------------------------------------------


def router(endpoint: str, options: str = "{}") -> None:
    """Be a router."""
    from butler_mesh import Router

    node = Router(**json.loads(options))
    node.bind(endpoint)
    say("ready")
    node.run()


def service(endpoint: str, name: str, options: str = "{}") -> None:
    """Be an instance. ``gate`` is a file: until it is there, ``/work`` waits."""
    from butler_mesh import Service
    from butler_mesh.errors import Stopped

    settings = json.loads(options)
    gate = settings.pop("gate", "")
    own = Service(endpoint, name, **settings)

    @own.function
    def work() -> int:
        say("working")
        while gate and not os.path.exists(gate):
            gevent.sleep(0.01)
        return os.getpid()

    @own.function
    def nap(seconds: float) -> int:
        gevent.sleep(seconds)
        return os.getpid()

    @own.function
    def spin(seconds: float) -> int:
        say("spinning")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass
        return os.getpid()

    @own.function
    def hold() -> None:
        say("holding")
        try:
            Event().wait()
        except Stopped as stopped:
            say(f"stopped {stopped.status}")
            raise

    @own.function
    def never() -> None:
        Event().wait()

    @own.function
    def echo(text: str) -> str:
        return text

    @own.function("/")
    def frames(*body: bytes) -> Any:
        if body[:1] == (b"parts",):
            return iter([[part] for part in body[1:]])
        return list(body)

    @own.function
    def parts(n: int) -> Iterator[int]:
        return iter(range(n))

    own.start()
    if not own.wait_until_registered(10):
        raise SystemExit("no router has confirmed the registration")
    say("ready")
    own.run()


def holder(endpoint: str, service: str, n: str) -> None:
    """Be a client with n calls that will not be answered."""
    from butler_mesh import Client

    client = Client(endpoint)
    calls = [client.request_lazy(service, "/hold") for _ in range(int(n))]
    say("ready")
    for call in calls:
        result(call.get().status_code)


def good_client(endpoint: str, service: str, greenlets: str, seconds: str) -> None:
    """Be a client that calls for so long; tell how its calls went."""
    from butler_mesh import Client

    client = Client(endpoint, timeout=10)
    until = time.monotonic() + float(seconds)
    times: list[float] = []
    failures: list[str] = []

    def call(number: int) -> None:
        n = 0
        while time.monotonic() < until:
            n += 1
            text = f"{number}.{n}"
            began = time.monotonic()
            response = client.request(service, "/echo", {"text": text})
            times.append(time.monotonic() - began)
            if response.status_code != 200 or response.body != text:
                failures.append(f"{response!r} {response.body!r} after {times[-1]:.3f} s")

    say("ready")
    gevent.joinall([gevent.spawn(call, number) for number in range(int(greenlets))], raise_error=True)
    times.sort()
    result(
        {
            "calls": len(times),
            "failures": len(failures),
            "first_failures": failures[:5],
            "p50_s": times[len(times) // 2],
            "p99_s": times[len(times) * 99 // 100],
            "max_s": times[-1],
        }
    )


def counter(endpoint: str, plan: str) -> None:
    """Be a client that makes many calls and tells, at certain counts, how much memory everybody has.

    The plan: ``service path arguments timeout greenlets marks pids expected``.
    """
    from butler_mesh import Client
    from tests.processes.parties import rss_mib

    plan_ = json.loads(plan)
    client = Client(endpoint)
    arguments, timeout, marks = plan_["arguments"], plan_["timeout"], sorted(plan_["marks"])
    pids = {**plan_["pids"], "client": os.getpid()}
    codes: dict[int, int] = {}
    memory: list[dict[str, float]] = []
    done = 0
    began = time.monotonic()

    def call() -> None:
        nonlocal done
        request, target, path = client.request, plan_["service"], plan_["path"]
        while done < marks[-1]:
            code = request(target, path, arguments, timeout=timeout).status_code
            codes[code] = codes.get(code, 0) + 1
            done += 1
            if done in marks:
                memory.append({name: round(rss_mib(pid), 2) for name, pid in pids.items()})

    say("ready")
    gevent.joinall([gevent.spawn(call) for _ in range(plan_["greenlets"])], raise_error=True)
    result({"memory": memory, "codes": codes, "took_s": round(time.monotonic() - began, 2)})


# --- majortomo's own ------------------------------------------------------------------------------


def majortomo_worker(endpoint: str, service: str, options: str = "{}") -> None:
    """Be majortomo's Worker, for ever: a body that begins with ``parts`` is answered one frame at a time,
    one with ``hold`` never, one with ``pid`` by the pid; everything else comes back as it is."""
    from majortomo import Worker, WorkerRequestsIterator

    say("ready")
    while True:
        # Its iterator ends when the broker says DISCONNECT; the loop around it is the user's.
        requests = WorkerRequestsIterator(Worker(endpoint, service, **json.loads(options)))
        for frames in requests:
            say(f"got {len(frames)}")
            if frames[0] == b"parts":
                for frame in frames[1:-1]:
                    requests.send_reply_partial([frame])
                requests.send_reply_final(frames[-1:])
            elif frames[0] == b"hold":
                time.sleep(LONGEST_S)
            elif frames[0] == b"pid":
                requests.send_reply_final([str(os.getpid()).encode()])
            else:
                requests.send_reply_final(frames)


# --- strangers ------------------------------------------------------------------------------------


def attackers(endpoint: str, seconds: str, seed: str, names: str) -> None:
    """Attack a router in these ways, all at once, each from a thread of its own."""
    from tests.processes import attacks

    say("ready")
    result(attacks.run(endpoint, float(seconds), int(seed), json.loads(names)))


ROLES: dict[str, Callable[..., None]] = {
    role.__name__: role
    for role in (router, service, holder, good_client, counter, majortomo_worker, attackers)
}

if __name__ == "__main__":
    signal.alarm(LONGEST_S)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(message)s")
    ROLES[sys.argv[1]](*sys.argv[2:])
