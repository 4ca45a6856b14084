"""What all commands share: refusals of one line, and logs."""

from __future__ import annotations

import logging

import click
import pytest
from click.testing import CliRunner

from butler_mesh.cli.terminal import LOG_LEVELS, Refusal, log_level_option, log_to_stderr


@click.command("example")
@log_level_option
def example(log_level: str) -> None:
    click.echo(log_level)


@click.command("refusing")
def refusing() -> None:
    raise Refusal("first line\nand   second")


def test_a_refusal_is_one_line_on_stderr_and_exit_2() -> None:
    result = CliRunner().invoke(refusing)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "refusing: first line and second\n"


def test_the_log_level_is_info_unless_told_otherwise() -> None:
    run = CliRunner().invoke
    assert run(example).stdout == "info\n"
    assert run(example, ["--log-level", "DEBUG"]).stdout == "debug\n"
    assert run(example, env={"BUTLER_MESH_LOG_LEVEL": "error"}).stdout == "error\n"
    assert (
        run(example, ["--log-level", "warning"], env={"BUTLER_MESH_LOG_LEVEL": "error"}).stdout == "warning\n"
    )


@pytest.mark.parametrize("level", ["loud", "", "10"])
def test_a_log_level_that_is_none_is_refused_with_those_there_are(level: str) -> None:
    result = CliRunner().invoke(example, ["--log-level", level])
    assert result.exit_code == 2
    assert all(known in result.stderr for known in LOG_LEVELS)


def test_logging_that_the_program_has_set_up_stays_as_it_is() -> None:
    before = logging.getLogger().handlers[:]
    assert before, "pytest has its own"
    log_to_stderr("debug")
    assert logging.getLogger().handlers == before
