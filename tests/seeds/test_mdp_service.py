"""The service in C, compiled and run: our client and RFC 7's at our router, and a router that misbehaves."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import zmq

from butler_mesh import Client
from tests.processes.parties import Parties, Party, free_port, status
from tests.programs import ROOT, do_without
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

SOURCE = ROOT / "demos" / "seeds" / "mdp_service.c"
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2"]
CHECKED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

READY, HEARTBEAT, DISCONNECT = ([b"", b"MDPW01", bytes([code])] for code in (1, 4, 5))
SILENCE_S = 5.0
"""Of a router, after which the service looks for another."""


def compiled(directory: Path, *flags: str) -> Path:
    """Compile the service; return the program."""
    compiler = shutil.which("cc")
    if compiler is None:
        do_without("a C compiler (cc)")
    for what, probe in (
        (f"a C compiler that knows {' '.join(flags)}", "int main(void) { return 0; }\n"),
        ("libzmq's header (zmq.h)", "#include <zmq.h>\nint main(void) { return 0; }\n"),
    ):
        command = [compiler, *flags, "-x", "c", "-o", str(directory / "probe"), "-"]
        if subprocess.run(command, input=probe.encode(), capture_output=True, timeout=60).returncode:
            do_without(what)
    program = directory / "mdp_service"
    run = subprocess.run(
        [compiler, *FLAGS, *flags, "-o", str(program), str(SOURCE), "-lzmq"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service as its users compile it."""
    return compiled(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service, ending with another status than 0 where it errs with memory, or leaks any."""
    return compiled(tmp_path_factory.mktemp("checked"), *CHECKED)


Start = Callable[..., Party]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the service; what it prints is shown when the test fails."""
    started: list[Party] = []

    def start(program: Path, *arguments: str) -> Party:
        name = f"mdp_service-{len(started)}"
        started.append(Party(name, [str(program), *arguments], tmp_path / f"{name}.log"))
        return started[-1]

    yield start
    for party in started:
        if party.is_running:
            party.kill()
        sys.stdout.write(f"--- {party.name} (exit {party.process.returncode})\n{party.output}")


@pytest.fixture
def parties(tmp_path: Path) -> Iterator[Parties]:
    """Our own processes, ended with the test."""
    all_of_them = Parties(tmp_path)
    yield all_of_them
    all_of_them.stop()


def is_known(client: Client, name: str = "shout") -> bool:
    """Ask the router whether the service has instances."""
    return client.request("mmi.service", arguments={"service": name}).status_code == 200


# --- at our router --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A router with the service ``shout``; its endpoint."""
    directory = tmp_path_factory.mktemp("mesh")
    parties = Parties(directory)
    party = None
    try:
        _, endpoint = parties.router()
        party = Party("mdp_service", [str(program), endpoint, "shout"], directory / "mdp_service.log")
        client = parties.client(endpoint)
        wait_for(lambda: is_known(client), 20)
        yield endpoint
    finally:
        if party is not None:
            party.kill()
            sys.stdout.write(f"--- mdp_service\n{party.output}")
        parties.stop()


def test_our_client_gets_the_answer(mesh: str) -> None:
    """A list of texts comes back in upper case, frame by frame; one text as a list of one."""
    with Client(mesh) as client:
        response = client.request("shout", "/", body=[b"hello, world", b"", b"Line\r\n\tTwo"])
        assert (response.status_code, response.body) == (200, [b"HELLO, WORLD", b"", b"LINE\r\n\tTWO"])
        assert client.request("shout", "/", body=b"~az{`AZ").body == [b"~AZ{`AZ"]


def test_a_request_in_JSON_is_one_frame_of_text_to_it(mesh: str) -> None:
    """Without a body of bytes the worker sees the envelope, and shouts that."""
    with Client(mesh) as client:
        response = client.request("shout", "/any/path", {"a": [1, None]})
        assert response.body == [b'{"PATH":"/ANY/PATH","ARGUMENTS":{"A":[1,NULL]}}']


@pytest.mark.parametrize(
    "body",
    [
        pytest.param([bytes(range(256))], id="every-byte"),
        pytest.param([b"\x00abc", b"abc\xff", b"abc\x7f", "größe".encode()], id="text-with-something-else"),
        pytest.param([b"", b"", b""], id="empty-frames"),
        pytest.param([b"", b"MDPW01"[::-1], b"\x05", b"\xbe\x01\x00"], id="what-looks-like-the-wire"),
        pytest.param([bytes(range(256)) * 4_000, b"\x01end"], id="a-million-bytes"),
        pytest.param([b"\x80%d" % n for n in range(1_000)], id="a-thousand-frames"),
    ],
)
def test_binary_frames_come_back_untouched(mesh: str, body: list[bytes]) -> None:
    """A frame that holds anything but ASCII text is the same afterwards, whatever its size."""
    with Client(mesh) as client:
        response = client.request("shout", "/", body=body)
        assert (response.status_code, response.body) == (200, body)


def test_many_callers_get_each_their_own_answer(mesh: str) -> None:
    """It is given one request at a time; 300 at once wait for their turn."""
    with Client(mesh) as client:
        calls = [client.request_lazy("shout", "/", body=[b"call %d" % n]) for n in range(300)]
        assert [call.get(20).body for call in calls] == [[b"CALL %d" % n] for n in range(300)]


def test_a_REQ_client_of_RFC_7_gets_the_answer(mesh: str) -> None:
    """Majordomo at both ends, our router in between."""
    context = zmq.Context()
    with context.socket(zmq.REQ) as req:
        req.setsockopt(zmq.RCVTIMEO, 5000)
        req.setsockopt(zmq.LINGER, 0)
        req.connect(mesh)
        for body in ([b"hello"], [b"two", b"\xfe frames", b""]):
            req.send_multipart([b"MDPC01", b"shout", *body])
            answer = [frame.upper() if frame.isascii() else frame for frame in body]
            assert req.recv_multipart() == [b"MDPC01", b"shout", *answer]
    context.term()


def test_it_finds_a_restarted_router_by_itself(parties: Parties, program: Path, start: Start) -> None:
    """kill -9 of the router, three times: each successor has the service again within a few seconds, and a
    request made at once waits for it."""
    router, endpoint = parties.router()
    service = start(program, endpoint, "shout")
    client = parties.client(endpoint)
    wait_for(lambda: is_known(client), 20)
    for n in range(3):
        router.kill()
        router, _ = parties.router(endpoint)
        response = client.request("shout", "/", body=[b"round %d" % n], timeout=10)
        assert (response.status_code, response.body) == (200, [b"ROUND %d" % n])
    assert service.is_running


def test_it_finds_a_router_that_was_away_for_longer_than_its_patience(
    parties: Parties, program: Path, start: Start
) -> None:
    """No router for six seconds: the service gives the conversation up, and is there when one comes."""
    router, endpoint = parties.router()
    service = start(program, endpoint, "shout")
    service.wait_for_line("mdp_service: READY")
    router.kill()
    service.wait_for_line("mdp_service: nothing heard", SILENCE_S + 5)
    parties.router(endpoint)
    client = parties.client(endpoint)
    assert client.request("shout", "/", body=[b"back"], timeout=10).body == [b"BACK"]


def test_it_may_be_there_before_the_router(parties: Parties, program: Path, start: Start) -> None:
    """The order of starting does not matter, and nothing stale is sent once there is a router."""
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    start(program, endpoint, "shout")
    parties.router(endpoint)
    client = parties.client(endpoint)
    assert client.request("shout", "/", body=[b"early"], timeout=10).body == [b"EARLY"]
    assert status(client)["counters"].keys().isdisjoint({"dropped.unexpected", "dropped.malformed"})


def test_after_SIGTERM_it_is_gone_at_once(parties: Parties, program: Path, start: Start) -> None:
    """SIGTERM: exit status 0, and mmi.service says 404 long before anybody's silence could be noticed."""
    _, endpoint = parties.router()
    service = start(program, endpoint, "shout")
    client = parties.client(endpoint)
    wait_for(lambda: is_known(client), 20)
    service.signal(signal.SIGTERM)
    wait_for(lambda: not is_known(client), 1)
    assert service.wait(5) == 0


def test_a_kill_with_a_call_in_flight_is_502(parties: Parties, program: Path, start: Start) -> None:
    """kill -9: the caller is told 502 within a second, and the next call is another instance's."""
    _, endpoint = parties.router()
    service = start(program, endpoint, "shout")
    client = parties.client(endpoint)
    wait_for(lambda: is_known(client), 20)
    service.signal(signal.SIGSTOP)  # so that it has a call which it does not answer
    call = client.request_lazy("shout", "/", body=[b"lost"])
    wait_for(lambda: status(client)["services"]["shout"]["instances"][0]["in_flight"] == 1)
    service.kill()
    assert call.get(1).status_code == 502
    following = client.request_lazy("shout", "/", body=[b"next"], timeout=20)
    start(program, endpoint, "shout")
    assert following.get(20).body == [b"NEXT"]


# --- at a router of the test's own ----------------------------------------------------------------


class Counterpart:
    """A ROUTER that says what the test wants it to."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self.endpoint = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"

    def hear(self) -> tuple[bytes, list[bytes]]:
        """Return the next message: who sent it, and its frames."""
        peer, *frames = self.socket.recv_multipart()
        return peer, frames

    def hear_ready(self) -> bytes:
        """Return who says READY next; heartbeats before it are of a conversation that is over."""
        while (heard := self.hear())[1] == HEARTBEAT:
            pass
        assert heard[1] == [*READY, b"shout"]
        return heard[0]

    def say(self, peer: bytes, *frames: bytes) -> None:
        """Send a message."""
        self.socket.send_multipart([peer, *frames])

    def ask(self, peer: bytes, address: bytes, *body: bytes) -> list[bytes]:
        """Send a REQUEST and return the reply; heartbeats may come first."""
        self.say(peer, b"", b"MDPW01", b"\x02", address, b"", *body)
        while (heard := self.hear()) == (peer, HEARTBEAT):
            pass
        assert heard[0] == peer
        return heard[1]


@contextmanager
def made() -> Iterator[Counterpart]:
    context = zmq.Context()
    with context.socket(zmq.ROUTER) as socket:
        socket.setsockopt(zmq.RCVTIMEO, 15_000)
        socket.setsockopt(zmq.LINGER, 0)
        yield Counterpart(socket)
    context.term()


@pytest.fixture
def counterpart() -> Iterator[Counterpart]:
    with made() as counterpart:
        yield counterpart


def ends_well(service: Party) -> None:
    """Tell it to stop; the checks that were compiled in have found nothing."""
    service.signal(signal.SIGTERM)
    assert service.wait(20) == 0, service.output
    assert "runtime error" not in service.output
    assert "Sanitizer" not in service.output


def test_it_says_what_RFC_7_tells_a_worker_to_say(
    counterpart: Counterpart, checked: Path, start: Start
) -> None:
    """READY first and once, a heartbeat a second, the address as it came, DISCONNECT at the end."""
    service = start(checked, counterpart.endpoint, "shout")
    peer = counterpart.hear_ready()
    for _ in range(2):
        assert counterpart.hear() == (peer, HEARTBEAT)
        counterpart.say(peer, *HEARTBEAT)
    for address in (b"\x00\x80\xfe\xff\x01\x02\x03\x04", b"\x00abcd", b"x" * 255):
        answer = [b"", b"MDPW01", b"\x03", address, b"", b"HI", b"", b"\xff"]
        assert counterpart.ask(peer, address, b"hi", b"", b"\xff") == answer
        assert counterpart.ask(peer, address) == answer[:5]
    ends_well(service)
    while (heard := counterpart.hear()) == (peer, HEARTBEAT):
        pass
    assert heard == (peer, DISCONNECT)


def test_after_DISCONNECT_it_registers_on_a_new_socket(
    counterpart: Counterpart, checked: Path, start: Start
) -> None:
    """READY comes again over a connection of its own, soon at first, and after longer and longer pauses
    where it is sent away each time."""
    service = start(checked, counterpart.endpoint, "shout")
    times = []
    peers = set()
    for _ in range(5):
        peer = counterpart.hear_ready()
        times.append(time.monotonic())
        peers.add(peer)
        counterpart.say(peer, *DISCONNECT)
    assert len(peers) == 5
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses[3] > 0.8 > pauses[0]
    ends_well(service)


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"MDPW01", b"\x04"],
        [b"x", b"MDPW01", b"\x04"],
        [b"", b"MDPW02", b"\x04"],
        [b"", b"MDPW01x", b"\x04"],
        [b"", b"MDPC01", b"\x02", b"address", b"", b"body"],
        [b"", b"MDPW01"],
        [b"", b"MDPW01", b""],
        [b"", b"MDPW01", b"\x02\x02", b"address", b"", b"body"],
        [b"", b"MDPW01", b"\x01", b"shout"],
        [b"", b"MDPW01", b"\x03", b"address", b"", b"body"],
        [b"", b"MDPW01", b"\x06"],
        [b"", b"MDPW01", b"\x04", b"more"],
        [b"", b"MDPW01", b"\x05", b"more"],
        [b"", b"MDPW01", b"\x02"],
        [b"", b"MDPW01", b"\x02", b"address"],
        [b"", b"MDPW01", b"\x02", b"", b"", b"body"],
        [b"", b"MDPW01", b"\x02", b"x" * 256, b"", b"body"],
        [b"", b"MDPW01", b"\x02", b"address", b"not empty", b"body"],
        [b"\x00" * 100_000] * 50,
    ],
    ids=lambda frames: " ".join(frame[:9].hex() or "-" for frame in frames[:6]),
)
def test_after_what_is_not_MDP_it_begins_a_new_conversation(
    counterpart: Counterpart, checked: Path, start: Start, frames: list[bytes]
) -> None:
    """A message that breaks the table is not acted on: READY comes over a new connection, long before mere
    silence would bring it, and there a good request is answered."""
    service = start(checked, counterpart.endpoint, "shout")
    first = counterpart.hear_ready()
    counterpart.say(first, *frames)
    began = time.monotonic()
    second = counterpart.hear_ready()
    assert second != first
    assert time.monotonic() - began < SILENCE_S - 1
    service.wait_for_line("mdp_service: the router said what is not MDP")
    assert counterpart.ask(second, b"address", b"fine")[5:] == [b"FINE"]
    ends_well(service)


def test_a_router_that_says_nothing_for_five_seconds_is_given_up(
    counterpart: Counterpart, checked: Path, start: Start
) -> None:
    """It keeps the connection open and does not beat: READY comes over a new one, not before the five
    seconds are over."""
    service = start(checked, counterpart.endpoint, "shout")
    first = counterpart.hear_ready()
    began = time.monotonic()
    assert counterpart.hear_ready() != first
    assert SILENCE_S - 0.5 < time.monotonic() - began < SILENCE_S + 3
    ends_well(service)


def test_SIGTERM_ends_it_where_there_is_no_router(checked: Path, start: Start) -> None:
    """Exit status 0 while it is still looking for one."""
    service = start(checked, f"tcp://127.0.0.1:{free_port()}", "shout")
    wait_for(lambda: catches_SIGTERM(service.pid), 20)
    ends_well(service)


def catches_SIGTERM(pid: int) -> bool:
    """Whether the process has got as far as that."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["tcp://127.0.0.1:5556"],
        ["tcp://127.0.0.1:5556", ""],
        ["tcp://127.0.0.1:5556", "/path"],
        ["tcp://127.0.0.1:5556", "mmi.mine"],
        ["tcp://127.0.0.1:5556", "x" * 256],
        ["tcp://127.0.0.1:5556", "shout", "more"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40] or "nothing",
)
def test_arguments_that_cannot_be_are_told_on_stderr(checked: Path, arguments: list[str]) -> None:
    """Names that no router would register, too few words, too many: the usage, and exit status 2."""
    run = subprocess.run([checked, *arguments], capture_output=True, text=True, timeout=20)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("usage: mdp_service ENDPOINT SERVICE\n")


def test_an_endpoint_that_cannot_be_is_told_on_stderr(checked: Path) -> None:
    """One line, and exit status 1."""
    run = subprocess.run([checked, "nowhere", "shout"], capture_output=True, text=True, timeout=20)
    assert (run.returncode, run.stderr.splitlines()[0]) == (1, "mdp_service: nowhere: Invalid argument")
