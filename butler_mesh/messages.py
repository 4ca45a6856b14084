"""Requests and responses, and the envelopes they travel in.

An envelope is a JSON object (``path method arguments headers body``, for proxies ``args kwargs``; in a
reply ``message headers body error``), in which what is at its default is left out; or, for bytes, a RAW
envelope whose head is that object and whose parts are the body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from butler_mesh import codec, status
from butler_mesh.errors import NotSerializable, RequestFailed, UsageError, failure
from butler_mesh.protocol.mesh import RAW, Malformed, pack_raw, split_raw

Body = Any
"""A JSON value, bytes, or a list of bytes."""

DEFAULT_METHOD = "request"

WID = "Wid"
"""The header of an answer to a command: whose it is."""

IDEMPOTENCY_KEY = "Idempotency-Key"
"""The header of a stored request that tells a repetition from another request
(draft-ietf-httpapi-idempotency-key-header)."""

# Made once: a union written out in a call is made anew by each.
_BYTES = (bytes, bytearray, memoryview)
_ARRAY = (list, tuple)
_PLAIN = frozenset({dict, str, int, float, bool})
_NEVER = float("inf")


class BadEnvelope(ValueError):
    """An envelope that is not what it should be; the sender gets 400 with this text."""


class ServiceRequest:
    """A request: to be sent, or as a handler finds it in ``self.message``."""

    __slots__ = (
        "_body",
        "args",
        "arguments",
        "conn_id",
        "deadline",
        "headers",
        "kwargs",
        "method",
        "path",
        "target",
    )

    def __init__(
        self,
        path: str = "/",
        method: str = DEFAULT_METHOD,
        arguments: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.method = method
        self.arguments: Mapping[str, Any] = {} if arguments is None else arguments
        self.headers: Mapping[str, str] = {} if headers is None else headers
        self._body = body
        # A proxy's positional and keyword arguments: beside ``arguments``, never in it, so that no
        # name of a caller's can be taken for one of ours.
        self.args = args
        self.kwargs: Mapping[str, Any] = {} if kwargs is None else kwargs
        # Set where the request was received: the call's number, its deadline in monotonic seconds,
        # and the service name or path it was addressed to.
        self.conn_id = 0
        self.deadline = _NEVER
        self.target = ""

    @classmethod
    def from_call(cls, call: Mapping[str, Any]) -> ServiceRequest:
        """Return the request that butler's dict stands for: ``{'method': name, ...}`` with its arguments
        beside it, or in ``args`` and ``kwargs``. Raises UsageError for what is no call."""
        rest = dict(call)
        name = rest.pop("method", None)
        if not isinstance(name, str) or not name:
            raise UsageError("a call names its function under 'method'")
        args, kwargs = rest.pop("args", ()), rest.pop("kwargs", {})
        if not isinstance(args, _ARRAY) or not isinstance(kwargs, Mapping):
            raise UsageError("of a call, 'args' is a list and 'kwargs' an object")
        return cls(f"/{name}", arguments=rest, args=args, kwargs=kwargs)

    @property
    def body(self) -> Body:
        """What was sent as body; the arguments where nothing was."""
        return self.arguments if self._body is None else self._body

    @property
    def raw_body(self) -> Body:
        """What was sent as body, or None."""
        return self._body

    def get_argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by name, or else a field of an object body, or else the default."""
        if name in self.arguments:
            return self.arguments[name]
        if isinstance(self._body, Mapping):
            return self._body.get(name, default)
        return default

    def __repr__(self) -> str:
        return f"<ServiceRequest {self.method} {self.path!r}>"


class ServiceResponse:
    """A reply as its caller sees it, whatever its status."""

    __slots__ = ("body", "error", "headers", "method", "path", "status_code", "status_msg")

    def __init__(
        self,
        status_code: int = status.OK,
        status_msg: str = "",
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        error: Mapping[str, Any] | None = None,
        path: str = "",
    ) -> None:
        self.status_code = status_code
        self.status_msg = status_msg
        self.body = body
        self.headers: Mapping[str, str] = {} if headers is None else headers
        # {type, message, traceback} of an exception that the handler let out.
        self.error: Mapping[str, Any] = {} if error is None else error
        # Whose reply it is: routes it to the caller's own handler, under method ``response``.
        self.path = path
        self.method = "response"

    @property
    def is_success(self) -> bool:
        """Whether the status is one of 200–299."""
        return status.is_success(self.status_code)

    @property
    def conn_id(self) -> int:
        """Replies belong to a caller, not to a connection."""
        return 0

    def get_argument(self, name: str, default: Any = None) -> Any:
        """Return a field of an object body, or the default."""
        return self.body.get(name, default) if isinstance(self.body, Mapping) else default

    def failure(self) -> RequestFailed:
        """Return the exception that stands for this reply."""
        error = failure(
            self.status_code,
            str(self.error.get("message") or self.status_msg or status.reason(self.status_code)),
            body=self.body,
            retry_after_s=seconds(self.headers.get("Retry-After")),
            type=str(self.error.get("type", "")),
            traceback=str(self.error.get("traceback", "")),
        )
        error.headers = dict(self.headers)
        error.is_received = True
        return error

    def raise_for_status(self) -> None:
        """Raise what stands for this reply unless it is a success."""
        if not self.is_success:
            raise self.failure()

    def __repr__(self) -> str:
        return f"<ServiceResponse {self.status_code} {self.status_msg!r} {self.path!r}>"


