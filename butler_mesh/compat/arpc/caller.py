"""Callers: requests that are waited for, lazy, or without a reply; and commands to all workers or one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from butler_mesh import ServiceRequest, ServiceResponse
from butler_mesh.compat.arpc.operations import AMQPOperations, Codec
from butler_mesh.errors import NotFound, RequestFailed, UsageError

MGT = "mgt."
MGT_TIMEOUT_S = 2.0
"""For answers of workers; over a broker nobody knows how many there are, and it passes in full."""
NOWAIT_TIMEOUT_S = 60.0
_WID = re.compile(r".*-[0-9a-f]{10}")


class LazyResult:
    """A reply that is on its way."""

    def __init__(self, lazy: Any, codec: Codec | None) -> None:
        self._lazy, self._codec = lazy, codec

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the result; raises what the worker raised, and DeadlineExceeded after ``timeout`` s."""
        return _result(self._lazy.get(timeout), self._codec)


class ServiceCaller:
    """Calls the workers behind a routing key; with ``mgt.`` and a key, or a worker's id, their management."""

    def __init__(
        self,
        amqp: AMQPOperations,
        routing_key: str,
        want_replies: bool = False,
        codec: Codec | None = None,
    ) -> None:
        self._amqp, self._key, self._codec = amqp, routing_key, codec
        self.want_replies = want_replies

    def send_request(self, req: Mapping[str, Any], timeout: float | None = None) -> Any:
        """Send a document and wait for the result, ``timeout`` seconds at the longest; without
        ``want_replies`` return None when it was sent (stored, where that was asked for).

        For ``mgt.KEY`` return the list of all workers' results; of a worker that failed it holds the
        exception (a RequestFailed), unless all did. Raises what the worker raised (a RemoteError, which has
        ``type`` and ``traceback``), DeadlineExceeded, NotFound.
        """
        if self._key.startswith(MGT):
            return _unless_all_failed([result for _, result in self.answers(req, timeout)])
        request = self._request(req)
        if self.want_replies:
            response = self._amqp.client.send(self._key, request, timeout=timeout)
            return _result(response, self._codec)
        self._amqp.client.request_nowait(
            self._key,
            request.path,
            body=request.body,
            timeout=NOWAIT_TIMEOUT_S if timeout is None else timeout,
            durable=self._amqp.is_durable,
        )
        return None

    def send_lazy_request(self, req: Mapping[str, Any], timeout: float | None = None) -> LazyResult:
        """Send a document and return at once; the result is had by ``.get()``."""
        if not self.want_replies or self._key.startswith(MGT):
            raise UsageError("a lazy request is one whose single reply is wanted")
        request = self._request(req)
        client = self._amqp.client
        return LazyResult(
            client.request_lazy(self._key, request.path, body=request.body, timeout=timeout), self._codec
        )

    def answers(self, req: Mapping[str, Any], timeout: float | None = None) -> Iterator[tuple[str, Any]]:
        """Give (wid, result) of each worker that answers a management command, as they come: the way there
        is ``mgt.``. The result of one that failed is the exception, a RequestFailed, which is not raised.
        """
        whom = self._key.removeprefix(MGT)
        command, arguments = _name(req), {name: value for name, value in req.items() if name != "c"}
        client, patience_s = self._amqp.client, MGT_TIMEOUT_S if timeout is None else timeout
        if _WID.fullmatch(whom):
            try:
                answers = list(client.manage("", command, arguments, wid=whom, timeout=patience_s))
            except NotFound:
                pass  # The name of a service may end like a worker's id.
            else:
                yield from ((wid, _outcome(response)) for wid, response in answers)
                return
        for wid, response in client.manage(whom, command, arguments, timeout=patience_s):
            yield wid, _outcome(response)

    def _request(self, req: Mapping[str, Any]) -> ServiceRequest:
        body = req if self._codec is None else self._codec.dumps(req)
        return ServiceRequest(f"/{_name(req)}", body=body)


def _name(req: Mapping[str, Any]) -> str:
    name = req.get("c") if isinstance(req, Mapping) else None
    if not isinstance(name, str) or not name:
        raise UsageError("a request is a document that names its method under 'c'")
    return name


def _result(response: Any, codec: Codec | None) -> Any:
    response.raise_for_status()
    return response.body if codec is None else codec.loads(response.body)


def _outcome(response: ServiceResponse) -> Any:
    return _shown(response.body) if response.is_success else response.failure()


def _unless_all_failed(results: list[Any]) -> list[Any]:
    """Return results, failures among them: what some have done must not be hidden by another's failure."""
    if results and all(isinstance(result, RequestFailed) for result in results):
        raise results[0]
    return results


def _shown(result: Any) -> Any:
    """Return stats as arpc gave them: waiting times are texts."""
    if isinstance(result, dict) and isinstance(result.get("waittimes"), list):
        result["waittimes"] = [f"{wait:.4f}" for wait in result["waittimes"]]
    return result
