"""The demo, as its users run it: one command, real processes, a real browser."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median
from time import monotonic
from urllib.parse import urlsplit

import gevent
import pytest
from gevent import socket

from butler_mesh.client import Client
from tests.brokers import needs_rabbitmq
from tests.meshes import Mesh
from tests.programs import ROOT, Program, run
from tests.waiting import wait_for
from tests.web.browser import Browser, driver
from tests.web.fronts import Reply, ask
from tests.web.mongrel2s import needs_mongrel2

pytestmark = pytest.mark.slow

RUN = str(ROOT / "demos" / "run.py")
SERVICE = str(ROOT / "demos" / "demo_service.py")
SYNC_ECHO = "I made a round trip, it took a while but I bring results."
ASYNC_ECHO = "I made a round trip, it took so long I will respond to no one."
READY_WITHIN_S = 60.0


class Demo:
    """A demo that is ready."""

    def __init__(self, program: Program) -> None:
        self.program = program
        program.says("The demo is at ", READY_WITHIN_S)
        found = re.search(rb"The demo is at (http://127\.0\.0\.1:\d+/)", program.stdout)
        assert found
        self.url = found[1].decode()
        self.port = urlsplit(self.url).port or 0

    def get(self, path: str, **headers: str) -> Reply:
        """Get a page; other greenlets go on."""
        client = HTTPConnection("127.0.0.1", self.port)
        client.sock = socket.create_connection(("127.0.0.1", self.port), timeout=30.0)
        try:
            return ask(client, "GET", path, **headers)
        finally:
            client.close()

    def calls(self) -> list[dict[str, object]]:
        """Return the journal, the latest call first."""
        calls: list[dict[str, object]] = self.get("/calls").json
        return calls

    def children(self) -> dict[int, str]:
        """Return the processes that it has started: id and command line."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
                command = path.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # gone meanwhile
                continue
            if parent == self.program.pid:
                found[int(path.name)] = command
        return found


def starting(cwd: Path = ROOT, front: str = "wsgi", engine: str = "mesh", **env: str) -> Program:
    if front == "mongrel2":
        needs_mongrel2()
    if engine == "rabbitmq":
        needs_rabbitmq()
    return Program(RUN, cwd=cwd, env={"DEMO_PORT": "0", "FRONT": front, "ENGINE": engine, **env})


@pytest.fixture(scope="module", params=["wsgi", "mongrel2", "wsgi over rabbitmq"])
def demo(request: pytest.FixtureRequest) -> Iterator[Demo]:
    front, _, engine = request.param.partition(" over ")
    with starting(front=front, engine=engine or "mesh") as program:
        yield Demo(program)
        program.send(signal.SIGINT)
        assert program.ends() == 0


@pytest.fixture
def chromedriver(tmp_path: Path) -> Iterator[int]:
    with driver(tmp_path) as port:
        yield port


def test_the_page_has_both_links_and_needs_nothing_from_elsewhere(demo: Demo) -> None:
    reply = demo.get("/")
    assert reply.status == 200
    assert 'href="/service/sync"' in reply.text
    assert 'href="/service/async"' in reply.text
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", reply.text)


def test_the_sync_page_waits_for_the_echo_and_other_pages_do_not(demo: Demo) -> None:
    started = monotonic()
    waiting = gevent.spawn(demo.get, "/service/sync")
    times: list[float] = []
    while not waiting.ready():
        asked = monotonic()
        assert demo.get("/").status == 200
        times.append(monotonic() - asked)
        gevent.sleep(0.02)
    reply = waiting.get()
    assert 5.0 <= monotonic() - started < 8.0
    assert reply.status == 200
    assert SYNC_ECHO in reply.text
    assert re.search(r'class="time">[5-7]\.\d\d s<', reply.text)
    assert len(times) > 20
    assert median(times) < 0.25


