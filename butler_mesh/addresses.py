"""Addresses: where a router or broker listens, and which service behind it is meant.

::

    tcp://10.0.0.5:5555/api.images             endpoint, then the service
    tcp://10.0.0.5:5555,[fe80::1]:5555/images  several routers, the scheme written once
    amqp://user:password@a,b/vhost/images      the first segment is the vhost, the second the service
    amqp://a//images                           the default vhost
    ipc://run/mesh.sock#images                 ENDPOINT#SERVICE: good for every scheme, and the only
    memory://tests#images                      form where the endpoint itself may hold slashes

Without a service the router routes by path. ``tcp://*:5555`` and port ``0`` or ``*`` ("any free
one") make sense for binding only; whether a socket can use them is for the socket to say.
"""

from __future__ import annotations

import ipaddress
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from butler_mesh.errors import AddressError

EXAMPLES = {
    "tcp": "tcp://10.0.0.5:5555/api.images",
    "ipc": "ipc://run/mesh.sock#api.images",
    "memory": "memory://name#api.images",
    "amqp": "amqp://user:password@host/vhost/api.images",
    "amqps": "amqps://user:password@host/vhost/api.images",
}
BIND_HOST = "BUTLER_MESH_BIND_HOST"
"""Names what ``*`` means to all who bind: where a whole program is to keep to 127.0.0.1, say."""
LONGEST_SERVICE = 255  # bytes: RabbitMQ's limit for the name of a queue, which a service is there
LONGEST_IPC_PATH = 107  # bytes: Linux' sun_path less its closing zero

