"""Sockets as ports: frames are never shifted, nobody speaks for another, and every failure has its name."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
import zmq

from butler_mesh.clock import monotonic
from butler_mesh.connections import zeromq
from butler_mesh.connections.node import RouterNode
from butler_mesh.connections.pump import Pump, Sent
from butler_mesh.connections.sockets import HIGH_WATER_MARK, MAX_FRAMES, SocketPort, context, dial, listen
from butler_mesh.errors import AddressError, AddressInUse
from butler_mesh.protocol import mesh
from butler_mesh.protocol.member import Phase
from tests.connections.contract import Call, Gate, echo
from tests.connections.engines import SocketEngine, machine_of
from tests.connections.fakes import FakeMachine, Log
from tests.waiting import wait_for

ANY = "tcp://127.0.0.1:*"
KIB = 1024


def message(*records: tuple[int, int, bytes]) -> bytes:
    """Return one message of (kind, id, payload) records."""
    parts = [mesh.pack_header(int(monotonic() * 1000))]
    for kind, id_, payload in records:
        parts += [mesh.pack_record(len(payload), kind, 0, id_, 1000), payload]
    return b"".join(parts)


HELLO = message((mesh.HELLO, 0, b'{"role":"client","versions":[1]}'))


class Raw:
    """A plain ZeroMQ socket, which says what a test tells it to."""

    def __init__(self, kind: int, routing_id: bytes = b"", **options: int) -> None:
        self.socket: zmq.Socket[Any] = context().socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        if routing_id:
            self.socket.setsockopt(zmq.ROUTING_ID, routing_id)

    def connect(self, endpoint: str) -> Raw:
        self.socket.connect(endpoint)
        return self

    def bind(self, endpoint: str) -> str:
        self.socket.bind(endpoint)
        return bytes(self.socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames, zmq.NOBLOCK)

    def take(self) -> list[bytes]:
        """Return the next message's frames, or nothing."""
        try:
            return self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return []

    def kinds(self) -> list[int]:
        """Return the kinds of the records in the next message, which is waited for."""
        frames = wait_for(self.take)
        return [record.kind for record in mesh.parse(frames[0], frames[1:])[1]]

    def has_got(self, kind: int) -> bool:
        """Tell whether a record of a kind is in the next messages; for ``wait_for``."""
        while frames := self.take():
            if kind in [record.kind for record in mesh.parse(frames[0], frames[1:])[1]]:
                return True
        return False

    def greet(self) -> Raw:
        self.send(HELLO)
        assert self.kinds() == [mesh.WELCOME]
        return self

    def close(self) -> None:
        self.socket.close(0)


@pytest.fixture
def raws() -> Iterator[list[Raw]]:
    """Raw sockets to close at the end."""
    raws: list[Raw] = []
    yield raws
    for raw in raws:
        raw.close()


@pytest.fixture
def engine() -> Iterator[SocketEngine]:
    engine = SocketEngine(ANY, max_body_bytes=200 * KIB)
    engine.start()
    yield engine
    engine.close()


@pytest.fixture
def dealer(engine: SocketEngine, raws: list[Raw]) -> Raw:
    raws.append(Raw(zmq.DEALER).connect(engine.endpoint))
    return raws[-1]


@pytest.fixture
def ports() -> Iterator[list[SocketPort]]:
    """Ports to close at the end; those that a pump has are closed with it."""
    ports: list[SocketPort] = []
    yield ports
    for port in ports:
        port.close(0)


@pytest.fixture
def pumps() -> Iterator[list[Pump]]:
    """Pumps to close at the end."""
    pumps: list[Pump] = []
    yield pumps
    for pump in pumps:
        pump.close()


@pytest.fixture
def free(tmp_path: Path) -> str:
    """An ipc endpoint where nobody is."""
    return f"ipc://{tmp_path}/free.sock"


# --- frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, MAX_FRAMES - 1, MAX_FRAMES, MAX_FRAMES + 1, 2000])
@pytest.mark.parametrize("first", [b"x", b"", HELLO], ids=["x first", "empty first", "mesh first"])
def test_surplus_frames_to_a_router_do_not_shift_what_follows(
    engine: SocketEngine, dealer: Raw, n: int, first: bytes
) -> None:
    dealer.send(first, *[b"surplus"] * (n - 1))
    dealer.send(HELLO)
    assert dealer.kinds() == [mesh.WELCOME]
    engine.instance(echo)
    dealer.send(message((mesh.REQUEST, 7, mesh.pack_target(b"svc") + b"good")))
    assert wait_for(lambda: dealer.has_got(mesh.FINAL))
    counters = engine.start().machine.counters
    assert sum(count for name, count in counters.items() if name.startswith("dropped.")) in (1, 2)


