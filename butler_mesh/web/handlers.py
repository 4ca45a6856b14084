"""Web handlers: classes whose methods answer HTTP requests, with HTML or JSON."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import gevent
from markupsafe import escape
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from butler_mesh import codec, status
from butler_mesh.errors import RemoteError, RequestFailed, UsageError
from butler_mesh.handlers import MessageHandler
from butler_mesh.messages import ServiceResponse
from butler_mesh.routing import RouteKind
from butler_mesh.web import cookies, streaming
from butler_mesh.web.forwarding import HTML, JSON, http_response
from butler_mesh.web.handover import ANSWERED
from butler_mesh.web.request import WebRequest

_log = logging.getLogger("butler_mesh.web")

JSON_LINES = "application/x-ndjson"
EVENTS = "text/event-stream; charset=utf-8"

# RFC 9110, 5.1 and 5.5: a name is a token, and no value has control characters, nor what Latin-1 has not; but
# a Location may, which werkzeug then makes a URI of.
_HEADER = re.compile(
    r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [\t\x20-\x7e\x80-\xff]*|location: [^\x00-\x1f\x7f]*", re.IGNORECASE
)

# The headers of a failure that a browser is told. A failure may come from a service, and what a service
# says to its caller (cookies, lengths) is not for the caller's own client.
_FAILURE_HEADERS = ("Allow", "Retry-After", "WWW-Authenticate")

# The bodies of a failure that has nothing to say but its status: ``set_status(404)``, ``render()``.
_NOTHING: tuple[Any, ...] = (None, {}, "", b"")

_ERROR_PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{code} {reason}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:18vh auto;padding:0 1rem}}</style>
<h1>{code} {reason}</h1>
<p>{message}</p>
</html>
"""


class Page(Response):
    """A handler's response. ``failed`` makes another one of what kept a streamed one from beginning."""

    failed: Callable[[BaseException], Response] | None = None


