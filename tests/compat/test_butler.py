"""butler's face: calls, manual loops, exceptions, retries, and questions to the router."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
import zmq
from gevent.event import Event

from butler_mesh import Service as CoreService
from butler_mesh import register_error
from butler_mesh.compat import butler
from butler_mesh.compat.butler import Client, Router, Service, Sink
from butler_mesh.errors import (
    BadRequest,
    Closed,
    DeadlineExceeded,
    InstanceLost,
    NotFound,
    RemoteError,
    RouteCollision,
    Unavailable,
    UsageError,
)
from butler_mesh.protocol.liveness import DEAD_AFTER_S
from tests.meshes import ANY_PORT, Mesh, send_raw
from tests.programs import ROOT, Program
from tests.waiting import wait_for

NAME = "api.images"
ORIGINAL = "Original Traceback (most recent call last):"

Join = Callable[..., Service]


@pytest.fixture
def join(mesh: Mesh) -> Join:
    """Starts a worker with these functions."""

    def join(*functions: Callable[..., Any], name: str = NAME, **options: Any) -> Service:
        worker = Service(mesh.endpoint, name, **{"grace": 0.05, **options})
        for function in functions:
            worker.register_function(function)
        mesh.join(worker)
        return worker

    return join


@pytest.fixture
def client(mesh: Mesh) -> Iterator[Client]:
    """A client that waits for ten seconds."""
    with Client(mesh.endpoint) as made:
        made.timeout = 10_000
        yield made


@pytest.fixture
def loop(mesh: Mesh, client: Client) -> Iterator[Callable[[Callable[[str], Any]], Service]]:
    """Starts a manual loop, as it is documented, around a function from request to reply."""
    started: list[tuple[gevent.Greenlet[..., Any], Service]] = []

    def start(work: Callable[[str], Any]) -> Service:
        worker = Service(mesh.endpoint, NAME, grace=0.05)
        worker.timeout = 20

        def run() -> None:
            reply = None
            while True:
                request = worker.recv(reply)
                reply = None
                if not request:
                    continue
                reply = work(request)

        started.append((gevent.spawn(run), worker))
        wait_for(lambda: client.send(f"mmi.{NAME}")[1] == "200")
        return worker

    yield start
    for greenlet, worker in started:
        greenlet.kill()
        worker.close()


def resize_image(name: str, size: str) -> str:
    return f"{name} at {size}"


def both(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


# --- calls ------------------------------------------------------------------------------------------


def test_functions_aliases_and_methods_are_called_by_their_names(join: Join, client: Client) -> None:
    """The caller gets a function's value under its own name and under an alias, and that of a method."""

    class Album:
        def cover(self, size: str = "1x1") -> str:
            return f"cover at {size}"

    worker = join(resize_image)
    worker.register_function(resize_image, "resize")
    worker.register(Album())
    images = client.rpc(NAME)
    assert images.resize_image("a.jpg", "2x2") == "a.jpg at 2x2"
    assert images.resize("a.jpg", size="3x3") == "a.jpg at 3x3"
    assert (images.cover(), images.cover(size="4x4")) == ("cover at 1x1", "cover at 4x4")


