"""Where competitors live: a virtual environment for each set of requirements, and our C program.

Both are made when first needed and used again. What cannot be made raises Unavailable with a reason
that fits into one line.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from benchmarks.system import Unavailable

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".benchmarks"
LIMIT = ROOT / "build" / "limit"
INSTALL_S = 300.0


@cache
def python(requires: tuple[str, ...]) -> str:
    """Return the interpreter of an environment with these requirements; if there are none, the project's."""
    if not requires:
        return sys.executable
    home = HOME / name(requires)
    interpreter, stamp = home / "bin" / "python", home / "requires.json"
    wanted = json.dumps([sys.version, *requires])
    if stamp.exists() and stamp.read_text() == wanted:
        return str(interpreter)
    print(f"installing {' '.join(requires)}", file=sys.stderr)
    stamp.unlink(missing_ok=True)
    _run(sys.executable, "-m", "venv", "--clear", str(home))
    quick = ("--quiet", "--disable-pip-version-check", "--retries", "1")
    _run(str(interpreter), "-m", "pip", "install", *quick, *requires)
    stamp.write_text(wanted)
    return str(interpreter)


def name(requires: tuple[str, ...]) -> str:
    """Return what an environment is called: after its first requirement."""
    return requires[0].partition("=")[0].lower() if requires else "project"


@cache
def limit() -> str:
    """Return the path of the C program, compiled."""
    source = Path(__file__).with_name("limit.c")
    if LIMIT.exists() and LIMIT.stat().st_mtime > source.stat().st_mtime:
        return str(LIMIT)
    LIMIT.parent.mkdir(exist_ok=True)
    _run(find("cc"), "-O2", "-pthread", "-o", str(LIMIT), str(source), "-lzmq")
    return str(LIMIT)


def find(program: str) -> str:
    """Return the path of an installed program; daemons are in directories that users may not search."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise Unavailable(f"{program} is not installed")
    return path


def versions(requires: tuple[str, ...]) -> dict[str, str]:
    """Return what is installed in an environment, with versions."""
    program = (
        "import json; from importlib.metadata import distributions;"
        "print(json.dumps({d.metadata['Name']: d.version for d in distributions()}))"
    )
    return json.loads(_run(python(requires), "-c", program))  # type: ignore[no-any-return]


def program_versions() -> dict[str, str]:
    """Return the versions of what is not in Python, as far as it is there."""
    found = {}
    for title, path, option in (
        ("nats-server", partial(find, "nats-server"), "-v"),
        ("libzmq", limit, "version"),
    ):
        with suppress(Unavailable):
            found[title] = _run(path(), option).strip()
    return found


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{Path(command[0]).name} took over {INSTALL_S:.0f} s") from error
    if done.returncode:
        raise Unavailable(f"not installed: {reason(done.stderr)}")
    return done.stdout


def reason(output: str) -> str:
    """Return the line of a program's output that says best why it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it does not say why"]
    said = [line for line in lines if "error:" in line.lower()]
    return (said or lines)[-1][:160]
