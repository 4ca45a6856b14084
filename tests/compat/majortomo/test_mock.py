"""The client for users' tests: what code under test sees of it, and what the test may ask afterwards."""

from __future__ import annotations

from time import monotonic

import pytest

from butler_mesh.compat.majortomo import Client, MockMDPClient
from butler_mesh.compat.majortomo.error import Timeout
from butler_mesh.compat.majortomo.mock import MockMDPClient as FromItsModule

URL = "tcp://127.0.0.1:9"


@pytest.fixture
def mock() -> MockMDPClient:
    return MockMDPClient(URL)


def test_it_stands_where_a_client_does(mock: MockMDPClient) -> None:
    """Under both names that majortomo's people import."""
    assert isinstance(mock, Client)
    assert FromItsModule is MockMDPClient
    assert mock.broker_url == URL


def test_recv_part_gives_the_reply_once_and_then_None(mock: MockMDPClient) -> None:
    """majortomo's gives it for ever, so that a loop for parts never ends."""
    mock.set_reply(b"a", b"b")
    mock.send(b"svc", b"x")
    assert [mock.recv_part(), mock.recv_part(1.0)] == [[b"a", b"b"], None]


def test_recv_all_is_an_iterator_over_parts(mock: MockMDPClient) -> None:
    """majortomo's gives frames where the client gives parts."""
    mock.set_reply(b"a", b"b")
    mock.send(b"svc", b"x")
    parts = mock.recv_all(1.0)
    assert next(parts) == [b"a", b"b"]
    assert list(parts) == []


def test_recv_all_as_list_is_a_flat_list(mock: MockMDPClient) -> None:
    """The frames as they were set."""
    mock.set_reply(b"a", b"b")
    mock.send(b"svc", b"x")
    assert mock.recv_all_as_list(timeout=1.0) == [b"a", b"b"]


def test_every_request_has_the_reply_until_another_is_set(mock: MockMDPClient) -> None:
    """Set before or after the request is sent, or without one, as majortomo's allows."""
    mock.set_reply(b"1")
    assert mock.recv_all_as_list() == [b"1"]
    for _ in range(2):
        mock.send("svc", b"x")
        assert mock.recv_all_as_list() == [b"1"]
    mock.send("svc", b"x")
    mock.set_reply(b"2")
    assert mock.recv_all_as_list() == [b"2"]
    mock.set_reply()
    mock.send("svc", b"x")
    assert list(mock.recv_all()) == [[]]


def test_without_a_reply_there_is_none(mock: MockMDPClient) -> None:
    """At once: a test does not hang."""
    mock.send("svc", b"x")
    assert mock.recv_part() is None
    assert list(mock.recv_all()) == []
    assert mock.recv_all_as_list() == []


@pytest.mark.parametrize("timeout", [None, 0, 10.0])
def test_raise_timeout_raises_at_once_and_can_be_taken_back(
    mock: MockMDPClient, timeout: float | None
) -> None:
    """majortomo's sleeps for the timeout first, and fails where there is none. A retry gets its reply."""
    mock.set_reply(b"a")
    mock.raise_timeout = True
    mock.send("svc", b"x")
    began = monotonic()
    with pytest.raises(Timeout):
        mock.recv_part(timeout)
    with pytest.raises(Timeout):
        list(mock.recv_all(timeout))
    with pytest.raises(Timeout):
        mock.recv_all_as_list(timeout)
    assert monotonic() - began < 1.0
    mock.raise_timeout = False
    assert mock.recv_all_as_list(timeout) == [b"a"]


def test_what_was_sent_is_kept(mock: MockMDPClient) -> None:
    """In order, the service as the code under test gave it."""
    mock.send("svc", b"x", b"")
    mock.send(b"other")
    assert mock.requests == [("svc", [b"x", b""]), (b"other", [])]
    with pytest.raises(TypeError):
        mock.send("svc", "text")  # type: ignore[arg-type]


def test_connecting_is_noted(mock: MockMDPClient) -> None:
    """Nobody is there, and nothing minds."""
    assert not mock.is_connected()
    with mock as entered:
        assert entered is mock
        assert mock.is_connected()
        mock.connect(reconnect=True)
    assert not mock.is_connected()
    mock.send("svc", b"x")
