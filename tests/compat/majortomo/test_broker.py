"""The broker: as a command, and as a class in a program."""

from __future__ import annotations

import re
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import majortomo as original
import majortomo.broker
import pytest
import zmq

from butler_mesh.compat.majortomo import Client, Worker
from butler_mesh.compat.majortomo.broker import Broker
from butler_mesh.compat.majortomo.error import Timeout
from butler_mesh.errors import AddressInUse, UsageError
from tests.compat.majortomo.conftest import taken
from tests.processes.parties import free_port
from tests.programs import Program, run
from tests.waiting import wait_for

COMMAND = "python -m butler_mesh.compat.majortomo.broker: "
SOON_S = 5.0


def broker(*arguments: str, env: dict[str, str] | None = None) -> Program:
    """Start the command."""
    return Program("-m", "butler_mesh.compat.majortomo.broker", *arguments, env=env)


def refusal(*arguments: str) -> str:
    """Run the command, which is to end with 2 and say why in one line; return that."""
    code, out, err = run("-m", "butler_mesh.compat.majortomo.broker", *arguments)
    assert (code, out) == (2, b"")
    (line,) = err.splitlines()
    assert line.startswith(COMMAND)
    return line.removeprefix(COMMAND)


@pytest.fixture
def url() -> str:
    """Where nobody listens yet."""
    return f"tcp://127.0.0.1:{free_port()}"


def answers(url: str, *frames: bytes) -> bool:
    """Tell whether a worker of the face answers a client of the face there."""
    with Client(url) as client, Worker(url, "svc") as worker:
        client.send("svc", *frames)
        caller, got = taken(worker)
        worker.send_reply_final(caller, got)
        return client.recv_all_as_list(10.0) == list(frames)


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_serves_both_sides_on_one_port_and_ends_with_0_at_SIGTERM(
    url: str, context: zmq.Context[Any]
) -> None:
    """Clients and workers connect to the same address, majortomo's own too."""
    with broker("-b", url) as program:
        assert answers(url, b"x", b"")
        with original.Client(url, zmq_context=context) as theirs, Worker(url, "svc") as worker:
            theirs.send("svc", b"y")
            caller, frames = taken(worker)
            worker.send_reply_final(caller, frames)
            assert theirs.recv_all_as_list(SOON_S) == [b"y"]
        program.send(signal.SIGTERM)
        assert program.ends() == 0
        assert program.stdout == b""
        assert "Traceback" not in program.stderr


@pytest.mark.slow
def test_help_lists_the_options_of_majortomos_broker() -> None:
    """The same names, short and long, and the same defaults."""
    code, out, err = run("-m", "butler_mesh.compat.majortomo.broker", "--help")
    assert (code, err) == (0, "")
    text = " ".join(out.decode().split())
    for option in (
        "-b URL, --bind-url URL",
        "-i S, --heartbeat-interval S",
        "-t S, --heartbeat-timeout S",
        "-B S, --busy-worker-timeout S",
        "-c FILE, --config FILE",
        "-V, --verbose",
        "-D, --debug",
    ):
        assert option in text
    for default in ("tcp://127.0.0.1:5555", "2.5", "10.0", "900.0"):
        assert f"(default: {default})" in text


