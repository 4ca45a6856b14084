"""Commands to services: the same over every engine, for functions and for handler classes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import gevent
import pytest
from gevent.event import Event

from butler_mesh.application import Application
from butler_mesh.client import Client
from butler_mesh.errors import (
    BadArguments,
    BadRequest,
    DeadlineExceeded,
    NotFound,
    RequestFailed,
    RouteCollision,
    UsageError,
)
from butler_mesh.handlers import ServiceMessageHandler
from butler_mesh.management import Management
from butler_mesh.messages import ServiceResponse
from butler_mesh.router import Router
from butler_mesh.service import Service
from butler_mesh.service_connection import ServiceConnection
from tests.brokers import Broker
from tests.meshes import ANY_PORT, Mesh
from tests.programs import Program
from tests.waiting import wait_for

TIMEOUT_S = 1.5
"""Over RabbitMQ it is waited for in full; elsewhere the last answer ends it."""

Address = Callable[[str], str]


@pytest.fixture(params=["memory", "tcp", "amqp"])
def address(request: pytest.FixtureRequest) -> Iterator[Address]:
    """Makes addresses of services, on each engine."""
    services: set[str] = set()
    if request.param == "memory":
        yield lambda service: f"memory://commands#{service}"
    elif request.param == "tcp":
        with Router(register_grace_s=0.0) as router:
            endpoint = router.bind(ANY_PORT)
            yield lambda service: f"{endpoint}/{service}"
    else:
        broker: Broker = request.getfixturevalue("broker")

        def address(service: str) -> str:
            services.add(service)
            return f"{broker.endpoint}//{service}"

        yield address
        broker.delete_queues(services)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what tests open, latest first."""
    with ExitStack() as stack:
        yield stack


def join(stack: ExitStack, service: Service) -> Service:
    """Start a service and wait until it is registered."""
    stack.enter_context(service)
    assert service.wait_until_registered(10.0)
    return service


def of_each(
    client: Client, command: str, arguments: Any = None, wid: str | None = None
) -> dict[str, ServiceResponse]:
    """Return the answers by wid."""
    return dict(client.manage(None, command, arguments, wid=wid, timeout=TIMEOUT_S))


def test_ping_is_answered_by_every_instance_or_by_one(address: Address, stack: ExitStack) -> None:
    services = [join(stack, Service(address("svc"), grace=0.1)) for _ in range(3)]
    client = stack.enter_context(Client(address("svc")))
    answers = of_each(client, "ping")
    assert sorted(answers) == sorted(service.wid for service in services)
    assert len(answers) == 3
    for wid, response in answers.items():
        assert response.body == {"wid": wid, "pid": os.getpid(), "host": socket.gethostname()}
        assert wid.startswith("svc-")
    ((wid, response),) = client.manage(None, "ping", wid=services[1].wid)
    assert wid == services[1].wid == response.body["wid"]


