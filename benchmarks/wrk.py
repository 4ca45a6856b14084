"""wrk: the browsers' side of the load, in C, so that what is measured is the server. Debian has it."""

from __future__ import annotations

import re
import subprocess
from typing import NamedTuple

from benchmarks import environments
from benchmarks.system import Unavailable

CONNECTIONS = 64
"""Kept open, each with one request on its way: as many as there are calls in flight in ``make compare``."""
SLACK_S = 30.0
"""Longer than it was told to run, and it is stuck."""

_UNITS_US = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6, "h": 3600e6}
_LATENCY = re.compile(r"^ +(50|99)% +([0-9.]+)(us|ms|s|m|h)$", re.MULTILINE)
_RATE = re.compile(r"^Requests/sec: +([0-9.]+)$", re.MULTILINE)
_COUNT = re.compile(r"^ +([0-9]+) requests in ", re.MULTILINE)
_FAULT = re.compile(r"^ +(?:Socket errors: .*|Non-2xx or 3xx responses: .*)$", re.MULTILINE)


class Load(NamedTuple):
    """What came of a load."""

    requests: int
    rate: float  # requests a second
    p50_us: float
    p99_us: float


def find() -> str:
    """Return the program's path; raises Unavailable with what to do about it."""
    try:
        return environments.find("wrk")
    except Unavailable as error:
        raise Unavailable(f"{error} (apt-get install wrk): it makes the load") from error


def run(url: str, seconds: int, connections: int = CONNECTIONS) -> Load:
    """Ask for a page for so many seconds, whole ones; raises Unavailable where a request failed."""
    command = [find(), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", url]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + SLACK_S)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"wrk is stuck at {url}") from error
    if done.returncode:
        raise Unavailable(f"wrk: {environments.reason(done.stderr or done.stdout)}")
    return parse(done.stdout)


def parse(output: str) -> Load:
    """Return what wrk said; raises Unavailable where a request failed, for then its figures are of something
    else."""
    fault = _FAULT.search(output)
    if fault:
        raise Unavailable(f"wrk: {fault[0].strip()}")
    latencies = {
        percent: float(number) * _UNITS_US[unit] for percent, number, unit in _LATENCY.findall(output)
    }
    rate, count = _RATE.search(output), _COUNT.search(output)
    if rate is None or count is None or len(latencies) < 2 or not int(count[1]):
        raise Unavailable(f"wrk said: {environments.reason(output)}")
    return Load(int(count[1]), float(rate[1]), latencies["50"], latencies["99"])