def encode_request(request: ServiceRequest) -> tuple[bytes, int]:
    """Return (envelope, flags); raises NotSerializable."""
    head: dict[str, Any] = {"path": request.path}
    if request.method != DEFAULT_METHOD:
        head["method"] = request.method
    if request.arguments:
        head["arguments"] = request.arguments
    if request.headers:
        head["headers"] = request.headers
    if request.args:
        head["args"] = request.args
    if request.kwargs:
        head["kwargs"] = request.kwargs
    body = request.raw_body
    return (codec.dumps(head), 0) if body is None else _encode(head, body)


def decode_request(envelope: bytes, flags: int) -> ServiceRequest:
    """Return the request in an envelope; raises BadEnvelope with a sentence for its sender."""
    head = _decode(envelope, flags)
    get = head.get
    path, method, args = get("path", "/"), get("method", DEFAULT_METHOD), get("args", ())
    if not isinstance(path, str) or path[:1] != "/":
        raise BadEnvelope("path is a string that begins with '/'")
    if not isinstance(method, str):
        raise BadEnvelope("method is a string")
    if not isinstance(args, _ARRAY):
        raise BadEnvelope("args is an array")
    request = ServiceRequest(path, method, get("arguments"), get("headers"), get("body"), args, get("kwargs"))
    if not (
        isinstance(request.arguments, dict)
        and isinstance(request.headers, dict)
        and isinstance(request.kwargs, dict)
    ):
        raise BadEnvelope("arguments, headers and kwargs are objects")
    return request


def decode_frames(envelope: bytes, flags: int) -> ServiceRequest:
    """Return the request that an envelope is to those who take frames: RAW parts, or the JSON as one.

    Raises BadEnvelope where RAW parts are not what they say.
    """
    if not flags & RAW:
        return ServiceRequest(body=[envelope])
    try:
        return ServiceRequest(body=split_raw(envelope)[1])
    except Malformed as error:
        raise BadEnvelope(f"no frames: {error}") from error


def encode_response(
    body: Body,
    status_msg: str = "",
    headers: Mapping[str, str] | None = None,
    error: Mapping[str, Any] | None = None,
) -> tuple[bytes, int]:
    """Return (envelope, flags); the status travels in front of it. Raises NotSerializable."""
    head: dict[str, Any] = {}
    if status_msg:
        head["message"] = status_msg
    if headers:
        head["headers"] = headers
    if error:
        head["error"] = error
    return _encode(head, body)


def decode_response(code: int, flags: int, envelope: bytes, path: str = "") -> ServiceResponse:
    """Return the reply in an envelope. One that cannot be read becomes a 502: somebody lied."""
    try:
        head = _decode(envelope, flags)
    except BadEnvelope as unreadable:
        return ServiceResponse(status.INSTANCE_LOST, f"unreadable reply: {unreadable}", path=path)
    headers, error = head.get("headers"), head.get("error")
    return ServiceResponse(
        code,
        str(head.get("message", "")),
        head.get("body"),
        headers if isinstance(headers, dict) else None,
        error if isinstance(error, dict) else None,
        path,
    )


def _encode(head: dict[str, Any], body: Body) -> tuple[bytes, int]:
    if type(body) in _PLAIN:
        head["body"] = body
        return codec.dumps(head), 0
    if isinstance(body, _BYTES):
        # One part that was not in a list comes back as bytes, not as a list of them.
        head["single"] = True
        return pack_raw(codec.dumps(head), [bytes(body)]), RAW
    if isinstance(body, _ARRAY) and body and isinstance(body[0], bytes):
        if not all(isinstance(part, bytes) for part in body):
            raise NotSerializable("a list body is all bytes or all JSON")
        return pack_raw(codec.dumps(head), body), RAW
    if body is not None:
        head["body"] = body
    return codec.dumps(head), 0


def _decode(envelope: bytes, flags: int) -> dict[str, Any]:
    parts: list[bytes] | None = None
    try:
        if flags & RAW:
            envelope, parts = split_raw(envelope)
        head = codec.loads(envelope)
    except (ValueError, Malformed) as error:
        raise BadEnvelope(f"not JSON: {error}") from error
    if not isinstance(head, dict):
        raise BadEnvelope("an envelope is a JSON object")
    if parts is not None:
        head["body"] = parts[0] if head.get("single") and len(parts) == 1 else parts
    return head


def seconds(text: object) -> float | None:
    """Return what a Retry-After header says; None for what is no number of seconds."""
    try:
        number = float(str(text))
    except ValueError:
        return None
    return number if 0.0 <= number < float("inf") else None
