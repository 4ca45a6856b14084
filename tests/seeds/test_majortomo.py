"""majortomo's documented programs as they are but for an import: broker, worker and client as processes."""

from __future__ import annotations

import re
import signal

import pytest

from tests.programs import ROOT, Program
from tests.seeds.conftest import SEEDS, Examples
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

BROKER = ("-m", "butler_mesh.compat.majortomo.broker")
ECHO = ("-m", "butler_mesh.compat.majortomo.echo")
URL = "tcp://127.0.0.1:5555"
REPLY = b"[b'frame1', b'frame2']\n"
WARNING = "Timed out waiting for a reply from broker, reconnecting"


def broker(examples: Examples, *options: str) -> Program:
    """Start the broker command, and wait until it listens."""
    program = examples.python(*BROKER, *options)
    program.says(f"listening on {URL}")
    return program


def echo(examples: Examples, *options: str) -> Program:
    """Start the echo worker as ``my-service``, and wait until the broker knows it."""
    program = examples.python(*ECHO, "-n", "my-service", "worker", *options)
    program.says("registered as my-service-")
    return program


def test_the_client(examples: Examples) -> None:
    """Its caller sees the frames it sent, from all parts, in one list."""
    broker(examples)
    echo(examples)
    client = examples.start("majortomo_client.py")
    assert client.ends() == 0
    assert (client.stdout, client.stderr) == (REPLY, "")


def test_the_parts(examples: Examples) -> None:
    """Its caller sees each part of the reply, two partial ones and the final one, in order."""
    broker(examples)
    examples.start("majortomo_worker.py")
    client = examples.start("majortomo_parts.py")
    assert client.ends() == 0
    assert (client.stdout, client.stderr) == (b"[b'frame1']\n[b'frame2']\n[b'frame3']\n", "")


def test_everybody_may_come_in_any_order(examples: Examples) -> None:
    """A client that starts before the broker, and a broker before its worker: the caller sees nothing but its
    reply."""
    client = examples.start("majortomo_client.py")
    broker(examples).says("listening on")
    assert client.process.poll() is None
    echo(examples)
    assert client.ends() == 0
    assert (client.stdout, client.stderr) == (REPLY, "")


@pytest.mark.parametrize("name", ["majortomo_retry.py", "majortomo_reconnect.py"])
def test_a_retrying_client_outlives_its_broker(examples: Examples, name: str) -> None:
    """The broker is killed with the request at a worker: the client's loop warns at once, not after its ten
    seconds, tries again a second later, and sees its reply when broker and a worker are there again."""
    first = broker(examples)
    slow = echo(examples, "--delay", "600")
    client = examples.start(name)
    first.says("registered")
    wait_for(lambda: is_at_work(examples), 20.0)
    first.send(signal.SIGKILL)
    first.ends()
    client.says(WARNING, timeout_s=5.0)
    assert client.process.poll() is None
    slow.send(signal.SIGKILL)
    broker(examples)
    echo(examples)
    assert client.ends() == 0
    assert client.stdout == REPLY
    assert set(client.stderr.splitlines()) == {f"WARNING:root:{WARNING}"}


def is_at_work(examples: Examples) -> bool:
    """Tell whether the worker of ``my-service`` has a request, as anybody may ask the broker."""
    asker = examples.python("-m", "butler_mesh", "call", f"{URL}/mmi.status", "/")
    asker.ends()
    return '"in_flight": 1' in asker.stdout.decode() or '"in_flight":1' in asker.stdout.decode()


def test_a_worker_outlives_its_broker(examples: Examples) -> None:
    """The broker is stopped as an operator stops it and started again: the worker is still there, and callers
    are served."""
    first = broker(examples)
    worker = examples.start("majortomo_worker.py")
    first.says("for my-service")
    first.send(signal.SIGTERM)
    assert first.ends() == 0
    broker(examples).says("for my-service")
    client = examples.start("majortomo_client.py")
    assert client.ends() == 0
    assert client.stdout == REPLY
    worker.send(signal.SIGTERM)
    assert worker.ends() == 0
    assert (worker.stdout, worker.stderr) == (b"", "")


