"""``butler-mesh``: help that teaches, and quickly."""

from __future__ import annotations

import os
import re

import pytest
from click.testing import CliRunner

import butler_mesh
from butler_mesh.cli.main import main
from tests.programs import ROOT, mesh, run

COMMANDS = ("router", "serve", "call")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_all_commands_and_shows_a_whole_mesh(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == (0 if arguments else 2)
    shown = result.output
    for command in COMMANDS:
        assert re.search(rf"^  {command}  ", shown, re.MULTILINE)
        assert f"butler-mesh {command}" in shown
    assert "from butler_mesh import Service" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_examples(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert f"  butler-mesh {command}" in result.output.partition("Examples:")[2]


@pytest.mark.parametrize("command", ["call", "ping", "stats", "kill", "send"])
def test_the_help_says_where_a_passphrase_comes_from(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert "BUTLER_MESH_PASSPHRASE_FILE" in result.output


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(main, ["bogus"])
    assert result.exit_code == 2
    assert "bogus" in result.stderr


def test_the_version_is_the_packages() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert butler_mesh.__version__ in result.output


def test_setup_installs_it_as_butler_mesh() -> None:
    assert '"butler-mesh = butler_mesh.cli.main:main"' in (ROOT / "setup.py").read_text(encoding="utf-8")


@pytest.mark.slow
def test_help_loads_nothing_that_only_a_running_command_needs() -> None:
    code, out, err = run(
        "-c",
        "import sys; from butler_mesh.cli.main import main\n"
        "try: main(['call', '--help'])\n"
        "finally: print(sorted({'gevent', 'zmq', 'ujson', 'werkzeug', 'jinja2', 'rich'} & set(sys.modules)))",
    )
    assert code == 0, err
    assert out.decode().splitlines()[-1] == "[]"


def test_a_codec_that_does_not_exist_is_refused_in_one_line() -> None:
    with mesh(
        "router", "--bind", "tcp://127.0.0.1:*", env={**os.environ, "BUTLER_MESH_CODEC": "yaml"}
    ) as program:
        assert program.ends() == 2
        assert "BUTLER_MESH_CODEC is one of ujson, orjson, not 'yaml'" in program.stderr
        assert "Traceback" not in program.stderr
