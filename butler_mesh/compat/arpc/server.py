"""Workers: the methods ``c_…`` of an object, and commands for those who manage them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from butler_mesh import Service
from butler_mesh.compat.arpc.operations import AMQPOperations, Codec

F = TypeVar("F", bound=Callable[..., Any])

EXPOSED = "c_"


class Server:
    """A worker: answers by the methods ``c_…`` of an object, one request at a time."""

    def __init__(
        self,
        amqp: AMQPOperations,
        routing_key: str,
        obj: object,
        codec: Codec | None = None,
        *,
        allow_eval: bool = False,
    ) -> None:
        self.service = Service(
            amqp.address,
            routing_key,
            credit=1,
            durable=amqp.is_durable,
            allow_eval=allow_eval,
            passphrase=amqp.passphrase,
        )
        for name, _ in inspect.getmembers_static(obj, inspect.isroutine):
            if name.startswith(EXPOSED):
                answering = _answering(getattr(obj, name), codec)
                self.service.register_function(answering, name.removeprefix(EXPOSED))

    @property
    def wid(self) -> str:
        """This worker's id, once it runs."""
        return self.service.wid

    def command(self, function: F) -> F:
        """Register a management command, as a decorator: ``@server.command``."""
        return self.service.command(function)

    def loop(self) -> None:
        """Answer until a signal, ``stop`` or the command ``kill``; what has begun is finished."""
        self.service.run()

    def stop(self) -> None:
        """Make ``loop`` return."""
        self.service.stop()


def make_server(
    amqp: AMQPOperations, routing_key: str, obj: object, codec: Codec | None, *, allow_eval: bool = False
) -> Server:
    """Return a worker whose documents are written by ``codec``."""
    return Server(amqp, routing_key, obj, codec, allow_eval=allow_eval)


def make_json_server(
    amqp: AMQPOperations, routing_key: str, obj: object, *, allow_eval: bool = False
) -> Server:
    """Return a worker whose documents are JSON."""
    return Server(amqp, routing_key, obj, allow_eval=allow_eval)


def _answering(method: Callable[[Any], Any], codec: Codec | None) -> Callable[..., Any]:
    """Return the function that a method stands for: of a document, or of a mesh request's arguments."""

    def answer(*body: Any, **arguments: Any) -> Any:
        if codec is None:
            return method(body[0] if body else arguments)
        return codec.dumps(method(codec.loads(body[0])))

    return answer
