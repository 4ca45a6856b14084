"""butler_mesh: a service mesh for gevent Python.

The public names, each imported when it is first used: importing Client and Service loads neither
werkzeug nor jinja2 nor click.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from butler_mesh.application import Application as Application
    from butler_mesh.client import Client as Client
    from butler_mesh.connections.registry import connect_queues as connect_queues
    from butler_mesh.errors import register_error as register_error
    from butler_mesh.handlers import MessageHandler as MessageHandler
    from butler_mesh.handlers import ServiceMessageHandler as ServiceMessageHandler
    from butler_mesh.messages import ServiceRequest as ServiceRequest
    from butler_mesh.messages import ServiceResponse as ServiceResponse
    from butler_mesh.operations.logging_service import LoggingService as LoggingService
    from butler_mesh.resources import Resource as Resource
    from butler_mesh.router import Router as Router
    from butler_mesh.service import Service as Service
    from butler_mesh.service_client import ServiceClientMixin as ServiceClientMixin
    from butler_mesh.service_client import coro_sleep as coro_sleep
    from butler_mesh.service_connection import ServiceConnection as ServiceConnection
    from butler_mesh.sink import Sink as Sink
    from butler_mesh.web.handlers import JSONMessageHandler as JSONMessageHandler
    from butler_mesh.web.handlers import WebMessageHandler as WebMessageHandler
    from butler_mesh.web.mongrel2 import Mongrel2Connection as Mongrel2Connection
    from butler_mesh.web.templating import Jinja2Rendering as Jinja2Rendering
    from butler_mesh.web.templating import load_jinja2_env as load_jinja2_env
    from butler_mesh.web.wsgi import WSGIConnection as WSGIConnection

__version__ = "0.1.0"

_HOMES = {
    "Application": "application",
    "Client": "client",
    "Jinja2Rendering": "web.templating",
    "JSONMessageHandler": "web.handlers",
    "LoggingService": "operations.logging_service",
    "MessageHandler": "handlers",
    "Mongrel2Connection": "web.mongrel2",
    "Resource": "resources",
    "Router": "router",
    "Service": "service",
    "ServiceClientMixin": "service_client",
    "ServiceConnection": "service_connection",
    "ServiceMessageHandler": "handlers",
    "ServiceRequest": "messages",
    "ServiceResponse": "messages",
    "Sink": "sink",
    "WSGIConnection": "web.wsgi",
    "WebMessageHandler": "web.handlers",
    "connect_queues": "connections.registry",
    "coro_sleep": "service_client",
    "load_jinja2_env": "web.templating",
    "register_error": "errors",
}

__all__ = [
    *_HOMES,
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
