"""Secrets that the environment holds, or names the files of: arguments are for everybody to see."""

from __future__ import annotations

import os
from pathlib import Path

from butler_mesh.errors import UsageError

FILE = "_FILE"
"""After a variable's name: the variable that names the file with the secret."""


def secret(name: str) -> str | None:
    """Return what the variable ``name`` holds, or the file that ``name`` with ``_FILE`` names, without the
    white space around it; None where neither is set, or to nothing.

    Raises UsageError where both are set, which would leave one of them unheard, and for a file that cannot be
    read.
    """
    given, file = os.environ.get(name), os.environ.get(name + FILE)
    if given and file:
        raise UsageError(f"{name} and {name}{FILE} are both set: set one of the two")
    if not file:
        return given or None
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}{FILE}: {error}") from error
