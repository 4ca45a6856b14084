"""What queues are called."""

from __future__ import annotations

import pytest

from butler_mesh.connections.amqp import queues
from butler_mesh.errors import UsageError


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", ["/"]),
        ("/a", ["/a", "/"]),
        ("/a/b.jpg", ["/a/b.jpg", "/a", "/"]),
        ("/a/", ["/a", "/"]),
        ("//a", ["//a", "/"]),
        ("/a/" + "x" * 300 + "/b", ["/a", "/"]),
    ],
)
def test_a_path_may_belong_to_each_of_its_prefixes_the_longest_first(path: str, found: list[str]) -> None:
    assert queues.prefixes(path) == found


def test_a_key_fits_whatever_the_name() -> None:
    assert queues.control_key("svc") == "mesh.svc"
    key = queues.control_key("ö" * 127)
    assert len(key.encode()) <= queues.LONGEST_NAME
    assert len(queues.full_queue("x" * 255)) == queues.LONGEST_NAME


@pytest.mark.parametrize("name", ["a:durable", "a:dead", "amq.a", "x" * 256, "/" + "ö" * 128])
def test_a_name_that_is_another_queues_or_too_long_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        queues.request_queues(*(("", [name]) if name.startswith("/") else (name, [])))


def test_a_services_queues_are_its_own_and_its_paths() -> None:
    assert queues.request_queues("svc", ["/a/", "/a", "/"]) == ["svc", "/a", "/"]
    assert queues.request_queues("", ["/a"]) == ["/a"]
    with pytest.raises(UsageError, match="needs a name"):
        queues.request_queues("", ["/a"], is_durable=True)
    with pytest.raises(UsageError, match="cannot be"):
        queues.request_queues("x" * 250, [], is_durable=True)
