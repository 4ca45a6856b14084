"""``butler-mesh dlq``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from click.testing import CliRunner, Result
from pika import BasicProperties

from butler_mesh.cli.main import main
from butler_mesh.client import Client
from butler_mesh.connections.amqp import dead as amqp_dead
from butler_mesh.service import Service
from tests.brokers import Broker, free_port
from tests.programs import Program
from tests.waiting import wait_for


def dlq(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["dlq", *arguments])


@pytest.fixture
def address(broker: Broker) -> Iterator[str]:
    """The address of a durable service with one request that it could not serve."""
    address = f"{broker.endpoint}//jobs"
    with Service(address, grace=0.1, durable=True) as service, Client(address) as client:
        assert service.wait_until_registered(10.0)
        client.request_nowait("jobs", "/nothing", {"n": 7}, durable=True)
        wait_for(lambda: "1 jobs" in dlq("ls", address).output)
        yield address
    broker.delete_queues(["jobs", "jobs:durable", "jobs:dead"])


def test_the_dead_are_listed_shown_given_back_and_thrown_away(address: str) -> None:
    shown = dlq("show", address, "--limit", "5")
    assert shown.exit_code == 0
    assert " rejected " in shown.output
    assert '"n":7' in shown.output
    # What was put back is counted a moment later.
    wait_for(lambda: "1 jobs" in dlq("ls", address).output)
    assert dlq("redrive", address).output == "1 given back\n"
    wait_for(lambda: "1 jobs" in dlq("ls", address).output)
    assert dlq("purge", address, "--yes").output == "1 thrown away\n"
    assert dlq("show", address).output == ""


def test_of_many_the_oldest_hundred_are_shown(address: str, broker: Broker) -> None:
    with closing(broker.connect()) as connection:
        channel = connection.channel()
        for n in range(110):
            channel.basic_publish("", "jobs:dead", b'{"n":%d}' % n)
    wait_for(lambda: "111 jobs" in dlq("ls", address).output)
    assert len(dlq("show", address).output.splitlines()) == 100


def test_what_others_have_written_is_one_line_without_commands(address: str, broker: Broker) -> None:
    with closing(broker.connect()) as connection:
        odd = BasicProperties(correlation_id="a\nb", headers={"flags": "odd"})
        connection.channel().basic_publish("", "jobs:dead", b"\x1b[2J\n\x00", odd)
    wait_for(lambda: "2 jobs" in dlq("ls", address).output)
    assert dlq("show", address).output.splitlines()[1] == r"a\x0ab  \x1b[2J\x0a\x00"


def test_a_sealed_one_is_shown_as_one(broker: Broker, request: pytest.FixtureRequest) -> None:
    address = f"{broker.endpoint}//sealed"
    request.addfinalizer(lambda: broker.delete_queues(["sealed", "sealed:durable", "sealed:dead"]))
    with (
        Service(address, grace=0.1, durable=True, passphrase="secret") as service,
        Client(address, passphrase="secret") as client,
    ):
        assert service.wait_until_registered(10.0)
        client.request_nowait("sealed", "/nothing", {"n": 7}, durable=True)
        wait_for(lambda: "1 sealed" in dlq("ls", address).output)
        shown = dlq("show", address).output
        assert ' rejected {"path":"/nothing","arguments":{"n":7},"headers":{"Idempotency-Key":"' in shown
        assert shown.endswith('"}} (sealed)\n')


def test_without_a_broker_it_is_one_line_and_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp_dead, "CONNECT_TIMEOUT_S", 0.05)
    result = dlq("ls", f"amqp://127.0.0.1:{free_port()}//jobs")
    assert (result.exit_code, result.output) == (1, "Error: no broker can be reached\n")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:5555/svc", "amqp://127.0.0.1"])
def test_another_kind_of_address_is_exit_2(address: str) -> None:
    assert dlq("ls", address).exit_code == 2


def test_a_service_without_any_is_one_line_and_exit_1(broker: Broker) -> None:
    result = dlq("ls", f"{broker.endpoint}//nobody")
    assert (result.exit_code, result.output) == (1, "Error: there is no durable service 'nobody'\n")


@pytest.mark.slow
def test_without_pika_it_is_the_line_that_calls_get() -> None:
    source = """
        import sys
        sys.modules["pika"] = None
        from butler_mesh.cli.main import main
        main(["dlq", "ls", "amqp://host//jobs"], prog_name="butler-mesh")
    """
    with Program.of(source) as program:
        assert program.ends() == 2
        how = "amqp:// needs pika: pip install 'pika>=1.4,<2' (the extra 'rabbitmq')"
        assert program.stderr == f"butler-mesh dlq ls: {how}\n"