@pytest.mark.parametrize(
    ("call", "heard"),
    [
        ({"method": "both"}, [[], {}]),
        ({"method": "both", "uri": "a.jpg", "size": 1}, [[], {"uri": "a.jpg", "size": 1}]),
        ({"method": "both", "args": ["a.jpg", 1], "kwargs": {"x": None}}, [["a.jpg", 1], {"x": None}]),
        ({"method": "both", "args": [1]}, [[1], {}]),
        ({"method": "both", "args": [1], "kwargs": {"x": 2}, "y": 3}, [[1], {"x": 2, "y": 3}]),
    ],
)
def test_a_call_takes_arguments_beside_the_method_or_as_args_and_kwargs(
    join: Join, client: Client, call: dict[str, Any], heard: Any
) -> None:
    """Both documented forms reach the function, as a dict and as its JSON text."""
    join(both)
    assert client.call(NAME, call) == heard
    assert client.call(NAME, json.dumps(call)) == heard
    assert client.call(NAME, json.dumps(call).encode()) == heard


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        ({}, "'method'"),
        ({"args": [1]}, "'method'"),
        ({"method": None}, "'method'"),
        ({"method": ""}, "'method'"),
        ("{}", "'method'"),
        ('{"uri": "a.jpg"}', "'method'"),
        ("7", "an object"),
        ('[["method", "both"]]', "an object"),
        ([["method", "both"]], "an object"),
        ("resize_image", "JSON text"),
        (b"\xff\xfe", "JSON text"),
        (7, "an object"),
        ({"method": "both", "args": "abc"}, "'args'"),
        ({"method": "both", "kwargs": [1]}, "'kwargs'"),
    ],
    ids=repr,
)
def test_what_is_no_call_is_a_UsageError_that_says_why_and_the_next_call_works(
    join: Join, client: Client, call: Any, wrong: str
) -> None:
    """Without a method, without JSON: the caller is told at once, and nothing is sent."""
    join(both)
    with pytest.raises(UsageError, match=wrong):
        client.call(NAME, call)
    assert client.call(NAME, {"method": "both"}) == [[], {}]


@pytest.mark.parametrize(
    "value", [None, 7, 1.5, True, "", "404", "500:exception:{}", [1], {"a": None}, b"\xff"]
)
def test_a_value_is_what_the_function_returned(join: Join, client: Client, value: Any) -> None:
    """Any JSON value or bytes; and a text that butler took for an error is a text."""
    join().register_function(lambda: value, "value")
    assert client.rpc(NAME).value() == value


@pytest.mark.parametrize("value", [object(), {1}, float("nan"), "\ud800", [object()]], ids=repr)
def test_a_value_that_JSON_cannot_hold_is_an_error_for_its_caller_only(
    join: Join, client: Client, value: Any
) -> None:
    """The caller is told what is wrong with it; the worker goes on."""
    join(both).register_function(lambda: value, "value")
    with pytest.raises(RemoteError) as raised:
        client.rpc(NAME).value()
    assert raised.value.type == "NotSerializable"
    assert client.rpc(NAME).both(1) == [[1], {}]


def test_one_side_may_move_to_the_core_before_the_other(mesh: Mesh, join: Join, client: Client) -> None:
    """This client calls a service of the core's, and a client of the core's calls this worker."""
    core = mesh.service(resize_image, name="core")
    assert isinstance(core, CoreService)
    flat = {"method": "resize_image", "name": "a.jpg", "size": "1x1"}
    assert client.call("core", flat) == client.rpc("core").resize_image("a.jpg", "1x1") == "a.jpg at 1x1"
    join(resize_image)
    plain = mesh.client()
    assert plain.request(NAME, "/resize_image", {"name": "a.jpg", "size": "1x1"}).body == "a.jpg at 1x1"
    assert plain.describe(NAME)["paths"]["/resize_image"]["signature"].startswith("(name: 'str', size:")


# --- what is not remote -----------------------------------------------------------------------------


class Guarded:
    """An object with all that a worker must not let out."""

    secret = "attribute"

    def shown(self) -> str:
        return "shown"

    def _private(self) -> str:
        raise AssertionError("called from afar")

    def __len__(self) -> int:
        raise AssertionError("called from afar")

    def close(self) -> None:
        raise AssertionError("called from afar")

    def timeout(self) -> None:
        raise AssertionError("called from afar")


@pytest.mark.parametrize(
    "name",
    ["_private", "__len__", "__init__", "__class__", "secret", "close", "timeout", "none", "shown.im_func"],
)
def test_private_and_reserved_names_of_an_object_are_404(join: Join, client: Client, name: str) -> None:
    """Whoever calls one by its name gets an AttributeError, and nothing has run."""
    join().register(Guarded())
    with pytest.raises(AttributeError, match=name) as raised:
        client.call(NAME, {"method": name})
    assert isinstance(raised.value, NotFound)
    assert raised.value.status == 404
    assert client.rpc(NAME).shown() == "shown"


