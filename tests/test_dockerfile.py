"""The router's image: what the Dockerfile names exists, and where there is an engine, it is built and run."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import click
import pytest

from butler_mesh import Client, Service
from butler_mesh.cli.main import main
from tests.processes.parties import free_port
from tests.programs import ROOT, mesh, run
from tests.waiting import wait_for

BUILD_S = 900.0


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions: their word and what follows it."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def value(word: str) -> str:
    """Return what follows the one instruction of this word."""
    (rest,) = (rest for own, rest in instructions() if own == word)
    return rest


def copied() -> list[tuple[list[str], str]]:
    """Return (sources, destination) of each COPY that takes from the tree."""
    words = [shlex.split(rest) for word, rest in instructions() if word == "COPY"]
    return [(each[:-1], each[-1]) for each in words if not each[0].startswith("--from")]


def environment() -> dict[str, str]:
    """Return the variables that the image sets."""
    pairs = (pair for word, rest in instructions() if word == "ENV" for pair in shlex.split(rest))
    return dict(pair.split("=", 1) for pair in pairs)


def health_check() -> list[str]:
    """Return the health check's command."""
    words: list[str] = json.loads(value("HEALTHCHECK").partition(" CMD ")[2])
    return words


def is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the tree from the build: the last line that fits decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip().removeprefix("!").removeprefix("**/")
        if pattern and not pattern.startswith("#"):
            starts = Path(path).parts if line.startswith("**/") else Path(path).parts[:1]
            if any(fnmatch(start, pattern) for start in starts):
                ignored = not line.startswith("!")
    return ignored


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    sources = [source for sources, _ in copied() for source in sources]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists() or is_ignored(source)] == []


def test_what_is_ignored_is_all_that_the_image_does_not_need() -> None:
    sources = {source for sources, _ in copied() for source in sources}
    assert {path.name for path in ROOT.iterdir() if not is_ignored(path.name)} == sources
    assert is_ignored("butler_mesh/__pycache__/errors.cpython-311.pyc")
    assert not is_ignored("butler_mesh/protocol/mesh.py")


def test_what_is_taken_from_another_stage_was_made_there() -> None:
    stages: set[str] = set()
    for word, rest in instructions():
        if word == "FROM":
            stages |= {rest.split()[-1]} if " AS " in rest else set()
        elif word == "COPY" and rest.startswith("--from="):
            stage, source, _ = rest.removeprefix("--from=").split()
            assert stage in stages
            assert any(word == "RUN" and source in rest for word, rest in instructions())


def test_what_is_copied_is_enough_for_setup_and_setup_makes_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sources, destination in copied():
        assert destination.startswith("/src/")
        for source in sources:
            target = tmp_path / destination.removeprefix("/src/")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target)
            else:
                shutil.copy(ROOT / source, target)
    told: dict[str, Any] = {}
    setuptools = SimpleNamespace(setup=lambda **options: told.update(options), find_packages=lambda **_: [])
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)
    runpy.run_path(str(tmp_path / "setup.py"))
    scripts = dict(re.split(r"\s*=\s*", script) for script in told["entry_points"]["console_scripts"])
    assert (tmp_path / "butler_mesh" / "cli" / "main.py").exists()
    for command in (json.loads(value("ENTRYPOINT")), health_check()):
        module, _, name = scripts[command[0]].partition(":")
        assert getattr(import_module(module), name) is main
        assert command[1] in main.commands


def test_the_router_command_knows_the_variables_and_listens_at_the_exposed_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program, name, *arguments = json.loads(value("ENTRYPOINT"))
    assert program == "butler-mesh"
    router = main.commands[name]
    own = {name: value for name, value in environment().items() if name.startswith("BUTLER_MESH_")}
    assert own.keys() <= {option.envvar for option in router.params if isinstance(option, click.Option)}
    for variable in os.environ.keys() - own.keys():
        if variable.startswith("BUTLER_MESH_"):
            monkeypatch.delenv(variable)
    for variable, text in own.items():
        monkeypatch.setenv(variable, text)
    with router.make_context(name, arguments) as context:
        front, back = context.params["frontends"], context.params["backends"]
    assert (front, back) == (("tcp://0.0.0.0:5555",), ("tcp://0.0.0.0:5556",))
    assert value("EXPOSE").split() == ["5555", "5556"]


def test_it_runs_as_nobody_and_is_stopped_by_the_signal_that_drains() -> None:
    user, _, group = value("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert value("STOPSIGNAL") == "SIGTERM"


@pytest.mark.slow
def test_the_health_check_is_0_where_there_is_a_router_and_1_where_there_is_none() -> None:
    front, back = f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}"
    program, *arguments = health_check()
    assert program == "butler-mesh"
    assert arguments[1].startswith("tcp://127.0.0.1:5555/")
    arguments = [word.replace("tcp://127.0.0.1:5555", front) for word in arguments]
    assert run("-m", "butler_mesh", *arguments)[0] == 1
    # What the command takes must fit into what the engine gives it.
    given_s = int(re.search(r"--timeout=(\d+)s", value("HEALTHCHECK"))[1])  # type: ignore[index]
    assert float(arguments[arguments.index("--timeout") + 1]) < given_s
    with mesh("router", env={"BUTLER_MESH_FRONTEND": front, "BUTLER_MESH_BACKEND": back}) as router:
        router.says(f"listening on {back}")
        code, out, _ = run("-m", "butler_mesh", *arguments)
        assert (code, json.loads(out)["services"]) == (0, {})


# --- where there is an engine ---------------------------------------------------------------------


def docker(*arguments: str, timeout_s: float = 60.0) -> str:
    """Run docker; return what it prints."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout_s, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The image, built. Skips without an engine, in CI too: an engine is not a package to be installed."""
    if shutil.which("docker") is None:
        pytest.skip("needs docker")
    try:
        info = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("needs docker's engine: docker info does not return")
    if info.returncode != 0:
        pytest.skip(
            f"needs docker's engine: {(info.stderr.strip().splitlines() or ['docker info fails'])[-1]}"
        )
    tag = f"butler-mesh-router-test:{uuid4().hex}"
    docker("build", "--tag", tag, ".", timeout_s=BUILD_S)
    yield tag
    docker("rmi", "--force", tag)


@pytest.fixture
def container(image: str) -> Iterator[str]:
    """The image, running, its ports published on loopback."""
    ports = ("--publish", "127.0.0.1::5555", "--publish", "127.0.0.1::5556")
    found = docker("run", "--detach", "--read-only", "--cap-drop=ALL", *ports, image)
    yield found
    logs = subprocess.run(["docker", "logs", found], capture_output=True, text=True, timeout=60)
    sys.stdout.write(logs.stdout + logs.stderr)
    docker("rm", "--force", found)


@pytest.mark.slow
def test_the_image_runs_a_router_that_serves_is_healthy_and_stops_in_order(container: str) -> None:
    front, back = (f"tcp://{docker('port', container, f'{port}/tcp').split()[0]}" for port in (5555, 5556))
    service = Service(back, "svc", grace=0.05)
    service.register_function(lambda text: text, "echo")
    with service, Client(front, timeout=20) as client:
        assert service.wait_until_registered(20)
        assert client.request("svc", "/echo", {"text": "hello"}).body == "hello"
    wait_for(lambda: docker("inspect", "--format={{.State.Health.Status}}", container) == "healthy", 60)
    docker("stop", "-t", "35", container)
    assert docker("inspect", "--format={{.State.ExitCode}}", container) == "0"
