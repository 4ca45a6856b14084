"""``butler-mesh call``: one request from the shell."""

from __future__ import annotations

import sys
from typing import Any

import click

from butler_mesh.cli.terminal import PASSPHRASE_HELP, Refusal, passphrase


@click.command(short_help="Send one request and print the reply.", epilog=PASSPHRASE_HELP)
@click.argument("address")
@click.argument("path")
@click.argument("arguments", metavar="[JSON]", default="{}")
@click.option("--method", default="request", show_default=True, help="The request's method.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the reply.",
)
def call(address: str, path: str, arguments: str, method: str, timeout: float) -> None:
    """Send a request to PATH of the service at ADDRESS; JSON is an object, its arguments.

    The reply's body goes to stdout, as JSON or, if it is bytes, as it is; its status and message go to
    stderr. Exit status: 0 for 200-299, 1 for any other reply, 2 when the request cannot be sent as put.

    \b
    Examples:
      butler-mesh call tcp://127.0.0.1:5555/api.images /resize '{"name": "a.jpg"}'
      butler-mesh call ipc://run/mesh.sock#api.images / --method options
      butler-mesh call tcp://127.0.0.1:5555 /service/slow --timeout 10 | jq .
    """
    from butler_mesh import codec
    from butler_mesh.errors import UsageError

    try:
        given = codec.loads(arguments.encode())
    except ValueError as error:
        raise Refusal(f"the arguments are not JSON: {error}") from error
    if not isinstance(given, dict):
        raise Refusal('the arguments are not a JSON object; a good one is \'{"name": "a.jpg"}\'')
    if not path.startswith("/"):
        raise Refusal(f"the path {path!r} does not begin with '/'")

    from butler_mesh.client import Client

    try:
        with Client(address, timeout=timeout, passphrase=passphrase()) as client:
            response = client.request(None, path, given, method=method)
    except UsageError as error:
        raise Refusal(str(error)) from error
    _write(response.body, is_success=response.is_success)
    message = response.status_msg or _reason(response.status_code)
    click.echo(f"{response.status_code} {message}".rstrip(), err=True)
    sys.exit(0 if response.is_success else 1)


def _write(body: Any, *, is_success: bool) -> None:
    """Write a body to stdout; a failure without one leaves it empty."""
    import json

    parts = body if isinstance(body, list) and body and isinstance(body[0], bytes) else [body]
    if isinstance(parts[0], bytes):
        for part in parts:
            click.echo(part, nl=False)
    elif body is not None or is_success:
        # Escaped where the terminal's encoding, or no encoding at all, can hold it.
        click.echo(json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def _reason(code: int) -> str:
    from butler_mesh import status

    return status.reason(code)
