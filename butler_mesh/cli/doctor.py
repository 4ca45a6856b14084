"""``butler-mesh doctor``: what is there, what is missing, and what to do about it; a line for each."""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module, metadata
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from butler_mesh.cli.terminal import Refusal
from butler_mesh.errors import UsageError

PYTHON = (3, 11)
NEEDED = {  # what setup.py requires
    "gevent": "24.2",
    "pyzmq": "26",
    "ujson": "5.10",
    "jinja2": "3.1",
    "werkzeug": "3.0",
    "itsdangerous": "2.1",
    "click": "8.1",
    "rich": "13",
}
OPTIONAL = {
    "orjson": ("3.10", "JSON in less time, with BUTLER_MESH_CODEC=orjson"),
    "pika": ("1.4,<2", "amqp:// addresses, which are RabbitMQ's"),
    "defusedxml": ("0.7", "py-servicebus's XML, with wire='xml'"),
    "flask": ("3", "butler_mesh.web.flask"),
    "gunicorn": ("22", "several processes for Flask or an application's pages (needs packaging, too)"),
}
MODULES = {"pyzmq": "zmq"}  # what is imported under another name
PORTS = {
    5555: "a router's front end",
    5556: "a router's back end",
    5558: "a sink",
    6767: "web pages",
}
FILES = 4096
"""A router has a descriptor for each connection; the usual soft limit of 1024 is there for select()."""
HOW_MONGREL2 = "'apt install mongrel2-core' (Debian 12, Ubuntu 24.04) or 'brew install mongrel2'"
MONGREL2 = "Mongrel2/1.12"
"""The version that we test with; there is only one later, 1.13."""
M2SH_S = 5.0  # it says its version in milliseconds

# Mongrel2's own defaults, where the configuration has no such setting.
DEFAULTS = {
    "server.daemonize": "1",
    "limits.min_ping": "120",
    "limits.buffer_size": "4096",
    "limits.content_length": "20480",
    "upload.temp_store": "",
    "download.flow_control": "0",
}
BUFFER_BYTES = 16384
HEAVY_BODY_BYTES = 16 * 1024 * 1024


class Level(Enum):
    """How bad it is."""

    GOOD = "ok"
    REMARK = "remark"
    WRONG = "wrong"


