"""HMAC over a list of fields: proof of a shared secret that never travels."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence


def sign(secret: str | bytes, *fields: str | bytes) -> str:
    """Return the hex HMAC-SHA256 over the fields, each length-prefixed: none runs into the next."""
    key = secret.encode() if isinstance(secret, str) else secret
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for field in fields:
        data = field.encode() if isinstance(field, str) else field
        mac.update(len(data).to_bytes(8, "big"))
        mac.update(data)
    return mac.hexdigest()


def is_signed(signature: object, secret: str | bytes, *fields: str | bytes) -> bool:
    """Tell, in constant time, whether ``signature`` is what ``sign`` returns for the fields."""
    return isinstance(signature, str) and hmac.compare_digest(
        signature.encode("utf-8", "replace"), sign(secret, *fields).encode()
    )


def ready_fields(nonce: str, wid: str, epoch: str, service: str, paths: Sequence[str]) -> list[str]:
    """Return what an instance signs to register: WELCOME's nonce makes it worth one connection only."""
    return [nonce, wid, epoch, service, *paths]
