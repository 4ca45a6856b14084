"""What a configuration may say, and what it makes of it."""

from __future__ import annotations

import platform
from typing import Any

import pytest

from butler_mesh.compat.servicebus.configuration import Configuration, message_service, service_name
from butler_mesh.errors import UsageError

DOCUMENTED = {
    "hosts": ["localhost"],
    "user": "admin",
    "password": "123456",
    "use_ssl": False,
    "node_name": "NODE-01",
    "secret_token": "secret token",
}


def make(**changes: Any) -> Configuration:
    return Configuration({**DOCUMENTED, **changes})


def test_the_documented_one() -> None:
    found = make()
    assert (found.hosts, found.user, found.password) == (["localhost"], "admin", "123456")
    assert (found.node_name, found.secret_token, found.use_ssl) == ("NODE-01", "secret token", False)
    assert found.address("localhost") == "amqp://admin:123456@localhost:5672"
    assert found.queue_name() == "NODE-01"


def test_the_rest_has_py_servicebuss_defaults() -> None:
    found = Configuration({"hosts": ["a"], "secret_token": "s"})
    assert (found.port, found.ssl_port, found.get_port()) == (5672, 5671, 5672)
    assert (found.exchange_name, found.socket_timeout, found.heartbeat_interval) == ("py-servicebus", 5.0, 60)
    assert (found.node_name, found.user, found.wire) == (platform.node(), None, "mesh")
    assert found.address("a") == "amqp://a:5672"


def test_several_hosts_are_one_address() -> None:
    found = make(hosts=["a", "b:1", "::1", "[::2]:2"])
    assert found.address(*found.hosts, service=service_name("N")) == (
        "amqp://admin:123456@a:5672,b:1,[::1]:5672,[::2]:2#servicebus.N"
    )


def test_ssl_has_its_own_scheme_and_port() -> None:
    assert make(use_ssl=True).address("a") == "amqps://admin:123456@a:5671"
    assert make(use_ssl=True, ssl_port=1).get_port() == 1


def test_user_and_password_may_have_any_characters() -> None:
    assert make(user="a/b", password="p@:#ä").address("h") == "amqp://a%2Fb:p%40%3A%23%C3%A4@h:5672"


def test_a_password_may_be_left_to_the_environment() -> None:
    assert make(password=None).address("h") == "amqp://admin@h:5672"


@pytest.mark.parametrize("name", ["hosts", "secret_token"])
def test_without_hosts_or_secret_there_is_none(name: str) -> None:
    for missing in ({name: None}, {name: ""}):
        with pytest.raises(UsageError, match=name):
            make(**missing)


def test_the_queues_of_nodes_and_services_are_never_each_others() -> None:
    assert message_service("N.org", "util", "print") == "servicebus.N.org:util.print"
    assert service_name("N.org.util.print") == "servicebus.N.org.util.print"


def test_a_wire_is_one_of_two() -> None:
    assert make(wire="xml").wire == "xml"
    with pytest.raises(UsageError, match="mesh, xml"):
        make(wire="pickle")


def test_its_repr_keeps_secrets() -> None:
    assert repr(make()) == "<Configuration 'NODE-01' at localhost>"
