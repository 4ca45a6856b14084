"""Service: functions and objects that answer requests."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import gevent
from gevent.event import AsyncResult
from gevent.queue import Empty, SimpleQueue

from butler_mesh.clock import monotonic
from butler_mesh.connections.base import MANAGEMENT, Delivery, InstanceConnection
from butler_mesh.connections.registry import connect_instance
from butler_mesh.errors import (
    BadArguments,
    InstanceLost,
    MethodNotAllowed,
    NotFound,
    RouteCollision,
    Stopped,
    UsageError,
)
from butler_mesh.lifetime import GRACE_S, Lifetime
from butler_mesh.management import Management
from butler_mesh.messages import DEFAULT_METHOD, ServiceRequest, ServiceResponse
from butler_mesh.protocol.instance import CREDIT
from butler_mesh.replies import answer
from butler_mesh.router import Router, Target
from butler_mesh.sealing import seal_of
from butler_mesh.sink import DEFAULT_SINK, SinkSender

F = TypeVar("F", bound=Callable[..., Any])

RECV_PAUSE_S = 1.0
"""How long ``recv`` waits before it returns None: the rhythm of butler's manual loops."""


class Service:
    """An instance of a service made of plain functions: each answers under ``/`` and its name.

    A function is called with the request's arguments as keywords (or a proxy's own arguments); a body
    comes first. What it returns is the reply's body: any JSON value, bytes, a list of bytes, or an
    iterator, which is sent part by part. What it raises is the reply's failure.

    With ``frames`` a request is nothing but its frames, as Majordomo has it: the function registered as
    ``'/'`` is called with them, those of a request in JSON being one.

    ``credit`` is how many requests run at once, ``tracebacks=False`` keeps tracebacks at home. With a
    ``passphrase`` only clients that have the same one are served: others get 401. A ``durable`` service
    (``amqp://``) also serves the requests that a broker has stored for it, each at least once. With
    ``allow_eval`` whoever may send it a command may have any Python expression evaluated in it. With
    ``independent`` the brokers of its address are no cluster: it serves all of them at once.
    """

    def __init__(
        self,
        address: str | Iterable[str] | Router,
        name: str | None = None,
        *,
        credit: int = CREDIT,
        grace: float = GRACE_S,
        tracebacks: bool = True,
        sink: str = DEFAULT_SINK,
        frames: bool = False,
        register_secret: str | bytes | None = None,
        passphrase: str | bytes | None = None,
        pooled_greenlets: bool = True,
        durable: bool = False,
        allow_eval: bool = False,
        independent: bool = False,
    ) -> None:
        self._target = Target(address)
        self.name = name or self._target.service
        self.grace = grace
        self.tracebacks = tracebacks
        self.sink = SinkSender(sink)
        self._takes_frames = frames
        self._options: dict[str, Any] = {
            "credit": credit,
            "register_secret": register_secret,
            "seal": seal_of(passphrase),
            "pooled_greenlets": pooled_greenlets,
            "durable": durable,
            "independent": independent,
        }
        self._functions: dict[str, Callable[..., Any]] = {}
        self.management = Management(self, self._leave, allow_eval=allow_eval)
        self._connection: InstanceConnection | None = None
        self._pid = 0
        # The router of the brokerless form, which this service owns.
        self._own_router: Router | None = None
        self._lifetime = Lifetime()
        # The manual loop: requests not yet taken, and where the answer to the last one goes.
        self._inbox: SimpleQueue[tuple[ServiceRequest, AsyncResult[Any]]] | None = None
        self._owed: AsyncResult[Any] | None = None

    @classmethod
    def bind(cls, endpoint: str, name: str | None = None, **options: Any) -> Service:
        """Return a service that clients connect to without a router between: it holds one itself.

        Its port takes clients only. Raises AddressInUse.
        """
        router = Router()
        try:
            router.frontend.bind(endpoint)
        except BaseException:
            router.stop()
            raise
        service = cls(router, name, **options)
        service._own_router = router
        return service

    # --- functions ----------------------------------------------------------------------------

    def register_function(self, function: Callable[..., Any], name: str | None = None) -> None:
        """Answer ``/name`` (the function's own by default) by this function.

        The name may be a path, too: ``'/'`` takes the requests of Majordomo clients. Raises
        RouteCollision when it is taken.
        """
        path = "/" + (name or function.__name__).removeprefix("/")
        if path in self._functions:
            raise RouteCollision(f"{path} is answered by {self._functions[path]!r} already")
        self._functions[path] = function

    @overload
    def function(self, function: F) -> F: ...
    @overload
    def function(self, function: str) -> Callable[[F], F]: ...
    def function(self, function: F | str) -> F | Callable[[F], F]:
        """Register a function, as a decorator: ``@service.function`` or ``@service.function('name')``."""
        if isinstance(function, str):
            name = function

            def decorate(actual: F) -> F:
                self.register_function(actual, name)
                return actual

            return decorate
        self.register_function(function)
        return function

    def register(self, obj: object) -> None:
        """Expose the public methods of an object: those whose name does not begin with ``_``."""
        # Looked at without running anything: a property is not called to see whether it is a method.
        for name, _ in inspect.getmembers_static(obj, inspect.isroutine):
            if not name.startswith("_"):
                self.register_function(getattr(obj, name), name)

    @overload
    def command(self, function: F) -> F: ...
    @overload
    def command(self, function: str) -> Callable[[F], F]: ...
    def command(self, function: F | str) -> F | Callable[[F], F]:
        """Register a command, as a decorator: ``@service.command`` or ``@service.command('name')``.

        It is for those who manage the service (``Client.manage``), and runs beside its requests, also where
        all credit is used up. Raises RouteCollision when the name is taken.
        """
        return self.management.command(function)

    # --- life ---------------------------------------------------------------------------------

    @property
    def raw(self) -> Any:
        """pika's connection, for an ``amqp://`` address and while there is one; else None."""
        return None if self._connection is None else self._connection.raw

    @property
    def wid(self) -> str:
        """The name of this instance, which no other has; '' until it was started."""
        return self.management.wid

    def start(self) -> Self:
        """Register and answer in the background; returns the service."""
        if self._connection is not None and self._pid != os.getpid():
            # A fork's: its parent goes on with it, and this process registers for itself.
            self._connection.abandon()
            self._connection = None
        if self._connection is None:
            self._pid = os.getpid()
            paths = () if self.name else tuple(self._functions)
            if self._takes_frames and self._inbox is None and set(self._functions) != {"/"}:
                raise UsageError("a service of frames has one function, registered as '/'")
            if not self.name and not paths:
                raise UsageError("a service needs a name, or functions whose paths it answers")
            self._connection = connect_instance(self._target.resolve(), self.name, paths, **self._options)
            self.management.wid = self._connection.wid
            self._connection.serve(self._deliver)
        return self

    def run(self) -> None:
        """Answer until ``stop``, SIGTERM or SIGINT; then finish what runs, within ``grace``, and leave.

        A second signal ends the process at once.
        """
        self._lifetime.run(self.start, self.close)

    def stop(self) -> None:
        """Make ``run`` return, after it has drained."""
        self._lifetime.stop()

    def close(self) -> None:
        """Take no more, finish what runs within ``grace`` seconds, say goodbye, close.

        What ``recv`` has handed out and not answered is answered 502.
        """
        if self._owed is not None:
            self._owed.set_exception(InstanceLost("the service stopped", status=502))
            self._owed = None
        until = monotonic() + self.grace
        own_router, self._own_router = self._own_router, None
        if own_router is not None:
            # What waits in our own router can go nowhere else: it is finished first.
            own_router.node.drain(self.grace)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(max(0.0, until - monotonic()))
        self.sink.close()
        if own_router is not None:
            own_router.stop()

    def wait_until_registered(self, timeout: float = 5.0) -> bool:
        """Wait until a router has confirmed us; False when none did within ``timeout`` seconds."""
        return self._connection is not None and self._connection.wait_until_registered(timeout)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def recv(self, reply: Any = None, timeout: float = RECV_PAUSE_S) -> ServiceRequest | None:
        """Answer the request taken before (if any) with ``reply``, and return the next one.

        Returns None when none came within ``timeout`` seconds. A service that is read so has no
        functions and takes one request at a time.
        """
        if self._inbox is None:
            self._inbox = SimpleQueue()
            self._options["credit"] = 1
            self.start()
        if self._owed is not None:
            self._owed.set(reply)
            self._owed = None
        until = monotonic() + timeout
        while True:
            try:
                request, owed = self._inbox.get(timeout=max(0.0, until - monotonic()))
            except Empty:
                return None
            if not owed.ready():
                self._owed = owed
                return request

    # --- requests -----------------------------------------------------------------------------

    def _deliver(self, delivery: Delivery) -> bool:
        if delivery.target.startswith(MANAGEMENT):
            return self.management.answer(delivery, tracebacks=self.tracebacks)
        is_well = answer(delivery, self._respond, tracebacks=self.tracebacks, frames=self._takes_frames)
        return self.management.note(is_well)

    def _leave(self) -> None:
        """End as told by a command: ``run`` returns; without one it is closed, in a greenlet of its own."""
        if self._lifetime.is_running:
            self._lifetime.stop()
        else:
            gevent.spawn(self.close)

    def _respond(self, request: ServiceRequest) -> ServiceResponse:
        if self._inbox is not None:
            return ServiceResponse(body=self._await_loop(self._inbox, request))
        if request.method != DEFAULT_METHOD and request.method.lower() == "options":
            return ServiceResponse(body=self._describe(request.path))
        return ServiceResponse(body=self._call(request))

    def _call(self, request: ServiceRequest) -> Any:
        function = self._functions.get(request.path)
        if function is None:
            raise NotFound(f"{self.name or 'the service'} has no {request.path}", status=404)
        if request.method != DEFAULT_METHOD and request.method.lower() != DEFAULT_METHOD:
            error = MethodNotAllowed(f"{request.method} is not one of request, options", status=405)
            error.headers = {"Allow": "REQUEST, OPTIONS"}
            raise error
        body = request.raw_body
        args: Iterable[Any] = request.args
        if self._takes_frames:
            args = body
        elif body is not None:
            first = body if isinstance(body, list) and body and isinstance(body[0], bytes) else [body]
            args = [*first, *args]
        kwargs: Mapping[str, Any] = request.arguments or request.kwargs
        if request.arguments and request.kwargs:
            kwargs = {**request.arguments, **request.kwargs}
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            # The call itself, or something in it? Only a failure asks, so that the rest need not pay.
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:
                misfit = _misfit(function, args, kwargs)
                if misfit:
                    raise BadArguments(f"{request.path}: {misfit}", status=422) from error
            raise

    def _describe(self, path: str) -> dict[str, Any]:
        if path in self._functions:
            return _description(self._functions[path])
        if path != "/":
            raise NotFound(f"{self.name or 'the service'} has no {path}", status=404)
        paths = {name: _description(function) for name, function in sorted(self._functions.items())}
        return {"service": self.name, "paths": paths}

    def _await_loop(
        self, inbox: SimpleQueue[tuple[ServiceRequest, AsyncResult[Any]]], request: ServiceRequest
    ) -> Any:
        answer: AsyncResult[Any] = AsyncResult()
        inbox.put((request, answer))
        try:
            return answer.get()
        except Stopped:
            # Nobody waits any more: should it be in the inbox still, ``recv`` passes over it.
            answer.set()
            raise


def _misfit(function: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
    """Return why the arguments do not fit the function; '' when they do, or nobody can tell."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return ""


def _description(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        signature = str(inspect.signature(function))
    except (TypeError, ValueError):
        signature = "(...)"
    return {
        "methods": ["request", "options"],
        "signature": signature,
        "doc": inspect.getdoc(function) or "",
    }
