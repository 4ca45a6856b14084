"""How tests cut the connections of the engines over AMQP."""

from __future__ import annotations

import os
import socket

from butler_mesh.connections.amqp.client import AmqpClient
from butler_mesh.connections.amqp.instance import AmqpInstance
from butler_mesh.connections.amqp.link import Link


def link_of(side: object) -> Link:
    """Return the place on a connection of a client or an instance."""
    assert isinstance(side, AmqpClient | AmqpInstance)
    return side._link


def cut(link: Link) -> None:
    """Shut a connection's socket down, as a firewall does that has had enough of it."""
    for fd in {fd for fd, _ in link._keeper._services._watchers}:
        with socket.socket(fileno=os.dup(fd)) as shared:
            shared.shutdown(socket.SHUT_RDWR)
