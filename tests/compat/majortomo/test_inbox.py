"""Where a worker's requests come in: the frames, the replies' way back, and who is let go when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from butler_mesh.compat.majortomo.inbox import Inbox, Task
from butler_mesh.errors import Stopped, Unavailable
from tests.meshes import Mesh, send_raw
from tests.waiting import wait_for


@pytest.fixture
def inbox(mesh: Mesh) -> Iterator[Inbox]:
    """Registered as ``svc``."""
    inbox = Inbox(mesh.endpoint, "svc")
    inbox.start()
    assert inbox.wait_until_registered(10.0)
    yield inbox
    inbox.close()


def taken(inbox: Inbox) -> Task:
    task = inbox.tasks.get(timeout=5.0)
    assert task is not None
    return task


# --- tasks ----------------------------------------------------------------------------------------


def test_replies_are_parts_and_the_last_is_the_value_returned() -> None:
    """So the mesh sends the last one as FINAL and the others as PARTIAL."""
    task = Task(b"token", [])
    parts = task.parts()
    got: list[Any] = []

    def mesh_side() -> Iterator[list[bytes]]:
        got.append((yield from parts))

    side = mesh_side()
    task.reply([b"1", b""], final=False)
    assert next(side) == [b"1", b""]
    gevent.spawn(task.reply, [b"2"], final=True)
    assert list(side) == []
    assert got == [[b"2"]]
    assert task.is_answered
    assert task.over.is_set()


def test_a_sender_waits_while_nobody_takes_and_is_let_go_when_nobody_will() -> None:
    """The program that sends does not hang on a caller who has gone."""
    task = Task(b"token", [])
    parts = task.parts()
    task.reply([b"1"], final=False)
    assert next(parts) == [b"1"]

    def send() -> None:
        task.reply([b"2"], final=False)
        task.reply([b"3"], final=False)

    sender = gevent.spawn(send)
    gevent.sleep(0.01)
    assert not sender.ready()
    parts.close()
    sender.join(timeout=5.0)
    assert sender.successful()
    task.reply([b"4"], final=True)  # goes nowhere, and does not wait


@pytest.mark.parametrize(("is_handed_out", "kind"), [(True, Stopped), (False, Unavailable)])
def test_a_task_that_was_handed_out_is_lost_when_the_worker_leaves_the_others_were_never_started(
    is_handed_out: bool, kind: type[BaseException]
) -> None:
    """The one caller is told 502, which it may not simply repeat, the other 503."""
    task = Task(b"token", [])
    task.is_handed_out = is_handed_out
    greenlet = gevent.spawn(lambda: next(task.parts()))
    gevent.sleep(0)
    greenlet.kill(Stopped(502, "the service stopped"))
    with pytest.raises(kind):
        greenlet.get(timeout=5.0)


def test_a_caller_that_gave_up_is_no_loss() -> None:
    """Nobody is told anything; the task is over."""
    task = Task(b"token", [])
    task.is_handed_out = True
    greenlet = gevent.spawn(lambda: next(task.parts()))
    gevent.sleep(0)
    greenlet.kill(Stopped(499, "the caller gave up"))
    with pytest.raises(Stopped):
        greenlet.get(timeout=5.0)
    assert task.over.is_set()


# --- the inbox ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "envelope",
    [
        b'{"path": "/x"}',
        b'{"path":"no slash"}',
        b'{"path": 5, "method": null}',
        b'{"method": "resize", "width": 3, "jsonrpc": "2.0"}',
        b'{"method": "response"}',
        b'{"method": "options"}',
        b'{ "arguments" : [1, 2],\n "name": "K\xc3\xa4se", "path": "\\u00e4" }',
        b'{"path": "/", "body": "a body"}',
    ],
)
def test_JSON_arrives_as_the_frame_it_was(mesh: Mesh, inbox: Inbox, envelope: bytes) -> None:
    """Byte for byte: a Majordomo client's own JSON may have a ``path`` or ``method`` that is no business of
    ours, and fields that no envelope has. Its sender is answered by the program."""
    reply = gevent.spawn(send_raw, mesh.client(), "svc", envelope)
    task = taken(inbox)
    assert task.frames == [envelope]
    task.reply([b"ok"], final=True)
    response = reply.get(timeout=5.0)
    assert (response.status_code, response.body) == (200, [b"ok"])


def test_frames_arrive_as_they_were(mesh: Mesh, inbox: Inbox) -> None:
    """Also those that look like JSON, and bytes that came without a list."""
    client = mesh.client()
    for body, frames in (
        ([b'{"path": "/x"}', b""], [b'{"path": "/x"}', b""]),
        (b"alone", [b"alone"]),
        (b"", [b""]),
    ):
        lazy = client.request_lazy("svc", "/any/path", body=body)
        task = taken(inbox)
        assert task.frames == frames
        task.reply(frames, final=True)
        assert lazy.get(5.0).body == frames


def test_a_request_of_the_mesh_is_one_frame_of_its_JSON(mesh: Mesh, inbox: Inbox) -> None:
    """As it is for every Majordomo worker: path and arguments are for the program to read."""
    lazy = mesh.client().request_lazy("svc", "/any", {"a": 1})
    task = taken(inbox)
    assert task.frames == [b'{"path":"/any","arguments":{"a":1}}']
    task.reply([b"1"], final=False)
    task.reply([b"2", b"3"], final=True)
    assert lazy.get(5.0).body == [b"1", b"2", b"3"]


def test_each_task_has_a_token_of_its_own(mesh: Mesh, inbox: Inbox) -> None:
    """Eight bytes, as any Majordomo worker has them from our router."""
    client = mesh.client()
    tokens: set[bytes] = set()
    for _ in range(3):
        lazy = client.request_lazy("svc", "/", body=[b"x"])
        task = taken(inbox)
        assert len(task.token) == 8
        tokens.add(task.token)
        task.reply([b""], final=True)
        assert lazy.get(5.0).is_success
    assert len(tokens) == 3


def test_one_task_at_a_time(mesh: Mesh, inbox: Inbox) -> None:
    """The second caller waits in the router until the first is answered."""
    client = mesh.client()
    lazies = [client.request_lazy("svc", "/", body=[b"%d" % n]) for n in range(2)]
    first = taken(inbox)
    wait_for(lambda: mesh.router.status()["services"]["svc"]["queued"] == 1)
    assert inbox.tasks.empty()
    first.reply([b"a"], final=True)
    second = taken(inbox)
    second.reply([b"b"], final=True)
    assert [lazy.get(5.0).body for lazy in lazies] == [[b"a"], [b"b"]]
