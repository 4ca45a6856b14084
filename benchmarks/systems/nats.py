"""nats-py and nats-server: requests on a subject that a queue group of workers answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.environments import find
from benchmarks.harness import Body, Tally, Tasks, attend_tasks
from benchmarks.system import Place, System

SYSTEMS = [
    System(
        name="nats-py",
        module="nats",
        requires=("nats-py==2.16.0", "uvloop", "ujson"),
        imports=("nats", "ujson"),
        silent=("broker",),
        can_share=True,
        can_notify=True,
        can_crowd=True,
    )
]
SYSTEMS += [SYSTEMS[0]._replace(name="nats-py uvloop", form="uvloop", imports=("nats", "ujson", "uvloop"))]
TIMEOUT_S = 30


def program(role: str, form: str, place: Place) -> list[str] | None:
    """Return the broker's command."""
    if role != "broker":
        return None
    return [find("nats-server"), "--addr", "127.0.0.1", "--port", str(place.front)]


def worker(form: str, place: Place) -> None:
    """Answer with what was sent."""
    import ujson

    async def serve() -> None:
        tally = Tally()
        connection = await _connect(place)

        async def echo(message: Any) -> None:
            await message.respond(ujson.dumps(ujson.loads(message.data)).encode())

        async def note(message: Any) -> None:
            ujson.loads(message.data)
            tally.add()

        await connection.subscribe("echo", queue="workers", cb=echo)
        await connection.subscribe("note", queue="workers", cb=note)
        await connection.flush()

        async def answer(job: dict[str, Any]) -> dict[str, Any]:
            return tally.answer(job)

        await attend_tasks(answer)

    _run(form, serve())


def client(form: str, place: Place) -> None:
    """Call from tasks."""
    import ujson

    async def connect() -> Callable[[Body], Awaitable[Body]]:
        request = (await _connect(place)).request

        async def call(sent: Body) -> Body:
            reply = await request("echo", ujson.dumps(sent).encode(), timeout=TIMEOUT_S)
            return ujson.loads(reply.data)  # type: ignore[no-any-return]

        return call

    async def connect_notes() -> Callable[[Body], Awaitable[object]]:
        publish = (await _connect(place)).publish
        return lambda sent: publish("note", ujson.dumps(sent).encode())

    _run(form, Tasks(connect, connect_notes).run())


async def _connect(place: Place) -> Any:
    import nats

    return await nats.connect(f"nats://127.0.0.1:{place.front}")


def _run(form: str, main: Any) -> None:
    if form == "uvloop":
        import uvloop

        uvloop.run(main)
    else:
        import asyncio

        asyncio.run(main)