class WebMessageHandler(MessageHandler):
    """Answers the HTTP requests of one route.

    A method may return a response (``render`` and kin make one), text or bytes (an HTML page), a dict or
    list (JSON), an iterator (a page streamed part by part: see ``stream``), what a service answered
    (``forward_to_service``), or nothing, which means ``render()``: the body that was set, or 500 if nothing
    was.

    ``headers`` and cookies go with every reply that is made after they were set. Where the method raises
    they are dropped: what it had in mind before it failed is off the table. To send some with an error,
    return ``render_error(…)``. A werkzeug ``Response`` made by hand goes out as it is.
    """

    kind = RouteKind.WEB
    # Never ``request`` and ``response``, whatever a browser calls its method: those are the mesh's.
    methods = ("get", "head", "post", "put", "patch", "delete", "options", "connect")
    message: WebRequest
    streamed_type: ClassVar[str] = HTML
    """What ``stream`` sends, where neither its argument nor a header says."""

    def __init__(self, application: Any, message: WebRequest) -> None:
        super().__init__(application, message)
        self.body: str | bytes = b""
        # Lines by name, domain and path, which are a cookie's identity: the last word counts.
        self._cookies: dict[tuple[str, str | None, str | None], str] = {}

    # --- what a method uses -------------------------------------------------------------------

    def get_argument(self, name: str, default: Any = None) -> Any:
        """Return an argument of the request: see ``WebRequest.get_argument``."""
        return self.message.get_argument(name, default)

    def get_arguments(self, name: str) -> list[Any]:
        """Return all values of an argument: see ``WebRequest.get_arguments``."""
        return self.message.get_arguments(name)

    def get_cookie(
        self,
        name: str,
        default: Any = None,
        secret: str | bytes | bool | None = None,
        max_age: float | None = None,
    ) -> Any:
        """Return a cookie of the request: its text, or with a ``secret`` the JSON value that was signed.

        The default where there is none, its signature is not ours, or it was signed more than ``max_age``
        seconds ago. ``secret=True`` is the application's ``cookie_secret``: UsageError if it has none.
        """
        secret = self._secret(secret)
        sent = self.message.cookies.get(name)
        if sent is None or secret is None:
            return default if sent is None else sent
        try:
            return cookies.unsign(name, sent, secret, max_age)
        except ValueError:
            return default

    def set_cookie(
        self, name: str, value: Any, secret: str | bytes | bool | None = None, **options: Any
    ) -> None:
        """Send a cookie with the reply: text, or with a ``secret`` any JSON value, signed.

        Secrets are those of ``get_cookie``, ``options`` those of werkzeug's ``Response.set_cookie``:
        ``max_age`` (seconds), ``path``, ``domain``, ``secure``, ``httponly``, ``samesite`` and others. Raises
        UsageError for what cannot be written, and for more than browsers keep (4093 bytes); NotSerializable
        for a value that is not JSON.
        """
        secret = self._secret(secret)
        if secret is not None:
            value = cookies.sign(name, value, secret)
        line = cookies.line(name, value, **options)
        self._cookies[name, options.get("domain"), options.get("path", "/")] = line

    def delete_cookie(self, name: str, path: str = "/", domain: str | None = None) -> None:
        """Make the browser forget a cookie, which was set with this path and domain."""
        self.set_cookie(name, "", path=path, domain=domain, max_age=0, expires=0)

    def delete_cookies(self) -> None:
        """Make the browser forget all cookies that the request sent, those of path ``/`` and no domain."""
        for name in self.message.cookies:
            if cookies.is_name(name):
                self.delete_cookie(name)

    def set_body(
        self, body: str | bytes, headers: Mapping[str, str] | None = None, status_code: int | None = None
    ) -> None:
        """Set what ``render`` sends; the status becomes 200 unless it is given or was set before."""
        self.body = body
        if headers:
            self.headers.update(headers)
        self._set_status_or_ok(status_code)

    def stream(self, parts: Iterable[Any], content_type: str | None = None) -> Response:
        """Return a reply that is sent part by part, each when the one before has gone out.

        Text and bytes go out as they are, any other JSON value as a line. ``parts`` is closed at the end,
        also where the client leaves early; for HEAD at once.
        """
        return self._stream(streaming.encoded(parts), content_type)

    def stream_events(self, events: Iterable[Any], ping_s: float = streaming.PING_S) -> Response:
        """Return a reply of Server-Sent Events: each an ``Event``, or the data of one (text, JSON value).

        After ``ping_s`` seconds of silence a comment is sent.
        """
        # Neither a cache nor nginx may hold back what has been sent.
        self.headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **self.headers}
        return self._stream(streaming.events(events, ping_s), EVENTS)

    def redirect(self, url: str, code: int = 302) -> Response:
        """Return a reply that sends the client to ``url``."""
        self.set_status(code)
        self.headers["Location"] = url
        return self._response(f'<!doctype html><p>See <a href="{escape(url)}">{escape(url)}</a>.</p>\n')

    def render(self, body: Any = None, *, status_code: int | None = None) -> Response:
        """Return the reply: ``body``, or what ``set_body`` was given, with status and headers as set."""
        if body is not None or status_code is not None:
            self._set_status_or_ok(status_code)
        return self._response(self.body if body is None else body)

    def render_error(self, code: int, message: str = "") -> Response:
        """Return the page for an error; override it to have another one."""
        self.set_status(code, message)
        reason = status.reason(code)
        page = _ERROR_PAGE.format(code=code, reason=reason, message=escape(message))
        return self._response(page)

    # --- within -------------------------------------------------------------------------------

    @classmethod
    def allowed(cls) -> list[str]:
        """Return the request methods that this class answers; ``head`` where ``get`` is, too."""
        has_head = callable(getattr(cls, "get", None)) or cls.head is not WebMessageHandler.head
        return [name for name in super().allowed() if name != "head" or has_head]

    def head(self, *args: Any, **kwargs: Any) -> Any:
        """Answer as ``get`` does; the body stays behind."""
        get = getattr(self, "get", None)
        return self.unsupported() if get is None else get(*args, **kwargs)

    def options(self, *args: Any, **kwargs: Any) -> Any:
        """Tell the methods that this route answers."""
        self.set_status(204)
        self.headers["Allow"] = ", ".join(name.upper() for name in self.allowed())
        return self._response(b"")

    def run(self, *args: Any, **kwargs: Any) -> Response:
        """Answer the request; an exception becomes its page."""
        try:
            response: Response = super().run(*args, **kwargs)
        except (Exception, SystemExit, gevent.Timeout) as error:  # sys.exit() in a handler ends no server
            response = self.failed(error)
        return response

    def finish(self, result: Any) -> Response:
        """Make the response of what the method returned."""
        if isinstance(result, Response):
            return result
        if isinstance(result, ServiceResponse):
            return self._forwarded(result)
        if isinstance(result, Iterator):
            return self.stream(result)
        if result is None and not self.is_status_set:
            _log.error("web-handler-returned-nothing %s", type(self).__name__)
            return self.render_error(status.SERVER_ERROR)
        return self.render(result)

    def failed(self, error: BaseException) -> Response:
        """Return the page for what a method raised, without any of its internals; log those."""
        code, text, headers = describe_failure(error, self.message)
        self.headers = {}
        self._cookies = {}
        response = self.render_error(code, text)
        response.headers.update(headers)
        return response

    def _forwarded(self, response: ServiceResponse) -> Response:
        if ANSWERED in response.headers:
            self.message.was_answered()
        if response.status_code >= status.BAD_REQUEST and response.body in _NOTHING:
            return self.failed(response.failure())
        reply = http_response(response)
        for name, value in self.headers.items():
            reply.headers.setdefault(name, value)  # what the service says of its reply goes before
        for line in self._cookies.values():
            reply.headers.add("Set-Cookie", line)
        return reply

    def _set_status_or_ok(self, code: int | None = None) -> None:
        if code is not None:
            self.set_status(code)
        elif not self.is_status_set:
            self.set_status(status.OK)

    def _secret(self, secret: str | bytes | bool | None) -> str | bytes | None:
        if secret is True:
            own: str | bytes | None = self.application.cookie_secret
            if not own:
                raise UsageError("secret=True is the application's cookie_secret, and it has none")
            return own
        return None if secret is False else secret

    def _stream(self, body: Any, content_type: str | None) -> Response:
        self._set_status_or_ok()
        if self.message.method == "head":
            body.close()
            body = streaming.encoded(())
        try:
            response = self._response(body, self.streamed_type)
        except UsageError:
            body.close()
            raise
        response.failed = self.failed
        response.direct_passthrough = True
        if content_type is not None:
            response.content_type = content_type
        return response

    def _response(self, body: Any, content_type: str = HTML) -> Page:
        if not 200 <= self.status_code <= 599:
            raise UsageError(f"{self.status_code!r} is not a status that HTTP could end with")
        if isinstance(body, dict | list):
            body, content_type = codec.dumps(body), JSON
        elif not isinstance(body, str | bytes | Iterator):
            raise UsageError(
                f"a web handler returns a response, text, bytes, dict, list or iterator: not {type(body)}"
            )
        for name, value in self.headers.items():
            if not _HEADER.fullmatch(f"{name}: {value}"):
                raise UsageError(f"not a header: {name!r:.100}: {value!r:.100}")
        response = Page(body, self.status_code, content_type=content_type)
        response.headers.update(self.headers)
        for line in self._cookies.values():
            response.headers.add("Set-Cookie", line)
        return response


