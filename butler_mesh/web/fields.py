"""Header fields: what one is, and which are between this hop and the next only."""

from __future__ import annotations

import re

HOP_BY_HOP = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})
"""Of one connection, in lower case (RFC 9110, 7.6.1): never passed on, and how a body is framed is each hop's
own to say."""

# RFC 9110, 5.1 and 5.5: a name is a token, and no value has control characters, but for tabs.
_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*")


def is_field(name: object, value: object) -> bool:
    """Tell whether this can be a line of a head, and no more than one; both are text, as WSGI has it."""
    if not (isinstance(name, str) and isinstance(value, str)) or ":" in name:
        return False
    return _FIELD.fullmatch(f"{name}:{value}") is not None
