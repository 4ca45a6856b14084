"""Strangers: what a peer without manners may say, for hypothesis to choose from."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from butler_mesh import codec
from butler_mesh.protocol import mesh
from butler_mesh.protocol.mdp import MAJORTOMO, MDP_01, MDP_02
from tests.protocol.net import Net, Raw, ready_object

# Bytes that JSON reads are built by hand: our own encoder would refuse the interesting ones.
texts = st.sampled_from(
    ["", "svc", "other", "/a", "mmi.status", "mmi.service", "svc-1", "0" * 32, "é", "x" * 300]
)
numbers = st.sampled_from(["0", "1", "-1", "7", "1.5", "1e999", "65536", "1" + "0" * 400, "true", "null"])
odd = st.sampled_from(
    ['"\\ud800"', '"\\u0000"', "[]", "{}", '["/a","b",1]', '["/a"]', "[[[[]]]]", '{"service":"svc"}']
)
values = texts.map(lambda text: codec.dumps(text).decode()) | numbers | odd
names = st.sampled_from(
    ["role", "wid", "epoch", "service", "paths", "credit", "host", "pid", "signature", "lag_ms"]
) | st.sampled_from(["rss_kib", "router", "nonce", "max_bytes", "body", "arguments", "version"])
objects = st.dictionaries(names, values, max_size=6).map(
    lambda fields: ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}").encode()
)
hellos = st.sampled_from(["client", "instance", "control"]).map(lambda role: codec.dumps({"role": role}))
readys = st.fixed_dictionaries(
    {},
    optional={
        "service": st.sampled_from(["svc", "other", "", "/x", "mmi.x"]),
        "paths": st.lists(st.sampled_from(["/", "/a", "/a/b", "/svc"]), max_size=2),
        "wid": st.sampled_from(["a", "b"]),
        "credit": st.integers(0, 3),
    },
).map(lambda fields: codec.dumps(ready_object(**fields)))
targets = st.sampled_from(
    [b"svc", b"other", b"/a", b"/a/b/c", b"//", b"", b"mmi.status", b"mmi.service", b"\xff"]
)
requests = st.builds(
    lambda target, window, rest: mesh.pack_target(target, window) + rest,
    targets,
    st.none() | st.sampled_from([0, 1, mesh.UNBOUNDED_WINDOW]),
    objects | st.binary(max_size=20),
)
replies = st.builds(
    lambda code, rest: mesh.pack_status(code) + rest, st.sampled_from([0, 200, 401, 503, 65_535]), objects
)
quantities = st.one_of(
    st.integers(-(1 << 31), (1 << 31) - 1).map(mesh.pack_credit),
    st.integers(0, (1 << 32) - 1).map(mesh.pack_window),
)
payloads = st.one_of(st.binary(max_size=40), objects, hellos, readys, requests, replies, quantities)
ids = st.sampled_from([0, 1, 2, 3, 1 << 62, (1 << 62) + 1, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1)
flags = st.sampled_from([0, mesh.ONE_WAY, mesh.IDEMPOTENT, mesh.STREAM, mesh.RAW]) | st.integers(0, 255)
remaining = st.sampled_from([0, 1, 500, 60_000, mesh.MAX_REMAINING_MS])
envelopes = st.none() | st.binary(max_size=20)


def record(kind: st.SearchStrategy[int], payload: st.SearchStrategy[bytes]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just("record"), kind, flags, ids, remaining, payload, envelopes)


# Records of any kind with any payload, and those whose payload fits: the latter get further in.
records = st.one_of(
    record(st.integers(0, 15) | st.just(255), payloads),
    record(st.just(mesh.HELLO), hellos | objects),
    record(st.just(mesh.WELCOME), objects),
    record(st.just(mesh.READY), readys | objects),
    record(st.just(mesh.REQUEST), requests),
    record(st.sampled_from([mesh.PARTIAL, mesh.FINAL]), replies),
    record(st.sampled_from([mesh.CREDIT, mesh.WINDOW]), quantities),
    record(st.just(mesh.HEARTBEAT), objects),
    record(st.just(mesh.GOODBYE), replies),
)
dialects = (MDP_01, MDP_02, MAJORTOMO)
headers = sorted(
    {header for dialect in dialects for header in (dialect.client_header, dialect.worker_header)}
)
foreign = st.tuples(
    st.just("frames"),
    st.builds(
        lambda lead, header, rest: [*lead, header, *rest],
        st.sampled_from([[], [b""]]),
        st.sampled_from(headers),
        st.lists(
            st.sampled_from([b"", *(bytes([n]) for n in range(8)), b"svc", b"mmi.service", b"/a"]), max_size=5
        ),
    ),
)
raw_frames = st.tuples(st.just("frames"), st.lists(st.binary(max_size=30), min_size=1, max_size=4))
steps = st.tuples(
    st.integers(0, 2),  # who of the three strangers
    st.one_of(
        records,
        records,
        foreign,
        raw_frames,
        st.tuples(st.just("answer"), st.sampled_from([mesh.PARTIAL, mesh.FINAL, mesh.RETURN]), replies),
        st.tuples(st.just("reconnect")),
        st.tuples(st.just("advance"), st.sampled_from([0.02, 0.6, 4.0, 16.0])),
    ),
)
greetings = st.sampled_from([None, "client", "instance", "registered"])
conversations: st.SearchStrategy[Any] = st.tuples(
    st.lists(greetings, min_size=3, max_size=3), st.lists(steps, max_size=25)
)


def greet(net: Net, greeting: str | None, number: int) -> Raw:
    if greeting == "registered":
        return net.raw_instance(wid=f"stranger-{number}", service="other", credit=2)
    return net.raw(hello=None if greeting is None else {"role": greeting})


def play(net: Net, conversation: Any) -> None:
    """Let three strangers say their lines to a router."""
    greetings, lines = conversation
    strangers = [greet(net, greeting, number) for number, greeting in enumerate(greetings)]
    for who, (what, *details) in lines:
        stranger = strangers[who]
        if what == "record":
            net.send(stranger, *details)
        elif what == "frames":
            assert stranger.link is not None
            stranger.link.to_router.append([*details[0]])
            net.settle()
        elif what == "answer":
            for request in stranger.got(mesh.REQUEST):
                net.send(stranger, details[0], 0, request.id, 0, details[1])
        elif what == "reconnect":
            net.drop(stranger)
            net.connect(stranger)
        else:
            net.advance(details[0])