def test_a_proxys_timeout_and_close_are_its_clients(join: Join, client: Client) -> None:
    """``timeout`` reads and sets the client's, ``close`` closes it, and private names are nobody's."""
    join(both)
    images = client.rpc(NAME)
    images.timeout = 5_000
    assert images.timeout == client.timeout == 5_000
    with pytest.raises(AttributeError, match="_hidden"):
        _ = images._hidden
    assert images.both() == [[], {}]
    assert images.close() is None
    with pytest.raises(Closed):
        images.both()


@pytest.mark.parametrize("name", ["timeout", "close"])
def test_a_function_cannot_have_a_reserved_name(name: str) -> None:
    """The worker's author is told at once, as for a name that is taken."""
    worker = Service("memory://reserved", NAME)
    with pytest.raises(UsageError, match=f"'{name}' is reserved"):
        worker.register_function(both, name)
    worker.register_function(both)
    with pytest.raises(RouteCollision):
        worker.register_function(resize_image, "both")


def test_a_worker_without_a_name_is_the_echo_service(mesh: Mesh, client: Client) -> None:
    """As it was."""
    worker = Service(mesh.endpoint)
    worker.register_function(both)
    mesh.join(worker)
    assert client.rpc("echo").both("hi") == [["hi"], {}]


# --- exceptions -------------------------------------------------------------------------------------


class Known(Exception):
    """One that both sides have."""


class Unknown(Exception):
    """One that the caller does not have."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


class Explosive(Exception):
    """Would run a function of the sender's choice in whoever unpickles it."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("it was pickled",)


def test_arguments_that_do_not_fit_are_the_documented_TypeError(join: Join, client: Client) -> None:
    """The caller sees which arguments are missing, and the worker's traceback below."""
    join(resize_image)
    with pytest.raises(TypeError, match=r"resize_image\(\) missing 2 required") as raised:
        client.rpc(NAME).resize_image()
    assert ORIGINAL in str(raised.value)
    assert client.rpc(NAME).resize_image("a", "b") == "a at b"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (TypeError("which"), TypeError, "which"),
        (KeyError("key"), KeyError, "key"),
        (FileNotFoundError(2, "none", "a.jpg"), FileNotFoundError, "none: 'a.jpg'"),
        (Known("ours"), Known, "ours"),
        (Unknown("theirs"), RemoteError, "theirs"),
        (Unprintable(), RemoteError, "RuntimeError"),
        (Explosive("boom"), RemoteError, "boom"),
        (ValueError("half: \ud800"), ValueError, "half: ?"),
        (ValueError(), ValueError, ""),
        (SystemExit(3), RemoteError, "3"),
    ],
    ids=repr,
)
def test_an_exception_is_raised_as_its_own_type_with_message_and_traceback(
    join: Join, client: Client, error: BaseException, kind: type[Exception], message: str
) -> None:
    """Built in or registered: its own type; else RemoteError, which says the name. Nothing is unpickled, and
    the worker goes on whatever it was."""

    def broken() -> None:
        raise error

    register_error(Known)
    join(broken, both)
    for call in (client.rpc(NAME).broken, lambda: client.call(NAME, {"method": "broken"})):
        with pytest.raises(kind) as raised:
            call()
        found: Any = raised.value
        assert isinstance(found, RemoteError)
        assert found.type == type(error).__name__
        assert message in found.message
        assert str(found).startswith(found.message)
        assert ORIGINAL in str(found)
        assert found.traceback_messsage.startswith("Traceback (most recent call last):")
        assert "in broken" in found.traceback_messsage
    assert client.rpc(NAME).both(1) == [[1], {}]


def huge_message() -> None:
    raise ValueError("x" * 20_000_000)


def long_chain() -> None:
    try:
        raise ValueError("x" * 20_000)
    except ValueError as first:
        error: Exception = first
    for n in range(1000):
        try:
            raise LookupError(f"{n} " + "x" * 20_000) from error
        except LookupError as next_one:
            error = next_one
    raise error


