"""The processes of a benchmark: a router, a service, a client; ``python -m benchmarks.parties ROLE ...``.

Each says ``ready`` on standard output when it is, and ends with its standard input. The client takes
one JSON job a line and answers each with one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event
from gevent.fileobject import FileObject

from butler_mesh import Application, Client, Router, Service, ServiceConnection, ServiceMessageHandler

SERVICE = "bench.echo"


class Echo(ServiceMessageHandler):
    """The handler class's way to answer what the function answers."""

    def request(self) -> Any:
        self.set_status(200)
        return self.render({"text": self.message.get_argument("text")})


def echo(text: str) -> dict[str, str]:
    """The function's way."""
    return {"text": text}


def arguments(size: int) -> dict[str, str]:
    """Return arguments whose JSON is exactly ``size`` bytes."""
    return {"text": "x" * (size - len('{"text":""}'))}


def main(role: str, *options: str) -> None:
    """Run one role until standard input ends."""
    stdin = FileObject(sys.stdin.buffer, "rb", close=False)
    close: Callable[[], object]
    if role == "router":
        router = Router()
        router.frontend.bind(options[0])
        router.backend.bind(options[1])
        close = router.stop
    elif role == "service":
        service = Service(options[0], SERVICE)
        service.function(echo)
        close = service.start().close
        assert service.wait_until_registered(10)
    elif role == "bound":
        service = Service.bind(options[0], SERVICE)
        service.function(echo)
        close = service.start().close
    elif role == "handlers":
        connection = ServiceConnection(options[0], SERVICE)
        application = Application(connection, [(r"^/echo$", Echo)])
        application.start()
        assert connection.wait_until_registered(10)
        close = application.close
    elif role == "client":
        close = _client(stdin, Client(options[0]))
    else:
        host = Router()
        host.bind(options[0])
        close = _client(stdin, Client(host))
    if role not in ("client", "embedding"):
        print("ready", flush=True)
        stdin.read()
    close()


def _client(stdin: FileObject[bytes], client: Client) -> Callable[[], object]:
    print("ready", flush=True)
    while line := stdin.readline():
        print(json.dumps(_measure(client, **json.loads(line))), flush=True)
    return client.close


def _measure(client: Client, size: int, in_flight: int, seconds: float) -> dict[str, float]:
    """Call for a while from so many greenlets; return calls/s, and p50 and p99 in microseconds."""
    sent = arguments(size)
    stop = Event()
    times: list[float] = []

    def caller() -> None:
        call, clock = client.request, time.perf_counter
        while not stop.is_set():
            began = clock()
            response = call(SERVICE, "/echo", sent)
            times.append(clock() - began)
            if response.status_code != 200 or response.body != sent:
                raise AssertionError(repr(response))

    greenlets = [gevent.spawn(caller) for _ in range(in_flight)]
    began, cpu = time.perf_counter(), time.process_time()
    gevent.sleep(seconds)
    stop.set()
    gevent.joinall(greenlets, raise_error=True)
    took = time.perf_counter() - began
    times.sort()
    n = len(times)
    return {
        "calls": n,
        "rate": n / took,
        "client_us": (time.process_time() - cpu) / n * 1e6,
        "p50_us": times[n // 2] * 1e6,
        "p99_us": times[n * 99 // 100] * 1e6,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
