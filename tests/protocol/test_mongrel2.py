"""Mongrel2's wire: what it sends, what a client can forge in it, and what it is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh.errors import ProtocolError
from butler_mesh.protocol.mongrel2 import (
    MAX_TARGETS,
    UPLOAD_DONE,
    UPLOAD_START,
    Message,
    Upload,
    is_sound,
    joined,
    pack_reply,
    parse,
    upload,
)

SENDER = b"34f9ceee-cd52-4b7f-b197-88bf2f0ec378"
FORGED = {UPLOAD_START: "/etc/passwd", UPLOAD_DONE: "/etc/passwd"}

# As captured from Mongrel2 1.12.2, one for each of its header protocols.
JSON = (
    SENDER + b' 3 /form 251:{"PATH":"/form","x-forwarded-for":"127.0.0.1","content-length":"9","host":"x",'
    b'"x-a":["1","2"],"METHOD":"POST","VERSION":"HTTP/1.1","URI":"/form?q=1","QUERY":"q=1","PATTERN":"/",'
    b'"URL_SCHEME":"http","REMOTE_ADDR":"127.0.0.1","DOWNLOAD_CREDITS":"102400"},9:a=1&b=two,'
)
TNET = (
    SENDER
    + b" 7 / 197:11:REMOTE_ADDR,9:127.0.0.1,6:METHOD,3:GET,10:URL_SCHEME,4:http,7:PATTERN,1:/,3:URI,1:/,"
    b"7:VERSION,8:HTTP/1.1,4:PATH,1:/,4:host,8:1:a,1:b,]16:DOWNLOAD_CREDITS,6:102400,"
    b"15:x-forwarded-for,9:127.0.0.1,}0:,"
)


def tnet(value: str | list[Any] | dict[str, Any]) -> bytes:
    """Return a tnetstring of text, lists and dicts."""
    if isinstance(value, str):
        content, kind = value.encode("latin-1"), b","
    elif isinstance(value, list):
        content, kind = b"".join(map(tnet, value)), b"]"
    else:
        content, kind = b"".join(tnet(key) + tnet(one) for key, one in value.items()), b"}"
    return b"%d:%b%b" % (len(content), content, kind)


def sent(headers: dict[str, Any], body: bytes = b"", *, as_json: bool = False) -> bytes:
    """Return a request as Mongrel2 sends it."""
    if as_json:
        text = json.dumps(headers).encode()
        block = b"%d:%b," % (len(text), text)
    else:
        block = tnet(headers)
    return b"%b 7 /page %b%d:%b," % (SENDER, block, len(body), body)


def made(body: bytes = b"", method: str = "POST", **headers: Any) -> Message:
    """Return a request; ``content_length`` stands for that header, what is in capitals for Mongrel2's own."""
    own = {"METHOD": method, "VERSION": "HTTP/1.1", "host": "x"}
    own.update({k if k.isupper() else k.replace("_", "-"): v for k, v in headers.items()})
    return Message(SENDER, b"7", b"/page", {k: v for k, v in own.items() if v is not None}, body)


def uploaded(
    start: Any = "tmp/upload.aaaaaa", done: Any = "tmp/upload.aaaaaa", **headers: Any
) -> Upload | None:
    message = made(**headers)
    message.headers.update({k: v for k, v in {UPLOAD_START: start, UPLOAD_DONE: done}.items() if v})
    return upload(message)


# --- what arrives -------------------------------------------------------------------------------


def test_a_request_with_json_headers_is_read() -> None:
    message = parse(JSON)
    assert (message.sender, message.connection, message.path) == (SENDER, b"3", b"/form")
    assert message.headers["QUERY"] == "q=1"
    assert message.headers["x-a"] == ["1", "2"]
    assert (message.body, message.credits, message.notice) == (b"a=1&b=two", 102400, "")


def test_a_request_with_tnetstring_headers_is_read() -> None:
    message = parse(TNET)
    assert (message.connection, message.path, message.body) == (b"7", b"/", b"")
    assert message.headers["host"] == ["a", "b"]
    assert message.header("x-forwarded-for") == "127.0.0.1"


@pytest.mark.parametrize("as_json", [False, True])
def test_pitfall_1_tabs_control_characters_and_latin_1_are_read(as_json: bool) -> None:
    odd = "a\tb\x01c\xe9\xff\"'\\"
    data = sent({"x-odd": odd}, as_json=as_json)
    if as_json:  # Mongrel2 escapes quotes and backslashes, and nothing else
        raw = odd.replace("\\", "\\\\").replace('"', '\\"').encode("latin-1")
        text = b'{"x-odd":"%b"}' % raw
        data = b"%b 7 /page %d:%b,0:," % (SENDER, len(text), text)
    assert parse(data).headers == {"x-odd": odd}


