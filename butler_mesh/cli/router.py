"""``butler-mesh router``: a router as a process of its own."""

from __future__ import annotations

import resource
from contextlib import suppress

import click

from butler_mesh.cli.terminal import Refusal, log_level_option, log_to_stderr

FRONTEND = "tcp://127.0.0.1:5555"
BACKEND = "tcp://127.0.0.1:5556"


@click.command(short_help="Run a router.")
@click.option(
    "--frontend",
    "frontends",
    multiple=True,
    metavar="URL",
    envvar="BUTLER_MESH_FRONTEND",
    show_envvar=True,
    help=f"Listen here for clients.  [default: {FRONTEND}]",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="URL",
    envvar="BUTLER_MESH_BACKEND",
    show_envvar=True,
    help=f"Listen here for services.  [default: {BACKEND}]",
)
@click.option(
    "--bind",
    "binds",
    multiple=True,
    metavar="URL",
    help="Listen here for both; loopback and ipc only.",
)
@click.option(
    "--max-body-bytes",
    type=click.IntRange(min=1),
    metavar="BYTES",
    envvar="BUTLER_MESH_MAX_BODY_BYTES",
    show_envvar=True,
    help="Answer 413 to larger bodies, what they are wrapped in included.  [default: 16777216]",
)
@log_level_option
def router(
    frontends: tuple[str, ...],
    backends: tuple[str, ...],
    binds: tuple[str, ...],
    max_body_bytes: int | None,
    log_level: str,
) -> None:
    """Run a router: it matches the requests of clients to the instances of services.

    Each option may be given several times. The defaults stand in for a side that has no address; with
    --bind alone there are none. SIGTERM ends it when the requests in flight are answered.

    \b
    Examples:
      butler-mesh router
      butler-mesh router --frontend tcp://10.0.0.5:5555 --backend tcp://10.0.0.5:5556
      butler-mesh router --bind ipc://run/mesh.sock
      BUTLER_MESH_FRONTEND=tcp://127.0.0.1:7000 butler-mesh router --log-level debug
    """
    from butler_mesh.errors import UsageError
    from butler_mesh.router import Router

    log_to_stderr(log_level)
    needs_defaults = not binds or bool(frontends or backends)
    # Each connection takes a descriptor; the usual soft limit of 1 024 is there for programs that use select.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):  # where "unlimited" is what it says and not what it takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    made = Router() if max_body_bytes is None else Router(max_body_bytes=max_body_bytes)
    try:
        for url in frontends or (FRONTEND,) * needs_defaults:
            made.frontend.bind(url)
        for url in backends or (BACKEND,) * needs_defaults:
            made.backend.bind(url)
        for url in binds:
            made.bind(url)
    except UsageError as error:
        made.stop()
        raise Refusal(str(error)) from error
    made.run()
