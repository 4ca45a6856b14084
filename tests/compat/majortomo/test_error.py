"""majortomo's errors: what may be caught as what, and what they carry."""

from __future__ import annotations

import pytest

from butler_mesh.compat import majortomo
from butler_mesh.compat.majortomo import error

KINDS = [error.ProtocolError, error.Disconnected, error.StateError, error.Timeout]


def test_the_module_is_reached_by_the_name_that_programs_use() -> None:
    """``majortomo.error.Timeout``, as the documented loops have it."""
    assert majortomo.error is error
    assert majortomo.error.Timeout is error.Timeout


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_an_Error_and_a_RuntimeError(kind: type[error.Error]) -> None:
    """Whatever a program catches, its message is the one it was raised with."""
    with pytest.raises(error.Error, match="what happened") as raised:
        raise kind("what happened")
    assert isinstance(raised.value, RuntimeError)
    assert str(raised.value) == "what happened"


def test_Timeout_is_a_TimeoutError_too_and_no_other_is() -> None:
    """``except TimeoutError`` takes it, and nothing that a retry would not help."""
    assert [kind for kind in KINDS if issubclass(kind, TimeoutError)] == [error.Timeout]


@pytest.mark.parametrize("kind", KINDS)
def test_each_carries_the_status_that_the_mesh_gave_or_0(kind: type[error.Error]) -> None:
    """A program that cares may tell a lost worker from a slow one."""
    assert kind().status == 0
    assert kind("lost", status=502).status == 502
    assert str(kind("lost", status=502)) == "lost"


def test_none_of_them_is_another() -> None:
    """Each is caught by its own name."""
    for kind in KINDS:
        assert [other for other in KINDS if issubclass(kind, other)] == [kind]
