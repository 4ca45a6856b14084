"""ServiceClientMixin: calls from any class with an ``application``, and what becomes of the replies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from butler_mesh import deadlines
from butler_mesh.application import Application
from butler_mesh.client import Client
from butler_mesh.errors import AddressError, NotFound, UsageError
from butler_mesh.handlers import ServiceMessageHandler
from butler_mesh.service import Service
from butler_mesh.service_client import ServiceClientMixin, coro_sleep
from butler_mesh.service_connection import ServiceConnection
from tests.brokers import Broker
from tests.meshes import Mesh
from tests.waiting import wait_for


class Caller(ServiceClientMixin):
    """Anything with an application."""

    def __init__(self, application: Any) -> None:
        self.application = application


class Homeless(ServiceClientMixin):
    """Something without one."""


class Handles(ServiceMessageHandler):
    """The caller's own route for the replies."""

    seen: list[Any]

    def response(self) -> Any:
        self.seen.append((self.status_code, self.status_msg, self.message.body, gevent.getcurrent()))
        return "handled"

    def request(self) -> Any:
        raise AssertionError("a reply is no request")


def echo(**kwargs: Any) -> Any:
    return kwargs


@pytest.fixture
def seen() -> list[Any]:
    Handles.seen = []
    return Handles.seen


@pytest.fixture
def application() -> Any:
    made = Application(None, [("^/echo$", Handles), ("^/missing$", Handles), ("^/outer$", Handles)])
    yield made
    made.close()


@pytest.fixture
def address(mesh: Mesh) -> str:
    mesh.service(echo)
    return f"{mesh.endpoint}/svc"


# --- registering -------------------------------------------------------------------------------------


def test_register_service_is_idempotent(application: Any, address: str) -> None:
    caller = Caller(application)
    caller.register_service(address)
    first = application._mesh_clients[address]
    caller.register_service(address)
    Caller(application).register_service(address, timeout=1.0)
    assert application._mesh_clients[address] is first


def test_unregister_service_forgets_and_closes(mesh: Mesh, application: Any, address: str) -> None:
    caller = Caller(application)
    caller.register_service(address)
    caller.send_service_request(address, caller.create_service_request("/echo"), handle=False)
    assert mesh.router.status()["clients"] == 1
    caller.unregister_service(address)
    caller.unregister_service(address)
    wait_for(lambda: mesh.router.status()["clients"] == 0)
    Homeless().unregister_service(address)


def test_the_timeout_of_a_service_is_that_of_its_calls(mesh: Mesh, application: Any) -> None:
    mesh.service().register_function(lambda: gevent.sleep(60), "sleepy")
    address = f"{mesh.endpoint}/svc"
    caller = Caller(application)
    caller.register_service(address, timeout=0.05)
    response, _ = caller.send_service_request(address, caller.create_service_request("/sleepy"))
    assert response.status_code == 504


def test_a_passphrase_is_for_all_calls_to_its_service_and_nobody_elses(
    mesh: Mesh, application: Any, seen: list[Any]
) -> None:
    """With it the service answers, whoever calls and however; without it the caller gets 401."""
    mesh.service(echo, passphrase="shared")
    address = f"{mesh.endpoint}/svc"
    for caller in (Caller(application), Homeless()):
        caller.register_service(address, passphrase="shared")
        request = caller.create_service_request("/echo", arguments={"a": 1})
        response, _ = caller.send_service_request(address, request)
        assert (response.status_code, response.body) == (200, {"a": 1})
        response, _ = caller.send_service_request_lazy(address, request).get()
        assert (response.status_code, response.body) == (200, {"a": 1})
    stranger = Homeless()
    response, _ = stranger.send_service_request(address, stranger.create_service_request("/echo"))
    assert response.status_code == 401
    caller.unregister_service(address)
    response, _ = caller.send_service_request(address, request)
    assert response.status_code == 401


def test_without_an_application_what_was_registered_still_counts_and_nothing_stays_open(mesh: Mesh) -> None:
    mesh.service().register_function(lambda: gevent.sleep(60), "sleepy")
    address = f"{mesh.endpoint}/svc"
    caller = Homeless()
    caller.register_service(address, timeout=0.05)
    caller.register_service(address, timeout=60.0)  # known: stays as it is
    response, _ = caller.send_service_request(address, caller.create_service_request("/sleepy"))
    assert response.status_code == 504
    wait_for(lambda: mesh.router.status()["clients"] == 0)


def test_a_bad_address_is_refused(application: Any) -> None:
    for caller in (Caller(application), Homeless()):
        with pytest.raises(AddressError):
            caller.register_service("tcp://nowhere")
        with pytest.raises(AddressError):
            caller.send_service_request("tcp://nowhere", caller.create_service_request("/echo"))


# --- requests ----------------------------------------------------------------------------------------


