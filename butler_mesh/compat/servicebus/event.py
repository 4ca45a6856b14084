"""What was sent, and for whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """What was sent: its id, for whom, and the parameters, any JSON value."""

    id: str
    category: str
    service: str
    params: Any = None

    def nobody(self, kind: str) -> str:
        """Say that there is no service of that ``kind`` (RPC or Message) for it."""
        return f"Cannot Find {kind} Service: {self.category}.{self.service}"
