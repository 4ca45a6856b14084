"""A real router process among many: light peers, which are a socket and a machine each, in this process.

Each is a plain DEALER on a connection of its own. However many there are, 64 calls are in flight in all, so
what grows is what the router has to watch, and what shrinks is how many records share a message.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import zmq

from benchmarks.exchange import IN_FLIGHT, START, Arrived, Caller, Party, Worker
from butler_mesh.protocol.member import Phase
from butler_mesh.protocol.mesh import HEADER_SIZE, RECORD_SIZE

SIZES = ((1, 1), (64, 1), (1000, 1), (1, 64), (1, 1000))
"""(clients, instances) of one service."""
WARM_UP_S = 1.0
PATIENCE_S = 30.0
LONE_HEARTBEAT_BYTES = HEADER_SIZE + RECORD_SIZE
"""A message of nothing but a heartbeat, which is no call's."""
AT_ONCE = 50
"""Connections begun at once: half of what the router's socket lets wait."""
TICK_S = 0.05
VISITORS = 20
VISIT_S = 0.05
"""Longer than the router is busy with a connection that broke."""


class Peer:
    """A party and its socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, party: Party) -> None:
        self.party = party
        # Both ways: of calls, and of nothing but a heartbeat.
        self.messages = 0
        self.beats = 0
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        party.connect()

    @property
    def done(self) -> int:
        """Calls of its own that were answered."""
        return self.party.done if isinstance(self.party, Caller) else 0

    def turn(self, now: float, calls: int = 0) -> None:
        """Read what has come, act, send; until nothing is left to read."""
        while True:
            arrived: Arrived = []
            while self._is_readable():
                arrived.append((b"", self.socket.recv_multipart(zmq.NOBLOCK)))
            sent = self.party.turn(arrived, now, calls)
            for _, message in sent:
                self.socket.send_multipart([bytes(frame) for frame in message], zmq.NOBLOCK)
            sizes = [len(message[0]) for messages in (arrived, sent) for _, message in messages]
            beats = sum(size <= LONE_HEARTBEAT_BYTES for size in sizes)
            self.beats += beats
            self.messages += len(sizes) - beats
            calls = 0
            # A send may have swallowed the descriptor's signal.
            if not self._is_readable():
                return

    def _is_readable(self) -> bool:
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


class Swarm:
    """Clients and instances of one service, all connected to a router."""

    def __init__(self, endpoint: str, clients: int, instances: int) -> None:
        # Their machines' time: they were made at START.
        self._behind = time.monotonic() - START
        self._context: zmq.Context[Any] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, clients + instances + 8)
        self._endpoint = endpoint
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, Peer] = {}
        self._tick_at = 0.0
        self._workers = [Worker(f"bench-{i}") for i in range(instances)]
        self._callers = [Caller() for _ in range(clients)]
        self.instances = [self._join(worker) for worker in self._workers]
        self.clients = [self._join(caller) for caller in self._callers]
        # Who calls next.
        self._next = cycle(self.clients)
        self._settle()

    def run(self, seconds: float) -> int:
        """Keep 64 calls in flight for so long; return how many were answered."""
        until = time.monotonic() + seconds
        before, begun = self._done(), IN_FLIGHT
        self._begin(IN_FLIGHT)
        while time.monotonic() < until:
            ended = self._step()
            begun += ended
            self._begin(ended)
        while self._done() < before + begun:
            self._step()
            if time.monotonic() > until + PATIENCE_S:
                raise RuntimeError("some calls were not answered")
        return begun

    def rest(self, seconds: float) -> None:
        """Call nobody for so long: only heartbeats go to and fro."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._step()

    def see_off(self, visitors: int) -> None:
        """Have so many strangers connect, one after the other, and leave without a word."""
        for _ in range(visitors):
            visitor = self._context.socket(zmq.DEALER)
            visitor.connect(self._endpoint)
            self.rest(VISIT_S)
            visitor.close(0)
            self.rest(VISIT_S)

    def close(self) -> None:
        """Close the sockets, without goodbyes."""
        self._epoll.close()
        self._context.destroy(linger=0)

    def _join(self, party: Party) -> Peer:
        peer = Peer(self._context, self._endpoint, party)
        descriptor = int(peer.socket.getsockopt(zmq.FD))
        self._by_descriptor[descriptor] = peer
        self._epoll.register(descriptor, select.EPOLLIN)
        peer.turn(self._now())
        if len(self._by_descriptor) % AT_ONCE == 0:
            self._settle()
        return peer

    def _settle(self) -> None:
        """Wait until the router knows all that have come."""
        until = time.monotonic() + PATIENCE_S
        while not all(_is_known(peer.party) for peer in self._by_descriptor.values()):
            self._step()
            if time.monotonic() > until:
                raise RuntimeError("some were not welcomed")

    def _begin(self, calls: int) -> None:
        for peer, n in Counter(islice(self._next, calls)).items():
            peer.turn(self._now(), n)

    def _step(self) -> int:
        """Let those who have something to read have their turn; return how many calls ended by it."""
        ended = 0
        for descriptor, _ in self._epoll.poll(TICK_S):
            peer = self._by_descriptor[descriptor]
            before = peer.done
            peer.turn(self._now())
            ended += peer.done - before
        if self._now() > self._tick_at:
            self._tick_at = self._now() + TICK_S
            for peer in self._by_descriptor.values():
                if peer.party.is_due(self._now()):
                    peer.turn(self._now())
        return ended

    def _done(self) -> int:
        return sum(caller.done for caller in self._callers)

    def _now(self) -> float:
        return time.monotonic() - self._behind


