"""What the budget guards: pieces of work without input and output, and a fixed one to compare them with.

``python -m benchmarks.workloads`` is the counted half of ``benchmarks.budget``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import reference
from benchmarks.counting import measure
from benchmarks.exchange import PARTS, Caller, Exchange, Hub, Party, Worker, replay
from butler_mesh.messages import (
    ServiceRequest,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from butler_mesh.protocol.mesh import ONE_WAY, STREAM

WARM_UP = 4 * PARTS
"""Units done before any is counted: the interpreter has specialised its bytecode by then."""

Work = Callable[[], int]
"""Does what was prepared, once; returns how many units were done."""


@dataclass(frozen=True, slots=True)
class Workload:
    """``prepare`` gets a number of units and returns the work; ``n`` is how many are counted."""

    n: int
    prepare: Callable[[int], Work]
    text: str


def calls(n: int, flags: int = 0) -> Work:
    """Return calls from client to router to instance and back."""
    exchange = Exchange(flags)
    exchange.run(WARM_UP)
    return lambda: exchange.run(n)


def parts(n: int) -> Work:
    """Return streams of so many parts altogether."""
    exchange = Exchange(STREAM)
    exchange.run(WARM_UP // PARTS)

    def work() -> int:
        before = exchange.caller.parts
        exchange.run(n // PARTS)
        return exchange.caller.parts - before

    return work


def alone(which: Callable[[Exchange], Party], new: Callable[[], Party], n: int) -> Work:
    """Return one party's share of so many calls: what it was given in them, given to another."""
    exchange = Exchange(is_taped=True)
    exchange.run(WARM_UP)
    old, party = which(exchange), new()
    tape = old.tape
    assert tape is not None
    begin = len(tape)
    party.connect()
    replay(party, tape)
    exchange.run(n)
    rest = tape[begin:]

    def work() -> int:
        replay(party, rest)
        # The machines are pure: it has sent what the other sent, or something is wrong.
        return n if party.sent == old.sent else 0

    return work


def envelopes(n: int) -> Work:
    """Return what the message layer does for so many calls: each envelope written and read."""
    arguments = {"text": "x" * 89}

    def work() -> int:
        done = 0
        for _ in range(n):
            request = decode_request(*encode_request(ServiceRequest("/echo", arguments=arguments)))
            envelope, flags = encode_response(request.arguments)
            done += decode_response(200, flags, envelope, "/echo").body == arguments
        return done

    return work


WORKLOADS: dict[str, Workload] = {
    "reference": Workload(6_400, lambda n: lambda: reference.run(n), "one turn of the loop"),
    "call": Workload(10_000, calls, "client, router, instance and back"),
    "client": Workload(3_200, lambda n: alone(lambda all_: all_.caller, Caller, n), "its share of a call"),
    "router": Workload(3_200, lambda n: alone(lambda all_: all_.hub, Hub, n), "its share of a call"),
    "instance": Workload(3_200, lambda n: alone(lambda all_: all_.worker, Worker, n), "its share of a call"),
    "one-way": Workload(3_200, lambda n: calls(n, ONE_WAY), "a call that is not answered"),
    "part": Workload(64 * PARTS, parts, "a 32nd of a stream of 32 parts"),
    "envelopes": Workload(2_000, envelopes, "a request and a reply, written and read"),
}


def main() -> None:
    """Have every workload counted."""
    for name, workload in WORKLOADS.items():
        workload.prepare(WARM_UP)()
        work = workload.prepare(workload.n)
        measure(name, work)


if __name__ == "__main__":
    main()
