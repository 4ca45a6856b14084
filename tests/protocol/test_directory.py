"""The directory: services by name and by whole-segment path prefix, and the grace for those absent."""

from __future__ import annotations

from butler_mesh.protocol.directory import MAX_POOLS, Directory
from butler_mesh.protocol.limits import Limits
from butler_mesh.protocol.liveness import DEAD_AFTER_S
from butler_mesh.protocol.outbox import Outbox
from butler_mesh.protocol.peers import Call, ClientPeer, Door, InstancePeer

NOW = 1000.0


def directory(register_grace_s: float = 3.0, absent_grace_s: float = 60.0) -> Directory:
    limits = Limits(
        register_grace_s=register_grace_s, absent_grace_s=absent_grace_s, forget_service_s=absent_grace_s
    )
    return Directory(NOW, limits)


def instance() -> InstancePeer:
    door = Door("back")
    return InstancePeer(door, Outbox([], door, b"i"), "instance", NOW)


def call_for(pool: object) -> Call:
    door = Door("front")
    client = ClientPeer(door, Outbox([], door, b"c"), "client", NOW)
    return Call(client, 1, 0, NOW + DEAD_AFTER_S, b"", None, pool)  # type: ignore[arg-type]


def test_a_service_is_found_by_its_name_and_by_the_longest_of_its_paths() -> None:
    made = directory()
    images = made.claim(b"images", [b"/images"], NOW)
    thumbs = made.claim(b"thumbs", [b"/images/thumbs"], NOW)
    assert made.find(b"images") is images
    assert made.find(b"/images") is made.find(b"/images/a.jpg") is images
    assert made.find(b"/images/thumbs/a.jpg") is thumbs
    assert made.find(b"/images/thumbsup") is images
    assert made.find(b"/imagesque") is None
    assert made.find(b"nothing") is None


def test_the_root_takes_every_path_that_nobody_else_has() -> None:
    made = directory()
    root = made.claim(b"web", [b"/"], NOW)
    assert made.find(b"/") is made.find(b"/a/b") is root
    assert made.find(b"a") is None


def test_instances_without_a_name_share_one_made_of_their_paths() -> None:
    made = directory()
    assert made.claim(b"", [b"/b", b"/a"], NOW) is made.claim(b"", [b"/a", b"/b"], NOW)


def test_a_path_belongs_to_a_service_for_as_long_as_that_has_instances() -> None:
    made = directory()
    first = made.claim(b"first", [b"/a"], NOW)
    assert made.owner(b"second", [b"/a"]) is None
    first.instances.add(instance())
    assert made.owner(b"second", [b"/b", b"/a"]) == b"/a"
    assert made.owner(b"first", [b"/a"]) is None


def test_requests_that_came_for_a_path_before_its_owner_are_the_owners() -> None:
    made = directory()
    early, other = made.imagine(b"/a/x", NOW), made.imagine(b"/b", NOW)
    assert early is not None
    assert other is not None
    call = call_for(early)
    assert call.client is not None
    early.queue.push(call.client, call)
    heir = made.claim(b"svc", [b"/a"], NOW)
    assert made.inherit(heir) == [call]
    assert call.pool is heir
    assert made.find(b"/a/x") is heir
    assert made.find(b"/b") is other


def test_the_absent_are_expected_for_a_while_after_the_start_and_after_they_left() -> None:
    made = directory()
    made_up, known = made.imagine(b"typo", NOW), made.claim(b"svc", [], NOW)
    assert made_up is not None
    known.left_at = NOW + 10
    assert made.is_expected(made_up, NOW + 2.9)
    assert not made.is_expected(made_up, NOW + 3.1)
    assert made.is_expected(known, NOW + 69.9)
    assert not made.is_expected(known, NOW + 70.1)


def test_what_is_no_longer_expected_is_forgotten_with_its_paths() -> None:
    made = directory(register_grace_s=0.0)
    made.claim(b"svc", [b"/a"], NOW)
    made.tidy(NOW + 59)
    assert made.find(b"/a") is not None
    made.tidy(NOW + 61)
    assert made.find(b"/a") is None
    assert not made.pools
    assert not made.prefixes


def test_names_that_clients_make_up_do_not_grow_the_table_without_end() -> None:
    made = directory()
    for n in range(MAX_POOLS):
        assert made.imagine(b"%d" % n, NOW) is not None
    assert made.imagine(b"one more", NOW) is None


def test_a_service_that_is_down_does_not_stand_before_one_that_is_there() -> None:
    """For a minute it may be deployed; then the shorter prefix's owner answers, if there is one."""
    made = directory(register_grace_s=0.0)
    longer, shorter = made.claim(b"long", [b"/a"], NOW), made.claim(b"short", [b"/"], NOW)
    made.tidy(NOW + 1)
    shorter.instances.add(instance())
    longer.left_at = NOW
    assert made.find(b"/a/x") is longer
    made._now = NOW + 61
    assert made.find(b"/a/x") is shorter
    shorter.instances.clear()
    assert made.find(b"/a/x") is longer
