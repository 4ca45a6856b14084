"""One log file for many processes."""

from __future__ import annotations

from butler_mesh import LoggingService

__all__ = ["LoggingService"]