def test_the_async_page_is_there_at_once_and_the_reply_comes_later(demo: Demo) -> None:
    started = monotonic()
    reply = demo.get("/service/async")
    assert monotonic() - started < 1.0
    assert reply.status == 200
    assert ASYNC_ECHO not in reply.text
    call = demo.calls()[0]
    assert (call["kind"], call["is_waiting"]) == ("async", True)

    def answered() -> dict[str, object] | None:
        return next((c for c in demo.calls() if c["number"] == call["number"] and not c["is_waiting"]), None)

    found = wait_for(answered, 10.0)
    assert (found["code"], found["text"]) == (200, ASYNC_ECHO)
    assert ASYNC_ECHO in demo.get("/").text


def test_a_script_gets_the_same_as_json(demo: Demo) -> None:
    reply = demo.get("/service/async", Accept="application/json")
    assert reply.headers["Content-Type"] == "application/json"
    assert json.loads(reply.body)["kind"] == "async"


@pytest.mark.parametrize("path", ["/service/slow", "/nowhere", "/service/sync/more"])
def test_other_paths_are_not_found_on_a_page_of_the_same_style(demo: Demo, path: str) -> None:
    reply = demo.get(path)
    assert reply.status == 404
    assert "404 Not Found" in reply.text
    assert "Back to both calls" in reply.text


def test_a_browser_clicks_both_links_and_sees_both_echoes(
    demo: Demo, chromedriver: int, tmp_path: Path
) -> None:
    browser = Browser(chromedriver, tmp_path / "profile")
    try:
        browser.open(demo.url)
        browser.click("#async")
        browser.wait(lambda: "in flight" in browser.text("#async-state"), 5.0, "an async call in flight")
        browser.click("#sync")
        browser.wait(lambda: "meanwhile" in browser.text("#sync-result"), 5.0, "a sync call that waits")
        assert re.match(r"\d\.\d s", browser.text("#sync-result .time"))
        browser.wait(lambda: browser.text("#echo") != "", 15.0, "the echo")
        assert browser.text("#echo") == SYNC_ECHO
        assert re.fullmatch(r"[5-9]\.\d\d s", browser.text("#sync-result .time"))
        browser.wait(lambda: "the reply came" in browser.text("#async-state"), 5.0, "the async reply")
        browser.wait(lambda: ASYNC_ECHO in browser.text("#journal"), 5.0, "the async echo in the list")
        assert browser.url == demo.url
        picture = tmp_path / "demo.png"
        browser.screenshot(picture)
        assert picture.stat().st_size > 20_000  # an empty page is a tenth of it
    finally:
        browser.close()


def test_a_browser_without_scripts_gets_both_pages_by_their_links(
    demo: Demo, chromedriver: int, tmp_path: Path
) -> None:
    browser = Browser(chromedriver, tmp_path / "profile", has_scripts=False)
    try:
        browser.open(demo.url)
        browser.click("#async")
        assert browser.url == demo.url + "service/async"
        assert "working on" in browser.text("#journal")
        # Without being asked again it goes back to the list when the reply is there.
        browser.wait(lambda: browser.url == demo.url, 15.0, "the way back")
        assert ASYNC_ECHO in browser.text("#journal tr:first-child")
        browser.click("#sync")
        assert browser.url == demo.url + "service/sync"
        assert browser.text("#echo") == SYNC_ECHO
    finally:
        browser.close()


@pytest.mark.parametrize("demo", ["wsgi"], indirect=True)  # Mongrel2 logs requests itself
def test_logs_have_the_name_of_their_process(demo: Demo) -> None:
    demo.get("/nowhere")
    for line in ("router │ ", "service │ ", "web │ "):
        demo.program.says(line)
    demo.program.says("request 'GET /nowhere' 404")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_also_a_call_in_flight(number: signal.Signals, tmp_path: Path) -> None:
    with starting(tmp_path) as program:
        demo = Demo(program)
        children = demo.children()
        assert len(children) == 3, children
        waiting = gevent.spawn(demo.get, "/service/sync")
        wait_for(lambda: bool(demo.calls()), 10.0)
        program.send(number)
        assert waiting.get(timeout=15.0).status == 200  # it was begun, so it is finished
        assert program.ends() == 0
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
        with pytest.raises(OSError, match="refused"):
            demo.get("/")
        assert "Traceback" not in program.stdout.decode() + program.stderr
    assert not list(tmp_path.iterdir())


