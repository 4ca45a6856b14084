"""What strangers do to a router: each attack is a loop over raw sockets, in a thread of its own.

They run in a process of their own (role ``attackers``), for a bounded time, and count what they did, so
that a test can tell an attack that was survived from one that never happened.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq

from butler_mesh import codec
from butler_mesh.protocol import mesh

GOOD_SERVICE = "good"
PAUSE_S = 0.001


def record(kind: int, flags: int = 0, id_: int = 0, remaining_ms: int = 0, payload: bytes = b"") -> bytes:
    """Return one record of the mesh wire."""
    return mesh.pack_record(len(payload), kind, flags, id_, remaining_ms) + payload


def message(*records: bytes) -> bytes:
    """Return a whole frame 0."""
    return mesh.pack_header(int(time.monotonic() * 1000)) + b"".join(records)


def hello(role: str, **fields: Any) -> bytes:
    """Return a HELLO."""
    return record(mesh.HELLO, payload=codec.dumps({"role": role, "versions": [1], **fields}))


def ready(wid: str, service: str, *paths: str, credit: int = 8, epoch: str = "f" * 32) -> bytes:
    """Return a READY."""
    fields = {"wid": wid, "epoch": epoch, "service": service, "paths": paths, "credit": credit}
    return record(mesh.READY, payload=codec.dumps(fields))


def request(
    id_: int, target: str, envelope: bytes = b"{}", flags: int = 0, remaining_ms: int = 5000
) -> bytes:
    """Return a REQUEST."""
    window = 1 if flags & mesh.STREAM else None
    return record(
        mesh.REQUEST, flags, id_, remaining_ms, mesh.pack_target(target.encode(), window) + envelope
    )


def echo(id_: int, text: str = "x") -> bytes:
    """Return a good request."""
    envelope = codec.dumps({"path": "/echo", "arguments": {"text": text}})
    return request(id_, GOOD_SERVICE, envelope)


class Field:
    """Where one attacker stands: his sockets, his dice, his time."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, until: float, seed: str) -> None:
        self.endpoint = endpoint
        self.random = random.Random(seed)
        self._context = context
        self._until = until

    @property
    def is_open(self) -> bool:
        """Whether there is time left; waits a little, so that nobody is a flood by accident."""
        time.sleep(PAUSE_S)
        return self.is_time_left

    @property
    def is_time_left(self) -> bool:
        return time.monotonic() < self._until

    def dealer(self, *, receive_hwm: int = 1000) -> zmq.Socket[bytes]:
        """Return a connected socket."""
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.SNDTIMEO, 100)
        dealer.setsockopt(zmq.RCVTIMEO, 200)
        dealer.setsockopt(zmq.RCVHWM, receive_hwm)
        dealer.connect(self.endpoint)
        return dealer

    def bytes(self, most: int) -> bytes:
        return self.random.randbytes(self.random.randrange(most + 1))

    def number(self) -> int:
        return self.random.choice(
            [0, 1, self.random.getrandbits(8), self.random.getrandbits(63), (1 << 64) - 1, 1 << 62]
        )


def drain(dealer: zmq.Socket[bytes]) -> int:
    """Throw away what came."""
    n = 0
    with suppress(zmq.Again):
        while True:
            dealer.recv_multipart(zmq.NOBLOCK)
            n += 1
    return n


def records_for(dealer: zmq.Socket[bytes], kind: int) -> list[mesh.Record]:
    """Receive until a record of this kind comes; return all of them in its message. [] if none does."""
    with suppress(zmq.Again):
        while True:
            frame, *rest = dealer.recv_multipart()
            found = [r for r in mesh.parse(frame, rest)[1] if r.kind == kind]
            if found:
                return found
    return []


# --- bytes that are no messages -------------------------------------------------------------------


def random_frames(field: Field) -> int:
    """One to six frames of noise, some with the right magic in front."""
    n = 0
    with field.dealer() as dealer:
        while field.is_open:
            frames = [field.bytes(300) for _ in range(field.random.randint(1, 6))]
            if field.random.random() < 0.5:
                frames[0] = message(frames[0])
            with suppress(zmq.Again):
                dealer.send_multipart(frames)
                n += 1
            drain(dealer)
    return n


