"""HTTP as such shops have it: Flask under gunicorn's gevent workers, called by requests from greenlets."""

from __future__ import annotations

import os
import signal
from typing import Any

from benchmarks.harness import Body, Call, LonelyGreenlets, attend
from benchmarks.system import Place, System

SYSTEMS = [
    System(
        name="gunicorn, Flask, requests",
        module="http",
        roles=("worker", "client"),
        # gunicorn's gevent workers import packaging, which it does not require.
        requires=("gunicorn==27.0.1", "gevent", "packaging", "flask", "requests", "ujson"),
        # Its workers, forked later, import flask and gevent.
        imports=("gunicorn.app.base",),
    )
]
TIMEOUT_S = 30


def worker(form: str, place: Place) -> None:
    """Answer with what was sent, from a process that gunicorn forks."""
    import threading

    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):  # type: ignore[misc, unused-ignore]
        """gunicorn with settings of ours."""

        def load_config(self) -> None:
            """Set them."""
            self.cfg.set("bind", f"127.0.0.1:{place.workers[place.turn]}")
            self.cfg.set("worker_class", "gevent")
            self.cfg.set("keepalive", 60)
            self.cfg.set("loglevel", "error")

        def load(self) -> Any:
            """Return the application, in the worker."""
            return _application()

    def watch() -> None:
        attend()
        os.kill(os.getpid(), signal.SIGINT)  # at once, whatever connections are kept

    threading.Thread(target=watch, daemon=True).start()
    Server().run()


def _application() -> Any:
    import ujson
    from flask import Flask, Response, request

    application = Flask(__name__)

    @application.post("/echo")  # type: ignore[untyped-decorator, unused-ignore]
    def echo() -> Response:
        body = ujson.loads(request.get_data())
        return Response(ujson.dumps(body), mimetype="application/json")

    return application


def client(form: str, place: Place) -> None:
    """Call from greenlets, each with a session: a connection that is kept."""
    from gevent import monkey

    monkey.patch_all()
    import requests
    import ujson

    url = f"http://127.0.0.1:{place.workers[0]}/echo"

    def connect() -> Call:
        post = requests.Session().post

        def call(sent: Body) -> Body:
            response = post(url, data=ujson.dumps(sent), timeout=TIMEOUT_S)
            response.raise_for_status()
            return ujson.loads(response.content)  # type: ignore[no-any-return]

        return call

    LonelyGreenlets(connect).run()
