"""What a service tells of itself, and lets be done to it: commands, the same over every engine."""

from __future__ import annotations

import inspect
import os
import socket
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar, overload

from butler_mesh import codec
from butler_mesh.clock import monotonic
from butler_mesh.connections.base import Delivery
from butler_mesh.errors import BadArguments, NotFound, NotSerializable, RouteCollision
from butler_mesh.messages import WID, ServiceRequest, ServiceResponse
from butler_mesh.replies import answer

F = TypeVar("F", bound=Callable[..., Any])

KEPT_WAITS = 10


class Management:
    """The commands that an instance answers beside its requests, and the figures that they tell.

    There are ``ping`` (wid, pid, host), ``stats`` (the same, and ``waittimes``: the seconds between its last
    ten requests; ``processed``: how many it has answered; ``exceptions``: how many ended in one), ``kill``
    (it finishes what runs, and leaves) and, only where that was allowed at the start, ``eval`` (a Python
    ``expression``, in which ``service`` is whose management this is).
    """

    def __init__(self, owner: object, stop: Callable[[], object], *, allow_eval: bool = False) -> None:
        # Who we are; known once there is a connection.
        self.wid = ""
        self.processed = self.exceptions = 0
        self._ended_at: deque[float] = deque(maxlen=KEPT_WAITS + 1)
        self._owner = owner
        self._stop = stop
        self._commands: dict[str, Callable[..., Any]] = {
            "ping": self._ping,
            "stats": self._stats,
            "kill": self._kill,
        }
        if allow_eval:
            self._commands["eval"] = self._eval

    def register(self, function: Callable[..., Any], name: str | None = None) -> None:
        """Answer a command, of the function's own name by default; raises RouteCollision when it is taken."""
        name = name or function.__name__
        if name in self._commands:
            raise RouteCollision(f"{name!r} is a command already")
        self._commands[name] = function

    @overload
    def command(self, function: F) -> F: ...
    @overload
    def command(self, function: str) -> Callable[[F], F]: ...
    def command(self, function: F | str) -> F | Callable[[F], F]:
        """Register a command, as a decorator, with or without a name."""
        if isinstance(function, str):
            name = function

            def decorate(actual: F) -> F:
                self.register(actual, name)
                return actual

            return decorate
        self.register(function)
        return function

    def note(self, is_well: bool) -> bool:
        """Count a request that has ended; returns what it was given."""
        if is_well:
            self.processed += 1
        else:
            self.exceptions += 1
        self._ended_at.append(monotonic())
        return is_well

    def answer(self, delivery: Delivery, *, tracebacks: bool) -> bool:
        """Answer one command; False when it failed."""
        return answer(delivery, self._respond, tracebacks=tracebacks, headers={WID: self.wid})

    def _respond(self, request: ServiceRequest) -> ServiceResponse:
        name = request.path.removeprefix("/")
        function = self._commands.get(name)
        if function is None:
            known = ", ".join(sorted(self._commands))
            raise NotFound(f"no command {name!r}; there are {known}", status=404)
        try:
            inspect.signature(function).bind(**request.arguments)
        except TypeError as error:
            raise BadArguments(f"{name}: {error}", status=422) from error
        return ServiceResponse(body=function(**request.arguments))

    # --- the mesh's own -----------------------------------------------------------------------

    def _ping(self) -> dict[str, Any]:
        return {"wid": self.wid, "pid": os.getpid(), "host": socket.gethostname()}

    def _stats(self) -> dict[str, Any]:
        waits = [round(after - before, 4) for before, after in pairwise(self._ended_at)]
        counts = {"processed": self.processed, "exceptions": self.exceptions}
        return {**self._ping(), "waittimes": waits, **counts}

    def _kill(self) -> dict[str, Any]:
        # What runs is finished first, and this is part of it: its answer still leaves.
        self._stop()
        return self._ping()

    def _eval(self, expression: str) -> Any:
        # Whoever started this process has allowed it.
        value = eval(expression, {"service": self._owner})
        try:
            codec.dumps(value)
        except NotSerializable:
            return repr(value)
        return value
