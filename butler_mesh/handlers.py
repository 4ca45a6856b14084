"""Message handlers: classes whose methods answer requests, by the request's method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

from butler_mesh import status
from butler_mesh.errors import MethodNotAllowed
from butler_mesh.messages import Body, ServiceRequest, ServiceResponse
from butler_mesh.routing import METHODS, RouteKind


class Message(Protocol):
    """What every handler finds in ``self.message``, wherever it came from."""

    @property
    def path(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def conn_id(self) -> Any: ...
    def get_argument(self, name: str, default: Any = None) -> Any: ...


class MessageHandler:
    """Answers the requests of one route. Each request gets an instance of its own.

    A method named like the request's method answers it; what it returns is the reply, by way of
    ``finish``. ``prepare`` runs before, ``on_finish`` after it, also when it raised.
    """

    kind: ClassVar[RouteKind]
    methods: ClassVar[tuple[str, ...]] = METHODS
    """Request methods that may reach a method of this class."""

    # The seeds' names for the codes that handlers use most.
    _DEFAULT_STATUS = status.SERVER_ERROR  # a handler that never set one did not finish its work
    _SUCCESS_CODE = status.OK
    _UPDATED_CODE = status.OK
    _CREATED_CODE = status.CREATED
    _MULTI_CODE = status.MULTI
    _FAILED_CODE = status.BAD_REQUEST
    _AUTH_FAILURE = status.UNAUTHORIZED
    _FORBIDDEN = status.FORBIDDEN
    _NOT_FOUND = status.NOT_FOUND
    _SERVER_ERROR = status.SERVER_ERROR

    def __init__(self, application: Any, message: Any) -> None:
        self.application = application
        self.message = message
        self.headers: dict[str, str] = {}
        self.status_code: int = self._DEFAULT_STATUS
        self.status_msg: str = ""
        self._has_status = False

    def prepare(self) -> None:
        """Run before the method; raise to refuse the request."""

    def on_finish(self) -> None:
        """Run when the reply is made."""

    def set_status(self, code: int, message: str = "") -> None:
        """Set the reply's status; ``message`` goes with it."""
        self.status_code = code
        self.status_msg = message
        self._has_status = True

    @property
    def is_status_set(self) -> bool:
        """Whether the handler has chosen a status, be it the default one."""
        return self._has_status or self.status_code != self._DEFAULT_STATUS

    @classmethod
    def allowed(cls) -> list[str]:
        """Return the request methods that this class answers, lower case; ``response`` is of replies."""
        return [name for name in cls.methods if name != "response" and callable(getattr(cls, name, None))]

    def unsupported(self) -> Any:
        """Answer a method that this class does not have: 405, and those it has in ``Allow``."""
        allowed = self.allowed()
        error = MethodNotAllowed(f"{self.message.method} is not one of {', '.join(allowed)}", status=405)
        error.headers = {"Allow": ", ".join(name.upper() for name in allowed)}
        raise error

    def finish(self, result: Any) -> Any:
        """Make the reply of what the method returned."""
        return result

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Answer the message; ``args`` and ``kwargs`` are what the route's pattern captured."""
        name = self.message.method.lower()
        method = getattr(self, name, None) if name in self.methods else None
        try:
            self.prepare()
            result = self.unsupported() if method is None else method(*args, **kwargs)
            return self.finish(result)
        finally:
            self.on_finish()


class ServiceMessageHandler(MessageHandler):
    """Answers requests to a service, and, by ``response``, the replies to requests of our own.

    In ``response`` the message is the reply, ``status_code`` and ``status_msg`` are its, and what is
    returned goes to the handler that sent the request, never over the wire.
    """

    kind = RouteKind.SERVICE

    def __init__(self, application: Any, message: ServiceRequest | ServiceResponse) -> None:
        super().__init__(application, message)
        self._payload: dict[str, Any] = {}
        if isinstance(message, ServiceResponse):
            self.set_status(message.status_code, message.status_msg)
        else:
            self.status_msg = "the handler set no status"

    @property
    def payload(self) -> Mapping[str, Any]:
        """What ``add_to_payload`` has gathered."""
        return self._payload

    def add_to_payload(self, key: str, value: Any) -> None:
        """Put a field into the reply's JSON object."""
        self._payload[key] = value

    def render(self, body: Body = None) -> ServiceResponse:
        """Return the reply: the payload (or ``body``) with status and headers as set."""
        content = self._payload if body is None else body
        # METHOD is the seed's: here the caller's side knows a reply when it sees one.
        headers = {name: value for name, value in self.headers.items() if name != "METHOD"}
        return ServiceResponse(self.status_code, self.status_msg, content, headers, path=self.message.path)

    def stream(self, parts: Iterator[Body]) -> ServiceResponse:
        """Return a reply that is sent part by part, at the pace of its reader."""
        return self.render(iter(parts))

    def finish(self, result: Any) -> Any:
        """Nothing returned means what ``render`` would; a value other than a response is its body.

        What ``response`` returns stays as it is.
        """
        if isinstance(self.message, ServiceResponse):
            return result
        if isinstance(result, ServiceResponse):
            return result
        if result is None:
            return self.render()
        if not self.is_status_set:
            self.set_status(status.OK)
        return self.render(result)

    def options(self, *args: Any, **kwargs: Any) -> ServiceResponse:
        """Describe this handler: its methods and its documentation."""
        self.set_status(status.OK)
        return self.render({"methods": self.allowed(), "doc": (type(self).__doc__ or "").strip()})
