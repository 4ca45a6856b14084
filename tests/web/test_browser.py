"""One browser's connection: what may wait on it, what is learnt of its server. test_mongrel2 has the rest."""

from __future__ import annotations

import gevent
import pytest

from butler_mesh.errors import UsageError
from butler_mesh.protocol.mongrel2 import FLOW_WINDOW, Message
from butler_mesh.web import browser as module
from butler_mesh.web.browser import HEAD_BYTES, MAX_BODY_BYTES, MAX_WAITING, MAX_WAITING_BYTES, Browser
from butler_mesh.web.handover import REPLY_TO, ReplyTo
from butler_mesh.web.mongrel2 import Mongrel2Connection

MESSAGE = Message(b"sender", b"7", b"/", {}, b"")


def busy(connection: Mongrel2Connection | None = None) -> Browser:
    """Return a browser to which something is being answered."""
    browser = Browser(connection or Mongrel2Connection(), (b"sender", b"7"))
    browser.exchange = object()  # type: ignore[assignment]  # whatever it is
    return browser


def test_a_request_that_need_not_wait_may_be_of_any_size() -> None:
    assert Browser(Mongrel2Connection(), (b"sender", b"7")).may_wait(10**9)


def test_one_large_request_may_wait_and_several_only_if_they_are_small() -> None:
    browser = busy()
    assert browser.may_wait(10 * MAX_WAITING_BYTES)
    browser.wait(MESSAGE, MAX_WAITING_BYTES // 2)
    assert browser.may_wait(MAX_WAITING_BYTES // 2)
    assert not browser.may_wait(MAX_WAITING_BYTES)


def test_those_that_were_taken_count_no_more() -> None:
    browser = busy()
    for _ in range(10):
        browser.wait(MESSAGE, MAX_WAITING_BYTES // 2)
        assert not browser.may_wait(MAX_WAITING_BYTES)
        assert browser.next_message() is MESSAGE
        assert browser.may_wait(MAX_WAITING_BYTES)


def test_so_many_may_wait() -> None:
    browser = busy()
    for _ in range(MAX_WAITING):
        assert browser.may_wait(1)
        browser.wait(MESSAGE, 1)
    assert not browser.may_wait(1)


def test_all_browsers_together_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ALL_WAITING_BYTES", 1000)
    connection = Mongrel2Connection()
    one, two = busy(connection), busy(connection)
    one.wait(MESSAGE, 900)
    assert two.may_wait(100)
    assert not two.may_wait(101)
    one.hang_up()  # what waits on it is dropped
    assert connection.waiting_bytes == 0
    assert two.may_wait(1000)


def test_what_another_browser_taught_meanwhile_stays() -> None:
    connection = Mongrel2Connection()
    one, two = (Browser(connection, (b"s", n)) for n in (b"1", b"2"))
    one.send(b"first")
    sending = gevent.spawn(one.send, b"second")
    gevent.idle()
    two.has_read(1)
    sending.get(timeout=5)
    assert connection.has_flow_control is True


@pytest.mark.parametrize(
    ("has_flow_control", "room"),
    [(True, FLOW_WINDOW - 50_000), (None, FLOW_WINDOW - 50_000), (False, MAX_BODY_BYTES)],
)
def test_a_service_is_told_how_much_the_browser_takes(has_flow_control: bool | None, room: int) -> None:
    connection = Mongrel2Connection(hand_over_secret="secret")
    connection.has_flow_control = has_flow_control
    browser = Browser(connection, (b"sender", b"7"))
    browser.unread_bytes = 50_000  # of the reply before
    browser.wait(Message(*browser.key, b"/", {}, b""), 1000)
    headers = browser.hand_over(Message(*browser.key, b"/", {"METHOD": "GET", "VERSION": "HTTP/1.1"}, b""))
    found = ReplyTo.of(headers, {connection.recv_spec: "secret"})
    assert found == (connection.recv_spec, "sender", "7", "GET", "HTTP/1.1", room - HEAD_BYTES)
    assert list(headers) == [REPLY_TO]
    assert browser.is_last
    assert not browser.waiting


def test_without_a_secret_nobody_is_handed_over() -> None:
    browser = Browser(Mongrel2Connection(), (b"sender", b"7"))
    with pytest.raises(UsageError, match="hand_over_secret"):
        browser.hand_over(Message(*browser.key, b"/", {}, b""))
    assert not browser.is_last