@pytest.mark.parametrize("n", [2, 3, 1000, 2000])
def test_surplus_frames_to_a_member_do_not_shift_what_follows(
    n: int, raws: list[Raw], pumps: list[Pump]
) -> None:
    router = Raw(zmq.ROUTER)
    raws.append(router)
    endpoint = router.bind(ANY)
    machine = FakeMachine(Log())
    pumps.append(Pump(machine))
    pumps[0].attach(dial(endpoint))
    wait_for(lambda: "made None" in machine.log)
    machine.outbox(b"", None).add(mesh.HELLO)
    pumps[0].turn()
    routing_id, _ = wait_for(router.take)
    router.send(routing_id, b"first", *[b"surplus"] * (n - 1))
    router.send(routing_id, b"second")
    wait_for(lambda: machine.received[-1:] == [b"second"])
    assert set(machine.received) <= {b"first", b"", b"second"}


def test_a_message_of_no_bytes_is_counted_and_harms_nobody(engine: SocketEngine, dealer: Raw) -> None:
    dealer.send(b"")
    dealer.greet()


@pytest.mark.parametrize(
    "lead", [(), (b"",), (b"x",), (HELLO,)], ids=["bare", "empty first", "x first", "mesh first"]
)
def test_nobody_speaks_for_another_by_naming_its_routing_id(
    engine: SocketEngine, raws: list[Raw], lead: tuple[bytes, ...]
) -> None:
    gate = Gate(b"for the victim")
    engine.instance(gate)
    victim, attacker = (Raw(zmq.DEALER, id_) for id_ in (b"VICTIM", b"EVIL"))
    raws += [victim, attacker]
    for raw in raws:
        raw.connect(engine.endpoint).greet()
    victim.send(message((mesh.REQUEST, 1, mesh.pack_target(b"svc"))))
    wait_for(lambda: gate.now)
    for forged in (message((mesh.CANCEL, 1, b"")), message((mesh.GOODBYE, 0, mesh.pack_reason(200, "")))):
        attacker.send(*lead, b"VICTIM", forged)
        attacker.send(*lead, b"VICTIM", b"", forged)
    attacker.greet()  # everything before it was read
    assert gate.now == 1
    gate.open()
    wait_for(lambda: victim.has_got(mesh.FINAL))


def test_a_peer_with_the_routing_id_of_another_does_not_get_its_messages(
    engine: SocketEngine, raws: list[Raw]
) -> None:
    gate = Gate()
    engine.instance(gate)
    victim, twin = (Raw(zmq.DEALER, b"SAME") for _ in range(2))
    raws += [victim, twin]
    victim.connect(engine.endpoint).greet()
    victim.send(message((mesh.REQUEST, 1, mesh.pack_target(b"svc"))))
    wait_for(lambda: gate.now)
    twin.connect(engine.endpoint)
    twin.send(HELLO)
    gate.open()
    wait_for(lambda: victim.has_got(mesh.FINAL))
    assert twin.take() == []


# --- addresses ----------------------------------------------------------------------------------


def test_the_chosen_port_can_be_read(ports: list[SocketPort]) -> None:
    ports.append(listen(ANY, "door"))
    host, port = ports[0].endpoint.removeprefix("tcp://").split(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


def test_ipv6_goes_in_brackets(ports: list[SocketPort], raws: list[Raw]) -> None:
    try:
        ports.append(listen("tcp://[::1]:*", "door"))
    except AddressError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert ports[0].endpoint.startswith("tcp://[::1]:")
    ports.append(dial(ports[0].endpoint))


@pytest.mark.parametrize("kind", ["tcp", "ipc", "abstract"])
def test_an_endpoint_in_use_by_this_process_is_said_to_be(
    kind: str, free: str, ports: list[SocketPort]
) -> None:
    endpoint = {"tcp": ANY, "ipc": free, "abstract": f"ipc://@{free[6:]}"}[kind]
    ports.append(listen(endpoint, "door"))
    with pytest.raises(AddressInUse) as caught:
        listen(ports[0].endpoint, "other")
    assert ports[0].endpoint in str(caught.value)
    assert isinstance(caught.value, OSError)


HOLD = """
import sys
from butler_mesh.connections.sockets import listen
port = listen(sys.argv[1], None)
print(port.endpoint, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are killed at the end."""
    holders: list[subprocess.Popen[str]] = []
    yield holders
    for one in holders:
        one.kill()
        one.communicate()


def hold(endpoint: str, holders: list[subprocess.Popen[str]]) -> str:
    """Start a process that listens at an endpoint; return it as bound."""
    command = [sys.executable, "-c", HOLD, endpoint]
    holders.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    stdout = holders[-1].stdout
    assert stdout is not None
    return stdout.readline().strip()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_an_endpoint_in_use_by_another_process_is_said_to_be(
    kind: str, free: str, holder: list[subprocess.Popen[str]]
) -> None:
    endpoint = hold(ANY if kind == "tcp" else free, holder)
    with pytest.raises(AddressInUse):
        listen(endpoint, "door")


@pytest.mark.slow
def test_the_ipc_file_of_an_owner_that_was_killed_is_taken_over(
    free: str, holder: list[subprocess.Popen[str]]
) -> None:
    hold(free, holder)
    holder[0].send_signal(signal.SIGKILL)
    holder[0].wait()
    assert stat.S_ISSOCK(Path(free[6:]).stat().st_mode)
    engine = SocketEngine(free)
    engine.instance(echo)
    assert Call(engine.client()).status == 200
    engine.close()


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://127.0.0.1",
        "tcp://no.such.host.invalid:1",
        "ipc:///no/such/dir/x",
        "nonsense://x",
    ],
)
def test_an_endpoint_that_cannot_be_bound_is_an_address_error(endpoint: str) -> None:
    with pytest.raises(AddressError):
        listen(endpoint, "door")


