"""``butler-mesh serve`` as a process: what it runs, and what it says of what it cannot."""

from __future__ import annotations

import signal
from pathlib import Path
from textwrap import dedent

import pytest

from butler_mesh.cli.serve import serve
from tests.meshes import Mesh
from tests.programs import mesh as command
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

MODULE = """
    import os, socket, sys, time
    import gevent
    from gevent import monkey
    from butler_mesh import Application, Router, Service, ServiceConnection, ServiceMessageHandler

    PATCHED_AT_IMPORT = monkey.is_module_patched("socket") and monkey.is_module_patched("threading")
    ENDPOINT = os.environ["ENDPOINT"]

    service = Service(ENDPOINT, "svc", grace=5)

    @service.function
    def patched():
        return PATCHED_AT_IMPORT

    @service.function
    def nap(seconds):
        time.sleep(seconds)  # lets other requests go on: patched
        return "rested"

    class Holder:
        inner = service

    holder = Holder()

    class Hello(ServiceMessageHandler):
        def request(self):
            return "hello"

    application = Application(ServiceConnection(ENDPOINT, "app"), [("^/hello$", Hello)])
    number = 7
    router = Router()
    ghost = Service("tcp://no-such-host.invalid.:1", "ghost")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with modules, as a user's."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    for path in ("images.py", "shop/web.py"):
        (tmp_path / path).write_text(dedent(MODULE))
    (tmp_path / "broken.py").write_text("raise ValueError('at import')\n")
    (tmp_path / "needy.py").write_text("import no_such_dependency\n")
    (tmp_path / "images_bind.py").write_text(
        "import os\nfrom butler_mesh import *\n"
        "class Taken:\n"
        "    def start(self, application): Router().bind(os.environ['ENDPOINT'])\n"
        "    def close(self, grace_s): pass\n"
        "application = Application(Taken())\n"
    )
    return tmp_path


@pytest.mark.parametrize("target", ["images:service", "shop.web:service", "images:holder.inner"])
def test_a_service_runs_patched_and_ends_with_0_at_SIGTERM(mesh: Mesh, project: Path, target: str) -> None:
    with command("serve", target, cwd=project, env={"ENDPOINT": mesh.endpoint}) as program:
        wait_for(lambda: "svc" in mesh.router.status()["services"] or program.process.poll(), 20.0)
        assert mesh.client().rpc("svc").patched() is True, program.stderr
        program.send(signal.SIGTERM)
        assert program.ends() == 0
        assert program.stdout == b""
        assert "Traceback" not in program.stderr
        assert "Warning" not in program.stderr


def test_an_application_runs(mesh: Mesh, project: Path) -> None:
    with command("serve", "images:application", cwd=project, env={"ENDPOINT": mesh.endpoint}) as program:
        wait_for(lambda: "app" in mesh.router.status()["services"] or program.process.poll(), 20.0)
        assert mesh.client().request("app", "/hello").body == "hello"
        program.send(signal.SIGINT)
        assert program.ends() == 0


def test_what_blocks_elsewhere_lets_others_go_on_and_SIGTERM_waits_for_it(mesh: Mesh, project: Path) -> None:
    with command("serve", "images:service", cwd=project, env={"ENDPOINT": mesh.endpoint}) as program:
        wait_for(lambda: "svc" in mesh.router.status()["services"] or program.process.poll(), 20.0)
        client = mesh.client()
        naps = [client.request_lazy("svc", "/nap", {"seconds": 0.5}) for _ in range(2)]
        assert client.rpc("svc").patched() is True
        assert not any(nap.is_ready() for nap in naps)
        program.send(signal.SIGTERM)
        assert [nap.get(10.0).body for nap in naps] == ["rested", "rested"]
        assert program.ends() == 0


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("images", "MODULE:OBJECT"),
        ("images:", "MODULE:OBJECT"),
        (":service", "MODULE:OBJECT"),
        ("missing:service", "no module 'missing'"),
        ("shop.missing:service", "no module 'shop.missing'"),
        ("missing.deep:service", "no module 'missing'"),
        ("images.service:x", "'images.service'"),
        (".images:service", "relative"),
        ("images:nothing", "'images' has no 'nothing'"),
        ("images:holder.nothing", "'images.holder' has no 'nothing'"),
        ("images:number", "images:number is of type int; a Service or Application is needed"),
        ("images:Hello", "the class Hello; a Service or Application is needed"),
        ("images:router", "of type Router; a Service or Application is needed"),
        ("images:patched", "of type function; a Service or Application is needed"),
        ("images_bind:application", "is in use"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_2(
    mesh: Mesh, project: Path, target: str, says: str
) -> None:
    with command("serve", target, cwd=project, env={"ENDPOINT": mesh.endpoint}) as program:
        assert program.ends() == 2
        [line] = program.stderr.splitlines()
        assert line.startswith("butler-mesh serve: ")
        assert says in line


@pytest.mark.parametrize(
    ("target", "says"), [("broken:service", "ValueError: at import"), ("needy:service", "no_such_dependency")]
)
def test_a_fault_in_the_module_shows_its_traceback(project: Path, target: str, says: str) -> None:
    with command("serve", target, cwd=project) as program:
        assert program.ends() == 1
        assert "Traceback" in program.stderr
        assert says in program.stderr


def test_importing_the_command_patches_nothing() -> None:
    from gevent import monkey

    assert serve.name == "serve"
    assert not monkey.is_module_patched("socket")
