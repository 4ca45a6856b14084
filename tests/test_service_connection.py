"""ServiceConnection: how an Application gets its messages from a router."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from butler_mesh.application import Application
from butler_mesh.client import Client
from butler_mesh.errors import AddressError, UsageError
from butler_mesh.handlers import ServiceMessageHandler
from butler_mesh.router import Router
from butler_mesh.service_connection import ServiceConnection
from tests.meshes import Mesh, drained
from tests.waiting import wait_for


class One(ServiceMessageHandler):
    def request(self) -> Any:
        return "one"


class Endless(ServiceMessageHandler):
    ended = 0

    def request(self) -> Any:
        try:
            gevent.sleep(3600)
        finally:
            type(self).ended += 1


def test_the_name_may_be_given_or_stand_in_the_address() -> None:
    assert ServiceConnection("tcp://127.0.0.1:1/named").service == "named"
    assert ServiceConnection("tcp://127.0.0.1:1/named", "given").service == "given"
    assert ServiceConnection("ipc://run/slow#named").service == "named"
    assert ServiceConnection("ipc://run/slow").service == ""


def test_a_named_service_is_found_by_its_name_and_by_the_paths_of_its_routes(mesh: Mesh) -> None:
    mesh.application([("^/one/(?:a|b)$", One)])
    client = mesh.client()
    assert client.request("app", "/one/a").body == "one"
    assert client.request(None, "/one/b").body == "one"


def test_a_service_without_a_name_is_found_by_its_paths(mesh: Mesh) -> None:
    mesh.application([("^/one$", One)], service="")
    assert mesh.client().request(None, "/one").body == "one"


def test_without_name_and_paths_nobody_could_find_it(mesh: Mesh) -> None:
    application = Application(ServiceConnection(mesh.endpoint), [(".*", One)])
    with pytest.raises(UsageError, match="name"):
        application.start()
    application.close()


def test_a_router_of_the_same_process_needs_no_address() -> None:
    with Router() as router, Client(router) as client:
        connection = ServiceConnection(router, "app")
        application = Application(connection, [("^/one$", One)], grace_s=0.05)
        application.start()
        assert connection.wait_until_registered(5.0)
        assert client.request("app", "/one").body == "one"
        application.close()


@pytest.mark.parametrize(
    "address", ["", "nonsense", "http://a:1", "tcp://127.0.0.1:0x50/a", "tcp://127.0.0.1:70000"]
)
def test_a_bad_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(AddressError):
        ServiceConnection(address, "app")


def test_nothing_is_opened_before_start() -> None:
    connection = ServiceConnection("tcp://127.0.0.1:1", "app")
    assert not connection.wait_until_registered(0.0)
    connection.close(1.0)


def test_credit_is_how_many_requests_are_handled_at_once(mesh: Mesh) -> None:
    connection = ServiceConnection(mesh.endpoint, "app", credit=2)
    application = Application(connection, [("^/endless$", Endless)], grace_s=0.0)
    application.start()
    assert connection.wait_until_registered(5.0)
    client = mesh.client()
    lazies = [client.request_lazy("app", "/endless") for _ in range(5)]
    wait_for(lambda: mesh.router.status()["services"]["app"]["queued"] == 3)
    assert mesh.router.status()["services"]["app"]["instances"][0]["in_flight"] == 2
    for lazy in lazies:
        lazy.cancel()
    application.close()


def test_a_deadline_stops_the_handler(mesh: Mesh) -> None:
    mesh.application([("^/endless$", Endless), ("^/one$", One)])
    Endless.ended = 0
    client = mesh.client()
    assert client.request("app", "/endless", timeout=0.05).status_code == 504
    wait_for(lambda: Endless.ended == 1)
    wait_for(lambda: drained(mesh.router.status(), "app"))
    assert client.request("app", "/one").body == "one"


def test_close_says_goodbye(mesh: Mesh) -> None:
    application = mesh.application([("^/one$", One)])
    application.close()
    wait_for(lambda: mesh.router.status()["services"]["app"]["instances"] == [])
    application.close()