class JSONMessageHandler(WebMessageHandler):
    """Answers with the JSON object that ``add_to_payload`` gathered, errors included.

    The reply's status is in it as ``status_code`` and ``status_msg``, unless ``hide_status`` is set.
    """

    hide_status: ClassVar[bool] = False
    streamed_type = JSON_LINES

    def __init__(self, application: Any, message: WebRequest) -> None:
        super().__init__(application, message)
        self._payload: dict[str, Any] = {}

    @property
    def payload(self) -> Mapping[str, Any]:
        """What ``add_to_payload`` has gathered."""
        return self._payload

    def add_to_payload(self, key: str, value: Any) -> None:
        """Put a field into the reply's JSON object."""
        self._payload[key] = value

    def render(
        self, body: Any = None, *, status_code: int | None = None, hide_status: bool | None = None
    ) -> Response:
        """Return the reply: the payload, or ``body`` (any JSON value), with status and headers as set.

        The status goes into objects only.
        """
        if body is not None or status_code is not None:
            self._set_status_or_ok(status_code)
        content = self._payload if body is None else body
        hide = self.hide_status if hide_status is None else hide_status
        if isinstance(content, dict) and not hide:
            reason = self.status_msg or status.reason(self.status_code)
            content = {"status_code": self.status_code, "status_msg": reason, **content}
        response = self._response(codec.dumps(content))
        if "Content-Type" not in self.headers:
            response.content_type = JSON
        return response

    def render_error(self, code: int, message: str = "") -> Response:
        """Return the error as JSON."""
        self.set_status(code, message)
        self._payload = {}
        return self.render(hide_status=False)


def describe_failure(error: BaseException, message: WebRequest) -> tuple[int, str, dict[str, str]]:
    """Return (status, text, headers) for what a handler raised, and log it where it is a fault.

    A refusal (4xx) is told in its own words; of a fault (5xx) only the standard phrase leaves the house.
    """
    headers: dict[str, str] = {}
    if isinstance(error, RequestFailed) and not isinstance(error, RemoteError):
        code, text = error.status, error.message
        headers = {name: error.headers[name] for name in _FAILURE_HEADERS if name in error.headers}
        if error.retry_after_s is not None:
            headers["Retry-After"] = f"{max(1.0, error.retry_after_s):.0f}"  # whole seconds: RFC 9110, 10.2.3
    elif isinstance(error, HTTPException) and error.code is not None:
        # werkzeug's: about the body, or what a handler's own abort() raised.
        code, text = error.code, error.description or ""
        if code in (status.BAD_REQUEST, status.TOO_LARGE):
            # A body cut off or too large: what is left of it may still lie in the connection.
            headers = {"Connection": "close"}
    else:
        _log.error("web-handler-failed %s %.200r", message.method, message.path, exc_info=error)
        return status.SERVER_ERROR, "", {}
    if not 400 <= code <= 599:
        code = status.SERVER_ERROR
    if code >= status.SERVER_ERROR:
        _log.warning("web-request-failed %s %.200r: %s %.200r", message.method, message.path, code, text)
        text = ""
    return code, text, headers
