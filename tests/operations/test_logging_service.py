"""One log file for many processes: real datagrams on loopback, and real processes."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from logging.handlers import MemoryHandler
from pathlib import Path
from textwrap import dedent

import pytest

from butler_mesh import codec
from butler_mesh.errors import AddressInUse, UsageError
from butler_mesh.operations import logging_service
from butler_mesh.operations.logging_service import (
    KEPT,
    MAX_DATAGRAM,
    SECRET,
    LoggingService,
    LogSender,
)
from butler_mesh.signing import sign
from tests.programs import Program
from tests.waiting import wait_for


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A server that is read by hand, without a process, and a sender for it."""

    def __init__(self, file: Path, pattern: str = "%(message)s") -> None:
        self.file = file
        self.listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.listener.bind(("127.0.0.1", 0))
        self.service = LoggingService(str(file), self.listener, "secret", pattern=pattern)
        self.sender = LogSender(self.listener.getsockname()[1], "secret")

    def receive(self, *datagrams: bytes) -> str:
        """Return the file after these have come."""
        for datagram in datagrams:
            self.sender.send(datagram)
        self.service.stop()
        self.service.serve()
        return self.file.read_text(encoding="utf-8")

    def close(self) -> None:
        self.sender.close()
        self.listener.close()
        self.service.file.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "all.log")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _root_logger_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(SECRET, raising=False)
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    os.environ.pop(SECRET, None)


def record(message: str = "hello", *arguments: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("a.b", level, "f.py", 7, message, arguments, None, "f")


def test_a_record_is_written_as_its_sender_meant_it(server: Server) -> None:
    pattern = "%(name)s %(levelname)s %(process)d %(lineno)d %(funcName)s %(message)s"
    server.service.file.setFormatter(logging.Formatter(pattern))
    text = server.receive(server.sender.makePickle(record("%s is %d", "seven", 7, level=logging.WARNING)))
    assert text == f"a.b WARNING {os.getpid()} 7 f seven is 7\n"


def test_a_traceback_travels_as_text(server: Server) -> None:
    try:
        raise KeyError("lost")
    except KeyError as error:
        failed = record("it failed")
        failed.exc_info = (type(error), error, error.__traceback__)
    text = server.receive(server.sender.makePickle(failed))
    assert text.startswith("it failed\n    Traceback (most recent call last):\n      File ")
    assert text.endswith("\n    KeyError: 'lost'\n")


@pytest.mark.parametrize(
    ("message", "written"),
    [
        ("x\nFORGED", "x\n    FORGED\n"),
        ("x\r\nFORGED\n\n FORGED", "x\n    FORGED\n\n     FORGED\n"),
        ("x\rFORGED", "x\\rFORGED\n"),
        ("x\v\f\x1cFORGED\x85FORGED", "x\\x0b\\x0c\\x1cFORGED\\x85FORGED\n"),
        ("x\u2028FORGED\u2029FORGED", "x\\u2028FORGED\\u2029FORGED\n"),
        ("\x1b[2K\x9b2K\0\x7f\u202eright", "\\x1b[2K\\x9b2K\\x00\\x7f\\u202eright\n"),
        ("tab\tand \U0001f600 ü\n", "tab\tand \U0001f600 ü\n"),
    ],
    ids=["lf", "crlf", "cr", "ascii", "unicode", "terminal", "harmless"],
)
def test_no_message_can_pass_for_a_line_of_another_record(server: Server, message: str, written: str) -> None:
    server.receive(server.sender.makePickle(record("%s", message)))
    assert server.file.read_bytes().decode() == written
    assert not any(line.startswith("FORGED") for line in written.splitlines())


def test_nor_can_the_names_that_came_with_it(tmp_path: Path) -> None:
    server = Server(tmp_path / "all.log", "%(threadName)s %(name)s %(message)s")
    named = record()
    named.threadName, named.name = "a\nFORGED", "b\nFORGED"
    text = server.receive(server.sender.makePickle(named))
    server.close()
    assert text == "a\n    FORGED b\n    FORGED hello\n"


def test_what_is_not_signed_or_was_altered_is_dropped(server: Server) -> None:
    good = server.sender.makePickle(record())
    stranger = LogSender(1, "another secret").makePickle(record())
    altered = good.replace(b"hello", b"HELLO")
    assert server.receive(b"", b"junk", b"\xff" * 100, stranger, altered, good[1:], good) == "hello\n"


def test_a_repetition_is_dropped(server: Server) -> None:
    good = server.sender.makePickle(record())
    assert server.receive(good, good, good) == "hello\n"


@pytest.mark.parametrize("age_s", [40.0, -40.0])
def test_a_datagram_out_of_its_time_is_dropped(
    server: Server, age_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = time.time() - age_s
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: then)
        datagram = server.sender.makePickle(record())
    assert server.receive(datagram) == ""


def test_a_record_that_was_kept_back_is_written_with_the_time_it_was_made(tmp_path: Path) -> None:
    server = Server(tmp_path / "all.log", "%(asctime)s %(message)s")
    memory = MemoryHandler(100, target=server.sender)
    old = record("long ago")
    old.created = datetime(2026, 1, 2, 3, 4, 5, 500_000).timestamp()
    memory.handle(old)
    memory.close()
    assert server.receive() == "2026-01-02 03:04:05,500 long ago\n"
    server.close()


def test_where_a_record_was_made_travels_as_text(server: Server) -> None:
    placed = record("here")
    placed.stack_info = "Stack (most recent call last):\n  File ..."
    text = server.receive(server.sender.makePickle(placed))
    assert text == "here\n    Stack (most recent call last):\n      File ...\n"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"1",
        b"{}",
        b'{"nonce": "1", "sent": "now"}',
        b'{"nonce": 1, "sent": 1e999}',
        b"cos\nsystem",
    ],
)
def test_signed_nonsense_is_dropped_and_the_next_is_written(server: Server, body: bytes) -> None:
    good = server.sender.makePickle(record())
    assert server.receive(sign("secret", body).encode() + body, good) == "hello\n"


