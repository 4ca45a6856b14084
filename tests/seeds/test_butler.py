"""butler's documented examples as they are, in processes of their own; and what a cluster of them stands."""

from __future__ import annotations

import signal
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import gevent
import pytest

from butler_mesh import Client as CoreClient
from butler_mesh.compat import butler
from butler_mesh.errors import Unavailable
from tests.programs import Program
from tests.seeds.conftest import SEEDS, Examples
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

ROUTER = "tcp://127.0.0.1:5555"
NAME = "api.images"


class Cluster:
    """A router as it is documented, and whoever joins it."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self.client = butler.Client(ROUTER)
        self.client.timeout = 15_000

    def start(self, name: str, *, patched: bool = False) -> Program:
        """Start an example; ``patched`` by gevent, or not."""
        own = ["-m", "gevent.monkey"] if patched else []
        return self._examples.python(*own, str(SEEDS / name))

    def prints(self, name: str, *, patched: bool = False) -> str:
        """Run an example to its end; return what it printed."""
        program = self.start(name, patched=patched)
        assert program.ends() == 0, program.stderr
        assert program.stderr == ""
        return program.stdout.decode()

    def python(self, text: str, *, patched: bool = False) -> Program:
        """Start a program of which this is the text."""
        own = ["-m", "gevent.monkey"] if patched else []
        path = self._examples.directory / f"{abs(hash(text))}.py"
        path.write_text(dedent(text), encoding="utf-8")
        return self._examples.python(*own, str(path))

    def is_served(self) -> bool:
        """Ask the router, which may not be there yet, for workers."""
        try:
            return self.client.send(f"mmi.{NAME}") == [NAME, "200"]
        except Unavailable:
            return False

    def worker(self, name: str, *, patched: bool = False) -> Program:
        """Start an example that serves; return it once it is registered."""
        program = self.start(name, patched=patched)
        wait_for(self.is_served, 20.0)
        return program

    def instances(self) -> dict[int, dict[str, Any]]:
        """Return what the router knows of the workers, by their pid."""
        with CoreClient(ROUTER) as client:
            status = client.request("mmi.status").body
        pool = status["services"].get(NAME, {"instances": []})
        return {instance["pid"]: instance for instance in pool["instances"]}

    def registers(self, program: Program) -> Program:
        """Wait until a worker is registered."""
        wait_for(lambda: program.pid in self.instances(), 20.0)
        return program


@pytest.fixture
def cluster(examples: Examples) -> Any:
    """With the documented ports to itself, and no router yet."""
    made = Cluster(examples)
    yield made
    made.client.close()


@pytest.fixture
def routed(cluster: Cluster) -> Cluster:
    """With the documented router."""
    cluster.start("butler_router.py")
    return cluster


# --- the examples -----------------------------------------------------------------------------------


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("worker", ["butler_function.py", "butler_object.py"])
def test_a_function_or_an_objects_method_is_called(cluster: Cluster, worker: str, patched: bool) -> None:
    """Router, worker and client as documented: the client prints the function's value, whether gevent has
    patched all three of them or none."""
    cluster.start("butler_router.py", patched=patched)
    cluster.worker(worker, patched=patched)
    assert cluster.prints("butler_rpc.py", patched=patched) == "resized image\n"


def test_a_function_is_called_by_its_other_name(routed: Cluster) -> None:
    """The alias answers; under its own name it is not there."""
    routed.worker("butler_alias.py")
    images = routed.client.rpc(NAME)
    assert images.resize("test.jpeg", "150x180") == "resized image"
    with pytest.raises(AttributeError, match="resize_image"):
        images.resize_image("test.jpeg", "150x180")


@pytest.mark.parametrize("worker", ["butler_function.py", "butler_object.py"])
def test_a_remote_exception_is_printed_with_its_original_traceback(routed: Cluster, worker: str) -> None:
    """A call without arguments is the documented TypeError, with the worker's traceback below it."""
    program = routed.worker(worker)
    first, empty, original, *rest = routed.prints("butler_exceptions.py").splitlines()
    assert first.startswith("TypeError: ")
    assert "resize_image() missing 2 required positional arguments: 'name' and 'size'" in first
    assert (empty, original) == ("", "Original Traceback (most recent call last):")
    assert "in call" in "\n".join(rest)
    # The worker has it in its log, and goes on.
    program.says("handler-failed 'api.images'")
    assert routed.prints("butler_rpc.py") == "resized image\n"


@pytest.mark.parametrize("is_sink_first", [True, False])
def test_a_workers_messages_reach_the_sink(routed: Cluster, is_sink_first: bool) -> None:
    """Those that it sent before there was a sink, too."""
    if is_sink_first:
        sink = routed.start("butler_sink.py")
    routed.worker("butler_sink_worker.py")
    assert routed.prints("butler_rpc.py") == "resized image\n"
    if not is_sink_first:
        sink = routed.start("butler_sink.py")
    sink.says("MSG received: resized test.jpeg")
    assert sink.stderr.index("MSG received: worker started") < sink.stderr.index("MSG received: resized")


def test_a_direct_call_is_answered_by_a_manual_loop(routed: Cluster) -> None:
    """The loop is given the JSON text of the call, its reply is the caller's; and so again after a caller
    that sent no call at all."""
    worker = routed.worker("butler_recv.py")
    with CoreClient(ROUTER) as client:
        assert client.request(NAME, "/", body="not a call").body == "hello world"
    assert routed.prints("butler_call.py") == "hello world\n"
    worker.says("not a call\n")
    worker.says('"uri": "test.jpeg"')


