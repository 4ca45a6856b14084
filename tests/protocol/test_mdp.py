"""The Majordomo dialects frame by frame: RFC 7, RFC 18, majortomo's, and what breaks their tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh.protocol.mdp import (
    DISCONNECT,
    HEARTBEAT,
    MAJORTOMO,
    MDP_01,
    MDP_02,
    READY,
    REPLY_FINAL,
    REPLY_PARTIAL,
    ClientRequest,
    Dialect,
    MalformedMDP,
    WorkerCommand,
    parse,
)

EVERY = (MDP_01, MDP_02, MAJORTOMO)
each_dialect = pytest.mark.parametrize("dialect", EVERY, ids=lambda dialect: dialect.name)
BODY = [b"one", b"", b"three"]


def frames(line: str) -> list[bytes]:
    """Return the frames drawn in a line: ``-`` is an empty one, ``xNN`` a byte, others are text."""
    return [
        b""
        if word == "-"
        else bytes.fromhex(word[1:])
        if word[0] == "x" and len(word) == 3
        else word.encode()
        for word in line.split()
    ]


# --- what arrives ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "dialect"),
    [
        ("- MDPC01 echo one - three", MDP_01),
        ("MDPC02 x01 echo one - three", MDP_02),
        ("- MDPC02 x02 echo one - three", MAJORTOMO),
    ],
)
def test_a_clients_request_is_read_from_the_table_of_its_dialect(line: str, dialect: Dialect) -> None:
    assert parse(frames(line)) == ClientRequest(dialect, b"echo", BODY)


@pytest.mark.parametrize(
    ("line", "dialect", "command", "rest"),
    [
        # RFC 7
        ("- MDPW01 x01 echo", MDP_01, READY, "echo"),
        ("- MDPW01 x03 client - one", MDP_01, REPLY_FINAL, "client - one"),
        ("- MDPW01 x04", MDP_01, HEARTBEAT, ""),
        ("- MDPW01 x05", MDP_01, DISCONNECT, ""),
        # RFC 18
        ("MDPW02 x01 echo", MDP_02, READY, "echo"),
        ("MDPW02 x03 client - one", MDP_02, REPLY_PARTIAL, "client - one"),
        ("MDPW02 x04 client - one", MDP_02, REPLY_FINAL, "client - one"),
        ("MDPW02 x05", MDP_02, HEARTBEAT, ""),
        ("MDPW02 x06", MDP_02, DISCONNECT, ""),
        # majortomo: RFC 18's codes behind RFC 7's empty frame
        ("- MDPW02 x01 echo", MAJORTOMO, READY, "echo"),
        ("- MDPW02 x03 client - one", MAJORTOMO, REPLY_PARTIAL, "client - one"),
        ("- MDPW02 x04 client - one", MAJORTOMO, REPLY_FINAL, "client - one"),
        ("- MDPW02 x05", MAJORTOMO, HEARTBEAT, ""),
        ("- MDPW02 x06", MAJORTOMO, DISCONNECT, ""),
    ],
)
def test_a_workers_command_is_read_from_the_table_of_its_dialect(
    line: str, dialect: Dialect, command: str, rest: str
) -> None:
    assert parse(frames(line)) == WorkerCommand(dialect, command, frames(rest))


@pytest.mark.parametrize(
    "line",
    [
        "- MDPW01 x00",
        "- MDPW01 x02 client - one",  # a REQUEST goes the other way
        "- MDPW01 x06",  # DISCONNECT in 0.2, nothing in 0.1
        "- MDPW01 -",
        "- MDPW01 READY echo",
        "MDPW02 x02 client - one",
        "MDPW02 x07",
        "- MDPW02 xff",
    ],
)
def test_a_byte_that_is_not_in_a_workers_table_is_a_command_without_a_name(line: str) -> None:
    message = parse(frames(line))
    assert isinstance(message, WorkerCommand)
    assert message.command == ""


def test_the_bytes_of_ready_echo_are_those_of_the_rfcs() -> None:
    rfc_18 = [bytes.fromhex(text) for text in ("4d4450573032", "01", "6563686f")]
    assert parse(rfc_18) == WorkerCommand(MDP_02, READY, [b"echo"])
    assert parse([b"", *rfc_18]) == WorkerCommand(MAJORTOMO, READY, [b"echo"])


def test_the_body_is_handed_on_frame_by_frame_untouched() -> None:
    body = [bytes([1, 2, 3]), b""]
    message = parse([b"", b"MDPC01", b"echo", *body])
    assert isinstance(message, ClientRequest)
    assert message.body[0] is body[0]


@pytest.mark.parametrize(
    "line",
    [
        "- MDPC01",
        "- MDPC01 echo",
        "- MDPC01 - body",
        "MDPC02",
        "MDPC02 x01",
        "MDPC02 x01 echo",
        "MDPC02 x01 - body",
        "MDPC02 x02 echo body",  # majortomo's REQUEST without its empty frame
        "MDPC02 x03 echo body",
        "MDPC02 - echo body",
        "MDPC02 echo body",
        "- MDPC02",
        "- MDPC02 x02",
        "- MDPC02 x02 echo",
        "- MDPC02 x02 - body",
        "- MDPC02 x01 echo body",  # RFC 18's REQUEST with an empty frame in front
        "- MDPC02 x03 echo body",
        "- MDPW01",
        "MDPW02",
        "- MDPW02",
    ],
)
def test_frames_that_open_like_a_dialect_and_break_its_table_are_malformed(line: str) -> None:
    with pytest.raises(MalformedMDP):
        parse(frames(line))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "-",
        "- -",
        "- - MDPC01 echo body",
        "MDPC01 echo body",  # 0.1 opens with an empty frame
        "MDPW01 x01 echo",
        "- MDPX01 echo body",
        "- MDPC03 echo body",
        "- mdpc01 echo body",
        "- MDPC01x echo body",
        "x01 echo",
        "- 0.3.0:4f7a1f5e-0000-4000-8000-000000000000 echo 2500 body",
        "hello world",
    ],
)
def test_frames_that_open_like_no_dialect_are_none_of_ours(line: str) -> None:
    assert parse(frames(line)) is None


words = st.sampled_from(
    [b"", b"MDPC01", b"MDPW01", b"MDPC02", b"MDPW02", b"echo", *(bytes([n]) for n in range(8))]
)


@given(st.lists(words | st.binary(max_size=8), max_size=8))
def test_any_frames_are_a_message_or_malformed_or_none_of_ours(frames: list[bytes]) -> None:
    try:
        message = parse(frames)
    except MalformedMDP:
        return
    if isinstance(message, ClientRequest):
        assert message.service
        assert message.body
        assert frames[-len(message.body) :] == message.body


# --- what leaves ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "final", "line"),
    [
        (MDP_01, True, "- MDPC01 echo one - three"),
        (MDP_02, True, "MDPC02 x03 echo one - three"),
        (MDP_02, False, "MDPC02 x02 echo one - three"),
        (MAJORTOMO, True, "- MDPC02 x04 one - three"),
        (MAJORTOMO, False, "- MDPC02 x03 one - three"),
    ],
    ids=lambda value: value.name if isinstance(value, Dialect) else str(value),
)
def test_a_reply_to_a_client_is_written_as_its_table_says(dialect: Dialect, final: bool, line: str) -> None:
    assert dialect.reply(b"echo", BODY, final=final) == frames(line)


@pytest.mark.parametrize(
    ("dialect", "request_", "heartbeat", "disconnect"),
    [
        (MDP_01, "- MDPW01 x02 client - one - three", "- MDPW01 x04", "- MDPW01 x05"),
        (MDP_02, "MDPW02 x02 client - one - three", "MDPW02 x05", "MDPW02 x06"),
        (MAJORTOMO, "- MDPW02 x02 client - one - three", "- MDPW02 x05", "- MDPW02 x06"),
    ],
    ids=lambda value: value.name if isinstance(value, Dialect) else "",
)
def test_what_a_worker_is_told_is_written_as_its_table_says(
    dialect: Dialect, request_: str, heartbeat: str, disconnect: str
) -> None:
    assert dialect.request(b"client", BODY) == frames(request_)
    assert dialect.heartbeat() == frames(heartbeat)
    assert dialect.disconnect() == frames(disconnect)


@each_dialect
def test_what_a_worker_is_told_to_beat_and_leave_by_is_what_it_says_itself(dialect: Dialect) -> None:
    assert parse(dialect.heartbeat()) == WorkerCommand(dialect, HEARTBEAT, [])
    assert parse(dialect.disconnect()) == WorkerCommand(dialect, DISCONNECT, [])


def test_only_0_1_has_no_word_for_part_of_a_reply() -> None:
    assert [dialect.has_partial for dialect in EVERY] == [False, True, True]
