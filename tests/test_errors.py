"""The error tree: which class a status becomes, and which ``except`` catches it."""

from __future__ import annotations

import pytest

from butler_mesh import errors
from butler_mesh.errors import RemoteError, RequestFailed, failure, register_error

ALL = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_has_one_root_and_its_place_in_the_drawing(kind: type) -> None:
    assert issubclass(kind, errors.MeshError)
    assert kind.__name__ in str(errors.__doc__)


def test_a_handler_that_catches_every_exception_is_stopped_all_the_same() -> None:
    stopped = errors.Stopped(504, "deadline passed")
    assert not isinstance(stopped, Exception)
    assert (stopped.status, stopped.message, str(stopped)) == (504, "deadline passed", "deadline passed")


@pytest.mark.parametrize(
    ("status", "kind", "builtin"),
    [
        (400, errors.BadRequest, Exception),
        (404, errors.NotFound, AttributeError),
        (405, errors.MethodNotAllowed, Exception),
        (418, errors.BadRequest, Exception),
        (429, errors.Unavailable, Exception),
        (500, errors.RemoteError, Exception),
        (501, errors.RequestFailed, Exception),
        (502, errors.InstanceLost, Exception),
        (503, errors.Unavailable, Exception),
        (504, errors.DeadlineExceeded, TimeoutError),
        (302, errors.RequestFailed, Exception),
    ],
)
def test_a_status_becomes_the_error_that_stands_for_it(
    status: int, kind: type[RequestFailed], builtin: type[Exception]
) -> None:
    error = failure(status, "why", body={"a": 1}, retry_after_s=0.5)
    assert type(error) is kind
    assert isinstance(error, builtin)
    assert (error.status, error.message, error.body, error.retry_after_s) == (status, "why", {"a": 1}, 0.5)


def test_only_a_request_that_was_never_started_may_be_repeated_without_asking() -> None:
    assert failure(503, "").is_retry_safe
    assert failure(429, "").is_retry_safe
    assert not any(failure(status, "").is_retry_safe for status in (400, 404, 500, 502, 504))


@pytest.mark.parametrize("kind", [TypeError, KeyError, ValueError, ZeroDivisionError, FileNotFoundError])
def test_a_remote_builtin_error_is_caught_by_its_own_name(kind: type[Exception]) -> None:
    error = failure(500, "why", type=kind.__name__)
    assert isinstance(error, kind)
    assert isinstance(error, RemoteError)
    assert (error.type, str(error)) == (kind.__name__, "why")


@pytest.mark.parametrize(
    "name", ["StopIteration", "SystemExit", "KeyboardInterrupt", "GreenletExit", "UnicodeDecodeError", "Own"]
)
def test_a_remote_error_takes_on_no_type_that_ends_loops_or_processes_or_is_unknown(name: str) -> None:
    error = failure(500, "why", type=name)
    assert type(error) is RemoteError
    assert error.type == name


def test_every_remote_builtin_error_can_be_raised_and_shown() -> None:
    for kind in errors._MIXABLE:
        error = failure(500, "it's wrong", type=kind.__name__, traceback="Traceback: …")
        assert isinstance(error, kind)
        assert str(error) == "it's wrong\n\nOriginal Traceback: …"
        assert repr(error)


def test_an_error_without_a_message_says_its_status() -> None:
    assert str(failure(502, "")) == "status 502"
    assert str(errors.DeadlineExceeded()) == "deadline passed"


class ImageError(Exception):
    """One that two programs share."""


def test_a_registered_error_is_caught_as_what_it_is() -> None:
    assert type(failure(500, "no image", type="ImageError")) is RemoteError
    assert register_error(ImageError) is register_error(ImageError) is ImageError
    error = failure(500, "no image", type="ImageError", traceback="Traceback: x")
    assert isinstance(error, ImageError)
    assert isinstance(error, RemoteError)
    assert (error.type, error.message, error.args) == ("ImageError", "no image", ("no image",))
    assert "Original Traceback" in str(error)


class Picky(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Picky, "built from a text"),
        (StopIteration, "cannot stand"),
        (SystemExit, "cannot stand"),
        (errors.NotFound, "cannot stand"),
        (type("KeyError", (Exception,), {}), "name of .*KeyError.* already"),
    ],
)
def test_an_error_that_cannot_be_made_here_is_refused(kind: type[Exception], wrong: str) -> None:
    with pytest.raises(errors.UsageError, match=wrong):
        register_error(kind)
