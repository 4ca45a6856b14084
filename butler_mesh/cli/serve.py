"""``butler-mesh serve``: runs a Service or an Application that a module holds."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from butler_mesh.cli.terminal import Refusal, log_level_option, log_to_stderr


@click.command(short_help="Run the Service or Application of a module.")
@click.argument("target", metavar="MODULE:OBJECT")
@log_level_option
def serve(target: str, log_level: str) -> None:
    """Run the Service or Application called OBJECT in MODULE.

    The standard library is patched by gevent before the module is imported, so that its sockets and
    sleeps let other requests go on. Modules are looked for in the current directory first. SIGTERM ends
    it when the requests in flight are answered; a second one at once.

    \b
    Examples:
      butler-mesh serve images:service          # 'service' in images.py
      butler-mesh serve shop.web:application    # 'application' in shop/web.py
    """
    # Before anything else is imported: what was imported earlier might keep an unpatched function.
    from gevent import monkey

    monkey.patch_all()

    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise Refusal(f"{target!r} is not MODULE:OBJECT; a good one is 'images:service'")
    found = _find(module_name, name)

    from butler_mesh.application import Application
    from butler_mesh.errors import UsageError
    from butler_mesh.service import Service

    if not isinstance(found, Service | Application):
        kind = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
        raise Refusal(f"{target} is {kind}; a Service or Application is needed")
    log_to_stderr(log_level)
    try:
        found.run()
    except UsageError as error:
        raise Refusal(str(error)) from error


def _find(module_name: str, name: str) -> Any:
    """Import the module and return what it holds under a name, which may be dotted."""
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        # Another module that this one cannot import is a fault in it, and its traceback tells where.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise Refusal(f"there is no module {error.name!r} in {directory} or on sys.path") from error
    except (TypeError, ValueError) as error:
        if module_name in sys.modules or not module_name.startswith("."):
            raise
        raise Refusal(f"{module_name!r} is relative; name the module in full") from error
    at = module_name
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise Refusal(f"{at!r} has no {part!r}") from None
        at = f"{at}.{part}"
    return found
