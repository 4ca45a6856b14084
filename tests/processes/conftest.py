"""What the tests with real processes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.parties import Parties


@pytest.fixture
def parties(tmp_path: Path) -> Iterator[Parties]:
    """Processes that end with the test; what they printed is shown when it fails."""
    all_of_them = Parties(tmp_path)
    yield all_of_them
    all_of_them.stop()
