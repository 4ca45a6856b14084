"""A channel that is opened again whenever it was closed, and why the broker refuses what is done on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

from gevent.event import Event
from gevent.hub import get_hub
from pika.exceptions import ChannelClosedByBroker

from butler_mesh import status
from butler_mesh.connections.amqp.link import Link
from butler_mesh.errors import InstanceLost, RequestFailed, failure

PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
"""Before another channel after one that the broker has closed: twice as long each time, for what it refuses
now it will mostly refuse then."""
CLOSE_S = 1.0

_SAID = {403: status.FORBIDDEN, 404: status.NOT_FOUND, 405: status.CONFLICT, 406: status.CONFLICT}
"""What a channel is closed with for what was asked of it -> the status that stands for that."""

_log = logging.getLogger("butler_mesh.connections")


class KeptChannel:
    """One channel at a time on the connection that a process shares.

    ``on_open(channel)`` is called from the hub with each; it declares what is needed, and at the end of that
    ``ready`` is called. ``on_lost(error)`` says that one is gone: InstanceLost where the connection went, or
    what stands for the broker's refusal. ``on_fork()`` is called in a fork of this process, to abandon it.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        direction: Literal["in", "out"],
        *,
        on_open: Callable[[Any], None],
        on_lost: Callable[[RequestFailed], None],
        on_fork: Callable[[], None],
    ) -> None:
        # pika's, from when it is open until it is not.
        self.channel: Any = None
        self._on_open, self._on_lost = on_open, on_lost
        # Status and reason of the last refusal, until a channel is ready.
        self._refusal: tuple[int, str] | None = None
        # Whether those who wait have something to go by: a channel that is ready, or a refusal.
        self._is_settled = Event()
        self._pause_s = PAUSE_S
        self._timer: Any = None
        self._link = Link(
            endpoints,
            direction,
            on_up=self._open,
            on_down=self._down,
            on_refused=self._refused,
            on_fork=on_fork,
        )

    @property
    def is_blocked(self) -> bool:
        """Whether the broker has asked us to publish nothing: it is short of memory or disk."""
        return self._link.is_blocked

    def start(self) -> None:
        """Begin to connect."""
        self._link.start()

    def ready(self) -> None:
        """Let those go on who wait for the present channel."""
        self._refusal = None
        self._pause_s = PAUSE_S
        self._is_settled.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the channel is ready; False when it is not in ``timeout_s`` seconds.

        Raises what stands for the broker's refusal: of our user (401), of what was asked (403, 404, 409).
        """
        self._is_settled.wait(timeout_s)
        if self._refusal is not None:
            raise failure(*self._refusal)
        return self._is_settled.is_set() and self.channel is not None and bool(self.channel.is_open)

    def renew(self, reason: str) -> None:
        """Give the present channel up, for another one soon."""
        channel, self.channel = self.channel, None
        self._link.drop(channel)
        self._is_settled.clear()
        self._try_again(reason)
        self._on_lost(InstanceLost(reason, status=status.INSTANCE_LOST))

    def close(self) -> None:
        """Send what was written, and close."""
        self._stop_timer()
        self._link.close(CLOSE_S)

    def abandon(self) -> None:
        """Let go of it without a word: this process is a fork and owns nothing of it."""
        self._stop_timer()
        self.channel = None
        self._link.abandon()

    def _open(self) -> None:
        self._stop_timer()
        self._link.open(self._opened, self._closed)

    def _opened(self, channel: Any) -> None:
        self.channel = channel
        self._on_open(channel)

    def _closed(self, reason: BaseException) -> None:
        """The broker has closed the channel: it takes something amiss."""
        self.channel = None
        code, text = status.UNAVAILABLE, f"the broker closed the channel: {reason}"
        if isinstance(reason, ChannelClosedByBroker):
            code, text = _SAID.get(reason.reply_code, code), str(reason.reply_text)
        self._refused(code, text)
        self._try_again(text)
        self._on_lost(failure(code, text))

    def _down(self, reason: str) -> None:
        self.channel = None
        self._stop_timer()
        self._refusal = None
        self._is_settled.clear()
        self._on_lost(InstanceLost(f"the broker was lost: {reason}", status=status.INSTANCE_LOST))

    def _refused(self, code: int, reason: str) -> None:
        self._refusal = code, reason
        self._is_settled.set()

    def _try_again(self, reason: str) -> None:
        _log.warning("channel-lost %s: %s (another in %.0f s)", self._link.where, reason, self._pause_s)
        self._stop_timer()
        self._timer = get_hub().loop.timer(self._pause_s)
        self._timer.start(self._open)
        self._pause_s = min(MAX_PAUSE_S, 2.0 * self._pause_s)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()
