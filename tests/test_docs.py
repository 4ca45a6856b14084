"""The documentation is true: pages parse, links lead on, the example runs, the bytes are the wire's own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from butler_mesh.messages import ServiceRequest, encode_request, encode_response
from butler_mesh.protocol import mesh
from butler_mesh.protocol.client import ClientProtocol
from butler_mesh.protocol.instance import Identity, InstanceProtocol, Intake
from butler_mesh.protocol.member import Member
from butler_mesh.protocol.router import RouterProtocol
from tests.waiting import wait_for

ROOT = Path(__file__).parents[1]
README = ROOT / "README.rst"
PROTOCOL = ROOT / "docs" / "protocol.rst"
PAGES = sorted([*ROOT.glob("*.rst"), *ROOT.glob("docs/**/*.rst")])
START_S = 30.0  # a process starts in half a second, on a machine with nothing else to do

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path) -> dict[str, str]:
    """Return a page's code blocks that have a name: those which the tests run or compare."""
    found: dict[str, str] = {}
    pattern = r"^\.\. code-block:: \w+\n   :name: ([^\n]+)\n\n((?:   [^\n]*\n|\n)+)"
    for name, text in re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE):
        assert name not in found, f"{page.name} has two blocks called {name}"
        found[name] = re.sub("^   ", "", text, flags=re.MULTILINE).strip("\n") + "\n"
    return found


# --- pages ------------------------------------------------------------------------------------


@every_page
def test_a_page_is_restructured_text_without_a_warning(page: Path) -> None:
    core = pytest.importorskip("docutils.core", reason="docutils is in the extra 'dev'")
    settings: dict[str, Any] = {
        "report_level": 2,  # from warnings on: that headings repeat is only information
        "halt_level": 2,
        "syntax_highlight": "none",
        "file_insertion_enabled": False,
        "raw_enabled": False,
    }
    core.publish_doctree(page.read_text(encoding="utf-8"), str(page), settings_overrides=settings)


@every_page
def test_a_link_from_page_to_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"`[^`<]+<([^>:#]+?)(?:#[^>]*)?>`__?", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@every_page
def test_a_file_that_a_page_names_exists(page: Path) -> None:
    paths = re.findall(r"``((?:butler_mesh|tests|docs|demos)/[\w/.]+)``", page.read_text(encoding="utf-8"))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_decision_is_in_their_index() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.rst"))
    index = (ROOT / "docs" / "decisions" / "README.rst").read_text(encoding="utf-8")
    assert records
    assert [record.name for record in records if f"<{record.name}>" not in index] == []


def test_every_trap_of_mongrel2_has_its_test() -> None:
    page = (ROOT / "docs" / "web.rst").read_text(encoding="utf-8")
    table = page[page.index("Ten traps, and their tests") : page.index("Any WSGI application")]
    traps = re.findall(r"^(\d+) +\S", table, re.MULTILINE)
    assert traps == [str(number) for number in range(1, 11)]
    tests = (ROOT / "tests" / "web" / "test_mongrel2.py").read_text(encoding="utf-8")
    assert set(re.findall(r"def test_pitfall_(\d+)_", tests)) == set(traps)


# --- the README's example ---------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_in_the_readme_prints_what_the_readme_says(tmp_path: Path) -> None:
    found = blocks(README)
    programs = {name: text for name, text in found.items() if name.endswith(".py")}
    prints = {name.removesuffix(" prints"): text for name, text in found.items() if name.endswith(" prints")}
    assert prints
    assert prints.keys() < programs.keys()
    frontend, backend = free_ports(2)
    for name, text in programs.items():
        text = text.replace("127.0.0.1:5555", f"127.0.0.1:{frontend}")
        (tmp_path / name).write_text(text.replace("127.0.0.1:5556", f"127.0.0.1:{backend}"))
    sides = (f"--frontend=tcp://127.0.0.1:{frontend}", f"--backend=tcp://127.0.0.1:{backend}")
    with ExitStack() as stack:
        log = stack.enter_context(running(tmp_path, "router", "-m", "butler_mesh", "router", *sides))
        wait_for(lambda: log.read_text().count("listening on") == 2, START_S)
        for name in programs.keys() - prints.keys():
            stack.enter_context(running(tmp_path, name, name))
        wait_for(lambda: "registered" in log.read_text(), START_S)
        for name, expected in prints.items():
            run = subprocess.run(
                [sys.executable, name],
                cwd=tmp_path,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=START_S,
            )
            assert (run.stdout, run.stderr, run.returncode) == (expected, "", 0)


@contextmanager
def running(directory: Path, name: str, *argv: str) -> Iterator[Path]:
    """Run a program until the block ends; it must then end well on SIGTERM. Gives the path of its log."""
    log = directory / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *argv], cwd=directory, env=environment(), stdout=out, stderr=out
        )
    try:
        yield log
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        sys.stdout.write(f"--- {name}\n{log.read_text()}")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


# --- the protocol's bytes ---------------------------------------------------------------------


