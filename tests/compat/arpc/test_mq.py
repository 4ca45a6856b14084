"""The names that arpc's documents use."""

from __future__ import annotations

from butler_mesh.compat.arpc import mq


def test_the_names_are_arpcs() -> None:
    assert set(mq.__all__) >= {"AMQPOperations", "ServiceCaller", "make_json_server"}
    assert all(hasattr(mq, name) for name in mq.__all__)