def truncated_messages(field: Field) -> int:
    """Good messages, cut anywhere, by one who has said HELLO and by one who has not."""
    n = 0
    with field.dealer() as dealer, field.dealer() as stranger:
        dealer.send(message(hello("client")))
        while field.is_open:
            whole = message(echo(n, "y" * 50), record(mesh.CANCEL, id_=n), record(mesh.HEARTBEAT))
            for each in (dealer, stranger):
                with suppress(zmq.Again):
                    each.send(whole[: field.random.randrange(len(whole))])
                drain(each)
            n += 1
    return n


def wrong_magic_and_version(field: Field) -> int:
    """Messages of other protocols and of versions to come."""
    n = 0
    with field.dealer() as dealer:
        while field.is_open:
            frame = bytearray(message(hello("client"), echo(n)))
            frame[field.random.randrange(2)] = field.random.randrange(256)
            with suppress(zmq.Again):
                dealer.send(bytes(frame))
                n += 1
            drain(dealer)
    return n


def lying_lengths(field: Field) -> int:
    """Lengths that are too long by one, negative when signed, or 4 GiB; of records, targets and parts."""
    n = 0
    lies = [1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000]
    with field.dealer() as dealer:
        dealer.send(message(hello("client")))
        while field.is_open:
            lie = field.random.choice(lies)
            payload = field.bytes(40)
            head = mesh.pack_record(
                min(len(payload) + lie, 0xFFFFFFFF), field.random.randrange(16), 0, n, 1000
            )
            target = (lie & 0xFFFF).to_bytes(2, "little") + b"good"
            raw_envelope = lie.to_bytes(4, "little") + b"{}" + b"\xff\xff" + b"\xff\xff\xff\xff"
            raw = mesh.pack_target(b"good") + raw_envelope
            with suppress(zmq.Again):
                dealer.send(message(head + payload))
                dealer.send(message(record(mesh.REQUEST, 0, n + 1, 1000, target)))
                dealer.send(message(record(mesh.REQUEST, mesh.RAW, n + 2, 1000, raw)))
                dealer.send(message(record(mesh.REQUEST, mesh.ATTACHED, n + 3, 1000, b"\x04\0good")))
                n += 4
            drain(dealer)
    return n


def unknown_kinds(field: Field) -> int:
    """Kinds, flags and ids of every sort, from all roles."""
    n = 0
    roles = [field.dealer() for _ in range(2)]
    roles[0].send(message(hello("client")))
    roles[1].send(message(hello("instance"), ready(f"kinds-{field.random.random()}", "kinds")))
    while field.is_open:
        for dealer in roles:
            kinds = [field.random.randrange(256), field.random.randrange(2, 16)]
            records = [
                record(
                    kind, field.random.randrange(256) & ~mesh.ATTACHED, field.number(), 1000, field.bytes(30)
                )
                for kind in kinds
                if kind not in (mesh.HELLO, mesh.GOODBYE)
            ]
            with suppress(zmq.Again):
                dealer.send(message(*records))
                n += 1
            drain(dealer)
    for dealer in roles:
        dealer.close(0)
    return n


def frame_counts(field: Field) -> int:
    """No bytes at all, and a thousand frames where one is right."""
    n = 0
    with field.dealer() as dealer:
        dealer.send(message(hello("client")))
        while field.is_open:
            count = field.random.choice([1, 2, 3, 1000, 1500])
            filling = field.random.choice([b"", b"\0", b"x" * 20])
            first = field.random.choice([b"", message(), message(echo(n)), b"MDPC02", b"MDPW02"])
            with suppress(zmq.Again):
                dealer.send_multipart([first, *[filling] * (count - 1)])
                n += 1
            drain(dealer)
            time.sleep(0.01)
    return n


# --- peers without manners ------------------------------------------------------------------------


def hello_spam(field: Field) -> int:
    """HELLO and again HELLO, as this and as that; and no word before it."""
    n = 0
    with field.dealer() as dealer:
        while field.is_open:
            role = field.random.choice(["client", "instance", "control", "router", "", "x" * 500])
            fields = field.random.choice([{}, {"wid": "good", "epoch": "0" * 32}, {"limits": [[[]]]}])
            odd = field.random.choice([b"{", b"[]", b"\xff", b"[" * 10_000, b'{"role":NaN}'])
            first = field.random.choice([hello(role, **fields), record(mesh.HELLO, payload=odd), echo(n)])
            with suppress(zmq.Again):
                dealer.send(message(first, echo(n)))
                n += 1
            drain(dealer)
    return n


