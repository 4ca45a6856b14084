"""zerorpc: calls between gevent processes over ZeroMQ, in MessagePack."""

from __future__ import annotations

from benchmarks.harness import Call, Greenlets, Note, Tally, attend_greenlets
from benchmarks.system import Place, System

SYSTEMS = [
    System(
        name="zerorpc",
        module="zerorpc",
        roles=("worker", "client"),
        requires=("zerorpc==0.6.3",),
        imports=("zerorpc",),
        can_share=True,  # by connecting to several servers
        can_notify=True,
        can_crowd=True,
    )
]
TIMEOUT_S = 30


def worker(form: str, place: Place) -> None:
    """Answer with what was sent; count what is pushed, on a port of its own."""
    import gevent
    import zerorpc

    tally = Tally()

    class Echo:
        """What is called."""

        def echo(self, text: str) -> dict[str, str]:
            """Return the body."""
            return {"text": text}

        def note(self, text: str) -> None:
            """Count."""
            tally.add()

    server = zerorpc.Server(Echo())
    server.bind(place.tcp(place.workers[place.turn]))
    gevent.spawn(server.run)
    if place.turn == 0:
        puller = zerorpc.Puller(Echo())
        puller.bind(place.tcp(place.back))
        gevent.spawn(puller.run)
    attend_greenlets(tally.answer)


def client(form: str, place: Place) -> None:
    """Call from greenlets."""
    import zerorpc

    def connect() -> Call:
        client = zerorpc.Client(timeout=TIMEOUT_S)
        for port in place.workers:
            client.connect(place.tcp(port))
        return lambda sent: client.echo(sent["text"])

    def connect_notes() -> Note:
        pusher = zerorpc.Pusher()
        pusher.connect(place.tcp(place.back))
        return lambda sent: pusher.note(sent["text"])

    Greenlets(connect, connect_notes).run()
