"""celery: tasks over RabbitMQ, results by its rpc backend, a worker without a pool, which is its quickest."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Any

from benchmarks.harness import Body, Window, attend
from benchmarks.system import Place, System
from benchmarks.systems.rabbitmq import BROKER, ROLES

SYSTEMS = [System(name="celery", module="celery", roles=ROLES, requires=("celery==5.5.3",))]
PATIENCE_S = 30.0
CREDIT = 64


def worker(form: str, place: Place) -> None:
    """Answer with what was sent."""
    app, _ = _app()

    def until_told() -> None:
        attend()
        os._exit(0)  # it would take seconds to say goodbye

    threading.Thread(target=until_told, daemon=True).start()
    app.Worker(
        pool="solo", loglevel="ERROR", without_gossip=True, without_mingle=True, without_heartbeat=True
    ).start()


def client(form: str, place: Place) -> None:
    """Keep calls in flight; results are taken in the order of the calls."""
    _, echo = _app()
    waiting: deque[tuple[int, Any]] = deque()

    def send(number: int, sent: Body) -> None:
        waiting.append((number, echo.delay(sent["text"])))

    def receive() -> tuple[int, Body]:
        number, result = waiting.popleft()
        return number, result.get(timeout=PATIENCE_S)

    Window(send, receive).run()


def _app() -> tuple[Any, Any]:
    from celery import Celery

    app = Celery("bench", broker=f"{os.environ[BROKER]}//", backend="rpc://")
    app.conf.update(
        task_default_queue="bench_celery",
        worker_prefetch_multiplier=CREDIT,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
    )

    def echo(text: str) -> Body:
        return {"text": text}

    return app, app.task(name="bench.echo")(echo)
