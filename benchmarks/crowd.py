"""A router's machine among many: services, instances and clients by the thousand, calls that wait.

The many have no machines of their own. What they send is prepared, so that a count has nothing but the
router in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from benchmarks.exchange import CALL_S, REQUEST, RESPONSE, START, TIMEOUT_S, Arrived, Hub
from butler_mesh import codec, status
from butler_mesh.protocol import mesh
from butler_mesh.protocol.limits import Limits

CREDIT = 64
SPARE = 64
"""What may wait beside what does."""
STRIDE = 79
"""Clients and services take turns in such steps: a few calls then reach as different ones as many would."""

Turn = tuple[float, bytes, bytes]
"""A time, a routing id, and the message that it sends then."""


class Crowd:
    """A router that knows them all. ``services`` have ``instances`` each; only one of the two may be over 1.
    The ``queued`` requests are all clients' in equal shares, and wait for a service of one busy instance.
    ``at_once`` is how many records a message has."""

    def __init__(
        self, *, services: int = 1, instances: int = 1, clients: int = 1, queued: int = 0, at_once: int = 1
    ) -> None:
        self.now = START
        self.hub = Hub(Limits(queue_limit=queued + SPARE))
        self.clients = [b"c%d" % i for i in range(clients)]
        self.services = [b"bench.%d" % i for i in range(services)]
        # By service.
        self.instances = [[b"i%d.%d" % (service, i) for i in range(instances)] for service in range(services)]
        self.at_once = at_once
        self.queued = queued
        # What the last turn sent, to whom.
        self.sent: Arrived = []
        # Dispatched and not answered, oldest first.
        self._in_flight: deque[int] = deque()
        self._last_id = 0
        self._round = 0
        for client in self.clients:
            self.greet(client)
        for service, members in enumerate(self.instances):
            for instance in members:
                self.enlist(instance, service)
        # Tokens are counted up from a number that only the router knew.
        self._last_token = 0
        for _ in range(CREDIT if queued else 1):
            self.turn(self.clients[0], self.requests(self.services[0], 1))
            self._last_token = self._token()
            self._in_flight.append(self._last_token)
        if not queued:
            self.turn(self.instances[0][0], self._replies([self._in_flight.popleft()]))
        for i in range(queued):
            self.turn(self.clients[i % clients], self.requests(self.services[0], 1))

    def greet(self, client: bytes) -> None:
        """Have one more client."""
        self.turn(client, _message(_record(mesh.HELLO, payload=_HELLO_CLIENT)))

    def enlist(self, instance: bytes, service: int = 0) -> None:
        """Have one more instance."""
        self.turn(instance, _message(_record(mesh.HELLO, payload=_HELLO_INSTANCE)))
        ready = {
            "wid": instance.decode(),
            "epoch": "0123456789abcdef" * 2,
            "service": f"bench.{service}",
            "paths": [],
            "credit": CREDIT,
        }
        self.turn(instance, _message(_record(mesh.READY, payload=codec.dumps(ready))))

    def leave(self, peer: bytes) -> None:
        """Have one less of either."""
        self.turn(peer, _message(_record(mesh.GOODBYE, payload=mesh.pack_reason(status.OK, ""))))

    def turn(self, peer: bytes, message: bytes) -> None:
        """Let the router act on one message."""
        self.sent = self.hub.turn([(peer, (message,))], self.now)

    def requests(self, target: bytes, n: int) -> bytes:
        """Return a message of so many requests."""
        payload = mesh.pack_target(target) + REQUEST
        records = []
        for _ in range(n):
            self._last_id += 1
            records.append(_record(mesh.REQUEST, self._last_id, int(TIMEOUT_S * 1000), payload))
        return _message(*records, now=self.now)

    def prepare(self, calls: int) -> list[Turn]:
        """Return the turns of so many calls: in each, the router reads one message."""
        turns: list[Turn] = []
        for _ in range(calls // self.at_once):
            self._round += 1
            self.now += self.at_once * CALL_S
            client = self.clients[self._round * STRIDE % len(self.clients)]
            service = self._round * STRIDE % len(self.services)
            turns.append((self.now, client, self.requests(self.services[service], self.at_once)))
            for _ in range(self.at_once):
                self._last_token += 1
                self._in_flight.append(self._last_token)
            tokens = [self._in_flight.popleft() for _ in range(self.at_once)]
            members = self.instances[service]
            # Whose turn it is: the first has had it already.
            instance = members[self._round % len(members)]
            turns.append((self.now, instance, self._replies(tokens)))
        return turns

    def play(self, turns: Sequence[Turn]) -> int:
        """Let the router act on these; return the messages that it made of them: as many as there were turns
        if nothing went amiss."""
        turn = self.hub.turn
        made = 0
        for now, peer, message in turns:
            made += len(turn([(peer, (message,))], now))
        return made

    def _replies(self, tokens: Sequence[int]) -> bytes:
        payload = mesh.pack_status(status.OK) + RESPONSE
        return _message(*(_record(mesh.FINAL, token, payload=payload) for token in tokens), now=self.now)

    def _token(self) -> int:
        """Return the token of the one request that the last turn sent out."""
        ((_, (frame,)),) = self.sent
        (record,) = mesh.parse(bytes(frame))[1]
        return record.id


_HELLO_CLIENT = codec.dumps({"role": "client", "versions": [mesh.VERSION]})
_HELLO_INSTANCE = codec.dumps({"role": "instance", "versions": [mesh.VERSION]})


def _record(kind: int, id_: int = 0, remaining_ms: int = 0, payload: bytes = b"") -> bytes:
    return mesh.pack_record(len(payload), kind, 0, id_, remaining_ms) + payload


def _message(*records: bytes, now: float = START) -> bytes:
    return mesh.pack_header(int(now * 1000)) + b"".join(records)
