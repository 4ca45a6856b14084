"""grpcio: threads and asyncio; generic handlers over bytes, so that both sides move the same JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.harness import Body, Call, Tally, Tasks, Threads, attend, attend_tasks
from benchmarks.system import Place, System

SYSTEMS = [
    System(
        name="grpcio sync",
        module="grpcio",
        roles=("worker", "client"),
        requires=("grpcio==1.85.1", "ujson"),
        imports=("grpc", "ujson"),
        max_in_flight=64,
    )
]
SYSTEMS += [
    SYSTEMS[0]._replace(name="grpcio aio", form="aio", imports=("grpc.aio", "ujson"), max_in_flight=512)
]
POOL = 10
"""Threads of the server, as in its own examples."""
# Its own backoff begins at a second: the start-up of a worker would be that of the client's patience.
OPTIONS = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 20)]
TIMEOUT_S = 30


def worker(form: str, place: Place) -> None:
    """Answer with what was sent."""
    import grpc
    import ujson

    def handlers(echo: Callable[[bytes, Any], Any]) -> Any:
        return grpc.method_handlers_generic_handler(
            "echo", {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
        )

    address = f"127.0.0.1:{place.workers[place.turn]}"
    if form == "aio":

        async def echo_async(request: bytes, context: Any) -> bytes:
            return ujson.dumps(ujson.loads(request)).encode()

        async def serve() -> None:
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((handlers(echo_async),))
            server.add_insecure_port(address)
            await server.start()
            await attend_tasks(_nothing)
            await server.stop(None)

        _run(serve())
    else:
        from concurrent.futures import ThreadPoolExecutor

        def echo(request: bytes, context: Any) -> bytes:
            return ujson.dumps(ujson.loads(request)).encode()

        server = grpc.server(ThreadPoolExecutor(POOL))
        server.add_generic_rpc_handlers((handlers(echo),))
        server.add_insecure_port(address)
        server.start()
        attend(Tally().answer)
        server.stop(None)


def client(form: str, place: Place) -> None:
    """Call from threads, or from tasks; all share one channel."""
    import grpc
    import ujson

    address = f"127.0.0.1:{place.workers[0]}"
    if form == "aio":

        async def connect_async() -> Callable[[Body], Awaitable[Body]]:
            echo = grpc.aio.insecure_channel(address, options=OPTIONS).unary_unary("/echo/Echo")

            async def call(sent: Body) -> Body:
                reply = await echo(ujson.dumps(sent).encode(), timeout=TIMEOUT_S)
                return ujson.loads(reply)  # type: ignore[no-any-return]

            return call

        _run(Tasks(connect_async).run())
    else:

        def connect() -> Call:
            echo = grpc.insecure_channel(address, options=OPTIONS).unary_unary("/echo/Echo")
            return lambda sent: ujson.loads(echo(ujson.dumps(sent).encode(), timeout=TIMEOUT_S))

        Threads(connect).run()


async def _nothing(job: dict[str, Any]) -> dict[str, Any]:
    return {}


def _run(main: Any) -> None:
    import asyncio

    asyncio.run(main)
