"""Calls by way of whichever broker works."""

from __future__ import annotations

from time import monotonic
from typing import Any

import pytest

from butler_mesh.compat.servicebus import sender as module
from butler_mesh.compat.servicebus.configuration import Configuration
from butler_mesh.compat.servicebus.event import Event
from butler_mesh.compat.servicebus.routes import Route
from butler_mesh.compat.servicebus.sender import Sender, SharedSender
from butler_mesh.errors import DeadlineExceeded, InstanceLost, NotFound, RemoteError, Unavailable, UsageError
from tests.brokers import free_port
from tests.compat.servicebus.conftest import Bench
from tests.compat.servicebus.services import Add, Gate, Note
from tests.programs import Program
from tests.waiting import wait_for

LOG: list[str] = []
PATIENCE: list[float] = []
"""How long each ping and call was to wait for its broker's first word."""
BROKEN: dict[str, Exception] = {}
"""Host -> what every use of it raises."""


class FakeRoute(Route):
    """Answers with its host, or fails."""

    def __init__(self, configuration: Configuration, host: str) -> None:
        self.host = host

    def _use(self, what: str) -> str:
        LOG.append(f"{what} {self.host}")
        if self.host in BROKEN:
            raise BROKEN[self.host]
        return self.host

    def call(self, node: str, event: Event, until: float, patience: float) -> Any:
        PATIENCE.append(patience)
        return self._use(f"call {node}" if node != "N" else "call")

    def send(self, node: str, event: Event) -> None:
        self._use("send")

    def ask(self, node: str, timeout: float) -> bool:
        PATIENCE.append(timeout)
        return bool(self._use("ping"))

    def close(self) -> None:
        LOG.append(f"close {self.host}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(module, "MeshRoute", FakeRoute)
    LOG.clear()
    PATIENCE.clear()
    BROKEN.clear()
    return LOG


def make(*, smart_route: bool = False) -> Sender:
    return Sender(Configuration({"hosts": ["a", "b"], "secret_token": "s"}), smart_route)


def test_the_first_host_is_used_and_reverse_turns_the_order_round(log: list[str]) -> None:
    sender = make()
    assert sender.call("N.c.s", 1)[1] == "a"
    assert sender.call("N.c.s", 1, reverse=True)[1] == "b"
    sender.send("N.c.s", 1)
    sender.send("N.c.s", 1, reverse=True)
    assert log == ["call a", "call b", "send a", "send b"]


@pytest.mark.parametrize("error", [NotFound("nobody", status=404), Unavailable("no broker", status=503)])
def test_what_was_never_begun_goes_to_the_next_which_is_first_for_a_while(
    log: list[str], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = make()
    BROKEN["a"] = error
    assert [sender.call("N.c.s")[1] for _ in range(2)] == ["b", "b"]
    assert log == ["call a", "call b", "call b"]
    BROKEN.clear()
    monkeypatch.setattr(module, "BEHIND_S", 0.0)
    assert sender.call("N.c.s")[1] == "a"


@pytest.mark.parametrize("error", [InstanceLost("the broker was lost", status=502), DeadlineExceeded()])
def test_what_may_have_begun_is_not_sent_again(log: list[str], error: Exception) -> None:
    sender = make()
    BROKEN["a"] = error
    with pytest.raises(type(error)):
        sender.call("N.c.s")
    assert sender.call("N.c.s")[1] == "b"
    assert log == ["call a", "call b"]


@pytest.mark.parametrize(
    "error", [Unavailable("too many", status=429), RemoteError("no such row", type="NotFound")]
)
def test_what_the_node_itself_has_said_is_asked_of_no_other_broker(log: list[str], error: Exception) -> None:
    sender = make()
    BROKEN["a"] = error
    for _ in range(2):
        with pytest.raises(type(error)):
            sender.call("N.c.s")
    assert log == ["call a", "call a"]


def test_brokers_share_the_time_of_a_call(log: list[str]) -> None:
    sender = make(smart_route=True)
    BROKEN["a"] = BROKEN["b"] = Unavailable("nothing was said", status=503)
    with pytest.raises(Unavailable):
        sender.call("N.c.s", timeout=0.3)
    assert [pytest.approx(share, abs=0.05) for share in (0.1, 0.1, 0.15, 0.3)] == PATIENCE
    PATIENCE.clear()
    with pytest.raises(Unavailable):
        sender.call("N.c.s")
    assert PATIENCE == [2.5, 2.5]


def test_a_message_needs_no_ping(log: list[str]) -> None:
    make(smart_route=True).send("N.c.s")
    assert log == ["send a"]


def test_when_none_is_there_the_first_ones_error_is_raised(log: list[str]) -> None:
    BROKEN["a"] = Unavailable("no broker at a", status=503)
    BROKEN["b"] = NotFound("nobody at b", status=404)
    for use in (make().call, make().send):
        with pytest.raises(Unavailable, match="no broker at a"):
            use("N.c.s")


def test_smart_route_looks_for_a_node_before_it_is_first_called(log: list[str]) -> None:
    sender = make(smart_route=True)
    BROKEN["a"] = DeadlineExceeded()
    assert [sender.call("N.c.s")[1] for _ in range(3)] == ["b"] * 3
    assert log == ["ping a", "ping b", "call b", "call b", "call b"]


def test_ping_and_ping_all(log: list[str]) -> None:
    sender = make()
    assert (sender.ping("N"), sender.ping_all("N")) == (True, (2, 2))
    BROKEN["a"] = Unavailable("gone", status=503)
    assert (sender.ping("N"), sender.ping_all("N")) == (True, (1, 2))
    BROKEN["b"] = DeadlineExceeded()
    assert (sender.ping("N"), sender.ping_all("N")) == (False, (0, 2))


def test_a_sender_may_be_closed_and_used_again(log: list[str]) -> None:
    with make() as sender:
        sender.call("N.c.s")
    assert log == ["call a", "close a", "close b"]
    assert sender.call("N.c.s")[1] == "a"


def test_a_requests_own_sender_is_not_its_to_close(log: list[str]) -> None:
    sender = SharedSender(make().configuration, smart_route=False)
    sender.call("N.c.s")
    sender.close()
    assert log == ["call a"]
    sender.close_all()
    assert log == ["call a", "close a", "close b"]


@pytest.mark.parametrize("target", ["", "math.add", "N..add", "N.math.", ".."])
def test_a_target_has_three_parts(target: str) -> None:
    with pytest.raises(UsageError, match=r"NODE\.category\.name"):
        make().call(target)


def test_a_nodes_name_may_have_dots(log: list[str]) -> None:
    make().call("node.example.org.math.add")
    assert log == ["call node.example.org a"]


def test_an_event_id_is_returned_and_never_twice(log: list[str]) -> None:
    sender = make()
    ids = [sender.call("N.c.s")[0] for _ in range(3)]
    assert len(set(ids)) == 3


# --- on real brokers ---------------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["mesh", "xml"])
def test_a_call_has_a_timeout(bench: Bench, wire: str) -> None:
    gate = Gate()
    bus = bench.bus(wire=wire)
    bus.add_rpc_service("util", "wait", gate)
    bench.start(bus)
    sender = bench.sender(wire=wire)
    wait_for(lambda: sender.ping("NODE-01"))
    with pytest.raises(DeadlineExceeded):
        sender.call("NODE-01.util.wait", 1, timeout=0.1)
    gate.opened.set()


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["mesh", "xml"])
def test_a_host_without_a_broker_is_passed_over(bench: Bench, wire: str) -> None:
    note = Note()
    bus = bench.bus(wire="xml")
    bus.add_rpc_service("math", "add", Add())
    bus.add_message_service("util", "note", note)
    bench.start(bus)
    away, here = f"127.0.0.1:{free_port()}", f"127.0.0.1:{bench.broker.port}"
    for smart in (True, False):
        sender = bench.sender(away, here, smart_route=smart, wire=wire, socket_timeout=0.5)
        assert sender.call("NODE-01.math.add", [1, 2])[1] == 3
        sender.send("NODE-01.util.note", smart)
        assert sender.ping_all("NODE-01") == (1, 2)
    wait_for(lambda: note.noted == [True, False])


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["mesh", "xml"])
def test_a_fork_has_connections_of_its_own_and_leaves_its_parents_alone(bench: Bench, wire: str) -> None:
    bus = bench.bus(wire="xml")
    bus.add_rpc_service("math", "add", Add())
    bench.start(bus)
    forks = """
        import os, sys, gevent, gevent.os
        from butler_mesh.compat.servicebus.configuration import Configuration
        from butler_mesh.compat.servicebus.sender import Sender
        sender = Sender(Configuration({"hosts": [sys.argv[1]], "user": sys.argv[2], "password": sys.argv[3],
            "wire": sys.argv[4], "secret_token": "secret token"}))
        def add(n):
            return sender.call("NODE-01.math.add", [n], timeout=10)[1]
        assert add(1) == 1
        child = gevent.fork()
        if not child:
            for n in range(100):
                assert add(n) == n
            sender.close()
            os._exit(7)
        # While it lives: it reads nothing that is its parent's.
        for n in range(100):
            assert add(n) == n
        assert os.waitstatus_to_exitcode(gevent.os.waitpid(child, 0)[1]) == 7
        assert add(3) == 3
        sender.close()
        """
    broker = bench.broker
    arguments = (f"127.0.0.1:{broker.port}", broker.user, broker.password, wire)
    with Program.of(forks, *arguments) as program:
        assert program.ends() == 0, program.stderr
        assert program.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["mesh", "xml"])
@pytest.mark.parametrize("smart", [True, False])
def test_a_broker_that_says_nothing_is_passed_over(bench: Bench, silent: str, wire: str, smart: bool) -> None:
    """Also in a call that has little time; and the next one goes to the other at once."""
    bus = bench.bus(wire="xml")
    bus.add_rpc_service("math", "add", Add())
    bench.start(bus)
    sender = bench.sender(silent, f"127.0.0.1:{bench.broker.port}", smart_route=smart, wire=wire)
    assert sender.call("NODE-01.math.add", [1, 2], timeout=1.0)[1] == 3
    began = monotonic()
    assert sender.call("NODE-01.math.add", [1, 2], timeout=1.0)[1] == 3
    assert monotonic() - began < 0.3


def test_nobody_anywhere_is_an_error(bench: Bench) -> None:
    sender = bench.sender(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", socket_timeout=0.05)
    with pytest.raises(Unavailable):
        sender.call("NODE-01.math.add", [1, 2])
    with pytest.raises(Unavailable):
        sender.send("NODE-01.util.note", 1)
    assert sender.ping_all("NODE-01") == (0, 2)
