"""Connections whose requests and replies are sealed with a passphrase, over any engine.

What an engine is to be relied on for stays as it is. A request without the right seal reaches no handler:
its caller gets 401. A reply without the right one is 502, but for failures: a router, which knows no
passphrase, may say that something did not work, and is believed in that and in nothing else.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from butler_mesh import codec, status
from butler_mesh.connections.base import ClientConnection, Delivery, Handler, InstanceConnection, OnReply
from butler_mesh.errors import Unavailable
from butler_mesh.protocol.mesh import FINAL
from butler_mesh.sealing import NONCE_LENGTH, BrokenSeal, Nonces, Seal, without_seal

_log = logging.getLogger("butler_mesh.service")

WallClock = Callable[[], float]


class SealedClient(ClientConnection):
    """Seals what is submitted, and checks what comes back."""

    def __init__(self, inner: ClientConnection, seal: Seal, clock: WallClock = time.time) -> None:
        self._inner = inner
        self._seal = seal
        self._clock = clock

    def submit(
        self,
        target: str,
        envelope: bytes,
        *,
        deadline: float,
        flags: int,
        on_reply: OnReply,
        window: int = 0,
    ) -> Any:
        # New with each attempt, so that what is sent again is not taken for a repetition.
        nonce = secrets.token_hex(NONCE_LENGTH // 2)
        envelope, flags = self._seal.close_request(target, envelope, flags, nonce=nonce, now=self._clock())
        return self._inner.submit(
            target,
            envelope,
            deadline=deadline,
            flags=flags,
            on_reply=_Opener(self._seal, nonce, on_reply),
            window=window,
        )

    def cancel(self, call: Any) -> None:
        self._inner.cancel(call)

    def grant(self, call: Any, parts: int) -> None:
        self._inner.grant(call, parts)

    def close(self, drain_s: float) -> list[tuple[int, str]]:
        return self._inner.close(drain_s)

    def abandon(self) -> None:
        self._inner.abandon()


class _Opener:
    """Opens the replies of one call, in their order."""

    __slots__ = ("_is_over", "_nonce", "_on_reply", "_place", "_seal")

    def __init__(self, seal: Seal, nonce: str, on_reply: OnReply) -> None:
        self._seal = seal
        self._nonce = nonce
        self._on_reply = on_reply
        self._place = 0
        # Nothing is believed after a part that was not.
        self._is_over = False

    def __call__(self, kind: int, code: int, flags: int, envelope: bytes) -> None:
        if self._is_over:
            return
        try:
            envelope, flags = self._seal.open_reply(
                self._nonce, self._place, code, envelope, flags, final=kind == FINAL
            )
        except BrokenSeal as broken:
            if kind == FINAL and code >= 400:
                envelope = without_seal(envelope, flags)
            else:
                code, envelope = status.INSTANCE_LOST, codec.dumps({"message": str(broken)})
            kind, flags = FINAL, 0
        self._place += 1
        self._is_over = kind == FINAL
        self._on_reply(kind, code, flags, envelope)


class SealedInstance(InstanceConnection):
    """Lets only sealed requests through, and seals the replies."""

    def __init__(self, inner: InstanceConnection, seal: Seal, clock: WallClock = time.time) -> None:
        self._inner = inner
        self._seal = seal
        self._clock = clock
        self._nonces = Nonces()

    def serve(self, handler: Handler) -> None:
        def guarded(delivery: Delivery) -> object:
            try:
                opened = self._seal.open_request(
                    delivery.target, delivery.envelope, delivery.flags, self._nonces, self._clock()
                )
            except BrokenSeal as broken:
                _log.warning("refused-unsealed %.200r: %s", delivery.target, broken)
                delivery.reply(status.UNAUTHORIZED, codec.dumps({"message": str(broken)}))
            except Unavailable as full:
                _log.warning("refused-sealed %.200r: %s", delivery.target, full)
                headers = {"Retry-After": f"{full.retry_after_s:g}"}
                delivery.reply(full.status, codec.dumps({"message": str(full), "headers": headers}))
            else:
                return handler(SealedDelivery(delivery, self._seal, *opened))
            return True

        self._inner.serve(guarded)

    def wait_until_registered(self, timeout_s: float) -> bool:
        return self._inner.wait_until_registered(timeout_s)

    def stop_intake(self) -> None:
        self._inner.stop_intake()

    def close(self, drain_s: float) -> None:
        self._inner.close(drain_s)

    def abandon(self) -> None:
        self._inner.abandon()


class SealedDelivery(Delivery):
    """A request whose seal was good."""

    __slots__ = ("_inner", "_nonce", "_place", "_seal", "deadline", "envelope", "flags", "number", "target")

    def __init__(self, inner: Delivery, seal: Seal, envelope: bytes, flags: int, nonce: str) -> None:
        self.target, self.deadline, self.number = inner.target, inner.deadline, inner.number
        self.envelope, self.flags = envelope, flags
        self._inner = inner
        self._seal = seal
        self._nonce = nonce
        self._place = 0

    def reply(self, status: int, envelope: bytes, *, flags: int = 0, final: bool = True) -> None:
        envelope, flags = self._seal.close_reply(
            self._nonce, self._place, status, envelope, flags, final=final
        )
        self._place += 1
        self._inner.reply(status, envelope, flags=flags, final=final)

    def wait_for_window(self) -> None:
        self._inner.wait_for_window()
