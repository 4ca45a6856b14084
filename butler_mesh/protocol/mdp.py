"""The Majordomo dialects that a router recognises by the first frames, as tables and codecs.

======================  =====================  ======================  =======================
                        MDP/0.1 (RFC 7)        MDP/0.2 (RFC 18)        majortomo 0.2
======================  =====================  ======================  =======================
opens with              ``'' MDPC01|MDPW01``   ``MDPC02|MDPW02``       ``'' MDPC02|MDPW02``
client REQUEST          no command frame       ``01``                  ``02``
reply to the client     header, service, body  header, 02|03, service  header, 03|04, no service
worker reply            REPLY ``03``           PARTIAL 03, FINAL 04    PARTIAL 03, FINAL 04
HEARTBEAT, DISCONNECT   ``04 05``              ``05 06``               ``05 06``
======================  =====================  ======================  =======================

Frames here are as the peer's DEALER sees them, without the routing id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from butler_mesh.errors import ProtocolError
from butler_mesh.protocol.mesh import Frame

# Worker commands in the router's own words; each dialect has its table from the wire's byte.
READY = "READY"
REPLY_PARTIAL = "PARTIAL"
REPLY_FINAL = "FINAL"
HEARTBEAT = "HEARTBEAT"
DISCONNECT = "DISCONNECT"


class MalformedMDP(ProtocolError):
    """Frames that open like a dialect and then break its table."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One wire: what its frames begin with and which byte means what."""

    name: str
    # The empty frame that a REQ socket puts first; RFC 18 did away with it, majortomo did not.
    lead: tuple[bytes, ...]
    client_header: bytes
    worker_header: bytes
    # None: the client's request carries no command frame (0.1).
    client_request: bytes | None
    client_partial: bytes | None
    client_final: bytes | None
    names_service: bool
    worker_commands: dict[bytes, str]
    worker_heartbeat: bytes
    worker_disconnect: bytes

    def reply(self, service: bytes, body: Sequence[Frame], *, final: bool) -> list[Frame]:
        """Return the frames of a reply to a client. A dialect without PARTIAL must not be given one."""
        frames: list[Frame] = [*self.lead, self.client_header]
        command = self.client_final if final else self.client_partial
        if command is not None:
            frames.append(command)
        if self.names_service:
            frames.append(service)
        frames += body
        return frames

    def request(self, address: bytes, body: Sequence[Frame]) -> list[Frame]:
        """Return the frames of a REQUEST to a worker; it sends ``address`` back with its reply."""
        return [*self.lead, self.worker_header, b"\x02", address, b"", *body]

    def heartbeat(self) -> list[Frame]:
        """Return the frames of a HEARTBEAT to a worker."""
        return [*self.lead, self.worker_header, self.worker_heartbeat]

    def disconnect(self) -> list[Frame]:
        """Return the frames of a DISCONNECT to a worker."""
        return [*self.lead, self.worker_header, self.worker_disconnect]

    @property
    def has_partial(self) -> bool:
        """Whether a client of this dialect can be sent part of a reply."""
        return self.client_partial is not None


_COMMANDS_02 = {
    b"\x01": READY,
    b"\x03": REPLY_PARTIAL,
    b"\x04": REPLY_FINAL,
    b"\x05": HEARTBEAT,
    b"\x06": DISCONNECT,
}

MDP_01 = Dialect(
    name="MDP/0.1",
    lead=(b"",),
    client_header=b"MDPC01",
    worker_header=b"MDPW01",
    client_request=None,
    client_partial=None,
    client_final=None,
    names_service=True,
    worker_commands={b"\x01": READY, b"\x03": REPLY_FINAL, b"\x04": HEARTBEAT, b"\x05": DISCONNECT},
    worker_heartbeat=b"\x04",
    worker_disconnect=b"\x05",
)
MDP_02 = Dialect(
    name="MDP/0.2",
    lead=(),
    client_header=b"MDPC02",
    worker_header=b"MDPW02",
    client_request=b"\x01",
    client_partial=b"\x02",
    client_final=b"\x03",
    names_service=True,
    worker_commands=_COMMANDS_02,
    worker_heartbeat=b"\x05",
    worker_disconnect=b"\x06",
)
MAJORTOMO = Dialect(
    name="majortomo/0.2",
    lead=(b"",),
    client_header=b"MDPC02",
    worker_header=b"MDPW02",
    client_request=b"\x02",
    client_partial=b"\x03",
    client_final=b"\x04",
    names_service=False,
    worker_commands=_COMMANDS_02,
    worker_heartbeat=b"\x05",
    worker_disconnect=b"\x06",
)

_CLIENT_BY_OPENING: dict[tuple[bytes, ...], Dialect] = {
    (*dialect.lead, dialect.client_header): dialect for dialect in (MDP_01, MDP_02, MAJORTOMO)
}
_WORKER_BY_OPENING: dict[tuple[bytes, ...], Dialect] = {
    (*dialect.lead, dialect.worker_header): dialect for dialect in (MDP_01, MDP_02, MAJORTOMO)
}


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A client's REQUEST: service name and the body's frames, untouched."""

    dialect: Dialect
    service: bytes
    body: Sequence[Frame]


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """A worker's message: ``command`` is one of the words above, '' when its byte is not in the table;
    ``rest`` is what follows it."""

    dialect: Dialect
    command: str
    rest: Sequence[Frame]


def parse(frames: Sequence[Frame]) -> ClientRequest | WorkerCommand | None:
    """Return what the frames say; None when they open like no dialect.

    Raises MalformedMDP when they open like one and then break its table.
    """
    opening, rest = _opening(frames)
    dialect = _CLIENT_BY_OPENING.get(opening)
    if dialect is not None:
        return _client_request(dialect, rest)
    dialect = _WORKER_BY_OPENING.get(opening)
    if dialect is not None:
        if not rest:
            raise MalformedMDP(f"{dialect.name}: a worker's message without a command")
        return WorkerCommand(dialect, dialect.worker_commands.get(bytes(rest[0]), ""), rest[1:])
    return None


def _opening(frames: Sequence[Frame]) -> tuple[tuple[bytes, ...], Sequence[Frame]]:
    """Split off the frames that tell the dialect; a frame longer than a header tells nothing."""
    n = 2 if frames and len(frames[0]) == 0 else 1
    if len(frames) < n or len(frames[n - 1]) != 6:
        return (), frames
    return tuple(bytes(frame) for frame in frames[:n]), frames[n:]


def _client_request(dialect: Dialect, rest: Sequence[Frame]) -> ClientRequest:
    if dialect.client_request is not None:
        if not rest or bytes(rest[0]) != dialect.client_request:
            raise MalformedMDP(f"{dialect.name}: a client may only send REQUEST")
        rest = rest[1:]
    if len(rest) < 2 or not len(rest[0]):
        raise MalformedMDP(f"{dialect.name}: a REQUEST needs a service name and a body")
    return ClientRequest(dialect, bytes(rest[0]), rest[1:])