def test_a_second_signal_does_not_wait() -> None:
    with starting() as program:
        demo = Demo(program)
        children = demo.children()
        waiting = gevent.spawn(cut_off, demo)
        wait_for(lambda: bool(demo.calls()), 10.0)
        started = monotonic()
        program.send(signal.SIGINT)
        program.says("stopping")
        program.send(signal.SIGINT)
        assert program.ends() == 0
        assert monotonic() - started < 4.0
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
        # Cut off, or told 502 by a web process that outlived the service by a moment: not kept waiting.
        waiting.join(timeout=5.0)
        assert waiting.ready()


def cut_off(demo: Demo) -> bool:
    """Tell whether the sync page was not answered at all."""
    try:
        demo.get("/service/sync")
    except (OSError, HTTPException):
        return True
    return False


def test_a_process_that_dies_is_named_and_the_others_go_too() -> None:
    with starting() as program:
        demo = Demo(program)
        children = demo.children()
        (service,) = [pid for pid, command in children.items() if "demo_service.py" in command]
        os.kill(service, signal.SIGKILL)
        assert program.ends() == 1
        assert "the service process ended with status -9; its last lines:" in program.stderr
        assert "registered as slow-" in program.stderr
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def home(demo: Demo) -> tuple[int, Path]:
    """Return the id of the demo's Mongrel2 and the directory where it works."""
    (server,) = [pid for pid, command in demo.children().items() if command.startswith("mongrel2 ")]
    return server, Path(f"/proc/{server}/cwd").readlink()


def test_behind_mongrel2_everything_of_its_is_in_a_private_directory(tmp_path: Path) -> None:
    with starting(tmp_path, "mongrel2", TMPDIR=str(tmp_path)) as program:
        demo = Demo(program)
        _, directory = home(demo)
        assert list(tmp_path.iterdir()) == [directory]
        modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir() if path.is_dir()}
        assert modes == {"run": 0o700, "log": 0o700, "tmp": 0o700}
        assert directory.stat().st_mode & 0o777 == 0o700
        body = b"x" * 1_100_000  # over limits.content_length: it comes to the page as a file
        client = HTTPConnection("127.0.0.1", demo.port)
        client.sock = socket.create_connection(("127.0.0.1", demo.port), timeout=30.0)
        assert ask(client, "POST", "/", body).status == 405
        client.close()
        assert list((directory / "tmp").iterdir()) == []
        program.send(signal.SIGTERM)
        assert program.ends() == 0
    assert list(tmp_path.iterdir()) == []


def test_behind_mongrel2_a_signal_stops_everything_also_a_call_in_flight(tmp_path: Path) -> None:
    with starting(tmp_path, "mongrel2", TMPDIR=str(tmp_path)) as program:
        demo = Demo(program)
        children = demo.children()
        assert len(children) == 4, children
        waiting = gevent.spawn(demo.get, "/service/sync")
        wait_for(lambda: bool(demo.calls()), 10.0)
        program.send(signal.SIGINT)
        assert waiting.get(timeout=15.0).status == 200  # Mongrel2 is the page's way out, and stays until then
        assert program.ends() == 0
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
        with pytest.raises(OSError, match="refused"):
            demo.get("/")
        assert "Traceback" not in program.stdout.decode() + program.stderr
    assert not list(tmp_path.iterdir())


