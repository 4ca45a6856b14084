"""``python -m butler_mesh`` is ``butler-mesh``."""

from __future__ import annotations

import pytest

from tests.programs import run


@pytest.mark.slow
def test_the_module_runs_the_command_line_under_its_name() -> None:
    code, out, err = run("-m", "butler_mesh", "--help")
    assert code == 0, err
    assert out.startswith(b"Usage: butler-mesh ")


@pytest.mark.slow
def test_bad_usage_is_exit_2() -> None:
    code, out, err = run("-m", "butler_mesh", "bogus")
    assert (code, out) == (2, b"")
    assert "bogus" in err


def test_importing_it_runs_nothing() -> None:
    import butler_mesh.__main__  # noqa: F401