def test_a_request_is_made_of_path_method_arguments_headers_and_body() -> None:
    request = Homeless().create_service_request("/a", "get", {"x": 1}, {"X": "y"}, [1])
    assert (request.path, request.method, request.arguments, request.headers, request.body) == (
        "/a",
        "get",
        {"x": 1},
        {"X": "y"},
        [1],
    )
    assert Homeless().create_service_request("/a").method == "request"


def test_a_reply_comes_with_what_our_own_handler_made_of_it(
    application: Any, address: str, seen: list[Any]
) -> None:
    caller = Caller(application)
    request = caller.create_service_request("/echo", "request", {"a": 1})
    response, handled = caller.send_service_request(address, request)
    assert (response.status_code, response.body, handled) == (200, {"a": 1}, "handled")
    # In the calling greenlet: what it does is part of the call.
    assert [entry[2:] for entry in seen] == [({"a": 1}, gevent.getcurrent())]


def test_a_failure_is_a_response_and_is_handled_too(application: Any, address: str, seen: list[Any]) -> None:
    caller = Caller(application)
    response, handled = caller.send_service_request(address, caller.create_service_request("/missing"))
    assert (response.status_code, handled) == (404, "handled")
    assert seen[0][0] == 404


def test_having_no_route_for_a_reply_is_fine(address: str) -> None:
    caller = Caller(Application(None, []))
    response, handled = caller.send_service_request(address, caller.create_service_request("/echo"))
    assert (response.status_code, handled) == (200, None)


def test_handle_false_skips_the_handler(application: Any, address: str, seen: list[Any]) -> None:
    caller = Caller(application)
    request = caller.create_service_request("/echo")
    _, handled = caller.send_service_request(address, request, handle=False)
    assert (handled, seen) == (None, [])


def test_what_the_response_handler_raises_its_caller_gets(address: str) -> None:
    class Broken(ServiceMessageHandler):
        def response(self) -> Any:
            raise ValueError("broken")

    caller = Caller(Application(None, [("^/echo$", Broken)]))
    with pytest.raises(ValueError, match="broken"):
        caller.send_service_request(address, caller.create_service_request("/echo"))


def test_a_lazy_request_is_handled_when_it_is_collected(
    application: Any, address: str, seen: list[Any]
) -> None:
    caller = Caller(application)
    lazies = [
        caller.send_service_request_lazy(address, caller.create_service_request("/echo", arguments={"n": n}))
        for n in range(3)
    ]
    assert seen == []
    assert [lazy.get(5.0)[0].body["n"] for lazy in lazies] == [0, 1, 2]
    assert [entry[2]["n"] for entry in seen] == [0, 1, 2]


def test_a_nowait_request_returns_at_once_and_its_reply_is_handled_in_a_greenlet_of_its_own(
    application: Any, address: str, seen: list[Any]
) -> None:
    caller = Caller(application)
    request = caller.create_service_request("/echo", arguments={"a": 1})
    assert caller.send_service_request_nowait(address, request) is None
    assert seen == []
    wait_for(lambda: seen)
    code, _, body, greenlet = seen[0]
    assert (code, body) == (200, {"a": 1})
    assert greenlet not in (gevent.getcurrent(), gevent.get_hub())


def test_a_response_handler_may_itself_wait_and_call(mesh: Mesh, address: str) -> None:
    done: list[Any] = []

    class Calls(ServiceClientMixin, ServiceMessageHandler):
        def response(self) -> Any:
            coro_sleep(0)
            again = self.create_service_request("/echo", arguments={"again": True})
            done.append(self.send_service_request(address, again, handle=False)[0].body)

    application = Application(None, [("^/echo$", Calls)])
    caller = Caller(application)
    caller.send_service_request_nowait(address, caller.create_service_request("/echo"))
    wait_for(lambda: done == [{"again": True}])
    application.close()


