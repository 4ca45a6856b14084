"""Instructions, counted by callgrind: what a piece of work costs, whatever else the machine does.

A module's counted half runs under valgrind, about fifty times slower than usual. It prepares each piece of
work, then forks twice: one child does nothing, the other does the work. Their difference is the work alone,
without imports and preparation, and costs no second start of the interpreter.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping

_RESULT = re.compile(r"^counted (\S+) (\d+) (\d+)$", re.MULTILINE)
_COLLECTED = re.compile(r"^==(\d+)== Collected : (\d+)$", re.MULTILINE)


def why_not() -> str:
    """Return why nothing can be counted here, or ''."""
    return "" if shutil.which("valgrind") else "valgrind is not installed"


def excuse(reason: str, environment: Mapping[str, str] = os.environ) -> int:
    """Say why nothing was counted, and return the exit code for it: 0 on a laptop; 2 where CI is set, for
    there nobody would notice."""
    is_wrong = environment.get("CI", "").lower() not in ("", "0", "false")
    print(f"{'error' if is_wrong else 'skipped'}: {reason}")
    return 2 if is_wrong else 0


def count(module: str, *options: str) -> dict[str, int]:
    """Run a module's counted half; return the instructions of each piece of work by its name.

    Raises RuntimeError with the program's own words when it fails.
    """
    # Nothing of the caller's environment but what is needed: the counts are to depend on the work alone.
    # Without site, whose start differs from one environment to the next; its paths are handed over.
    environment = {"PYTHONPATH": os.pathsep.join(["", *filter(None, sys.path)]), "PYTHONHASHSEED": "0"}
    run = subprocess.run(
        [
            *(shutil.which("valgrind") or "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
            *(sys.executable, "-S", "-m", module, *options),
        ],
        env={**environment, "LC_ALL": "C.UTF-8", "PATH": os.defpath},
        capture_output=True,
        text=True,
    )
    collected = {pid: int(instructions) for pid, instructions in _COLLECTED.findall(run.stderr)}
    found = {name: collected[work] - collected[idle] for name, idle, work in _RESULT.findall(run.stdout)}
    if run.returncode or not found:
        raise RuntimeError(f"{module} could not be counted:\n{run.stdout}{run.stderr}")
    return found


def measure(name: str, work: Callable[[], object]) -> None:
    """In the counted half: have a piece of work counted. It is done by a child and leaves no trace here.

    Raises RuntimeError when the work raised.
    """
    gc.collect()  # both children begin as far from the next collection
    print("counted", name, _fork(lambda: None), _fork(work), flush=True)


def _fork(work: Callable[[], object]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        except Exception:
            sys.excepthook(*sys.exc_info())
        finally:
            # Not by way of the interpreter's end, which would be counted, too.
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a piece of work failed")
    return pid