COLOURS = {Level.GOOD: "green", Level.REMARK: "yellow", Level.WRONG: "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was found, why it matters, what to do."""

    level: Level
    text: str


Findings = Iterator[Finding]


def good(text: str) -> Finding:
    """Return what is as it should be."""
    return Finding(Level.GOOD, text)


def remark(text: str) -> Finding:
    """Return what somebody may want to change."""
    return Finding(Level.REMARK, text)


def wrong(text: str) -> Finding:
    """Return what has to be changed."""
    return Finding(Level.WRONG, text)


@click.command(short_help="Tell what is missing, and how to get it.")
@click.option(
    "--mongrel2",
    "database",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="DATABASE",
    help="Check this configuration of Mongrel2, too, which 'm2sh load' made.",
)
def doctor(database: Path | None) -> None:
    """Tell what is there, what is missing, and how to install it, a line for each.

    With --mongrel2 it checks a configuration as well; paths in there are taken from the current
    directory, as Mongrel2 takes them: run it where the server is started. Exit status: 0 when all that is
    needed is there (remarks are for you to judge), 1 when something is missing or wrong.

    \b
    Examples:
      butler-mesh doctor
      butler-mesh doctor --mongrel2 run/config.sqlite
    """
    configuration = None if database is None else Configuration.read(database)
    found: Counter[Level] = Counter()
    for finding in examine(configuration):
        found[finding.level] += 1
        click.secho(f"{finding.level.value:<6}", fg=COLOURS[finding.level], nl=False)
        click.echo(f"  {finding.text}")
    click.echo(f"{found[Level.WRONG]} wrong, {_plural(found[Level.REMARK], 'remark')}")
    sys.exit(1 if found[Level.WRONG] else 0)


def examine(configuration: Configuration | None) -> Findings:
    """Look at everything, at a configuration of Mongrel2 last."""
    yield from check_python()
    yield from check_packages()
    yield from check_mongrel2(is_needed=configuration is not None)
    yield check_rabbitmq()
    yield from check_files()
    for port, use in PORTS.items():
        yield check_port(port, use)
    if configuration is not None:
        yield from check_configuration(configuration)


# --- what is installed ------------------------------------------------------------------------


def check_python() -> Findings:
    """Look at the interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON:  # it may have been run from a checkout, past pip
        yield wrong(f"Python {version} is older than {_dotted(PYTHON)}, which this package needs")
    else:
        yield good(f"Python {version}")


def check_packages() -> Findings:
    """Look at the libraries: those that are needed, then those that may be there."""
    for name, oldest in NEEDED.items():
        problem = package_problem(name, oldest)
        if problem:
            yield wrong(f"{problem}; the mesh does not run without it: pip install '{name}>={oldest}'")
        else:
            libzmq = f", libzmq {import_module('zmq').zmq_version()}" if name == "pyzmq" else ""
            yield good(f"{name} {metadata.version(name)}{libzmq}")
    for name, (oldest, use) in OPTIONAL.items():
        problem = package_problem(name, oldest)
        if not problem:
            yield good(f"{name} {metadata.version(name)}")
        elif name == os.environ.get("BUTLER_MESH_CODEC"):
            yield wrong(f"{problem}, and BUTLER_MESH_CODEC names it: pip install '{name}>={oldest}'")
        else:
            yield remark(f"{problem}; it is for {use}: pip install '{name}>={oldest}'")


def package_problem(name: str, oldest: str) -> str:
    """Return why a library cannot be used; '' if it can."""
    try:
        version = metadata.version(name)
        if _numbers(version) < _numbers(oldest):
            return f"{name} {version} is older than {oldest.partition(',')[0]}"
        import_module(MODULES.get(name, name))
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    except Exception as error:  # whatever a broken library raises
        return f"{name} is installed and cannot be imported ({_one_line(error)})"
    return ""


def check_mongrel2(*, is_needed: bool) -> Findings:
    """Look for the server and its tool: needed by those who have a configuration."""
    missing = [program for program in ("mongrel2", "m2sh") if shutil.which(program) is None]
    if missing:
        text = f"{' and '.join(missing)} not on PATH; Mongrel2Connection needs a Mongrel2: {HOW_MONGREL2}"
        yield wrong(text) if is_needed else remark(text)
        return
    try:
        said = subprocess.run(
            ["m2sh", "version"],
            env={**os.environ, "LOGNAME": os.environ.get("LOGNAME", "mesh")},  # or it asks for a terminal
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=M2SH_S,
        )
        version = said.stdout.decode(errors="replace").strip() or "it says nothing"
    except (OSError, subprocess.SubprocessError) as error:
        version = _one_line(error)
    if f"{version}.".startswith(f"{MONGREL2}."):
        yield good(f"{version} (mongrel2, m2sh)")
    else:
        yield remark(f"m2sh's version is not {MONGREL2}, which we test with, but: {version}; try your pages")


def check_rabbitmq() -> Finding:
    """Look for a RabbitMQ that could be run here: brokers elsewhere are nobody's business."""
    what = "'butler-mesh rabbitmq' and 'make demo ENGINE=rabbitmq' run nodes of their own"
    try:
        from butler_mesh.operations.rabbitmq import check_programs

        return good(f"rabbitmq-server in {check_programs()}: {what}")
    except ImportError:
        return remark("whether there is a rabbitmq-server can be told when the libraries are there")
    except UsageError as error:
        return remark(f"{error}; with it {what}")


# --- what the machine grants ------------------------------------------------------------------


def check_files() -> Findings:
    """Look at how many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"open files: {_limit(soft)}, up to {_limit(hard)}"
    if _is_less(hard, FILES):
        yield remark(f"{text}: each connection takes one, so a router has few: raise the hard limit")
    elif _is_less(soft, FILES):
        yield remark(
            f"{text}: 'butler-mesh router' takes what it may; others with many connections need "
            "'ulimit -n 65536', or LimitNOFILE=65536 in their unit"
        )
    else:
        yield good(text)


def check_port(port: int, use: str) -> Finding:
    """See whether a default port of loopback is free."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        return remark(f"port {port} ({use}): {reason}; unless that is your mesh already, take another one")
    return good(f"port {port} ({use}) is free")


# --- a configuration of Mongrel2 --------------------------------------------------------------


@dataclass(slots=True)
class Configuration:
    """What ``m2sh load`` has put into a database: rows by column, settings as text."""

    servers: list[dict[str, Any]]
    handlers: list[dict[str, Any]]
    settings: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, database: Path) -> Configuration:
        """Read a database; raises Refusal where it is none of m2sh's."""
        try:
            with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
                connection.row_factory = sqlite3.Row
                servers, handlers, settings = (
                    [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY id")]
                    for table in ("server", "handler", "setting")
                )
        except sqlite3.Error as error:
            raise Refusal(f"{database} is no database of 'm2sh load': {error}") from error
        if not servers:
            raise Refusal(f"{database} has no server: 'm2sh load -config FILE -db {database}' fills it")
        return cls(servers, handlers, {str(row["key"]): str(row["value"]) for row in settings})


def check_configuration(configuration: Configuration) -> Findings:
    """Look at a configuration."""
    for server in configuration.servers:
        yield from check_server(server, configuration.settings)
    yield from check_handlers(configuration.handlers)
    yield from check_settings(configuration.settings)


def check_server(server: dict[str, Any], settings: dict[str, str]) -> Findings:
    """Look at where a server listens, and at the directories that it needs."""
    name = server["name"] or server["uuid"]
    address, port, chroot = server["bind_addr"], server["port"], server["chroot"] or ""
    if _is_loopback(address):
        yield good(f"server {name} listens on {address}:{port}, which is loopback")
    else:
        yield remark(
            f"server {name} listens on {address}:{port}, which other machines reach; unless they should, "
            "set bind_addr='127.0.0.1'"
        )
    control = server["control_port"] or "ipc://run/control"
    if control.startswith("ipc://"):
        yield good(f"control_port {control}")
    else:
        yield wrong(
            f"control_port {control}: whoever connects can stop the server; set it to ipc://run/control"
        )
    if server["use_ssl"]:
        yield remark(f"server {name} speaks TLS 1.2 at most; a proxy in front of it speaks 1.3")
    paths = [server[key] for key in ("pid_file", "access_log", "error_log")]
    if control.startswith("ipc://"):
        paths.append(control.removeprefix("ipc://"))
    for directory in sorted({_seen(chroot, path).parent for path in paths if path}):
        if not directory.is_dir():
            yield wrong(
                f"there is no directory {directory}, where the server writes: mkdir -m 700 {directory}"
            )
    yield from check_store(chroot, settings)


def check_store(chroot: str, settings: dict[str, str]) -> Findings:
    """Look at where a server puts large bodies."""
    limit, template = _setting(settings, "limits.content_length"), _setting(settings, "upload.temp_store")
    if not template:
        yield remark(
            f"no upload.temp_store: bodies over limits.content_length ({limit} bytes), and chunked ones, are "
            "413; to take them set it to 'tmp/upload.XXXXXX'"
        )
        return
    store = _seen(chroot, template).parent
    if not template.endswith("XXXXXX"):
        yield wrong(f"upload.temp_store {template} has to end in XXXXXX, which becomes each file's name")
    elif not store.is_dir():
        yield wrong(f"there is no directory {store} for uploads: mkdir -m 700 {store}")
    else:
        inside = f" (inside the chroot {chroot})" if chroot else ""
        yield good(f"uploads go to {store}{inside}: Mongrel2Connection(…, upload_store='{store.absolute()}')")


def check_handlers(handlers: list[dict[str, Any]]) -> Findings:
    """Look at the ways to our processes."""
    if not handlers:
        yield wrong("no Handler: the server has no way to our processes")
    for spec, number in Counter(one["send_spec"] for one in handlers).items():
        if number > 1:
            yield wrong(f"{number} Handlers have send_spec {spec}: only one can listen, give each its own")
    for one in handlers:
        spec, sender, wanted = one["send_spec"], one["send_ident"], one["recv_ident"] or ""
        if not sender.startswith(wanted):
            yield wrong(f"Handler {spec}: recv_ident {wanted!r} keeps all replies out; set it to ''")
        if one["protocol"] != "tnetstring":
            yield remark(
                f"Handler {spec}: protocol {one['protocol']!r} copies headers into JSON as they come, which "
                "odd ones break; set protocol='tnetstring'"
            )
        else:
            yield good(f"Handler {spec}: tnetstring; let only one process connect")


def check_settings(settings: dict[str, str]) -> Findings:
    """Look at what holds for all servers of a configuration."""
    for key, best, why in (
        ("server.daemonize", "0", "it leaves whoever started it, who then cannot stop it"),
        ("download.flow_control", "1", "a browser that reads slowly is cut off a streamed page"),
        ("limits.min_ping", "0", "a connection that is quiet for so many seconds is cut, slow replies too"),
    ):
        value = _setting(settings, key)
        if value == best:
            yield good(f"{key} {value}")
        else:
            yield remark(f"{key} is {value}: {why}; set it to {best}")
    buffer, limit = _setting(settings, "limits.buffer_size"), _setting(settings, "limits.content_length")
    if not buffer.isdigit() or int(buffer) < BUFFER_BYTES:
        yield remark(f"limits.buffer_size is {buffer}: larger headers are 400; set it to {BUFFER_BYTES}")
    else:
        yield good(f"limits.buffer_size {buffer}")
    if not limit.isdigit():
        yield wrong(f"limits.content_length is {limit}, which is no number of bytes")
    elif int(limit) > HEAVY_BODY_BYTES:
        yield remark(
            f"limits.content_length is {limit}: the server holds so much for each connection; "
            "larger bodies do better as files (upload.temp_store)"
        )
    else:
        yield good(f"limits.content_length {limit}")


# --- within -----------------------------------------------------------------------------------


def _setting(settings: dict[str, str], key: str) -> str:
    return settings.get(key, DEFAULTS[key])


def _seen(chroot: str, path: str) -> Path:
    """Return a path of Mongrel2's as we see it from the directory where it is started."""
    return Path(chroot, path.lstrip("/")) if chroot else Path(path)


def _is_loopback(address: str) -> bool:
    try:
        return address == "localhost" or ip_address(address).is_loopback
    except ValueError:
        return False


def _is_less(limit: int, number: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < number


def _limit(number: int) -> str:
    return "unlimited" if number == resource.RLIM_INFINITY else str(number)


def _numbers(version: str) -> tuple[int, ...]:
    """Return what a version begins with: enough to tell whether it is too old."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _plural(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
