"""Client: one multiplexed connection, shared by all greenlets of a process."""

from __future__ import annotations

import atexit
import os
import random
import secrets
import weakref
from collections.abc import Iterable, Mapping
from copy import copy
from types import TracebackType
from typing import Any, Self

import gevent
from gevent.hub import get_hub

from butler_mesh import deadlines, status, tracing
from butler_mesh.calls import STREAM_WINDOW, Answers, LazyResponse, ResponseStream, Waiter
from butler_mesh.clock import monotonic
from butler_mesh.connections.base import ALL, ClientConnection, OnReply
from butler_mesh.connections.registry import connect_client
from butler_mesh.errors import Closed, UsageError, WrongThread
from butler_mesh.messages import (
    IDEMPOTENCY_KEY,
    Body,
    ServiceRequest,
    ServiceResponse,
    decode_response,
    encode_request,
)
from butler_mesh.protocol.mesh import DURABLE, IDEMPOTENT, ONE_WAY, STREAM
from butler_mesh.router import Router, Target
from butler_mesh.rpc import Proxy
from butler_mesh.sealing import seal_of

RETRY_STATUSES = frozenset({status.TOO_MANY, status.UNAVAILABLE})
"""Never started: a retry is always sound."""
RETRY_IDEMPOTENT = RETRY_STATUSES | {status.INSTANCE_LOST}
"""May have run: a retry is sound for requests declared idempotent."""
MIN_PAUSE_S = 0.1
"""Before a retry where the far side asks for less: a queue that is full now is not empty at once."""
MANAGE_TIMEOUT_S = 2.0
"""For answers to a command: those who are well give one at once."""
DRAIN_S = 5.0
EXIT_DRAIN_S = 1.0

# Clients that a program may end without closing: what they were given to send must not end with it.
_open_clients: weakref.WeakSet[Client] = weakref.WeakSet()
# The connections of those that nobody holds any more, while they are closed.
_forgotten: dict[ClientConnection, gevent.Greenlet[..., Any] | None] = {}