def test_an_ipc_path_that_is_a_file_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    file, directory = tmp_path / "letter.txt", tmp_path / "letters"
    file.write_text("dear")
    directory.mkdir()
    for path in (file, directory):
        with pytest.raises(AddressError, match="not a socket"):
            listen(f"ipc://{path}", "door")
    assert file.read_text() == "dear"
    assert directory.is_dir()


def test_a_bind_that_failed_leaves_the_path_free(free: str, ports: list[SocketPort]) -> None:
    long = f"ipc://{free[6:]}{'x' * 100}"
    for _ in range(2):
        with pytest.raises(AddressError) as caught:
            listen(long, "door")
        assert not isinstance(caught.value, AddressInUse)
    ports.append(listen(free, "door"))


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_an_endpoint_is_free_as_soon_as_its_port_is_closed(kind: str, free: str) -> None:
    engine = SocketEngine(ANY if kind == "tcp" else free)
    for _ in range(20):
        engine.start()
        client = zeromq.client([engine.endpoint])
        assert Call(client, to="mmi.status").status == 200
        client.close(1.0)
        engine.stop()
    engine.close()


# --- sizes --------------------------------------------------------------------------------------


def test_a_frame_over_the_maximum_cuts_its_sender_and_nobody_else(engine: SocketEngine, dealer: Raw) -> None:
    gate = Gate()
    engine.instance(gate)
    client = engine.client()
    call = Call(client)
    wait_for(lambda: gate.now)
    dealer.greet()
    doors = engine.start().machine.doors
    before = len(doors[0].peers)
    dealer.send(bytes(400 * KIB))
    wait_for(lambda: len(doors[0].peers) == before - 1)
    assert machine_of(client).phase is Phase.PRESENT
    gate.open()
    assert call.status == 200
    assert Call(client).status == 200


def test_a_body_just_over_the_maximum_is_a_413_and_cuts_nobody(engine: SocketEngine, dealer: Raw) -> None:
    dealer.greet()
    for size in (200 * KIB + 1, 300 * KIB):
        request = message((mesh.REQUEST, 7, mesh.pack_target(b"svc") + bytes(size)))
        dealer.send(request)
        frames = wait_for(dealer.take)
        (record,) = (r for r in mesh.parse(frames[0])[1] if r.kind == mesh.FINAL)
        assert mesh.split_status(record.payload) == 413


# --- sending ------------------------------------------------------------------------------------


def test_a_send_to_nobody_says_gone(ports: list[SocketPort]) -> None:
    ports.append(listen(ANY, "door"))
    assert ports[0].send(b"nobody", [b"x"]) is Sent.GONE
    assert ports[0].send(b"nobody", [b"x", b"y" * 100 * KIB]) is Sent.GONE


def test_a_send_to_one_who_left_says_gone(ports: list[SocketPort], raws: list[Raw]) -> None:
    ports.append(listen(ANY, "door"))
    raw = Raw(zmq.DEALER).connect(ports[0].endpoint)
    raws.append(raw)
    raw.send(b"here")
    routing_id, _, _ = wait_for(ports[0].receive)
    assert ports[0].send(routing_id, [b"x"]) is Sent.YES
    raw.close()
    wait_for(lambda: ports[0].send(routing_id, [b"x"]) is Sent.GONE)