@pytest.mark.parametrize("made", ["now", None, [], 1e300, -1e300])
def test_what_was_made_at_no_time_is_dropped_and_the_next_is_written(server: Server, made: object) -> None:
    timeless = record()
    timeless.created = made  # type: ignore[assignment]
    good = server.sender.makePickle(record())
    assert server.receive(server.sender.makePickle(timeless), good) == "hello\n"


def test_a_datagram_is_JSON_and_no_pickle(server: Server) -> None:
    said = codec.loads(server.sender.makePickle(record("%s", object))[64:])
    assert said["message"] == "<class 'object'>"
    assert said["nonce"] != codec.loads(server.sender.makePickle(record())[64:])["nonce"]


@pytest.mark.parametrize(
    "text", ["x" * 1_000_000, "\x01" * 20_000, "\U0001f600" * 20_000, "\ud800 half"], ids=list("1234")
)
def test_any_text_fits_a_datagram(server: Server, text: str) -> None:
    long = record(text)
    long.exc_text = long.stack_info = text
    datagram = server.sender.makePickle(long)
    assert len(datagram) <= MAX_DATAGRAM + 64
    assert len(server.receive(datagram)) > 5


def test_a_new_file_is_begun_each_day_and_15_old_ones_are_kept(tmp_path: Path) -> None:
    """Also by a program that is started daily: yesterday's file ended a second before midnight."""
    file, today = tmp_path / "all.log", datetime.combine(date.today(), datetime.min.time())
    names = [f"all.log.{(today - timedelta(days)).date().isoformat()}" for days in range(1, 22)]
    for name in names[1:]:
        file.with_name(name).write_text(name)
    file.write_text("yesterday\n")
    os.utime(file, (0, (today - timedelta(seconds=1)).timestamp()))
    server = Server(file)
    assert server.receive(server.sender.makePickle(record())) == "hello\n"
    server.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.log", *sorted(names[:KEPT])]
    assert file.with_name(names[0]).read_text() == "yesterday\n"


