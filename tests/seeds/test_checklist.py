"""The checklist in docs/seeds.rst: complete, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.programs import ROOT

TEXT = (ROOT / "docs" / "seeds.rst").read_text(encoding="utf-8")
LINES = {1: 28, 2: 30, 3: 27, 4: 17, 5: 19}
"""Section -> how many lines it has."""

ENTRIES = {
    number: re.findall(r"``(tests/\S+)``", entry)
    for number, entry in re.findall(r"^\*\*(\d+\.\d+)\*\*(.*?)(?=^\*\*\d|\Z)", TEXT, re.DOTALL | re.MULTILINE)
}


@cache
def _tests(path: str) -> frozenset[str]:
    """Return the names of the tests of a file."""
    tree = ast.parse((ROOT / path).read_bytes())
    functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return frozenset(name for name in functions if name.startswith("test_"))


def test_every_line_of_the_seeds_is_there_once_and_in_order() -> None:
    assert list(ENTRIES) == [f"{section}.{n}" for section, last in LINES.items() for n in range(1, last + 1)]
    assert len(re.findall(r"^\*\*\d+\.\d+\*\*", TEXT, re.MULTILINE)) == len(ENTRIES)


@pytest.mark.parametrize("number", ENTRIES)
def test_a_line_names_tests_that_exist(number: str) -> None:
    assert ENTRIES[number], "names no test"
    for reference in ENTRIES[number]:
        path, _, name = reference.partition("::")
        assert name in _tests(path), f"{path} has no {name}"
