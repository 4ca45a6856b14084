"""``butler-mesh dlq``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from butler_mesh.cli.main import main
from butler_mesh.client import Client
from butler_mesh.service import Service
from tests.brokers import Broker
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
    assert dlq("redrive", address).output == "1 given back\n"
    wait_for(lambda: "1 jobs" in dlq("ls", address).output)
    assert dlq("purge", address, "--yes").output == "1 thrown away\n"
    assert dlq("show", address).output == ""


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:5555/svc", "amqp://127.0.0.1"])
def test_another_kind_of_address_is_exit_2(address: str) -> None:
    assert dlq("ls", address).exit_code == 2


def test_a_service_without_any_is_one_line_and_exit_1(broker: Broker) -> None:
    result = dlq("ls", f"{broker.endpoint}//nobody")
    assert (result.exit_code, result.output) == (1, "Error: there is no 'nobody:dead'\n")
