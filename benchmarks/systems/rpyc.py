"""RPyC: transparent remote objects. Asynchronous calls from one loop; JSON text, which it passes by value."""

from __future__ import annotations

from collections import deque
from typing import Any

from benchmarks.harness import Body, Window, attend
from benchmarks.system import Place, System

SYSTEMS = [
    System(
        name="rpyc",
        module="rpyc",
        roles=("worker", "client"),
        requires=("rpyc==6.0.2", "ujson"),
        imports=("rpyc", "rpyc.utils.server", "ujson"),
    )
]


def worker(form: str, place: Place) -> None:
    """Answer with what was sent."""
    import threading

    import rpyc
    import ujson
    from rpyc.utils.server import ThreadedServer

    class Echo(rpyc.Service):  # type: ignore[misc, unused-ignore]
        """What is called."""

        def exposed_echo(self, data: str) -> str:
            """Return the body."""
            return ujson.dumps(ujson.loads(data))

    server = ThreadedServer(Echo, hostname="127.0.0.1", port=place.workers[place.turn])
    threading.Thread(target=server.start, daemon=True).start()
    attend()


def client(form: str, place: Place) -> None:
    """Call from one loop; results come in the order of the calls."""
    import rpyc
    import ujson

    results: deque[tuple[int, Any]] = deque()
    # Connected by the first call: until then there is nobody.
    echoes: list[Any] = []

    def send(number: int, body: Body) -> None:
        if not echoes:
            connection = rpyc.connect("127.0.0.1", place.workers[0])
            echoes.append(rpyc.async_(connection.root.echo))
        results.append((number, echoes[0](ujson.dumps(body))))

    def receive() -> tuple[int, Body]:
        number, result = results.popleft()
        return number, ujson.loads(result.value)

    Window(send, receive).run()
