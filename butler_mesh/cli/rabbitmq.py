"""``butler-mesh rabbitmq``: RabbitMQ nodes to develop with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from butler_mesh.cli.terminal import Refusal

if TYPE_CHECKING:
    from butler_mesh.operations.rabbitmq import Cluster

_directory = click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("run/rabbitmq"),
    show_default=True,
    envvar="BUTLER_MESH_RABBITMQ_DIRECTORY",
    show_envvar=True,
    help="Where all of theirs is.",
)
_nodes = click.option(
    "--nodes",
    type=click.IntRange(1, 9),
    metavar="N",
    help="How many: refused where the directory has another number.  [default: what is there, or 1]",
)


@click.group(short_help="RabbitMQ nodes to develop with.")
def rabbitmq() -> None:
    """Run RabbitMQ nodes to develop and test with, on this machine, for nobody else.

    They are of your own: in one private directory, on loopback, with a user and a password of their own. The
    system's RabbitMQ is left alone. Not for production: all of them end with one machine.
    """


@rabbitmq.command()
@_directory
@_nodes
@click.option(
    "--port",
    type=click.IntRange(1, 65000),
    help="The first node's, in a new directory; the others have the next.  [default: what is free]",
)
def start(directory: Path, nodes: int | None, port: int | None) -> None:
    """Start nodes, one after the other, and print their address. They stay when this command has ended.

    A node takes five seconds. What was stored is there again. When one fails, or at Ctrl-C, those that this
    command has started are stopped; those that ran before go on.

    \b
    Examples:
      butler-mesh rabbitmq start
      butler-mesh rabbitmq start --nodes 3 --directory /tmp/three
      export BUTLER_MESH_AMQP_PASSWORD_FILE=$PWD/run/rabbitmq/password
      butler-mesh call "$(butler-mesh rabbitmq start)//api.images" /resize '{"name": "a.jpg"}'
    """
    from butler_mesh.errors import MeshError, UsageError
    from butler_mesh.operations.rabbitmq import Cluster, check_programs

    check_programs()
    if (directory / "cluster.json").exists():
        cluster = _open(directory, nodes)
        if port is not None and port != cluster.nodes[0].port:
            raise Refusal(f"the first node in {directory} has port {cluster.nodes[0].port}")
    else:
        cluster = Cluster.create(directory, nodes or 1, port=port or 0)
    click.echo(f"the password is in {directory / 'password'}", err=True)
    try:
        cluster.start()
    except BaseException as error:
        cluster.stop(only_own=True)  # those that ran before are somebody's
        if isinstance(error, MeshError) and not isinstance(error, UsageError):
            raise click.ClickException(str(error)) from error
        raise
    click.echo(cluster.endpoint)


@rabbitmq.command()
@_directory
@_nodes
@click.option("--remove", is_flag=True, help="Remove the directory as well, and all that was stored.")
def stop(directory: Path, nodes: int | None, remove: bool) -> None:
    """Stop the nodes of a directory, also those that somebody else has started. What was stored stays."""
    cluster = _open(directory, nodes)
    cluster.stop()
    if remove:
        cluster.remove()


def _open(directory: Path, nodes: int | None) -> Cluster:
    from butler_mesh.operations.rabbitmq import Cluster

    cluster = Cluster.open(directory)
    if nodes not in (None, len(cluster.nodes)):
        raise Refusal(f"{directory} has {len(cluster.nodes)}, not {nodes}: stop --remove, or use another one")
    return cluster
