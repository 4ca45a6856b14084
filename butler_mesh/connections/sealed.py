"""Connections whose requests and replies are sealed with a passphrase, over any engine.

What an engine is to be relied on for stays as it is. A request without the right seal reaches no handler:
its caller gets 401. A reply without the right one is 502, but for failures: a router, which knows no
passphrase, may say that something did not work, and is believed in that and in nothing else.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from butler_mesh import codec, status
from butler_mesh.connections.base import (
    ALL,
    MANAGEMENT,
    ClientConnection,
    Delivery,
    Handler,
    InstanceConnection,
    OnReply,
)
from butler_mesh.errors import Unavailable
from butler_mesh.protocol.mesh import DURABLE, FINAL
from butler_mesh.sealing import NONCE_LENGTH, BrokenSeal, Nonces, Seal, without_seal

_log = logging.getLogger("butler_mesh.service")

WallClock = Callable[[], float]


class SealedClient(ClientConnection):
    """Seals what is submitted, and checks what comes back."""

    def __init__(self, inner: ClientConnection, seal: Seal, clock: WallClock = time.time) -> None:
        self._inner = inner
        self.can_store = inner.can_store
        self._seal = seal
        self._clock = clock

    @property
    def raw(self) -> Any:
        return self._inner.raw

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
        if target.startswith("mmi."):
            # A question to the router, which has no passphrase; nor is there anything to keep from it.
            return self._inner.submit(
                target, envelope, deadline=deadline, flags=flags, on_reply=on_reply, window=window
            )
        # New with each attempt, so that what is sent again is not taken for a repetition.
        nonce = secrets.token_hex(NONCE_LENGTH // 2)
        # A command's seal is for whom it is meant: all of a service, or one.
        sealed_for = MANAGEMENT + (target if scope == ALL else scope) if scope else target
        envelope, flags = self._seal.close_request(
            sealed_for, envelope, flags, nonce=nonce, now=self._clock()
        )
        opener: OnReply = _Opener(self._seal, nonce, on_reply, is_gathering=scope == ALL)
        if flags & DURABLE:
            # What is said of it is the broker's word, by our own engine.
            opener = on_reply
        return self._inner.submit(
            target,
            envelope,
            deadline=deadline,
            flags=flags,
            on_reply=opener,
            window=window,
            scope=scope,
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
    """Opens the replies of one call, in their order; or those of many to the same one, each its only one."""

    __slots__ = ("_is_gathering", "_is_over", "_nonce", "_on_reply", "_place", "_seal")

    def __init__(self, seal: Seal, nonce: str, on_reply: OnReply, *, is_gathering: bool = False) -> None:
        self._seal = seal
        self._nonce = nonce
        self._on_reply = on_reply
        self._is_gathering = is_gathering
        self._place = 0
        # Nothing is believed after a part that was not.
        self._is_over = False

    def __call__(self, kind: int, code: int, flags: int, envelope: bytes) -> None:
        if self._is_over:
            return
        if self._is_gathering:
            self._open_one(kind, code, flags, envelope)
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

    def _open_one(self, kind: int, code: int, flags: int, envelope: bytes) -> None:
        """Hand on what an instance has sealed, or what says that something did not work; the end is the
        engine's own word."""
        if kind != FINAL:
            try:
                envelope, flags = self._seal.open_reply(self._nonce, 0, code, envelope, flags, final=True)
            except BrokenSeal:
                if code < 400:
                    return
                envelope, flags = without_seal(envelope, flags), 0
        self._on_reply(kind, code, flags, envelope)


class SealedInstance(InstanceConnection):
    """Lets only sealed requests for its own service and paths through, and seals the replies."""

    def __init__(
        self,
        inner: InstanceConnection,
        seal: Seal,
        service: str,
        paths: Sequence[str] = (),
        clock: WallClock = time.time,
    ) -> None:
        self._inner = inner
        self.wid = inner.wid
        self._seal = seal
        self._service = service
        self._paths = paths
        self._clock = clock
        self._nonces = Nonces()
        # Strangers get a line in the log a second: when the last was, and how many had none since.
        self._told_at = 0.0
        self._untold = 0

    def serve(self, handler: Handler) -> None:
        def guarded(delivery: Delivery) -> object:
            try:
                opened = self._open(delivery)
                if not self._is_ours(delivery.target):
                    # Of another service with the same passphrase, and led astray on the way.
                    raise BrokenSeal("the request was sealed for another service")
            except BrokenSeal as broken:
                self._refuse(delivery, status.UNAUTHORIZED, str(broken))
            except Unavailable as late:
                self._refuse(delivery, late.status, str(late), late.retry_after_s or 0.0)
            else:
                return handler(SealedDelivery(delivery, self._seal, *opened))
            return True

        self._inner.serve(guarded)

    @property
    def raw(self) -> Any:
        return self._inner.raw

    def _open(self, delivery: Delivery) -> tuple[bytes, int, str]:
        targets = [delivery.target]
        if delivery.target.startswith(MANAGEMENT):
            # Whether it came by our wid or by our service's name, engines tell us in their own ways.
            targets = [MANAGEMENT + self._inner.wid, MANAGEMENT + self._service]
        while True:
            target = targets.pop(0)
            try:
                return self._seal.open_request(
                    target, delivery.envelope, delivery.flags, self._nonces, self._clock()
                )
            except BrokenSeal:
                if not targets:
                    raise

    def _is_ours(self, target: str) -> bool:
        if target.startswith(MANAGEMENT):
            return True  # _open has seen to that.
        if not target.startswith("/"):
            return target == self._service
        return any(f"{target}/".startswith(f"{path.rstrip('/')}/") for path in self._paths)

    def _refuse(self, delivery: Delivery, code: int, why: str, pause_s: float | None = None) -> None:
        now = time.monotonic()
        if now - self._told_at >= 1.0:
            _log.warning("refused-unsealed %.200r: %s (%d before)", delivery.target, why, self._untold)
            self._told_at, self._untold = now, 0
        else:
            self._untold += 1
        headers = {} if pause_s is None else {"Retry-After": f"{pause_s:g}"}
        delivery.reply(code, codec.dumps({"message": why, "headers": headers}))

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
