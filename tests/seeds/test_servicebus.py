"""py-servicebus's documented programs as they are but for imports: agent and caller as processes, on real
brokers."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from butler_mesh.compat.servicebus.configuration import Configuration, service_name
from butler_mesh.compat.servicebus.sender import Sender
from tests.brokers import Broker, running_broker
from tests.programs import do_without
from tests.seeds.conftest import SEEDS, Examples, _is_free
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

USER, PASSWORD = "admin", "123456"
HOSTS = "'hosts': ['localhost']"
REPLY = re.compile(rb"\('[0-9a-f]{32}', 3\)\n")


@contextmanager
def sender(*hosts: str, user: str = USER, password: str = PASSWORD) -> Iterator[Sender]:
    """Return a sender for the documented node, at these hosts."""
    config = {"hosts": hosts, "user": user, "password": password, "secret_token": "secret token"}
    with Sender(Configuration({**config, "socket_timeout": 2})) as made:
        yield made


@pytest.fixture
def documented_broker(examples: Examples, tmp_path: Path) -> Iterator[Broker]:
    """A broker where the document has it: on port 5672, for admin."""
    if not _is_free(5672):
        do_without("port 5672, which another broker has")
    with running_broker(tmp_path / "broker", port=5672, user=USER, password=PASSWORD) as broker:
        yield broker


def test_the_documented_call(examples: Examples, documented_broker: Broker) -> None:
    """Its caller prints event id and result; the agent ends well when it is told to."""
    agent = examples.start("servicebus_agent.py")
    with sender("127.0.0.1") as watcher:
        wait_for(lambda: watcher.ping("NODE-01"), 20.0)
    caller = examples.start("servicebus_call.py")
    assert caller.ends() == 0
    assert REPLY.fullmatch(caller.stdout)
    assert caller.stderr == ""
    agent.send(signal.SIGTERM)
    assert agent.ends() == 0
    assert (agent.stdout, agent.stderr) == (b"", "")


def test_the_call_without_an_agent_raises_at_once(examples: Examples, documented_broker: Broker) -> None:
    """Its caller sees who is not there."""
    caller = examples.start("servicebus_call.py")
    assert caller.ends() == 1
    assert "NotFound: no service 'servicebus.NODE-01'" in caller.stderr


def test_either_of_two_brokers_may_die_and_come_back(
    examples: Examples, broker: Broker, other_broker: Broker
) -> None:
    """The documented programs with two hosts: callers are served while either is killed, by the broker that
    is left, and by both when it is back."""
    hosts = [f"127.0.0.1:{one.port}" for one in (broker, other_broker)]
    ours = {
        HOSTS: f"'hosts': {hosts}",
        f"'{USER}'": f"'{broker.user}'",
        f"'{PASSWORD}'": f"'{broker.password}'",
    }

    def text(name: str) -> str:
        source = (SEEDS / name).read_text(encoding="utf-8")
        for theirs, here in ours.items():
            assert theirs in source
            source = source.replace(theirs, here)
        return source

    def call() -> None:
        caller = examples.python("-c", text("servicebus_call.py"))
        assert caller.ends() == 0, caller.stderr
        assert REPLY.fullmatch(caller.stdout)

    agent = examples.python("-c", text("servicebus_agent.py"))
    with sender(*hosts, user=broker.user, password=broker.password) as watcher:
        wait_for(lambda: watcher.ping_all("NODE-01", 1.0) == (2, 2), 20.0)
        call()
        for one in (broker, other_broker):
            one.stop(signal.SIGKILL)
            # One that was connected when its broker died, and one that never was.
            assert watcher.call("NODE-01.math.add", [1, 2], timeout=10.0)[1] == 3
            call()
            assert watcher.ping_all("NODE-01", 1.0) == (1, 2)
            one.start()
            wait_for(lambda: watcher.ping_all("NODE-01", 1.0) == (2, 2), 30.0)
    agent.send(signal.SIGTERM)
    assert agent.ends() == 0
    for one in (broker, other_broker):
        one.delete_queues([service_name("NODE-01")])


def test_the_logging_service(examples: Examples, tmp_path: Path) -> None:
    """The documented start: the hook's file names the server's process, and what is logged is in the log."""
    if not _is_free(9999):
        do_without("port 9999")
    source = (SEEDS / "servicebus_logging.py").read_text(encoding="utf-8")
    for directory in ("run", "log"):
        assert f"'/var/{directory}/application." in source
        source = source.replace(f"/var/{directory}/", f"{tmp_path}/")
    others = """
import multiprocessing
def work(n):
    logging.info("from process %d", n)
children = [multiprocessing.Process(target=work, args=(n,)) for n in range(3)]
for child in children:
    child.start()
for child in children:
    child.join()
logging.info("from the first")
"""
    program = examples.python("-c", source + others)
    assert program.ends() == 0, program.stderr
    assert program.stderr == ""
    log = (tmp_path / "application.log").read_text(encoding="utf-8")
    assert set(re.findall(r"PID:\d+\]INFO:(.*)", log)) == {
        *(f"from process {n}" for n in range(3)),
        "from the first",
    }
    pid = int((tmp_path / "application.pid").read_text(encoding="utf-8"))
    assert pid != program.pid
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize("name", ["agent", "call", "logging"])
def test_only_the_imports_are_ours(name: str) -> None:
    """What a program that comes from py-servicebus changes is where the names come from."""
    text = (SEEDS / f"servicebus_{name}.py").read_text(encoding="utf-8")
    theirs = re.findall(r"from butler_mesh\.compat\.servicebus\.\w+ import \w+", text)
    assert re.findall(r".*butler_mesh.*", text) == theirs
    assert "gevent" not in text
