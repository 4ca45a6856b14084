"""A channel that comes back, and what is said of it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from butler_mesh.connections.amqp.kept import MAX_PAUSE_S, PAUSE_S, KeptChannel
from butler_mesh.errors import InstanceLost, NotFound, RequestFailed
from tests.brokers import Broker, free_port
from tests.connections.cutting import cut
from tests.waiting import wait_for

PATIENCE_S = 10.0


class Keeping:
    """A kept channel on which something is done as it is opened, and what became of it."""

    def __init__(self, endpoint: str, use: Callable[[Any], object]) -> None:
        self.opened = 0
        self.lost: list[RequestFailed] = []
        self.use = use
        self.kept = KeptChannel(
            [endpoint], "out", on_open=self._opened, on_lost=self.lost.append, on_fork=lambda: None
        )
        self.kept.start()

    def _opened(self, channel: Any) -> None:
        self.opened += 1
        self.use(channel)
        channel.basic_qos(prefetch_count=1, callback=lambda _: self.kept.ready())


@pytest.fixture
def keep(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Keeping]]:
    monkeypatch.setattr("butler_mesh.connections.amqp.kept.PAUSE_S", 0.02)
    made: list[Keeping] = []

    def keep(use: Callable[[Any], object] = id, endpoint: str = broker.endpoint) -> Keeping:
        made.append(Keeping(endpoint, use))
        return made[-1]

    yield keep
    for one in made:
        one.kept.close()


def no_such_queue(channel: Any) -> None:
    channel.queue_declare("nowhere", passive=True)


def test_it_is_waited_for(keep: Callable[..., Keeping]) -> None:
    keeping = keep()
    assert keeping.kept.wait(PATIENCE_S)
    assert keeping.kept.channel.is_open
    assert not keeping.kept.is_blocked


def test_without_a_broker_there_is_none(keep: Callable[..., Keeping]) -> None:
    assert not keep(endpoint=f"amqp://127.0.0.1:{free_port()}").kept.wait(0.05)


def test_what_the_broker_refuses_is_raised_at_once_until_it_does_not(
    keep: Callable[..., Keeping], caplog: pytest.LogCaptureFixture
) -> None:
    keeping = keep(no_such_queue)
    for _ in range(2):
        with pytest.raises(NotFound, match="nowhere"):
            keeping.kept.wait(PATIENCE_S)
    assert isinstance(keeping.lost[0], NotFound)
    wait_for(lambda: keeping.opened >= 3)
    keeping.use = id
    wait_for(lambda: keeping.kept._refusal is None)
    assert keeping.kept.wait(0.0)
    # One line each.
    assert len(caplog.records) == len(keeping.lost)


def test_the_pauses_grow_to_half_a_minute_and_begin_anew(keep: Callable[..., Keeping]) -> None:
    keeping, pauses = keep(), [PAUSE_S]
    assert keeping.kept.wait(PATIENCE_S)
    for _ in range(6):
        keeping.kept._pause_s = pauses[-1]
        keeping.kept._try_again("test")
        pauses.append(keeping.kept._pause_s)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, MAX_PAUSE_S]
    keeping.kept.ready()
    assert keeping.kept._pause_s == 0.02


def test_one_that_was_given_up_is_replaced(keep: Callable[..., Keeping]) -> None:
    keeping = keep()
    assert keeping.kept.wait(PATIENCE_S)
    first = keeping.kept.channel
    keeping.kept.renew("the test wants another")
    assert isinstance(keeping.lost[0], InstanceLost)
    assert not keeping.kept.wait(0.0)
    assert keeping.kept.wait(PATIENCE_S)
    assert keeping.kept.channel is not first
    assert first.is_closed


def test_a_connection_that_was_cut_is_told_as_lost(keep: Callable[..., Keeping]) -> None:
    keeping = keep()
    assert keeping.kept.wait(PATIENCE_S)
    cut(keeping.kept._link)
    wait_for(lambda: keeping.lost)
    assert "the broker was lost" in str(keeping.lost[0])
    assert keeping.kept.wait(PATIENCE_S)


def test_a_refusal_of_our_user_is_raised(keep: Callable[..., Keeping], broker: Broker) -> None:
    keeping = keep(endpoint=broker.endpoint.replace(broker.password, "wrong"))
    with pytest.raises(RequestFailed) as caught:
        keeping.kept.wait(PATIENCE_S)
    assert caught.value.status == 401


def test_one_that_was_abandoned_is_nobodys(keep: Callable[..., Keeping]) -> None:
    keeping = keep()
    assert keeping.kept.wait(PATIENCE_S)
    keeping.kept.abandon()
    assert keeping.kept.channel is None
    assert not keeping.kept.wait(0.0)
