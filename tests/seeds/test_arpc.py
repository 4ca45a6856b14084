"""arpc's documented programs as they are but for an import: workers and clients behind a real RabbitMQ."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from butler_mesh import Client
from tests.brokers import Broker
from tests.programs import Program
from tests.seeds.conftest import SEEDS
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

KEY = "example"
STAMP = r"msg_sender \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO "

Start = Callable[..., Program]

NOTING_WORKER = """
    import sys
    from butler_mesh.compat.arpc import mq

    class Noting:
        seen = []

        def c_note(self, req):
            self.seen.append(req["n"])
            print(req["n"])
            if len(self.seen) == 5:
                print("all 5")

    server = mq.make_json_server(mq.AMQPOperations(address=sys.argv[1]), "k", Noting())
    server.service.start().wait_until_registered(20.0)
    print("begun")
    server.loop()
    """
ONE_SHOT = """
    import sys
    from butler_mesh.compat.arpc import mq
    address, n = sys.argv[1:]
    mq.ServiceCaller(mq.AMQPOperations(address=address), 'k').send_request({'c': 'note', 'n': n})
    """


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test opens, the latest first."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start(broker: Broker, stack: ExitStack) -> Iterator[Start]:
    """Starts examples, whose default connection parameters mean the tests' own broker."""
    env = {"BUTLER_MESH_AMQP": broker.endpoint}

    def start(name: str, *arguments: str) -> Program:
        return stack.enter_context(Program(str(SEEDS / name), *arguments, env=env))

    yield start
    stack.close()
    broker.delete_queues([KEY, f"{KEY}:durable", f"{KEY}:dead"])


@pytest.fixture
def send(broker: Broker) -> Callable[..., list[str]]:
    """Runs the sender command and returns its lines."""

    def send(*arguments: str) -> list[str]:
        with Program(
            "-m",
            "butler_mesh.compat.arpc.msg_sender",
            *arguments,
            env={"BUTLER_MESH_AMQP": broker.endpoint},
        ) as program:
            assert program.ends() == 0, program.stdout
            assert program.stderr == ""
            return program.stdout.decode().splitlines()

    return send


@pytest.fixture
def workers(broker: Broker, start: Start) -> list[Program]:
    """Two workers of the example, which are known."""
    programs = [start("arpc_worker.py") for _ in range(2)]
    with Client(broker.endpoint) as client:

        def are_known() -> bool:
            try:
                return len(list(client.manage(KEY, "ping", timeout=0.5))) == 2
            except Exception:
                return False

        wait_for(are_known, 30.0)
    return programs


def test_the_client_gets_the_sum(workers: list[Program], start: Start) -> None:
    """The documented caller and the documented worker, with nothing of the other side in either."""
    client = start("arpc_client.py")
    assert client.ends() == 0
    assert (client.stdout, client.stderr) == (b"{'res': 12}\n", "")


def test_a_request_without_a_reply_arrives_though_its_program_is_over(
    broker: Broker, stack: ExitStack
) -> None:
    """Sending it is all that the program does, and nobody holds the caller when it has done so."""
    stack.callback(broker.delete_queues, ["k", "k:durable", "k:dead"])
    worker = stack.enter_context(Program.of(NOTING_WORKER, broker.endpoint))
    worker.says("begun")
    for n in range(5):
        with Program.of(ONE_SHOT, broker.endpoint, str(n)) as program:
            assert program.ends() == 0
            assert (program.stdout, program.stderr) == (b"", "")
    worker.says("all 5")
    worker.send(signal.SIGTERM)
    assert worker.ends() == 0
    assert worker.stdout.decode().split()[1:-2] == list("01234")


def test_the_sender_prints_the_result_with_its_time(
    workers: list[Program], send: Callable[..., list[str]]
) -> None:
    """As in the document, but that Python 3 writes no u before a text."""
    first, second = send(KEY, '{"c":"add", "x":10, "y":20}')
    assert re.fullmatch(STAMP + "Message sent, waiting for response", first)
    assert re.fullmatch(STAMP + r"Result: <\{'res': 30\}>", second)


def test_the_sender_pings_every_worker_and_one(
    workers: list[Program], send: Callable[..., list[str]]
) -> None:
    """Each process answers with host, wid and pid; a wid is then a key of its own."""
    _, *results = send("mgt.example", '{"c":"ping"}')
    pids = {int(re.findall(r"'pid': (\d+)", line)[0]) for line in results}
    assert pids == {worker.pid for worker in workers}
    assert all(f"'host': '{os.uname().nodename}'" in line for line in results)
    wid = re.findall(r"'wid': '([^']+)'", results[0])[0]
    _, *again = send(f"mgt.{wid}", '{"c":"ping"}')
    assert [re.findall(r"'wid': '([^']+)'", line)[0] for line in again] == [wid]


def test_the_sender_pings_past_a_worker_that_is_frozen(
    workers: list[Program], send: Callable[..., list[str]]
) -> None:
    """One that says nothing keeps nobody from hearing the other; it is there again when it goes on."""
    workers[0].send(signal.SIGSTOP)
    _, *results = send("mgt.example", '{"c":"ping"}')
    assert [int(re.findall(r"'pid': (\d+)", line)[0]) for line in results] == [workers[1].pid]
    workers[0].send(signal.SIGCONT)
    _, *results = send("mgt.example", '{"c":"ping"}')
    assert len(results) == 2


def test_the_sender_asks_for_statistics(workers: list[Program], send: Callable[..., list[str]]) -> None:
    """What the workers have processed adds up to what was sent."""
    for _ in range(3):
        send(KEY, '{"c":"add", "x":1, "y":2}')
    _, *results = send("mgt.example", '{"c":"stats"}')
    assert sum(int(re.findall(r"'processed': (\d+)", line)[0]) for line in results) == 3
    for line in results:
        assert "'exceptions': 0" in line
        assert re.search(r"'waittimes': \[('\d+\.\d{4}'(, )?)*\]", line)


def test_the_sender_ends_the_workers(workers: list[Program], send: Callable[..., list[str]]) -> None:
    """They end by themselves, and well."""
    assert len(send("mgt.example", '{"c":"kill"}')) == 3
    assert [worker.ends() for worker in workers] == [0, 0]
    assert [worker.stderr for worker in workers] == ["", ""]


def test_a_worker_that_is_killed_leaves_its_work_to_the_other(
    workers: list[Program], start: Start, broker: Broker
) -> None:
    """kill -9 of one of two: callers do not notice."""
    workers[0].send(signal.SIGKILL)
    workers[0].ends()
    for _ in range(3):
        client = start("arpc_client.py")
        assert client.ends() == 0
        assert client.stdout == b"{'res': 12}\n"
