"""The proxy: functions of a service as attributes, their values and their exceptions."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from butler_mesh.errors import BadRequest, Closed, NotFound, RemoteError
from tests.meshes import Mesh


def both(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


class Unheard(Exception):
    """A type that callers do not know."""


def unheard() -> None:
    raise Unheard("of")


def test_arguments_travel_by_position_and_by_name(mesh: Mesh) -> None:
    mesh.service(both)
    service = mesh.client().rpc("svc")
    assert service.both() == [[], {}]
    assert service.both(1, "a", None, x={"y": 2}) == [[1, "a", None], {"x": {"y": 2}}]
    # Names that mean something inside an envelope are a caller's as well.
    assert service.both(args=1, kwargs=2, path=3, method=4) == [
        [],
        {"args": 1, "kwargs": 2, "path": 3, "method": 4},
    ]


def test_one_client_serves_several_proxies_and_calls(mesh: Mesh) -> None:
    mesh.service(both, name="one")
    mesh.service(both, name="two")
    client = mesh.client()
    assert client.rpc("one").both(1) == client.rpc("two").both(1)
    assert mesh.router.status()["clients"] == 1


@pytest.mark.parametrize(
    "kind",
    [
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        ZeroDivisionError,
        AttributeError,
        OSError,
        FileNotFoundError,
        ConnectionResetError,
        TimeoutError,
        NotImplementedError,
        RecursionError,
        MemoryError,
        AssertionError,
    ],
)
def test_a_built_in_exception_is_raised_here_as_its_own_type(mesh: Mesh, kind: type[Exception]) -> None:
    def broken() -> None:
        raise kind("what happened")

    mesh.service(broken, both)
    service = mesh.client().rpc("svc")
    with pytest.raises(kind, match="what happened") as raised:
        service.broken()
    error = raised.value
    assert isinstance(error, RemoteError)
    assert (error.type, error.message, error.status) == (kind.__name__, "what happened", 500)
    assert "Traceback (most recent call last)" in error.traceback
    assert "in broken" in error.traceback
    assert "Original Traceback" in str(error)
    assert service.both(1) == [[1], {}]


def test_an_exception_of_the_services_own_is_a_RemoteError_with_its_name(mesh: Mesh) -> None:
    mesh.service(unheard, both)
    service = mesh.client().rpc("svc")
    with pytest.raises(RemoteError) as raised:
        service.unheard()
    assert type(raised.value) is RemoteError
    assert (raised.value.type, raised.value.message) == ("Unheard", "of")
    assert service.both(1) == [[1], {}]


@pytest.mark.parametrize(
    "kind",
    [StopIteration, StopAsyncIteration, SystemExit, KeyboardInterrupt, GeneratorExit, gevent.GreenletExit],
)
def test_what_ends_loops_or_processes_never_crosses_the_mesh_as_itself(
    mesh: Mesh, kind: type[BaseException]
) -> None:
    def broken() -> None:
        raise kind("away")

    mesh.service(broken, both)
    service = mesh.client().rpc("svc")
    with pytest.raises(RemoteError) as raised:
        service.broken()
    assert type(raised.value) is RemoteError
    assert raised.value.type == kind.__name__
    assert service.both(1) == [[1], {}]


def test_sys_exit_in_a_function_is_an_error_for_its_caller_only(mesh: Mesh) -> None:
    def leave() -> None:
        raise SystemExit(3)

    mesh.service(leave, both)
    client = mesh.client()
    response = client.request("svc", "/leave")
    assert response.status_code == 500
    assert response.error["type"] == "SystemExit"
    assert client.rpc("svc").both(1) == [[1], {}]


def test_a_service_may_keep_its_tracebacks_at_home(mesh: Mesh) -> None:
    mesh.service(unheard, tracebacks=False)
    with pytest.raises(RemoteError) as raised:
        mesh.client().rpc("svc").unheard()
    assert raised.value.traceback == ""
    assert str(raised.value) == "of"


def test_a_function_that_does_not_exist_is_an_AttributeError(mesh: Mesh) -> None:
    mesh.service(both)
    with pytest.raises(NotFound) as raised:
        mesh.client().rpc("svc").nothing()
    assert isinstance(raised.value, AttributeError)


def test_arguments_that_do_not_fit_are_422_and_name_what_is_wrong(mesh: Mesh) -> None:
    def resize(name: str, *, size: str) -> str:
        return name + size

    mesh.service(resize)
    service = mesh.client().rpc("svc")
    for args, kwargs, says in [
        ((), {}, "name"),
        (("a",), {}, "size"),
        (("a", "b"), {"size": "1"}, "positional"),
        (("a",), {"size": "1", "colour": "red"}, "colour"),
    ]:
        with pytest.raises(BadRequest, match=says) as raised:
            service.resize(*args, **kwargs)
        assert raised.value.status == 422
    assert service.resize("a", size="b") == "ab"


def test_timeout_is_the_proxys_own_and_applies_to_its_calls(mesh: Mesh) -> None:
    mesh.service().register_function(lambda: gevent.sleep(60), "sleepy")
    service = mesh.client().rpc("svc")
    assert service.timeout is None
    service.timeout = 0.05
    with pytest.raises(TimeoutError) as raised:
        service.sleepy()
    assert raised.value.status == 504  # type: ignore[attr-defined]


def test_close_closes_the_client_and_calls_nobody(mesh: Mesh) -> None:
    called: list[str] = []
    mesh.service().register_function(lambda: called.append("close"), "close")
    client = mesh.client()
    service = client.rpc("svc")
    service.close()
    assert called == []
    with pytest.raises(Closed):
        service.both()


@pytest.mark.parametrize("name", ["_private", "__len__", "__deepcopy__"])
def test_private_names_are_not_remote(mesh: Mesh, name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(mesh.client().rpc("svc"), name)


def test_a_proxy_and_its_functions_say_what_they_are(mesh: Mesh) -> None:
    service = mesh.client().rpc("svc")
    assert repr(service) == "<Proxy of 'svc'>"
    assert service.both.__name__ == "both"
