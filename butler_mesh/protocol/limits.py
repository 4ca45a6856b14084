"""A router's limits: every number that its owner may set, with its default and the reason for it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from butler_mesh.errors import UsageError
from butler_mesh.protocol.liveness import DEAD_AFTER_S, HEARTBEAT_INTERVAL_S
from butler_mesh.protocol.mesh import MAX_BODY_BYTES

QUEUE_PER_SERVICE = 1000
"""Requests that wait for one service: seconds of work, not minutes."""
REGISTER_GRACE_S = 3.0
"""How long after its start a router takes an unknown service for one that is about to register."""
ABSENT_GRACE_S = 60.0
"""How long requests for a service may wait after its last instance left: a deploy, not a typo."""
FORGET_SERVICE_S = 3600.0
"""How long a service without instances is down (503) before it is unknown (404): butler's hour."""
FOREIGN_DEADLINE_S = 900.0
"""Deadline of a request that carries none, and patience with a busy worker (majortomo's default)."""
LONGEST_INTERVAL_S = DEAD_AFTER_S / 3
"""Clients and instances give a router up after ``DEAD_AFTER_S``: three heartbeats must fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Options of a router; times in seconds. Raises UsageError for those that cannot work.

    ``heartbeat_timeout_s`` is the silence after which a peer is given up, ``busy_timeout_s`` the same for a
    Majordomo worker that has a request, for such a worker says nothing while it works (None: 900 s, or as
    long as a request may take).
    """

    queue_limit: int = QUEUE_PER_SERVICE
    register_grace_s: float = REGISTER_GRACE_S
    absent_grace_s: float = ABSENT_GRACE_S
    forget_service_s: float = FORGET_SERVICE_S
    foreign_deadline_s: float = FOREIGN_DEADLINE_S
    busy_timeout_s: float | None = None
    heartbeat_interval_s: float = HEARTBEAT_INTERVAL_S
    heartbeat_timeout_s: float = DEAD_AFTER_S
    max_body_bytes: int = MAX_BODY_BYTES
    register_secret: str | bytes | None = None

    def __post_init__(self) -> None:
        if not (self.queue_limit >= 0 and self.max_body_bytes > 0):
            raise UsageError("queue_limit and max_body_bytes are numbers, the latter over 0")
        for name in ("register_grace_s", "absent_grace_s", "forget_service_s"):
            if not 0 <= getattr(self, name) < inf:
                raise UsageError(f"{name} is a number of seconds")
        for patience_s in (self.foreign_deadline_s, self.busy_timeout_s, self.heartbeat_timeout_s):
            if patience_s is not None and not 0 < patience_s < inf:
                raise UsageError("a deadline or timeout is a number of seconds over 0")
        if not 0 < self.heartbeat_interval_s <= LONGEST_INTERVAL_S:
            raise UsageError(f"a heartbeat interval is over 0 and up to {LONGEST_INTERVAL_S:g} seconds")
        least = 2 * HEARTBEAT_INTERVAL_S
        if self.heartbeat_timeout_s < least:
            raise UsageError(f"a heartbeat timeout under {least:g} seconds finds the living dead")

    @property
    def foreign_patience_s(self) -> float:
        """How long something may still come of a Majordomo client's request."""
        return max(self.foreign_deadline_s, FOREIGN_DEADLINE_S)