@pytest.mark.slow
def test_times_are_those_that_were_asked_for(url: str, context: zmq.Context[Any]) -> None:
    """An idle worker of majortomo that falls silent is given up after the heartbeat timeout, one at work
    after the timeout for busy ones: whoever waits for it is told."""
    with broker("-b", url, "-i", "0.5", "-t", "2", "-B", "1", "-D") as program:
        program.says("listening on")
        worker = original.Worker(url, "svc", zmq_context=context)
        worker.connect()
        program.says("for svc")
        with Client(url) as client:
            client.send("svc", b"x")
            taken(worker)
            began = monotonic()
            with pytest.raises(Timeout, match="502"):
                client.recv_part(10.0)
            assert 0.5 < monotonic() - began < 3.0
        program.says("silent for too long, 1 in flight")
        idle = original.Worker(url, "idle", zmq_context=context)
        idle.connect()
        program.says("for idle")
        began = monotonic()
        program.says("silent for too long, 0 in flight")
        assert 1.0 < monotonic() - began < 5.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-i", "2.5", "-t", "6"], "--heartbeat-timeout (6) is no multiple of --heartbeat-interval (2.5)"),
        (["-i", "3", "-t", "2"], "--heartbeat-timeout (2) is no multiple of --heartbeat-interval (3)"),
        (["-i", "6", "-t", "12"], "a heartbeat interval is over 0 and up to 5 seconds"),
        (["-i", "0.5", "-t", "1"], "a heartbeat timeout under 2 seconds"),
        (["-i", "0"], "--heartbeat-interval is a number of seconds over 0"),
        (["-i", "nan"], "--heartbeat-interval is a number of seconds over 0"),
        (["-t", "inf"], "--heartbeat-timeout is a number of seconds over 0"),
        (["-B", "-1"], "--busy-worker-timeout is a number of seconds over 0"),
        (["-b", "nonsense"], "tcp://"),
        (["-b", "tcp://127.0.0.1:99999"], "65535"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_2(arguments: list[str], says: str) -> None:
    """The operator reads what is wrong, and nothing has started."""
    assert says in refusal("-b", f"tcp://127.0.0.1:{free_port()}", *arguments)


@pytest.mark.slow
def test_a_multiple_is_one_also_where_floats_are_inexact(url: str) -> None:
    """majortomo refuses 0.1 and 2, which has a remainder."""
    with broker("-b", url, "-i", "0.1", "-t", "2") as program:
        program.says("listening on")


@pytest.mark.slow
def test_an_address_in_use_is_one_line_and_exit_2() -> None:
    """Beside what the log says."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert refusal("-b", url) == f"{url} is in use by another process"


@pytest.mark.slow
@pytest.mark.parametrize("host", ["0.0.0.0", "*"])
def test_a_public_address_is_served_with_a_warning(host: str) -> None:
    """majortomo has one port for all, whoever can reach it; so has this, and says so."""
    port = free_port()
    env = {"BUTLER_MESH_BIND_HOST": "127.0.0.1"} if host == "*" else {}
    with broker("-b", f"tcp://{host}:{port}", env=env) as program:
        program.says("listening on")
        assert ("can be reached from other machines" in program.stderr) is (host == "0.0.0.0")
        assert answers(f"tcp://127.0.0.1:{port}", b"x")


# --- logging --------------------------------------------------------------------------------------

TO_A_FILE = """
logging:
  formatters:
    short: {{format: '%(levelname)s|%(name)s|%(message)s'}}
  handlers:
    file: {{class: logging.FileHandler, filename: {file}, formatter: short}}
  loggers:
    butler_mesh.router: {{handlers: [file], level: {level}}}
"""


def config(directory: Path, text: str) -> str:
    path = directory / "broker.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_a_configuration_file_says_what_is_logged_where(tmp_path: Path, url: str) -> None:
    """Its section ``logging`` comes on top of what is logged to stderr anyway."""
    file = tmp_path / "broker.log"
    path = config(tmp_path, TO_A_FILE.format(file=file, level="INFO"))
    with broker("-b", url, "-c", path) as program:
        program.says(f"listening on {url}")
        assert answers(url, b"x")
        wait_for(lambda: "registered svc-" in file.read_text())
        assert file.read_text().startswith(f"INFO|butler_mesh.router|listening on {url}\n")


@pytest.mark.slow
@pytest.mark.parametrize(("option", "level"), [("-V", "INFO"), ("-D", "DEBUG")])
def test_verbose_and_debug_win_over_the_file(tmp_path: Path, url: str, option: str, level: str) -> None:
    """The file wants warnings only; the option has it say where it listens."""
    path = config(tmp_path, "logging: {handlers: {console: {level: ERROR}}, root: {level: ERROR}}")
    with broker("-b", url, "-c", path, option) as program:
        program.says("INFO    butler_mesh.router: listening on")
    with broker("-b", url, "-c", path) as program:
        assert answers(url, b"x")
        program.send(signal.SIGTERM)
        assert program.ends() == 0
        assert program.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "logging:", "# nothing\n", "{}"])
def test_an_empty_configuration_is_the_default(tmp_path: Path, url: str, text: str) -> None:
    """It is logged to stderr from INFO on."""
    with broker("-b", url, "-c", config(tmp_path, text)) as program:
        program.says("INFO    butler_mesh.router: listening on")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("logging: [unclosed", "is not YAML"),
        ("\x00", "is not YAML"),
        ("- a\n- list\n", "sections are needed"),
        ("logging: 5", "a mapping is needed in the place of 5"),
        ("logging: {root: loud}", "a mapping is needed in the place of 'loud'"),
        ("broker: {bind: 'tcp://*:1'}", "no such section: broker"),
        ("logging: {root: {level: LOUD}}", "Unable to configure root logger"),
        ("logging: {handlers: {x: {class: no.such.Handler}}}", "Unable to configure handler 'x'"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line_and_exit_2(
    tmp_path: Path, text: str, says: str, url: str
) -> None:
    """The operator reads what is wrong with the file; nothing in it is executed."""
    assert says in refusal("-b", url, "-c", config(tmp_path, text))


@pytest.mark.slow
def test_a_configuration_that_is_not_there_is_one_line_and_exit_2(tmp_path: Path, url: str) -> None:
    """With its path."""
    path = str(tmp_path / "missing.yaml")
    assert refusal("-b", url, "-c", path) == f"{path}: No such file or directory"


@pytest.mark.slow
def test_without_PyYAML_the_line_says_how_to_get_it(tmp_path: Path, url: str) -> None:
    """It is needed for a configuration file only."""
    (tmp_path / "yaml.py").write_text("raise ImportError('not installed')")
    env = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    how = "pip install 'pyyaml>=6' (the extra 'majortomo')"
    with broker("-b", url, "-c", config(tmp_path, ""), env=env) as program:
        assert program.ends() == 2
        assert program.stderr == f"{COMMAND}--config needs PyYAML: {how}\n"
    with broker("-b", url, env=env) as program:
        program.says("listening on")


def test_what_the_line_names_is_an_extra_of_the_package() -> None:
    """``pip`` knows it."""
    setup = Path(__file__).parents[3].joinpath("setup.py").read_text(encoding="utf-8")
    extra = re.search(r'"majortomo": \[(.*?)\]', setup)
    assert extra is not None
    assert "pyyaml" in extra[1]


# --- the class ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["greenlet", "thread"])
def test_a_program_runs_a_broker_and_stops_it(url: str, how: str) -> None:
    """In a greenlet, or, as majortomo's must be run, in a thread of its own. The port is free afterwards."""
    made = Broker(bind=url, heartbeat_interval=0.5, heartbeat_timeout=2.0, busy_worker_timeout=5.0)
    if how == "greenlet":
        greenlet = gevent.spawn(made.run)
        assert answers(url, b"x")
        made.stop()
        greenlet.get(timeout=SOON_S)
    else:
        thread = threading.Thread(target=made.run)
        thread.start()
        assert answers(url, b"x")
        made.stop()
        thread.join(SOON_S)
        assert not thread.is_alive()
    again = gevent.spawn(Broker(url).run)
    assert answers(url, b"x")
    again.kill()


def test_it_may_be_run_again(url: str) -> None:
    """After ``stop``; without ``run``, ``stop`` does nothing."""
    made = Broker(url)
    made.stop()
    for _ in range(2):
        greenlet = gevent.spawn(made.run)
        assert answers(url, b"x")
        made.stop()
        greenlet.get(timeout=SOON_S)


def test_clients_wait_while_it_is_away(url: str) -> None:
    """A request that was sent while nobody was there is answered by the next broker's worker."""
    first, second = Broker(url), Broker(url)
    greenlet = gevent.spawn(first.run)
    assert answers(url, b"x")
    with Client(url) as client, Worker(url, "svc") as worker:
        first.stop()
        greenlet.get(timeout=SOON_S)
        client.connect(reconnect=True)  # or it might go to the one that is leaving, and be lost with it
        client.send("svc", b"y")
        greenlet = gevent.spawn(second.run)
        caller, frames = taken(worker)
        worker.send_reply_final(caller, frames)
        assert client.recv_all_as_list(SOON_S) == [b"y"]
    second.stop()
    greenlet.get(timeout=SOON_S)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda url: Broker(url, heartbeat_interval=6.0, heartbeat_timeout=12.0), UsageError),
        (lambda url: Broker("nonsense"), ValueError),
    ],
)
def test_what_cannot_be_is_raised_by_run(
    url: str, make: Callable[[str], Broker], kind: type[Exception]
) -> None:
    """Before anything listens."""
    with pytest.raises(kind):
        make(url).run()


def test_an_address_in_use_is_raised_by_run() -> None:
    """As OSError, too."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(AddressInUse):
            Broker(f"tcp://127.0.0.1:{taken.getsockname()[1]}").run()


def test_its_parameters_are_majortomos() -> None:
    """By name and in order, with the same defaults."""
    theirs, ours = (kind.__init__.__code__.co_varnames[:6] for kind in (majortomo.broker.Broker, Broker))
    assert theirs == ours
    assert Broker.__init__.__defaults__ == ("tcp://127.0.0.1:5555", 2.5, 10.0, 900.0, None)
