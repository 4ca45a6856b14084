"""``butler-mesh doctor``: what it finds here, and in configurations of Mongrel2, good and bad ones."""

from __future__ import annotations

import os
import re
import resource
import runpy
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import gevent
import pytest
import setuptools
import zmq
from click.testing import CliRunner, Result

from butler_mesh.cli import doctor as module
from butler_mesh.cli.doctor import Configuration, Finding, Level, check_configuration
from butler_mesh.cli.main import main
from butler_mesh.cli.router import BACKEND, FRONTEND
from butler_mesh.operations import rabbitmq
from butler_mesh.sink import DEFAULT_SINK
from butler_mesh.web.wsgi import PORT
from tests.programs import ROOT, mesh
from tests.web.mongrel2s import needs_mongrel2

GOOD = {
    "server.daemonize": "0",
    "limits.min_ping": "0",
    "limits.buffer_size": "16384",
    "limits.content_length": "1048576",
    "upload.temp_store": "tmp/upload.XXXXXX",
    "download.flow_control": "1",
}
SERVER = {
    "uuid": "u",
    "name": "web",
    "bind_addr": "127.0.0.1",
    "port": 6767,
    "chroot": "",
    "pid_file": "run/mongrel2.pid",
    "access_log": "log/access.log",
    "error_log": "log/error.log",
    "control_port": "ipc://run/control",
    "use_ssl": 0,
}
HANDLER = {
    "send_spec": "tcp://127.0.0.1:9999",
    "send_ident": "page",
    "recv_spec": "tcp://127.0.0.1:9998",
    "recv_ident": "",
    "protocol": "tnetstring",
}


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments], prog_name="butler-mesh")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with all that a server needs, where we are."""
    for name in ("run", "log", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place: Path, servers: list[Any], handlers: list[Any], settings: dict[str, str]) -> str:
    """Write a database as m2sh does, as far as the doctor reads it; return its path."""
    path = place / "run" / "config.sqlite"
    rows = {
        "server": servers,
        "handler": handlers,
        "setting": [{"key": key, "value": value} for key, value in settings.items()],
    }
    columns = {"server": SERVER, "handler": HANDLER, "setting": {"key": "", "value": ""}}
    with closing(sqlite3.connect(path)) as database:
        for table, sample in columns.items():
            database.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, {', '.join(sample)})")
            for row in rows[table]:
                marks = ", ".join("?" * len(sample))
                names = ", ".join(sample)
                database.execute(
                    f"INSERT INTO {table} ({names}) VALUES ({marks})", [row[name] for name in sample]
                )
        database.commit()
    return str(path)


def found(
    place: Path,
    server: dict[str, Any] | None = None,
    handlers: list[dict[str, Any]] | None = None,
    **settings: str | None,
) -> list[Finding]:
    """Return what is found about a good configuration with these changes; a setting None is not there."""
    changed = {**GOOD, **{name.replace("__", "."): value for name, value in settings.items()}}
    kept = {name: value for name, value in changed.items() if value is not None}
    path = write(place, [{**SERVER, **(server or {})}], [HANDLER] if handlers is None else handlers, kept)
    return list(check_configuration(Configuration.read(Path(path))))


def bad(findings: list[Finding]) -> list[tuple[Level, str]]:
    return [(one.level, one.text) for one in findings if one.level is not Level.GOOD]


# --- the machine ------------------------------------------------------------------------------


def test_what_is_there_is_named_with_its_version() -> None:
    result = doctor()
    assert result.exit_code == 0, result.output
    assert f"ok      Python {sys.version.split()[0]}\n" in result.stdout
    assert f"ok      gevent {gevent.__version__}\n" in result.stdout
    assert f"ok      pyzmq {metadata.version('pyzmq')}, libzmq {zmq.zmq_version()}\n" in result.stdout
    for name in module.NEEDED:
        assert f"ok      {name} " in result.stdout
    for name in module.OPTIONAL:
        assert re.search(rf"^(ok    |remark)  {name} ", result.stdout, re.MULTILINE)
    assert re.fullmatch(r"0 wrong, \d+ remarks?", result.stdout.splitlines()[-1])
    assert result.stderr == ""


def test_its_help_has_examples() -> None:
    result = doctor("--help")
    assert result.exit_code == 0
    assert "  butler-mesh doctor --mongrel2 " in result.output.partition("Examples:")[2]


def test_every_finding_is_one_line() -> None:
    *findings, _ = doctor().stdout.splitlines()
    assert findings
    assert [line for line in findings if not re.match(r"(ok    |remark|wrong )  \S", line)] == []


def test_it_asks_for_what_setup_requires(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: said.update(options))
    runpy.run_path(str(ROOT / "setup.py"))
    assert sorted(said["install_requires"]) == sorted(f"{k}>={v}" for k, v in module.NEEDED.items())
    assert said["python_requires"] == ">=" + ".".join(map(str, module.PYTHON))
    extras = {one for several in said["extras_require"].values() for one in several}
    assert {f"{name}>={oldest}" for name, (oldest, _) in module.OPTIONAL.items()} <= extras


def test_the_ports_are_the_default_ones() -> None:
    defaults = {int(url.rpartition(":")[2]) for url in (FRONTEND, BACKEND, DEFAULT_SINK)}
    assert module.PORTS.keys() == defaults | {PORT}


def test_a_rabbitmq_that_could_be_run_here_is_named_and_a_missing_one_is_a_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rabbitmq, "programs", lambda: tmp_path)
    assert module.check_rabbitmq().level is Level.GOOD
    assert str(tmp_path) in module.check_rabbitmq().text
    monkeypatch.setattr(rabbitmq, "programs", lambda: None)
    assert module.check_rabbitmq().level is Level.REMARK
    assert "apt install rabbitmq-server" in module.check_rabbitmq().text
    # Where gevent is missing, which is told elsewhere, this is not the place to fail.
    monkeypatch.setitem(sys.modules, "butler_mesh.operations.rabbitmq", None)
    assert module.check_rabbitmq().level is Level.REMARK


@pytest.mark.parametrize("name", ["gevent", "pyzmq", "itsdangerous"])
def test_a_library_that_is_needed_and_missing_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without(asked: str) -> str:
        if asked == name:
            raise metadata.PackageNotFoundError(asked)
        return version(asked)

    monkeypatch.setattr(metadata, "version", without)
    result = doctor()
    assert result.exit_code == 1
    [line] = [line for line in result.stdout.splitlines() if line.startswith("wrong")]
    assert line.startswith(f"wrong   {name} is not installed; ")
    assert f"pip install '{name}>=" in line
    assert result.stdout.splitlines()[-1].startswith("1 wrong, ")


def test_a_library_that_is_too_old_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "25.9.1" if name == "pyzmq" else version(name))
    assert module.package_problem("pyzmq", "26") == "pyzmq 25.9.1 is older than 26"
    assert module.package_problem("pyzmq", "25.9") == ""
    assert doctor().exit_code == 1


def test_a_library_that_is_broken_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libzmq.so.5:\ncannot open shared object file")

    monkeypatch.setattr(module, "import_module", broken)
    assert module.package_problem("pyzmq", "26") == (
        "pyzmq is installed and cannot be imported (ImportError: libzmq.so.5: cannot open shared object file)"
    )


@pytest.mark.parametrize(
    ("codec", "level"), [("", Level.REMARK), ("ujson", Level.REMARK), ("orjson", Level.WRONG)]
)
def test_an_optional_library_is_a_remark_unless_it_was_asked_for(
    codec: str, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUTLER_MESH_CODEC", codec)
    problem = module.package_problem
    monkeypatch.setattr(
        module,
        "package_problem",
        lambda name, oldest: f"{name} is not there" if name == "orjson" else problem(name, oldest),
    )
    [finding] = [one for one in module.check_packages() if "orjson" in one.text]
    assert finding.level is level
    assert "pip install 'orjson>=" in finding.text


def test_a_missing_mongrel2_is_a_remark_with_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    [finding] = module.check_mongrel2(is_needed=False)
    assert finding.level is Level.REMARK
    assert "apt install mongrel2-core" in finding.text
    assert "brew install mongrel2" in finding.text
    [finding] = module.check_mongrel2(is_needed=True)
    assert finding.level is Level.WRONG


@pytest.mark.parametrize(
    ("says", "level"),
    [
        ("echo Mongrel2/1.12.2", Level.GOOD),
        ("echo Mongrel2/1.12", Level.GOOD),
        ("echo Mongrel2/1.13.0", Level.REMARK),
        ("echo Mongrel2/1.120", Level.REMARK),
        ("true", Level.REMARK),
        ("exit 3", Level.REMARK),
    ],
)
def test_another_version_of_mongrel2_is_a_remark(
    says: str, level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mongrel2", "m2sh"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    [finding] = module.check_mongrel2(is_needed=False)
    assert finding.level is level


def test_the_version_is_that_of_the_mongrel2_here() -> None:
    needs_mongrel2()
    [finding] = module.check_mongrel2(is_needed=True)
    assert re.match(r"(m2sh's version .*: )?Mongrel2/\d+\.\d+", finding.text)


@pytest.mark.parametrize(
    ("limits", "level", "says"),
    [
        ((65536, 65536), Level.GOOD, "65536, up to 65536"),
        ((resource.RLIM_INFINITY,) * 2, Level.GOOD, "unlimited, up to unlimited"),
        ((1024, 1 << 20), Level.REMARK, "ulimit -n 65536"),
        ((1024, 1024), Level.REMARK, "raise the hard limit"),
    ],
)
def test_few_open_files_are_a_remark(
    limits: tuple[int, int], level: Level, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    [finding] = module.check_files()
    assert finding.level is level
    assert says in finding.text


def test_a_port_that_is_taken_is_a_remark() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = module.check_port(port, "a test")
        assert finding.level is Level.REMARK
        assert finding.text.startswith(f"port {port} (a test): address already in use; ")
    assert module.check_port(port, "a test").level is Level.GOOD


@pytest.mark.slow
def test_as_a_process_it_does_the_same() -> None:
    with mesh("doctor") as program:
        assert program.ends() == 0
        assert program.stdout.decode().splitlines()[0].startswith("ok      Python ")
        assert program.stderr == ""


# --- a configuration --------------------------------------------------------------------------


def test_a_good_configuration_is_told_so(place: Path) -> None:
    findings = found(place)
    assert bad(findings) == []
    assert any(f"upload_store='{place}/tmp'" in one.text for one in findings)


@pytest.mark.parametrize(
    ("settings", "level", "says"),
    [
        ({"server__daemonize": "1"}, Level.REMARK, "server.daemonize is 1: "),
        ({"server__daemonize": None}, Level.REMARK, "server.daemonize is 1: "),
        ({"download__flow_control": None}, Level.REMARK, "download.flow_control is 0: "),
        ({"limits__min_ping": None}, Level.REMARK, "limits.min_ping is 120: "),
        ({"limits__buffer_size": None}, Level.REMARK, "limits.buffer_size is 4096: "),
        ({"limits__buffer_size": "8192"}, Level.REMARK, "limits.buffer_size is 8192: "),
        ({"limits__content_length": "100000000"}, Level.REMARK, "larger bodies do better as files"),
        ({"limits__content_length": "much"}, Level.WRONG, "no number"),
        ({"upload__temp_store": None}, Level.REMARK, "over limits.content_length (1048576 bytes)"),
        ({"upload__temp_store": "nowhere/upload.XXXXXX"}, Level.WRONG, "no directory nowhere for uploads"),
        ({"upload__temp_store": "tmp/upload"}, Level.WRONG, "end in XXXXXX"),
    ],
    ids=str,
)
def test_a_setting_that_hurts_is_one_line(
    place: Path, settings: dict[str, str | None], level: Level, says: str
) -> None:
    [(its, text)] = bad(found(place, **settings))
    assert its is level
    assert says in text


@pytest.mark.parametrize(
    ("server", "level", "says"),
    [
        ({"bind_addr": "0.0.0.0"}, Level.REMARK, "0.0.0.0:6767, which other machines reach"),
        ({"bind_addr": "10.1.2.3"}, Level.REMARK, "other machines"),
        ({"bind_addr": "nonsense"}, Level.REMARK, "other machines"),
        ({"control_port": "tcp://127.0.0.1:9990"}, Level.WRONG, "stop the server"),
        ({"use_ssl": 1}, Level.REMARK, "TLS 1.2"),
        ({"pid_file": "away/mongrel2.pid"}, Level.WRONG, "no directory away,"),
        ({"error_log": "logs/error.log"}, Level.WRONG, "no directory logs,"),
    ],
    ids=str,
)
def test_a_server_that_hurts_is_one_line(
    place: Path, server: dict[str, Any], level: Level, says: str
) -> None:
    [(its, text)] = bad(found(place, server))
    assert its is level
    assert says in text


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_well(place: Path, address: str) -> None:
    assert bad(found(place, {"bind_addr": address})) == []


def test_a_control_port_that_is_not_set_is_a_socket_in_run(place: Path) -> None:
    assert bad(found(place, {"control_port": ""})) == []
    (place / "run" / "config.sqlite").unlink()
    [(_, text)] = bad(found(place, {"control_port": "ipc://away/control"}))
    assert "no directory away," in text


def test_in_a_chroot_directories_are_looked_for_inside(place: Path) -> None:
    server = {"chroot": "jail", "error_log": "/log/error.log"}
    texts = [text for _, text in bad(found(place, server))]
    assert [re.search(r"jail/\w+", text)[0] for text in texts] == [  # type: ignore[index]
        "jail/log",
        "jail/run",
        "jail/tmp",
    ]
    for name in ("run", "log", "tmp"):
        (place / "jail" / name).mkdir(parents=True)
    (place / "run" / "config.sqlite").unlink()
    findings = found(place, server)
    assert bad(findings) == []
    assert any(f"upload_store='{place}/jail/tmp'" in one.text for one in findings)


@pytest.mark.parametrize(
    ("handlers", "level", "says"),
    [
        ([], Level.WRONG, "no Handler"),
        ([{**HANDLER, "protocol": "json"}], Level.REMARK, "set protocol='tnetstring'"),
        ([HANDLER, {**HANDLER, "send_ident": "other"}], Level.WRONG, "2 Handlers have send_spec"),
        ([{**HANDLER, "recv_ident": "other"}], Level.WRONG, "recv_ident 'other' keeps all replies out"),
    ],
    ids=["none", "json", "shared", "identity"],
)
def test_a_handler_that_hurts_is_one_line(
    place: Path, handlers: list[dict[str, Any]], level: Level, says: str
) -> None:
    [(its, text)] = bad(found(place, handlers=handlers))
    assert its is level
    assert says in text


def test_something_wrong_is_exit_1_and_remarks_are_not(place: Path) -> None:
    needs_mongrel2()
    path = write(place, [SERVER], [HANDLER], {})
    assert doctor("--mongrel2", path).exit_code == 0
    (place / "log").rmdir()
    result = doctor("--mongrel2", path)
    assert result.exit_code == 1
    assert "wrong   there is no directory log, where the server writes: mkdir -m 700 log\n" in result.stdout


def test_reading_changes_nothing(place: Path) -> None:
    path = Path(write(place, [SERVER], [HANDLER], GOOD))
    before = path.read_bytes()
    doctor("--mongrel2", str(path))
    assert path.read_bytes() == before
    assert os.listdir(place / "run") == ["config.sqlite"]


def test_what_is_no_configuration_is_one_line_and_exit_2(place: Path) -> None:
    (place / "text").write_text("no database\n" * 100)
    result = doctor("--mongrel2", "text")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("butler-mesh doctor: text is no database of 'm2sh load': ")
    (place / "empty").touch()
    assert "no such table" in doctor("--mongrel2", "empty").stderr
    assert "has no server" in doctor("--mongrel2", write(place, [], [], {})).stderr
    assert doctor("--mongrel2", "missing").exit_code == 2


def test_the_demos_configuration_is_well_by_its_own_measure(place: Path) -> None:
    needs_mongrel2()
    subprocess.run(
        ["m2sh", "load", "-config", str(ROOT / "demos" / "mongrel2.conf"), "-db", "run/config.sqlite"],
        env={**os.environ, "LOGNAME": "mesh"},
        check=True,
        capture_output=True,
        timeout=30,
    )
    configuration = Configuration.read(place / "run" / "config.sqlite")
    assert bad(list(check_configuration(configuration))) == []
