"""majortomo: Majordomo in Python. A client carries one call at a time, so there is a thread for each."""

from __future__ import annotations

from benchmarks.harness import Body, Call, LonelyThreads, Tally, attend
from benchmarks.system import Place, System

SYSTEMS = [
    System(
        name="majortomo",
        module="majortomo",
        # It imports six and, for its broker, yaml; neither does it require.
        requires=("majortomo==0.2.0", "six", "pyyaml", "ujson"),
        imports=("majortomo", "ujson"),
        max_in_flight=64,
        can_share=True,
    )
]
SERVICE = b"echo"


def broker(form: str, place: Place) -> None:
    """Run its broker in a thread: the other one watches our standard input."""
    import threading

    from majortomo.broker import Broker

    threading.Thread(target=Broker(place.tcp(place.front)).run, daemon=True).start()
    attend()


def worker(form: str, place: Place) -> None:
    """Answer with what was sent."""
    import threading

    import ujson
    from majortomo import Worker

    def run() -> None:
        with Worker(place.tcp(place.front), SERVICE) as worker:
            while True:
                client, frames = worker.wait_for_request()
                reply = ujson.dumps(ujson.loads(frames[0])).encode()
                worker.send_reply_final(client, [reply])

    threading.Thread(target=run, daemon=True).start()
    attend(Tally().answer)


def client(form: str, place: Place) -> None:
    """Call from threads."""
    import ujson
    from majortomo import Client

    def connect() -> Call:
        client = Client(place.tcp(place.front))
        client.connect()

        def call(sent: Body) -> Body:
            client.send(SERVICE, ujson.dumps(sent).encode())
            (frame,) = client.recv_all_as_list(timeout=30)
            return ujson.loads(frame)  # type: ignore[no-any-return]

        return call

    LonelyThreads(connect).run()
