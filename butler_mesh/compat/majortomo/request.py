"""A request on its way: asked again while nobody is there to answer, its reply taken part by part."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any, Final

import gevent

from butler_mesh import Client, status
from butler_mesh.errors import RequestFailed

FOREVER_S = 30 * 24 * 3600.0
"""How long a request may go without a part of its reply: every call of the mesh ends some time, and its wire
counts milliseconds up to 49 days."""
PAUSE_S = 0.25
LONGEST_PAUSE_S = 1.0
"""Before a request that could not be started is sent again: so long, or as long as the router asks for."""

END: Final[Any] = object()
"""What is taken after the last part."""

_NOT_STARTED = (status.NOT_FOUND, status.TOO_MANY, status.UNAVAILABLE)
_MMI = "mmi.service"

_log = logging.getLogger("butler_mesh.majortomo")


class NotYet(Exception):
    """The time is up; what was waited for may still come."""


class Request:
    """One request. Where a router says that it was not started (404, 429, 503) it is asked again, by whoever
    waits for it, for as long as it is waited for. Raises NotSerializable."""

    def __init__(self, client: Client, service: str, frames: list[bytes]) -> None:
        self.service = service
        # How it ended, where that is not well.
        self.failure: RequestFailed | None = None
        self._client = client
        self._frames = frames
        # When it is to be asked again, and why; 0.0 while it is on its way.
        self._again_at = 0.0
        self._why = ""
        self._has_begun = False
        # An outcome that was looked at and is not taken yet.
        self._ahead: list[Any] = []
        self._stream = self._ask()

    def take(self, until: float) -> Any:
        """Return the body of the next part, or END. Raises NotYet when nothing came by then (in monotonic
        seconds), and RequestFailed when nothing will."""
        if self.failure is not None:
            # Who asks again and again for what will not come is not to keep a processor busy with it.
            gevent.sleep(max(0.0, min(PAUSE_S, until - monotonic())))
            raise self.failure
        while True:
            if self._again_at:
                gevent.sleep(max(0.0, min(self._again_at, until) - monotonic()))
                if monotonic() < self._again_at:
                    raise NotYet(self._why)
                self._stream, self._again_at = self._ask(), 0.0
            if not (self._ahead or self._stream.wait(max(0.0, until - monotonic()))):
                raise NotYet(self._why or "it is on its way")
            try:
                return self._next()
            except RequestFailed as error:
                if self._has_begun or error.status not in _NOT_STARTED:
                    self.failure = error
                    raise
                if not self._why:
                    _log.info("waiting for %s: %d %s", self.service, error.status, error.message)
                self._why = f"{error.status} {error.message}"
                self._again_at = monotonic() + min(max(PAUSE_S, error.retry_after_s or 0.0), LONGEST_PAUSE_S)

    def is_read(self) -> bool:
        """Tell whether the last part was taken: a part does not say so itself, but nothing comes after it."""
        if self._has_begun and not self._ahead and self._stream.wait(0.0):
            try:
                self._ahead.append(self._next())
            except RequestFailed as error:
                self._ahead.append(error)
        return bool(self._ahead) and self._ahead[0] is END

    def _ask(self) -> Any:
        what: dict[str, Any] = {"body": self._frames}
        if self.service == _MMI:
            # RFC 8: the frame is the name that is asked for, and the answer is a status.
            what = {"arguments": {"service": self._frames[-1].decode("utf-8", "replace")}}
        return self._client.request_stream(self.service, "/", timeout=FOREVER_S, **what)

    def _next(self) -> Any:
        if self._ahead:
            found = self._ahead.pop()
        else:
            try:
                found = next(self._stream, END)
            except RequestFailed as error:
                found = error
            if self.service == _MMI and found is not END:
                found = self._mmi(found)
        if isinstance(found, RequestFailed):
            raise found
        self._has_begun = True
        return found

    def _mmi(self, found: Any) -> Any:
        if not isinstance(found, RequestFailed):
            return [b"200"]
        return [b"404"] if found.status == status.NOT_FOUND else found
