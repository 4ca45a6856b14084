"""One connection to a RabbitMQ cluster that comes back: what both sides of ``amqp://`` stand on.

The hosts of an address are tried in turn; when all have failed, after a pause that grows to two seconds.
What was on its way is not this file's affair: its users are told when the connection is gone.
"""

from __future__ import annotations

import logging
import os
import random
import re
import ssl
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from gevent.event import Event
from gevent.hub import get_hub
from pika import BasicProperties, ConnectionParameters, PlainCredentials, SSLOptions
from pika.adapters.gevent_connection import GeventConnection
from pika.channel import Channel as PikaChannel
from pika.exceptions import AuthenticationError, InvalidFrameError
from pika.frame import Header
from pika.spec import FRAME_HEADER

from butler_mesh import status
from butler_mesh.clock import monotonic
from butler_mesh.connections.amqp.loop import HubServices
from butler_mesh.connections.amqp.messages import UNREADABLE
from butler_mesh.environment import secret
from butler_mesh.errors import UsageError

PASSWORD = "BUTLER_MESH_AMQP_PASSWORD"
"""Environment variable with the password of a user whom an address names without one; with ``_FILE``
after it, the file that holds it. One of the two is set."""
NO_PASSWORD = f"no password was given: {PASSWORD} or ..._FILE"
CA, CERTIFICATE, KEY = (f"BUTLER_MESH_AMQP_{word}" for word in ("CA", "CERTIFICATE", "KEY"))
"""Environment variables with files for ``amqps:``: whom to trust, and who we are where the broker asks."""

HEARTBEAT_S = 10
"""A frozen broker is given up after 15 to 30 s; a handler may burn that long before it is."""
HANDSHAKE_S = 5.0
"""From the first packet to an open connection: milliseconds where anybody listens."""
SOCKET_S = 2.0
"""Patience with a host that says nothing: calls wait 3 s for a connection, so a second one fits in."""
PAUSE_S, MAX_PAUSE_S = 0.05, 2.0
"""Before the hosts are tried again."""
SHORT_LIFE_S = 1.0
"""A connection that ends so soon counts as one that failed."""
MAX_MESSAGE_BYTES = 512 * 1024 * 1024
"""RabbitMQ takes none that is longer."""
BATCH_BYTES = 64 * 1024
"""Over this a frame goes out by itself, without being copied to the others of its turn."""

_FRAME, _BODY_SIZE = struct.Struct(">BHL"), struct.Struct(">4xQ")
_SAID = re.compile(r"ConnectionClosedByBroker: \((403|530)\) (.*)")
"""ACCESS_REFUSED for a user or password, NOT_ALLOWED for a vhost."""

_log = logging.getLogger("butler_mesh.connections")

# pika reports every refused connection several times, as errors, with tracebacks. Here that is a
# warning of one line; whoever wants pika's account sets the level of its logger.
if logging.getLogger("pika").level == logging.NOTSET:
    logging.getLogger("pika").setLevel(logging.CRITICAL)


class Channel(PikaChannel):
    """pika's channel, but ``on_stray`` gets the messages of a consumer that was cancelled meanwhile.

    Some come before the broker's word on the cancellation, which pika rejects: that marks them as perhaps
    begun. Some come after it, which pika drops: they would hang until the channel closes.
    """

    on_stray: Callable[[Any, Any, Any, bytes], None] | None = None

    def _on_deliver(self, method_frame: Any, header_frame: Any, body: bytes) -> None:
        tag = method_frame.method.consumer_tag
        if self.on_stray is not None and (tag not in self._consumers or tag in self._cancelled):
            self.on_stray(self, method_frame.method, header_frame.properties, body)
        else:
            super()._on_deliver(method_frame, header_frame, body)


