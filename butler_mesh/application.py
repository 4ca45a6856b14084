"""Application: handlers by route, and the connection that brings them messages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context, copy_context
from functools import cached_property
from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import gevent
from gevent.pool import Group

from butler_mesh import deadlines
from butler_mesh.connections.base import MANAGEMENT, Delivery
from butler_mesh.errors import MethodNotAllowed, NotFound, UsageError
from butler_mesh.handlers import MessageHandler, ServiceMessageHandler
from butler_mesh.lifetime import GRACE_S, Lifetime
from butler_mesh.management import Management
from butler_mesh.messages import ServiceRequest, ServiceResponse
from butler_mesh.replies import answer
from butler_mesh.resources import Resources
from butler_mesh.routing import RouteKind, RouteTable

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

F = TypeVar("F", bound=Callable[..., Any])

_log = logging.getLogger("butler_mesh.application")


class MessageConnection(Protocol):
    """How messages get into an Application.

    One may have, besides: ``kind``, the RouteKind of what it brings, which functions become routes of; and
    ``wsgi_options()``, a dict of what ``wsgi_app`` takes.
    """

    def start(self, application: Application) -> None:
        """Begin to bring messages."""

    def close(self, grace_s: float) -> None:
        """Take no more, wait for those that run, close."""


class Application:
    """A service or a web front end made of handler classes.

    ``handler_tuples`` are ``(regex, handler class)``; of those that match a path the first wins, and two
    that claim the same raise RouteCollision at once. ``template_loader`` is what ``load_jinja2_env``
    returns. ``cookie_secret`` signs the cookies that handlers set with ``secret=True``; whoever has it can
    forge them, so it is long, random, and not in the code. ``base_handler`` is a class for what no route
    matches, among messages of its kind; without one that is 404. With ``allow_eval`` whoever may send it a
    command may have any Python expression evaluated in it.
    """

    def __init__(
        self,
        msg_conn: MessageConnection | None = None,
        handler_tuples: Iterable[tuple[str, type[MessageHandler]]] = (),
        *,
        template_loader: Callable[[], Any] | None = None,
        log_level: int | str | None = None,
        cookie_secret: str | bytes | None = None,
        base_handler: type[MessageHandler] | None = None,
        grace_s: float = GRACE_S,
        tracebacks: bool = True,
        allow_eval: bool = False,
    ) -> None:
        self.msg_conn = msg_conn
        self.cookie_secret = cookie_secret
        self.base_handler = None if base_handler is None else _checked(base_handler)
        self.grace_s = grace_s
        self.tracebacks = tracebacks
        self.routes = RouteTable()
        self.management = Management(self, self._leave, allow_eval=allow_eval)
        # Whatever handlers share between requests, by name; mesh clients are kept here too.
        self.resources = Resources()
        # Greenlets that outlive the request that caused them; joined when the application stops.
        self.background = Group()
        self._template_loader = template_loader
        self._template_env: Any = None
        self._lifetime = Lifetime()
        if log_level is not None:
            logging.getLogger("butler_mesh").setLevel(log_level)
        for pattern, handler in handler_tuples:
            self.add_handler(pattern, handler)

    # --- routes -------------------------------------------------------------------------------

    def add_handler(self, pattern: str, handler: type[MessageHandler]) -> None:
        """Add one route; raises RouteCollision or UsageError."""
        self.routes.add(pattern, _checked(handler), handler.kind)

    def add_route(
        self, pattern: str, method: str | Sequence[str] | None = None, kind: RouteKind | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Make a function a route, for these methods: ``function(application, message)``, which is given what
        the pattern captured, too.

        A service route's function returns the reply's body, for ``request`` where no method is named; a
        web route's what the method of a web handler does, for ``get``. Where a status or headers go with it,
        either returns a ServiceResponse. ``kind`` is that of the messages which ``msg_conn`` brings, unless
        it is given; without either, SERVICE. Raises UsageError for a method that no such route has.
        """
        if kind is None:
            kind = getattr(self.msg_conn, "kind", RouteKind.SERVICE)
        base = ServiceMessageHandler if kind is RouteKind.SERVICE else _web("templating").Jinja2Rendering
        if method is None:
            method = "request" if kind is RouteKind.SERVICE else "get"
        names = [name.lower() for name in ((method,) if isinstance(method, str) else method)]
        if not set(names) <= set(base.methods):
            raise UsageError(f"{method!r} is not of the methods {', '.join(base.methods)}")

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            members: dict[str, Any] = dict.fromkeys(names, _calling(function, kind))
            members["__doc__"] = function.__doc__ or ""
            self.add_handler(pattern, type(function.__name__, (base,), members))
            return function

        return decorate

    @overload
    def command(self, function: F) -> F: ...
    @overload
    def command(self, function: str) -> Callable[[F], F]: ...
    def command(self, function: F | str) -> F | Callable[[F], F]:
        """Register a command, as a decorator: ``@application.command`` or ``@application.command('name')``.

        It is for those who manage the service (``Client.manage``). Raises RouteCollision when the name is
        taken.
        """
        return self.management.command(function)

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to answer messages; returns at once."""
        if self.msg_conn is None:
            raise UsageError("an application without msg_conn has nowhere to get messages from")
        self.msg_conn.start(self)

    def run(self) -> None:
        """Answer messages until ``stop``, SIGTERM or SIGINT; then finish what runs, within ``grace_s``.

        A second signal ends the process at once.
        """
        self._lifetime.run(self.start, self.close)

    def stop(self) -> None:
        """Make ``run`` return, after it has drained."""
        self._lifetime.stop()

    def close(self) -> None:
        """Take no more messages, finish those that run, let go of all resources."""
        if self.msg_conn is not None:
            self.msg_conn.close(self.grace_s)
        self.background.join(timeout=1.0)
        self.background.kill()
        self.resources.close()

    @property
    def template_env(self) -> Any:
        """The templates' environment, loaded when first asked for."""
        if self._template_env is None:
            if self._template_loader is None:
                raise UsageError("the application has no template_loader")
            self._template_env = self._template_loader()
        return self._template_env

    @cached_property
    def wsgi(self) -> WSGIApplication:
        """The web routes as a WSGI callable, for any server whose workers are gevent's.

        gunicorn takes a plain name: put ``wsgi = app.wsgi`` into ``pages.py``, then
        ``gunicorn --worker-class gevent pages:wsgi``. ``msg_conn`` is not started then; of a web connection
        only the options count (deadline, largest body, trusted proxies).
        """
        options: dict[str, Any] = getattr(self.msg_conn, "wsgi_options", dict)()
        made: WSGIApplication = _web("wsgi").wsgi_app(self, **options)
        return made

    # --- messages -----------------------------------------------------------------------------

    def answer(self, kind: RouteKind, message: Any) -> Any:
        """Run the handler for a message and return its reply; raises NotFound, and what it raises."""
        match = self.routes.match(kind, message.path)
        if match is not None:
            handler: MessageHandler = match.target(self, message)
            return handler.run(*match.args, **match.kwargs)
        if self.base_handler is not None and self.base_handler.kind is kind:
            return self.base_handler(self, message).run()
        raise NotFound(f"no such path: {message.path}", status=404)

    def deliver(self, delivery: Delivery) -> bool:
        """Answer one request to this service; False when its handler failed."""
        if delivery.target.startswith(MANAGEMENT):
            return self.management.answer(delivery, tracebacks=self.tracebacks)
        return self.management.note(answer(delivery, self._respond, tracebacks=self.tracebacks))

    def handle_response(self, response: ServiceResponse) -> Any:
        """Run our own handler for a reply, if there is one; return what it returned."""
        match = self.routes.match(RouteKind.SERVICE, response.path)
        if match is None or not callable(getattr(match.target, "response", None)):
            return None
        return match.target(self, response).run(*match.args, **match.kwargs)

    def handle_response_later(self, response: ServiceResponse, context: Context | None = None) -> None:
        """The same in a greenlet of its own, for a reply that nobody waits for; in ``context``, whose
        deadline does not bind it."""
        if self.routes.match(RouteKind.SERVICE, response.path) is not None:
            context = copy_context() if context is None else context
            context.run(deadlines.current.set, deadlines.NEVER)
            self.background.spawn(context.run, self._handle_guarded, response)

    def describe(self) -> dict[str, Any]:
        """Return the service routes: what method ``options`` answers for a path without a route."""
        return {
            "paths": {
                route.pattern: {
                    "methods": route.target.allowed(),
                    "doc": (route.target.__doc__ or "").strip(),
                }
                for route in self.routes
                if route.kind is RouteKind.SERVICE
            }
        }

    def _respond(self, request: ServiceRequest) -> ServiceResponse:
        if request.method.lower() == "response":
            # Replies come as replies. A request that calls itself one is forged.
            raise MethodNotAllowed("response is no method of a request", status=405)
        if request.method.lower() == "options" and self.routes.match(RouteKind.SERVICE, request.path) is None:
            return ServiceResponse(body=self.describe())
        response: ServiceResponse = self.answer(RouteKind.SERVICE, request)
        return response

    def _leave(self) -> None:
        """End as told by a command: ``run`` returns; without one it is closed, in a greenlet of its own."""
        if self._lifetime.is_running:
            self._lifetime.stop()
        else:
            gevent.spawn(self.close)

    def _handle_guarded(self, response: ServiceResponse) -> None:
        try:
            self.handle_response(response)
        except Exception:
            _log.exception("response-handler-failed %s", response.path)


def _checked(handler: type[MessageHandler]) -> type[MessageHandler]:
    if not (isinstance(handler, type) and issubclass(handler, MessageHandler)):
        raise UsageError(f"{handler!r} is not a handler class")
    return handler


def _web(module: str) -> Any:
    """Return a module of the web's, which lie a floor above: they are loaded by those who have pages."""
    return import_module(f"butler_mesh.web.{module}")


def _calling(function: Callable[..., Any], kind: RouteKind) -> FunctionType:
    def method(self: MessageHandler, *args: Any, **kwargs: Any) -> Any:
        result = function(self.application, self.message, *args, **kwargs)
        if kind is RouteKind.SERVICE and result is None:
            # Such a function has no status to set: returning nothing is no sign of unfinished work.
            return ServiceResponse(path=self.message.path)
        return result

    method.__doc__ = function.__doc__
    return method  # type: ignore[return-value]
