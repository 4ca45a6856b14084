"""AMQPOperations: where the broker is, and what is asked of it."""

from __future__ import annotations

import os
from typing import Any, Protocol, Self
from urllib.parse import quote

from butler_mesh import Client

ADDRESS = "BUTLER_MESH_AMQP"
"""Where the broker is, for programs that do not say: ``amqp://user@host/vhost``, or any address of a mesh."""


class Codec(Protocol):
    """How documents travel that are not JSON: ``pickle``, ``marshal`` or ``msgpack`` would do."""

    def dumps(self, document: Any, /) -> bytes: ...
    def loads(self, data: bytes, /) -> Any: ...


class AMQPOperations:
    """Where the broker is, and what is asked of it. Callers made with one share its connection.

    ``useack`` and ``persistent`` together make requests without replies survive broker and worker: they are
    stored until a worker has served them. Else they are sent at most once, as calls always are.
    ``address`` (any of the mesh's) goes before host, user, password and vhost. Where one of these is given,
    the others are arpc's: localhost, guest, guest and ``/``. Where none is, the environment's
    ``BUTLER_MESH_AMQP`` counts. ``passphrase`` seals what callers send, and workers made with it take
    nothing else.
    """

    def __init__(
        self,
        host: str = "",
        userid: str = "",
        password: str = "",
        virtual_host: str = "",
        *,
        useack: bool = False,
        persistent: bool = False,
        address: str = "",
        passphrase: str | bytes | None = None,
    ) -> None:
        if host or userid or password or virtual_host:
            user = f"{quote(userid or 'guest', safe='')}:{quote(password or 'guest', safe='')}"
            vhost = "" if virtual_host in ("", "/") else f"/{quote(virtual_host, safe='')}"
            address = address or f"amqp://{user}@{host or 'localhost'}{vhost}"
        self.address = address or os.environ.get(ADDRESS) or "amqp://guest@localhost"
        self.useack = useack
        self.persistent = persistent
        self.passphrase = passphrase
        self.client = Client(self.address, passphrase=passphrase)

    @property
    def is_durable(self) -> bool:
        """Whether requests without replies are stored."""
        return self.useack and self.persistent and self.address.startswith("amqp")

    @property
    def raw(self) -> Any:
        """pika's connection, when there is one."""
        return self.client.raw

    def close(self) -> None:
        """Close the connection of the callers, when what they sent has arrived."""
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
