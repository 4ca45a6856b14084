"""Resources: kept under a key, told when they come and go, closed with their application."""

from __future__ import annotations

from typing import Any

import pytest

from butler_mesh.application import Application
from butler_mesh.errors import UsageError
from butler_mesh.resources import Resource, Resources


class Recorded(Resource):
    """Says what happens to it."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__(name, "DB ")
        self.log = log

    def on_register(self) -> None:
        self.log.append(f"+{self.name}")

    def on_unregister(self) -> None:
        self.log.append(f"-{self.name}")


def test_a_resource_is_told_when_it_comes_and_goes() -> None:
    log: list[str] = []
    resources = Resources()
    assert resources.register(Recorded("a", log))
    assert resources["DB a"].get() is None
    resources["DB a"].set(7)
    assert resources["DB a"].get() == 7
    assert resources.unregister("DB a")
    assert log == ["+a", "-a"]
    assert not resources


def test_what_is_registered_already_stays() -> None:
    log: list[str] = []
    resources = Resources()
    resources.register(first := Recorded("a", log))
    assert not resources.register(Recorded("a", log))
    assert resources["DB a"] is first
    assert log == ["+a"]


def test_anything_may_be_a_resource_under_a_key() -> None:
    resources = Resources()
    assert resources.register({"any": "thing"}, "things")
    assert resources["things"] == {"any": "thing"}
    assert resources.unregister("things")
    assert not resources.unregister("things")


@pytest.mark.parametrize("nameless", [object(), Resource()])
def test_without_a_key_it_could_not_be_found(nameless: Any) -> None:
    with pytest.raises(UsageError, match="key"):
        Resources().register(nameless)


def test_one_whose_coming_fails_is_not_there() -> None:
    class Broken(Resource):
        def on_register(self) -> None:
            raise OSError("no database")

    resources = Resources()
    with pytest.raises(OSError, match="no database"):
        resources.register(Broken("x"))
    assert not resources


def test_an_application_ends_its_resources_the_latest_first() -> None:
    log: list[str] = []

    class Closable:
        def close(self) -> None:
            log.append("closed")

    application = Application()
    application.resources.register(Recorded("a", log))
    application.resources["plain"] = object()
    application.resources["closable"] = Closable()
    application.resources.register(Recorded("b", log))
    application.close()
    assert log == ["+a", "+b", "-b", "closed", "-a"]
    assert not application.resources


def test_one_that_fails_at_its_end_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []

    class Broken(Resource):
        def on_unregister(self) -> None:
            raise OSError("no database any more")

    resources = Resources()
    resources.register(Recorded("a", log))
    resources.register(Broken("x"))
    resources.close()
    assert log == ["+a", "-a"]
    assert [record.getMessage() for record in caplog.records] == ["resource-failed 'x'"]
    caplog.clear()


def test_what_is_unregistered_is_closed_if_it_can_be() -> None:
    closed: list[int] = []

    class Closable:
        def close(self) -> None:
            closed.append(1)

    resources = Resources()
    resources.register(Closable(), "c")
    resources.unregister("c")
    assert closed == [1]
