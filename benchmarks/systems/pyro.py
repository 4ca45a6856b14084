"""Pyro5: remote objects. A proxy carries one call at a time, so there is a thread and a proxy for each."""

from __future__ import annotations

from benchmarks.harness import Body, Call, LonelyThreads, attend
from benchmarks.system import Place, System

SYSTEMS = [
    System(
        name="Pyro5",
        module="pyro",
        roles=("worker", "client"),
        requires=("Pyro5==5.17",),
        imports=("Pyro5.api",),
        max_in_flight=64,
    )
]
OBJECT = "echo"


def worker(form: str, place: Place) -> None:
    """Answer with what was sent."""
    import threading

    import Pyro5.api

    @Pyro5.api.expose  # type: ignore[untyped-decorator, unused-ignore]
    class Echo:
        """What is called."""

        def echo(self, text: str) -> Body:
            """Return the body."""
            return {"text": text}

    daemon = Pyro5.api.Daemon("127.0.0.1", place.workers[place.turn])
    daemon.register(Echo(), OBJECT)
    threading.Thread(target=daemon.requestLoop, daemon=True).start()
    attend()


def client(form: str, place: Place) -> None:
    """Call from threads, in JSON."""
    import Pyro5.api

    Pyro5.api.config.SERIALIZER = "json"

    def connect() -> Call:
        proxy = Pyro5.api.Proxy(f"PYRO:{OBJECT}@127.0.0.1:{place.workers[0]}")

        def call(sent: Body) -> Body:
            proxy._pyroClaimOwnership()  # threads differ from job to job
            return proxy.echo(sent["text"])  # type: ignore[no-any-return]

        return call

    LonelyThreads(connect).run()
