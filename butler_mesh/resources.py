"""What an application has one of: connections, caches, counters, kept between requests."""

from __future__ import annotations

import logging
from typing import Any

from butler_mesh.errors import UsageError

_log = logging.getLogger("butler_mesh.application")


class Resource:
    """Something with hooks for its coming and going. Subclass it, or ``set`` what it stands for."""

    def __init__(self, name: str = "", resource_type: str = "") -> None:
        self.name = name
        self.resource_type = resource_type
        self._resource: Any = None

    def set(self, resource: Any) -> None:
        """Put in what this stands for."""
        self._resource = resource

    def get(self) -> Any:
        """Return what was put in, or None."""
        return self._resource

    def key(self) -> str:
        """Return the name under which it is registered: type and name together."""
        return self.resource_type + self.name

    def on_register(self) -> None:
        """Run when it is registered; if it raises, it is not."""

    def on_unregister(self) -> None:
        """Run when it is unregistered, or its application closes."""


class Resources(dict[str, Any]):
    """Resources by key: anything may be one. A Resource is told when it goes, anything else is closed if it
    has a ``close``: when it is unregistered, or with the application."""

    def register(self, resource: Any, key: str = "") -> bool:
        """Keep a resource under ``key`` (a Resource's own); False when there is one, which stays.

        Raises UsageError without a key.
        """
        if isinstance(resource, Resource):
            key = key or resource.key()
        if not key:
            raise UsageError("a resource is registered under a key")
        if key in self:
            return False
        self[key] = resource
        if isinstance(resource, Resource):
            try:
                resource.on_register()
            except BaseException:
                del self[key]
                raise
        return True

    def unregister(self, key: str) -> bool:
        """Forget a resource; False when there was none."""
        found = key in self
        _end(self.pop(key, None))
        return found

    def close(self) -> None:
        """Forget them all, the latest first, and end those that can be; one that fails costs no other."""
        while self:
            key, resource = self.popitem()
            try:
                _end(resource)
            except Exception:
                _log.exception("resource-failed %.200r", key)


def _end(resource: Any) -> None:
    end = "on_unregister" if isinstance(resource, Resource) else "close"
    close = getattr(resource, end, None)
    if callable(close):
        close()
