"""Every error of the mesh, in one tree.

::

    MeshError
    ├── UsageError            local misuse: fix the program, never retry
    │   ├── AddressError          an address that cannot be parsed (also ValueError)
    │   ├── AddressInUse          somebody else is bound there (also OSError)
    │   ├── RouteCollision        two routes claim the same requests
    │   ├── NotSerializable       a value JSON cannot hold (also TypeError)
    │   ├── WrongThread           used from another thread or hub than it belongs to
    │   └── Closed                used after close()
    ├── ProtocolError         a peer sent what no peer may send
    └── RequestFailed         one request's failure; has ``.status``
        ├── BadRequest            400 401 403 409 413 and other 4xx
        │   ├── BadArguments          422 (also TypeError: they do not fit the function)
        │   ├── NotFound              404 (also AttributeError: the remote has no such name)
        │   └── MethodNotAllowed      405
        ├── RemoteError           500: the handler raised; ``.type`` and ``.traceback`` tell what
        ├── InstanceLost          502: started, then its instance or router went away
        ├── Unavailable           429 503: not started, ``.retry_after_s`` says when to try again
        └── DeadlineExceeded      504 (also TimeoutError)

    Stopped (BaseException)   thrown into a handler whose caller no longer waits

A retry is sound where ``is_retry_safe`` says so: the request was never started.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

E = TypeVar("E", bound=Exception)


class MeshError(Exception):
    """Root of everything this package raises on purpose."""

    is_retry_safe: ClassVar[bool] = False


class UsageError(MeshError):
    """The program asked for something that cannot work."""


class AddressError(UsageError, ValueError):
    """An address or endpoint that cannot be parsed."""


class AddressInUse(UsageError, OSError):
    """Another process (or another router of this one) is bound to the endpoint."""


class RouteCollision(UsageError):
    """Two routes of one application claim the same requests."""


class NotSerializable(UsageError, TypeError):
    """A value that JSON cannot hold was given as a body or an argument."""


class WrongThread(UsageError):
    """A client was used from a thread other than the one it belongs to."""


class Closed(UsageError):
    """The client, service or router was closed."""


class ProtocolError(MeshError):
    """A peer's bytes broke the wire's rules; carries no peer bytes but by ``repr``."""


class RequestFailed(MeshError):
    """A request ended with a status outside 200–299.

    ``status`` is the code, ``message`` the sentence that came with it, ``body`` whatever the
    handler sent along (None for failures that the mesh itself produced).
    """

    def __init__(
        self,
        message: str = "",
        *,
        status: int = 500,
        body: Any = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.body = body
        self.retry_after_s = retry_after_s
        # What goes with the status, where this is raised to be a reply (a 405's ``Allow``).
        self.headers: dict[str, str] = {}
        # Whether it stands for a reply to a call of ours, as opposed to being made as a reply.
        self.is_received = False

    def __str__(self) -> str:
        return self.message or f"status {self.status}"


class BadRequest(RequestFailed):
    """The service refused the request as it was put."""


class BadArguments(BadRequest, TypeError):
    """The arguments do not fit the function."""


class NotFound(BadRequest, AttributeError):
    """No such service, or no such path in it."""


class MethodNotAllowed(BadRequest):
    """The path exists, the method does not; ``headers['Allow']`` lists those that do."""


class InstanceLost(RequestFailed):
    """The instance or router died while it had the request: it may or may not have run."""


class Unavailable(RequestFailed):
    """Nobody was free, or a queue was full; the request was never started."""

    is_retry_safe = True


class DeadlineExceeded(RequestFailed, TimeoutError):
    """The deadline passed before a reply came."""

    def __init__(self, message: str = "deadline passed", *, status: int = 504, **rest: Any) -> None:
        super().__init__(message, status=status, **rest)


class RemoteError(RequestFailed):
    """The handler raised. ``type`` is the remote exception's class name, ``args`` its arguments'
    text, ``traceback`` the remote traceback as text ('' where tracebacks are switched off).

    For built-in exception types the raised object is also of that type, so that
    ``except TypeError`` works across the mesh.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status: int = 500,
        body: Any = None,
        retry_after_s: float | None = None,
        type: str = "",
        traceback: str = "",
    ) -> None:
        super().__init__(message, status=status, body=body, retry_after_s=retry_after_s)
        self.type = type
        self.traceback = traceback

    def __str__(self) -> str:
        if not self.traceback:
            return super().__str__()
        return f"{self.message}\n\nOriginal {self.traceback}"