def test_behind_mongrel2_a_second_signal_does_not_wait_and_leaves_nothing(tmp_path: Path) -> None:
    with starting(tmp_path, "mongrel2", TMPDIR=str(tmp_path)) as program:
        demo = Demo(program)
        children = demo.children()
        waiting = gevent.spawn(cut_off, demo)
        wait_for(lambda: bool(demo.calls()), 10.0)
        started = monotonic()
        program.send(signal.SIGINT)
        program.says("stopping")
        program.send(signal.SIGINT)
        assert program.ends() == 0
        assert monotonic() - started < 4.0
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
        waiting.join(timeout=5.0)
        assert waiting.ready()
    assert not list(tmp_path.iterdir())


def test_a_mongrel2_that_dies_is_named_and_the_others_go_too(tmp_path: Path) -> None:
    with starting(tmp_path, "mongrel2", TMPDIR=str(tmp_path)) as program:
        demo = Demo(program)
        children = demo.children()
        server, _ = home(demo)
        os.kill(server, signal.SIGKILL)
        assert program.ends() == 1
        assert "the mongrel2 process ended with status -9; its last lines:" in program.stderr
        assert "Mongrel2/1." in program.stderr  # its log's lines, not only what it said at first
        assert "Traceback" not in program.stderr
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert not list(tmp_path.iterdir())


def test_a_configuration_that_mongrel2_refuses_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    tools, places = tmp_path / "bin", tmp_path / "tmp"
    for directory in (tools, places):
        directory.mkdir()
    for name, code in (("mongrel2", 0), ("m2sh", 1)):
        (tools / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tools / name).chmod(0o755)
    status, _, err = run(
        RUN, env={"DEMO_PORT": "0", "FRONT": "mongrel2", "PATH": str(tools), "TMPDIR": str(places)}
    )
    assert status == 1
    [line] = err.splitlines()
    assert line.startswith("demo: cannot set up Mongrel2: ")
    assert not list(places.iterdir())


def test_without_mongrel2_one_line_tells_how_to_get_it(tmp_path: Path) -> None:
    status, out, err = run(RUN, env={"DEMO_PORT": "0", "FRONT": "mongrel2", "PATH": str(tmp_path)})
    assert (status, out) == (2, b"")
    [line] = err.splitlines()
    assert line.startswith("demo: FRONT=mongrel2 needs mongrel2 and m2sh: ")
    for advice in ("apt install mongrel2-core", "brew install mongrel2", "butler-mesh doctor"):
        assert advice in line


@pytest.mark.parametrize("front", ["wsgi", "mongrel2"])
def test_over_rabbitmq_there_is_no_router_and_a_signal_stops_everything(front: str, tmp_path: Path) -> None:
    others = {"BUTLER_MESH_AMQP_PASSWORD_FILE": "/nowhere/password"}
    with starting(tmp_path, front, "rabbitmq", TMPDIR=str(tmp_path), **others) as program:
        program.says("starting RabbitMQ …")
        demo = Demo(program)
        children = demo.children()
        commands = " ".join(children.values())
        assert ("beam" in commands, " router " in commands) == (True, False), children
        assert len(children) == 3 + (front == "mongrel2"), children
        (node,) = [pid for pid, command in children.items() if "beam" in command]
        (home,) = [p for p in tmp_path.iterdir() if (p / "cluster.json").exists()]
        assert home.stat().st_mode & 0o777 == 0o700
        password = (home / "password").read_text()
        assert SYNC_ECHO in demo.get("/service/sync").text
        waiting = gevent.spawn(demo.get, "/service/sync")
        wait_for(lambda: len(demo.calls()) == 2, 10.0)
        program.send(signal.SIGINT)
        assert waiting.get(timeout=15.0).status == 200  # the broker ends after those who speak through it
        assert program.ends() == 0
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
        printed = program.stdout.decode() + program.stderr
        assert "Traceback" not in printed
        assert password not in printed
        assert not Path(f"/proc/{node}").exists()
    assert not list(tmp_path.iterdir())


