"""The pages of ``benchmarks.pages`` as others have them: Flask, and zerorpc for the call.

Imports nothing of butler_mesh: it runs in an environment of its own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import zerorpc
from flask import Flask

from benchmarks.harness import body
from benchmarks.systems.zerorpc import TIMEOUT_S

BODY = body(100)


def wsgi(endpoint: str) -> Flask:
    """Return what gunicorn hosts; ``endpoint`` is the echo server's."""
    application = Flask(__name__)

    @cache
    def client() -> Any:
        # One for the process, made in it: calls of all greenlets go over one connection.
        made = zerorpc.Client(timeout=TIMEOUT_S)
        made.connect(endpoint)
        return made

    @application.get("/page")
    def page() -> Any:
        return BODY

    @application.get("/call")
    def call() -> Any:
        return client().echo(BODY["text"])

    return application
