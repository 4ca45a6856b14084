"""``butler-mesh dlq``: the stored requests that nobody could serve."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from butler_mesh.cli.terminal import Refusal

if TYPE_CHECKING:
    from butler_mesh.connections.amqp.dead import DeadLetters

ALL = 1_000_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@click.group(short_help="Stored requests that nobody could serve.")
def dlq() -> None:
    """Look at the requests that a durable service could not serve, serve them after all, or drop them.

    ADDRESS is that of the service, as in amqp://user@host//api.images (the password may be in the
    environment: BUTLER_MESH_AMQP_PASSWORD, or in the file that BUTLER_MESH_AMQP_PASSWORD_FILE names).
    """


@dlq.command("ls")
@click.argument("addresses", metavar="ADDRESS...", nargs=-1, required=True)
def list_(addresses: tuple[str, ...]) -> None:
    """Print how many each service has."""
    for address in addresses:
        with _open(address) as dead:
            click.echo(f"{dead.count():8} {dead.service}")


@dlq.command()
@click.argument("address")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    default=100,  # while they are looked at nobody else gets at them
    show_default=True,
    help="The oldest N of them.",
)
def show(address: str, limit: int) -> None:
    """Print them, one a line: id, reason, request. They stay, behind the rest.

    Of a body of bytes only its size is told. A sealed one is shown, too: a seal hides nothing.
    """
    with _open(address) as dead:
        for one in dead.show(limit):
            line = f"{one.id} {one.reason} {one.text}"
            # They are others' words, and the terminal's commands are not among them.
            click.echo(_CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", line))


@dlq.command()
@click.argument("address")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="The oldest N of them.  [default: all]"
)
def redrive(address: str, limit: int | None) -> None:
    """Give them back to the service, which tries each as often as a new one."""
    with _open(address) as dead:
        click.echo(f"{dead.redrive(limit or ALL)} given back")


@dlq.command()
@click.argument("address")
@click.confirmation_option(prompt="Throw all of them away?")
def purge(address: str) -> None:
    """Throw them away."""
    with _open(address) as dead:
        click.echo(f"{dead.purge()} thrown away")


@contextmanager
def _open(address: str) -> Iterator[DeadLetters]:
    from butler_mesh.connections.registry import connect_dead_letters
    from butler_mesh.errors import RequestFailed, UsageError

    try:
        with connect_dead_letters(address) as dead:
            yield dead
    except UsageError as error:
        raise Refusal(str(error)) from error
    except RequestFailed as error:
        raise click.ClickException(str(error)) from error
