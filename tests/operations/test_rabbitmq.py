"""RabbitMQ nodes of one's own: private, on loopback, ended by whoever wants it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import gevent
import pytest

from butler_mesh.errors import MeshError, UsageError
from butler_mesh.operations import rabbitmq
from butler_mesh.operations.rabbitmq import Cluster, Node, free_ports, programs
from tests.brokers import connect, fake, fake_rabbitmq, needs_rabbitmq, running_cluster
from tests.waiting import wait_for


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of one, not started."""
    cluster = Cluster.create(tmp_path / "lone")
    yield cluster
    cluster.stop()


def listeners(*pids: int) -> set[str]:
    """Return the addresses at which processes listen."""
    said = subprocess.run(["ss", "-ltnp"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in said.splitlines() if any(f"pid={pid}," in line for pid in pids)]
    return {line.split()[3].rpartition(":")[0] for line in lines}


# --- what is written --------------------------------------------------------------------------


def test_all_is_in_one_private_directory_and_secrets_are_for_us_alone(tmp_path: Path) -> None:
    home = tmp_path / "a" / "b"
    cluster = Cluster.create(home, 3)
    assert home.stat().st_mode & 0o777 == 0o700
    for secret in (home / "password", home / "home" / ".erlang.cookie"):
        assert secret.stat().st_mode & 0o777 == 0o400
    assert (home / "1" / "rabbitmq.conf").stat().st_mode & 0o777 == 0o600
    assert [node.name for node in cluster.nodes] == [f"mesh{n}@localhost" for n in (1, 2, 3)]
    ports = [node.port for node in cluster.nodes]
    assert cluster.endpoint == f"amqp://mesh@127.0.0.1:{ports[0]},127.0.0.1:{ports[1]},127.0.0.1:{ports[2]}"
    assert cluster.password not in cluster.endpoint
    assert cluster.password in cluster.secret_endpoint


def test_what_was_created_is_opened_with_the_same_ports_and_password(tmp_path: Path) -> None:
    made = Cluster.create(tmp_path / "c", 2, port=23456)
    found = Cluster.open(tmp_path / "c")
    assert found.secret_endpoint == made.secret_endpoint
    assert [node.port for node in found.nodes] == [23456, 23457]
    assert "classic_config.nodes.1 = mesh1@localhost" in (tmp_path / "c/2/rabbitmq.conf").read_text()
    assert "classic_config" not in (tmp_path / "c/1/rabbitmq.conf").read_text()


def test_what_holds_the_password_is_at_no_time_for_others_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(path: object, mode: int, **_: object) -> None:
        assert Path(str(path)).is_dir(), "the file was there before"

    monkeypatch.setattr(os, "chmod", too_late)
    umask = os.umask(0)
    try:
        Cluster.create(tmp_path / "c")
    finally:
        os.umask(umask)
    assert (tmp_path / "c/1/rabbitmq.conf").stat().st_mode & 0o777 == 0o600


def test_an_empty_directory_that_was_there_becomes_private(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir(mode=0o755)
    Cluster.create(tmp_path / "c")
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700


def test_a_directory_is_the_same_by_whatever_way_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    made = Cluster.create(tmp_path / "link" / "c")
    found = Cluster.open(tmp_path / "there" / ".." / "there" / "c")
    assert found.nodes[0].environment == made.nodes[0].environment


def test_nothing_is_written_over_and_nothing_else_is_taken_for_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "somebodys").write_text("work")
    with pytest.raises(UsageError, match="not empty"):
        Cluster.create(tmp_path)
    with pytest.raises(UsageError, match="no cluster"):
        Cluster.open(tmp_path)
    (tmp_path / "cluster.json").write_text(json.dumps(["odd"]))
    with pytest.raises(UsageError, match="no cluster"):
        Cluster.open(tmp_path)
    with pytest.raises(UsageError, match="cannot write"):
        Cluster.create(tmp_path / "somebodys" / "deeper")


def test_without_rabbitmq_or_erlang_one_line_tells_how_to_get_it(
    lone: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs() is None
    with pytest.raises(UsageError, match="apt install rabbitmq-server"):
        lone.start()


def test_programs_are_debians_unwrapped_ones_or_those_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("erl", "rabbitmq-server"):
        fake(tmp_path / "bin", program, "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(rabbitmq, "DEBIAN", tmp_path / "nowhere")
    assert programs() == tmp_path / "bin"
    fake(tmp_path / "debian", "rabbitmq-server", "")
    monkeypatch.setattr(rabbitmq, "DEBIAN", tmp_path / "debian")
    assert programs() == tmp_path / "debian"


# --- nodes ------------------------------------------------------------------------------------


def test_a_taken_port_is_refused(lone: Cluster) -> None:
    needs_rabbitmq()
    with socket.create_server(("127.0.0.1", lone.nodes[0].port)):
        with pytest.raises(UsageError, match="in use by another process"):
            lone.start()


def test_a_node_that_ends_at_once_tells_its_last_words(
    lone: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_rabbitmq(monkeypatch, tmp_path / "bin", "echo one; echo two; exit 1")
    with pytest.raises(MeshError, match=r"mesh1@localhost ended: one \| two"):
        lone.start()


def test_a_number_that_somebody_else_has_now_is_not_the_node(lone: Cluster) -> None:
    node = lone.nodes[0]
    assert node.pid is None
    (node.home / "pid").write_text(str(os.getpid()))
    assert node.pid is None
    (node.home / "pid").write_text("nonsense")
    assert node.pid is None
    lone.stop()


def test_whoever_listens_on_the_name_servers_port_now_is_left_alone(lone: Cluster) -> None:
    with socket.create_server(("127.0.0.1", lone._epmd_port)) as somebodys:
        lone.stop()
        somebodys.setblocking(False)
        with pytest.raises(BlockingIOError):
            somebodys.accept()


@pytest.fixture
def stubborn(lone: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A node that does not end when it is asked to, but removes its pid file, as RabbitMQ does; its pid."""
    fake_rabbitmq(
        monkeypatch,
        tmp_path / "bin",
        """trap 'rm -f "$RABBITMQ_PID_FILE"' TERM
        echo $$ > "$RABBITMQ_PID_FILE"
        while :; do sleep 0.01; done""",
    )
    monkeypatch.setattr(rabbitmq, "STOP_S", 0.1)
    (node,) = lone.nodes
    node.launch()
    assert node.pid is not None
    wait_for((lone.home / "1" / "rabbitmq.pid").exists)
    return node.pid


def test_a_node_that_another_process_started_is_killed_when_it_does_not_end(
    lone: Cluster, stubborn: int
) -> None:
    Cluster.open(lone.home).stop()
    assert lone.nodes[0].pid is None


def test_a_stop_that_was_interrupted_may_be_tried_again(lone: Cluster, stubborn: int) -> None:
    removed = lone.home / "1" / "rabbitmq.pid"
    stopping = gevent.spawn(Cluster.open(lone.home).stop)
    wait_for(lambda: not removed.exists())
    stopping.kill()
    assert Cluster.open(lone.home).nodes[0].pid == stubborn
    Cluster.open(lone.home).stop()
    assert lone.nodes[0].pid is None


@pytest.mark.slow
def test_one_node_listens_on_loopback_keeps_what_it_has_and_is_ended_by_anybody(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "one", 1) as cluster:
        (node,) = cluster.nodes
        pid = node.pid
        assert pid is not None
        assert listeners(pid) <= {"127.0.0.1", "[::ffff:127.0.0.1]"}
        with closing(connect(node, cluster.password)) as connection:
            connection.channel().queue_declare("kept", durable=True)
        node.launch()  # it runs: nothing happens
        assert node.pid == pid
        somebody = Cluster.open(cluster.home)
        somebody.stop()
        assert node.pid is None
        assert not node.is_ready()
        somebody.start()
        assert "kept" in node.control("list_queues", "name")
        with pytest.raises(MeshError, match="rabbitmqctl nonsense"):
            node.control("nonsense")
        node.stop(signal.SIGKILL)
        assert node.pid is None
        node.stop()  # it does not run: nothing happens
    wait_for(lambda: not ours(cluster.home))
    cluster.remove()
    assert not cluster.home.exists()


@pytest.mark.slow
def test_three_nodes_are_one_cluster_and_come_back_after_the_death_of_all(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "three", 3) as cluster:
        assert running(cluster.nodes[2]) == 3
        for node in cluster.nodes:
            node.signal(signal.SIGKILL)
        for node in cluster.nodes:
            node.stop()
        cluster.start()
        wait_for(lambda: running(cluster.nodes[0]) == 3, 20.0)
    wait_for(lambda: not ours(cluster.home))


def running(node: Node) -> int:
    """Return how many nodes of its cluster a node knows to run."""
    status = json.loads(node.control("cluster_status", "--formatter", "json"))
    return len(status["running_nodes"])


def ours(home: Path) -> list[int]:
    """Return the processes that are of a cluster, its name server among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes()
        except OSError:  # gone meanwhile, or somebody else's
            continue
        if f"HOME={home}/home".encode() in environment.split(b"\0"):
            found.append(int(path.name))
    return found


def test_free_ports_are_different_ones() -> None:
    assert len(set(free_ports(20))) == 20
