"""``butler-mesh rabbitmq``: nodes that stay when the command has ended, and go when another one says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from butler_mesh.cli.main import main
from butler_mesh.client import Client
from butler_mesh.operations.rabbitmq import Cluster, Node
from butler_mesh.service import Service
from tests.brokers import fake_rabbitmq, needs_rabbitmq
from tests.programs import mesh


def rabbitmq(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["rabbitmq", *arguments], prog_name="butler-mesh")


def ended(*arguments: str) -> tuple[int, str, str]:
    """Run the command as a process; return (exit status, stdout, stderr)."""
    with mesh("rabbitmq", *arguments) as program:
        return program.ends(90.0), program.stdout.decode(), program.stderr


def answers(address: str) -> bool:
    with Service(f"{address}//svc", grace=0.1) as service, Client(address) as client:
        service.register_function(lambda: "here", "where")
        assert service.wait_until_registered(10.0)
        return bool(client.rpc("svc").where() == "here")


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 3])
def test_it_starts_nodes_that_carry_a_mesh_and_stops_them(
    nodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_rabbitmq()
    home = tmp_path / "rabbitmq"
    options = ["--directory", str(home), "--nodes", str(nodes)]
    try:
        code, out, err = ended("start", *options)
        assert (code, err) == (0, f"the password is in {home / 'password'}\n")
        address = out.strip()
        assert address == Cluster.open(home).endpoint
        assert address.count("127.0.0.1:") == nodes
        monkeypatch.setenv("BUTLER_MESH_AMQP_PASSWORD_FILE", str(home / "password"))
        assert answers(address)
        pids = [node.pid for node in Cluster.open(home).nodes]
        assert ended("start", *options)[:2] == (0, out)  # they run: nothing happens
        assert [node.pid for node in Cluster.open(home).nodes] == pids
        assert ended("stop", *options) == (0, "", "")
        assert [node.pid for node in Cluster.open(home).nodes] == [None] * nodes
        assert home.exists()
        assert ended("stop", "--remove", *options) == (0, "", "")
        assert not home.exists()
    finally:
        if home.exists():
            Cluster.open(home).stop()


SECOND_FAILS = f"""
[ "$RABBITMQ_NODENAME" = mesh2@localhost ] && exit 1
exec {sys.executable} -SE -c '
import re, socket, sys
port = re.search(r"listeners.tcp.1 = .*:(\\d+)", open(sys.argv[1]).read())[1]
listener = socket.create_server(("127.0.0.1", int(port)))
while True:
    with listener.accept()[0] as caller:
        caller.recv(8) and caller.send(b"A")
' "$RABBITMQ_CONFIG_FILE"
"""
"""Of two nodes the second ends at once; the first takes connections."""


@pytest.mark.parametrize("is_interrupted", [False, True])
@pytest.mark.parametrize("ran_before", [False, True])
def test_a_start_that_fails_stops_what_it_has_started_and_nothing_else(
    is_interrupted: bool, ran_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_rabbitmq(monkeypatch, tmp_path / "bin", SECOND_FAILS)
    cluster = Cluster.create(tmp_path / "two", 2)
    first, second = cluster.nodes
    try:
        if ran_before:
            first.start()
        pid = first.pid
        if is_interrupted:
            wait = Node.wait_until_ready

            def interrupted(node: Node, within_s: float) -> bool:
                if node.name == second.name:
                    raise KeyboardInterrupt
                return wait(node, within_s)

            monkeypatch.setattr(Node, "wait_until_ready", interrupted)
        result = rabbitmq("start", "--directory", str(cluster.home))
        assert (result.exit_code, result.stdout) == (1, "")
        assert ("Aborted!" if is_interrupted else "mesh2@localhost ended") in result.stderr
        assert [first.pid, second.pid] == [pid, None]
    finally:
        cluster.stop()


def test_another_number_or_port_than_what_is_there_is_one_line_and_exit_2(tmp_path: Path) -> None:
    needs_rabbitmq()
    home = tmp_path / "rabbitmq"
    Cluster.create(home, 2, port=23456)
    for arguments in (["start", "--nodes", "3"], ["stop", "--nodes", "1"], ["start", "--port", "5672"]):
        result = rabbitmq(*arguments, "--directory", str(home))
        assert result.exit_code == 2
        [line] = result.stderr.splitlines()
        assert line.startswith(f"butler-mesh rabbitmq {arguments[0]}: ")
        assert str(home) in line


def test_where_nothing_was_started_there_is_nothing_to_stop(tmp_path: Path) -> None:
    result = rabbitmq("stop", "--directory", str(tmp_path / "none"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "there is no cluster in" in result.stderr


def test_without_rabbitmq_it_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = rabbitmq("start", "--directory", str(tmp_path / "rabbitmq"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "apt install rabbitmq-server" in result.stderr
    assert not (tmp_path / "rabbitmq").exists()


def test_its_help_has_examples() -> None:
    result = rabbitmq("start", "--help")
    assert result.exit_code == 0
    assert "  butler-mesh rabbitmq start --nodes 3" in result.output.partition("Examples:")[2]
