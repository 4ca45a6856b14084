"""Mongrel2Connection: an Application, or any WSGI application, behind a Mongrel2 server."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gevent
import zmq
from gevent.hub import get_hub
from werkzeug.wrappers import Response

from butler_mesh import status
from butler_mesh.application import Application
from butler_mesh.clock import monotonic
from butler_mesh.connections.sockets import context
from butler_mesh.connections.workers import Workers
from butler_mesh.errors import AddressError, ProtocolError, Stopped, UsageError
from butler_mesh.lifetime import GRACE_S, Lifetime
from butler_mesh.protocol import mongrel2
from butler_mesh.protocol.mongrel2 import Message
from butler_mesh.routing import RouteKind
from butler_mesh.web.browser import Browser
from butler_mesh.web.exchange import Exchange
from butler_mesh.web.outlet import Outlet
from butler_mesh.web.request import MAX_BODY_BYTES
from butler_mesh.web.server import MAX_CONNECTIONS
from butler_mesh.web.uploads import UploadStore
from butler_mesh.web.wsgi import TIMEOUT_S, bounded, wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SEND_SPEC = "tcp://127.0.0.1:9999"
RECV_SPEC = "tcp://127.0.0.1:9998"

MESSAGES_A_TURN = 64
CLOSED_S = 10.0
"""How long a connection that we have closed is remembered, so that what comes on it still is not answered."""
LOOK_S = 1.0
"""How often the sockets are looked at unasked: the last net below an edge-triggered descriptor."""
FORGET_AFTER_S = 60.0
"""After which a connection with nothing to do is forgotten, had its end been told to another process."""

_log = logging.getLogger("butler_mesh.web")


class Mongrel2Connection:
    """Serves web routes behind a Mongrel2 server, whose ``Handler`` has these two endpoints.

    ``upload_store`` is the directory of the server's ``upload.temp_store``, as this process sees it: with
    it, bodies over the server's ``limits.content_length`` are read from the files there, which are removed;
    without it they are refused (413). ``timeout_s``, ``max_body_bytes`` and ``trusted_proxies`` are as for
    WSGIConnection. ``hand_over_secret`` is shared with services that may answer browsers themselves
    (DirectReplies).

    Give the server ``download.flow_control: 1``: then replies flow as fast as the browser reads, and only
    then may a page be streamed whole; and give each process that serves a ``Handler`` of its own, for what
    the server tells of a connection goes to any of those that share one. The sockets are opened by
    ``start``, in the process that calls it.
    """

    kind: ClassVar[RouteKind] = RouteKind.WEB

    def __init__(
        self,
        send_spec: str = SEND_SPEC,
        recv_spec: str = RECV_SPEC,
        *,
        upload_store: str | Path | None = None,
        timeout_s: float = TIMEOUT_S,
        max_body_bytes: int = MAX_BODY_BYTES,
        trusted_proxies: int = 0,
        hand_over_secret: str | bytes = "",
    ) -> None:
        self.send_spec = send_spec
        self.recv_spec = recv_spec
        self.hand_over_secret = hand_over_secret
        # Learnt from the server's messages; None until then.
        self.has_flow_control: bool | None = None
        # Of all requests that wait behind others of their browsers.
        self.waiting_bytes = 0
        self._uploads = UploadStore(upload_store, max_body_bytes)
        self._options: dict[str, Any] = {
            "timeout_s": timeout_s,
            "max_body_bytes": max_body_bytes,
            "trusted_proxies": trusted_proxies,
        }
        self._lifetime = Lifetime()
        self._app: WSGIApplication = _refusal(status.UNAVAILABLE)
        self._browsers: dict[tuple[bytes, bytes], Browser] = {}
        self._workers: Workers[Exchange] = Workers(self._answer)
        self._outlet: Outlet | None = None
        self._in: zmq.Socket[Any] | None = None
        # Which of the servers that come and go it is connected to, or will be.
        self._epoch = 0
        self._is_connected = False
        self._out_watcher: Any = None
        self._in_watcher: Any = None
        self._timer: Any = None

    # --- life ---------------------------------------------------------------------------------

    def wsgi_options(self) -> dict[str, Any]:
        """Return what ``application.wsgi`` is made with, should another server host it."""
        return self._options

    def start(self, application: Application) -> None:
        """Begin to serve an application's web routes. Raises AddressError where nothing can connect."""
        self._start(wsgi_app(application, **self._options))

    def start_wsgi(self, app: WSGIApplication) -> None:
        """Begin to serve a WSGI application of whatever make; returns at once."""
        self._start(bounded(app, self._options["timeout_s"]))

    def serve_wsgi(self, app: WSGIApplication, grace_s: float = GRACE_S) -> None:
        """Serve a WSGI application until ``stop``, SIGTERM or SIGINT; then finish what runs."""
        self._lifetime.run(lambda: self.start_wsgi(app), lambda: self.close(grace_s))

    def stop(self) -> None:
        """Make ``serve_wsgi`` return, after it has drained."""
        self._lifetime.stop()

    @property
    def is_connected(self) -> bool:
        """Whether a server is there: requests can come, and replies will reach it."""
        return self._is_connected

    def close(self, grace_s: float) -> None:
        """Let the requests that run finish, and those that come meanwhile, within ``grace_s``; then close."""
        outlet = self._outlet
        if outlet is None:
            return
        loop = get_hub().loop
        until = monotonic() + grace_s
        # Till these are answered we go on: the server waits for who takes its word of what browsers read.
        now = [one for one in self._browsers.values() if one.exchange is not None]
        while any(one.exchange or (one.waiting and not one.is_last) for one in now) and monotonic() < until:
            gevent.sleep(0.01)
        if self._in is not None:
            # What has come is ours, and closing throws it away.
            come = list(iter(partial(_receive, self._in), None))
            self._close_intake()
            for data in come:
                loop.run_callback(self._take, data)
            gevent.sleep(0)
        self._wait_until_idle(until - monotonic())
        if self._workers.running:
            _log.warning("drain-incomplete %d requests after %.1f s", len(self._workers.running), grace_s)
            loop.run_callback(self._stop_all)
            self._wait_until_idle(1.0)
        for browser in self._browsers.values():
            self.discard(browser)
        self._browsers.clear()
        self._timer.close()
        self._out_watcher.close()
        outlet.close()
        self._outlet = None
        self._is_connected = False

    # --- to the server ------------------------------------------------------------------------

    def reply(self, sender: bytes, connections: Sequence[bytes], data: bytes) -> None:
        """Send bytes as they are to connections of a server, any number of them; none closes them.

        ``sender`` and connections are as their messages have them.
        """
        if self._outlet is not None:
            for message in mongrel2.pack_reply(sender, connections, data):
                self._outlet.send(message)

    # --- from the server ----------------------------------------------------------------------

    def _start(self, app: WSGIApplication) -> None:
        if self._outlet is not None:
            raise UsageError(f"{self.send_spec} is being served already")
        self._uploads.check()
        outlet = Outlet(self.recv_spec)
        try:
            self._open_intake(outlet)
        except AddressError:
            outlet.close()
            raise
        self._app = app
        self._outlet = outlet
        loop = get_hub().loop
        self._out_watcher = loop.io(outlet.fd, 1)
        self._out_watcher.start(self._turn)
        self._timer = loop.timer(LOOK_S, LOOK_S)
        self._timer.start(self._look)
        loop.run_callback(self._turn)
        _log.info("waiting for Mongrel2 at %s and %s", self.send_spec, self.recv_spec)

    def _turn(self) -> None:
        """Take what the server has sent."""
        outlet = self._outlet
        if outlet is None:
            return
        is_open = outlet.look()
        if self._in is not None and self._epoch != _coming(outlet):
            # The server is gone, and the next one numbers its connections from the beginning: what we
            # know, and what still lies in our socket, would go to strangers.
            _log.warning("mongrel2-lost %s", self.recv_spec)
            self._is_connected = False
            self._close_intake()
            self._forget_all(Stopped(status.CANCELLED, "Mongrel2 is gone"))
            self.has_flow_control = None  # the next one may have none
            self._open_intake(outlet)
        if not is_open:
            return  # what has come waits: a reply that is sent to nobody is lost
        if not self._is_connected:
            self._is_connected = True
            _log.info("connected to Mongrel2 at %s", self.recv_spec)
        for _ in range(MESSAGES_A_TURN):
            if self._in is None or (data := _receive(self._in)) is None:
                return
            self._take(data)
        get_hub().loop.run_callback(self._turn)

    def _take(self, data: bytes) -> None:
        try:
            message = mongrel2.parse(data)
        except ProtocolError as error:
            _log.warning("mongrel2-unreadable %s", error)
            return
        key = message.sender, message.connection
        notice = message.notice
        browser = self._browsers.get(key)
        if notice:
            if browser is None:
                return  # long forgotten, or another process's
            if notice == "disconnect":
                # One that was handed over is closed by the service that answers it.
                why = "the client left" if not browser.is_last else "the connection is closed"
                self._forget(browser, Stopped(status.CANCELLED, why))
            elif notice == "credits":
                browser.has_read(message.credits)
            return
        if message.credits:
            self.has_flow_control = True
        if browser is None:
            browser = self._browsers[key] = Browser(self, key)
        if browser.is_last or not browser.may_wait(len(data)):
            self._uploads.discard(message)
            if not browser.is_last:
                browser.hang_up()
                self._stop(browser, Stopped(status.CANCELLED, "too many requests are waiting"))
        elif self._uploads.is_due(message):
            browser.wait(message, len(data))
            self._next(browser)

    def _next(self, browser: Browser) -> None:
        """Answer the browser's next request, if it has one and none is being answered."""
        if browser.exchange is None and browser.waiting and not browser.is_last:
            exchange = browser.exchange = self._exchange(browser.next_message(), browser)
            worker = self._workers.start(exchange)
            browser.worker = worker if worker.job is exchange else None  # it may have ended already

    def _answer(self, exchange: Exchange) -> bool:
        is_well = exchange.run()
        browser = exchange.line
        if isinstance(browser, Browser):
            browser.exchange = browser.worker = None
            browser.idle_since = monotonic()
            if browser.waiting and not browser.is_last:
                get_hub().loop.run_callback(self._next, browser)
            elif not browser.is_last and not browser.unread_bytes:
                self._browsers.pop(browser.key, None)
        return is_well

    def _exchange(self, message: Message, browser: Browser) -> Exchange:
        file, code = self._uploads.take(message)
        if not mongrel2.is_sound(message):
            code = status.BAD_REQUEST
        elif len(self._workers.running) >= MAX_CONNECTIONS:
            code = status.UNAVAILABLE
        if code == status.OK:
            return Exchange(message, browser, self._app, file)
        if file is not None:
            file.close()
        exchange = Exchange(message, browser, _refusal(code))
        # The rest of a body may be on its way still.
        exchange.must_close = True
        return exchange

    # --- when all is over ---------------------------------------------------------------------

    def _look(self) -> None:
        """Look at the sockets unasked, and forget those of whose end nobody told us."""
        self._turn()
        now = monotonic()
        for browser in list(self._browsers.values()):
            # Of an end that we made we are not told.
            left_s = browser.idle_since - now + (CLOSED_S if browser.is_closed else FORGET_AFTER_S)
            if browser.exchange is None and not browser.waiting and left_s < 0:
                del self._browsers[browser.key]

    def _forget(self, browser: Browser, reason: Stopped) -> None:
        """Stop what is done for a browser, and drop what it waits for."""
        self._browsers.pop(browser.key, None)
        browser.is_last = browser.is_closed = True
        self._stop(browser, reason)

    def discard(self, browser: Browser) -> None:
        """Drop the requests that a browser sent ahead."""
        while browser.waiting:
            self._uploads.discard(browser.next_message())

    def _stop(self, browser: Browser, reason: Stopped) -> None:
        self.discard(browser)
        if browser.worker is not None and browser.exchange is not None:
            self._workers.stop(browser.worker, browser.exchange, reason)

    def _forget_all(self, reason: Stopped) -> None:
        for browser in list(self._browsers.values()):
            self._forget(browser, reason)

    def _stop_all(self) -> None:
        """Stop what runs; its browsers are told."""
        for browser in list(self._browsers.values()):
            if browser.worker is not None and browser.exchange is not None:
                browser.exchange.must_close = True
                self._workers.stop(browser.worker, browser.exchange, Stopped(status.UNAVAILABLE, "stopping"))

    def _wait_until_idle(self, timeout_s: float) -> None:
        until, browsers = monotonic() + timeout_s, self._browsers.values()
        while self._workers.running or any(one.waiting and not one.is_last for one in browsers):
            if monotonic() > until:
                return
            gevent.sleep(0.01)

    def _open_intake(self, outlet: Outlet) -> None:
        """Connect to the server that is there, or to come. Also before it listens to our replies: it waits
        for somebody to take a message that it has for us, and does nothing else meanwhile."""
        socket = context().socket(zmq.PULL)
        _connect(socket, self.send_spec)
        self._in, self._epoch = socket, _coming(outlet)
        self._in_watcher = get_hub().loop.io(int(socket.getsockopt(zmq.FD)), 1)
        self._in_watcher.start(self._turn)

    def _close_intake(self) -> None:
        if self._in is not None:
            self._in_watcher.stop()
            self._in_watcher.close()
            self._in.close(linger=0)
            self._in = None


def _refusal(code: int) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return Response(f"{status.reason(code)}\n", code)(environ, start_response)

    return app


def _coming(outlet: Outlet) -> int:
    """Return the number of the server that a new connection leads to."""
    return outlet.epoch if outlet.is_open else outlet.epoch + 1


def _connect(socket: zmq.Socket[Any], endpoint: str) -> None:
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise AddressError(f"cannot connect to {endpoint!r}: {error.strerror}") from error


def _receive(socket: zmq.Socket[Any]) -> bytes | None:
    try:
        return bytes(socket.recv(zmq.NOBLOCK))
    except zmq.Again:
        return None