@pytest.mark.slow
@pytest.mark.parametrize("broken", [huge_message, long_chain])
def test_of_a_traceback_of_20_MB_its_caller_gets_a_bounded_part(
    join: Join, client: Client, broken: Callable[[], None]
) -> None:
    """An error of its own type as any other, of a size one can print; the next good call is answered."""
    join(broken, both)
    with pytest.raises((ValueError, LookupError)) as raised:
        client.call(NAME, {"method": broken.__name__})
    assert 0 < len(str(raised.value)) < 100_000
    assert client.rpc(NAME).both(1) == [[1], {}]


# --- the manual loop --------------------------------------------------------------------------------


def test_the_manual_loop_is_given_the_text_of_the_call(loop: Callable[..., Service], client: Client) -> None:
    """The loop reads what the caller wrote, as JSON text; the caller gets what the loop replies."""
    loop(json.loads)
    for call in (
        {"method": "resize_image", "uri": "test.jpeg", "size": "150x180"},
        {"method": "resize_image", "args": ["ü", None], "kwargs": {"x": [1]}},
        {"method": "resize_image", "args": [], "kwargs": {}},
    ):
        assert client.call(NAME, call) == call
        assert client.call(NAME, json.dumps(call)) == call
    called = {"method": "resize", "args": [1], "kwargs": {"x": 2}}
    assert client.rpc(NAME).resize(1, x=2) == called
    # Without arguments nobody can tell the two forms: it reads as both.
    assert client.call(NAME, {"method": "resize"}) == {"method": "resize", "args": [], "kwargs": {}}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("not JSON {", "not JSON {"),
        ('{"method": 7}', '{"method": 7}'),
        (b"\xff\x00 bytes", "\ufffd\x00 bytes"),
        ([b"two ", b"frames"], "two frames"),
        ([], "[]"),
        ({"no": "method"}, '{"no": "method"}'),
        (7, "7"),
    ],
    ids=repr,
)
def test_a_request_that_is_no_call_is_given_to_the_manual_loop_as_the_text_it_is(
    loop: Callable[..., Service], client: Client, mesh: Mesh, body: Any, text: str
) -> None:
    """Whoever sends something else gets the loop's reply to it, and the next call is served."""
    heard: list[str] = []
    loop(lambda request: heard.append(request) or "hello world")
    assert mesh.client().request(NAME, "/", body=body).body == "hello world"
    assert heard == [text]
    assert client.call(NAME, {"method": "next"}) == "hello world"


@pytest.mark.parametrize(
    "envelope", [b"", b"nonsense", b"[]", b'{"path": 7}', b'{"path": "/", "kwargs": []}']
)
def test_a_request_that_cannot_be_read_never_reaches_the_manual_loop(
    loop: Callable[..., Service], client: Client, mesh: Mesh, envelope: bytes
) -> None:
    """Its sender is told 400; the loop sees the next good call only."""
    heard: list[str] = []
    loop(lambda request: heard.append(request) or "hello world")
    assert send_raw(mesh.client(), NAME, envelope).status_code == 400
    assert client.call(NAME, {"method": "next"}) == "hello world"
    assert [json.loads(text)["method"] for text in heard] == ["next"]


def test_an_empty_request_is_nothing_to_do_and_its_sender_is_answered_with_nothing(
    loop: Callable[..., Service], client: Client, mesh: Mesh
) -> None:
    """The documented loop passes over what is falsy: 200 without a body, and the loop goes on."""
    loop(lambda request: "hello world")
    response = mesh.client().request(NAME, "/", body="")
    assert (response.status_code, response.body) == (200, None)
    assert client.call(NAME, {"method": "next"}) == "hello world"


def test_a_reply_that_JSON_cannot_hold_is_an_error_for_its_caller_and_the_loop_goes_on(
    loop: Callable[..., Service], client: Client
) -> None:
    """The caller is told; the next call is served."""
    replies = [object(), "hello world"]
    loop(lambda request: replies.pop(0))
    with pytest.raises(RemoteError, match="JSON"):
        client.call(NAME, {"method": "first"})
    assert client.call(NAME, {"method": "second"}) == "hello world"