def test_a_new_file_is_begun_by_a_server_that_stays(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    today = date.fromtimestamp(os.stat(server.file).st_mtime)
    assert server.receive(server.sender.makePickle(record("first"))) == "first\n"
    later = time.time() + 2 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert server.receive(server.sender.makePickle(record("second"))) == "second\n"
    assert server.file.with_name(f"all.log.{today.isoformat()}").read_text() == "first\n"


class Flood:
    """A listener to which more comes than anybody reads; stops the service after so many datagrams."""

    def __init__(self, listener: socket.socket, service: LoggingService, stop_after: int) -> None:
        self._listener = listener
        self._service = service
        self._stop_after = stop_after
        self.count = 0
        listener.sendto(b"", listener.getsockname())  # select finds it readable from now on
        self.fileno, self.setblocking = listener.fileno, listener.setblocking
        self.getsockname = listener.getsockname

    def recv(self, _: int) -> bytes:
        self.count += 1
        assert self.count < self._stop_after + 1_000_000, "it is read for ever"
        if self.count == self._stop_after:
            self._service.stop()
        return b"junk"


@pytest.mark.parametrize("stop_after", [1, 500, 2500])
def test_a_server_stops_however_much_comes(
    server: Server, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging_service, "LAST_S", 0.02)
    flood = Flood(server.listener, server.service, stop_after)
    monkeypatch.setattr(server.service, "_listener", flood)
    server.service.serve()
    assert flood.count >= stop_after


@pytest.mark.slow
def test_a_server_under_load_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """Two programs send faster than it can read, for as long as it is there."""
    port = free_udp_port()
    flood = """
        import socket, sys
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
            flood.connect(("127.0.0.1", int(sys.argv[1])))
            print("begun")
            while True:
                try:
                    flood.send(b"junk")
                except ConnectionRefusedError:
                    break
        """
    process = LoggingService.start_logging_server(str(tmp_path / "log"), port)
    with Program.of(flood, str(port)) as one, Program.of(flood, str(port)) as another:
        one.says("begun")
        another.says("begun")
        process.terminate()
        process.join(10.0)
        assert process.exitcode == 0
        assert (one.ends(), another.ends()) == (0, 0)
    process.close()


@pytest.mark.slow
def test_processes_log_into_one_file(tmp_path: Path) -> None:
    file, pids, port = tmp_path / "application.log", tmp_path / "pids", free_udp_port()
    process = LoggingService.start_logging_server(
        str(file), port, lambda: pids.write_text(f"{os.getpid()}\n")
    )
    program = """
        import logging, sys
        from butler_mesh import LoggingService
        LoggingService.init_logging(int(sys.argv[1]), logging.INFO)
        for n in range(100):
            logging.info("line %d", n)
        logging.debug("not this")
        """
    env = {SECRET: os.environ[SECRET]}
    children = [Program("-c", dedent(program), str(port), env=env) for _ in range(3)]
    try:
        assert [child.ends() for child in children] == [0, 0, 0]
    finally:
        for child in children:
            child.__exit__(None, None, None)
        process.terminate()
        process.join(10.0)
    assert process.exitcode == 0
    assert pids.read_text() == f"{process.pid}\n"
    lines = file.read_text().splitlines()
    line = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} PID:(\d+)\]INFO:line (\d+)")
    found = [line.fullmatch(one) for one in lines]
    assert all(found)
    assert {(match[1], match[2]) for match in found if match} == {
        (str(child.pid), str(n)) for child in children for n in range(100)
    }
    process.close()


@pytest.mark.slow
def test_the_server_ends_with_who_started_it(tmp_path: Path) -> None:
    port = free_udp_port()
    program = """
        import os, signal, sys
        from butler_mesh import LoggingService
        print(LoggingService.start_logging_server(sys.argv[1], int(sys.argv[2])).pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with Program.of(program, str(tmp_path / "log"), str(port)) as parent:
        parent.ends()
        server = int(parent.stdout)
        wait_for(lambda: not is_running(server), 10.0)


def is_running(pid: int) -> bool:
    """Tell whether a process is there, and not only because nobody has asked how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_port_that_is_taken_is_an_error_of_who_starts_it(tmp_path: Path, server: Server) -> None:
    port = server.listener.getsockname()[1]
    with pytest.raises(AddressInUse, match=f"udp://127.0.0.1:{port}"):
        LoggingService.start_logging_server(str(tmp_path / "log"), port)
    assert SECRET not in os.environ


