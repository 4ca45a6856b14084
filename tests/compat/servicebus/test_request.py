"""A call in the hands of a service, and its one answer."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from butler_mesh.compat.servicebus.event import Event
from butler_mesh.compat.servicebus.request import Request, Response

EVENT = Event("1", "math", "add", [1, 2])


def test_a_request_has_parameters_event_and_sender() -> None:
    sender: Any = object()
    request = Request(EVENT, sender)
    assert (request.get_params(), request.get_event(), request.get_sender()) == ([1, 2], EVENT, sender)


def test_the_first_answer_is_the_one() -> None:
    response = Response()
    waiting = gevent.spawn(response.wait)
    assert not response.is_sent
    response.send(3)
    response.send(4)
    response.fail(KeyError("late"))
    assert response.is_sent
    assert waiting.get(timeout=5.0) == 3


def test_a_failure_is_raised_with_where_it_was() -> None:
    response = Response()
    try:
        raise KeyError("x")
    except KeyError as error:
        response.fail(error)
    response.send("late")
    with pytest.raises(KeyError) as caught:
        response.wait()
    assert caught.traceback[-1].name == "test_a_failure_is_raised_with_where_it_was"
