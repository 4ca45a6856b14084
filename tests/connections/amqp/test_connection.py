"""One connection to a cluster, that comes back."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gevent
import pytest
from gevent.server import StreamServer

from butler_mesh.clock import monotonic
from butler_mesh.connections import rabbitmq
from butler_mesh.connections.amqp.connection import (
    CA,
    CERTIFICATE,
    KEY,
    PASSWORD,
    Connection,
    has_transient_queues,
    parameters,
)
from butler_mesh.connections.amqp.link import Link
from butler_mesh.connections.amqp.loop import HubServices
from butler_mesh.errors import UsageError
from tests.brokers import Broker, free_port
from tests.connections.conftest import descriptors
from tests.connections.contract import PATIENCE_S, Call, echo
from tests.connections.cutting import cut
from tests.waiting import wait_for


class Log:
    """What a link has said, in order."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def link(self, *endpoints: str) -> Link:
        return Link(
            endpoints,
            "out",
            on_up=lambda: self.said.append("up"),
            on_down=lambda reason: self.said.append("down"),
            on_refused=lambda code, reason: self.said.append(code),
            on_unblocked=lambda: self.said.append("unblocked"),
        )


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def start() -> Iterator[Callable[[Link], Link]]:
    """Starts links, and closes them in the end."""
    links: list[Link] = []

    def start(link: Link) -> Link:
        links.append(link)
        link.start()
        return link

    yield start
    for link in links:
        link.close(1.0)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("amqp://host", ("host", 5672, "/", "guest", "guest")),
        ("amqp://me:it@host:1/v", ("host", 1, "v", "me", "it")),
        ("amqp://me:p%40%2F@[::1]:1/v%2Fw", ("::1", 1, "v/w", "me", "p@/")),
        ("amqps://me:it@host", ("host", 5671, "/", "me", "it")),
        ("amqp://me@host", ("host", 5672, "/", "me", "")),
    ],
)
def test_an_endpoint_says_where_and_as_whom(endpoint: str, expected: tuple[Any, ...]) -> None:
    found = parameters(endpoint)
    credentials = found.credentials
    assert (
        found.host,
        found.port,
        found.virtual_host,
        credentials.username,
        credentials.password,
    ) == expected
    assert (found.ssl_options is not None) is endpoint.startswith("amqps")


def test_a_password_may_come_from_the_environment_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PASSWORD, "from the environment")
    assert parameters("amqp://me@host").credentials.password == "from the environment"
    assert parameters("amqp://me:own@host").credentials.password == "own"
    tmp_path.joinpath("secret").write_text("from the file\n")
    monkeypatch.setenv(f"{PASSWORD}_FILE", str(tmp_path / "secret"))
    with pytest.raises(UsageError, match="set one of the two"):
        parameters("amqp://me@host")
    assert parameters("amqp://me:own@host").credentials.password == "own"
    monkeypatch.delenv(PASSWORD)
    assert parameters("amqp://me@host").credentials.password == "from the file"
    monkeypatch.setenv(f"{PASSWORD}_FILE", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="none"):
        parameters("amqp://me@host")


def test_a_certificate_that_cannot_be_read_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CA, "/nowhere/ca.pem")
    with pytest.raises(UsageError, match=CA):
        parameters("amqps://host")


def test_what_one_turn_writes_leaves_together_and_large_frames_by_themselves() -> None:
    class Transport:
        written: list[bytes] = []  # noqa: RUF012 (there is one)

        def write(self, data: bytes) -> None:
            self.written.append(data)

        def get_write_buffer_size(self) -> int:
            return sum(map(len, self.written))

    connection = Connection.__new__(Connection)
    connection._batch, connection._run_callback = [], gevent.get_hub().loop.run_callback
    connection._services = HubServices()
    connection._transport = Transport()
    for data in (b"a", b"b", b"c"):
        connection._adapter_emit_data(data)
    assert connection.unsent_bytes == 3
    gevent.sleep(0)
    connection._adapter_emit_data(b"d")
    connection._adapter_emit_data(bytes(100_000))
    gevent.sleep(0)
    assert Transport.written == [b"abc", b"d", bytes(100_000)]
    connection._adapter_emit_data(b"e")
    connection._transport = None  # gone meanwhile
    gevent.sleep(0)
    assert connection.unsent_bytes == 0