def _is_known(party: Party) -> bool:
    if isinstance(party, Worker):
        return party.machine.is_registered
    return isinstance(party, Caller) and party.machine.phase is Phase.PRESENT


class RouterProcess:
    """``butler-mesh router``, and what the kernel says of it."""

    def __init__(self, endpoint: str) -> None:
        command = [
            sys.executable,
            "-m",
            "butler_mesh",
            "router",
            "--bind",
            endpoint,
            "--log-level",
            "warning",
        ]
        self._process = subprocess.Popen(command)
        self._proc = Path(f"/proc/{self._process.pid}")

    def cpu_s(self) -> float:
        """Return the CPU seconds it has used, all its threads."""
        fields = self._proc.joinpath("stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_kib(self) -> float:
        """Return the memory it has resident."""
        pages = int(self._proc.joinpath("statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024

    def stop(self) -> None:
        """End it; nothing of it is of worth."""
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True, slots=True)
class Figures:
    """What one constellation cost its router."""

    clients: int
    instances: int
    calls_s: float
    # CPU of each call, in microseconds.
    router_us: float
    # Of a call, heartbeats among them.
    messages: float
    # Records in a message of its clients', and of its instances'.
    records_front: float
    records_back: float
    rss_kib: float
    # What it takes of a core without calls.
    idle: float
    # CPU of each connection that breaks, in milliseconds.
    parting_ms: float


def measure(clients: int, instances: int, seconds: float, warm_up_s: float = WARM_UP_S) -> Figures:
    """Start a router and its swarm, and measure for so long."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        endpoint = f"tcp://127.0.0.1:{found.getsockname()[1]}"
    with ExitStack() as stack:
        router = RouterProcess(endpoint)
        stack.callback(router.stop)
        swarm = Swarm(endpoint, clients, instances)
        stack.callback(swarm.close)
        rss_kib = router.rss_kib()
        cpu_s = router.cpu_s()
        swarm.rest(seconds)
        idle = (router.cpu_s() - cpu_s) / seconds
        cpu_s = router.cpu_s()
        swarm.see_off(VISITORS)
        parting_s = router.cpu_s() - cpu_s - idle * 2 * VISITORS * VISIT_S
        swarm.run(warm_up_s)
        for peer in (*swarm.clients, *swarm.instances):
            peer.messages = peer.beats = 0
        cpu_s, began = router.cpu_s(), time.monotonic()
        calls = swarm.run(seconds)
        return Figures(
            clients,
            instances,
            calls / (time.monotonic() - began),
            (router.cpu_s() - cpu_s) / calls * 1e6,
            sum(peer.messages + peer.beats for peer in (*swarm.clients, *swarm.instances)) / calls,
            2 * calls / sum(peer.messages for peer in swarm.clients),
            2 * calls / sum(peer.messages for peer in swarm.instances),
            rss_kib,
            idle,
            max(0.0, parting_s / VISITORS * 1e3),
        )


def show(seconds: float) -> None:
    """Measure every size, and print."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(f"a router process, tcp; {IN_FLIGHT} calls in flight in all")
    print("                            router µs a   messages  records a message  router KiB        ms a")
    print("  clients instances  calls/s  call message   a call     front      back      a peer  idle parting")
    least: Figures | None = None
    for clients, instances in SIZES:
        found = measure(clients, instances, seconds)
        least = least or found
        more = clients + instances - least.clients - least.instances
        memory = f"{(found.rss_kib - least.rss_kib) / more:11.1f}" if more else f"{'–':>11}"
        print(
            f"  {clients:7} {instances:9} {found.calls_s:8,.0f} {found.router_us:5.0f}"
            f" {found.router_us / found.messages:7.1f} {found.messages:8.2f}"
            f" {found.records_front:9.1f} {found.records_back:9.1f} {memory}"
            f" {found.idle:5.1%} {found.parting_ms:7.1f}",
            flush=True,
        )
