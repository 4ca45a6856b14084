"""Large bodies through a front: how fast they pass, and the memory that each process needs for them.

An upload is spooled to a file by its front (a form's by werkzeug, any body by Mongrel2) or read as it comes
(what is PUT to our own server), and goes on to a service in parts; a download comes from there in parts.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from benchmarks.figures import Case, Figures
from benchmarks.harness import attend_greenlets
from benchmarks.large import MB
from benchmarks.pages import FILES, PART
from benchmarks.sites import Site, Sites
from benchmarks.system import Unavailable
from benchmarks.targets import Target, Verdict

WHOLE = 50 * MB
SMALL = 1000
"""Of what passes first: the peak that it leaves is that of an idle run."""
CASE = Case(size=WHOLE, in_flight=1)
MOST_MIB = 30.0

_BLOCK = Random(0).randbytes(PART)
_BOUNDARY = b"benchmarks-of-butler-mesh"
_FORM_HEAD = (
    b'--%b\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n" % _BOUNDARY
)
_FORM_END = b"\r\n--%b--\r\n" % _BOUNDARY


class Way(NamedTuple):
    """One way of a large body through a front."""

    front: str  # which of Sites' methods starts it
    how: str  # put, form, download
    text: str


WAYS = [
    Way("pywsgi", "put", "pywsgi: PUT, read as it comes"),
    Way("pywsgi", "form", "pywsgi: form, spooled by werkzeug"),
    Way("pywsgi", "download", "pywsgi: streamed reply"),
    Way("mongrel2", "put", "Mongrel2: PUT, spooled by it"),
    Way("mongrel2", "form", "Mongrel2: form, spooled by both"),
    Way("mongrel2", "download", "Mongrel2: streamed reply"),
]
TARGETS = [
    Target(
        f"{way.text}: MiB over an idle run, any process",
        "grown_mib",
        at_most=MOST_MIB,
        case=CASE,
        system=way.text,
    )
    for way in WAYS
]


# --- the service ----------------------------------------------------------------------------------


class Stored:
    """An upload on its way into a file."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.parts = 0
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the last part)

    def add(self, body: bytes, number: int) -> None:
        """Write a part."""
        if number != self.parts:
            raise ValueError(f"part {number} came when {self.parts} was expected")
        self.parts += 1
        self.digest.update(body)
        self.file.write(body)


def service(endpoint: str) -> None:
    """Store uploads, and stream downloads, until standard input ends."""
    from butler_mesh import Service

    uploads: dict[int, Stored] = {}
    running = Service(endpoint, FILES)

    @running.function
    def store(body: bytes, upload: int, number: int, is_last: bool) -> str | None:
        stored = uploads.setdefault(upload, Stored()) if not number else uploads[upload]
        stored.add(body, number)
        if not is_last:
            return None
        uploads.pop(upload).file.close()
        return stored.digest.hexdigest()

    @running.function
    def give(size: int) -> Iterator[bytes]:
        return content(size)

    with running:
        if not running.wait_until_registered(10.0):
            raise Unavailable("the router does not answer")
        attend_greenlets()


def content(size: int) -> Iterator[bytes]:
    """Yield so many bytes, always the same, in parts."""
    for at in range(0, size, PART):
        yield _BLOCK[: size - at]


def digest(size: int) -> str:
    """Return the digest of that content."""
    found = hashlib.sha256()
    for part in content(size):
        found.update(part)
    return found.hexdigest()


# --- those who measure ----------------------------------------------------------------------------


def measure(way: Way) -> dict[str, float]:
    """Return MB/s, and how far the peak of each process grew over that of a small body, in MiB."""
    with Sites() as sites:
        site: Site = getattr(sites, way.front)(sites.mesh("-m", "benchmarks.uploads"))
        take(site, way.how, SMALL)
        idle = [process.peak_mib() for process in site.processes]
        began = time.perf_counter()
        take(site, way.how, WHOLE)
        found = {"rate": WHOLE / MB / (time.perf_counter() - began)}
        for process, before in zip(site.processes, idle, strict=True):
            found[f"{process.role}_mib"] = process.peak_mib() - before
        found["grown_mib"] = max(value for name, value in found.items() if name != "rate")
        return found


def take(site: Site, how: str, size: int) -> None:
    """Let a body of this size take its way, and check that it arrived."""
    if how == "download":
        arrived = hashlib.sha256(site.ask("GET", f"/download?size={size}")).hexdigest()
    else:
        parts, length, kind, method = content(size), size, "application/octet-stream", "PUT"
        if how == "form":
            parts, length, method = _form(size), len(_FORM_HEAD) + size + len(_FORM_END), "POST"
            kind = f"multipart/form-data; boundary={_BOUNDARY.decode()}"
        headers = {"Content-Type": kind, "Content-Length": str(length)}
        arrived = site.ask(method, "/upload", parts, headers).decode()
    if arrived != digest(size):
        raise Unavailable(f"what arrived is not what was sent: {arrived[:80]!r}")


def _form(size: int) -> Iterator[bytes]:
    yield _FORM_HEAD
    yield from content(size)
    yield _FORM_END


def judge(figures: Figures) -> list[Verdict]:
    """Return a verdict on every way: the worst of its rounds counts."""
    verdicts = []
    for target in TARGETS:
        value: float | None = None
        if figures.has(target.system, target.case, target.figure):
            value = figures.spread(target.system, target.case, target.figure).high
        verdicts.append(Verdict(target, value, None if value is None else value < MOST_MIB))
    return verdicts


if __name__ == "__main__":
    service(*sys.argv[1:])