@pytest.mark.parametrize(
    ("name", "value", "whole"),
    [
        ("cookie", ["a=1", "b=2"], "a=1; b=2"),
        ("accept", ["a", "b"], "a, b"),
        ("accept", "a", "a"),
    ],
)
def test_a_header_that_came_several_times_is_joined_as_http_does(name: str, value: Any, whole: str) -> None:
    assert joined(name, value) == whole
    assert made(**{name: value}).header(name) == whole


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("kind", ["disconnect", "credits"])
def test_notices_are_told_apart(kind: str, as_json: bool) -> None:
    headers = {"METHOD": "JSON", "DOWNLOAD_CREDITS": "512"}
    message = parse(sent(headers, b'{"type":"%b"}' % kind.encode(), as_json=as_json))
    message.path = b"@*"
    assert (message.notice, message.credits) == (kind, 512)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"disconnect"', b"\xff", b"[" * 100_000])
def test_a_notice_that_cannot_be_read_is_none_that_we_know(body: bytes) -> None:
    assert Message(SENDER, b"1", b"@*", {"METHOD": "JSON"}, body).notice == "unreadable"


@pytest.mark.parametrize("path", [b"/", b"/x", b"*", b"@", b"/@*"])
def test_pitfall_9_a_request_with_method_json_is_a_request(path: bytes) -> None:
    assert Message(SENDER, b"1", path, {"METHOD": "JSON"}, b'{"type":"disconnect"}').notice == ""


@pytest.mark.parametrize("text", ["", "-1", "1.0", "²", "9" * 5000, ["1", "2"]])
def test_credits_that_are_no_number_are_none(text: Any) -> None:
    assert made(DOWNLOAD_CREDITS=text).credits == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a b c",
        b" 1 / 2:{},0:,",
        b"a b / 2:{},0:,",
        b"a -1 / 2:{},0:,",
        b"a 1 / 2:{},",
        b"a 1 / 2:{},0:",
        b"a 1 / 2:{},0:,x",
        b"a 1 / 2:{},0:}",
        b"a 1 / 2:[],0:,",
        b"a 1 / 2:1],0:,",
        b"a 1 / 0:]0:,",
        b"a 1 / 4:1:a,}0:,",
        b"a 1 / 3:0:}}0:,",
        b"a 1 / 7:1:a,0:}}0:,",
        b'a 1 / 7:{"a":1},0:,',
        b'a 1 / 9:{"a":[1]},0:,',
        b"a 1 / 3:{}a0:,",
        b"a 1 / 99999999999:{},0:,",
        b"a 1 / -2:{},0:,",
        b"a 1 / 2:{},5:abc,",
        b"a 1 / 100000:" + b"[" * 100_000 + b",0:,",
        b"a\n 1 / 2:{},0:,",
    ],
)
def test_what_mongrel2_would_not_send_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(data)


values = st.text(st.characters(max_codepoint=255)) | st.lists(st.text(st.characters(max_codepoint=255)))
dicts = st.dictionaries(st.text(st.characters(max_codepoint=255)), values)


@given(dicts, st.binary())
def test_headers_come_through_tnetstrings_as_they_were(headers: dict[str, Any], body: bytes) -> None:
    message = parse(sent(headers, body))
    assert (message.headers, message.body) == (headers, body)


@given(dicts, st.binary(), st.data(), st.booleans())
def test_garbled_and_cut_messages_raise_nothing_but_protocol_errors(
    headers: dict[str, Any], body: bytes, data: st.DataObject, as_json: bool
) -> None:
    whole = sent(headers, body, as_json=as_json)
    at = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, 8))
    garbled = whole[:at] + data.draw(st.binary(max_size=8)) + whole[at + length :]
    for one in (whole[:at], garbled):
        try:
            message = parse(one)
        except ProtocolError:
            continue
        assert message.connection.isdigit()
        assert isinstance(message.notice, str)
        assert message.credits >= 0
        assert upload(message) is None or not message.body
        assert is_sound(message) in (True, False)


# --- uploads ------------------------------------------------------------------------------------


def test_an_upload_is_done_when_both_headers_name_the_file() -> None:
    path = "tmp/upload.aaaaaa"
    assert uploaded(done=None, content_length="5000000") == Upload(path, 5_000_000, is_done=False)
    assert uploaded(content_length="5000000") == Upload(path, 5_000_000, is_done=True)
    assert uploaded(transfer_encoding="chunked") == Upload(path, None, is_done=True)
    assert uploaded(transfer_encoding=["chunked", "chunked"]) == Upload(path, None, is_done=True)


def test_pitfall_2_the_first_message_of_an_upload_with_a_forged_end_is_its_start() -> None:
    found = uploaded(done="/etc/passwd", content_length="5000000")
    assert found == Upload("tmp/upload.aaaaaa", 5_000_000, is_done=False)


