"""Which services there are, by name and by path; and which of the absent are still expected."""

from __future__ import annotations

from butler_mesh.protocol.limits import Limits
from butler_mesh.protocol.peers import Call, ServicePool

MAX_POOLS = 10_000
"""Services that are known. Names that clients make up fill the table no further, and keep none of those
from its place in it."""
MAX_PREFIXES = 100_000
"""Paths of all services together."""


class Directory:
    """Service pools by name and by path prefix, and the grace for those without instances."""

    def __init__(self, now: float, limits: Limits) -> None:
        self.pools: dict[bytes, ServicePool] = {}
        # Whole-segment path prefix -> the one service that owns it.
        self.prefixes: dict[bytes, ServicePool] = {}
        self.grace_until = now + limits.register_grace_s
        # As of the last tidy: how long ago somebody left need not be known better.
        self._now = now
        self._limits = limits
        # No target is searched beyond it: one of 64 KiB of slashes would cost half a second.
        self._longest_prefix = 0
        # Names of pools that nobody has registered.
        self._imagined: set[bytes] = set()

    def find(self, target: bytes) -> ServicePool | None:
        """Return the pool for a service name, or for a path by its longest registered prefix."""
        pool = self.pools.get(target)
        if pool is not None or target[:1] != b"/":
            return pool
        return self._prefix_owner(target)

    def is_expected(self, pool: ServicePool, now: float) -> bool:
        """Tell whether a service without instances may have one again soon."""
        return now < self.grace_until or now - pool.left_at < self._limits.absent_grace_s

    def imagine(self, target: bytes, now: float) -> ServicePool | None:
        """Return a pool for a service that nobody has registered yet; None when there are too many.

        It is forgotten as soon as the grace is over and nobody waits.
        """
        if len(self.pools) >= MAX_POOLS:
            return None
        self._imagined.add(target)
        pool = self.pools[target] = ServicePool(target, now - self._limits.absent_grace_s)
        return pool

    def has_room(self, name: bytes, paths: list[bytes]) -> bool:
        """Tell whether one more instance's service and paths fit in."""
        key = name or _nameless(paths)
        is_known = key in self.pools and key not in self._imagined
        if not is_known and len(self.pools) - len(self._imagined) >= MAX_POOLS:
            return False
        return len(self.prefixes) + sum(path not in self.prefixes for path in paths) <= MAX_PREFIXES

    def owner(self, name: bytes, paths: list[bytes]) -> bytes | None:
        """Return a path that a present service of another name owns already, or None."""
        key = name or _nameless(paths)
        for path in paths:
            pool = self.prefixes.get(path)
            if pool is not None and pool.name != key and pool.instances:
                return path
        return None

    def claim(self, name: bytes, paths: list[bytes], now: float) -> ServicePool:
        """Return the pool of a service, which owns these paths from now on."""
        key = name or _nameless(paths)
        pool = self.pools.get(key)
        if pool is None:
            pool = self.pools[key] = ServicePool(key, now)
        pool.was_registered = True
        self._imagined.discard(key)
        pool.paths.update(paths)
        for path in paths:
            self.prefixes[path] = pool
            self._longest_prefix = max(self._longest_prefix, len(path))
        return pool

    def release(self, pool: ServicePool) -> None:
        """Give up the paths that none of a service's instances claims any more."""
        if not pool.paths:
            return
        claimed = {path for instance in pool.instances for path in instance.paths}
        for path in pool.paths - claimed:
            pool.paths.discard(path)
            if self.prefixes.get(path) is pool:
                del self.prefixes[path]

    def inherit(self, heir: ServicePool) -> list[Call]:
        """Return the requests that came for the heir's paths before it did, now in its name."""
        calls: list[Call] = []
        if not heir.paths:
            return calls
        # All that are only asked for, so this is to be quick: somebody may make up ten thousand names.
        orphans = [
            name
            for name, pool in self.pools.items()
            if name[:1] == b"/"
            and not pool.instances
            and pool is not heir
            and self._prefix_owner(name) is heir
        ]
        for name in orphans:
            self._imagined.discard(name)
            for call in self.pools.pop(name).queue:
                call.pool = heir
                calls.append(call)
        return calls

    def has_work(self) -> bool:
        """Tell whether somebody waits for a reply that may yet come."""
        pools = [pool for pool in self.pools.values() if pool.instances]
        calls = (call for pool in pools for instance in pool.instances for call in instance.calls.values())
        return any(pool.queue.size for pool in pools) or any(call.client for call in calls)

    def tidy(self, now: float) -> None:
        """Forget services that are long gone, or at once, when nobody ever registered them."""
        self._now = now
        is_crowded = len(self.pools) > MAX_POOLS // 2
        for name, pool in list(self.pools.items()):
            if pool.instances or len(pool.queue) or self.is_expected(pool, now):
                continue
            is_known = pool.was_registered and now - pool.left_at < self._limits.forget_service_s
            if is_crowded or not is_known:
                del self.pools[name]
                self._imagined.discard(name)
                for path in pool.paths:
                    if self.prefixes.get(path) is pool:
                        del self.prefixes[path]

    def _prefix_owner(self, path: bytes) -> ServicePool | None:
        """Return who owns the longest prefix of a path; one that is down only where nobody else is there."""
        head = path
        if len(head) > self._longest_prefix:
            head = head[: self._longest_prefix + 1].rpartition(b"/")[0]
        down: ServicePool | None = None
        while True:
            pool = self.prefixes.get(head or b"/")
            if pool is not None and (pool.instances or self.is_expected(pool, self._now)):
                return pool
            down = down or pool
            if not head:
                return down
            head = head.rpartition(b"/")[0]


def _nameless(paths: list[bytes]) -> bytes:
    """The name that instances without one share: their paths."""
    return b" ".join(sorted(paths))
