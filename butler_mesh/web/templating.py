"""Templates: Jinja2 for web handlers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, TemplateNotFound
from werkzeug.wrappers import Response

from butler_mesh import status
from butler_mesh.errors import UsageError
from butler_mesh.web.handlers import WebMessageHandler

ERROR_TEMPLATE = "error.html"

_log = logging.getLogger("butler_mesh.web")


def load_jinja2_env(path: str | Path, **options: Any) -> Callable[[], Environment]:
    """Return what an Application takes as ``template_loader``: a function that makes the environment.

    ``path`` is the directory of the templates, ``options`` are jinja2's; values are escaped unless
    ``autoescape=False`` says otherwise. Raises UsageError at once where there is no such directory.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise UsageError(f"no directory of templates at {directory.absolute()}")
    options.setdefault("autoescape", True)

    def load() -> Environment:
        return Environment(loader=FileSystemLoader(directory), **options)

    return load


class Jinja2Rendering(WebMessageHandler):
    """Answers with rendered templates; errors too, where there is a template ``error.html``."""

    def render_template(
        self, template_file: str, /, _status_code: int | None = None, **context: Any
    ) -> Response:
        """Return the reply: the template, filled in; 200 unless another status is given or was set.

        What a template raises is the method's failure; the log names the template, the page does not.
        """
        environment = self.application.template_env
        try:
            page = environment.get_template(template_file).render(**context)
        except Exception as error:
            error.add_note(f"in the template {template_file!r}")
            raise
        self.set_body(page, status_code=_status_code)
        return self.render()

    def render_error(self, code: int, message: str = "") -> Response:
        """Return the page for an error: ``error.html`` with ``code``, ``reason`` and ``message``."""
        try:
            template = self.application.template_env.get_template(ERROR_TEMPLATE)
            page = template.render(code=code, reason=status.reason(code), message=message)
        except Exception as error:
            is_absent = isinstance(error, TemplateNotFound) and error.name == ERROR_TEMPLATE
            if not is_absent and not isinstance(error, UsageError):  # no templates at all, or not this one
                _log.exception("error-template-failed %s", ERROR_TEMPLATE)
            return super().render_error(code, message)
        self.set_status(code, message)
        self.set_body(page)
        return self.render()
