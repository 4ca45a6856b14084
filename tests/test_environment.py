"""Secrets from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from butler_mesh.environment import secret
from butler_mesh.errors import UsageError

NAME = "BUTLER_MESH_TEST_SECRET"


def test_a_secret_is_the_variables_or_in_the_file_that_it_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert secret(NAME) is None
    monkeypatch.setenv(NAME, "")
    assert secret(NAME) is None
    (tmp_path / "secret").write_text("from the file\n")
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "secret"))
    assert secret(NAME) == "from the file"
    monkeypatch.setenv(f"{NAME}_FILE", "")
    monkeypatch.setenv(NAME, " its own ")
    assert secret(NAME) == " its own "


def test_of_two_none_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(NAME, "one")
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path))
    with pytest.raises(UsageError, match=f"{NAME} and {NAME}_FILE are both set: set one of the two"):
        secret(NAME)


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_file_that_cannot_be_read_is_told_by_its_variable(
    content: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "secret"))
    with pytest.raises(UsageError, match=f"{NAME}_FILE: "):
        secret(NAME)
