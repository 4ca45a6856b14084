"""nameko: services over AMQP by eventlet and kombu. Its client stands alone, and calls without waiting."""

from __future__ import annotations

import os
import sys
from collections import deque
from typing import Any

from benchmarks.harness import Body, Window, ready
from benchmarks.system import Place, System
from benchmarks.systems.rabbitmq import BROKER, ROLES

SYSTEMS = [
    System(
        name="nameko", module="nameko", roles=ROLES, requires=("nameko==2.14.1", "setuptools<80", "dnspython")
    )
]
WORKERS = 64


def worker(form: str, place: Place) -> None:
    """Answer with what was sent."""
    import eventlet

    eventlet.monkey_patch()
    from eventlet import tpool
    from nameko.containers import ServiceContainer
    from nameko.rpc import rpc

    class Echo:
        """What is called."""

        name = "bench_nameko"

        @rpc
        def echo(self, text: str) -> Body:
            """Return the body."""
            return {"text": text}

    container = ServiceContainer(Echo, config={**_config(), "max_workers": WORKERS})
    container.start()
    ready()
    while tpool.execute(sys.stdin.readline):
        pass
    container.stop()


def client(form: str, place: Place) -> None:
    """Keep calls in flight; replies are taken in the order of the calls."""
    from nameko.standalone.rpc import ClusterRpcProxy

    waiting: deque[tuple[int, Any]] = deque()
    with ClusterRpcProxy(_config(), timeout=30) as proxy:

        def send(number: int, sent: Body) -> None:
            waiting.append((number, proxy.bench_nameko.echo.call_async(text=sent["text"])))

        def receive() -> tuple[int, Body]:
            number, reply = waiting.popleft()
            return number, reply.result()

        Window(send, receive).run()


def _config() -> dict[str, Any]:
    return {"AMQP_URI": f"{os.environ[BROKER]}//", "serializer": "json"}
