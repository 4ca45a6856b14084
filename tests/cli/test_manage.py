"""``butler-mesh ping``, ``stats`` and ``kill``: a line for each instance, and the exit status."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner, Result

from butler_mesh.cli.main import main
from butler_mesh.service import Service
from tests.brokers import Broker
from tests.meshes import Mesh
from tests.waiting import wait_for


@pytest.fixture
def services(mesh: Mesh) -> list[Service]:
    return [mesh.service(), mesh.service()]


def command(mesh: Mesh, *words: str, service: str = "svc", typed: str | None = None) -> Result:
    name, *options = words
    arguments = [name, f"{mesh.endpoint}/{service}", *options]
    return CliRunner().invoke(main, arguments, prog_name="butler-mesh", input=typed)


def test_ping_prints_each_instance(mesh: Mesh, services: list[Service]) -> None:
    result = command(mesh, "ping")
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert sorted(line["wid"] for line in lines) == sorted(service.wid for service in services)
    assert all(line["pid"] == os.getpid() for line in lines)


def test_stats_of_one_instance(mesh: Mesh, services: list[Service]) -> None:
    result = command(mesh, "stats", "--wid", services[0].wid)
    line = json.loads(result.stdout)
    assert sorted(line) == ["exceptions", "host", "pid", "processed", "waittimes", "wid"]
    assert line["wid"] == services[0].wid


def test_kill_ends_one_without_asking_and_all_after_asking(mesh: Mesh, services: list[Service]) -> None:
    assert command(mesh, "kill", typed="n\n").exit_code == 1
    assert len(command(mesh, "ping").stdout.splitlines()) == 2
    assert command(mesh, "kill", "--wid", services[0].wid).exit_code == 0
    wait_for(lambda: len(command(mesh, "ping").stdout.splitlines()) == 1)
    assert command(mesh, "kill", "--yes").exit_code == 0
    wait_for(lambda: command(mesh, "ping").exit_code == 1)


def test_nobody_is_one_line_and_exit_1(mesh: Mesh) -> None:
    result = command(mesh, "ping", service="nobody")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "404 no such service: nobody\n"


def test_a_failure_is_told_with_whose_it_is(mesh: Mesh) -> None:
    service = mesh.service(passphrase="secret")
    result = command(mesh, "ping", "--wid", service.wid)
    assert result.exit_code == 1
    assert result.stderr.startswith("401 ")


def test_a_passphrase_comes_from_the_environment(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    service = mesh.service(passphrase="secret")
    monkeypatch.setenv("BUTLER_MESH_PASSPHRASE", "secret")
    assert json.loads(command(mesh, "ping").stdout)["wid"] == service.wid
    assert json.loads(command(mesh, "stats").stdout)["wid"] == service.wid
    assert command(mesh, "kill", "--yes").exit_code == 0
    wait_for(lambda: command(mesh, "ping").exit_code == 1)


@pytest.mark.parametrize("scheme", ["tcp", pytest.param("amqp", marks=pytest.mark.slow)])
def test_where_nobody_was_heard_it_is_exit_1(scheme: str, request: pytest.FixtureRequest) -> None:
    """Also where all that were asked have refused: nothing on stdout is no success."""
    if scheme == "tcp":
        address = f"{request.getfixturevalue('mesh').endpoint}/svc"
    else:
        broker: Broker = request.getfixturevalue("broker")
        address = f"{broker.endpoint}//svc"
        request.addfinalizer(lambda: broker.delete_queues(["svc"]))
    with Service(address, grace=0.1, passphrase="secret") as service:
        assert service.wait_until_registered(10.0)
        result = CliRunner().invoke(main, ["ping", address, "--timeout", "1.5"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("401 ")


def test_an_address_without_a_service_is_exit_2(mesh: Mesh) -> None:
    result = CliRunner().invoke(main, ["ping", mesh.endpoint], prog_name="butler-mesh")
    assert result.exit_code == 2