class Connection(GeventConnection):
    """pika's connection, but what one turn of the loop produces leaves in one write.

    pika writes a message in three: each a system call and a packet.
    """

    def __init__(self, parameters: ConnectionParameters, services: HubServices, **options: Any) -> None:
        self._batch: list[bytes] = []
        self._run_callback = get_hub().loop.run_callback
        self._services = services
        super().__init__(parameters, custom_ioloop=services, **options)

    def _create_channel(self, channel_number: int, on_open_callback: Callable[[Any], Any] | None) -> Channel:
        return Channel(self, channel_number, on_open_callback)

    def _read_frame(self) -> Any:
        """Read a frame as pika does, but what it cannot decode of a message ends that message only.

        Otherwise the broker would hand it out again to the next connection, which would end as well: a time
        beyond the year 9999 is enough, or a deep table.
        """
        buffer = self._frame_buffer
        kind, channel, size = _FRAME.unpack_from(buffer) if len(buffer) >= _FRAME.size else (0, 0, 0)
        if size > self.params.frame_max:
            raise InvalidFrameError(f"a frame of {size} bytes")
        try:
            consumed, found = super()._read_frame()
        except Exception:
            if kind != FRAME_HEADER:
                raise
            length = _BODY_SIZE.unpack_from(buffer, _FRAME.size)[0]
            unreadable = BasicProperties(type=UNREADABLE)  # type: ignore[no-untyped-call]  # pika's slip
            consumed, found = _FRAME.size + size + 1, Header(channel, length, unreadable)
        if isinstance(found, Header) and found.body_size > MAX_MESSAGE_BYTES:
            raise InvalidFrameError(f"a message of {found.body_size} bytes")
        return consumed, found

    def _adapter_emit_data(self, data: bytes) -> None:
        batch = self._batch
        if not batch:
            self._run_callback(self._write_batch)
        batch.append(data)

    def _write_batch(self) -> None:
        batch, transport = self._batch, self._transport
        self._batch = []
        if transport is None:
            return
        if sum(map(len, batch)) <= BATCH_BYTES:
            transport.write(b"".join(batch))
        else:
            for data in batch:
                transport.write(data)
        self._services.write_now()

    @property
    def unsent_bytes(self) -> int:
        """What was published and is not with the kernel yet."""
        transport = self._transport
        waiting = sum(map(len, self._batch))
        return waiting if transport is None else waiting + transport.get_write_buffer_size()


def has_transient_queues(connection: Connection) -> bool:
    """Tell whether the broker has queues that go with their node, to be declared anew on another one.

    A durable queue of one node cannot: it is that node's while it is down, and out of reach. RabbitMQ 4 is
    giving up the other kind.
    """
    version = str((connection.server_properties or {}).get("version", ""))
    return version.partition(".")[0] in ("2", "3")


class User(Protocol):
    """Who has a place on a connection. All of it is called from the hub."""

    def up(self, connection: Connection) -> None: ...
    def down(self, reason: str) -> None: ...
    def on_refused(self, status: int, reason: str) -> None: ...
    def on_unblocked(self) -> None: ...
    def on_fork(self) -> None: ...


class Keeper:
    """Keeps one connection open, until it is closed, and tells its users of it: when it is there, when that
    one is gone, when the broker wants none of ours (401 or 403), when it may be published on again."""

    def __init__(self, hosts: Sequence[ConnectionParameters]) -> None:
        self.users: dict[User, None] = {}
        self._hosts = hosts
        self._turn = -1
        self.connection: Connection | None = None
        # Whether the broker has asked us to publish nothing: it is short of memory or disk.
        self.is_blocked = False
        # The last refusal, until a connection is open.
        self.refusal: tuple[int, str] | None = None
        self._attempt: Connection | None = None
        self._services = HubServices()
        self._timer: Any = None
        self._failures = 0
        # How many in a row.
        self._refusals = 0
        self._opened_at = 0.0
        self._is_over = False
        self._gone = Event()

    def start(self) -> None:
        """Begin to connect."""
        self._connect()

    def close(self, timeout_s: float) -> None:
        """Send what was written, close, and wait for the broker's word on it, for as long as this."""
        self._is_over = True
        self._stop_timer()
        connection = self.connection
        if connection is not None and connection.is_open:
            connection.close()
            self._gone.wait(timeout_s)
        self.abandon()

    def abandon(self) -> None:
        """Let go of everything without a word."""
        self._is_over = True
        self._stop_timer()
        self._services.sever()
        attempt, self._attempt = self._attempt, None
        if attempt is not None and not (attempt.is_closed or attempt.is_closing or attempt.is_open):
            with suppress(Exception):
                attempt.close()
        self.connection = None

    @property
    def where(self) -> str:
        """Host, port and vhost of the present attempt, for logs: nobody's name or password."""
        host = self._hosts[self._turn]
        return f"{host.host}:{host.port}{'' if host.virtual_host == '/' else '/' + host.virtual_host}"

    def _connect(self) -> None:
        self._stop_timer()
        self._turn = (self._turn + 1) % len(self._hosts)
        self._services = HubServices()
        self._attempt = Connection(
            self._hosts[self._turn],
            self._services,
            on_open_callback=self._opened,
            on_open_error_callback=self._failed,
            on_close_callback=self._closed,
        )

    def _opened(self, connection: Connection) -> None:
        if self._is_over:
            return
        self._gone.clear()
        self._opened_at = monotonic()
        self._refusals = 0
        self.refusal = None
        self.is_blocked = False
        self.connection = connection
        connection.add_on_connection_blocked_callback(self._blocked)
        connection.add_on_connection_unblocked_callback(self._unblocked)
        _log.info("connected %s", self.where)
        self._tell(lambda user: user.up(connection))

    def _failed(self, connection: Connection, error: BaseException) -> None:
        if self._is_over:
            return
        self._failures += 1
        refusal = _refusal(error, self._hosts[self._turn])
        reason = refusal[1] if refusal else _short(error)
        _log.warning("connect-failed %s: %s", self.where, reason)
        self._try_again(0.0 if self._failures % len(self._hosts) else self._pause_s())
        self._refusals = self._refusals + 1 if refusal else 0
        if refusal is not None and self._refusals >= len(self._hosts):
            self.refusal = refusal
            self._tell(lambda user: user.on_refused(*refusal))

    def _closed(self, connection: Connection, error: BaseException) -> None:
        was_ours = self.connection is connection
        self.connection = None
        self._gone.set()
        if self._is_over or not was_ours:
            return
        reason = _short(error)
        _log.warning("connection-lost %s: %s", self.where, reason)
        # One that ended as soon as it began may do so all the time.
        is_short = monotonic() - self._opened_at < SHORT_LIFE_S
        self._failures = self._failures + len(self._hosts) if is_short else 0
        self._try_again(self._pause_s() if is_short else 0.0)
        self._tell(lambda user: user.down(reason))

    def _pause_s(self) -> float:
        rounds = self._failures // len(self._hosts)
        return min(MAX_PAUSE_S, PAUSE_S * 2.0 ** min(rounds - 1, 10)) * random.uniform(0.5, 1.0)

    def _tell(self, word: Callable[[User], None]) -> None:
        for user in list(self.users):
            try:
                word(user)
            except Exception:
                # One user's fault is not the others'.
                _log.exception("connection-user-failed %s", self.where)

    def _try_again(self, pause_s: float) -> None:
        self._stop_timer()
        self._timer = get_hub().loop.timer(pause_s)
        self._timer.start(self._connect)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()

    def _blocked(self, connection: Connection, method: Any) -> None:
        self.is_blocked = True
        _log.warning("connection-blocked %s: the broker is short of memory or disk", self.where)

    def _unblocked(self, connection: Connection, method: Any) -> None:
        self.is_blocked = False
        _log.warning("connection-unblocked %s", self.where)
        self._tell(lambda user: user.on_unblocked())