def test_a_reply_can_be_sent_before_the_next_recv(mesh: Mesh, client: Client) -> None:
    """``send`` answers the caller while the loop does something else; there is one reply to a request."""
    with Service(mesh.endpoint, NAME, grace=0.05) as worker:
        worker.timeout = 10
        assert worker.recv() is None
        with pytest.raises(UsageError, match="no request"):
            worker.send("nobody asked")
        calls = [gevent.spawn(client.call, NAME, {"method": "m", "n": n}) for n in range(2)]
        worker.timeout = 5_000
        for n in range(2):
            request = worker.recv("too late: that one was answered")
            assert request is not None
            assert json.loads(request)["n"] == n
            worker.send(f"reply {n}")
            assert calls[n].get(timeout=5) == f"reply {n}"
            with pytest.raises(UsageError, match="no request"):
                worker.send("again")
        worker.timeout = 10
        assert worker.recv() is None


def test_a_loop_that_ends_answers_what_it_has_taken(mesh: Mesh, client: Client) -> None:
    """Its caller is told that the worker has gone (502), at once and not after the timeout."""
    worker = Service(mesh.endpoint, NAME, grace=0.05)
    worker.timeout = 10
    worker.recv()
    call = gevent.spawn(client.call, NAME, {"method": "m"})
    worker.timeout = 5_000
    assert worker.recv()
    worker.close()
    with pytest.raises(InstanceLost):
        call.get(timeout=5)


# --- timeout, retries, persistent -------------------------------------------------------------------


def test_a_timeout_is_in_milliseconds_and_raises(join: Join, client: Client) -> None:
    """A call that is not answered in time is a TimeoutError, where butler returned None."""
    assert (Client.timeout, Client.retries, Client.persistent) == (2500, 1, True)
    join().register_function(lambda: gevent.sleep(60), "sleepy")
    client.timeout = 50
    for call in (client.rpc(NAME).sleepy, lambda: client.call(NAME, {"method": "sleepy"})):
        with gevent.Timeout(5), pytest.raises(TimeoutError) as raised:
            call()
        assert isinstance(raised.value, DeadlineExceeded)


