"""The stored requests that nobody could serve: to be looked at, served after all, or thrown away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from gevent.event import AsyncResult
from pika.exceptions import AMQPError
from pika.spec import Basic

from butler_mesh.connections.amqp import messages, queues
from butler_mesh.connections.amqp.link import Link
from butler_mesh.errors import DeadlineExceeded, MeshError, NotFound, Unavailable, failure
from butler_mesh.protocol.client import CONNECT_TIMEOUT_S
from butler_mesh.protocol.mesh import RAW, Malformed, split_raw
from butler_mesh.sealing import unproven

TIMEOUT_S = 10.0
"""Patience with each of the broker's answers."""


@dataclass(frozen=True, slots=True)
class Dead:
    """One request, why it is here (``rejected``: its handler answered 4xx; ``delivery_limit``: it failed
    too often; ``unreadable``: it is no request; '' where a stranger says nothing), its envelope and flags as
    they were stored."""

    id: str
    target: str
    reason: str
    envelope: bytes = field(repr=False)
    flags: int = 0

    @property
    def text(self) -> str:
        """The request as a person reads it: its JSON, of bytes how many, and whether it was sealed (which
        is not to say by whom)."""
        envelope, flags, rest = self.envelope, self.flags, ""
        sealed = unproven(envelope, flags)
        if sealed is not None:
            (envelope, flags), rest = sealed, " (sealed)"
        if flags & RAW:
            with suppress(Malformed):  # then it is shown as it is
                envelope, parts = split_raw(envelope)
                rest = f" and {sum(map(len, parts))} bytes{rest}"
        return envelope.decode("utf-8", "backslashreplace") + rest


class DeadLetters:
    """The dead of one durable service. Every method waits for the broker, and raises NotFound where there
    is no such service, Unavailable or DeadlineExceeded where there is no broker, BadRequest for a refusal."""

    def __init__(self, endpoints: Sequence[str], service: str) -> None:
        self.service = service
        self._queue = queues.dead_queue(service)
        self._home = queues.durable_queue(service)
        self._answer: AsyncResult[Any] = AsyncResult()
        self._channel: Any = None
        self._link = Link(
            endpoints,
            "out",
            on_up=self._up,
            on_down=lambda reason: self._fail(Unavailable(f"the broker was lost: {reason}", status=503)),
            on_refused=lambda code, reason: self._fail(failure(code, reason)),
        )
        self._link.start()
        try:
            self._channel = self._wait()
            self._ask(lambda done: self._channel.confirm_delivery(self._confirmed, done))
        except BaseException:
            self._link.close(1.0)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close(1.0)

    def count(self) -> int:
        """Return how many there are."""
        frame = self._ask(lambda done: self._channel.queue_declare(self._queue, passive=True, callback=done))
        return int(frame.method.message_count)

    def show(self, limit: int) -> list[Dead]:
        """Return the oldest, at most so many. They stay, but behind the rest, where RabbitMQ puts them.

        Until all of those are here, nobody else gets at them, and all are held in memory.
        """
        seen: list[Dead] = []
        tag = 0
        for _ in range(min(limit, self.count())):
            message = self._get()
            if message is None:
                break
            tag, properties, body = message
            target = messages.request_target(properties, self._home)
            reason = (properties.headers or {}).get("x-first-death-reason") or properties.type or ""
            seen.append(
                Dead(properties.correlation_id or "", target, str(reason or ""), body, _flags(properties))
            )
        if tag:
            self._channel.basic_nack(tag, multiple=True, requeue=True)
        return seen

    def redrive(self, limit: int) -> int:
        """Give the oldest back to the service, as new, at most so many; return how many that were.

        Each leaves here when it is safe there: one that is interrupted may be in both places, never in none.
        """
        given_back = 0
        for _ in range(min(limit, self.count())):
            message = self._get()
            if message is None:
                break
            tag, properties, body = message
            headers = properties.headers or {}
            # Our own words, and not the broker's notes of what has happened to it: it begins anew.
            properties.headers = {name: headers[name] for name in messages.STORED_HEADERS if name in headers}
            self._give_back(body, properties)
            self._channel.basic_ack(tag)
            given_back += 1
        return given_back

    def purge(self) -> int:
        """Throw all away; return how many those were."""
        self.count()
        frame = self._ask(lambda done: self._channel.queue_purge(self._queue, callback=done))
        return int(frame.method.message_count)

    # --- the broker's answers, one at a time --------------------------------------------------

    def _up(self) -> None:
        self._link.open(self._opened, self._closed)

    def _opened(self, channel: Any) -> None:
        channel.add_on_return_callback(
            lambda *_: self._fail(NotFound(f"there is no queue {self._home!r}", status=404))
        )
        channel.add_callback(lambda _: self._answer.set(None), [Basic.GetEmpty], one_shot=False)
        self._answer.set(channel)

    def _closed(self, reason: Any) -> None:
        if getattr(reason, "reply_code", 0) == 404:
            self._fail(NotFound(f"there is no durable service {self.service!r}", status=404))
        else:
            self._fail(Unavailable(f"the broker has closed the channel: {reason}", status=503))

    def _confirmed(self, frame: Any) -> None:
        if isinstance(frame.method, Basic.Nack):
            self._fail(Unavailable("the broker could not take it back", status=503))
        elif not self._answer.ready():
            self._answer.set(None)

    def _fail(self, error: MeshError) -> None:
        if not self._answer.ready():
            self._answer.set_exception(error)

    def _give_back(self, body: bytes, properties: Any) -> None:
        self._ask(lambda _: self._channel.basic_publish("", self._home, body, properties, mandatory=True))

    def _get(self) -> tuple[int, Any, bytes] | None:
        answer: tuple[int, Any, bytes] | None = self._ask(
            lambda done: self._channel.basic_get(
                self._queue, lambda _, method, properties, body: done((method.delivery_tag, properties, body))
            )
        )
        return answer

    def _ask(self, question: Callable[[Callable[[Any], None]], Any]) -> Any:
        self._answer = AsyncResult()
        try:
            question(self._answer.set)
        except AMQPError as error:
            raise Unavailable(f"the broker was lost: {error}", status=503) from error
        return self._wait()

    def _wait(self) -> Any:
        patience_s = TIMEOUT_S if self._link.connection is not None else CONNECT_TIMEOUT_S
        if not self._answer.wait(patience_s) and not self._answer.ready():
            if self._link.connection is None:
                raise Unavailable("no broker can be reached", status=503)
            raise DeadlineExceeded("the broker says nothing")
        return self._answer.get()


def _flags(properties: Any) -> int:
    try:
        return messages.request_flags(properties, is_stored=True)
    except ValueError:  # nobody of ours has sent it
        return 0
