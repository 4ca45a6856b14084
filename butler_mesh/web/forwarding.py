"""A service's response as an HTTP response: what a web client is sent when a service answers it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from werkzeug.wrappers import Response

from butler_mesh import codec
from butler_mesh.messages import ServiceResponse
from butler_mesh.web import streaming
from butler_mesh.web.fields import HOP_BY_HOP
from butler_mesh.web.handover import without_own

HTML = "text/html; charset=utf-8"
JSON = "application/json"

# How the body is framed is the front's to say; METHOD is of the mesh.
_NOT_FOR_BROWSERS = HOP_BY_HOP | {"content-length", "method"}


def http_response(response: ServiceResponse) -> Response:
    """Return a service's response as HTTP has it: status, headers (a list is one line each) and body.

    The body is a page, in UTF-8, where it is text or bytes, and JSON otherwise, unless its Content-Type
    says something else; parts are sent as they come. Raises ValueError for a header that is none.
    """
    body: Any = response.body
    content_type = HTML
    if isinstance(body, Iterator):
        body = streaming.encoded(body)
    elif isinstance(body, list) and body and isinstance(body[0], bytes):
        body = b"".join(body)
    elif body is None:
        body = b""
    elif not isinstance(body, str | bytes):
        body, content_type = codec.dumps(body), JSON
    reply = Response(body, response.status_code, content_type=content_type, direct_passthrough=False)
    for name, value in without_own(response.headers).items():  # values may be more than text
        if name.lower() not in _NOT_FOR_BROWSERS:
            values = value if isinstance(value, list) else [value]
            reply.headers.setlist(name, [str(one) for one in values])
    return reply
