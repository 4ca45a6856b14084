"""WebRequest: an HTTP request as web handlers find it in ``self.message``."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, cast

from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.utils import cached_property
from werkzeug.wrappers import Request
from werkzeug.wsgi import LimitedStream

from butler_mesh import codec
from butler_mesh.deadlines import NEVER
from butler_mesh.errors import BadRequest

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

MAX_BODY_BYTES = 16 * 1024 * 1024
"""What a request's body may hold: as much as one message of the mesh, for many a body goes on into it."""

_numbers = itertools.count(1)


class BoundedStream(LimitedStream):
    """A body of unknown length (chunked), up to a maximum: one byte more raises 413.

    werkzeug's own cuts such a body off at the maximum, without a word, when it is read in one go.
    """

    def on_exhausted(self) -> None:
        """Raise unless the maximum was the end, too."""
        try:
            rest = self._stream.read(1)
        except (OSError, ValueError) as error:
            self.on_disconnect(error)
        else:
            if rest:
                raise RequestEntityTooLarge

    def readall(self) -> bytes:
        """Return all of it."""
        data = super().readall()
        if self.is_exhausted:
            self.on_exhausted()
        return data


class WebRequest(Request):
    """One HTTP request; werkzeug's, with the names that all messages share.

    Beside those: ``body`` (bytes), ``args`` (the query), ``form``, ``headers``, ``cookies``, and
    ``remote_addr``, the peer of the connection (headers that claim another are not believed). ``method``
    is lower-case. ``conn_id`` is the request's number in this process, ``deadline`` when it must be done
    (monotonic seconds). A body over ``max_body_bytes`` raises 413 where it is read; no more than that
    is ever in memory.
    """

    # The form's fields are part of the body, which has its bound; a second one would only surprise.
    max_form_memory_size = None

    def __init__(
        self,
        environ: WSGIEnvironment,
        populate_request: bool = False,
        shallow: bool = False,
        *,
        deadline: float = NEVER,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        super().__init__(environ, populate_request, shallow)
        self.method = self.method.lower()
        self.conn_id = next(_numbers)
        self.deadline = deadline
        self.max_body_bytes = max_body_bytes

    @cached_property
    def stream(self) -> IO[bytes]:
        """The body as it comes in; what reads it is stopped at the maximum (413)."""
        stream = self.environ["wsgi.input"]
        self.check_length()
        if self.content_length is not None:
            return cast(IO[bytes], LimitedStream(stream, self.content_length))
        if self.environ.get("wsgi.input_terminated"):
            return cast(IO[bytes], BoundedStream(stream, self.max_body_bytes, is_max=True))
        return io.BytesIO()  # a server that does not tell where a body ends has none to give

    def check_length(self) -> None:
        """Raise 413 for a body that says itself that it is too large."""
        if (self.content_length or 0) > self.max_body_bytes:
            raise RequestEntityTooLarge

    @property
    def body(self) -> bytes:
        """The whole body; empty for a multipart form whose fields were asked for first."""
        return self.get_data()

    @cached_property
    def form(self) -> ImmutableMultiDict[str, str]:
        """The fields of a form, from the body."""
        if self.mimetype != "multipart/form-data":
            self.get_data()  # keeps the body, which the parser would use up
        self._load_form_data()
        form: ImmutableMultiDict[str, str] = self.__dict__["form"]
        return form

    @cached_property
    def json_body(self) -> Any:
        """The JSON value in the body, None where the body is not declared to be JSON.

        Raises BadRequest for a body that is not what it declares.
        """
        if not self.is_json:
            return None
        try:
            return codec.loads(self.body)
        except ValueError as error:
            raise BadRequest(f"the body is not JSON: {error}", status=400) from error

    def get_argument(self, name: str, default: Any = None) -> Any:
        """Return a field of the query, else of the form, else of the JSON object; else the default.

        Of a field that comes several times the first; ``args.getlist(name)`` has them all.
        """
        if name in self.args:
            return self.args[name]
        if name in self.form:
            return self.form[name]
        document = self.json_body
        return document.get(name, default) if isinstance(document, Mapping) else default

    def __repr__(self) -> str:
        return f"<WebRequest {self.method} {self.path[:80]!r}>"