@pytest.mark.parametrize(
    "headers",
    [
        {"body": b"abc", "content_length": "3"},
        {"body": b"abc", "transfer_encoding": "chunked"},
        {"content_length": "0"},
        {},
        {"content_length": "0" * 5000},
        {"content_length": "9" * 5000},
        # To Mongrel2, which has 32 bits for it, each of these is 0.
        {"content_length": "4294967296"},
        {"content_length": "18446744073709551616"},
        {"content_length": "-5000000"},
        {"content_length": "+5000000"},
        {"content_length": "5e6"},
        {"content_length": ["0", "5000000"]},
        # These are no codings that it knows: the body is its next request.
        {"transfer_encoding": "Chunked"},
        {"transfer_encoding": "chunked "},
        {"transfer_encoding": "gzip, chunked"},
        {"transfer_encoding": ["gzip", "chunked"]},
        # Of a websocket it ignores the length.
        {
            "method": "WEBSOCKET_HANDSHAKE",
            "body": b"key",
            "content_length": "5000000",
            "upgrade": "websocket",
        },
        {"method": "WEBSOCKET", "FLAGS": "0x89", "content_length": "5000000", "upgrade": "websocket"},
    ],
)
def test_pitfall_2_headers_of_an_upload_prove_nothing(headers: dict[str, Any]) -> None:
    message = made(**headers)
    message.headers.update(FORGED)
    assert upload(message) is None


@pytest.mark.parametrize("start", [None, ["a", "a"]])
def test_an_upload_has_one_start(start: Any) -> None:
    assert uploaded(start=start, content_length="5000000") is None


# --- requests that two parties could read in two ways -------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        made(method="GET"),
        made(b"abc", content_length="3"),
        made(content_length="0"),
        made(VERSION="HTTP/1.0", host=None),
        made(b"", transfer_encoding="chunked"),
        made(content_length="5000000", **{"x-mongrel2-upload-start": "tmp/a"}),
        made(method="GET", upgrade="h2c", connection="upgrade"),
    ],
)
def test_a_request_is_sound_whose_end_and_host_are_told_once(message: Message) -> None:
    assert is_sound(message)


@pytest.mark.parametrize(
    "message",
    [
        made(host=None),
        made(host=["a", "b"]),
        made(b"abc", content_length="4"),
        made(b"abc", content_length=["3", "3"]),
        made(b"abc", content_length=["3", "4"]),
        made(b"abc", content_length="+3"),
        made(content_length="4294967296"),
        made(content_length="9" * 5000),
        made(content_length="5000000"),
        made(b"abc"),
        made(transfer_encoding="Chunked"),
        made(transfer_encoding="gzip, chunked"),
        made(transfer_encoding=["chunked", "chunked"]),
        made(transfer_encoding="chunked", content_length="0"),
        made(transfer_encoding="chunked", VERSION="HTTP/1.0"),
        made(b"key", method="WEBSOCKET_HANDSHAKE", upgrade="websocket"),
        made(b"key", method="WEBSOCKET_HANDSHAKE", content_length="3"),
        made(b"", method="WEBSOCKET", FLAGS="0x89"),
    ],
)
def test_a_request_that_could_hide_another_is_not_sound(message: Message) -> None:
    assert not is_sound(message)


# --- what is sent -------------------------------------------------------------------------------


def test_a_reply_names_its_connections() -> None:
    assert list(pack_reply(b"abc-1", [b"1", b"23"], b"HTTP")) == [b"abc-1 4:1 23, HTTP"]
    assert list(pack_reply(b"abc-1", [b"1"], b"")) == [b"abc-1 1:1, "]
    assert list(pack_reply(b"abc-1", [], b"HTTP")) == []


@pytest.mark.parametrize(("number", "groups"), [(100, [100]), (101, [100, 1]), (250, [100, 100, 50])])
def test_a_reply_to_many_goes_in_groups_that_mongrel2_takes(number: int, groups: list[int]) -> None:
    ids = [b"%d" % one for one in range(number)]
    messages = list(pack_reply(b"abc", ids, b"data"))
    targets = [message.partition(b":")[2].partition(b", ")[0].split(b" ") for message in messages]
    assert [len(one) for one in targets] == groups
    assert max(groups) <= MAX_TARGETS
    assert [one for group in targets for one in group] == ids
    for message in messages:
        length, _, rest = message.removeprefix(b"abc ").partition(b":")
        assert rest[int(length) :] == b", data"


@pytest.mark.parametrize("sender", [b"", b"a b", b"a\n", b"a,b", b"\xff"])
def test_pitfall_10_a_reply_from_no_sender_is_never_sent(sender: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(pack_reply(sender, [b"1"], b"data"))


@pytest.mark.parametrize(
    "connections", [[b""], [b"1", b""], [b"1 2"], [b"1,"], [b"-1"], [b"\xb2"], [b"1"] * 100 + [b"a"]]
)
def test_pitfall_10_a_reply_to_no_connection_is_never_sent(connections: list[bytes]) -> None:
    sent: list[bytes] = []
    with pytest.raises(ProtocolError):
        sent.extend(pack_reply(b"abc", connections, b"data"))
    assert not sent