def test_mmi_tells_whether_a_worker_is_there(routed: Cluster) -> None:
    """400 before one came, 200 while it is there, 400 when it has left or, a moment later, was killed."""
    nobody = f"['{NAME}', '400']\n"
    assert routed.prints("butler_mmi.py") == nobody
    worker = routed.worker("butler_function.py")
    assert routed.prints("butler_mmi.py") == f"someone is around to handle {NAME}\n"
    worker.send(signal.SIGTERM)
    assert worker.ends() == 0
    assert routed.prints("butler_mmi.py") == nobody
    worker = routed.worker("butler_function.py")
    worker.send(signal.SIGKILL)
    wait_for(lambda: not routed.is_served())


# --- a cluster --------------------------------------------------------------------------------------

PID_WORKER = """
    import os
    import time
    from butler_mesh.compat import butler

    worker = butler.Service('tcp://127.0.0.1:5556', 'api.images')

    def who(seconds=0.0):
        time.sleep(seconds)
        return os.getpid()

    worker.register_function(who)
    print('registering', flush=True)
    worker.run()
"""

BARRIER = """
    import gevent.event
    from butler_mesh.compat import butler

    worker = butler.Service('tcp://127.0.0.1:5556', 'api.images', credit=10)
    inside = []
    everybody = gevent.event.Event()

    def resize_image(name, size):
        inside.append(name)
        if len(inside) == 10:
            everybody.set()
        everybody.wait()
        return 'resized ' + name

    worker.register_function(resize_image)
    worker.run()
"""

GEVENT_CLIENT = """
    import gevent
    from butler_mesh.compat import butler

    client = butler.Client('tcp://127.0.0.1:5555').rpc('api.images')
    client.timeout = 15000
    calls = [gevent.spawn(client.resize_image, '%d.jpeg' % n, '1x1') for n in range(10)]
    for call in calls:
        print(call.get())
    client.close()
"""


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
def test_a_gevent_client_makes_ten_calls_at_once(routed: Cluster, patched: bool) -> None:
    """One client in ten greenlets: none of them is answered before all ten have arrived."""
    worker = routed.python(BARRIER, patched=patched)
    routed.registers(worker)
    client = routed.python(GEVENT_CLIENT, patched=patched)
    assert client.ends() == 0, client.stderr
    assert client.stdout.decode().splitlines() == [f"resized {n}.jpeg" for n in range(10)]


def test_a_worker_may_be_there_before_the_router(cluster: Cluster) -> None:
    """It registers when there is one, and the first call is answered."""
    worker = cluster.python(PID_WORKER)
    worker.says("registering")
    cluster.start("butler_router.py")
    wait_for(cluster.is_served, 20.0)
    assert cluster.client.rpc(NAME).who() == worker.pid


def test_more_calls_than_workers_wait_for_their_turn(routed: Cluster) -> None:
    """Thirty calls at once to one worker, which takes them one by one: every caller is answered."""
    worker = routed.registers(routed.python(PID_WORKER))
    calls = [gevent.spawn(routed.client.rpc(NAME).who, 0.02) for _ in range(30)]
    assert [call.get(timeout=15) for call in calls] == [worker.pid] * 30


def test_a_call_outlasts_butlers_heartbeat(routed: Cluster) -> None:
    """The function sleeps for four seconds without letting anybody else run, where butler gave a worker up
    after three: the caller is answered, and the registration is still the same."""
    worker = routed.registers(routed.python(PID_WORKER))
    before = routed.instances()[worker.pid]["wid"]
    assert routed.client.rpc(NAME).who(4.0) == worker.pid
    assert routed.instances()[worker.pid]["wid"] == before
    assert routed.client.rpc(NAME).who() == worker.pid


def test_workers_come_and_go_and_with_retries_no_call_is_lost(routed: Cluster) -> None:
    """Eight callers ask all the time. Two workers share the work; one is killed with a call in its hands,
    another comes, and one is told to leave: each caller gets its answer every time."""
    answers: list[int] = []
    done = gevent.event.Event()
    routed.client.retries = 3

    def ask() -> None:
        while not done.is_set():
            answers.append(routed.client.rpc(NAME).who(0.02))

    def recent() -> set[int]:
        return set(answers[-20:])

    def is_shared(*programs: Program) -> Callable[[], bool]:
        return lambda: recent() == {program.pid for program in programs}

    first = routed.registers(routed.python(PID_WORKER))
    second = routed.registers(routed.python(PID_WORKER))
    callers = [gevent.spawn(ask) for _ in range(8)]
    wait_for(is_shared(first, second), 15.0)
    first.send(signal.SIGSTOP)
    wait_for(lambda: routed.instances()[first.pid]["in_flight"] == 1)
    first.send(signal.SIGKILL)
    wait_for(is_shared(second), 15.0)
    third = routed.python(PID_WORKER)
    wait_for(is_shared(second, third), 15.0)
    second.send(signal.SIGTERM)
    assert second.ends() == 0
    wait_for(is_shared(third), 15.0)
    done.set()
    gevent.joinall(callers, timeout=15, raise_error=True)
    assert all(caller.successful() for caller in callers)
