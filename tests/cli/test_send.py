"""``butler-mesh send``: arpc's sender, under the command that everything else is under."""

from __future__ import annotations

import logging
import sys

import pytest
from click.testing import CliRunner, Result

from butler_mesh.cli.main import main
from tests.meshes import Mesh


@pytest.fixture
def address(mesh: Mesh) -> str:
    def add(body: dict[str, int]) -> dict[str, int]:
        return {"res": body["x"] + body["y"]}

    mesh.service(add, name="example")
    return mesh.endpoint


def send(*words: str) -> Result:
    return CliRunner().invoke(main, ["send", *words], prog_name="butler-mesh")


def test_a_document_is_sent_and_its_result_printed(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "msg_sender"):
        result = send("example", '{"c": "add", "x": 1, "y": 2}', "--address", address)
    assert result.exit_code == 0
    assert "Result: <{'res': 3}>" in caplog.text


def test_a_command_is_sent_to_all(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "msg_sender"):
        result = send("mgt.example", '{"c": "ping"}', "--address", address, "--timeout", "5")
    assert result.exit_code == 0
    assert "'wid': 'example-" in caplog.text


def test_failures_have_their_exit_status(address: str, caplog: pytest.LogCaptureFixture) -> None:
    assert send("nobody", '{"c": "add"}', "--address", address).exit_code == 1
    assert send("example", "{", "--address", address).exit_code == 2
    caplog.clear()


def test_a_passphrase_comes_from_the_environment(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mesh.service(name="sealed", passphrase="secret")
    assert send("mgt.sealed", '{"c": "ping"}', "--address", mesh.endpoint).exit_code == 1
    monkeypatch.setenv("BUTLER_MESH_PASSPHRASE", "secret")
    assert send("mgt.sealed", '{"c": "ping"}', "--address", mesh.endpoint).exit_code == 0
    caplog.clear()


def test_without_the_face_it_is_one_line_and_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "butler_mesh.compat.arpc.msg_sender", None)
    result = send("example", "{}")
    assert (result.exit_code, result.stderr) == (2, "butler-mesh send: arpc's face is not installed here\n")
