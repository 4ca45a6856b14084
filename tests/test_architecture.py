"""The house: every module has its floor, imports only from lower ones, is of a size, and has its test."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "butler_mesh"

# A module imports only from lower floors. Decimals are landings: files of one room that build on each
# other. A package stands for those of its modules that are not listed themselves; sub-packages'
# __init__ files are empty and need no floor. Where a new module goes: as low as its imports allow.
FLOORS: dict[str, float] = {
    # 0: words that everything shares
    "errors": 0,
    "status": 0,
    "clock": 0,
    "counters": 0,
    "signing": 0,
    "codec": 0.1,
    "environment": 0.1,
    # 1 and 2: pure, without sockets and clocks
    "protocol.liveness": 1,
    "protocol.queues": 1,
    "protocol.wheel": 1,
    "protocol.mesh": 1,
    "protocol.mongrel2": 1,
    "protocol.limits": 1.1,
    "protocol.mdp": 1.1,
    "protocol.outbox": 1.1,
    "protocol.peers": 1.2,
    "protocol.member": 1.2,
    "protocol.directory": 1.3,
    "protocol.heartbeats": 1.3,
    "protocol.dispatcher": 1.31,
    "protocol.management": 1.4,
    "protocol.majordomo": 1.4,
    "protocol.router": 2,
    "protocol.instance": 2,
    "protocol.client": 2,
    "protocol.sink": 2,
    "messages": 2,
    "routing": 2,
    "deadlines": 2,
    "tracing": 2,
    "addresses": 2,
    "sealing": 2.1,
    # 3 to 6: sockets
    "connections.base": 3,
    "connections.pump": 4,
    "connections.control": 4,
    "connections.workers": 4,
    "connections.pipes": 4.1,
    "connections.sockets": 4.1,
    "connections.node": 4.2,
    "connections.gathering": 4,
    "connections.engine": 4.2,
    "connections.amqp.cancelled": 4,
    "connections.amqp.clocks": 4,
    "connections.amqp.owners": 4,
    "connections.amqp.loop": 4.1,
    "connections.amqp.messages": 4.1,
    "connections.amqp.queues": 4.1,
    "connections.amqp.call": 4.2,
    "connections.amqp.connection": 4.2,
    "connections.amqp.confirming": 4.3,
    "connections.amqp.delivery": 4.3,
    "connections.amqp.link": 4.3,
    "connections.amqp.waiting": 4.3,
    "connections.amqp.client": 4.4,
    "connections.amqp.dead": 4.4,
    "connections.amqp.kept": 4.4,
    "connections.amqp.foreign_caller": 4.5,
    "connections.amqp.foreign_reader": 4.5,
    "connections.amqp.foreign": 4.6,
    "connections.amqp.consumers": 4.4,
    "connections.amqp.overflow": 4.4,
    "connections.amqp.retries": 4.4,
    "connections.amqp.instance": 4.5,
    "connections.several": 4,
    "connections.memory": 5,
    "connections.zeromq": 5,
    "connections.rabbitmq": 5,
    "connections.sealed": 5,
    "connections.registry": 6,
    # 7 to 9: what users hold in their hands
    "calls": 6.1,
    "lifetime": 6.1,
    "resources": 6.1,
    "rpc": 6.1,
    "replies": 6.1,
    "management": 6.9,
    "handlers": 7,
    "router": 7,
    "client": 7.1,
    "service_client": 8,
    "sink": 8,
    "application": 9,
    "service": 9.1,
    "service_connection": 9.1,
    # 10: rooms that the core does without
    "web": 10,
    "web.request": 10,
    "web.cookies": 10,
    "web.exchange": 10,
    "web.browser": 10.2,
    "web.fields": 9.9,
    "web.forms": 9.9,
    "web.handover": 9.9,
    "web.outlet": 10,
    "web.scope": 10,
    "web.server": 10,
    "web.streaming": 10,
    "web.uploads": 10,
    "web.handlers": 10.1,
    "web.templating": 10.2,
    "web.wsgi": 10.3,
    "web.flask": 10.4,
    "web.mongrel2": 10.4,
    "web.forwarding": 10.05,
    "web.direct": 10.2,
    "security": 10,
    "operations": 10,
    # 11 and up: faces
    # Faces stand on the public names, which are one floor below them.
    "__init__": 10.9,
    "compat": 11,
    "compat.arpc.operations": 11,
    "compat.arpc.server": 11.1,
    "compat.arpc.caller": 11.1,
    "compat.arpc.msg_sender": 11.2,
    "compat.arpc.mq": 11.2,
    "compat.majortomo.error": 11,
    "compat.majortomo.client": 11.1,
    "compat.majortomo.worker": 11.1,
    "compat.majortomo.mock": 11.2,
    "compat.majortomo.broker": 11.2,
    "compat.majortomo.echo": 11.2,
    "compat.servicebus.event": 11,
    "compat.servicebus.xml_wire": 11.2,
    "compat.servicebus.routes": 11.3,
    "compat.servicebus.old_peers": 11.4,
    "compat.servicebus.sender": 11.4,
    "compat.servicebus.request": 11.5,
    "compat.servicebus.runner": 11.6,
    "compat.servicebus.node": 11.6,
    "compat.servicebus.service": 11.7,
    "testing": 11,
    "cli.terminal": 11,
    "cli": 11.1,
    "cli.main": 11.2,
    "__main__": 12,
}

# Pure code gets time, chance and bytes as parameters.
IMPURE = {"socket", "time", "threading", "random", "secrets", "os", "logging", "gevent", "zmq"}

LONGEST_MODULE = 500  # lines
LONGEST_FACE = 200  # lines of a file in compat/: a face that is longer does the core's work

PUBLIC = {"__init__", "errors", "status"}
"""What faces may import of the package: what everybody may."""

WITHOUT_TEST = {
    "__init__": "the public names; test_architecture loads them",
    "__main__": "one call; tests/cli runs it as a process",
    "clock": "a type and a name, nothing that could go wrong",
    "connections.base": "abstract: tests/connections/contract.py tests every engine against it",
}


def _name(path: Path) -> str:
    """Return a module's dotted name below butler_mesh; ``__init__`` for the root itself."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name if name == "__init__" else name.removesuffix(".__init__")


