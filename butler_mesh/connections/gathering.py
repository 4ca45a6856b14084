"""One command to all instances of a service, over a wire that knows single instances only.

The router is asked who they are, and each is sent the command by its wid. So nothing is multiplied in a
router, and every command is an ordinary call there, which has one answer.
"""

from __future__ import annotations

from typing import Any

from butler_mesh import codec, status
from butler_mesh.connections.base import ClientConnection, OnReply
from butler_mesh.protocol.mesh import FINAL, PARTIAL


class Gathering:
    """The calls that stand for one: each one's FINAL is a PARTIAL here, the last is followed by the FINAL."""

    def __init__(
        self,
        client: ClientConnection,
        service: str,
        envelope: bytes,
        *,
        deadline: float,
        flags: int,
        on_reply: OnReply,
    ) -> None:
        self._client = client
        self._service = service
        self._envelope = envelope
        self._deadline = deadline
        self._flags = flags
        # None once nobody wants to hear more.
        self._on_reply: OnReply | None = on_reply
        self._calls: list[Any] = []
        self._left = 0
        self._is_anybody_there = False
        question = codec.dumps({"arguments": {"service": service}})
        self._calls.append(
            client.submit("mmi.instances", question, deadline=deadline, flags=0, on_reply=self._told)
        )

    def cancel(self) -> None:
        """Want no more of anybody."""
        self._on_reply = None
        for call in self._calls:
            self._client.cancel(call)

    def _told(self, kind: int, code: int, flags: int, envelope: bytes) -> None:
        """Take the names of the instances, and ask them."""
        if self._on_reply is None:
            return
        if code != status.OK:
            if code == status.NOT_FOUND:
                envelope = codec.dumps({"message": f"no such service: {self._service[:255]}"})
            self._end(code, envelope)
            return
        wids = codec.loads(envelope)["body"]
        self._left = len(wids)
        for wid in wids:
            self._calls.append(
                self._client.submit(
                    "",
                    self._envelope,
                    deadline=self._deadline,
                    flags=self._flags,
                    on_reply=self._answered,
                    scope=wid,
                )
            )

    def _answered(self, kind: int, code: int, flags: int, envelope: bytes) -> None:
        if self._on_reply is None:
            return
        self._left -= 1
        if code == status.CANCELLED:
            # The client was closed.
            self._end(code, envelope)
            return
        if code != status.DEADLINE_PASSED:
            self._is_anybody_there = True
            self._on_reply(PARTIAL, code, flags, envelope)
        if self._left > 0:
            return
        if self._is_anybody_there:
            self._end(status.OK, b"{}")
        else:
            self._end(status.DEADLINE_PASSED, codec.dumps({"message": "no instance has answered"}))

    def _end(self, code: int, envelope: bytes) -> None:
        on_reply, self._on_reply = self._on_reply, None
        if on_reply is not None:
            on_reply(FINAL, code, 0, envelope)
