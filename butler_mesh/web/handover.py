"""A browser's connection that its front hands to a service: how that is told, and proved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from butler_mesh import codec
from butler_mesh.signing import is_signed, sign

OWN = "butler-mesh-"
"""What the mesh's own headers begin with. None of them is passed on from a browser, or to one."""
REPLY_TO = f"{OWN}reply-to"
"""Header of a request whose browser may be answered directly: where, whom, and the proof."""
ANSWERED = f"{OWN}answered"
"""Header of the reply that says it has been."""


class ReplyTo(NamedTuple):
    """A browser's connection, as its front describes it. ``max_bytes`` is what it takes at once."""

    endpoint: str
    sender: str
    connection: str
    method: str
    version: str
    max_bytes: int

    def header(self, secret: str | bytes) -> str:
        """Return it as a header's value, signed: whoever makes a request must not choose whom it answers."""
        return codec.dumps([*self, sign(secret, *map(str, self))]).decode()

    @classmethod
    def of(cls, headers: Mapping[str, Any], secrets: Mapping[str, str | bytes]) -> Self | None:
        """Return what a request's headers say; None where there is nothing, or nothing proved by the secret
        of its endpoint."""
        try:
            *fields, signature = codec.loads(headers[REPLY_TO].encode())
            found = cls(*fields)
            secret = secrets[found.endpoint]
        except (AttributeError, KeyError, ValueError, TypeError):
            return None
        is_well = all(isinstance(one, str) for one in found[:-1]) and isinstance(found.max_bytes, int)
        return found if is_well and is_signed(signature, secret, *map(str, found)) else None


def without_own(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return headers without the mesh's own."""
    return {name: value for name, value in headers.items() if not name.lower().startswith(OWN)}
