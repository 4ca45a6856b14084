"""Where the brokers are, who we are, and what we share with those we talk to."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from butler_mesh.errors import UsageError

EXCHANGE = "py-servicebus"
WIRES = ("mesh", "xml")


class Configuration:
    """What agents and senders are made of; from a dict with at least ``hosts`` and ``secret_token``.

    ``hosts`` are brokers that need not know of each other, the preferred one first; one may be ``host:port``.
    ``port`` (5672), ``ssl_port`` (5671), ``use_ssl``, ``user``, ``password`` (or BUTLER_MESH_AMQP_PASSWORD),
    ``node_name`` (the machine's name) are theirs. ``socket_timeout`` (5 s) is a sender's patience with all
    the hosts together. ``wire='xml'`` is for talking to py-servicebus itself: a sender then writes its
    messages, an agent reads them as well as the mesh's; ``exchange_name`` is theirs.
    ``heartbeat_interval`` is kept and not needed: a broker that is frozen is found out in any case.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        for name in ("hosts", "secret_token"):
            if not config.get(name):
                raise UsageError(f"a configuration needs {name!r}")
        self.hosts = [config["hosts"]] if isinstance(config["hosts"], str) else list(config["hosts"])
        self.secret_token = str(config["secret_token"])
        self.port = int(config.get("port", 5672))
        self.ssl_port = int(config.get("ssl_port", 5671))
        self.use_ssl = bool(config.get("use_ssl", False))
        self.user: str | None = config.get("user")
        self.password: str | None = config.get("password")
        self.node_name = str(config.get("node_name") or platform.node())
        self.exchange_name = str(config.get("exchange_name", EXCHANGE))
        self.socket_timeout = float(config.get("socket_timeout", 5))
        self.heartbeat_interval = config.get("heartbeat_interval", 60)
        self.wire = config.get("wire", "mesh")
        if self.wire not in WIRES:
            raise UsageError(f"a wire is one of {', '.join(WIRES)}, not {self.wire!r}")

    def __repr__(self) -> str:
        return f"<Configuration {self.node_name!r} at {', '.join(map(str, self.hosts))}>"

    def get_port(self) -> int:
        """Return the port of hosts that say none."""
        return self.ssl_port if self.use_ssl else self.port

    def queue_name(self) -> str:
        """Return the name of this node's queue in py-servicebus."""
        return self.node_name

    def address(self, *hosts: str, service: str = "") -> str:
        """Return the mesh's address of a service at these hosts, or of the hosts themselves."""
        where = ",".join(self._where(host) for host in hosts)
        user = "" if self.user is None else quote(self.user, safe="")
        if user and self.password is not None:
            user += f":{quote(self.password, safe='')}"
        scheme = "amqps" if self.use_ssl else "amqp"
        return f"{scheme}://{user}{'@' if user else ''}{where}{f'#{service}' if service else ''}"

    def _where(self, host: str) -> str:
        if host.count(":") > 1 and not host.startswith("["):
            host = f"[{host}]"
        has_port = ":" in host.rpartition("]")[2]
        return host if has_port else f"{host}:{self.get_port()}"


def service_name(node: str) -> str:
    """Return the mesh's service of a node: its own name is that of the queue py-servicebus reads."""
    return f"servicebus.{node}"


def message_service(node: str, category: str, name: str) -> str:
    """Return the mesh's service that takes a node's messages to ``category.name``."""
    return f"{service_name(node)}:{category}.{name}"
