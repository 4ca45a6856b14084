"""System: what the comparison knows of a competitor before any of its processes runs."""

from __future__ import annotations

from typing import NamedTuple


class Unavailable(Exception):
    """A system cannot be measured here; its text is the reason, in one line."""


class System(NamedTuple):
    """One row of the report; a file in ``benchmarks/systems`` may describe several.

    Its module has one function for each role, called in a process of its own as ``role(form, place)``,
    and may have ``program(role, place)``, which returns the command of a role that is not in Python.
    """

    # NamedTuple and not dataclass: every process loads this, and start-up is one of the figures.
    name: str
    module: str
    form: str = ""
    roles: tuple[str, ...] = ("broker", "worker", "client")
    # For pip; nothing means the environment of the project itself.
    requires: tuple[str, ...] = ()
    # What a worker imports; timed, to tell it from the rest of the start-up.
    imports: tuple[str, ...] = ()
    environ: tuple[tuple[str, str], ...] = ()
    # Roles whose program does not say when it is ready: it is when its port takes connections.
    silent: tuple[str, ...] = ()
    # As many calls as its client keeps in flight: few where each needs a thread.
    max_in_flight: int = 512
    can_share: bool = False  # the work between several workers
    can_notify: bool = False  # without a reply
    can_crowd: bool = False  # many clients in one process


class Place(NamedTuple):
    """Where the processes of one system meet."""

    directory: str  # for sockets that are files
    front: int  # port of the broker for clients, or of whoever stands in for it
    back: int  # port of the broker for workers, or for one-way messages
    workers: list[int]  # a port for each worker that listens itself
    turn: int = 0  # which of the workers this process is

    def tcp(self, port: int) -> str:
        """Return a port's endpoint in ZeroMQ's spelling."""
        return f"tcp://127.0.0.1:{port}"
