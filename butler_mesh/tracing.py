"""The trace that the work at hand belongs to: W3C ``traceparent``, carried from request to request."""

from __future__ import annotations

from contextvars import ContextVar

HEADER = "traceparent"

current: ContextVar[str] = ContextVar("butler_mesh_traceparent", default="")
"""The header's value as it came with the present request; '' where there is no trace."""