def test_a_file_that_cannot_be_opened_is_an_error_of_who_starts_it(tmp_path: Path) -> None:
    port = free_udp_port()
    with pytest.raises(FileNotFoundError, match="missing/log"):
        LoggingService.start_logging_server(str(tmp_path / "missing" / "log"), port)
    assert SECRET not in os.environ
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", port))


@pytest.mark.parametrize("is_at_once", [True, False])
def test_a_server_that_is_told_to_end_before_it_serves_ends_well(tmp_path: Path, is_at_once: bool) -> None:
    """By who started it, who need not know how far it is; or in its own hook, which may log as well."""
    file, port = tmp_path / "log", free_udp_port()

    def hook() -> None:
        LoggingService.init_logging(port)
        logging.getLogger("x").info("begun")
        if not is_at_once:
            os.kill(os.getpid(), signal.SIGTERM)

    process = LoggingService.start_logging_server(str(file), port, hook)
    if is_at_once:
        process.terminate()
    process.join(10.0)
    assert process.exitcode == 0
    assert file.read_text().endswith("INFO:begun\n")
    process.close()


def test_without_a_secret_nobody_logs() -> None:
    with pytest.raises(UsageError, match=SECRET):
        LoggingService.init_logging(9999)


def test_a_secret_may_be_given_to_programs_that_are_not_related(server: Server) -> None:
    port = server.listener.getsockname()[1]
    LoggingService.init_logging(port, logging.ERROR, secret="secret")
    logging.getLogger("x").error("told")
    logging.getLogger("x").info("not told")
    LoggingService.init_logging(port, logging.ERROR, secret=secrets.token_hex(8))
    assert server.receive() == "told\n"


def test_what_is_begun_twice_is_logged_once(server: Server) -> None:
    port = server.listener.getsockname()[1]
    LoggingService.init_logging(free_udp_port(), secret="another secret")
    for _ in range(2):
        latest = LoggingService.init_logging(port, secret="secret")
    logging.getLogger("x").error("told")
    assert server.receive() == "told\n"
    assert [one for one in logging.getLogger().handlers if isinstance(one, LogSender)] == [latest]


@pytest.mark.slow
def test_a_fork_that_begins_anew_logs_once(tmp_path: Path) -> None:
    program = """
        import logging, os, sys
        from butler_mesh import LoggingService
        file, port = sys.argv[1], int(sys.argv[2])
        server = LoggingService.start_logging_server(file, port)
        LoggingService.init_logging(port)
        logging.info("before")
        child = os.fork()
        LoggingService.init_logging(port)
        logging.info("in the child" if child == 0 else "in the parent")
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        server.terminate()
        server.join(10.0)
        """
    file = tmp_path / "log"
    with Program.of(program, str(file), str(free_udp_port())) as forking:
        assert forking.ends() == 0, forking.stderr
    said = re.findall(r"INFO:(.*)", file.read_text())
    assert sorted(said) == ["before", "in the child", "in the parent"]


@pytest.mark.slow
def test_it_works_where_everything_is_patched(tmp_path: Path) -> None:
    program = """
        from gevent import monkey; monkey.patch_all()
        import logging, sys, gevent
        from butler_mesh import LoggingService
        server = LoggingService.start_logging_server(sys.argv[1], int(sys.argv[2]))
        LoggingService.init_logging(int(sys.argv[2]))
        gevent.joinall([gevent.spawn(logging.info, "from greenlet %d", n) for n in range(10)])
        server.terminate()
        server.join(10.0)
        print(server.exitcode)
        """
    file = tmp_path / "log"
    with Program.of(program, str(file), str(free_udp_port())) as patched:
        assert patched.ends() == 0, patched.stderr
        assert (patched.stdout, patched.stderr) == (b"0\n", "")
    assert sorted(re.findall(r"from greenlet (\d)", file.read_text())) == list("0123456789")