def test_a_nowait_failure_that_no_handler_takes_is_logged(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caller = Caller(Application(None, []))
    caller.send_service_request_nowait(address, caller.create_service_request("/nothing"))
    wait_for(lambda: caplog.records)
    assert caplog.records[0].getMessage().startswith("nowait-failed '/nothing': 404")


def test_a_nowait_request_outlives_the_deadline_of_what_caused_it(
    mesh: Mesh, application: Any, seen: list[Any]
) -> None:
    left: list[float] = []
    mesh.service(echo, name="inner").register_function(lambda: left.append(deadlines.remaining_s()), "outer")
    inner = f"{mesh.endpoint}/inner"

    def outer() -> None:
        caller = Caller(application)
        caller.send_service_request_nowait(inner, caller.create_service_request("/outer"))

    mesh.service(outer)
    assert mesh.client().request("svc", "/outer", timeout=1.0).is_success
    wait_for(lambda: seen)
    assert 55.0 < left[0] <= 60.01


# --- where clients are kept --------------------------------------------------------------------------


def test_connections_are_kept_on_the_application_for_all_callers(
    mesh: Mesh, application: Any, address: str
) -> None:
    for _ in range(3):
        caller = Caller(application)
        caller.send_service_request(address, caller.create_service_request("/echo"), handle=False)
    assert list(application._mesh_clients) == [address]
    assert mesh.router.status()["clients"] == 1
    application.close()
    wait_for(lambda: mesh.router.status()["clients"] == 0)


def test_any_object_will_do_as_application(mesh: Mesh, address: str) -> None:
    application = SimpleNamespace()
    caller = Caller(application)
    response, handled = caller.send_service_request(address, caller.create_service_request("/echo"))
    assert (response.status_code, handled) == (200, None)
    assert isinstance(application._mesh_clients[address], Client)
    caller.unregister_service(address)


@pytest.mark.parametrize("caller", [Homeless(), Caller(None)], ids=["no attribute", "None"])
def test_without_an_application_each_call_has_a_connection_of_its_own(
    mesh: Mesh, address: str, caller: Any
) -> None:
    caller.register_service(address)
    request = caller.create_service_request("/echo", arguments={"a": 1})
    for _ in range(2):
        response, handled = caller.send_service_request(address, request)
        assert (response.body, handled) == ({"a": 1}, None)
    lazy = caller.send_service_request_lazy(address, request)
    wait_for(lambda: mesh.router.status()["clients"] == 1)
    assert lazy.get(5.0)[0].body == {"a": 1}
    caller.send_service_request_nowait(address, request)
    wait_for(lambda: mesh.router.status()["clients"] == 0)


def test_it_works_beside_other_base_classes(application: Any, address: str, seen: list[Any]) -> None:
    class View:
        """As Flask's and Django's: made for each request, with arguments of its own."""

        def __init__(self, **options: Any) -> None:
            self.options = options

    class Page(ServiceClientMixin, View):
        application: Any = None

        def get(self) -> Any:
            self.register_service(address)
            return self.send_service_request(address, self.create_service_request("/echo"))[1]

    Page.application = application
    assert Page(template="a").get() == "handled"


# --- stored requests ---------------------------------------------------------------------------------


def test_a_durable_request_is_stored_and_nobody_handles_what_became_of_it(
    application: Any, broker: Broker, seen: list[Any]
) -> None:
    jobs: list[int] = []

    def take(n: int) -> None:
        jobs.append(n)

    address = f"{broker.endpoint}#mixin-jobs"
    with Service(address, durable=True) as service:
        service.register_function(take, "echo")
        service.start()
        assert service.wait_until_registered(5.0)
    for n, caller in enumerate((Caller(application), Homeless())):
        request = caller.create_service_request("/echo", "request", {"n": n})
        caller.send_service_request_nowait(address, request, durable=True)
    assert jobs == []
    with Service(address, durable=True) as service:
        service.register_function(take, "echo")
        service.start()
        wait_for(lambda: sorted(jobs) == [0, 1])
    assert seen == []
    missing = f"{broker.endpoint}#nothing-of-that-name"
    with pytest.raises(NotFound):
        Homeless().send_service_request_nowait(missing, request, durable=True)
    broker.delete_queues(["mixin-jobs", "mixin-jobs:durable", "mixin-jobs:dead"])


def test_where_nothing_is_stored_a_durable_request_is_refused(application: Any, address: str) -> None:
    caller = Caller(application)
    with pytest.raises(UsageError, match="amqp"):
        caller.send_service_request_nowait(address, caller.create_service_request("/echo"), durable=True)


class Books(ServiceMessageHandler):
    """Fails the first time, and notes what it was given."""

    keys: list[str]

    def request(self) -> Any:
        (key,) = (value for name, value in self.message.headers.items() if name.lower() == "idempotency-key")
        self.keys.append(key)
        if len(self.keys) == 1:
            self.set_status(503)
        return self.render()


def test_a_stored_request_bears_a_key_that_is_the_same_each_time_it_comes(broker: Broker) -> None:
    Books.keys = []
    address = f"{broker.endpoint}#mixin-books"
    connection = ServiceConnection(address, durable=True)
    application = Application(connection, [("^/book$", Books)])
    serving = gevent.spawn(application.run)
    caller = Homeless()
    request = caller.create_service_request("/book")
    try:
        wait_for(lambda: is_stored(caller, address, request))
        wait_for(lambda: len(Books.keys) == 2)
        caller.send_service_request_nowait(address, request, durable=True)
        own = caller.create_service_request("/book", headers={"idempotency-key": "mine"})
        caller.send_service_request_nowait(address, own, durable=True)
        wait_for(lambda: len(Books.keys) == 4)
    finally:
        application.stop()
        serving.join(5.0)
    assert Books.keys[0] == Books.keys[1] != Books.keys[2]
    assert Books.keys[3] == "mine"
    assert request.headers == {}
    broker.delete_queues(["mixin-books", "mixin-books:durable", "mixin-books:dead"])


def is_stored(caller: ServiceClientMixin, address: str, request: Any) -> bool:
    """Send it, once there is somebody to keep it."""
    try:
        caller.send_service_request_nowait(address, request, durable=True)
    except NotFound:
        return False
    return True
