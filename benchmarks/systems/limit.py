"""The limit: our C program against libzmq, without JSON. What it does nobody can do in Python."""

from __future__ import annotations

from benchmarks import environments
from benchmarks.system import Place, System

SYSTEMS = [
    System(name="C proxy (bytes)", module="limit", form="plain", can_share=True, can_notify=True),
    System(name="C MDP router (bytes)", module="limit", form="mdp", can_share=True),
]


def program(role: str, form: str, place: Place) -> list[str]:
    """Return a role's command."""
    limit = environments.limit()
    if role == "broker":
        what = "proxy" if form == "plain" else "router"
        return [limit, what, place.tcp(place.front), place.tcp(place.back)]
    return [limit, role, place.tcp(place.front if role == "client" else place.back), form]