def parameters(endpoint: str) -> ConnectionParameters:
    """Return what pika connects by; raises UsageError for a file that cannot be read, or two passwords."""
    parts = urlsplit(endpoint)
    user = unquote(parts.username or "guest")
    password = unquote(parts.password) if parts.password is not None else _password(user)
    options: dict[str, Any] = {}
    host = parts.hostname or ""
    if parts.scheme == "amqps":
        options["ssl_options"] = SSLOptions(_ssl_context(), host)
    return ConnectionParameters(
        host=host,
        port=parts.port or (5671 if parts.scheme == "amqps" else 5672),
        virtual_host=unquote(parts.path.removeprefix("/")) or "/",
        credentials=PlainCredentials(user, password, erase_on_connect=False),
        heartbeat=HEARTBEAT_S,
        socket_timeout=SOCKET_S,
        stack_timeout=HANDSHAKE_S,
        client_properties={"product": "butler_mesh", "process": str(os.getpid())},
        **options,
    )


def _password(user: str) -> str:
    return secret(PASSWORD) or ("guest" if user == "guest" else "")


def _ssl_context() -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=os.environ.get(CA))
        if CERTIFICATE in os.environ:
            context.load_cert_chain(os.environ[CERTIFICATE], os.environ.get(KEY))
    except OSError as error:
        raise UsageError(f"{CA}, {CERTIFICATE} or {KEY}: {error}") from error
    return context


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what pika has wrapped in it, outermost first."""
    inner = [*getattr(error, "exceptions", ()), getattr(error, "exception", None), *error.args]
    return [error, *(deep for one in inner if isinstance(one, BaseException) for deep in _causes(one))]


def _refusal(error: BaseException, host: ConnectionParameters) -> tuple[int, str] | None:
    """Return what a broker said that wants no connection of ours, and what that may come from; None where it
    said nothing, was never reached, or has too many connections at present."""
    for cause in _causes(error):
        if isinstance(cause, AuthenticationError):
            return status.UNAUTHORIZED, "the broker takes no passwords"
        # pika calls whatever ends a handshake a "probable" refusal; what the broker itself said is in it.
        said = _SAID.search(str(cause))
        if said is not None and "limit" not in said[2]:
            if said[1] == "403":
                has_password = bool(getattr(host.credentials, "password", ""))
                hint = "" if has_password else f" ({NO_PASSWORD})"
                return status.UNAUTHORIZED, f"the broker refuses the user or the password: {said[2]}{hint}"
            # Who leaves the vhost out writes the service in its place.
            is_there = " not found" not in said[2]
            hint = "" if is_there else f" (is it the service? then //{host.virtual_host})"
            return status.FORBIDDEN, f"the broker refuses the vhost: {said[2]}{hint}"
    return None


def _short(error: BaseException) -> str:
    """Say what went wrong in one line: the innermost error, as pika wraps one in the next."""
    cause = _causes(error)[-1]
    return f"{type(cause).__name__}: {cause}"[:200]