def test_the_echo(examples: Examples) -> None:
    """The client's user sees each answer, green where it is right; the worker ends well on SIGINT."""
    broker(examples)
    worker = examples.python(*ECHO, "worker")
    client = examples.python(*ECHO, "client", "-m", "hello", "-r", "2", "-d", "0.1", "-t", "10")
    assert client.ends() == 0
    assert client.stdout == 2 * b"\x1b[32mGot response: [b'hello']\x1b[0m\n"
    worker.send(signal.SIGINT)
    assert worker.ends() == 0


@pytest.mark.parametrize("who", ["client", "worker"])
def test_majortomos_own_echo_at_our_broker(examples: Examples, who: str) -> None:
    """Its client is answered by our worker, and its worker answers our client: the user sees the same."""
    theirs, ours = ("-m", "majortomo.echo"), ECHO
    broker(examples)
    examples.python(*(theirs if who == "worker" else ours), "worker", "-f")
    client = examples.python(*(theirs if who == "client" else ours), "client", "-m", "abc", "-t", "20")
    assert client.ends() == 0
    assert b"Got response: [b'cba']" in client.stdout


def test_the_broker_explains_itself(examples: Examples) -> None:
    """As ``python -m majortomo.broker --help`` did: each of its options is there."""
    program = examples.python(*BROKER, "--help")
    assert program.ends() == 0
    theirs = examples.python("-m", "majortomo.broker", "--help")
    assert theirs.ends() == 0
    options = set(re.findall(r"(?<![\w-])--?[\w-]+", theirs.stdout.decode()))
    assert {"--bind-url", "-b", "--help"} <= options
    assert options <= set(re.findall(r"(?<![\w-])--?[\w-]+", program.stdout.decode()))


def test_the_documented_options_of_the_broker(examples: Examples) -> None:
    """Bound where others can reach it, which it says, and verbose: clients of this machine are served."""
    program = examples.python(*BROKER, "-b", "tcp://0.0.0.0:5555", "--verbose")
    program.says("listening on tcp://0.0.0.0:5555")
    program.says("can be reached from other machines")
    echo(examples)
    client = examples.start("majortomo_client.py")
    assert client.ends() == 0
    assert client.stdout == REPLY


LOGGING = """\
logging:
  formatters:
    plain:
      format: '%(name)s %(message)s'
  handlers:
    console:
      level: WARNING
    file:
      class: logging.FileHandler
      filename: run/broker.log
      formatter: plain
  root:
    handlers: [console, file]
"""


def test_the_brokers_logging_is_configured_by_YAML(examples: Examples) -> None:
    """What it does goes to the file that the operator named, and no longer to stderr."""
    (examples.directory / "logging.yaml").write_text(LOGGING, encoding="utf-8")
    program = examples.python(*BROKER, "--config", "logging.yaml")
    log = examples.directory / "run" / "broker.log"
    wait_for(lambda: log.exists() and f"butler_mesh.router listening on {URL}\n" in log.read_text(), 20.0)
    echo(examples)
    wait_for(lambda: "registered my-service-" in log.read_text())
    program.send(signal.SIGTERM)
    assert program.ends() == 0
    assert program.stderr == ""


def test_type_checkers_may_look_into_it() -> None:
    """It is typed, as majortomo is; the marker is in the package and goes along where that is installed."""
    assert (ROOT / "butler_mesh" / "py.typed").exists()
    assert '"py.typed"' in (ROOT / "setup.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["client", "parts", "retry", "reconnect", "worker"])
def test_only_the_imports_are_ours(name: str) -> None:
    """What a program that comes from majortomo changes is where the names come from."""
    text = (SEEDS / f"majortomo_{name}.py").read_text(encoding="utf-8")
    assert re.findall(r".*butler_mesh.*", text) == re.findall(r"from butler_mesh\.compat.* import .*", text)
    assert "gevent" not in text
