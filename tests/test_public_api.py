"""The public names: all there, each loaded only when it is used, and the ones the documentation shows."""

from __future__ import annotations

import importlib

import pytest

import butler_mesh
from tests.programs import run

NAMES = {
    "Application",
    "Client",
    "JSONMessageHandler",
    "Jinja2Rendering",
    "MessageHandler",
    "Router",
    "Service",
    "ServiceClientMixin",
    "ServiceConnection",
    "ServiceMessageHandler",
    "ServiceRequest",
    "ServiceResponse",
    "Sink",
    "WSGIConnection",
    "WebMessageHandler",
    "coro_sleep",
    "load_jinja2_env",
}


def test_the_names_that_users_write_are_public() -> None:
    assert set(butler_mesh.__all__) >= NAMES
    assert set(dir(butler_mesh)) >= NAMES | {"__version__"}


@pytest.mark.parametrize("name", sorted(butler_mesh.__all__))
def test_a_public_name_is_what_its_module_defines(name: str) -> None:
    found = getattr(butler_mesh, name)
    if name != "coro_sleep":  # which is gevent's own
        home = importlib.import_module(found.__module__)
        assert found.__module__.startswith("butler_mesh.")
        assert getattr(home, name) is found
    assert getattr(butler_mesh, name) is found


def test_a_name_that_is_none_is_an_AttributeError() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = butler_mesh.nothing


@pytest.mark.slow
def test_importing_the_package_loads_nothing_and_patches_nothing() -> None:
    code, out, err = run(
        "-c",
        "import sys, butler_mesh; assert 'gevent' not in sys.modules and 'zmq' not in sys.modules;"
        "from butler_mesh import *; from gevent import monkey; import socket, threading;"
        "print(any(monkey.is_module_patched(name) for name in ('socket', 'time', 'threading')))",
    )
    assert (code, out) == (0, b"False\n"), err
