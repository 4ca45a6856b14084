"""``butler-mesh``: the commands, gathered. What a command needs it imports when it runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from butler_mesh.cli.call import call
from butler_mesh.cli.dlq import dlq
from butler_mesh.cli.doctor import doctor
from butler_mesh.cli.manage import kill, ping, stats
from butler_mesh.cli.rabbitmq import rabbitmq
from butler_mesh.cli.router import router
from butler_mesh.cli.send import send
from butler_mesh.cli.serve import serve
from butler_mesh.cli.terminal import Refusal


def _show_version(context: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        # From the package itself: a checkout that was never installed has a version, too.
        click.echo(f"butler-mesh {import_module('butler_mesh').__version__}")
        context.exit()


class Commands(click.Group):
    """What is asked for and cannot be is one line for the user, wherever it was noticed."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was chosen."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            from butler_mesh.errors import UsageError  # here, or help would load it

            if isinstance(error, UsageError):
                raise Refusal(str(error)) from error
            raise


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command explains itself: butler-mesh COMMAND --help",
)
@click.option(
    "--version",
    is_flag=True,
    callback=_show_version,
    expose_value=False,
    is_eager=True,
    help="Show the version.",
)
def main() -> None:
    """A service mesh for gevent: requests go through a router to services, and come back.

    \b
    A mesh of three terminals:
      butler-mesh router
      butler-mesh serve images:service
      butler-mesh call tcp://127.0.0.1:5555/api.images /resize '{"name": "a.jpg"}'

    \b
    where images.py is:
      from butler_mesh import Service
      service = Service("tcp://127.0.0.1:5556", "api.images")
      @service.function
      def resize(name):
          return {"resized": name}
    """


main.add_command(router)
main.add_command(serve)
main.add_command(call)
main.add_command(send)
main.add_command(ping)
main.add_command(stats)
main.add_command(kill)
main.add_command(dlq)
main.add_command(rabbitmq)
main.add_command(doctor)