def test_a_pipe_that_is_full_takes_a_message_whole_or_not_at_all(
    ports: list[SocketPort], raws: list[Raw]
) -> None:
    ports.append(listen(ANY, "door"))
    raw = Raw(zmq.DEALER, RCVHWM=1, RCVBUF=4096).connect(ports[0].endpoint)
    raws.append(raw)
    raw.send(b"here")
    routing_id, _, _ = wait_for(ports[0].receive)
    sent = 0
    while ports[0].send(routing_id, [b"%d" % sent, bytes(100 * KIB), b"last"]) is Sent.YES:
        sent += 1
        assert sent < 10_000
    assert sent >= HIGH_WATER_MARK
    got: list[list[bytes]] = []
    while len(got) < sent:
        got.append(wait_for(raw.take))
    assert [(frames[0], len(frames[1]), frames[2:]) for frames in got] == [
        (b"%d" % n, 100 * KIB, [b"last"]) for n in range(sent)
    ]
    # Those that were refused left nothing of themselves behind.
    wait_for(lambda: ports[0].send(routing_id, [b"after"]) is Sent.YES)
    assert wait_for(raw.take) == [b"after"]


def test_a_dealer_without_a_router_takes_nothing(free: str, ports: list[SocketPort], raws: list[Raw]) -> None:
    ports.append(dial(free))
    assert ports[0].send(b"", [b"stale"]) is Sent.FULL
    router = Raw(zmq.ROUTER)
    raws.append(router)
    router.bind(free)
    wait_for(lambda: ports[0].send(b"", [b"fresh"]) is Sent.YES)
    assert wait_for(router.take)[1:] == [b"fresh"]


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_nothing_stale_is_delivered_after_a_router_was_restarted(
    kind: str, free: str, ports: list[SocketPort], raws: list[Raw]
) -> None:
    raws.append(Raw(zmq.ROUTER))
    endpoint = raws[0].bind(ANY if kind == "tcp" else free)
    ports.append(dial(endpoint))
    wait_for(lambda: ports[0].send(b"", [b"before"]) is Sent.YES)
    assert wait_for(raws[0].take)[1:] == [b"before"]
    raws[0].close()
    wait_for(lambda: ports[0].send(b"", [b"into the void"]) is Sent.FULL)
    raws.append(Raw(zmq.ROUTER))

    def is_bound() -> bool:
        try:
            raws[1].bind(endpoint)
        except zmq.ZMQError:
            return False
        return True

    wait_for(is_bound)
    wait_for(lambda: ports[0].send(b"", [b"after"]) is Sent.YES)
    assert wait_for(raws[1].take)[1:] == [b"after"]
    assert raws[1].take() == []


# --- who is there -------------------------------------------------------------------------------


def test_both_sides_are_told_of_a_connection_and_of_its_end(pumps: list[Pump]) -> None:
    machines = [FakeMachine(Log()) for _ in range(2)]
    pumps += [Pump(machine) for machine in machines]
    port = listen(ANY, "door")
    pumps[0].attach(port)
    pumps[1].attach(dial(port.endpoint))
    wait_for(lambda: "made door" in machines[0].log and "made None" in machines[1].log)
    pumps[1].close()
    wait_for(lambda: "lost door" in machines[0].log)


def test_a_dealer_is_told_that_its_router_went_and_that_another_came(free: str, pumps: list[Pump]) -> None:
    router = RouterNode()
    router.bind(free)
    machine = FakeMachine(Log())
    pumps.append(Pump(machine))
    pumps[0].attach(dial(free))
    wait_for(lambda: machine.log.count("made None") == 1)
    router.close()
    wait_for(lambda: machine.log.count("lost None") == 1)
    router = RouterNode()
    router.bind(free)
    wait_for(lambda: machine.log.count("made None") == 2)
    router.close()


def test_a_connection_made_before_anybody_watched_is_told_of(
    ports: list[SocketPort], pumps: list[Pump]
) -> None:
    ports.append(listen(ANY, "door"))
    port = dial(ports[0].endpoint)
    wait_for(lambda: port._monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN)
    machine = FakeMachine(Log())
    pumps.append(Pump(machine))
    pumps[0].attach(port)
    wait_for(lambda: "made None" in machine.log)


def test_what_arrived_before_anybody_watched_is_read(
    ports: list[SocketPort], pumps: list[Pump], raws: list[Raw]
) -> None:
    port = listen(ANY, "door")
    raws.append(Raw(zmq.DEALER).connect(port.endpoint))
    raws[0].send(b"early")
    wait_for(lambda: port._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN)
    machine = FakeMachine(Log())
    pumps.append(Pump(machine))
    pumps[0].attach(port)
    wait_for(lambda: machine.received == [b"early"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_of_three_hundred_quick_connections_everyone_is_welcomed(kind: str, free: str) -> None:
    engine = SocketEngine(ANY if kind == "tcp" else free)
    engine.start()
    for _ in range(10):
        clients = [zeromq.client([engine.endpoint]) for _ in range(30)]
        machines = [machine_of(client) for client in clients]
        wait_for(lambda: all(machine.phase is Phase.PRESENT for machine in machines))  # noqa: B023
        closing = [gevent.spawn(client.close, 5.0) for client in clients]
        gevent.joinall(closing, raise_error=True)
    doors = engine.start().machine.doors
    wait_for(lambda: not doors[0].peers)
    engine.close()
