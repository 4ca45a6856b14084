"""``butler-mesh send``: arpc's sender. It lives with arpc's face, which an installation may go without."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from butler_mesh.cli.terminal import PASSPHRASE_HELP, Refusal, passphrase

FACE = "butler_mesh.compat.arpc.msg_sender"


@click.command(short_help="Send a document to arpc's workers and print each result.", epilog=PASSPHRASE_HELP)
@click.argument("key")
@click.argument("message", metavar="JSON")
@click.option(
    "--address",
    default="",
    help="Where the broker or router is, as in amqp://user@host; localhost without a word.",
    envvar="BUTLER_MESH_AMQP",
    show_envvar=True,
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="How long to wait for results.",
)
def send(key: str, message: str, address: str, timeout: float | None) -> None:
    """Send the document JSON, which names its method under "c", to the workers of KEY.

    mgt.KEY means the management of all of them, mgt.WORKER-ID that of one. Exit status: 0 for results, 1 when
    somebody failed, 2 when the document cannot be sent.

    \b
    Examples:
      butler-mesh send example '{"c": "add", "x": 10, "y": 20}'
      butler-mesh send mgt.example '{"c": "ping"}'
    """
    try:
        face = import_module(FACE)
    except ModuleNotFoundError as error:
        if error.name is None or not FACE.startswith(error.name):
            raise
        raise Refusal("arpc's face is not installed here") from error
    options = [] if timeout is None else ["--timeout", str(timeout)]
    sys.exit(face.main(["--address", address, *options, "--", key, message], passphrase()))
