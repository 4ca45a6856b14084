"""Addresses: what is understood, what is refused and how, and that nothing is lost on the way."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from butler_mesh.addresses import (
    BIND_HOST,
    Address,
    check_endpoint,
    check_service,
    ipc_path,
    is_loopback,
    to_bind,
)
from butler_mesh.errors import AddressError

UNDERSTOOD = [
    ("tcp://10.0.0.5:5555/api.images", ["tcp://10.0.0.5:5555"], "api.images"),
    ("tcp://10.0.0.5:5555", ["tcp://10.0.0.5:5555"], ""),
    ("tcp://10.0.0.5:5555/", ["tcp://10.0.0.5:5555"], ""),
    ("tcp://10.0.0.5:5555#api.images", ["tcp://10.0.0.5:5555"], "api.images"),
    ("tcp://a:5555,b:5556/svc", ["tcp://a:5555", "tcp://b:5556"], "svc"),
    ("tcp://[fe80::1%eth0]:1,[::1]:2/svc", ["tcp://[fe80::1%eth0]:1", "tcp://[::1]:2"], "svc"),
    ("tcp://*:5555", ["tcp://*:5555"], ""),
    ("tcp://127.0.0.1:0", ["tcp://127.0.0.1:0"], ""),
    ("tcp://127.0.0.1:*", ["tcp://127.0.0.1:*"], ""),
    ("tcp://a:1/images/large", ["tcp://a:1"], "images/large"),
    ("ipc://run/mesh.sock#svc", ["ipc://run/mesh.sock"], "svc"),
    ("ipc:///a/b.sock,/c.sock#svc", ["ipc:///a/b.sock", "ipc:///c.sock"], "svc"),
    ("ipc://run/mesh.sock", ["ipc://run/mesh.sock"], ""),
    ("memory://tests/one#svc", ["memory://tests/one"], "svc"),
    ("amqp://u:p@a,b:5673/vhost/svc", ["amqp://u:p@a/vhost", "amqp://u:p@b:5673/vhost"], "svc"),
    ("amqp://h//svc", ["amqp://h"], "svc"),
    ("amqp://h/vhost", ["amqp://h/vhost"], ""),
    ("amqps://h/vhost#svc", ["amqps://h/vhost"], "svc"),
    ("amqp://h#svc", ["amqp://h"], "svc"),
    ("amqp://h/%2F/svc", ["amqp://h/%2F"], "svc"),
]

REFUSED = [
    ("", "begins with one of"),
    ("localhost:5555", "begins with one of"),
    ("http://a:5555", "begins with one of"),
    ("TCP://a:5555", "begins with one of"),
    ("tcp://a", "port is missing"),
    ("tcp://a/svc", "port is missing"),
    ("tcp://a:", "port is not a number"),
    ("tcp://a:http", "port is not a number"),
    ("tcp://a:-1", "port is not a number"),
    ("tcp://a:٣", "port is not a number"),
    ("tcp://a:" + "9" * 5000, "port is not a number"),
    ("tcp://a:65536", "over 65535"),
    ("tcp://:5555", "host is empty"),
    ("tcp://", "host is empty"),
    ("tcp://a:1,", "host is empty"),
    ("tcp://::1:5555", "goes in brackets"),
    ("tcp://fe80::1:5555", "goes in brackets"),
    ("tcp://[fe80::1:5555", "neither a name nor an IP address"),
    ("tcp://[zz]:5555", "neither a name nor an IP address"),
    ("tcp://10.0.0.256:5555", "neither a name nor an IP address"),
    ("tcp://a@b:5555", "neither a name nor an IP address"),
    (" tcp://a:1", "begins with one of"),
    ("tcp://a :1", "white space"),
    ("tcp://a:1\n", "white space"),
    ("tcp://a:1/svc ", "white space around it"),
    ("tcp://a:1/s\0c", "control characters"),
    ("tcp://a:1//service/slow", "as only paths do"),
    ("tcp://a:1#", "after '#' is empty"),
    ("tcp://a:1#b#c", "'#'"),
    ("tcp://a:1/b#c", "two services"),
    ("amqp://a/v/b#c", "two services"),
    ("tcp://a:1,tcp://b:2/svc", "scheme is written once"),
    ("tcp://a:1/" + "x" * 256, "longer than 255 bytes"),
    ("ipc://", "a path or name is needed"),
    ("memory://#svc", "a path or name is needed"),
    ("ipc://" + "x" * 108, "at most 107 bytes"),
    ("amqp:///vhost/svc", "host is empty"),
    ("amqp://*/vhost", "neither a name"),
    ("amqp://a:0/vhost", "port is not a number"),
    ("amqp://u:p@ss@a/vhost", "special characters"),
    ("amqp://a/vhost?heartbeat=5", "special characters"),
]


@pytest.mark.parametrize(("text", "endpoints", "service"), UNDERSTOOD)
def test_an_address_is_cut_into_endpoints_and_service(text: str, endpoints: list[str], service: str) -> None:
    address = Address.parse(text)
    assert address == Address(tuple(endpoints), service)
    assert address.scheme == text.partition(":")[0]
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(("text", "wrong"), REFUSED)
def test_a_malformed_address_is_refused_with_what_is_wrong_and_how_it_should_look(
    text: str, wrong: str
) -> None:
    with pytest.raises(AddressError, match=r"for example|a good one is") as caught:
        Address.parse(text)
    assert wrong in str(caught.value)


def test_a_list_of_addresses_means_one_service_at_several_endpoints() -> None:
    together = Address.parse("tcp://a:1,b:2/svc")
    assert Address.parse(["tcp://a:1", "tcp://b:2/svc"]) == together
    assert Address.parse(["tcp://a:1/svc", "tcp://b:2#svc"]) == together


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["tcp://a:1/x", "tcp://b:1/y"],
        ["tcp://a:1", "ipc://b"],
        ["amqp://u@a/v", "amqp://u@a/w"],
        ["amqp://u:1@a", "amqp://u:2@a"],
    ],
)
def test_a_list_that_cannot_be_one_address_is_refused(texts: list[str]) -> None:
    with pytest.raises(AddressError):
        Address.parse(texts)


def test_repr_hides_the_password_and_str_keeps_it() -> None:
    address = Address.parse("amqp://user:secret@a,b/vhost/svc")
    assert str(address) == "amqp://user:secret@a,b/vhost/svc"
    assert repr(address) == (
        "Address(endpoints=('amqp://user:***@a/vhost', 'amqp://user:***@b/vhost'), service='svc')"
    )


@pytest.mark.parametrize(
    "text",
    [
        "ampq://u:secret@a",
        "u:secret@a",
        "amqp://u:secret@a b/v",
        "amqp://u:secret@@a/v",
        "amqp://u:x/secret@a/v",
        "amqp://u:secret/x/y@a/v",
        "amqp://u:secret#x@a/v",
        "amqp://:secret@a:port",
        "amqp://u://secret@a/v",
        "amqp://u:p:secret@:1/v",
        "tcp://a:1,amqp://u:secret@b",
    ],
)
def test_no_error_shows_a_password(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        Address.parse(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("ipc://a", True),
        ("memory://a", True),
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.9.9.9:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://localhost:1", True),
        ("amqp://u:p@localhost/v", True),
        ("amqp://u:p@127.0.0.1:5672/v", True),
        ("tcp://*:1", False),
        ("tcp://0.0.0.0:1", False),
        ("tcp://[::]:1", False),
        ("tcp://localhost.example.com:1", False),
        ("amqp://localhost@a/v", False),
    ],
)
def test_loopback_is_what_no_other_machine_can_reach(endpoint: str, expected: bool) -> None:
    assert is_loopback(endpoint) is expected


def test_only_an_ipc_endpoint_with_a_file_has_a_path() -> None:
    assert ipc_path("ipc://run/mesh.sock") == "run/mesh.sock"
    assert ipc_path("ipc://@abstract") is None
    assert ipc_path("tcp://a:1") is None


def test_an_endpoint_carries_no_service() -> None:
    for endpoint in ("tcp://a:1/svc", "tcp://a:1#svc", "ipc://a#svc", "amqp://a/vhost/svc"):
        with pytest.raises(AddressError):
            check_endpoint(endpoint)


@pytest.mark.parametrize("name", ["", "/a", "a#b", "a\nb", "a\x7f", "\ud800", " a", "é" * 128])
def test_a_name_no_service_can_have_is_refused(name: str) -> None:
    with pytest.raises(AddressError):
        check_service(name)


def _is_service(name: str) -> bool:
    try:
        check_service(name)
    except AddressError:
        return False
    return True


hosts = st.one_of(
    st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map("[{}]".format),
)
ports = st.integers(1, 65535).map(":{}".format)
names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Zs"], exclude_characters="#"), max_size=60
)
paths = st.from_regex(r"[a-z/@._-]{1,30}", fullmatch=True)
vhosts = st.sampled_from(["", "/mesh", "/%2F"])
users = st.sampled_from(["", "guest@", "guest:guest@", "u:%40%2F@"])


@st.composite
def addresses(draw: st.DrawFn) -> Address:
    scheme = draw(st.sampled_from(["tcp", "ipc", "memory", "amqp", "amqps"]))
    service = draw(st.one_of(st.just(""), names.filter(_is_service)))
    user, vhost = (draw(users), draw(vhosts)) if scheme.startswith("amqp") else ("", "")
    where = {"tcp": st.builds("{}{}".format, hosts, ports), "ipc": paths, "memory": paths}
    places = draw(st.lists(where.get(scheme, hosts), min_size=1, max_size=3))
    return Address(tuple(f"{scheme}://{user}{place}{vhost}" for place in places), service)


@given(addresses())
def test_text_and_address_are_each_others_inverse(address: Address) -> None:
    assert Address.parse(str(address)) == address


@given(st.one_of(st.text(), st.text(alphabet="tcpiamq:/#@,[]*. 15").map("tcp://{}".format)))
@example("amqp://a:\n@")
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except AddressError:
        return
    assert Address.parse(str(address)) == address


def test_a_star_means_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BIND_HOST, raising=False)
    assert to_bind("tcp://*:5555") == "tcp://*:5555"
    monkeypatch.setenv(BIND_HOST, "127.0.0.1")
    assert to_bind("tcp://*:5555") == "tcp://127.0.0.1:5555"
    assert to_bind("tcp://*:*") == "tcp://127.0.0.1:*"
    for other in ("tcp://10.0.0.1:5555", "ipc://*", "memory://*"):
        assert to_bind(other) == other
    monkeypatch.setenv(BIND_HOST, "no host")
    with pytest.raises(AddressError, match="white space"):
        to_bind("tcp://*:5555")
