"""Ourselves over RabbitMQ: calls, and requests that are stored before their call returns."""

from __future__ import annotations

import os

from benchmarks.harness import Body, Call, Greenlets, Tally, attend_greenlets
from benchmarks.system import Place, System
from benchmarks.systems.butler_mesh import SERVICE, keep_calling

BROKER = "BENCHMARK_BROKER"
"""Environment variable with the broker's address, for all systems that speak to it."""
ROLES = ("worker", "client")

SYSTEMS = [
    System(name="butler_mesh amqp", module="rabbitmq", form="calls", roles=ROLES),
    System(name="butler_mesh amqp durable", module="rabbitmq", form="durable", roles=ROLES),
]


def worker(form: str, place: Place) -> None:
    """Answer with what was sent."""
    from butler_mesh import Service

    tally = Tally()
    name = SERVICE if form == "calls" else f"{SERVICE}.{form}"
    service = Service(f"{os.environ[BROKER]}//{name}", durable=form == "durable")

    @service.function
    def echo(text: str) -> Body:
        tally.add()
        return {"text": text}

    with service:
        attend_greenlets(tally.answer)


def client(form: str, place: Place) -> None:
    """Call from greenlets; what is stored is done when it is confirmed."""
    from butler_mesh import Client

    if form == "calls":
        keep_calling(os.environ[BROKER])
        return

    def connect() -> Call:
        request_nowait = Client(os.environ[BROKER]).request_nowait

        def call(sent: Body) -> Body:
            request_nowait(f"{SERVICE}.{form}", "/echo", sent, durable=True)
            return sent

        return call

    Greenlets(connect).run()
