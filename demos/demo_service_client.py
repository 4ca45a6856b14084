"""The web page of the demo: calls the slow service and waits, or calls it and does not.

python demos/demo_service_client.py [--frontend URL] [--port N]
python demos/demo_service_client.py [--frontend URL] --front mongrel2
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from butler_mesh import (
    Application,
    Jinja2Rendering,
    Mongrel2Connection,
    ServiceClientMixin,
    ServiceMessageHandler,
    WebMessageHandler,
    WSGIConnection,
    load_jinja2_env,
)
from butler_mesh.errors import UsageError

SERVICE = "slow"
SERVICE_PATH = "/service/slow"
FRONTEND = "tcp://127.0.0.1:5555"
PORT = 6767
SEND_SPEC, RECV_SPEC = "tcp://127.0.0.1:9999", "tcp://127.0.0.1:9998"  # as in demos/mongrel2.conf
LONGEST_S = 60.0  # the deadline of a request that nobody waits for
TEMPLATES = Path(__file__).parents[1] / "templates"

SYNC_DATA = "I made a round trip, it took a while but I bring results."
ASYNC_DATA = "I made a round trip, it took so long I will respond to no one."

log = logging.getLogger("demo.web")


@dataclass
class Call:
    """One call to the service, as the page's journal shows it."""

    number: int
    is_sync: bool
    sent: float = field(default_factory=time.monotonic)
    sent_at: str = field(default_factory=lambda: time.strftime("%H:%M:%S"))
    seconds: float | None = None  # None while the answer is awaited
    code: int = 0
    text: str = ""
    instance: int | None = None

    def answered(self, code: int, text: str, instance: int | None = None) -> None:
        self.seconds, self.code, self.text = time.monotonic() - self.sent, code, text
        self.instance = instance

    def show(self) -> dict[str, object]:
        waited = time.monotonic() - self.sent
        is_open = self.seconds is None
        return {
            "number": self.number,
            "kind": "sync" if self.is_sync else "async",
            "sent_at": self.sent_at,
            "is_waiting": is_open and waited < LONGEST_S,
            "is_lost": is_open and waited >= LONGEST_S,
            "seconds": round(waited if self.seconds is None else self.seconds, 2),
            "code": self.code,
            "text": self.text,
            "instance": self.instance,
        }


class Journal:
    """The latest calls of this process."""

    def __init__(self) -> None:
        self.calls: deque[Call] = deque(maxlen=12)
        self._numbers = count(1)

    def open(self, *, is_sync: bool) -> Call:
        call = Call(next(self._numbers), is_sync)
        self.calls.appendleft(call)
        return call

    def find(self, number: object) -> Call | None:
        return next((call for call in self.calls if call.number == number), None)

    def show(self) -> list[dict[str, object]]:
        return [call.show() for call in self.calls]


class DemoHandler(Jinja2Rendering, WebMessageHandler):
    """The page with the two links."""

    def get(self):
        return self.render_template("index.html", calls=self.application.resources["journal"].show())


class CallsHandler(WebMessageHandler):
    """The journal as JSON, for the page's script: any number of these while a sync call waits."""

    def get(self):
        self.headers["Cache-Control"] = "no-store"
        return self.application.resources["journal"].show()


class ServiceCaller(Jinja2Rendering, ServiceClientMixin, WebMessageHandler):
    """What both ways of calling share."""

    def open_call(self, data: str, *, is_sync: bool):
        """Return the service's address, the request for it, and the call's entry in the journal."""
        address = self.application.resources["address"]
        self.register_service(address)  # if it is known, nothing happens
        call = self.application.resources["journal"].open(is_sync=is_sync)
        arguments = {"RETURN_DATA": data, "CALL": call.number}
        return address, self.create_service_request(SERVICE_PATH, "request", arguments), call

    def page(self, call: Call):
        """Return the call as a page, or as JSON where a script asks."""
        self.headers["Cache-Control"] = "no-store"
        self.headers["Vary"] = "Accept"
        if self.message.accept_mimetypes.best == "application/json":
            return call.show()
        journal = self.application.resources["journal"]
        return self.render_template("success.html", call=call.show(), calls=journal.show())


class CallServiceAsyncHandler(ServiceCaller):
    """Sends the request and answers at once; ServiceResponseHandler gets the reply when it comes."""

    def get(self):
        address, service_request, call = self.open_call(ASYNC_DATA, is_sync=False)
        self.send_service_request_nowait(address, service_request)
        self.set_status(200)
        return self.page(call)


class CallServiceSyncHandler(ServiceCaller):
    """Sends the request and waits for the reply. Only this page waits, all others are served."""

    def get(self):
        address, service_request, call = self.open_call(SYNC_DATA, is_sync=True)
        response, _ = self.send_service_request(address, service_request)
        if not response.is_success:
            call.answered(response.status_code, response.status_msg)
            return self.render_error(response.status_code, response.status_msg)
        self.set_status(200)
        return self.page(call)


class ServiceResponseHandler(ServiceMessageHandler):
    """Takes the replies of the service, of both kinds of calls."""

    def response(self):
        log.info("reply: %s %s", self.status_code, self.status_msg)
        call = self.application.resources["journal"].find(self.message.get_argument("CALL"))
        if call is not None:
            text = self.message.get_argument("RETURN_DATA", "")
            call.answered(self.status_code, text, self.message.get_argument("INSTANCE"))
        # Not a response to the web client, but to the handler that sent the request, or to no one.
        return self.render()


def connection(options: argparse.Namespace) -> WSGIConnection | Mongrel2Connection:
    """Return what brings the requests: nothing else differs between the fronts."""
    if options.front == "wsgi":
        return WSGIConnection("127.0.0.1", options.port)
    return Mongrel2Connection(options.send_spec, options.recv_spec, upload_store=options.upload_store)


def main() -> None:
    parser = argparse.ArgumentParser(description="the web page of the demo")
    parser.add_argument("--frontend", default=os.environ.get("BUTLER_MESH_FRONTEND", FRONTEND), metavar="URL")
    parser.add_argument("--port", type=int, default=os.environ.get("DEMO_PORT", PORT))
    parser.add_argument("--front", choices=("wsgi", "mongrel2"), default="wsgi", help="who speaks HTTP")
    mongrel2 = parser.add_argument_group("with --front mongrel2, which has the port")
    mongrel2.add_argument("--send-spec", default=SEND_SPEC, metavar="URL")
    mongrel2.add_argument("--recv-spec", default=RECV_SPEC, metavar="URL")
    mongrel2.add_argument("--upload-store", type=Path, metavar="DIRECTORY")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # The open page asks for the journal several times a second; the log is for what people do.
    logging.getLogger("butler_mesh.web").addFilter(lambda record: "GET /calls'" not in record.getMessage())

    app = Application(
        msg_conn=connection(options),
        handler_tuples=[
            # Takes the replies of the service. No browser gets here: service and web routes are apart.
            (r"^/service/slow", ServiceResponseHandler),
            (r"^/service/sync$", CallServiceSyncHandler),
            (r"^/service/async$", CallServiceAsyncHandler),
            (r"^/calls$", CallsHandler),
            (r"^/$", DemoHandler),
        ],
        template_loader=load_jinja2_env(TEMPLATES),
    )
    app.resources["address"] = f"{options.frontend}#{SERVICE}"
    app.resources["journal"] = Journal()
    try:
        app.run()
    except UsageError as error:
        parser.exit(2, f"demo: {error}\n")


if __name__ == "__main__":
    main()
