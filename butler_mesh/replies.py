"""From what a handler returned or raised to what its caller is sent."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import gevent

from butler_mesh import status, tracing
from butler_mesh.connections.base import Delivery
from butler_mesh.errors import NotSerializable, RemoteError, RequestFailed, Stopped, UsageError
from butler_mesh.messages import (
    BadEnvelope,
    Body,
    ServiceRequest,
    ServiceResponse,
    decode_frames,
    decode_request,
    encode_response,
)
from butler_mesh.protocol.mesh import ONE_WAY, STREAM

_log = logging.getLogger("butler_mesh.service")

MAX_TRACEBACK = 16 * 1024
"""Characters of a traceback that travel: the innermost frames, which say most."""

MAX_MESSAGE = 4 * 1024
"""Characters of an exception's message that travel: a sentence, and not the data it was raised about."""

MAX_PARTS = 1_000_000
"""What a generator may yield for a caller that awaits one reply."""
PARTS_IN_A_TURN = 256

# What most replies are; to ask an abstract class takes four times as long.
_VALUES = (dict, list, str, type(None))


def answer(
    delivery: Delivery,
    handle: Callable[[ServiceRequest], ServiceResponse],
    *,
    tracebacks: bool = True,
    frames: bool = False,
    headers: Mapping[str, str] | None = None,
) -> bool:
    """Decode a delivery, let ``handle`` make the response, send it or what it raised; False for that.

    With ``frames`` request and reply are nothing but those. ``headers`` go with whatever is sent.
    """
    try:
        request = (decode_frames if frames else decode_request)(delivery.envelope, delivery.flags)
    except BadEnvelope as error:
        send_reply(delivery, status.BAD_REQUEST, None, str(error))
        return True
    request.deadline, request.target, request.conn_id = delivery.deadline, delivery.target, delivery.number
    trace = request.headers.get(tracing.HEADER)
    if trace:
        tracing.current.set(trace)
    try:
        response = handle(request)
        if headers:
            response.headers = {**response.headers, **headers}
        send_response(delivery, response, frames=frames)
    except BaseException as error:
        send_failure(delivery, error, tracebacks=tracebacks, headers=headers)
        return False
    return True


def send_reply(
    delivery: Delivery,
    code: int,
    body: Body,
    message: str = "",
    headers: Mapping[str, str] | None = None,
    *,
    final: bool = True,
) -> None:
    """Send one reply; a body that JSON cannot hold raises NotSerializable, a number that is no status
    UsageError, and nothing is sent."""
    if not _is_status(code):
        raise UsageError(f"{code!r} is no status: those are 100 to 599")
    envelope, flags = encode_response(body, message, headers)
    delivery.reply(code, envelope, flags=flags, final=final)


def send_response(delivery: Delivery, response: ServiceResponse, *, frames: bool = False) -> None:
    """Send a response; a body that is an iterator goes out part by part, or gathered into a list for a
    caller that takes one reply. What a generator returns at its end is one part more, sent as the last."""
    body = response.body
    if isinstance(body, _VALUES) or not isinstance(body, Iterator):
        code = response.status_code
        if delivery.flags & ONE_WAY and _is_status(code) and code not in status.REFUSALS:
            # It frees the credit, and nobody reads it: not even whether it could have been written.
            delivery.reply(code, b"{}")
            return
        send_reply(delivery, code, body, response.status_msg, response.headers)
    elif delivery.flags & STREAM:
        rest = _Rest(body)
        try:
            for part in rest:
                delivery.wait_for_window()
                send_reply(
                    delivery, response.status_code, part, response.status_msg, response.headers, final=False
                )
        finally:
            # A reader that left has stopped us: the generator cleans up now, not when it is collected.
            if isinstance(body, Generator):
                body.close()
        send_reply(delivery, response.status_code, rest.value)
    else:
        rest = _Rest(body)
        parts = _gathered(rest)
        if rest.value is not None:
            # What a stream's reader would be sent last.
            parts.append(rest.value)
        if frames:
            parts = [frame for part in parts for frame in (part if isinstance(part, list) else [part])]
        send_reply(delivery, response.status_code, parts, response.status_msg, response.headers)


def _gathered(parts: Iterable[Body]) -> list[Body]:
    """Return all parts. A generator that gives way to nobody must not keep its own deadline from it, nor fill
    the process."""
    found = []
    for part in parts:
        found.append(part)
        if not len(found) % PARTS_IN_A_TURN:
            gevent.sleep(0)
            if len(found) >= MAX_PARTS:
                raise UsageError(f"{MAX_PARTS} parts are too many for one reply: ask for a stream")
    return found


class _Rest:
    """An iterator's parts; then ``value`` is what a generator returned: the body of the FINAL."""

    def __init__(self, parts: Any) -> None:
        self._parts = parts
        self.value: Body = None

    def __iter__(self) -> Iterator[Body]:
        self.value = yield from self._parts


def send_failure(
    delivery: Delivery,
    error: BaseException,
    *,
    tracebacks: bool = True,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer for an exception that the handler let out.

    A RequestFailed that the handler raised is its status; anything else is 500 with type, message and
    traceback text. So is the failure of a call that the handler made: a 503 from further on does not
    mean that this request was never started.
    """
    if isinstance(error, Stopped):
        raise error
    if isinstance(error, RequestFailed) and _is_own(error):
        headers = {**error.headers, **(headers or {})}
        if error.retry_after_s is not None:
            headers["Retry-After"] = f"{error.retry_after_s:g}"
        try:
            send_reply(delivery, error.status, error.body, error.message, headers)
        except NotSerializable:
            send_reply(delivery, error.status, None, _clean(error.message), headers)
        return
    _log.error("handler-failed %.200r", delivery.target, exc_info=error)
    kind = error.type if isinstance(error, RemoteError) and error.type else type(error).__name__
    message = _text(error)
    details = {"type": kind, "message": message}
    if tracebacks:
        text = "".join(traceback.format_exception(error))
        details["traceback"] = _clean(text[-MAX_TRACEBACK:])
    envelope, flags = encode_response(None, f"{kind}: {message}", headers, details)
    delivery.reply(status.SERVER_ERROR, envelope, flags=flags)


def _text(error: BaseException) -> str:
    """Return an exception's message, even where its ``__str__`` raises or holds half a character."""
    try:
        # KeyError's own text is the repr of its key; what it was raised with says more.
        if isinstance(error, RemoteError):
            text = error.message
        else:
            text = str(error.args[0] if isinstance(error, KeyError) and len(error.args) == 1 else error)
    except Exception as broken:
        text = f"(its message cannot be had: {type(broken).__name__})"
    return _clean(text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}…")


def _clean(text: object) -> str:
    """Return text that JSON can hold: without halves of characters."""
    return str(text).encode("utf-8", "replace").decode()


def _is_own(error: RequestFailed) -> bool:
    """Tell whether a failure was made to be the reply, as opposed to being what became of a call."""
    return not (error.is_received or isinstance(error, RemoteError)) and _is_status(error.status)


def _is_status(code: object) -> bool:
    return isinstance(code, int) and 100 <= code <= 599
