"""The Flask demo as its users run it: two workers of gunicorn, and a service that dies and returns."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator

import gevent
import pytest
from gevent import socket

from tests.meshes import Mesh
from tests.processes.hosts import Gunicorn
from tests.programs import ROOT, Program
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

SERVICE = str(ROOT / "demos" / "flask_service.py")


def started(mesh: Mesh) -> Program:
    """Start an instance of the service."""
    return Program(SERVICE, "--backend", mesh.endpoint)


def instances(mesh: Mesh) -> int:
    """Tell how many instances of it there are."""
    pool = mesh.router.status()["services"].get("prices", {"instances": []})
    return len(pool["instances"])


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh() as mesh:
        yield mesh


@pytest.fixture(scope="module")
def site(mesh: Mesh) -> Iterator[Gunicorn]:
    env = {"FLASK_BUTLER_MESH_ADDRESS": mesh.endpoint, "FLASK_BUTLER_MESH_TIMEOUT_S": "1.5"}
    with Gunicorn("demos.flask_app:app", workers=2, env=env) as site:
        yield site
        site.send(signal.SIGTERM)
        assert site.ends() == 0


@pytest.fixture
def service(mesh: Mesh) -> Iterator[Program]:
    with started(mesh) as service:
        wait_for(lambda: instances(mesh) == 1, 20.0)
        yield service
        if service.process.poll() is None:
            service.send(signal.SIGTERM)
            assert service.ends() == 0


def test_pages_are_answered_by_the_service_through_every_worker(site: Gunicorn, service: Program) -> None:
    workers = set()

    def both() -> bool:
        asked = [gevent.spawn(site.get, "/quote?item=tea&quantity=10") for _ in range(10)]
        for reply in (one.get() for one in asked):
            assert reply.status == 200
            assert "10 × tea: 37.80" in reply.text
            assert f"says instance {service.pid}<" in reply.text
            found = re.search(r"made by worker (\d+)", reply.text)
            assert found
            workers.add(found[1])
        return len(workers) == 2

    wait_for(both, 20.0)
    reply = site.get("/price/cocoa")
    assert (reply.json["total"], reply.headers["Content-Type"]) == (8.9, "application/json")


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/", 200, "Prices"),
        ("/quote", 400, "400 Bad Request"),
        ("/quote?item=caviar", 404, "no caviar"),
        ("/quote?item=tea&quantity=0", 422, "from 1 to 1000"),
        ("/nowhere", 404, "404 Not Found"),
    ],
)
def test_what_goes_wrong_is_a_page(site: Gunicorn, service: Program, path: str, code: int, text: str) -> None:
    reply = site.get(path)
    assert reply.status == code
    assert text in reply.text


def test_a_service_that_is_killed_is_a_page_and_a_new_one_is_found(
    mesh: Mesh, site: Gunicorn, service: Program
) -> None:
    waiting = gevent.spawn(site.get, "/quote?item=tea&think_s=60")
    wait_for(lambda: mesh.router.status()["services"]["prices"]["instances"][0]["in_flight"] == 1)
    service.send(signal.SIGKILL)
    lost = waiting.get(timeout=10.0)
    assert (lost.status, "502 Bad Gateway" in lost.text) == (502, True)
    gone = site.get("/quote?item=tea")
    # The request waits for an instance to come, as long as the page may.
    assert (gone.status in (503, 504), "<form" in gone.text) == (True, True), gone
    with started(mesh) as again:
        wait_for(lambda: instances(mesh) == 1, 20.0)
        reply = site.get("/quote?item=tea")
        assert (reply.status, f"says instance {again.pid}<" in reply.text) == (200, True)


def test_a_page_has_its_deadline_and_the_service_does_not_go_on(site: Gunicorn, service: Program) -> None:
    reply = site.get("/quote?item=tea&think_s=60")
    assert (reply.status, "504 Gateway Timeout" in reply.text) == (504, True)
    service.says("nobody waits for this quote any more")


def test_prices_are_streamed_until_the_browser_leaves(site: Gunicorn, service: Program) -> None:
    connection = site.dial()
    connection.sendall(b"GET /watch/tea HTTP/1.1\r\nHost: x\r\n\r\n")
    stream = connection.makefile("rb")
    head = b"".join(iter(stream.readline, b"\r\n"))
    assert b"Content-Type: text/event-stream" in head
    told = [json.loads(line[6:]) for line in (stream.readline() for _ in range(12)) if line[:6] == b"data: "]
    assert len(told) == 3
    assert all(one["item"] == "tea" for one in told)
    assert "any more" not in service.stderr
    stream.close()
    connection.shutdown(socket.SHUT_RDWR)
    connection.close()
    service.says("nobody watches the price of tea any more")


def test_a_stream_that_cannot_begin_is_a_page(site: Gunicorn) -> None:
    reply = site.get("/watch/tea")
    assert (reply.status in (503, 504), "<form" in reply.text) == (True, True), reply