def test_a_broker_that_dies_is_named_and_the_others_go_too(tmp_path: Path) -> None:
    with starting(tmp_path, engine="rabbitmq", TMPDIR=str(tmp_path)) as program:
        demo = Demo(program)
        children = demo.children()
        (node,) = [pid for pid, command in children.items() if "beam" in command]
        os.kill(node, signal.SIGKILL)
        assert program.ends() == 1
        assert "the rabbitmq process ended with status -9; its last lines:" in program.stderr
        assert "Traceback" not in program.stderr
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert not list(tmp_path.iterdir())


def test_without_rabbitmq_one_line_tells_how_to_get_it(tmp_path: Path) -> None:
    status, out, err = run(RUN, env={"DEMO_PORT": "0", "ENGINE": "rabbitmq", "PATH": str(tmp_path)})
    assert (status, out) == (2, b"")
    [line] = err.splitlines()
    assert line.startswith("demo: ENGINE=rabbitmq: rabbitmq-server is not installed: ")
    for advice in ("apt install rabbitmq-server", "butler-mesh doctor"):
        assert advice in line


def test_what_the_environment_says_wrongly_is_one_clear_line() -> None:
    source = """
        import sys
        sys.path.insert(0, "demos")
        import run
        def refuse(demo):
            raise run.UsageError("set one of the two")
        run.Demo.start = refuse
        sys.exit(run.main())
    """
    with Program.of(source) as program:
        assert program.ends() == 2
        assert (program.stdout, program.stderr) == (b"", "demo: set one of the two\n")


@pytest.mark.parametrize("engine", ["RabbitMQ", "nats"])
def test_an_engine_that_is_none_is_one_clear_line(engine: str) -> None:
    status, out, err = run(RUN, env={"ENGINE": engine})
    assert (status, out) == (2, b"")
    assert err == f"demo: ENGINE is mesh or rabbitmq, not {engine!r}\n"


@pytest.mark.parametrize("front", ["nginx", "WSGI", "mongrel2 "])
def test_a_front_that_is_none_is_one_clear_line(front: str) -> None:
    status, out, err = run(RUN, env={"FRONT": front})
    assert (status, out) == (2, b"")
    assert err == f"demo: FRONT is wsgi or mongrel2, not {front!r}\n"


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, out, err = run(RUN, env={"DEMO_PORT": port})
    assert (status, out) == (2, b"")
    assert err == f"demo: cannot use port {port} (address already in use); DEMO_PORT=… takes another one\n"


@pytest.mark.parametrize("port", ["http", "-1", "65536", "67 67"])
def test_a_port_that_is_none_is_one_clear_line(port: str) -> None:
    status, out, err = run(RUN, env={"DEMO_PORT": port})
    assert (status, out) == (2, b"")
    assert err == f"demo: DEMO_PORT is a number from 0 to 65535, not {port!r}\n"


@pytest.mark.parametrize("program", ["demo_service.py", "demo_service_client.py"])
def test_the_programs_explain_themselves(program: str) -> None:
    status, out, _ = run(str(ROOT / "demos" / program), "--help")
    assert status == 0
    assert b"usage: " in out


def test_two_services_halve_the_time_of_two_calls(mesh: Mesh) -> None:
    client = mesh.client()
    options = ("--backend", mesh.endpoint, "--credit", "1", "--seconds", "0.7")
    with ExitStack() as stack:
        times = []
        for number in (1, 2):
            stack.enter_context(Program(SERVICE, *options))
            wait_for(lambda: instances(client) == number, READY_WITHIN_S)  # noqa: B023 (waited for here)
            started = monotonic()
            calls = [client.request_lazy("slow", "/service/slow", {"RETURN_DATA": n}) for n in (1, 2)]
            assert [call.get().body["RETURN_DATA"] for call in calls] == [1, 2]
            times.append(monotonic() - started)
    assert times[0] >= 1.4
    assert 0.7 <= times[1] < 1.3


def instances(client: Client) -> int:
    reply = client.request("mmi.service", "/", {"service": "slow"})
    return int(reply.body["instances"]) if reply.is_success else 0
