"""One log file for many processes: each sends its records to one that writes them, by UDP on loopback.

A datagram is one record::

    SIGNATURE   64 hex digits: HMAC-SHA256 over the rest
    JSON        {"nonce", "sent" (s), "time" (s), "name", "level", "message", "exception", "stack", ...}

What bears no good signature, came before, or was sent more than 30 s ago is dropped; it may have been logged
long before, by a program that keeps records back. Nothing that is received is ever more than data: a record's
text is put together by its sender.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import secrets
import signal
import socket
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from logging.handlers import DatagramHandler, TimedRotatingFileHandler
from multiprocessing.context import ForkProcess
from textwrap import indent
from typing import Any

from gevent.monkey import get_original

from butler_mesh import codec
from butler_mesh.clock import monotonic
from butler_mesh.errors import AddressInUse, RequestFailed, UsageError
from butler_mesh.sealing import BrokenSeal, Nonces
from butler_mesh.signing import is_signed, sign

# The system's own, also where gevent has replaced it: a fork's hub would run all that its parent's had to.
_select = get_original("select", "select")

SECRET = "BUTLER_MESH_LOG_SECRET"
"""Environment variable with what sender and server share; ``start_logging_server`` sets it for children."""
FORMAT = "[%(asctime)s PID:%(process)d]%(levelname)s:%(message)s"
INDENT = "    "
"""Begins the further lines of a record: a line that begins otherwise is another record."""
KEPT = 15
"""Files of days gone by."""
HOST = "127.0.0.1"
MAX_DATAGRAM = 60_000  # bytes; UDP can carry 65 507
MAX_TEXT = 16 * 1024
"""Characters of a message, a traceback or a stack that are kept; halved until the record fits a datagram."""
BUFFER = 4 * 1024 * 1024
"""What the kernel may keep for us while the file is written; over it datagrams are lost, as UDP's are."""
LOOK_S = 1.0
"""How often the server looks whether its parent is still there."""
AT_ONCE = 1000
"""Records that are written before it is looked whether to stop, where more and more come; about 0.1 s."""
LAST_S = 1.0
"""How long a server that stops writes what has come, where more and more does."""
SIGNATURE_LENGTH = 64

