"""Sealed connections: who has the passphrase is served, whoever has not is told so and learns nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from butler_mesh import codec
from butler_mesh.calls import Waiter
from butler_mesh.client import Client
from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp.dead import DeadLetters
from butler_mesh.connections.base import Delivery
from butler_mesh.connections.sealed import SealedClient, SealedInstance, _Opener
from butler_mesh.errors import Unavailable
from butler_mesh.messages import ServiceResponse, decode_response
from butler_mesh.protocol.mesh import FINAL, PARTIAL
from butler_mesh.sealing import Seal
from butler_mesh.service import Service
from tests.brokers import Broker
from tests.meshes import Mesh, send_raw
from tests.waiting import wait_for

SHARED = "my shared secret"


@pytest.fixture
def ran(mesh: Mesh) -> list[Any]:
    """What the service's handlers were given."""
    seen: list[Any] = []

    def echo(*body: bytes, **kwargs: Any) -> Any:
        seen.append(kwargs)
        return list(body) or kwargs

    def count(n: int) -> Iterator[int]:
        seen.append(n)
        yield from range(n)

    def fail() -> None:
        raise ValueError("as it should")

    mesh.service(echo, count, fail, passphrase=SHARED)
    return seen


@pytest.fixture
def client(mesh: Mesh, ran: list[Any]) -> Client:
    return mesh.client(passphrase=SHARED)


