"""AMQPOperations: which broker, what is stored, and what is shared."""

from __future__ import annotations

import pytest

from butler_mesh.compat.arpc import mq
from butler_mesh.compat.arpc.operations import ADDRESS


def test_without_a_word_it_is_the_brokers_default_user_on_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    assert mq.AMQPOperations().address == "amqp://guest@localhost"


def test_the_environment_counts_and_what_is_said_counts_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, "tcp://127.0.0.1:5555")
    assert mq.AMQPOperations().address == "tcp://127.0.0.1:5555"
    assert mq.AMQPOperations("rabbit").address == "amqp://guest:guest@rabbit"
    assert mq.AMQPOperations(address="memory://m").address == "memory://m"


def test_connection_parameters_become_an_address() -> None:
    amqp = mq.AMQPOperations("a:5673,b", "me", "p@ss/word", "/shop")
    assert amqp.address == "amqp://me:p%40ss%2Fword@a:5673,b/%2Fshop"


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ({"userid": "me"}, "amqp://me:guest@localhost"),
        ({"password": "secret"}, "amqp://guest:secret@localhost"),
        ({"virtual_host": "shop"}, "amqp://guest:guest@localhost/shop"),
        ({"virtual_host": "/"}, "amqp://guest:guest@localhost"),
        ({"userid": "me", "password": "p", "virtual_host": "/shop"}, "amqp://me:p@localhost/%2Fshop"),
    ],
)
def test_what_is_said_without_a_host_is_said_of_this_machines_broker(
    given: dict[str, str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADDRESS, "tcp://127.0.0.1:5555")
    assert mq.AMQPOperations(**given).address == address  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "useack", "persistent", "is_durable"),
    [
        ("amqp://h", True, True, True),
        ("amqp://h", True, False, False),
        ("amqp://h", False, True, False),
        ("tcp://127.0.0.1:5555", True, True, False),
    ],
)
def test_what_is_acknowledged_and_persistent_is_stored_where_there_is_a_broker(
    address: str, useack: bool, persistent: bool, is_durable: bool
) -> None:
    amqp = mq.AMQPOperations(address=address, useack=useack, persistent=persistent)
    assert amqp.is_durable is is_durable


def test_there_is_no_raw_connection_before_the_first_call() -> None:
    assert mq.AMQPOperations(address="amqp://localhost").raw is None