@pytest.mark.parametrize(
    ("version", "has_them"),
    [("3.10.8", True), ("3.13.7", True), ("4.0.5", False), ("40.1", False), ("", False)],
)
def test_queues_that_go_with_their_node_are_those_of_rabbitmq_3(version: str, has_them: bool) -> None:
    connection = SimpleNamespace(server_properties={"version": version})
    assert has_transient_queues(cast(Connection, connection)) is has_them


def test_hosts_are_tried_in_turn(broker: Broker, log: Log, start: Callable[[Link], Link]) -> None:
    dead = broker.endpoint.replace(str(broker.port), str(free_port()))
    link = start(log.link(dead, dead, broker.endpoint))
    wait_for(lambda: log.said == ["up"])
    assert link.connection is not None
    assert link.where == f"127.0.0.1:{broker.port}"


def test_a_link_to_nobody_pauses_longer_each_time(
    log: Log, start: Callable[[Link], Link], caplog: pytest.LogCaptureFixture
) -> None:
    begun = monotonic()
    start(log.link(f"amqp://127.0.0.1:{free_port()}"))
    wait_for(lambda: caplog.text.count("connect-failed") >= 4)
    # 50, 100 and 200 ms, each less up to a half.
    assert monotonic() - begun > 0.17
    assert log.said == []


@pytest.mark.parametrize(
    ("wrong", "code"), [(("mesh:", "mesh:not-"), 401), (("mesh:", "nobody:"), 401), ((None, "/nowhere"), 403)]
)
def test_a_refusal_is_told_as_one_and_holds_no_password(
    wrong: tuple[str | None, str],
    code: int,
    broker: Broker,
    log: Log,
    start: Callable[[Link], Link],
    caplog: pytest.LogCaptureFixture,
) -> None:
    old, new = wrong
    endpoint = broker.endpoint + new if old is None else broker.endpoint.replace(old, new)
    with caplog.at_level(logging.DEBUG, "butler_mesh"):
        link = start(log.link(endpoint))
        wait_for(lambda: log.said)
    assert log.said == [code]
    assert link.refusal is not None
    assert link.refusal[0] == code
    assert ("(is it the service? then //nowhere)" in link.refusal[1]) is (code == 403)
    assert "no password was given" not in link.refusal[1]
    assert broker.password not in caplog.text + repr(link.__dict__) + repr(link._keeper.__dict__)