_LOCAL = ("ipc", "memory")
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(?::(.*))?", re.DOTALL)
_HOST = re.compile(r"\[.+\]|[\w.-]+|\*")
_PORT = re.compile(r"[0-9]{1,5}|\*")
_USER = re.compile(r"(?:[^@/?#,]*@)?")
_VHOST = re.compile(r"(?:/[^/?#]+)?")
_PASSWORD = re.compile(r"^((?:[^:]*+://)?+[^:@]*+):(?:.*(?=@)|.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """One or more endpoints of one scheme, and a service ('' lets the router route by path).

    ``str`` gives the shortest text that parses to an equal address, password included; ``repr``,
    which is what reaches logs, hides the password. Raises AddressError for anything malformed.
    """

    endpoints: tuple[str, ...]
    service: str = ""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise AddressError("an address needs at least one endpoint")
        for endpoint in self.endpoints:
            check_endpoint(endpoint)
        if len({_take_apart(endpoint)._replace(where="") for endpoint in self.endpoints}) > 1:
            raise AddressError("the endpoints of one address share scheme, user and vhost")
        if self.service:
            check_service(self.service)

    @classmethod
    def parse(cls, address: str | Iterable[str]) -> Address:
        """Read an address, or a list of them that all mean the same service."""
        if isinstance(address, str):
            return cls(*_split(address))
        parts = [_split(text) for text in address]
        services = {service for _, service in parts if service}
        if len(services) > 1:
            raise AddressError(f"one address cannot mean several services: {sorted(services)}")
        return cls(tuple(one for endpoints, _ in parts for one in endpoints), "".join(services))

    @property
    def scheme(self) -> str:
        """The word before ``://``: it decides which engine serves the address."""
        return self.endpoints[0].partition("://")[0]

    def __str__(self) -> str:
        scheme, user, _, vhost = _take_apart(self.endpoints[0])
        where = ",".join(_take_apart(endpoint).where for endpoint in self.endpoints)
        if not self.service:
            return f"{scheme}://{user}{where}{vhost}"
        if scheme in _LOCAL:
            return f"{scheme}://{where}#{self.service}"
        if scheme != "tcp":
            vhost = vhost or "/"
        return f"{scheme}://{user}{where}{vhost}/{self.service}"

    def __repr__(self) -> str:
        endpoints = tuple(_masked(one) if "@" in one else one for one in self.endpoints)
        return f"Address(endpoints={endpoints!r}, service={self.service!r})"


def check_endpoint(endpoint: str) -> None:
    """Raise AddressError unless ``endpoint`` is a single well-formed endpoint, without a service."""
    parts = _take_apart(endpoint)
    if " " in endpoint or not endpoint.isprintable():
        wrong = "white space and control characters have no place in an endpoint"
    elif parts.scheme == "ipc" and len(parts.where.encode()) > LONGEST_IPC_PATH:
        wrong = f"the path of a socket has at most {LONGEST_IPC_PATH} bytes"
    elif parts.scheme in _LOCAL:
        wrong = "" if _is_plain(parts.where) else "a path or name is needed, without ',' and '#'"
    elif not (_USER.fullmatch(parts.user) and _VHOST.fullmatch(parts.vhost)):
        wrong = "user, password and vhost need their special characters as %XX"
    else:
        wrong = _wrong_host_or_port(parts)
    if wrong:
        raise _error(endpoint, wrong)


def check_service(name: str) -> None:
    """Raise AddressError unless ``name`` can be the name of a service."""
    if not name:
        wrong = "is empty"
    elif len(name.encode(errors="replace")) > LONGEST_SERVICE:
        wrong = f"is longer than {LONGEST_SERVICE} bytes"
    elif name.startswith("/"):
        wrong = "begins with '/', as only paths do"
    elif name != name.strip():
        wrong = "has white space around it"
    elif any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        wrong = "has control characters or halves of surrogate pairs"
    elif "#" in name or "://" in name:
        wrong = "has '#' or '://' in it"
    else:
        return
    raise AddressError(f"service {name[:LONGEST_SERVICE]!r} {wrong}; a good one is 'api.images'")


def is_loopback(endpoint: str) -> bool:
    """Tell whether only processes of this machine can reach ``endpoint``.

    A name other than ``localhost`` counts as reachable: what it resolves to may change.
    """
    parts = _take_apart(endpoint)
    host, _ = _host_and_port(parts.where)
    ip = _ip(host)
    return parts.scheme in _LOCAL or host == "localhost" or (ip is not None and ip.is_loopback)


def to_bind(endpoint: str) -> str:
    """Return what to bind for ``endpoint``: its ``*`` is every interface, or the host that the environment
    variable BUTLER_MESH_BIND_HOST names. Raises AddressError."""
    check_endpoint(endpoint)
    host = os.environ.get(BIND_HOST)
    if host and endpoint.startswith("tcp://*:"):
        endpoint = f"tcp://{host}:{endpoint.rpartition(':')[2]}"
        check_endpoint(endpoint)
    return endpoint


def ipc_path(endpoint: str) -> str | None:
    """Return the socket file of an ``ipc:`` endpoint; None where there is no file.

    A name that begins with '@' lives in Linux' abstract namespace, not among the files.
    """
    parts = _take_apart(endpoint)
    return parts.where if parts.scheme == "ipc" and not parts.where.startswith("@") else None


class _Parts(NamedTuple):
    scheme: str
    user: str  # "user:password@" or ""
    where: str  # host and port, path or name: all in which the endpoints of one address differ
    vhost: str  # "/vhost" or ""


def _take_apart(endpoint: str) -> _Parts:
    """Cut an endpoint up without judging the pieces."""
    scheme, mark, rest = endpoint.partition("://")
    if not mark or scheme not in EXAMPLES:
        raise _error(endpoint, f"an address begins with one of {', '.join(s + '://' for s in EXAMPLES)}")
    if scheme in _LOCAL or scheme == "tcp":
        return _Parts(scheme, "", rest, "")
    authority, mark, vhost = rest.partition("/")
    user, at, where = authority.rpartition("@")
    return _Parts(scheme, user + at, where, mark + vhost)


def _split(text: str) -> tuple[tuple[str, ...], str]:
    """Cut an address into endpoints and service, judging only what the cut itself needs."""
    before, mark, service = text.partition("#")
    if mark and not service:
        raise _error(text, "the service after '#' is empty")
    if text.count("://") > 1:
        raise _error(text, "the scheme is written once, as in tcp://a:5555,b:5555/api.images")
    scheme, user, where, vhost = _take_apart(before)
    path = ""
    if scheme == "tcp":
        where, _, path = where.partition("/")
    elif scheme not in _LOCAL:
        vhost, _, path = vhost.removeprefix("/").partition("/")
        vhost = vhost and f"/{vhost}"
    if path and service:
        raise _error(text, "it names two services, one after '/' and one after '#'")
    return tuple(f"{scheme}://{user}{one}{vhost}" for one in where.split(",")), path or service


def _is_plain(where: str) -> bool:
    return bool(where) and "," not in where and "#" not in where


def _wrong_host_or_port(parts: _Parts) -> str:
    """Say what is wrong with host and port, '' if nothing is."""
    host, port = _host_and_port(parts.where)
    is_tcp = parts.scheme == "tcp"
    if not host:
        return "the host is empty (an IPv6 host goes in brackets)"
    looks_like_ip = host.startswith("[") or host.replace(".", "").isdecimal()
    if not _HOST.fullmatch(host) or (host == "*" and not is_tcp) or (looks_like_ip and _ip(host) is None):
        return "the host is neither a name nor an IP address"
    if port is None:
        return "the port is missing" if is_tcp else ""
    if not _PORT.fullmatch(port) or (port in ("0", "*") and not is_tcp):
        return "the port is not a number (an IPv6 host goes in brackets)"
    return "the port is over 65535" if port != "*" and int(port) > 65535 else ""


def _host_and_port(where: str) -> tuple[str, str | None]:
    found = _HOST_AND_PORT.fullmatch(where)
    return (found[1], found[2]) if found else (where, None)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.IPv6Address(host[1:-1]) if host[:1] == "[" else ipaddress.IPv4Address(host)
    except ValueError:
        return None


def _masked(text: str) -> str:
    """Hide what is, or in a malformed text could be, a password."""
    return _PASSWORD.sub(r"\1:***", text)


def _error(text: str, wrong: str) -> AddressError:
    scheme = text.partition("://")[0]
    shown = text if scheme in ("tcp", *_LOCAL) and "@" not in text else _masked(text)
    return AddressError(f"{shown!r}: {wrong}; for example {EXAMPLES.get(scheme, EXAMPLES['tcp'])}")
