"""WebRequest: an HTTP request as web handlers find it in ``self.message``."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, cast

from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.utils import cached_property
from werkzeug.wrappers import Request
from werkzeug.wsgi import LimitedStream

from butler_mesh import codec
from butler_mesh.deadlines import NEVER
from butler_mesh.errors import BadRequest
from butler_mesh.messages import ServiceRequest
from butler_mesh.web.fields import HOP_BY_HOP
from butler_mesh.web.forms import MAX_FIELD_BYTES, MAX_FORM_FIELDS, MULTIPART, URLENCODED, Forms
from butler_mesh.web.handover import without_own

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

MAX_BODY_BYTES = 16 * 1024 * 1024
"""What a request's body may hold: as much as one message of the mesh, for many a body goes on into it."""
PART_BYTES = 256 * 1024
"""Of a body that is sent on: large enough that calls cost little beside its bytes, and a few of them fit
into any memory."""
MAX_JSON_BYTES = 2 * 1024 * 1024
"""What a body of JSON may hold: of the costliest, which is empty lists beside ``"NaN"``, it takes 0.4 s."""

_NOT_FOR_SERVICES = HOP_BY_HOP | {"content-length", "expect"}

_numbers = itertools.count(1)


class BoundedStream(LimitedStream):
    """A body of unknown length (chunked), up to a maximum: one byte more raises 413.

    werkzeug's own cuts such a body off at the maximum, without a word, when it is read in one go.
    """

    def readinto(self, b: bytearray) -> int | None:  # type: ignore[override]  # werkzeug's own
        """Read; a body that is malformed is one that broke off (400), whatever the server calls it."""
        try:
            return super().readinto(b)
        except HTTPException:
            raise
        except Exception as error:  # gunicorn has exceptions of its own for chunks
            raise ClientDisconnected from error

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

    Beside those: ``body`` (bytes), ``args`` (the query), ``form``, ``files`` (uploads by field: werkzeug's
    FileStorage, closed with the request), ``headers``, ``cookies`` and ``url``. ``method`` is lower-case.
    ``conn_id`` is the request's number in this process, ``deadline`` when it must be done (monotonic
    seconds).

    ``remote_addr`` is the peer of the connection, and headers that claim another are not believed; with
    ``trusted_proxies`` in front, which add to ``X-Forwarded-For``, ``-Proto`` and ``-Host``, address,
    scheme and host are what the first of them saw: the values that stand so many places from the right.

    A body over ``max_body_bytes`` raises 413 where it is read; no more than that is ever in memory. So does a
    form of more than ``max_form_parts`` fields (files included); a multipart form's field of text, or another
    form as a whole, over ``max_form_memory_size`` bytes; and JSON over ``max_json_bytes``: parsing holds the
    process. These are attributes, to be changed in the class. A form that is cut off or garbled is a
    BadRequest (400).
    """

    form_data_parser_class = Forms
    max_form_parts = MAX_FORM_FIELDS
    max_form_memory_size = MAX_FIELD_BYTES
    max_json_bytes = MAX_JSON_BYTES

    def __init__(
        self,
        environ: WSGIEnvironment,
        populate_request: bool = False,
        shallow: bool = False,
        *,
        deadline: float = NEVER,
        max_body_bytes: int = MAX_BODY_BYTES,
        trusted_proxies: int = 0,
    ) -> None:
        if trusted_proxies:
            environ = _before_proxies(environ, trusted_proxies)
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
        self._check_memory(self.max_body_bytes)

    def parts(self, size: int = PART_BYTES) -> Iterator[bytes]:
        """Yield the body in parts of ``size`` bytes, the last of what is left: for one that is to be sent on,
        and need not be in memory as a whole."""
        part = b""
        while data := self.stream.read(size - len(part)):
            part += data
            if len(part) == size:
                yield part
                part = b""
        if part:
            yield part

    @property
    def body(self) -> bytes:
        """The whole body; empty for a multipart form whose fields were asked for first."""
        return self.get_data()

    @cached_property
    def json_body(self) -> Any:
        """The JSON value in the body, None where the body is not declared to be JSON.

        Raises BadRequest for a body that is not what it declares.
        """
        if not self.is_json:
            return None
        self._check_memory(self.max_json_bytes)
        body = self.body
        if len(body) > self.max_json_bytes:
            raise RequestEntityTooLarge
        try:
            return codec.loads(body)
        except ValueError as error:
            raise BadRequest(f"the body is not JSON: {error}", status=400) from error

    def get_argument(self, name: str, default: Any = None) -> Any:
        """Return a field of the query, else of the form, else of the JSON object; else the default.

        Of a field that comes several times the first.
        """
        if name in self.args:
            return self.args[name]
        if name in self.form:
            return self.form[name]
        document = self.json_body
        return document.get(name, default) if isinstance(document, Mapping) else default

    def get_arguments(self, name: str) -> list[Any]:
        """Return all values of a field: the query's, then the form's, then those of the JSON object, where a
        list is several."""
        values: list[Any] = [*self.args.getlist(name), *self.form.getlist(name)]
        document = self.json_body
        if isinstance(document, Mapping) and name in document:
            value = document[name]
            values += value if isinstance(value, list) else [value]
        return values

    def make_form_data_parser(self) -> FormDataParser:
        """Return what reads forms; where it cannot, it says so (werkzeug's way is an empty form)."""
        parser = super().make_form_data_parser()
        parser.silent = False
        return parser

    def _load_form_data(self) -> None:
        """Put ``form`` and ``files`` in their places: what werkzeug calls when one is first asked for."""
        if self.mimetype == URLENCODED:
            self._check_memory(self.max_form_memory_size)
            data = self.get_data()  # keeps the body, which the parser would use up
            if len(data) > self.max_form_memory_size or data.count(b"&") >= self.max_form_parts:
                raise RequestEntityTooLarge
        try:
            super()._load_form_data()
        except ValueError as error:
            raise BadRequest(f"the body is not the form it says it is: {error}", status=400) from error

    def to_service_request(self, path: str | None = None) -> ServiceRequest:
        """Return this request as one for a service: its path and method, the arguments of query and form,
        its headers (lower case; not those of the connection, nor what claims to be the mesh's own), and as
        body its JSON value or bytes.

        Of an argument that comes several times the value is a list. Files stay here: they are streams.
        """
        values = dict(self.args.lists())
        for name, found in self.form.lists():
            values[name] = [*values.get(name, []), *found]
        is_form = self.mimetype in (MULTIPART, URLENCODED)
        body = None if is_form else self.json_body if self.is_json else self.body or None
        headers = {name.lower(): value for name, value in self.headers}
        return ServiceRequest(
            self.path if path is None else path,
            self.method,
            {name: found[0] if len(found) == 1 else found for name, found in values.items()},
            without_own({name: value for name, value in headers.items() if name not in _NOT_FOR_SERVICES}),
            body,
        )

    def hand_over(self) -> dict[str, str]:
        """Let a service answer the client itself, where the front can: the headers that tell it how."""
        exchange = self.environ.get("butler_mesh.exchange")
        return {} if exchange is None else exchange.hand_over()

    def was_answered(self) -> None:
        """Note that the service has: nothing that is returned here is sent."""
        exchange = self.environ.get("butler_mesh.exchange")
        if exchange is not None:
            exchange.was_answered()

    def _check_memory(self, most: int) -> None:
        if (self.content_length or 0) > most:
            raise RequestEntityTooLarge

    def __repr__(self) -> str:
        return f"<WebRequest {self.method} {self.path[:80]!r}>"


def _before_proxies(environ: WSGIEnvironment, proxies: int) -> WSGIEnvironment:
    """Return a copy of the environ as the first of so many proxies would have made it."""
    environ = environ.copy()
    fix = ProxyFix(lambda environ, start_response: (), x_for=proxies, x_proto=proxies, x_host=proxies)
    fix(environ, cast("StartResponse", None))
    return environ