def test_a_refusal_says_that_no_password_was_given(
    broker: Broker, log: Log, start: Callable[[Link], Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    monkeypatch.delenv(f"{PASSWORD}_FILE", raising=False)
    link = start(log.link(broker.endpoint.replace(f":{broker.password}@", "@")))
    wait_for(lambda: log.said == [401])
    assert link.refusal is not None
    assert link.refusal[1].endswith(f" (no password was given: {PASSWORD} or ..._FILE)")


@pytest.mark.slow
def test_a_vhost_that_is_there_is_not_taken_for_a_service(
    broker: Broker, log: Log, start: Callable[[Link], Link]
) -> None:
    broker.control("add_vhost", "others")
    try:
        link = start(log.link(f"{broker.endpoint}/others"))
        wait_for(lambda: log.said == [403])
        assert link.refusal is not None
        assert "is it the service" not in link.refusal[1]
    finally:
        broker.control("delete_vhost", "others")


def test_a_broker_that_hangs_up_in_the_handshake_has_refused_nobody(
    broker: Broker, log: Log, start: Callable[[Link], Link], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", broker.port)) as real:
        real.sendall(b"AMQP\0\0\x09\x01")
        greeting = real.recv(65536)  # Connection.Start

    def hang_up(peer: Any, _: object) -> None:
        peer.sendall(greeting)
        peer.recv(65536)
        peer.close()

    with closing(StreamServer(("127.0.0.1", 0), hang_up)) as server:
        server.start()
        start(log.link(f"amqp://127.0.0.1:{server.server_port}"))
        wait_for(lambda: caplog.text.count("connect-failed") >= 3)
        assert log.said == []
        start(log.link(f"amqp://127.0.0.1:{server.server_port}", broker.endpoint))
        wait_for(lambda: log.said == ["up"])
        server.stop(0.0)


def test_those_who_wait_are_told_when_all_brokers_have_refused(
    broker: Broker, log: Log, start: Callable[[Link], Link], caplog: pytest.LogCaptureFixture
) -> None:
    wrong = broker.endpoint.replace("mesh:", "mesh:not-")
    start(log.link(wrong, broker.endpoint))
    wait_for(lambda: log.said == ["up"])
    start(log.link(wrong, wrong))
    wait_for(lambda: log.said == ["up", 401])
    assert caplog.text.count("ACCESS_REFUSED") >= 3


@pytest.mark.slow
def test_too_many_connections_are_no_refusal(
    broker: Broker, log: Log, start: Callable[[Link], Link], caplog: pytest.LogCaptureFixture
) -> None:
    broker.control("set_vhost_limits", "-p", "/", '{"max-connections": 0}')
    start(log.link(broker.endpoint))
    try:
        wait_for(lambda: caplog.text.count("connection limit (0) is reached") >= 2)
        assert log.said == []
    finally:
        broker.control("clear_vhost_limits", "-p", "/")
    wait_for(lambda: log.said == ["up"])


@pytest.mark.slow
def test_descriptors_stay_as_they_are_over_fifty_reconnections(
    broker: Broker, log: Log, start: Callable[[Link], Link]
) -> None:
    link = start(log.link(broker.endpoint))
    wait_for(lambda: log.said == ["up"])
    before = len(descriptors())
    for n in range(50):
        log.said.clear()
        link._keeper._services.sever() if n % 2 else cut(link)
        wait_for(lambda: log.said == ["down", "up"])
    assert len(descriptors()) <= before


def test_a_link_may_be_closed_or_abandoned_at_any_moment(broker: Broker, log: Log) -> None:
    for end in (lambda link: link.close(1.0), lambda link: link.abandon()):
        for turns in range(12):
            link = log.link(broker.endpoint)
            link.start()
            for _ in range(turns):
                gevent.sleep(0)
            end(link)
            end(link)
    log.said.clear()
    gevent.sleep(0.05)
    assert log.said == []


def test_closing_does_not_wait_for_a_broker_that_says_nothing(log: Log) -> None:
    with closing(StreamServer(("127.0.0.1", 0), lambda *_: gevent.sleep(5.0))) as server:
        server.start()
        link = log.link(f"amqp://127.0.0.1:{server.server_port}")
        link.start()
        gevent.sleep(0.02)
        with gevent.Timeout(0.5):
            link.close(10.0)
        server.stop(0.0)


# --- TLS --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tls_carries_large_and_small(tls: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, home = tls
    for name, file in ((CA, "ca.pem"), (CERTIFICATE, "cert.pem"), (KEY, "key.pem")):
        monkeypatch.setenv(name, str(home / file))
    instance = rabbitmq.instance([endpoint], "svc", ())
    instance.serve(echo)
    assert instance.wait_until_registered(PATIENCE_S)
    client = rabbitmq.client([endpoint])
    envelopes = [bytes([n]) * size for n, size in enumerate([10, 5_000_000, 20, 200_000, 70_000] * 3)]
    calls = [Call(client, envelope) for envelope in envelopes]
    assert [call.final().envelope for call in calls] == envelopes
    client.close(1.0)
    instance.close(1.0)


@pytest.mark.slow
def test_tls_without_our_certificate_or_trust_in_theirs_is_no_connection(
    tls: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint, home = tls
    for trusted in (True, False):
        if trusted:
            monkeypatch.setenv(CA, str(home / "ca.pem"))
        else:
            monkeypatch.delenv(CA)
        caplog.clear()
        link = log.link(endpoint)
        link.start()
        wait_for(lambda: caplog.text.count("connect-failed") >= 2)
        link.close(1.0)
    assert log.said == []
