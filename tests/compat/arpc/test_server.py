"""Workers: what is exposed, how they scale, and how they are managed."""

from __future__ import annotations

import pickle
from typing import Any

import gevent
import pytest

from butler_mesh.compat.arpc import mq
from butler_mesh.errors import NotFound, RequestFailed
from tests.compat.arpc.conftest import KEY, ExampleService, Operations, Start
from tests.waiting import wait_for


class Whose:
    """Tells which of several workers has answered."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.now = self.most = 0

    def c_work(self, req: Any) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        gevent.sleep(req["s"])
        self.now -= 1
        return self.name


def test_methods_with_the_prefix_are_exposed_and_no_others(operations: Operations, start: Start) -> None:
    start(ExampleService())
    caller = mq.ServiceCaller(operations(), KEY, want_replies=True)
    assert caller.send_request({"c": "add", "x": 4, "y": 8}) == {"res": 12}
    for name in ("helper", "c_add", "__init__"):
        with pytest.raises(NotFound):
            caller.send_request({"c": name})


def test_a_method_is_given_the_whole_document(operations: Operations, start: Start) -> None:
    service = ExampleService()
    start(service)
    document = {"c": "note", "text": "ü", "list": [1, None, {"a": 1.5}]}
    assert mq.ServiceCaller(operations(), KEY, want_replies=True).send_request(document) is None
    assert service.seen == [document]


def test_a_client_of_the_mesh_calls_the_same_methods(operations: Operations, start: Start) -> None:
    start(ExampleService())
    assert operations().client.request(KEY, "/add", {"x": 1, "y": 2}).body == {"res": 3}


def test_documents_need_not_be_JSON(operations: Operations, start: Start) -> None:
    service = ExampleService()
    start(service, pickle)
    caller = mq.ServiceCaller(operations(), KEY, want_replies=True, codec=pickle)
    assert caller.send_request({"c": "add", "x": {1}.pop(), "y": 2 + 3j}) == {"res": 3 + 3j}
    assert caller.send_lazy_request({"c": "note", "set": {1, 2}}).get() is None
    assert service.seen == [{"c": "note", "set": {1, 2}}]


def test_workers_with_a_passphrase_take_what_is_sealed_by_it(operations: Operations, start: Start) -> None:
    start(ExampleService(), passphrase="secret")
    document = {"c": "add", "x": 4, "y": 8}
    sealed = mq.ServiceCaller(operations(passphrase="secret"), KEY, want_replies=True)
    assert sealed.send_request(document) == {"res": 12}
    with pytest.raises(RequestFailed, match="seal"):
        mq.ServiceCaller(operations(), KEY, want_replies=True).send_request(document)


def test_workers_with_one_key_share_the_work_each_one_at_a_time(operations: Operations, start: Start) -> None:
    workers = [Whose("one"), Whose("two")]
    for worker in workers:
        start(worker)
    callers = [mq.ServiceCaller(operations(), KEY, want_replies=True) for _ in range(2)]
    lazies = [caller.send_lazy_request({"c": "work", "s": 0.01}) for caller in callers for _ in range(5)]
    assert {lazy.get(10.0) for lazy in lazies} == {"one", "two"}
    assert [worker.most for worker in workers] == [1, 1]


def test_a_command_of_ones_own_is_one_decorator(operations: Operations, start: Start) -> None:
    def prepare(server: mq.Server) -> None:
        @server.command
        def greet(name: str) -> str:
            return f"hello {name}"

    worker = start(ExampleService(), prepare=prepare)
    caller = mq.ServiceCaller(operations(), f"mgt.{worker.wid}")
    assert caller.send_request({"c": "greet", "name": "you"}) == ["hello you"]


def test_eval_is_there_where_it_was_allowed(operations: Operations, start: Start) -> None:
    careful, bold = start(ExampleService()), start(ExampleService(), allow_eval=True)
    document = {"c": "eval", "expression": "[service.name, 6 * 7]"}
    assert mq.ServiceCaller(operations(), f"mgt.{bold.wid}").send_request(document) == [[KEY, 42]]
    with pytest.raises(NotFound, match="no command 'eval'"):
        mq.ServiceCaller(operations(), f"mgt.{careful.wid}").send_request(document)


@pytest.mark.slow
def test_kill_ends_the_workers_themselves(operations: Operations, start: Start) -> None:
    workers = [start(ExampleService()) for _ in range(2)]
    caller = mq.ServiceCaller(operations(), f"mgt.{KEY}")
    assert len(caller.send_request({"c": "kill"}, timeout=1.0)) == 2
    wait_for(lambda: not any(worker.service._lifetime.is_running for worker in workers))


def test_json_is_what_a_server_takes_unless_it_is_told(operations: Operations) -> None:
    server = mq.make_json_server(operations(), KEY, ExampleService())
    assert sorted(server.service._functions) == ["/add", "/fail", "/note", "/wait"]