def test_settings_of_the_class_hold_for_every_client_that_has_none_of_its_own(
    join: Join, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeout set on the class, after the client was made, ends its calls, but not those of a client with a
    longer one of its own."""
    join(credit=5).register_function(lambda: gevent.sleep(60), "sleepy")
    with Client(mesh.endpoint) as client, Client(mesh.endpoint) as patient:
        patient.timeout = 10_000
        monkeypatch.setattr(Client, "timeout", 50)
        call = gevent.spawn(patient.rpc(NAME).sleepy)
        for _ in range(2):
            with gevent.Timeout(5), pytest.raises(TimeoutError):
                client.rpc(NAME).sleepy()
        assert not call.ready()
        call.kill()


@pytest.mark.parametrize("persistent", [True, False])
def test_without_persistent_each_call_has_a_connection_of_its_own(
    join: Join, mesh: Mesh, client: Client, persistent: bool
) -> None:
    """Both are answered, again and again; afterwards the router has the connection, or none."""
    join(both)
    client.persistent = persistent
    for n in range(3):
        assert client.rpc(NAME).both(n) == [[n], {}]
    wait_for(lambda: mesh.router.status()["clients"] == int(persistent))


@pytest.mark.parametrize(("retries", "is_answered"), [(0, False), (1, False), (2, False), (3, True)])
@pytest.mark.slow
def test_as_many_attempts_are_made_as_retries_says(
    join: Join, client: Client, retries: int, is_answered: bool
) -> None:
    """A worker that refuses twice: the third attempt is answered, and with fewer its refusal is raised."""
    asked: list[int] = []

    def busy() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise Unavailable("later", status=503)
        return "at last"

    join(busy)
    client.retries = retries
    if is_answered:
        assert client.rpc(NAME).busy() == "at last"
    else:
        with pytest.raises(Unavailable, match="later"):
            client.rpc(NAME).busy()
    assert len(asked) == max(1, retries)


@pytest.mark.parametrize("kind", [ValueError, Known])
def test_a_call_that_was_answered_is_not_made_again(
    join: Join, client: Client, kind: type[Exception]
) -> None:
    """Whatever ``retries`` says, a function that raises runs once."""
    ran: list[int] = []

    def broken() -> None:
        ran.append(1)
        raise kind("no")

    join(broken)
    client.retries = 5
    with pytest.raises(RemoteError):
        client.rpc(NAME).broken()
    assert len(ran) == 1


def test_each_attempt_adds_the_timeout_to_what_a_call_may_take(join: Join, client: Client) -> None:
    """Too slow for one timeout is in time for ten of them."""
    join().register_function(lambda: gevent.sleep(0.15) or "awake", "nap")
    client.timeout, client.retries = 100, 10
    assert client.rpc(NAME).nap() == "awake"


WORKER = f"""
    import sys
    import gevent
    from butler_mesh.compat import butler

    worker = butler.Service(sys.argv[1], {NAME!r}, grace=0.1)

    @worker.function
    def pause():
        print("pausing", flush=True)
        gevent.sleep(60)

    worker.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("retries", [1, 2])
def test_a_call_whose_worker_is_killed_is_made_again_only_with_retries(
    mesh: Mesh, join: Join, client: Client, retries: int
) -> None:
    """One attempt: the caller is told at once that the worker is lost. Two: the other worker answers."""
    with Program.of(WORKER, mesh.endpoint) as lost:
        wait_for(lambda: client.send(f"mmi.{NAME}")[1] == "200", 20.0)
        client.timeout, client.retries = 10_000, retries
        call = gevent.spawn(client.rpc(NAME).pause)
        lost.says("pausing")
        join().register_function(lambda: "answered", "pause")
        lost.send(signal.SIGKILL)
        if retries > 1:
            assert call.get(timeout=5) == "answered"
        else:
            with pytest.raises(InstanceLost):
                call.get(timeout=5)


def test_without_a_router_a_call_ends_with_its_timeout() -> None:
    """Nobody is there: a TimeoutError after the milliseconds allowed, from ``send`` as from ``call``."""
    with Client("tcp://127.0.0.1:1") as client:
        client.timeout = 50
        with gevent.Timeout(5), pytest.raises(TimeoutError):
            client.call(NAME, {"method": "m"})
        with gevent.Timeout(5), pytest.raises(TimeoutError):
            client.send(f"mmi.{NAME}")


# --- many at once -----------------------------------------------------------------------------------


class Gate:
    """A function that waits to be let through, and counts who is within."""

    def __init__(self) -> None:
        self.within = self.most = 0
        self.opened = Event()

    def enter(self, n: int = 0) -> int:
        self.within += 1
        self.most = max(self.most, self.within)
        self.opened.wait()
        self.within -= 1
        return n


def test_calls_of_many_greenlets_run_side_by_side_on_one_client(join: Join, client: Client) -> None:
    """Twenty greenlets share a client: all of their calls are running before the first is answered."""
    gate = Gate()
    join(gate.enter, credit=20)
    calls = [gevent.spawn(client.rpc(NAME).enter, n) for n in range(20)]
    wait_for(lambda: gate.within == 20)
    gate.opened.set()
    assert [call.get(timeout=5) for call in calls] == list(range(20))


def test_more_calls_than_workers_wait_for_their_turn(join: Join, client: Client, mesh: Mesh) -> None:
    """Each worker has one call at a time; what is over waits in the router, and every caller is answered."""
    gates = [Gate(), Gate()]
    for gate in gates:
        join(gate.enter)
    calls = [gevent.spawn(client.rpc(NAME).enter, n) for n in range(30)]
    wait_for(lambda: mesh.router.status()["services"][NAME]["queued"] == 28)
    wait_for(lambda: [gate.within for gate in gates] == [1, 1])
    for gate in gates:
        gate.opened.set()
    assert [call.get(timeout=5) for call in calls] == list(range(30))
    assert [gate.most for gate in gates] == [1, 1]


def test_workers_and_their_router_run_in_greenlets(client: Client) -> None:
    """One process may hold all of it; ``stop`` ends each ``run``."""
    router = Router()
    front, back = router.frontend.bind(ANY_PORT), router.backend.bind(ANY_PORT)
    workers = [Service(back, name, grace=0.05) for name in ("one", "two")]
    running = [gevent.spawn(router.run)]
    for worker in workers:
        worker.register_function(lambda worker=worker: worker.name, "who")
        running.append(gevent.spawn(worker.run))
    with Client(front) as both_of_them:
        both_of_them.timeout = 10_000
        calls = [gevent.spawn(both_of_them.rpc(name).who) for name in ("one", "two", "one")]
        assert [call.get(timeout=5) for call in calls] == ["one", "two", "one"]
    for one in (*workers, router):
        one.stop()
    gevent.joinall(running, timeout=5, raise_error=True)
    assert all(greenlet.ready() for greenlet in running)


# --- the router -------------------------------------------------------------------------------------


def test_mmi_says_200_while_somebody_serves_the_name_and_400_otherwise(join: Join, client: Client) -> None:
    """Never for a name that was only asked for, and no longer when the worker has left."""
    question = f"mmi.{NAME}"
    assert client.send(question) == [NAME, "400"]
    with pytest.raises(NotFound):
        client.call(NAME, {"method": "m"})
    assert client.send(question) == [NAME, "400"]
    worker = join(both)
    assert client.send(question) == [NAME, "200"]
    # The prefix makes a question of any call.
    assert client.call(question, {"method": "both"}) == client.rpc(question).both(1) == [NAME, "200"]
    worker.close()
    wait_for(lambda: client.send(question) == [NAME, "400"])


@pytest.mark.parametrize("name", [NAME, "", "mmi_x"])
def test_only_questions_to_the_router_can_be_sent(client: Client, name: str) -> None:
    """A name without the prefix is a UsageError, at once."""
    with pytest.raises(UsageError, match=r"mmi\."):
        client.send(name)


def test_a_worker_cannot_have_a_name_of_the_routers(mesh: Mesh, client: Client) -> None:
    """It is told so when it starts, and the name is nobody's."""
    worker = Service(mesh.endpoint, "mmi.images", grace=0.05)
    with pytest.raises(UsageError, match="the router's own"):
        worker.start()
    assert client.send("mmi.mmi.images") == ["mmi.images", "400"]


@pytest.mark.slow
def test_an_idle_worker_stays_registered_wherever_the_back_end_is() -> None:
    """For longer than butler's heartbeats took to fail: every question is answered 200, by the router's
    account it is the same registration all the time, and a call at the end is answered at once."""
    with Router() as router, Client(router.frontend.bind(ANY_PORT)) as client:
        with Service(router.backend.bind(ANY_PORT), NAME, grace=0.05) as worker:
            worker.register_function(both)
            assert worker.wait_until_registered(5)

            def registration() -> Any:
                return [one["wid"] for one in router.status()["services"][NAME]["instances"]]

            first, until = registration(), monotonic() + 4.5
            while monotonic() < until:
                assert client.send(f"mmi.{NAME}") == [NAME, "200"]
                assert registration() == first
                gevent.sleep(0.02)
            assert client.rpc(NAME).both() == [[], {}]


def test_what_would_have_ended_butlers_router_is_counted_and_calls_go_on(
    mesh: Mesh, join: Join, client: Client
) -> None:
    """Messages of butler's own kind with frames missing, an expiry that is no number, a READY without a name:
    good calls before and after are answered."""
    join(both)
    context = zmq.Context()
    with context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(mesh.endpoint)
        version = b"0.3.0:6f1a1b4e-4d3c-4a4e-9d5e-2f9f3c1f7c11"
        for frames in (
            [b"", version, NAME.encode(), b"soon", b"{}"],
            [b"", version],
            [b"", version, NAME.encode(), b"", b"", b"", b""],
            [b""],
            [b"\x01"],
            [b"\x02"],
            [b"\x04"],
            [b"\x04", b"nobody", b"", version, b"forged"],
        ):
            stranger.send_multipart(frames)
            assert client.rpc(NAME).both(1) == [[1], {}]

        def dropped() -> int:
            counters = mesh.router.status()["counters"]
            return sum(n for name, n in counters.items() if name.startswith(("dropped", "refused")))

        wait_for(lambda: dropped() >= 8)
    context.term()
    assert client.rpc(NAME).both(2) == [[2], {}]


def test_the_two_sides_of_a_router_may_be_of_different_transports(tmp_path: Path) -> None:
    """Clients come by TCP, workers through a file: calls are answered, and a client at the back is not."""
    with Router() as router:
        front, back = router.frontend.bind(ANY_PORT), router.backend.bind(f"ipc://{tmp_path}/back.sock")
        with Client(front) as client, Client(back) as astray, Service(back, NAME, grace=0.05) as worker:
            worker.register_function(both)
            assert worker.wait_until_registered(5)
            assert client.rpc(NAME).both("over") == [["over"], {}]
            astray.timeout = 50
            with gevent.Timeout(5), pytest.raises(TimeoutError):
                astray.rpc(NAME).both()


def test_the_heartbeat_timeout_is_set_before_the_router_is_bound() -> None:
    """15 s unless set, the core's own; too late or too short is a UsageError."""
    router = Router(queue_limit=5)
    assert router.heartbeat_timeout == DEAD_AFTER_S
    front = router.frontend
    router.heartbeat_timeout = 4
    assert router.heartbeat_timeout == 4
    front.bind(ANY_PORT)
    with pytest.raises(UsageError, match="before"):
        router.heartbeat_timeout = 5
    router.stop()
    with pytest.raises(UsageError, match="heartbeat"):
        router.heartbeat_timeout = 0.5
    assert router.heartbeat_timeout == 4


@pytest.mark.slow
def test_a_worker_that_is_silent_for_the_heartbeat_timeout_is_given_up() -> None:
    """SIGSTOP with a call in its hands: the caller is told after the router's two seconds."""
    router = Router()
    router.heartbeat_timeout = 2
    with router, Client(router.frontend.bind(ANY_PORT)) as client:
        with Program.of(WORKER, router.backend.bind(ANY_PORT)) as worker:
            wait_for(lambda: client.send(f"mmi.{NAME}")[1] == "200", 20.0)
            client.timeout = 10_000
            call = gevent.spawn(client.rpc(NAME).pause)
            worker.says("pausing")
            worker.send(signal.SIGSTOP)
            with pytest.raises(InstanceLost):
                call.get(timeout=8)
            assert client.send(f"mmi.{NAME}") == [NAME, "400"]


# --- the sink ---------------------------------------------------------------------------------------


def test_what_a_worker_sends_to_its_sink_is_read_there(join: Join, client: Client) -> None:
    """Texts as butler's, or any JSON value."""
    with Sink(ANY_PORT) as sink:
        worker = join(sink=sink.endpoint)
        worker.register_function(worker.sink.send, "tell")
        for event in ("task received", {"done": 1}):
            assert client.rpc(NAME).tell(event) is True
            assert sink.get_message(5.0) == event


# --- the module -------------------------------------------------------------------------------------


def test_the_module_has_butlers_names() -> None:
    """What ``import butler`` gave, this gives."""
    assert {name: getattr(butler, name).__name__ for name in butler.__all__} == {
        name: name for name in ("Client", "Router", "Service", "Sink")
    }


def test_it_works_in_a_thread_that_is_not_patched(mesh: Mesh, join: Join) -> None:
    """A client of a plain thread, with a hub of its own, is served as any other."""
    join(both)
    answers: list[Any] = []

    def ask() -> None:
        with Client(mesh.endpoint) as client:
            answers.append(client.rpc(NAME).both("from a thread"))

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: not thread.is_alive())
    thread.join()
    assert answers == [[["from a thread"], {}]]


def test_the_licence_is_MIT_and_the_package_says_so() -> None:
    """As butler's was."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License\n")
    assert "Permission is hereby granted, free of charge" in text
    assert 'license="MIT"' in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_a_worker_may_refuse_a_call_by_a_status(join: Join, client: Client) -> None:
    """A failure that the function raised as such is the caller's as it is, not an error of the worker's."""

    def refuse() -> None:
        raise BadRequest("too large", status=413)

    join(refuse)
    with pytest.raises(BadRequest, match="too large") as raised:
        client.rpc(NAME).refuse()
    assert raised.value.status == 413