FILES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = {name for name, path in FILES.items() if path.name == "__init__.py" and name != "__init__"}
MODULES = sorted(FILES.keys() - PACKAGES)


def _is_face(module: str) -> bool:
    return module.split(".")[0] == "compat"


every_module = pytest.mark.parametrize("module", MODULES)


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_bytes())


@cache
def _imported(module: str) -> frozenset[str]:
    """Return all names a module imports, at any depth, also for type checking, as ``module.name``."""
    names: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} line {node.lineno}: imports are absolute"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def _own_imports(module: str) -> set[str]:
    """Return the modules of this package that ``module`` imports; ``__init__`` means the root."""
    found: set[str] = set()
    for name in _imported(module):
        first, _, inner = name.partition(".")
        if first == "butler_mesh":
            parent = inner.rpartition(".")[0]
            found.add(inner if inner in FILES else parent or "__init__")
    return found


def _floor(module: str) -> float | None:
    if module in FLOORS:
        return FLOORS[module]
    package = module.rpartition(".")[0]
    return _floor(package) if package else None


@every_module
def test_a_module_has_its_floor(module: str) -> None:
    assert _floor(module) is not None, f"give {module} a floor in FLOORS"


@every_module
def test_a_module_imports_only_from_lower_floors(module: str) -> None:
    floor = _floor(module)
    imports = {name: _floor(name) for name in _own_imports(module)}
    too_high = {name: its for name, its in imports.items() if its is None or floor is None or its >= floor}
    assert not too_high, f"{module} is on floor {floor}"


@every_module
def test_a_module_imports_names_from_where_they_are_defined(module: str) -> None:
    own = _own_imports(module)
    assert not own & (PACKAGES if _is_face(module) else PACKAGES | {"__init__"})


@pytest.mark.parametrize("module", [name for name in MODULES if _is_face(name)])
def test_a_face_is_thin_and_stands_on_the_public_names_alone(module: str) -> None:
    within = {name for name in _own_imports(module) if not _is_face(name)}
    assert within <= PUBLIC
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST_FACE


@pytest.mark.parametrize("module", [name for name in MODULES if not _is_face(name)])
def test_nothing_stands_on_a_face(module: str) -> None:
    assert not {name for name in _own_imports(module) if _is_face(name)}


@pytest.mark.parametrize("package", sorted(PACKAGES - {"compat.majortomo"}))
def test_a_sub_package_re_exports_nothing(package: str) -> None:
    # But majortomo's face, which is a package because majortomo is one.
    tree = _tree(package)
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1, f"{package}/__init__.py holds its docstring only"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("protocol.")])
def test_the_protocol_is_pure(module: str) -> None:
    assert not {name.partition(".")[0] for name in _imported(module)} & IMPURE


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({module: _own_imports(module) for module in MODULES}).prepare()


@every_module
def test_a_module_is_short_enough_to_be_read(module: str) -> None:
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE


@pytest.mark.parametrize("module", [name for name in MODULES if name not in WITHOUT_TEST])
def test_a_module_has_its_test_file(module: str) -> None:
    *packages, name = module.split(".")
    assert ROOT.joinpath("tests", *packages, f"test_{name}.py").exists()


@pytest.mark.slow
def test_client_and_service_load_no_library_that_they_do_not_use() -> None:
    program = (
        "import sys, butler_mesh; butler_mesh.Client, butler_mesh.Service; print(*sys.modules, sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.splitlines())
    assert "butler_mesh.client" in loaded
    assert not loaded & {"werkzeug", "jinja2", "click", "rich", "prometheus_client"}