def ready_flood(field: Field) -> int:
    """Instances of ever new services and paths, of none, of mmi's; READY twice; and other people's paths."""
    n = 0
    with field.dealer() as dealer:
        while field.is_open:
            name = field.random.choice([f"flood-{n}", "", "mmi.service", "/slash", "x" * 300, "flood"])
            paths = field.random.choice(
                [[], [f"/flood/{n}"], ["relative"], [f"/p{i}/{n}" for i in range(100)]]
            )
            wid = field.random.choice([f"flood-{n}", "flood", ""])
            first = ready(wid, name, *paths, credit=field.random.choice([0, 1, -1, 1 << 40]))
            with suppress(zmq.Again):
                dealer.send(message(hello("instance"), *[first] * field.random.randint(1, 3)))
                n += 1
            drain(dealer)
    return n


def forged_replies(field: Field) -> int:
    """An instance that is asked now and then, and answers for all tokens around the one it was given."""
    n = 0
    with field.dealer() as instance, field.dealer() as accomplice:
        instance.send(message(hello("instance"), ready("forger", "forger", credit=1000)))
        accomplice.send(message(hello("client")))
        records_for(instance, mesh.READY)
        while field.is_open:
            with suppress(zmq.Again):
                accomplice.send(message(request(n + 1, "forger", remaining_ms=500)))
            for asked in records_for(instance, mesh.REQUEST):
                forged = []
                for away in [*range(-20, 0), *range(1, 20)]:
                    kind = field.random.choice([mesh.FINAL, mesh.FINAL, mesh.PARTIAL, mesh.RETURN])
                    payload = mesh.pack_status(200) + b'{"body":"forged"}'
                    forged.append(record(kind, 0, asked.id + away, 0, payload))
                own = record(mesh.FINAL, 0, asked.id, 0, mesh.pack_status(200) + b"{}")
                with suppress(zmq.Again):
                    instance.send(
                        message(*forged, record(mesh.FINAL, 0, field.number(), 0, b"\xc8\0{}"), own)
                    )
                    n += len(forged) + 1
            drain(accomplice)
    return n


def meddling(field: Field) -> int:
    """CANCEL, WINDOW, CREDIT and GOODBYE for calls and instances that are other people's; wild deadlines."""
    n = 0
    with field.dealer() as dealer:
        dealer.send(message(hello("client")))
        while field.is_open:
            records = [
                record(mesh.CANCEL, 0, field.number()),
                record(mesh.WINDOW, 0, field.number(), 0, b"\xff\xff\xff\xff"),
                record(mesh.CREDIT, 0, 0, 0, b"\x00\x00\x00\x80"),
                record(mesh.FINAL, 0, field.number(), 0, b"\xc8\0{}"),
                request(n, GOOD_SERVICE, b"[" * 5000, remaining_ms=field.random.choice([0, 1, 0xFFFFFFFF])),
                request(n, field.random.choice(["", "mmi.x", "mmi.status", "/a//..", "nobody"]), b"\xff"),
                request(n, GOOD_SERVICE, b"{}", flags=mesh.ONE_WAY),
                request(n, GOOD_SERVICE, b'{"path":"/parts","arguments":{"n":9}}', flags=mesh.STREAM),
            ]
            field.random.shuffle(records)
            with suppress(zmq.Again):
                dealer.send(message(*records[:5]))
                n += 1
            drain(dealer)
            if n % 200 == 0:
                dealer.send(message(record(mesh.GOODBYE), hello("client")))
    return n


def mdp_garbage(field: Field) -> int:
    """All the dialects' commands, mixed up; replies for addresses that are nobody's."""
    n = 0
    with field.dealer() as dealer:
        while field.is_open:
            lead = field.random.choice([[], [b""]])
            header = field.random.choice([b"MDPC01", b"MDPC02", b"MDPW01", b"MDPW02"])
            code = bytes([field.random.randrange(8)])
            name = field.random.choice([b"good", b"mmi.service", b"", b"\xff\xfe", b"mdp-%d" % (n % 50)])
            address = field.random.choice([field.bytes(10), field.random.randbytes(8)])
            rest = field.random.choice(
                [[], [name], [name, b"x"], [address, b"", b"x"], [address, b"x", b"x"]]
            )
            with suppress(zmq.Again):
                dealer.send_multipart([*lead, header, code, *rest])
                n += 1
            drain(dealer)
    return n


