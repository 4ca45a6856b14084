"""The web application whose fronts are measured, and two of its fronts: ``python -m benchmarks.pages ROLE``.

``/page`` answers by itself what ``/call`` has from an echo service behind a router. ``/upload`` passes the
file of a form, or a whole body, on to a service in parts, ``/download`` what a service streams.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count
from typing import IO, TYPE_CHECKING, Any

from benchmarks.harness import attend_greenlets, body
from benchmarks.systems.butler_mesh import SERVICE
from butler_mesh import Application, Mongrel2Connection, ServiceClientMixin, WebMessageHandler, WSGIConnection

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

BODY = body(100)
FILES = "bench.files"
"""The service that stores uploads and streams downloads."""
PART = 256 * 1024
"""Bytes of an upload in one request of the mesh."""
MAX_BODY_BYTES = 64 * 2**20

_numbers = count(1)


class Page(WebMessageHandler):
    """Answers by itself."""

    def get(self) -> Any:
        return BODY


class Call(ServiceClientMixin, WebMessageHandler):
    """Answers what the service does."""

    def get(self) -> Any:
        address = self.application.resources["echo"]
        request = self.create_service_request("/echo", "request", BODY)
        response, _ = self.send_service_request(address, request)
        response.raise_for_status()
        return response.body


class Upload(ServiceClientMixin, WebMessageHandler):
    """Passes an upload on, one request after the other, and answers the service's digest of it."""

    def put(self) -> Any:
        return self.pass_on(self.message.stream)

    def post(self) -> Any:
        return self.pass_on(self.message.files["file"].stream)

    def pass_on(self, source: IO[bytes]) -> Any:
        """Send what can be read there; return what the service says to the last part."""
        address, upload = self.application.resources["files"], next(_numbers)
        for number, (part, is_last) in enumerate(parts(source)):
            arguments = {"upload": upload, "number": number, "is_last": is_last}
            request = self.create_service_request("/store", "request", arguments, body=part)
            response, _ = self.send_service_request(address, request)
            response.raise_for_status()
        return response.body


class Download(ServiceClientMixin, WebMessageHandler):
    """Passes on what the service streams."""

    def get(self) -> Any:
        arguments = {"size": int(self.get_argument("size"))}
        request = self.create_service_request("/give", "request", arguments)
        return self.forward_to_service(self.application.resources["files"], request)


def parts(source: IO[bytes], size: int = PART) -> Iterator[tuple[bytes, bool]]:
    """Yield (bytes, whether they are the last), at least once; all but the last have ``size`` bytes."""
    part = _full(source, size)
    while following := _full(source, size):
        yield part, False
        part = following
    yield part, True


def _full(source: IO[bytes], size: int) -> bytes:
    """Return so many bytes, fewer at the end only: a stream may give less than it is asked for."""
    pieces, left = [], size
    while left and (piece := source.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


# --- the processes --------------------------------------------------------------------------------


def application(endpoint: str, connection: Any = None) -> Application:
    """Return the application, whose services are behind a router."""
    made = Application(
        connection,
        [(r"^/page$", Page), (r"^/call$", Call), (r"^/upload$", Upload), (r"^/download$", Download)],
    )
    made.resources["echo"] = f"{endpoint}#{SERVICE}"
    made.resources["files"] = f"{endpoint}#{FILES}"
    return made


def wsgi(endpoint: str) -> WSGIApplication:
    """Return what gunicorn hosts: ``gunicorn -k gevent "benchmarks.pages:wsgi('tcp://…')"``."""
    return application(endpoint).wsgi


def pywsgi(endpoint: str, port: str) -> None:
    """Be our own server."""
    _serve(application(endpoint, WSGIConnection("127.0.0.1", int(port), max_body_bytes=MAX_BODY_BYTES)))


def mongrel2(endpoint: str, send_spec: str, recv_spec: str, store: str) -> None:
    """Be the handler of a Mongrel2."""
    connection = Mongrel2Connection(send_spec, recv_spec, upload_store=store, max_body_bytes=MAX_BODY_BYTES)
    _serve(application(endpoint, connection))


def _serve(made: Application) -> None:
    made.start()
    attend_greenlets()
    made.close()


ROLES: dict[str, Callable[..., None]] = {each.__name__: each for each in (pywsgi, mongrel2)}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
