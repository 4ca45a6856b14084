"""Cookies: their lines in the head of a reply, and signed values, which a browser can read and not change."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from itsdangerous import BadData, URLSafeTimedSerializer
from werkzeug.http import dump_cookie

from butler_mesh.errors import NotSerializable, UsageError

MAX_COOKIE_BYTES = 4093
"""Browsers drop a longer cookie without a word: their 4096 (RFC 6265, 6.1), less what some count on top."""

# All that browsers send back as it was set: more than RFC 6265's token, for others' cookies have such names.
_NAME = re.compile(r'[^\x00-\x20\x7f",;=]+')
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_name(name: str) -> bool:
    """Tell whether a cookie can have this name."""
    return _NAME.fullmatch(name) is not None


def line(name: str, value: str, **options: Any) -> str:
    """Return what stands after ``Set-Cookie:``; ``options`` are those of werkzeug's ``Response.set_cookie``.

    Raises UsageError for a name or an option that cannot be written, for a value that is no text, and for
    a cookie of more than MAX_COOKIE_BYTES.
    """
    if not is_name(name):
        raise UsageError(f"no cookie can have the name {name!r:.100}")
    if not isinstance(value, str):
        raise UsageError(f"the cookie {name!r} holds text, not {type(value).__name__}; signed ones hold JSON")
    for option, text in options.items():
        if isinstance(text, str) and (";" in text or _CONTROL.search(text)):
            raise UsageError(f"the cookie {name!r} cannot have the {option} {text!r:.100}")
    try:
        made = dump_cookie(name, value, max_size=0, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the cookie {name!r} cannot be written: {error}") from error
    if _CONTROL.search(made):  # werkzeug escapes most of them
        raise UsageError(f"the cookie {name!r} cannot be written: there are control characters in it")
    if len(made) > MAX_COOKIE_BYTES:
        raise UsageError(f"the cookie {name!r} takes {len(made)} bytes; browsers keep {MAX_COOKIE_BYTES}")
    return made


def sign(name: str, value: Any, secret: str | bytes) -> str:
    """Return a JSON value as text that ``unsign`` takes back, under the same name and secret only.

    Whoever has the cookie can read the value: it is signed, not encrypted. Raises NotSerializable for a value
    that JSON cannot hold, UsageError without a secret.
    """
    try:
        return _signer(name, secret).dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise NotSerializable(
            f"the cookie {name!r} cannot hold this {type(value).__name__}: {error}"
        ) from error


def unsign(name: str, signed: str, secret: str | bytes, max_age: float | None = None) -> Any:
    """Return the value that was signed.

    Raises ValueError for anything that ``sign`` did not make of this name with this secret, or made more than
    ``max_age`` seconds ago; UsageError without a secret.
    """
    signer = _signer(name, secret)
    try:
        return signer.loads(signed, max_age)  # type: ignore[arg-type]  # its seconds may be a fraction
    except BadData as error:
        raise ValueError(f"not a value of the cookie {name!r}: {error}") from error


def _signer(name: str, secret: str | bytes) -> URLSafeTimedSerializer:
    if not secret:
        raise UsageError("a signature needs a secret")  # with an empty one everybody could make it
    # The name is in the key: a value that is good under one name is not under another. SHA-1, the library's
    # default, would do; SHA-256 needs no explanation.
    return URLSafeTimedSerializer(
        secret,
        salt=f"butler_mesh cookie {name}",
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
    )
