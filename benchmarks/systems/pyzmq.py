"""pyzmq as its guide has it, over a proxy in C: what a mesh could do at best if it cost nothing."""

from __future__ import annotations

from typing import Any

from benchmarks import environments
from benchmarks.harness import Body, Tally, Window, attend
from benchmarks.system import Place, System

SYSTEMS = [
    System(
        name="pyzmq, C proxy",
        module="pyzmq",
        requires=("pyzmq==27.3.0", "ujson"),
        imports=("zmq", "ujson"),
        can_share=True,
        can_notify=True,
    )
]
NOTE = b""
"""Stands where calls have their number."""
HIGH_WATER = 100_000
"""As in the C program: one-way messages wait, nothing is dropped."""


def program(role: str, form: str, place: Place) -> list[str] | None:
    """Return the broker's command."""
    if role != "broker":
        return None
    return [environments.limit(), "proxy", place.tcp(place.front), place.tcp(place.back)]


def worker(form: str, place: Place) -> None:
    """Answer with what was sent: ``[client id][number][body]``."""
    import threading

    import ujson

    tally = Tally()

    def run() -> None:
        socket = _dealer(place.tcp(place.back))
        while True:
            client, number, data = socket.recv_multipart()
            body = ujson.loads(data)
            if number == NOTE:
                tally.add()
            else:
                socket.send_multipart([client, number, ujson.dumps(body).encode()])

    threading.Thread(target=run, daemon=True).start()
    attend(tally.answer)


def client(form: str, place: Place) -> None:
    """Call from one loop."""
    import ujson

    socket = _dealer(place.tcp(place.front))

    def send(number: int, body: Body) -> None:
        socket.send_multipart([b"%d" % number, ujson.dumps(body).encode()])

    def receive() -> tuple[int, Body]:
        number, data = socket.recv_multipart()
        return int(number), ujson.loads(data)

    def note(body: Body) -> None:
        socket.send_multipart([NOTE, ujson.dumps(body).encode()])

    Window(send, receive, note).run()


def _dealer(endpoint: str) -> Any:
    import zmq

    socket: Any = zmq.Context.instance().socket(zmq.DEALER)
    socket.set_hwm(HIGH_WATER)
    socket.linger = 0
    socket.connect(endpoint)
    return socket