class Conversation:
    """A client, a router and an instance at a fixed time; what they say is kept by name."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.said: dict[str, list[bytes]] = {}
        self.router = RouterProtocol(self.now, bytes(range(16)))
        self.door = self.router.open_door("both")
        identity = Identity("echo-host-0123456789", "echo", ("/say",), "host", 4711)
        self.instance = InstanceProtocol(self.now, identity, Intake(8), "0123456789abcdef" * 2)
        self.client = ClientProtocol(self.now)
        self.members: dict[bytes, Member] = {b"client": self.client, b"instance": self.instance}

    def sent(self, by: Member) -> list[bytes]:
        """Take the one message that a member has to send, and give it to the router."""
        by.dirty.clear()
        frames = self._take(by.outbox)
        routing_id = next(key for key, member in self.members.items() if member is by)
        self.router.receive(self.door, routing_id, frames[0], frames[1:], self.now)
        self.router.run(self.now)
        return frames

    def received(self, to: Member) -> list[bytes]:
        """Take the one message that the router has for a member, and give it to the member."""
        (outbox,) = (each for each in self.router.dirty if self.members.get(each.routing_id) is to)
        self.router.dirty.remove(outbox)
        frames = self._take(outbox)
        to.receive(None, b"", frames[0], frames[1:], self.now)
        return frames

    def foreign(self, routing_id: bytes, *frames: bytes) -> list[bytes]:
        """Let a Majordomo peer say something; return what the router then has to send, to whomever."""
        self.router.receive(self.door, routing_id, frames[0], frames[1:], self.now)
        self.router.run(self.now)
        if not self.router.dirty:
            return []
        (outbox,) = self.router.dirty
        self.router.dirty.clear()
        return self._take(outbox)

    def _take(self, outbox: Any) -> list[bytes]:
        outbox.is_dirty = False
        outbox.seal(self.now)
        ((_, frames),) = outbox.messages
        outbox.drop()
        return [bytes(frame) for frame in frames]


def conversation() -> dict[str, list[bytes]]:
    """Return the messages that the protocol's page shows, by the names of their blocks, as frames."""
    c = Conversation()
    client, instance = c.client, c.instance
    said: dict[str, list[bytes]] = {}

    client.connection_made(None, c.now)
    said["client HELLO"] = c.sent(client)
    said["WELCOME"] = c.received(client)
    instance.connection_made(None, c.now)
    c.sent(instance)
    c.received(instance)
    said["READY"] = c.sent(instance)
    said["READY, the receipt"] = c.received(instance)

    def submit(target: str, request: ServiceRequest, flags: int = 0, window: int = 0) -> Any:
        envelope, own = encode_request(request)
        return client.submit(
            target.encode(),
            envelope,
            deadline=c.now + 30.0,
            flags=flags | own,
            on_reply=lambda *_: None,
            now=c.now,
            window=window,
        )

    submit("echo", ServiceRequest("/say", arguments={"text": "hi"}))
    said["REQUEST, client to router"] = c.sent(client)
    said["REQUEST, router to instance"] = c.received(instance)
    (job,) = instance.jobs.values()
    instance.reply(job, 200, encode_response({"said": "hi"})[0], c.now)
    said["FINAL, instance to router"] = c.sent(instance)
    said["FINAL, router to client"] = c.received(client)

    call = submit("echo", ServiceRequest("/cat", body=[b"\x00\x01", b"end"]), mesh.STREAM, window=16)
    client.grant(call, 8, c.now)
    said["two records, RAW and STREAM"] = c.sent(client)
    c.received(instance)

    submit("echo", ServiceRequest("/blob", body=b"\xff" * 70_000), mesh.IDEMPOTENT)
    head, attached = c.sent(client)
    said["attachment"] = [head, attached[:64]]  # the rest is more of the same
    c.received(instance)

    for _ in range(5):  # past the grace in which an unknown service is taken for one about to register
        c.now += 1.0
        client.tick(c.now)
        c.sent(client)
    submit("nobody", ServiceRequest("/"))
    c.sent(client)
    said["a refusal"] = c.received(client)

    for job in list(instance.jobs.values()):
        instance.reply(job, 200, b"{}", c.now)
    c.sent(instance)
    instance.stop_intake()
    instance.goodbye()
    said["CREDIT and GOODBYE"] = c.sent(instance)

    c = Conversation()
    c.foreign(b"worker", b"", b"MDPW01", b"\x01", b"sum")
    said["MDP client REQUEST"] = [b"", b"MDPC01", b"sum", b"1", b"2"]
    said["MDP worker REQUEST"] = c.foreign(b"mdp", *said["MDP client REQUEST"])
    said["MDP worker REPLY"] = [b"", b"MDPW01", b"\x03", *said["MDP worker REQUEST"][3:5], b"3"]
    said["MDP client REPLY"] = c.foreign(b"worker", *said["MDP worker REPLY"])
    return said


def test_the_bytes_in_the_protocol_are_those_that_the_machines_send() -> None:
    shown = {name: dumped(text) for name, text in blocks(PROTOCOL).items()}
    said = {name: [frame.hex() for frame in frames] for name, frames in conversation().items()}
    assert shown == said


def dumped(text: str) -> list[str]:
    """Return the frames of a dump as hex: a line is bytes, two spaces, a remark; a frame begins with a
    line ``frame``."""
    frames: list[str] = []
    for line in text.splitlines():
        if line.startswith("frame"):
            frames.append("")
        else:
            frames[-1] += re.match(r"(?:[0-9a-f]{2} ?)*", line)[0].replace(" ", "")  # type: ignore[index]
    return frames
