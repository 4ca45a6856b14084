"""Signs of life from the router: to everybody once an interval, and to find out who has left.

libzmq tells that somebody has left, not who; a message to whoever it was fails (EHOSTUNREACH), and that
tells it. So all behind the door are sent a heartbeat, instances and others at paces of their own: a lost
instance is to be noticed at once, and crowds that come and go must not cost the others their router.
"""

from __future__ import annotations

from butler_mesh.protocol.peers import Door, InstancePeer, Peer

PROBE_AGAIN_S = 0.010
"""libzmq tells that somebody left a little before it lets go of the routing id."""
PROBE_S = 0.000_25
"""Pause after a round of probes, for each who was probed: ten times what it costs (measured: 25 µs)."""
BEAT_PEERS = 250
"""So many are sent their regular heartbeat in one turn: 5 000 would be a pause of 15 ms, each second."""


class Heartbeats:
    """When to send them, and to whom; ``doors`` is the router's own list."""

    def __init__(self, doors: list[Door], interval_s: float, now: float) -> None:
        self._doors = doors
        self._interval_s = interval_s
        self._beat_at = now + interval_s
        self._beats = 0
        # By door, and whether it is about its instances: when to probe, and whether that is all; when it
        # may be probed again.
        self._probe_at: dict[tuple[Door, bool], tuple[float, bool]] = {}
        self._free_at: dict[tuple[Door, bool], float] = {}

    def lost(self, door: Door, now: float) -> None:
        """Somebody has left through this door: find out who."""
        for key in ((door, True), (door, False)):
            waiting = self._probe_at.get(key)
            if waiting is None:
                free_at = self._free_at.get(key, now)
                if free_at <= now:
                    self._probe(key)
                self._probe_at[key] = (max(free_at, now + PROBE_AGAIN_S), True)
            else:
                # Not put off, or people who come and go would keep it off for ever; but one more after it.
                self._probe_at[key] = (waiting[0], False)

    def tick(self, now: float) -> None:
        """Send what is due."""
        for key, (due, is_last) in list(self._probe_at.items()) if self._probe_at else ():
            if now >= due:
                del self._probe_at[key]
                free_at = self._free_at[key] = now + max(PROBE_AGAIN_S, PROBE_S * self._probe(key))
                if not is_last:
                    self._probe_at[key] = (free_at, True)
        if now >= self._beat_at:
            self._beat(now)

    def next_due(self) -> float:
        """Return when ``tick`` is to be called next."""
        if not self._probe_at:
            return self._beat_at  # asked once a turn, and nearly always so
        return min(self._beat_at, *(at for at, _ in self._probe_at.values()))

    def _beat(self, now: float) -> None:
        peers = [peer for door in self._doors for peer in door.peers.values()]
        shares = 1 + len(peers) // BEAT_PEERS
        self._beats += 1
        for peer in peers[self._beats % shares :: shares]:
            peer.heartbeat()
        self._beat_at = now + self._interval_s / shares

    def _probe(self, key: tuple[Door, bool]) -> int:
        """Probe one kind of a door's peers; return how many those are."""
        door, are_instances = key
        probed: list[Peer] = [p for p in door.peers.values() if isinstance(p, InstancePeer) is are_instances]
        for peer in probed:
            peer.heartbeat()
        return len(probed)
