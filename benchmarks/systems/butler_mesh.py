"""Ourselves, in every form: through a router, without one, embedded; functions and handler classes."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Body, Call, Greenlets, Note, Tally, attend_greenlets
from benchmarks.system import Place, System, Unavailable

SERVICE = "bench.echo"
# One-way messages come as fast as a client can write them; the router keeps what the worker has yet to do.
QUEUE_LIMIT = 5_000_000
FUNCTIONS = ("butler_mesh.service",)
HANDLERS = ("butler_mesh.application", "butler_mesh.service_connection", "butler_mesh.handlers")


def _form(form: str, roles: tuple[str, ...] = ("broker", "worker", "client"), codec: str = "") -> System:
    return System(
        name=f"butler_mesh {form}",
        module="butler_mesh",
        form=form,
        roles=roles,
        imports=HANDLERS if form.startswith("handlers") else FUNCTIONS,
        environ=(("BUTLER_MESH_CODEC", codec),) if codec else (),
        can_share="broker" in roles,
        # Its own router has the usual short queue, and refuses what a worker has yet to do.
        can_notify=not form.startswith("brokerless"),
        can_crowd=True,
    )


SYSTEMS = [
    _form("router tcp"),
    _form("router ipc"),
    _form("handlers tcp"),
    _form("brokerless tcp", ("worker", "client")),
    _form("brokerless ipc", ("worker", "client")),
    _form("embedded tcp", ("worker", "client")),
    _form("router tcp orjson", codec="orjson"),
]


def broker(form: str, place: Place) -> None:
    """Run a router."""
    from butler_mesh import Router

    with Router(queue_limit=QUEUE_LIMIT) as router:
        router.frontend.bind(_front(form, place))
        router.backend.bind(_back(form, place))
        attend_greenlets()


def worker(form: str, place: Place) -> None:
    """Answer with what was sent."""
    _check_codec(form)
    tally = Tally()
    if form.startswith("handlers"):
        party = _application(_back(form, place), tally)
    else:
        party = _service(form, place, tally)
    party.start()
    attend_greenlets(tally.answer)
    party.close()


def client(form: str, place: Place) -> None:
    """Call from greenlets."""
    _check_codec(form)
    if form.startswith("embedded"):
        from butler_mesh import Router

        with Router(queue_limit=QUEUE_LIMIT) as router:
            router.bind(_front(form, place))
            keep_calling(router)
    else:
        keep_calling(_front(form, place))


def keep_calling(address: Any) -> None:
    """Be a client: do the jobs that come."""
    from butler_mesh import Client

    def connect() -> Call:
        request = Client(address).request

        def call(sent: Body) -> Body:
            response = request(SERVICE, "/echo", sent)
            response.raise_for_status()
            return response.body  # type: ignore[no-any-return]

        return call

    def connect_notes() -> Note:
        request_nowait = Client(address).request_nowait
        return lambda sent: request_nowait(SERVICE, "/note", sent)

    Greenlets(connect, connect_notes).run()


def _service(form: str, place: Place, tally: Tally) -> Any:
    from butler_mesh import Service

    if form.startswith("brokerless"):
        service = Service.bind(_front(form, place), SERVICE)
    else:
        service = Service((_front if form.startswith("embedded") else _back)(form, place), SERVICE)

    @service.function
    def echo(text: str) -> Body:
        return {"text": text}

    @service.function
    def note(text: str) -> None:
        tally.add()

    return service


def _application(address: str, tally: Tally) -> Any:
    from butler_mesh import Application, ServiceConnection, ServiceMessageHandler

    class Echo(ServiceMessageHandler):
        """The handler class's way to answer."""

        def request(self) -> Any:
            self.set_status(200)
            return self.render({"text": self.message.get_argument("text")})

    class Noted(ServiceMessageHandler):
        """The handler class's way to be told."""

        def request(self) -> Any:
            tally.add()
            self.set_status(200)
            return self.render({})

    return Application(ServiceConnection(address, SERVICE), [(r"^/echo$", Echo), (r"^/note$", Noted)])


def _front(form: str, place: Place) -> str:
    return f"ipc://{place.directory}/front" if "ipc" in form else place.tcp(place.front)


def _back(form: str, place: Place) -> str:
    return f"ipc://{place.directory}/back" if "ipc" in form else place.tcp(place.back)


def _check_codec(form: str) -> None:
    """Raise Unavailable if the environment's wish for a codec was not granted."""
    if form.endswith("orjson"):
        import sys
        from importlib.util import find_spec

        import butler_mesh.codec  # noqa: F401

        if not find_spec("orjson"):
            raise Unavailable("orjson is not installed")
        if "orjson" not in sys.modules:
            raise Unavailable("butler_mesh.codec does not use orjson")
