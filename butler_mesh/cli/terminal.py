"""What all commands share: refusals of one line, and logs on stderr."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import IO, Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

PASSPHRASE = "BUTLER_MESH_PASSPHRASE"
PASSPHRASE_HELP = (
    f"The passphrase of a service that has one is taken from the environment: {PASSPHRASE}, or the file that "
    f"{PASSPHRASE}_FILE names."
)
LOG_LEVELS = ("debug", "info", "warning", "error")


class Refusal(click.ClickException):
    """Ends the command with one line on stderr and exit status 2: asked for what cannot be."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message)
        # Now: the context is gone by the time this is shown.
        self._command = click.get_current_context().command_path

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"{self._command}: {' '.join(self.message.split())}", file=file, err=file is None)


def passphrase() -> str | None:
    """Return the passphrase of the service that is meant; None where the environment has none.

    There is no option for it: what a command was given, everybody sees who lists processes.
    """
    from butler_mesh.environment import secret
    from butler_mesh.errors import UsageError

    try:
        return secret(PASSPHRASE)
    except UsageError as error:
        raise Refusal(str(error)) from error


def log_level_option(command: F) -> F:
    """Give a command ``--log-level``, handed over as ``log_level``."""
    option = click.option(
        "--log-level",
        type=click.Choice(LOG_LEVELS, case_sensitive=False),
        default="info",
        show_default=True,
        envvar="BUTLER_MESH_LOG_LEVEL",
        show_envvar=True,
        help="How much is logged (to stderr).",
    )
    return option(command)


def log_to_stderr(level: str) -> None:
    """Log to stderr from ``level`` on, unless the program has set its logging up itself."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
