"""The echo: a worker and a client as commands, to try a broker out."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import majortomo as original
import pytest

from butler_mesh import Client
from butler_mesh.compat.majortomo.echo import garbled
from tests.processes.parties import status
from tests.programs import Program, run
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

COMMAND = "python -m butler_mesh.compat.majortomo.echo: "
GREEN, RED = "\x1b[32m{}\x1b[0m\n", "\x1b[31m{}\x1b[0m\n"


@contextmanager
def worker(url: str, name: str, *options: str) -> Iterator[Program]:
    """Run the worker, once it is registered."""
    with Program("-m", "butler_mesh.compat.majortomo.echo", "-b", url, "-n", name, "worker", *options) as own:
        own.says("registered as")
        yield own


def client(url: str, name: str, *options: str) -> tuple[int, str, str]:
    """Run the client to its end; return exit status, stdout and stderr."""
    code, out, err = run("-m", "butler_mesh.compat.majortomo.echo", "-b", url, "-n", name, "client", *options)
    return code, out.decode(), err


def test_the_answer_is_printed_in_green(far_router: str, name: str) -> None:
    """As majortomo's echo says it."""
    with worker(far_router, name):
        found = client(far_router, name, "-m", "hello, Käse")
    text = "Got response: " + str(["hello, Käse".encode()])
    assert found == (0, GREEN.format(text), "")


def test_garbage_is_printed_in_red(far_router: str, name: str) -> None:
    """The frames' bytes and their order reversed."""
    with worker(far_router, name, "--garbage"):
        assert client(far_router, name, "-m", "abc") == (0, RED.format("Got response: [b'cba']"), "")
    assert garbled([b"ab", b"", b"cd"]) == [b"dc", b"", b"ba"]


def test_a_message_is_repeated_with_pauses(far_router: str, name: str) -> None:
    """So often, and half a second between two unless another delay is asked for."""
    with worker(far_router, name):
        client(far_router, name, "-m", "warm")
        began = monotonic()
        code, out, err = client(far_router, name, "-m", "x", "-r", "3", "-d", "0.4")
        assert (code, err) == (0, "")
        assert out == 3 * GREEN.format("Got response: [b'x']")
        assert monotonic() - began > 0.8


def test_the_worker_takes_its_time_when_it_is_told_to(far_router: str, name: str) -> None:
    """The client waits, or runs out of patience: one line on stderr, and exit status 1."""
    with worker(far_router, name, "-d", "1.5"):
        code, out, err = client(far_router, name, "-m", "x", "-t", "0.3")
        assert (code, out) == (1, "")
        assert err.startswith(f"{COMMAND}no reply from {name} within 0.3 s")
        assert err.count("\n") == 1
        assert client(far_router, name, "-m", "x", "-t", "10") == (
            0,
            GREEN.format("Got response: [b'x']"),
            "",
        )


def test_a_service_that_nobody_offers_times_out(far_router: str, name: str) -> None:
    """With the reason that the router gave."""
    code, _, err = client(far_router, name, "-m", "x", "-t", "4")
    assert code == 1
    assert f"no such service: {name}" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_worker_with_0(far_router: str, name: str, number: signal.Signals) -> None:
    """What it has begun is answered first."""
    with worker(far_router, name, "-d", "1.5") as program:
        with Program(
            *("-m", "butler_mesh.compat.majortomo.echo", "-b", far_router, "-n", name, "client", "-m", "x")
        ) as asker:
            wait_for(lambda: is_at_work(far_router, name), 20.0)
            program.send(number)
            assert asker.ends() == 0
            assert asker.stdout.decode() == GREEN.format("Got response: [b'x']")
        assert program.ends() == 0
        assert program.stdout == b""
        assert "Traceback" not in program.stderr


def is_at_work(url: str, name: str) -> bool:
    """Tell whether the service's worker has a request."""
    with Client(url) as asker:
        return any(one["in_flight"] for one in status(asker)["services"][name]["instances"])


def test_majortomos_own_client_is_answered(far_router: str, their_client: original.Client, name: str) -> None:
    """Frame by frame."""
    with worker(far_router, name, "-i", "1.5"):
        their_client.send(name, b"a", b"", b"\xff")
        assert their_client.recv_all_as_list(20.0) == [b"a", b"", b"\xff"]


def test_help_lists_majortomos_options() -> None:
    """Of the command and of both its parts."""
    for arguments, options in (
        ([], ["--broker_url", "--service-name", "--debug", "worker", "client"]),
        (["worker"], ["--delay", "--heartbeat-interval", "--garbage", "-d", "-i", "-f"]),
        (["client"], ["--message", "--repeat", "--delay", "--timeout", "-m", "-r", "-d", "-t"]),
    ):
        code, out, err = run("-m", "butler_mesh.compat.majortomo.echo", *arguments, "--help")
        assert (code, err) == (0, "")
        assert [option for option in options if option not in out.decode()] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: command"),
        (["client"], "required: -m/--message"),
        (["-n", "", "client", "-m", "x"], "is no name of a service"),
        (["-b", "nonsense", "client", "-m", "x"], "'nonsense'"),
        (["-n", "mmi.x", "worker"], "are the broker's own"),
    ],
)
def test_what_cannot_be_is_exit_2(arguments: list[str], says: str) -> None:
    """And a line that says why, at the end of what is on stderr."""
    code, out, err = run("-m", "butler_mesh.compat.majortomo.echo", *arguments)
    assert (code, out) == (2, b"")
    assert says in err.splitlines()[-1]
    assert "Traceback" not in err
