"""A place on the one connection that all clients of a process share, or all its instances.

So a process has two of them to a broker: one that is short of memory stops reading from those who publish
much, and what is served must not wait behind that. What goes wrong on the channels of one place is its own
affair; when the connection ends, all hear of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, Literal

from gevent.event import Event
from gevent.hub import get_hub
from pika import ConnectionParameters

from butler_mesh.connections.amqp.connection import Connection, Keeper, parameters

RESET_PAUSE_S = 1.0
"""Before the channels are opened again of which the broker has closed one: it will do so again."""

_log = logging.getLogger("butler_mesh.connections")

# By direction, address and hub: of those each has its own.
_keepers: dict[tuple[str, bytes, Any], Keeper] = {}


class Link:
    """One user's place on a connection that is kept open as long as anybody has a place on it.

    ``direction`` is ``out`` for those who call and ``in`` for those who serve. ``on_up()`` is called from the
    hub when channels can be opened, ``on_down(reason)`` when those are gone: with the connection, or because
    the broker has closed one. ``on_refused(status, reason)`` says that the broker wants no connection of
    ours: 401 for a wrong user or password, 403 for a vhost that this user may not use. All is tried again.
    ``on_fork()`` is called in a fork of this process, which is to abandon whatever was its parent's.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        direction: Literal["in", "out"],
        *,
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_refused: Callable[[int, str], None] = lambda code, reason: None,
        on_unblocked: Callable[[], None] = lambda: None,
        on_fork: Callable[[], None] = lambda: None,
    ) -> None:
        # Read here, so that a wrong one is an error where the link is made.
        hosts = [parameters(endpoint) for endpoint in endpoints]
        self._key = direction, _digest(endpoints, hosts)
        self._on_up, self._on_down = on_up, on_down
        self.on_refused, self.on_unblocked, self.on_fork = on_refused, on_unblocked, on_fork
        self._keeper = Keeper(hosts)
        self._pid = 0
        # The connection, from our on_up to our on_down.
        self.connection: Connection | None = None
        # Ours that are open or being opened; those of an earlier epoch are nobody's.
        self._channels: list[Any] = []
        self._epoch = 0
        self._timer: Any = None
        self._is_over = False
        self._has_closed = Event()

    @property
    def is_blocked(self) -> bool:
        """Whether the broker has asked us to publish nothing: it is short of memory or disk."""
        return self._keeper.is_blocked

    @property
    def refusal(self) -> tuple[int, str] | None:
        """The last refusal, until a connection is open."""
        return self._keeper.refusal

    @property
    def where(self) -> str:
        """Host, port and vhost, for logs: nobody's name or password."""
        return self._keeper.where

    def start(self) -> None:
        """Begin to connect, or take a place on the connection that is there."""
        self._pid = os.getpid()
        self._keeper = _keepers.setdefault((*self._key, get_hub()), self._keeper)
        self._keeper.users[self] = None
        if self._keeper.connection is not None:
            get_hub().loop.run_callback(self._join)
        elif len(self._keeper.users) == 1:
            self._keeper.start()

    def open(
        self, on_open: Callable[[Any], object], on_close: Callable[[BaseException], object] | None = None
    ) -> None:
        """Open a channel. One that the broker closes is told to ``on_close``, or ends all with on_down."""
        if self.connection is not None and self.connection.is_open:
            opened = partial(self._opened, self._epoch, on_open)
            channel = self.connection.channel(on_open_callback=opened)
            self._channels.append(channel)
            channel.add_on_close_callback(partial(self._closed, on_close))

    def drop(self, channel: Any) -> None:
        """Close a channel of ours, whatever its state."""
        if channel in self._channels:
            self._channels.remove(channel)
            if channel.is_open:
                channel.close()

    def reset(self, reason: str) -> None:
        """Give our channels up, for others."""
        if self.connection is None or self._is_over:
            return
        _log.warning("channels-reset %s: %s", self.where, reason)
        self.down(reason)
        self._stop_timer()
        self._timer = get_hub().loop.timer(RESET_PAUSE_S)
        self._timer.start(self._join)

    def close(self, timeout_s: float) -> None:
        """Send what was written, leave, and wait for the broker's word on it, for as long as this."""
        if self._leave():
            self._keeper.close(timeout_s)
        else:
            self._drop_all()
            if self._channels:
                self._has_closed.wait(timeout_s)
        self.connection = None

    def abandon(self) -> None:
        """Leave without waiting. In a fork all of its parent's connection is let go of, without a word."""
        if self._leave() or self._pid != os.getpid():
            self._keeper.abandon()
        else:
            self._drop_all()
        self.connection = None

    def _leave(self) -> bool:
        """Give our place up; True when nobody else has one."""
        self._is_over = True
        self._stop_timer()
        keeper = self._keeper
        keeper.users.pop(self, None)
        if keeper.users:
            return False
        for key in [key for key, one in _keepers.items() if one is keeper]:
            del _keepers[key]
        return True

    # --- what the keeper tells ----------------------------------------------------------------

    def up(self, connection: Connection) -> None:
        """Use this connection, the first or another."""
        self._stop_timer()
        self.connection = connection
        self._on_up()

    def down(self, reason: str) -> None:
        """The connection is gone, or no longer ours."""
        if self.connection is not None:
            self.connection = None
            self._epoch += 1
            self._drop_all()
            self._channels.clear()
            self._on_down(reason)

    def _join(self) -> None:
        if self.connection is None and self._keeper.connection is not None and not self._is_over:
            self.up(self._keeper.connection)

    def _opened(self, epoch: int, on_open: Callable[[Any], object], channel: Any) -> None:
        if epoch == self._epoch and not self._is_over:
            on_open(channel)
        else:
            channel.close()

    def _closed(
        self, on_close: Callable[[BaseException], object] | None, channel: Any, reason: BaseException
    ) -> None:
        if channel not in self._channels:
            return
        self._channels.remove(channel)
        if self._is_over:
            if not self._channels:
                self._has_closed.set()
        elif self.connection is None or not self.connection.is_open:
            pass  # A channel that is closed with its connection is no news.
        elif on_close is not None:
            on_close(reason)
        else:
            self.reset(f"a channel was closed: {reason}")

    def _drop_all(self) -> None:
        for channel in self._channels:
            if channel.is_open:
                channel.close()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()


def _disown_all() -> None:
    # At once: the hub of a fork has all that its parent's was about to do, with the same sockets.
    keepers = list(_keepers.values())
    _keepers.clear()
    for keeper in keepers:
        for user in list(keeper.users):
            user.on_fork()
        keeper.abandon()


os.register_at_fork(after_in_child=_disown_all)


def _digest(endpoints: Sequence[str], hosts: Sequence[ConnectionParameters]) -> bytes:
    """Return what tells addresses and passwords apart, in whatever order they are, and no more of them."""
    pairs = zip(endpoints, hosts, strict=True)
    text = repr(sorted((endpoint, repr(vars(host.credentials))) for endpoint, host in pairs))
    return blake2b(text.encode()).digest()
