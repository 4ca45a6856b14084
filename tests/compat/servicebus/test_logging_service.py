"""The name that py-servicebus has for it."""

from __future__ import annotations

import butler_mesh
from butler_mesh.compat.servicebus.logging_service import LoggingService


def test_it_is_the_meshs_own() -> None:
    assert LoggingService is butler_mesh.LoggingService