def test_stats_count_what_was_answered_and_what_was_raised(
    address: Address, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(address("svc"), grace=0.1)
    service.register_function(lambda: None, "well")
    service.register_function(lambda: 1 / 0, "ill")
    join(stack, service)
    client = stack.enter_context(Client(address("svc")))
    for _ in range(12):
        assert client.request(None, "/well").is_success
    assert client.request(None, "/ill").status_code == 500
    caplog.clear()
    for _ in range(2):  # commands are not counted
        (response,) = of_each(client, "stats", wid=service.wid).values()
    waits = response.body.pop("waittimes")
    ping = {"wid": service.wid, "pid": os.getpid(), "host": socket.gethostname()}
    assert response.body == {**ping, "processed": 12, "exceptions": 1}
    assert len(waits) == 10
    assert all(isinstance(wait, float) and 0 <= wait < 10 for wait in waits)


def test_a_command_of_ones_own_is_one_decorator(address: Address, stack: ExitStack) -> None:
    service = Service(address("svc"), grace=0.1)
    level = "info"

    @service.command
    def set_level(to: str) -> str:
        nonlocal level
        level = to
        return f"now {level}"

    join(stack, service)
    client = stack.enter_context(Client(address("svc")))
    (response,) = of_each(client, "set_level", {"to": "debug"}, wid=service.wid).values()
    assert (response.body, level) == ("now debug", "debug")


def test_a_command_that_fails_says_so_and_who_it_was(
    address: Address, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(address("svc"), grace=0.1)

    @service.command("broken")
    def breaks() -> None:
        raise ValueError("why")

    join(stack, service)
    client = stack.enter_context(Client(address("svc")))
    answers = of_each(client, "broken", wid=service.wid)
    caplog.clear()
    assert list(answers) == [service.wid]
    assert answers[service.wid].error["traceback"].endswith("ValueError: why\n")
    with pytest.raises(NotFound, match="no command 'nothing'; there are broken, kill, ping, stats"):
        of_each(client, "nothing", wid=service.wid)[service.wid].raise_for_status()
    with pytest.raises(BadArguments, match="unexpected"):
        of_each(client, "ping", {"loudly": True}, wid=service.wid)[service.wid].raise_for_status()


def test_an_application_has_the_same_commands(address: Address, stack: ExitStack) -> None:
    class Slow(ServiceMessageHandler):
        def request(self) -> Any:
            self.set_status(200)
            return self.render()

    connection = ServiceConnection(address("app"))
    application = Application(connection, [("^/slow$", Slow)], grace_s=0.1)

    @application.command
    def routes() -> list[str]:
        return [route.pattern for route in application.routes]

    application.start()
    stack.callback(application.close)
    assert connection.wait_until_registered(10.0)
    client = stack.enter_context(Client(address("app")))
    assert client.request(None, "/slow").is_success
    wid = application.management.wid
    assert of_each(client, "stats", wid=wid)[wid].body["processed"] == 1
    assert of_each(client, "routes", wid=wid)[wid].body == ["^/slow$"]


def test_a_service_that_is_told_to_ends_when_it_has_finished(address: Address, stack: ExitStack) -> None:
    arrived, gate = Event(), Event()

    def wait() -> str:
        arrived.set()
        gate.wait()
        return "finished"

    service = Service(address("svc"), grace=10.0)
    service.register_function(wait)
    running = gevent.spawn(service.run)
    wait_for(lambda: bool(service.wid) and service.wait_until_registered(10.0))
    client = stack.enter_context(Client(address("svc")))
    call = client.request_lazy(None, "/wait")
    assert arrived.wait(10.0)
    ((wid, response),) = client.manage(None, "kill", wid=service.wid)
    assert (wid, response.status_code) == (service.wid, 200)
    gate.set()
    assert call.get().body == "finished"
    running.join(10.0)
    assert running.successful()


def test_a_service_that_only_was_started_is_closed(address: Address, stack: ExitStack) -> None:
    service = join(stack, Service(address("svc"), grace=0.1))
    client = stack.enter_context(Client(address("svc")))
    assert of_each(client, "kill", wid=service.wid)

    def is_gone() -> bool:
        try:
            list(client.manage(None, "ping", wid=service.wid, timeout=0.2))
        except RequestFailed as error:
            return isinstance(error, NotFound)
        return False

    wait_for(is_gone, 20.0)


def test_eval_is_there_only_where_it_was_allowed(address: Address, stack: ExitStack) -> None:
    careful = join(stack, Service(address("careful"), grace=0.1))
    bold = join(stack, Service(address("bold"), grace=0.1, allow_eval=True))
    client = stack.enter_context(Client(address("bold")))
    for expression, value in (("6 * 7", 42), ("service.name", "bold"), ("int", "<class 'int'>")):
        (response,) = of_each(client, "eval", {"expression": expression}, wid=bold.wid).values()
        assert response.body == value
    (response,) = of_each(client, "eval", {"expression": "1"}, wid=careful.wid).values()
    assert response.status_code == 404


def test_whoever_has_not_the_passphrase_commands_nobody(
    address: Address, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    services = [join(stack, Service(address("svc"), grace=0.1, passphrase="open")) for _ in range(2)]
    friend = stack.enter_context(Client(address("svc"), passphrase="open"))
    assert sorted(of_each(friend, "ping")) == sorted(service.wid for service in services)
    assert list(of_each(friend, "ping", wid=services[0].wid)) == [services[0].wid]
    for passphrase in (None, "guessed"):
        stranger = stack.enter_context(Client(address("svc"), passphrase=passphrase))
        for wid in (None, services[0].wid):
            with pytest.raises(BadRequest, match=r"seal|passphrase"):
                of_each(stranger, "kill", wid=wid)
    assert len(of_each(friend, "ping")) == 2


def test_where_nobody_is_it_is_NotFound(address: Address, stack: ExitStack) -> None:
    client = stack.enter_context(Client(address("nobody")))
    with pytest.raises(NotFound):
        of_each(client, "ping")


# --- on one engine ------------------------------------------------------------------------------------


def test_answers_come_as_they_are_given_and_who_leaves_early_cancels(mesh: Mesh) -> None:
    gate, stopped = Event(), list[bool]()

    def wait() -> None:
        try:
            gate.wait()
        finally:
            stopped.append(gate.is_set())

    quick, slow = Service(mesh.endpoint, "svc", grace=0.1), Service(mesh.endpoint, "svc", grace=0.1)
    quick.command("wait")(lambda: None)
    slow.command("wait")(wait)
    for service in (quick, slow):
        mesh.join(service)
    with mesh.client().manage("svc", "wait", timeout=10.0) as answers:
        assert next(answers)[0] == quick.wid
    wait_for(lambda: stopped == [False])


def test_nobody_answering_in_time_is_DeadlineExceeded(mesh: Mesh) -> None:
    service = Service(mesh.endpoint, "svc", grace=0.1)
    service.command("sleep")(lambda: gevent.sleep(60))
    mesh.join(service)
    with pytest.raises(DeadlineExceeded):
        list(mesh.client().manage("svc", "sleep", timeout=0.1))


def test_behind_several_routers_each_instance_answers_once(stack: ExitStack) -> None:
    routers = [stack.enter_context(Router(register_grace_s=0.0)) for _ in range(2)]
    endpoints = [router.bind(ANY_PORT) for router in routers]
    services = [join(stack, Service(endpoints, "svc", grace=0.1)) for _ in range(2)]
    wids = sorted(service.wid for service in services)
    for endpoint in endpoints:
        ask = partial(stack.enter_context(Client(endpoint)).request, "mmi.instances", body="svc")
        wait_for(lambda ask=ask: ask().body == wids)
    client = stack.enter_context(Client(endpoints))
    assert sorted(wid for wid, _ in client.manage("svc", "ping")) == wids


def test_an_application_that_is_told_to_ends(mesh: Mesh) -> None:
    connection = ServiceConnection(mesh.endpoint, "app")
    application = Application(connection, [("^/x$", ServiceMessageHandler)], grace_s=1.0)
    running = gevent.spawn(application.run)
    wait_for(lambda: bool(application.management.wid) and connection.wait_until_registered(10.0))
    assert [wid for wid, _ in mesh.client().manage("app", "kill")] == [application.management.wid]
    running.join(10.0)
    assert running.successful()


def test_a_service_of_frames_and_one_that_is_read_by_hand_answer_commands_too(mesh: Mesh) -> None:
    frames = Service(mesh.endpoint, "frames", frames=True, grace=0.1)
    frames.register_function(lambda *parts: list(parts), "/")
    mesh.join(frames)
    by_hand = Service(mesh.endpoint, "hand", grace=0.1)
    assert by_hand.recv(timeout=0.01) is None
    mesh.join(by_hand)
    client = mesh.client()
    for service in (frames, by_hand):
        assert [wid for wid, _ in client.manage(service.name, "ping")] == [service.wid]


def test_a_command_is_for_somebody(mesh: Mesh) -> None:
    with pytest.raises(UsageError):
        mesh.client().manage(None, "ping")


def test_a_name_that_is_taken_is_refused() -> None:
    management = Management(object(), lambda: None)
    with pytest.raises(RouteCollision):
        management.register(print, "ping")
    management.register(print, "eval")  # not taken where evaluating is not allowed


@pytest.mark.slow
def test_a_process_that_is_told_to_ends_with_0(mesh: Mesh) -> None:
    with Program.of(
        """
        import sys
        from butler_mesh import Service
        Service(sys.argv[1], "svc").run()
        """,
        mesh.endpoint,
    ) as program:
        client = mesh.client()
        wait_for(lambda: client.request("mmi.service", arguments={"service": "svc"}).is_success, 20.0)
        ((_, response),) = client.manage("svc", "kill")
        assert response.body["pid"] == program.pid
        assert program.ends() == 0