_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What ends a line for some readers, commands a terminal or turns a text round; but line feed and tab."""

_FIELDS = {
    "name": "name",
    "level": "levelno",
    "process": "process",
    "process_name": "processName",
    "thread_name": "threadName",
    "time": "created",
    "file": "pathname",
    "line": "lineno",
    "function": "funcName",
}
"""What a record is called on the wire, and in logging."""


class LoggingService:
    """The server's file and socket, and the two calls that a program makes."""

    def __init__(self, filename: str, listener: socket.socket, secret: str, *, pattern: str = FORMAT) -> None:
        self._listener = listener
        self._secret = secret
        self._nonces = Nonces()
        self._is_over = False
        # Not "D": that is 24 hours after the file was last written, which never pass where programs are
        # started daily.
        self.file = TimedRotatingFileHandler(filename, "midnight", backupCount=KEPT, encoding="utf-8")
        self.file.setFormatter(_Lines(pattern))

    @classmethod
    def start_logging_server(
        cls,
        filename: str,
        port: int,
        after_fork_hook: Callable[[], object] | None = None,
        *,
        secret: str = "",
    ) -> ForkProcess:
        """Start a process that writes to ``filename`` what comes to ``port`` of loopback; return it.

        A new file is begun at midnight, 15 old ones are kept. ``after_fork_hook`` runs in that process first.
        It ends on SIGTERM, with what has come written, and with this process. Without a ``secret`` (or one in
        BUTLER_MESH_LOG_SECRET) a new one is made, for this process and its children. Raises AddressInUse, and
        OSError where the file cannot be opened.
        """
        secret = secret or os.environ.get(SECRET) or secrets.token_hex(32)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
            # All here and not in the child: whoever starts it is told what is wrong, and may log at once.
            try:
                listener.bind((HOST, port))
            except OSError as error:
                raise AddressInUse(f"udp://{HOST}:{port}: {error}") from error
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            service = cls(filename, listener, secret)
            try:
                process = service._fork(after_fork_hook)
            finally:
                service.file.close()
        os.environ[SECRET] = secret
        return process

    @classmethod
    def init_logging(cls, port: int, level: int = logging.INFO, *, secret: str = "") -> logging.Handler:
        """Send what this process logs, from ``level`` on, to the server at ``port``; return the handler.

        Forks inherit it. Called again, in a fork or not, it puts a new handler in the old one's place. Raises
        UsageError where no secret is given, by whoever started the server neither.
        """
        secret = secret or os.environ.get(SECRET, "")
        if not secret:
            raise UsageError(f"no secret: start the server first, or set {SECRET} for both")
        handler = LogSender(port, secret)
        root = logging.getLogger()
        for old in [one for one in root.handlers if isinstance(one, LogSender)]:
            # Of an earlier call, or of the process that this is a fork of.
            root.removeHandler(old)
            old.close()
        root.addHandler(handler)
        root.setLevel(level)
        return handler

    def _fork(self, hook: Callable[[], object] | None) -> ForkProcess:
        process = multiprocessing.get_context("fork").Process(
            target=self._run, args=(hook, os.getpid()), name="logging", daemon=True
        )
        # One that comes before the child can handle it is kept for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            with warnings.catch_warnings():
                # Of threads, whose locks a fork may find locked: the child takes none of them.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return process

    def _run(self, hook: Callable[[], object] | None, parent: int) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        # Of Ctrl-C the parent is told as well, and logs about it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ[SECRET] = self._secret
        if hook is not None:
            hook()
        self.serve(lambda: os.getppid() == parent)

    def serve(self, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Write what comes until ``stop``, or until nobody wants it; then what has come already, for a second
        at the longest."""
        self._listener.setblocking(False)
        while not self._is_over and is_wanted():
            if _select([self._listener], [], [], LOOK_S)[0]:
                self._drain()
        until = monotonic() + LAST_S
        while not self._drain() and monotonic() < until:
            pass
        self.file.close()

    def stop(self) -> None:
        """Make ``serve`` return; for signal handlers, too."""
        self._is_over = True
        # To ourselves: without it ``select`` would sleep on.
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self._listener.getsockname())

    def _drain(self) -> bool:
        """Write what has come, AT_ONCE records at the most; tell whether that was all."""
        for _ in range(AT_ONCE):
            try:
                datagram = self._listener.recv(65536)
            except BlockingIOError:
                return True
            record = self._read(datagram)
            if record is not None:
                self.file.handle(record)
        return False

    def _read(self, datagram: bytes) -> logging.LogRecord | None:
        signature, body = datagram[:SIGNATURE_LENGTH], datagram[SIGNATURE_LENGTH:]
        if not is_signed(signature.decode("ascii", "replace"), self._secret, body):
            return None
        try:
            said = codec.loads(body)
            self._nonces.admit(said["nonce"], said["sent"], time.time())
            record = logging.makeLogRecord({ours: said[theirs] for theirs, ours in _FIELDS.items()})
            time.gmtime(record.created)  # Raises for what is no time.
            record.msecs = record.created % 1 * 1000
            record.levelname = logging.getLevelName(record.levelno)
            record.msg, record.exc_text = str(said["message"]), str(said["exception"])
            record.stack_info = str(said["stack"])
        except (ValueError, KeyError, TypeError, OverflowError, OSError, BrokenSeal, RequestFailed):
            return None
        return record


class _Lines(logging.Formatter):
    """Writes records so that no text in one can be taken for another."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\r\n", "\n")
        first, _, rest = _CONTROL.sub(_escaped, text).partition("\n")
        return f"{first}\n{indent(rest, INDENT)}" if rest else first


class LogSender(DatagramHandler):
    """Sends records to a LoggingService."""

    def __init__(self, port: int, secret: str) -> None:
        super().__init__(HOST, port)
        self._secret = secret
        self._texts = logging.Formatter()

    def makePickle(self, record: logging.LogRecord) -> bytes:  # noqa: N802, RUF100 (logging's name, no pickle)
        """Return the datagram of a record."""
        said: dict[str, Any] = {theirs: getattr(record, ours) for theirs, ours in _FIELDS.items()}
        said["nonce"], said["sent"] = secrets.token_hex(8), time.time()
        trace = record.exc_text or (self._texts.formatException(record.exc_info) if record.exc_info else "")
        texts = {"message": record.getMessage(), "exception": trace, "stack": record.stack_info or ""}
        longest = MAX_TEXT
        while True:
            said.update((name, _cut(text, longest)) for name, text in texts.items())
            body = codec.dumps(said)
            if len(body) <= MAX_DATAGRAM or not longest:
                return sign(self._secret, body).encode() + body
            longest //= 2


def _cut(text: str, longest: int) -> str:
    text = text if len(text) <= longest else f"{text[:longest]}…"
    return text.encode("utf-8", "replace").decode()


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
