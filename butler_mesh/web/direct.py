"""DirectReplies: a service's handler that answers a browser itself, through the front's Mongrel2.

A front hands a connection over by a header of its request. From then on the connection carries no other
request, and whoever answers closes it: so that a second answer, should there be one, finds nobody. The
service answers until ``MARGIN_S`` before the deadline, the front from the deadline on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import gevent
from werkzeug.wrappers import Response

from butler_mesh import status
from butler_mesh.clock import monotonic
from butler_mesh.errors import DeadlineExceeded
from butler_mesh.handlers import ServiceMessageHandler
from butler_mesh.messages import ServiceResponse
from butler_mesh.protocol.mongrel2 import Message, pack_reply
from butler_mesh.web.exchange import Exchange, Line
from butler_mesh.web.forwarding import http_response
from butler_mesh.web.handover import ANSWERED, REPLY_TO, ReplyTo
from butler_mesh.web.outlet import Outlet

_log = logging.getLogger("butler_mesh.web")

MARGIN_S = 0.1
"""Before the deadline, so that the front's own answer comes later than any of ours."""
SUBSCRIBED_WITHIN_S = 1.0


class DirectReplies(ServiceMessageHandler):
    """Mix it into a service's handler whose replies may go to browsers directly.

    ``fronts`` has the endpoints (Mongrel2's ``recv_spec``) that it may send to, each with the secret that its
    front has as ``hand_over_secret``. A request that was not handed over, or by somebody else, is answered
    as usual, and so is one whose reply is streamed, or is too large for its connection.
    """

    fronts: ClassVar[Mapping[str, str | bytes]] = {}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Answer the request: its browser, where that was handed over, and else the front."""
        reply_to = ReplyTo.of(self.message.headers, self.fronts)
        if reply_to is None:
            if REPLY_TO in self.message.headers:
                _log.info(
                    "hand-over-refused %.200r: its front and secret are not in fronts", self.message.path
                )
            return super().run(*args, **kwargs)
        left_s = self.message.deadline - MARGIN_S - monotonic()
        outlet = _outlet(self.application.resources, reply_to.endpoint)
        # A new one is waited for, and one that does not come is waited for once.
        outlet.wait(min(left_s, outlet.made_at + SUBSCRIBED_WITHIN_S - monotonic()))
        epoch = outlet.epoch
        passed = DeadlineExceeded("too late for a direct reply", status=status.DEADLINE_PASSED)
        with gevent.Timeout(max(left_s, 0.0), passed):
            response = super().run(*args, **kwargs)
        if not isinstance(response, ServiceResponse) or isinstance(response.body, Iterator):
            return response
        reply = http_response(response)
        if len(reply.get_data()) > reply_to.max_bytes:
            return response
        if monotonic() >= self.message.deadline - MARGIN_S:
            raise passed
        if not outlet.look() or outlet.epoch != epoch:
            # Another server by now, where this connection's number is somebody else's.
            return response
        _Browser(outlet, reply_to).answer(reply)
        return ServiceResponse(path=self.message.path, headers={ANSWERED: "1"})


class _Browser(Line):
    """A connection that was handed over to us, for one reply."""

    is_last = True

    def __init__(self, outlet: Outlet, reply_to: ReplyTo) -> None:
        self._outlet = outlet
        self._reply_to = reply_to

    def answer(self, reply: Response) -> None:
        """Send the reply, and close the connection."""
        to = self._reply_to
        headers: dict[str, Any] = {"METHOD": to.method, "VERSION": to.version}
        message = Message(to.sender.encode(), to.connection.encode(), b"/", headers, b"")
        Exchange(message, self, reply).run()

    def send(self, data: bytes) -> None:
        to = self._reply_to
        for message in pack_reply(to.sender.encode(), [to.connection.encode()], data):
            self._outlet.send(message)

    def hang_up(self) -> None:
        self.send(b"")


def _outlet(resources: dict[str, Any], endpoint: str) -> Outlet:
    """Return the application's outlet to an endpoint; it is closed with the application."""
    key = f"butler_mesh.outlet {endpoint}"
    found: Outlet | None = resources.get(key)
    if found is None or found.pid != os.getpid():
        found = resources[key] = Outlet(endpoint)
    return found
