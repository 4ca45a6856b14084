"""pika's GeventConnection and nothing else, doing what our engine does: the same queues, no deadlines, no
statuses, no reconnection. Requests are answered in pika's callback: no greenlet is paid for.
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks.harness import Body, Call, Greenlets, Tally, attend_greenlets
from benchmarks.system import Place, System
from benchmarks.systems.rabbitmq import BROKER, ROLES

SYSTEMS = [
    System(name="bare pika", module="pika", form="calls", roles=ROLES),
    System(name="bare pika durable", module="pika", form="durable", roles=ROLES),
]
CREDIT = 64
PATIENCE_S = 30.0
REPLY_TO = "amq.rabbitmq.reply-to"


def worker(form: str, place: Place) -> None:
    """Answer with what was sent, or take what was stored."""
    import ujson
    from pika import BasicProperties

    channel, tally = _channel(), Tally()

    def echo(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        tally.add()
        reply = ujson.dumps(ujson.loads(body)).encode()
        if properties.reply_to:
            answer = BasicProperties(correlation_id=properties.correlation_id)
            channel.basic_publish("", properties.reply_to, reply, answer)
        channel.basic_ack(method.delivery_tag)

    if form == "durable":
        channel.queue_declare(_queue(form), durable=True, arguments={"x-queue-type": "quorum"})
    else:
        channel.queue_declare(_queue(form), arguments={"x-expires": 60_000})
    channel.basic_qos(prefetch_count=CREDIT)
    channel.basic_consume(_queue(form), echo)
    attend_greenlets(tally.answer)


def client(form: str, place: Place) -> None:
    """Call from greenlets that share one connection."""
    Greenlets(_storing if form == "durable" else _calling).run()


def _calling() -> Call:
    import ujson
    from gevent.event import AsyncResult
    from pika import BasicProperties

    channel = _channel()
    waiting: dict[str, AsyncResult[bytes]] = {}

    def replied(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        waiting.pop(properties.correlation_id).set(body)

    def returned(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        waiting.pop(properties.correlation_id).set_exception(LookupError("nobody reads that queue"))

    channel.add_on_return_callback(returned)
    channel.basic_consume(REPLY_TO, replied, auto_ack=True)
    last = 0

    def call(sent: Body) -> Body:
        nonlocal last
        last += 1
        id_, result = str(last), AsyncResult()
        waiting[id_] = result
        properties = BasicProperties(correlation_id=id_, reply_to=REPLY_TO)
        channel.basic_publish("", _queue("calls"), ujson.dumps(sent).encode(), properties, mandatory=True)
        return ujson.loads(result.get(timeout=PATIENCE_S))  # type: ignore[no-any-return]

    return call


def _storing() -> Call:
    import ujson
    from gevent.event import AsyncResult
    from pika import BasicProperties

    channel = _channel()
    waiting: dict[int, AsyncResult[None]] = {}
    missing: list[LookupError] = []

    def confirmed(frame: Any) -> None:
        tag = frame.method.delivery_tag
        for each in [each for each in waiting if each <= tag] if frame.method.multiple else [tag]:
            waiting.pop(each).set(None)

    # A queue that is not there yet: the word comes before the confirmation.
    channel.add_on_return_callback(lambda *_: missing.append(LookupError("nobody reads that queue")))
    channel.confirm_delivery(confirmed)
    properties = BasicProperties(delivery_mode=2)
    last = 0

    def call(sent: Body) -> Body:
        nonlocal last
        last += 1
        result = waiting[last] = AsyncResult()
        channel.basic_publish("", _queue("durable"), ujson.dumps(sent).encode(), properties, mandatory=True)
        result.get(timeout=PATIENCE_S)
        if missing:
            raise missing.pop()
        return sent

    return call


def _channel() -> Any:
    """Return an open channel of a connection of its own."""
    from gevent.event import AsyncResult
    from pika import URLParameters
    from pika.adapters.gevent_connection import GeventConnection

    opened: AsyncResult[Any] = AsyncResult()
    GeventConnection(
        URLParameters(f"{os.environ[BROKER]}/%2f"),
        on_open_callback=lambda connection: connection.channel(on_open_callback=opened.set),
        on_open_error_callback=lambda connection, error: opened.set_exception(error),
    )
    return opened.get(timeout=PATIENCE_S)


def _queue(form: str) -> str:
    return f"bench.pika.{form}"
