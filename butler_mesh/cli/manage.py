"""``butler-mesh ping``, ``stats`` and ``kill``: commands to the instances of a service."""

from __future__ import annotations

import json
import sys

import click

from butler_mesh.cli.terminal import PASSPHRASE_HELP, Refusal, passphrase

_address = click.argument("address")
_wid = click.option("--wid", metavar="WID", help="Only the instance of this name.")
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for answers.",
)


@click.command(short_help="Ask the instances of a service who they are.", epilog=PASSPHRASE_HELP)
@_address
@_wid
@_timeout
def ping(address: str, wid: str | None, timeout: float) -> None:
    """Print wid, pid and host of each instance of the service at ADDRESS, one JSON object a line.

    An instance whose handler computes answers when that gives way, or not within SECONDS. Exit status: 0 when
    somebody has answered, else 1.

    \b
    Examples:
      butler-mesh ping tcp://127.0.0.1:5555/api.images
      butler-mesh ping amqp://user@host//api.images --timeout 1
    """
    _send(address, "ping", wid, timeout)


@click.command(short_help="Ask the instances of a service what they have done.", epilog=PASSPHRASE_HELP)
@_address
@_wid
@_timeout
def stats(address: str, wid: str | None, timeout: float) -> None:
    """Print of each instance of the service at ADDRESS also what it has done, one JSON object a line.

    That is ``waittimes`` (the seconds between its last ten requests), ``processed`` and ``exceptions``.
    """
    _send(address, "stats", wid, timeout)


@click.command(short_help="End the instances of a service.", epilog=PASSPHRASE_HELP)
@_address
@_wid
@_timeout
@click.option("--yes", is_flag=True, help="Do not ask before all of them are ended.")
def kill(address: str, wid: str | None, timeout: float, yes: bool) -> None:
    """Tell each instance of the service at ADDRESS to finish what it has begun, and to end."""
    if wid is None and not yes:
        click.confirm("End all instances of the service?", abort=True, err=True)
    _send(address, "kill", wid, timeout)


def _send(address: str, command: str, wid: str | None, timeout: float) -> None:
    from butler_mesh.client import Client
    from butler_mesh.errors import RequestFailed, UsageError

    is_well = True
    try:
        with Client(address, passphrase=passphrase()) as client:
            for its, response in client.manage(None, command, wid=wid, timeout=timeout):
                if response.is_success:
                    click.echo(json.dumps(response.body))
                else:
                    is_well = False
                    click.echo(f"{its}: {response.status_code} {response.status_msg}", err=True)
    except UsageError as error:
        raise Refusal(str(error)) from error
    except RequestFailed as error:
        click.echo(f"{error.status} {error}", err=True)
        is_well = False
    sys.exit(0 if is_well else 1)
