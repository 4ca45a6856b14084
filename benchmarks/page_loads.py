"""The same page behind every front, without and with a call to an echo service, under wrk's load.

What the call adds is the difference of the times that a page takes (1/rate), and of the CPU that it costs. A
difference feels whatever else the machine does, more on one side than on the other: a turn in which that was
much is taken again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import TypeVar

from benchmarks import wrk
from benchmarks.figures import HEADLINE, Figures
from benchmarks.harness import body
from benchmarks.parties import TICKS
from benchmarks.sites import Process, Site, Sites
from benchmarks.system import Unavailable
from benchmarks.targets import Target, Verdict

T = TypeVar("T")

OURS = ("pywsgi", "gunicorn", "Mongrel2")
THEIRS = "Flask and zerorpc"
MOST = 0.5
"""Of the time that zerorpc's call adds to a page."""
QUIET = 0.15
"""Cores that others may use meanwhile: half of one, of two, doubles the time of a page with a call."""
TRIES = 4
"""The last one counts, however loud it was."""


def with_call(front: str) -> str:
    """Return the name of a front's figures for the page with a call; those of the other have its own name."""
    return f"{front}, with a call"


TARGETS = [
    Target(
        f"{front}: time that a call adds to a page, to {THEIRS}",
        "added_us",
        at_most=MOST,
        against=(with_call(THEIRS),),
        system=with_call(front),
    )
    for front in OURS
]


def pages(front: str) -> dict[str, str]:
    """Return the paths of a front's pages, by the names of their figures."""
    return {front: "/page", with_call(front): "/call"}


def start(sites: Sites, front: str, behind: Sequence[Process]) -> Site:
    """Start a front; ``behind`` are the mesh's processes, for those of ours."""
    if front == THEIRS:
        return sites.flask(sites.zerorpc())
    method: Callable[[Sequence[Process]], Site] = getattr(sites, front.lower())
    return method(behind)


def take_turn(figures: Figures, front: str, site: Site, turn: int, seconds: int) -> None:
    """Measure a front's two pages, and what the one has over the other."""
    for _ in range(TRIES):
        found = {name: load(site, path, seconds) for name, path in by_turns(pages(front).items(), turn)}
        if all(each["others"] <= QUIET for each in found.values()):
            break
    plain, called = found[front], found[with_call(front)]
    called["added_us"] = 1e6 / called["rate"] - 1e6 / plain["rate"]
    called["added_cpu_us"] = called["cpu_us"] - plain["cpu_us"]
    for name, each in found.items():
        figures.add(name, HEADLINE, turn, each)


def check(site: Site, path: str) -> None:
    """Raise Unavailable unless the page is what all of them are."""
    answer = site.ask("GET", path)
    if json.loads(answer) != body(HEADLINE.size):
        raise Unavailable(f"{path} is another page: {answer[:80]!r}")


def load(site: Site, path: str, seconds: int) -> dict[str, float]:
    """Return rate, latencies, the CPU of a request, of all processes and of each, and the cores that others
    used meanwhile."""
    before, ours, busy, began = site.cpu_s(), _waited_for_s(), _busy_s(), time.monotonic()
    came = wrk.run(site.url(path), seconds)
    used = [after - cpu_s for cpu_s, after in zip(before, site.cpu_s(), strict=True)]
    others_s = _busy_s() - busy - sum(used) - (_waited_for_s() - ours)
    found = {
        "rate": came.rate,
        "p50_us": came.p50_us,
        "p99_us": came.p99_us,
        "cpu_us": sum(used) / came.requests * 1e6,
        "others": max(0.0, others_s / (time.monotonic() - began)),
    }
    for process, cpu_s in zip(site.processes, used, strict=True):
        found[f"{process.role}_us"] = cpu_s / came.requests * 1e6
    return found


def _busy_s() -> float:
    """Return the CPU seconds that this machine was at work or was kept from it, by all that runs on it."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def _waited_for_s() -> float:
    """Return the CPU seconds of our children that have ended: of wrk, while a site stands."""
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def judge(figures: Figures) -> list[Verdict]:
    """Return a verdict on every front of ours: the median of the ratios within rounds counts."""
    verdicts = []
    for target in TARGETS:
        ratio = figures.ratio(target.system, target.against, target.case, target.figure, best=min)
        value = None if ratio is None else ratio.median
        verdicts.append(Verdict(target, value, None if value is None else value < MOST))
    return verdicts


def by_turns(them: Iterable[T], turn: int) -> list[T]:
    """Return them there and back: what grows or fades while a round lasts favours nobody in the end."""
    return list(them)[:: 1 if turn % 2 == 0 else -1]
