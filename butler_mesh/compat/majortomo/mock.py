"""A client for tests, whose broker is the test itself."""

from __future__ import annotations

from butler_mesh.compat.majortomo.client import Client
from butler_mesh.compat.majortomo.error import Timeout
from butler_mesh.compat.majortomo.frames import as_frames


class MockMDPClient(Client):
    """Answers every request with the frames that ``set_reply`` was given, as one part.

    ``requests`` is what was sent: (service as it was given, list of frames), the latest last. While
    ``raise_timeout`` is true, reading raises Timeout, at once. Nothing is connected and nothing raises for
    being used too early or twice.
    """

    def __init__(self, broker_url: str) -> None:
        super().__init__(broker_url)
        self.raise_timeout = False
        self.requests: list[tuple[str | bytes, list[bytes]]] = []
        self._is_connected = False
        self._reply: list[bytes] | None = None
        self._is_unread = False

    def set_reply(self, *frames: bytes) -> None:
        """Set the reply to each request from now on, and to one that is sent already."""
        self._reply = as_frames(frames)
        self._is_unread = True

    def connect(self, reconnect: bool = False) -> None:
        """Note it."""
        self._is_connected = True

    def is_connected(self) -> bool:
        """Tell whether ``connect`` was the last of it."""
        return self._is_connected

    def close(self) -> None:
        """Note it."""
        self._is_connected = False

    def send(self, service: str | bytes, *frames: bytes) -> None:
        """Keep the request in ``requests``; its reply may be read."""
        self.requests.append((service, as_frames(frames)))
        self._is_unread = True

    def recv_part(self, timeout: float | None = None) -> list[bytes] | None:
        """Return the reply, and after that None; None at once where no reply was set."""
        if self.raise_timeout:
            raise Timeout(f"no reply within {timeout} s: the test wants it so")
        is_unread, self._is_unread = self._is_unread, False
        return list(self._reply) if is_unread and self._reply is not None else None