# --- below ZeroMQ, and around it ------------------------------------------------------------------


def no_zeromq(field: Field) -> int:
    """TCP connections that send noise, half a greeting, or nothing, and stay."""
    host, _, port = field.endpoint.removeprefix("tcp://").rpartition(":")
    n = 0
    held: list[socket.socket] = []
    while field.is_open:
        with suppress(OSError):
            held.append(socket.create_connection((host, int(port)), timeout=1))
            greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL"
            held[-1].sendall(
                field.random.choice([b"", field.bytes(200), greeting, b"GET / HTTP/1.1\r\n\r\n"])
            )
            n += 1
        if len(held) >= 100:
            held.pop(field.random.randrange(100)).close()
        time.sleep(0.005)
    for each in held:
        each.close()
    return n


def storms(field: Field) -> int:
    """Connect, greet, ask, and be gone: again and again."""
    n = 0
    while field.is_open:
        with field.dealer() as dealer:
            role = field.random.choice(["client", "instance"])
            with suppress(zmq.Again):
                dealer.send(message(hello(role), ready(f"storm-{n}", "storm", credit=4), echo(n)))
            if field.random.random() < 0.5:
                with suppress(zmq.Again):
                    dealer.recv_multipart()
            n += 1
        time.sleep(0.005)
    return n


# --- floods ---------------------------------------------------------------------------------------


def never_reads(field: Field) -> int:
    """A client that asks for large replies and reads none of them."""
    n = 0
    with field.dealer(receive_hwm=1) as dealer:
        dealer.setsockopt(zmq.RCVBUF, 4096)
        dealer.send(message(hello("client")))
        while field.is_open:
            with suppress(zmq.Again):
                dealer.send(message(echo(n + 1, "z" * 30_000)))
                n += 1
            time.sleep(0.002)
    return n


def register_flood(field: Field) -> int:
    """An instance that is, as fast as it can, one of ever another service."""
    n = 0
    with field.dealer() as dealer:
        while field.is_time_left:
            n += 1
            with suppress(zmq.Again):
                dealer.send(message(hello("instance"), ready(f"r-{n}", f"r-{n}", f"/r/{n}")))
            drain(dealer)
    return n


def name_flood(field: Field) -> int:
    """A client that asks, as fast as it can, for services and paths that it makes up."""
    n = 0
    with field.dealer() as dealer:
        dealer.send(message(hello("client")))
        while field.is_time_left:
            with suppress(zmq.Again):
                dealer.send(
                    message(*[request(n + i, f"{'/' * (i % 2)}made-up/{n + i}") for i in range(1, 33)])
                )
                n += 32
            drain(dealer)
    return n


def flood(field: Field) -> int:
    """A client that asks as fast as it can, 32 requests a message, and never reads."""
    n = 0
    with field.dealer(receive_hwm=1) as dealer:
        dealer.send(message(hello("client")))
        while field.is_time_left:
            with suppress(zmq.Again):
                dealer.send(message(*[echo(n + i) for i in range(1, 33)]))
                n += 32
    return n


ATTACKS: dict[str, Callable[[Field], int]] = {
    attack.__name__: attack
    for attack in (
        random_frames,
        truncated_messages,
        wrong_magic_and_version,
        lying_lengths,
        unknown_kinds,
        frame_counts,
        hello_spam,
        ready_flood,
        forged_replies,
        meddling,
        mdp_garbage,
        no_zeromq,
        storms,
        never_reads,
        register_flood,
        name_flood,
        flood,
    )
}


def run(endpoint: str, seconds: float, seed: int, names: list[str]) -> dict[str, int]:
    """Run the attacks of these names side by side; return how often each struck, by name."""
    context: zmq.Context[Any] = zmq.Context()
    context.setsockopt(zmq.MAX_SOCKETS, 10_000)
    until = time.monotonic() + seconds
    struck: dict[str, int] = {}

    def attack(name: str) -> None:
        struck[name] = ATTACKS[name](Field(context, endpoint, until, f"{seed} {name}"))

    threads = [threading.Thread(target=attack, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    context.destroy(0)
    return struck
