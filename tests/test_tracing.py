"""Tracing: ``traceparent`` goes with every request that is made for another."""

from __future__ import annotations

from typing import Any

import pytest

from butler_mesh import tracing
from butler_mesh.handlers import ServiceMessageHandler
from tests.meshes import Mesh
from tests.waiting import wait_for

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_trace_goes_through_a_nested_call_of_every_kind_and_ends_with_its_request(mesh: Mesh) -> None:
    client = mesh.client()
    seen: dict[str, Any] = {}

    def inner(who: str) -> None:
        seen[who] = tracing.current.get()

    def outer() -> None:
        client.request("inner", "/inner", {"who": "request"})
        client.rpc("inner").inner("rpc")
        client.request_lazy("inner", "/inner", {"who": "lazy"}).get()
        client.request_nowait("inner", "/inner", {"who": "nowait"})

    mesh.service(inner, name="inner")
    mesh.service(outer, name="outer")
    assert client.request("outer", "/outer", headers={"traceparent": TRACE}).is_success
    wait_for(lambda: len(seen) == 4)
    assert set(seen.values()) == {TRACE}
    client.rpc("inner").inner("without")
    assert seen["without"] == ""
    assert tracing.current.get() == ""


def test_a_callers_own_trace_is_sent_and_one_given_by_hand_wins(mesh: Mesh) -> None:
    class Trace(ServiceMessageHandler):
        def request(self) -> Any:
            return self.message.headers.get(tracing.HEADER, "none")

    mesh.application([("^/trace$", Trace)])
    client = mesh.client()
    token = tracing.current.set(TRACE)
    try:
        assert client.request("app", "/trace").body == TRACE
        assert client.request("app", "/trace", headers={"traceparent": "mine"}).body == "mine"
    finally:
        tracing.current.reset(token)
    assert client.request("app", "/trace").body == "none"


def test_the_callers_headers_are_not_changed(mesh: Mesh) -> None:
    mesh.service().register_function(lambda: None, "nothing")
    headers = {"X": "y"}
    token = tracing.current.set(TRACE)
    mesh.client().request("svc", "/nothing", headers=headers)
    tracing.current.reset(token)
    assert headers == {"X": "y"}


@pytest.mark.parametrize("value", ["", "x" * 1000, "ü"])
def test_any_text_travels_as_it_is(mesh: Mesh, value: str) -> None:
    mesh.service().register_function(tracing.current.get, "trace")
    assert mesh.client().request("svc", "/trace", headers={"traceparent": value}).body == value
