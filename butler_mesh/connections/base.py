"""The seam for engines: what every way of carrying requests offers, and may be relied on for.

A client side submits envelopes and is called back; a service side is handed deliveries and replies to
them. Nothing above this line knows a wire. Envelopes are bytes: JSON, or RAW when the flag says so.
Every engine passes ``tests/connections/contract.py`` and documents four lines: ordering, delivery, what
becomes of a request whose instance dies, what a send does when the far side is absent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from butler_mesh.protocol.client import OnReply

__all__ = ["ALL", "MANAGEMENT", "ClientConnection", "Delivery", "InstanceConnection", "OnReply"]

ALL = "*"
"""The scope of a request that is for every instance of a service."""
MANAGEMENT = "mgt."
"""What the target of a delivery begins with that came to all instances, or to this one by its wid."""


class ClientConnection(ABC):
    """The way out for requests. Belongs to one hub; never blocks but in ``close``."""

    can_store: bool = False
    """Whether DURABLE one-way requests may be submitted: their FINAL is 202 when they are safely stored."""

    @property
    def raw(self) -> Any:
        """The driver's own connection, where there is one and it is open; None elsewhere."""
        return None

    @abstractmethod
    def submit(
        self,
        target: str,
        envelope: bytes,
        *,
        deadline: float,
        flags: int,
        on_reply: OnReply,
        window: int = 0,
        scope: str = "",
    ) -> Any:
        """Send a request to a service (or to whoever owns a path); return the handle of the call.

        ``on_reply(kind, status, flags, envelope)`` is called from the hub with each PARTIAL and the one
        FINAL, failures included; it must not block. ``window`` is how many parts a stream may send at
        first.

        ``scope`` makes it a command, which reaches an instance also when its credit is used up: that of this
        wid, or ALL of the service. Then each one's only reply is a PARTIAL, and the FINAL of the engine's own
        making comes when no more are to come, at the deadline at the latest: 200, 404 where there is no
        such service, 504 where nobody answered.
        """

    @abstractmethod
    def cancel(self, call: Any) -> None:
        """Give a call up: ``on_reply`` is not called again, the handler is told to stop."""

    @abstractmethod
    def grant(self, call: Any, parts: int) -> None:
        """Let a stream send so many parts more."""

    @abstractmethod
    def close(self, drain_s: float) -> list[tuple[int, str]]:
        """Wait up to ``drain_s`` until everything sent has arrived, then close.

        Returns (status, message) of one-way requests that were refused, the latest hundred.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Let go of everything without a word: this process is a fork and owns none of it."""


class Delivery(ABC):
    """A request in the hands of a handler."""

    target: str
    envelope: bytes
    flags: int
    deadline: float
    number: int

    @abstractmethod
    def reply(self, status: int, envelope: bytes, *, flags: int = 0, final: bool = True) -> None:
        """Send a part or the one final reply; after the final one, or when nobody waits, nothing."""

    @abstractmethod
    def wait_for_window(self) -> None:
        """Block the handler's greenlet until the stream's reader takes one more part."""


Handler = Callable[[Delivery], object]
"""Answers a delivery. Returns False when that failed, so that its greenlet is not used again."""


class InstanceConnection(ABC):
    """The way in for requests."""

    wid: str
    """The instance's name, which no other has."""

    @property
    def raw(self) -> Any:
        """The driver's own connection, where there is one and it is open; None elsewhere."""
        return None

    @abstractmethod
    def serve(self, handler: Handler) -> None:
        """Register, and from now on run ``handler(delivery)`` in a greenlet of its own for each request."""

    @abstractmethod
    def wait_until_registered(self, timeout_s: float) -> bool:
        """Wait until a router has confirmed the registration; False when none did in time."""

    @abstractmethod
    def stop_intake(self) -> None:
        """Take no new requests; those that run go on."""

    @abstractmethod
    def close(self, drain_s: float) -> None:
        """Stop intake, wait up to ``drain_s`` for running handlers, say goodbye, close."""

    @abstractmethod
    def abandon(self) -> None:
        """Let go of everything without a word: this process is a fork and owns none of it."""