class Stopped(BaseException):
    """Ends a handler whose deadline passed (504), whose caller gave up (499) or whose service stops (502).

    A BaseException, so that ``except Exception`` in a handler does not keep it running for nobody; clean
    up in ``finally``.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


# Built-in types that a remote failure may take on here: Exception subclasses that can be built from
# one string. Never StopIteration (it ends loops) nor BaseException's kin (they end processes).
_MIXABLE: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    FloatingPointError,
    ImportError,
    IndexError,
    KeyError,
    LookupError,
    MemoryError,
    ModuleNotFoundError,
    NameError,
    NotImplementedError,
    OSError,
    OverflowError,
    PermissionError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    InterruptedError,
    ProcessLookupError,
    BlockingIOError,
    ConnectionError,
    ConnectionAbortedError,
    ConnectionRefusedError,
    ConnectionResetError,
    BrokenPipeError,
    RecursionError,
    ReferenceError,
    RuntimeError,
    SyntaxError,
    SystemError,
    TimeoutError,
    TypeError,
    UnboundLocalError,
    ValueError,
    ZeroDivisionError,
)
_mixed: dict[str, type[RemoteError]] = {
    kind.__name__: type(kind.__name__, (RemoteError, kind), {"__module__": __name__}) for kind in _MIXABLE
}


def register_error(kind: type[E]) -> type[E]:
    """Let failures of this name, raised far away, be caught here as ``kind``; a decorator, too.

    For exception classes that both sides share: a remote ``ImageError`` is then a RemoteError that is
    also an ``ImageError``. Nothing of the remote object travels but its name and text, so ``kind`` must
    buildable from one string, and is built once here to see. Raises UsageError where it is not, for a name
    that another class has, and for classes that no caller should meet by surprise (StopIteration, our own).
    """
    taken = _mixed.get(kind.__name__)
    base = None if taken is None else taken.__bases__[-1]
    if base is not None and (base.__module__, base.__qualname__) == (kind.__module__, kind.__qualname__):
        taken = None  # defined anew, by a reload or in a notebook
    is_ours = issubclass(kind, MeshError | StopIteration | StopAsyncIteration)
    if taken is not None:
        raise UsageError(f"{kind.__name__} is the name of {base} already")
    if is_ours or not issubclass(kind, Exception):
        raise UsageError(f"{kind.__name__} cannot stand for a remote failure")
    try:
        mixed = type(kind.__name__, (RemoteError, kind), {"__module__": kind.__module__})
        mixed("text", type=kind.__name__)
    except Exception as error:
        raise UsageError(f"{kind.__name__} cannot be built from a text: {error}") from error
    _mixed[kind.__name__] = mixed
    return kind


_BY_STATUS: dict[int, type[RequestFailed]] = {
    404: NotFound,
    405: MethodNotAllowed,
    422: BadArguments,
    500: RemoteError,
    429: Unavailable,
    502: InstanceLost,
    503: Unavailable,
    504: DeadlineExceeded,
}


def failure(
    status: int,
    message: str,
    *,
    body: Any = None,
    retry_after_s: float | None = None,
    type: str = "",
    traceback: str = "",
) -> RequestFailed:
    """Return the exception that stands for a reply of ``status``, ready to raise."""
    if type:
        kind = _mixed.get(type, RemoteError)
        return kind(
            message,
            status=status,
            body=body,
            retry_after_s=retry_after_s,
            type=type,
            traceback=traceback,
        )
    found = _BY_STATUS.get(status)
    if found is None:
        found = BadRequest if 400 <= status < 500 else RequestFailed
    return found(message, status=status, body=body, retry_after_s=retry_after_s)