def test_whoever_has_the_passphrase_is_served_in_every_way(
    client: Client, ran: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert client.request("svc", "/echo", {"a": 1}).body == {"a": 1}
    assert client.request("svc", "/echo", body=[b"\x00", b"\xff"]).body == [b"\x00", b"\xff"]
    assert client.request("svc", "/echo", body=b"x" * 200_000).body == [b"x" * 200_000]
    assert client.request_lazy("svc", "/echo", {"b": 2}).get().body == {"b": 2}
    assert list(client.request_stream("svc", "/count", {"n": 100})) == list(range(100))
    assert client.rpc("svc").echo(c=3) == {"c": 3}
    assert set(client.describe("svc")["paths"]) == {"/echo", "/count", "/fail"}
    with pytest.raises(ValueError, match="as it should"):
        client.rpc("svc").fail()
    caplog.clear()
    assert client.request("svc", "/none").status_code == 404
    client.request_nowait("svc", "/echo", {"d": 4})
    assert client.close() == []
    wait_for(lambda: ran[-1] == {"d": 4})


@pytest.mark.parametrize("passphrase", [None, "guessed"])
def test_whoever_has_not_gets_401_and_reaches_no_handler(
    mesh: Mesh, client: Client, ran: list[Any], caplog: pytest.LogCaptureFixture, passphrase: str | None
) -> None:
    """One line in the log for each, without either secret; and the next good request works."""
    stranger = mesh.client(passphrase=passphrase)
    with caplog.at_level(logging.WARNING):
        response = stranger.request("svc", "/echo", {"a": 1})
    assert (response.status_code, response.body, ran) == (401, None, [])
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("refused-unsealed 'svc': ")
    assert line.endswith("(0 before)")
    for text in (line, response.status_msg):
        assert SHARED not in text
        assert "guessed" not in text
    assert client.request("svc", "/echo", {"a": 2}).body == {"a": 2}


def test_a_request_that_was_overheard_cannot_be_sent_again(client: Client, ran: list[Any]) -> None:
    connection = client._connect()
    assert isinstance(connection, SealedClient)
    envelope, flags = Seal(SHARED).close_request(
        "svc", b'{"path":"/echo"}', 0, nonce="0" * 32, now=connection._clock()
    )

    def send() -> ServiceResponse:
        waiter = Waiter()
        call = connection._inner.submit(
            "svc", envelope, deadline=monotonic() + 10, flags=flags, on_reply=waiter
        )
        return decode_response(*waiter.wait(connection, call))

    assert send().status_code == 200
    again = send()
    assert (again.status_code, again.status_msg) == (401, "the request was seen before")
    assert len(ran) == 1


def test_a_service_without_the_passphrase_is_not_believed(mesh: Mesh) -> None:
    """It answers 200, and the caller sees 502: whoever that was, it could not prove itself."""
    mesh.service().register_function(lambda *sealed: {"forged": True}, "/")
    response = mesh.client(passphrase=SHARED).request("svc", "/echo")
    assert (response.status_code, response.status_msg, response.body) == (
        502,
        "it bears no seal",
        None,
    )


def test_what_the_router_says_is_believed_if_it_is_a_failure(mesh: Mesh, client: Client) -> None:
    assert client.request("nobody", "/echo").status_code == 404
    assert client.request("mmi.service", arguments={"service": "svc"}).body["instances"] == 1


def test_an_attempt_that_is_repeated_is_a_request_of_its_own(mesh: Mesh) -> None:
    """A retry after 503 has a nonce of its own, and is not taken for a replay."""
    asked: list[int] = []

    def busy() -> int:
        asked.append(1)
        if len(asked) < 3:
            raise Unavailable("try again", status=503, retry_after_s=0.0)
        return len(asked)

    mesh.service(busy, passphrase=SHARED)
    response = mesh.client(passphrase=SHARED, retries=5).request("svc", "/busy")
    assert (response.status_code, response.body) == (200, 3)


@pytest.mark.parametrize(("off_s", "code"), [(29.0, 200), (31.0, 503), (-31.0, 401)])
def test_clocks_may_differ_by_half_a_minute(mesh: Mesh, off_s: float, code: int) -> None:
    connection = mesh.service(len, passphrase=SHARED)._connection
    assert isinstance(connection, SealedInstance)
    clock = connection._clock
    connection._clock = lambda: clock() + off_s
    response = mesh.client(passphrase=SHARED).request("svc", "/len", body=b"abc")
    assert response.status_code == code
    if code != 200:
        assert f"{off_s:+.0f} s off" in response.status_msg


def test_when_the_table_of_nonces_is_full_the_caller_is_told_to_come_back(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    service = mesh.service(len, passphrase=SHARED)
    connection = service._connection
    assert isinstance(connection, SealedInstance)
    connection._nonces._limit = 1
    client = mesh.client(passphrase=SHARED)
    assert client.request("svc", "/len", body=b"abc").body == 3
    response = client.request("svc", "/len", body=b"abc")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


def test_a_part_that_was_left_out_ends_the_stream() -> None:
    """After one that cannot be believed nothing is: its reader sees 502 in its place."""
    seal, nonce = Seal(SHARED), "1" * 32
    seen: list[tuple[int, int, bytes]] = []
    opener = _Opener(seal, nonce, lambda kind, code, flags, envelope: seen.append((kind, code, envelope)))
    replies = [
        (PARTIAL, *seal.close_reply(nonce, place, 200, b'{"body":%d}' % place, 0, final=False))
        for place in range(3)
    ]
    replies.append((FINAL, *seal.close_reply(nonce, 3, 200, b"{}", 0, final=True)))
    del replies[1]
    for kind, envelope, flags in replies:
        opener(kind, 200, flags, envelope)
    assert seen == [
        (PARTIAL, 200, b'{"body":0}'),
        (FINAL, 502, codec.dumps({"message": "the reply's seal is broken"})),
    ]


def test_of_many_answers_to_one_command_each_has_its_own_seal() -> None:
    """One that has none is passed over, unless it says that something did not work; the rest is believed."""
    seal, nonce = Seal(SHARED), "2" * 32
    seen: list[tuple[int, int, bytes]] = []
    opener = _Opener(
        seal,
        nonce,
        lambda kind, code, flags, envelope: seen.append((kind, code, envelope)),
        is_gathering=True,
    )
    for n in range(2):
        envelope, flags = seal.close_reply(nonce, 0, 200, b'{"body":%d}' % n, 0, final=True)
        opener(PARTIAL, 200, flags, envelope)
        opener(PARTIAL, 200, 0, b'{"body":"forged"}')
    other, flags = seal.close_reply("3" * 32, 0, 200, b'{"body":"to another"}', 0, final=True)
    opener(PARTIAL, 200, flags, other)
    opener(PARTIAL, 502, 0, b'{"message":"lost","body":"forged"}')
    opener(FINAL, 200, 0, b"{}")
    assert seen == [
        (PARTIAL, 200, b'{"body":0}'),
        (PARTIAL, 200, b'{"body":1}'),
        (PARTIAL, 502, b'{"message":"lost"}'),
        (FINAL, 200, b"{}"),
    ]


def test_an_unsealed_request_of_bytes_is_401_as_well(mesh: Mesh, ran: list[Any]) -> None:
    assert send_raw(mesh.client(), "svc", b"no envelope at all").status_code == 401
    assert ran == []


class Led(Delivery):
    """A request that its router has led to whomever it likes."""

    def __init__(self, target: str, seal: Seal) -> None:
        self.target, self.deadline, self.number = target, monotonic() + 10, 1
        self.envelope, self.flags = seal.close_request(target, b"{}", 0, nonce="2" * 32, now=time.time())
        self.codes: list[int] = []

    def reply(self, status: int, envelope: bytes, *, flags: int = 0, final: bool = True) -> None:
        self.codes.append(status)

    def wait_for_window(self) -> None:
        pass


@pytest.mark.parametrize(
    ("target", "is_ours"),
    [
        ("prod", True),
        ("staging", False),
        ("/a", True),
        ("/a/b", True),
        ("/ab", False),
        ("/", False),
        ("", False),
    ],
)
def test_a_request_that_was_sealed_for_another_service_is_refused(target: str, is_ours: bool) -> None:
    """Two services may have one passphrase; a router that lies cannot lead a request astray."""
    seal, handlers = Seal(SHARED), []

    class Inner:
        wid = "svc-here-0123456789"

        serve = staticmethod(handlers.append)

    ran: list[Delivery] = []
    SealedInstance(Inner(), seal, "prod", ["/a"]).serve(ran.append)  # type: ignore[arg-type]
    delivery = Led(target, seal)
    handlers[0](delivery)
    assert (len(ran), delivery.codes) == ((1, []) if is_ours else (0, [401]))


def test_a_one_way_request_that_was_refused_is_reported(mesh: Mesh, ran: list[Any]) -> None:
    stranger = mesh.client()
    stranger.request_nowait("svc", "/echo")
    assert stranger.request("svc", "/echo").status_code == 401  # which comes after it
    [(code, _)] = stranger.close()
    assert code == 401


def test_strangers_get_one_line_a_second(
    mesh: Mesh, ran: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    stranger = mesh.client()
    for _ in range(50):
        assert stranger.request("svc", "/echo").status_code == 401
    assert 1 <= len(caplog.records) < 10


def test_a_failure_that_no_JSON_could_hold_does_not_keep_the_caller_waiting(mesh: Mesh) -> None:
    """Half a character in the sentence of somebody without the passphrase: the caller is told."""
    answered: list[Any] = []

    def on_reply(kind: int, code: int, flags: int, envelope: bytes) -> None:
        answered.append((kind, code, envelope))

    _Opener(Seal(SHARED), "3" * 32, on_reply)(FINAL, 503, 0, b'{"message":"\\ud800"}')
    assert answered == [(FINAL, 503, b'{"message":"?"}')]


# --- stored requests --------------------------------------------------------------------------


def test_a_stored_request_is_sealed_and_one_of_a_stranger_is_put_with_the_dead(broker: Broker) -> None:
    seen: list[int] = []

    def work(n: int) -> None:
        seen.append(n)
        if len(seen) == 1:
            raise Unavailable("again, please", status=503)

    address = f"{broker.endpoint}#sealed-jobs"
    with Service(address, passphrase=SHARED, durable=True) as service:
        service.register_function(work, "work")
        service.start()
        assert service.wait_until_registered(5.0)
        with (
            Client(address, passphrase=SHARED) as client,
            Client(address, passphrase="another") as stranger,
        ):
            client.request_nowait(None, "/work", {"n": 1}, durable=True)
            wait_for(lambda: seen == [1, 1])
            stranger.request_nowait(None, "/work", {"n": 2}, durable=True)
            with DeadLetters([broker.endpoint], "sealed-jobs") as dead:
                wait_for(lambda: dead.count() == 1)
            client.request_nowait(None, "/work", {"n": 3}, durable=True)
            wait_for(lambda: seen == [1, 1, 3])
            assert client.request(None, "/work", {"n": 4}).status_code == 200
    broker.delete_queues(["sealed-jobs", "sealed-jobs:durable", "sealed-jobs:dead"])