class Client:
    """Sends requests to the services behind a router.

    ``address`` is an endpoint (``tcp://127.0.0.1:5555``), several of them, or a Router of this process;
    a service in it is the default of every call. ``timeout`` is in seconds. ``retries`` is how often a
    request is sent again where that is sound, within its deadline. ``persistent=False`` makes every call that
    is waited for on a connection of its own. ``passphrase`` seals requests for services that have the same
    one, and refuses replies (502) that do not prove it; it never travels.

    The connection is opened at the first call, by the process that makes it: a fork gets its own.
    A client belongs to the thread that uses it first; from another one calls raise WrongThread.
    """

    def __init__(
        self,
        address: str | Iterable[str] | Router,
        *,
        timeout: float = deadlines.DEFAULT_TIMEOUT_S,
        retries: int = 0,
        persistent: bool = True,
        connect_timeout: float | None = None,
        passphrase: str | bytes | None = None,
    ) -> None:
        self._target = Target(address)
        self.service = self._target.service
        self.timeout = timeout
        self.retries = retries
        self.persistent = persistent
        self._options: dict[str, Any] = {"seal": seal_of(passphrase)}
        if connect_timeout is not None:
            self._options["connect_timeout_s"] = connect_timeout
        self._connection: ClientConnection | None = None
        self._pid = 0
        self._hub: object = None
        # Closes the connection of a client that was dropped without ``close``.
        self._finalizer: weakref.finalize[Any, Client] | None = None
        self._is_closed = False

    @property
    def is_sealed(self) -> bool:
        """Whether it has a passphrase."""
        return self._options["seal"] is not None

    @property
    def raw(self) -> Any:
        """pika's connection, for an ``amqp://`` address and while there is one; else None.

        It is shared with every call: open channels of your own, and run nothing that blocks in its callbacks.
        """
        return None if self._connection is None else self._connection.raw

    # --- requests -----------------------------------------------------------------------------

    def request(
        self,
        service: str | None,
        path: str = "/",
        arguments: Mapping[str, Any] | None = None,
        *,
        method: str = "request",
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> ServiceResponse:
        """Send a request and wait for its response, whatever the status.

        ``service`` None or '' means the address's own, or, where it has none, whoever owns the path.
        ``body`` is JSON, bytes or a list of bytes. Only this greenlet waits. Failures of the mesh are
        responses as well: 404 503 502 504. Raises NotSerializable, UsageError, and whatever the
        greenlet is killed with (the request is then cancelled).
        """
        request = ServiceRequest(path, method, arguments, headers, body)
        return self.send(service, request, timeout=timeout, idempotent=idempotent)

    def send(
        self,
        service: str | None,
        request: ServiceRequest,
        *,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> ServiceResponse:
        """Send a request made before; otherwise as ``request``."""
        target, envelope, flags = self._prepare(service, request)
        if idempotent:
            flags |= IDEMPOTENT
        own = _finite(self.timeout if timeout is None else timeout)
        deadline = deadlines.deadline_for(own, monotonic())
        retries, is_own = self.retries, not self.persistent
        while True:
            connection = self._open() if is_own else self._connect()
            try:
                waiter = Waiter()
                call = connection.submit(target, envelope, deadline=deadline, flags=flags, on_reply=waiter)
                code, reply_flags, reply = waiter.wait(connection, call)
            finally:
                if is_own:
                    # There is nothing to drain: what was sent was answered, or given up.
                    connection.close(0.0)
            response = decode_response(code, reply_flags, reply, request.path)
            if retries <= 0 or code not in (RETRY_IDEMPOTENT if idempotent else RETRY_STATUSES):
                return response
            pause_s = _pause_s(response)
            if monotonic() + pause_s >= deadline:
                return response
            gevent.sleep(pause_s)
            retries -= 1

    def request_nowait(
        self,
        service: str | None,
        path: str = "/",
        arguments: Mapping[str, Any] | None = None,
        *,
        method: str = "request",
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = deadlines.NOWAIT_TIMEOUT_S,
        durable: bool = False,
    ) -> None:
        """Send a request that nobody answers. Returns at once; ``close`` reports those refused.

        A ``durable`` one is stored by a broker until it was served (``timeout`` is then its handler's), and
        this returns when it is safe there. Its header ``Idempotency-Key``, made where none is given, is the
        same each time that it comes. Raises NotFound where no durable service has that name,
        Unavailable, and UsageError for an address without a broker.
        """
        request = ServiceRequest(path, method, arguments, headers, body)
        self.send_nowait(service, request, timeout=timeout, durable=durable)

    def send_nowait(
        self,
        service: str | None,
        request: ServiceRequest,
        *,
        timeout: float = deadlines.NOWAIT_TIMEOUT_S,
        durable: bool = False,
    ) -> None:
        """Send a request made before; otherwise as ``request_nowait``."""
        if durable:
            # A copy, for the same request sent another time is another one.
            request = copy(request)
            if not any(name.lower() == IDEMPOTENCY_KEY.lower() for name in request.headers):
                request.headers = {**request.headers, IDEMPOTENCY_KEY: secrets.token_hex(16)}
        target, envelope, flags = self._prepare(service, request)
        deadline = monotonic() + _finite(timeout)
        if durable:
            connection, waiter = self._connect(), Waiter()
            if not connection.can_store:
                raise UsageError("durable requests are for amqp:// addresses")
            flags |= ONE_WAY | DURABLE
            call = connection.submit(target, envelope, deadline=deadline, flags=flags, on_reply=waiter)
            code, reply_flags, reply = waiter.wait(connection, call)
            decode_response(code, reply_flags, reply, request.path).raise_for_status()
            return
        self._connect().submit(target, envelope, deadline=deadline, flags=flags | ONE_WAY, on_reply=_ignore)

    def request_lazy(
        self,
        service: str | None,
        path: str = "/",
        arguments: Mapping[str, Any] | None = None,
        *,
        method: str = "request",
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> LazyResponse:
        """Send a request and return at once; the response is collected by ``.get()``."""
        request = ServiceRequest(path, method, arguments, headers, body)
        lazy = LazyResponse(path, self)
        lazy.bind(*self.submit(service, request, lazy.on_reply, timeout=timeout, idempotent=idempotent))
        return lazy

    def request_stream(
        self,
        service: str | None,
        path: str = "/",
        arguments: Mapping[str, Any] | None = None,
        *,
        method: str = "request",
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> ResponseStream:
        """Send a request and return an iterator over the parts of its reply.

        ``timeout`` runs to the first part and between parts.
        """
        request = ServiceRequest(path, method, arguments, headers, body)
        return self.send_stream(service, request, timeout=timeout)

    def send_stream(
        self, service: str | None, request: ServiceRequest, *, timeout: float | None = None
    ) -> ResponseStream:
        """Send a request made before; otherwise as ``request_stream``."""
        stream = ResponseStream(request.path, self)
        stream.bind(
            *self.submit(
                service, request, stream.on_reply, timeout=timeout, flags=STREAM, window=STREAM_WINDOW
            )
        )
        return stream

    def submit(
        self,
        service: str | None,
        request: ServiceRequest,
        on_reply: OnReply,
        *,
        timeout: float | None = None,
        idempotent: bool = False,
        flags: int = 0,
        window: int = 0,
        inherit: bool = True,
    ) -> tuple[ClientConnection, Any]:
        """Send a request whose replies are called back from the hub: what the calls above build on.

        Without ``inherit`` the deadline is the request's own, not the present handler's.
        """
        target, envelope, own_flags = self._prepare(service, request)
        own, now = _finite(self.timeout if timeout is None else timeout), monotonic()
        deadline = deadlines.deadline_for(own, now) if inherit else now + own
        flags |= own_flags | (IDEMPOTENT if idempotent else 0)
        connection = self._connect()
        call = connection.submit(
            target, envelope, deadline=deadline, flags=flags, on_reply=on_reply, window=window
        )
        return connection, call

    # --- butler's ways ------------------------------------------------------------------------

    def rpc(self, service: str | None = None) -> Proxy:
        """Return a proxy: ``client.rpc('api.images').resize('a.jpg', size='1x1')``.

        Its calls return the function's value and raise its exceptions (``RemoteError`` that is also of
        the remote type where that is built in). ``timeout`` and ``close`` are the proxy's own.
        """
        return Proxy(self, service)

    def call(self, service: str | None, request: Mapping[str, Any], *, timeout: float | None = None) -> Any:
        """Call a function by butler's dict: ``{'method': name, ...}`` with its arguments beside it,
        or in ``args`` and ``kwargs``. Returns its value, raises its exceptions."""
        response = self.send(service, ServiceRequest.from_call(request), timeout=timeout)
        response.raise_for_status()
        return response.body

    def describe(self, service: str | None = None, path: str = "/", *, timeout: float | None = None) -> Any:
        """Return what a service offers: paths, methods, signatures, docstrings."""
        response = self.request(service, path, method="options", timeout=timeout, idempotent=True)
        response.raise_for_status()
        return response.body

    # --- management ---------------------------------------------------------------------------

    def manage(
        self,
        service: str | None,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        wid: str | None = None,
        timeout: float = MANAGE_TIMEOUT_S,
    ) -> Answers:
        """Send a command to every instance of a service, or to that of a ``wid``; return an iterator over
        (wid, response), in the order they answer.

        All have ``ping``, ``stats`` and ``kill``; ``arguments`` are those of the command's function. A
        command reaches an instance also when it takes no more requests. Over ``amqp://`` nobody knows how
        many there are: the iterator ends when ``timeout`` seconds have passed. Raises (at its end) NotFound
        where there is no such service or instance, DeadlineExceeded where nobody has answered, and what
        was said (as BadRequest, for a passphrase) where all have refused.
        """
        target = service or self.service
        if not target and not wid:
            raise UsageError("a command is for a service, or for one instance by its wid")
        request = ServiceRequest(f"/{command}", arguments=arguments)
        _, envelope, flags = self._prepare(target, request)
        deadline = deadlines.deadline_for(_finite(timeout), monotonic())
        answers, connection = Answers(request.path, self), self._connect()
        call = connection.submit(
            target or "",
            envelope,
            deadline=deadline,
            flags=flags,
            on_reply=answers.on_reply,
            scope=wid or ALL,
        )
        answers.bind(connection, call)
        return answers

    # --- life ---------------------------------------------------------------------------------

    def close(self, drain: float = DRAIN_S) -> list[tuple[int, str]]:
        """Wait up to ``drain`` seconds until everything sent has arrived, then close.

        Returns (status, message) of the one-way requests that were refused (the latest 100).
        """
        self._is_closed = True
        return self._disconnect(drain)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, service: str | None, request: ServiceRequest) -> tuple[str, bytes, int]:
        trace = tracing.current.get()
        if trace and tracing.HEADER not in request.headers:
            request.headers = {**request.headers, tracing.HEADER: trace}
        envelope, flags = encode_request(request)
        return service or self.service or request.path, envelope, flags

    def _connect(self) -> ClientConnection:
        connection = self._connection
        if connection is not None:
            if get_hub() is self._hub:
                return connection
            if self._pid == os.getpid():
                self._check_thread()
            connection.abandon()
        self._connection = connection = self._open()
        self._pid, self._hub = os.getpid(), get_hub()
        _open_clients.add(self)
        self._finalizer = weakref.finalize(self, _close_forgotten, connection, self._pid, get_hub())
        self._finalizer.atexit = False
        return connection

    def _open(self) -> ClientConnection:
        if self._is_closed:
            raise Closed("the client is closed")
        return connect_client(self._target.resolve(), **self._options)

    def _disconnect(self, drain_s: float = DRAIN_S) -> list[tuple[int, str]]:
        connection, self._connection = self._connection, None
        if connection is None:
            return []
        if self._pid != os.getpid():
            connection.abandon()
            return []
        self._check_thread()
        if self._finalizer is not None:
            self._finalizer.detach()
        return connection.close(drain_s)

    def _check_thread(self) -> None:
        if get_hub() is not self._hub:
            raise WrongThread(
                "a Client belongs to one thread: make one for each; a web server runs gevent's workers "
                "(gunicorn -k gevent, flask run --without-threads)"
            )


def _disown_all() -> None:
    # Asking for the process's number would cost each call a system call.
    for client in _open_clients:
        client._hub = None


os.register_at_fork(after_in_child=_disown_all)


@atexit.register
def _close_clients() -> None:
    for client in list(_open_clients):
        if client._pid == os.getpid() and client._hub is get_hub():
            client.close(EXIT_DRAIN_S)
    if _forgotten:
        # Those that a callback has yet to spawn; then what they have to send.
        gevent.sleep(0)
        gevent.joinall([closing for closing in _forgotten.values() if closing is not None], EXIT_DRAIN_S)


def _close_forgotten(connection: ClientConnection, pid: int, hub: Any) -> None:
    """Close a dropped client's connection in its own hub: garbage may be collected in any thread."""
    if pid == os.getpid() and not hub.dead:
        _forgotten[connection] = None
        hub.loop.run_callback_threadsafe(_spawn_closing, connection)


def _spawn_closing(connection: ClientConnection) -> None:
    closing = _forgotten[connection] = gevent.spawn(connection.close, EXIT_DRAIN_S)
    closing.rawlink(lambda _: _forgotten.pop(connection, None))


def _pause_s(response: ServiceResponse) -> float:
    """How long to wait before a retry: never less than the far side asks for, and up to half as long
    again, so that callers spread."""
    asked = response.failure().retry_after_s
    return max(MIN_PAUSE_S, MIN_PAUSE_S if asked is None else asked) * random.uniform(1.0, 1.5)


def _finite(timeout: float) -> float:
    if not timeout < deadlines.NEVER:  # infinity, and NaN
        raise UsageError("every call has a deadline: a timeout is a finite number of seconds")
    return timeout


def _ignore(kind: int, status: int, flags: int, envelope: bytes) -> None:
    pass
