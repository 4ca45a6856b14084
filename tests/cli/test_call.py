"""``butler-mesh call``: what goes to stdout and stderr, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gevent
import pytest
from click.testing import CliRunner, Result

from butler_mesh.cli.main import main
from butler_mesh.connections import registry
from butler_mesh.errors import BadRequest
from butler_mesh.handlers import ServiceMessageHandler
from tests.meshes import Mesh
from tests.programs import mesh as command


@pytest.fixture
def address(mesh: Mesh) -> str:
    service = mesh.service()

    @service.function
    def echo(**kwargs: Any) -> Any:
        return kwargs

    @service.function
    def give(what: str) -> Any:
        return {
            "none": None,
            "text": "ü☃",
            "list": [1, [2]],
            "bytes": b"\x00\xff",
            "parts": [b"a", b"b"],
            "half": "\ud83d\ude00",
        }[what]

    @service.function
    def refuse() -> None:
        raise BadRequest("it is taken", status=409, body={"by": "me"})

    @service.function
    def broken() -> None:
        raise ValueError("why\nnot")

    @service.function
    def sleepy() -> None:
        gevent.sleep(60)

    return f"{mesh.endpoint}/svc"


def call(*arguments: str) -> Result:
    # In this process and its hub, where the router is.
    return CliRunner().invoke(main, ["call", *arguments], prog_name="butler-mesh")


def test_the_body_is_JSON_on_stdout_and_the_status_goes_to_stderr(address: str) -> None:
    result = call(address, "/echo", '{"name": "a.jpg", "n": [1, null]}')
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"name": "a.jpg", "n": [1, None]}
    assert result.stderr == "200 OK\n"


@pytest.mark.parametrize(
    ("what", "written"),
    [
        ("none", b"null\n"),
        ("text", '"ü☃"\n'.encode()),
        ("list", b"[1, [2]]\n"),
        ("bytes", b"\x00\xff"),
        ("parts", b"ab"),
    ],
)
def test_JSON_is_printed_and_bytes_are_written_as_they_are(address: str, what: str, written: bytes) -> None:
    result = call(address, "/give", json.dumps({"what": what}))
    assert (result.exit_code, result.stdout_bytes) == (0, written)


def test_without_arguments_there_are_none(address: str) -> None:
    assert call(address, "/echo").stdout == "{}\n"


@pytest.mark.parametrize(
    ("path", "exit_code", "stdout", "stderr"),
    [
        ("/refuse", 1, '{"by": "me"}\n', "409 it is taken\n"),
        ("/broken", 1, "", "500 ValueError: why\nnot\n"),
        ("/nothing", 1, "", "404 svc has no /nothing\n"),
        ("/give", 1, "", "422 /give: missing a required argument: 'what'\n"),
    ],
)
def test_any_other_status_is_exit_1(
    address: str, path: str, exit_code: int, stdout: str, stderr: str
) -> None:
    result = call(address, path)
    assert (result.exit_code, result.stdout, result.stderr) == (exit_code, stdout, stderr)


def test_the_method_is_the_callers_to_choose(mesh: Mesh) -> None:
    class Thing(ServiceMessageHandler):
        def put(self) -> Any:
            self.set_status(201, "made")
            return self.message.get_argument("x")

    mesh.application([("^/thing$", Thing)])
    result = call(f"{mesh.endpoint}/app", "/thing", '{"x": 5}', "--method", "put")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "5\n", "201 made\n")
    assert call(f"{mesh.endpoint}#app", "/thing", "--method", "get").stderr.startswith("405 ")


def test_the_timeout_is_the_callers_to_choose(address: str) -> None:
    result = call(address, "/sleepy", "--timeout", "0.05")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("504 ")


def test_an_address_without_a_service_is_routed_by_path(mesh: Mesh) -> None:
    def where() -> str:
        return "by path"

    mesh.service(where, name="")
    assert call(mesh.endpoint, "/where").stdout == '"by path"\n'


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/echo", "[1]"], "not a JSON object"),
        (["/echo", "7"], "not a JSON object"),
        (["/echo", "null"], "not a JSON object"),
        (["/echo", '"text"'], "not a JSON object"),
        (["/echo", "{"], "not JSON"),
        (["/echo", ""], "not JSON"),
        (["/echo", "{'a': 1}"], "not JSON"),
        (["/echo", '{"a": NaN}'], "not JSON"),
        (["/echo", '{"a": ' + "[" * 10_000 + "]" * 10_000 + "}"], "not JSON"),
        (["/echo", '{"a": "\udcff"}'], "not JSON"),
        (["/echo", '{"a": "\\ud800"}'], "JSON cannot hold"),
        (["echo"], "'echo' does not begin with '/'"),
        ([""], "does not begin with '/'"),
        (["/echo", "--timeout", "0"], "timeout"),
        (["/echo", "--timeout", "-1"], "timeout"),
        (["/echo", "--timeout", "soon"], "timeout"),
        (["/echo", "--timeout", "inf"], "timeout"),
        (["/echo", "--timeout", "nan"], "timeout"),
        (["/echo", "{}", "more"], "more"),
        ([], "PATH"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_usage_is_exit_2_and_nothing_is_sent(
    mesh: Mesh, address: str, arguments: list[str], says: str
) -> None:
    result = call(address, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert mesh.router.status()["services"]["svc"]["queued"] == 0


@pytest.mark.parametrize(
    "address", ["", "nonsense", "http://a:1", "tcp://127.0.0.1:99999/svc", "tcp://127.0.0.1/svc"]
)
def test_a_bad_address_is_one_line_and_exit_2(address: str) -> None:
    result = call(address, "/echo")
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("butler-mesh call: ")


def test_an_address_whose_engine_is_not_there_is_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry._ENGINES, "amqp")
    result = call("amqp://localhost/vhost/svc", "/echo")
    assert result.exit_code == 2
    assert "amqp" in result.stderr


def test_a_passphrase_comes_from_the_environment_or_a_file(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mesh.service(len, name="sealed", passphrase="secret")
    address = f"{mesh.endpoint}/sealed"
    assert call(address, "/len", '{"obj": []}').stderr.startswith("401 ")
    (tmp_path / "secret").write_text("secret\n")
    monkeypatch.setenv("BUTLER_MESH_PASSPHRASE_FILE", str(tmp_path / "secret"))
    assert call(address, "/", "--method", "options").exit_code == 0
    monkeypatch.setenv("BUTLER_MESH_PASSPHRASE", "secret")
    both = call(address, "/", "--method", "options")
    assert (both.exit_code, both.stderr.count("set one of the two")) == (2, 1)
    monkeypatch.delenv("BUTLER_MESH_PASSPHRASE_FILE")
    assert call(address, "/", "--method", "options").exit_code == 0


@pytest.mark.slow
def test_as_a_process_it_does_the_same(mesh: Mesh, address: str) -> None:
    with command("call", address, "/give", '{"what": "bytes"}') as program:
        assert program.ends() == 0
        assert (program.stdout, program.stderr) == (b"\x00\xff", "200 OK\n")


@pytest.mark.slow
def test_without_a_router_it_is_503_after_three_seconds() -> None:
    with command("call", "tcp://127.0.0.1:1/svc", "/echo") as program:
        assert program.ends() == 1
        assert program.stderr.startswith("503 no router")
