"""``python -m butler_mesh.compat.majortomo.broker``: a router under the options of majortomo's broker.

Clients and workers share one port, whoever can reach it. It serves those of the mesh and of every dialect of
Majordomo.
"""

from __future__ import annotations

import argparse
import logging.config
from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import inf
from typing import Any

import gevent
from gevent import monkey
from gevent.hub import get_hub

from butler_mesh import Router
from butler_mesh.errors import UsageError

BIND_URL = "tcp://127.0.0.1:5555"
HEARTBEAT_INTERVAL_S = 2.5
HEARTBEAT_TIMEOUT_S = 10.0
BUSY_WORKER_TIMEOUT_S = 900.0

LOGGING: dict[str, Any] = {
    "version": 1,
    # Or those that were made by the imports above would fall silent.
    "disable_existing_loggers": False,
    "formatters": {"default": {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"}},
    "filters": {},
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "level": "INFO",
            "stream": "ext://sys.stderr",
            "formatter": "default",
        }
    },
    "loggers": {},
    "root": {"handlers": ["console"], "level": "INFO"},
}
"""What a configuration file's section ``logging`` is merged over."""


class Broker:
    """A broker for clients and workers on one port.

    ``heartbeat_interval``: how often peers are sent a sign of life, at most 5 s; ``heartbeat_timeout``: the
    silence after which one is given up; ``busy_worker_timeout``: the same for a Majordomo worker that has a
    request (all in seconds). ``zmq_context`` is taken and not used.
    """

    def __init__(
        self,
        bind: str = BIND_URL,
        heartbeat_interval: float = HEARTBEAT_INTERVAL_S,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT_S,
        busy_worker_timeout: float = BUSY_WORKER_TIMEOUT_S,
        zmq_context: object = None,
    ) -> None:
        self._bind_url = bind
        self._router = Router(
            heartbeat_interval_s=heartbeat_interval,
            heartbeat_timeout_s=heartbeat_timeout,
            busy_timeout_s=busy_worker_timeout,
        )
        # Of the thread that runs it, while it does.
        self._loop: Any = None

    def run(self) -> None:
        """Serve until ``stop``. In the main thread also until SIGTERM or SIGINT: then what is in flight is
        finished first, for up to 30 s.

        Raises AddressInUse, and UsageError for an address or times that cannot be.
        """
        try:
            self._router.bind(self._bind_url, public=True)
            self._loop = get_hub().loop
            self._router.run()
        finally:
            self._loop = None
            self._router.stop()

    def stop(self) -> None:
        """Make ``run`` return, at once. May be called by a signal's handler, and from another thread."""
        loop = self._loop
        if loop is not None:
            loop.run_callback_threadsafe(gevent.spawn, self._router.stop)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends with 2 and one line on stderr where it was asked for what cannot be."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        _check_times(options)
        logging.config.dictConfig(_logging(options))
        broker = Broker(
            options.bind_url,
            options.heartbeat_interval,
            options.heartbeat_timeout,
            options.busy_worker_timeout,
        )
        broker.run()
    except (UsageError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m butler_mesh.compat.majortomo.broker",
        description="Run a broker: it passes the requests of clients on to workers, and their replies back.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("-b", "--bind-url", metavar="URL", default=BIND_URL, help="listen here, for clients and workers")
    for short, long, default, text in (
        ("-i", "--heartbeat-interval", HEARTBEAT_INTERVAL_S, "seconds between signs of life, at most 5"),
        ("-t", "--heartbeat-timeout", HEARTBEAT_TIMEOUT_S, "give a peer up after so many seconds of silence"),
        ("-B", "--busy-worker-timeout", BUSY_WORKER_TIMEOUT_S, "the same for a Majordomo worker at work"),
    ):
        add(short, long, metavar="S", type=float, default=default, help=text)
    add("-c", "--config", metavar="FILE", help="YAML, with a section 'logging' as logging.config has it")
    add("-V", "--verbose", action="store_true", help="log from level INFO on, whatever the file says")
    add("-D", "--debug", action="store_true", help="log everything")
    return parser


def _check_times(options: argparse.Namespace) -> None:
    for name in ("heartbeat_interval", "heartbeat_timeout", "busy_worker_timeout"):
        if not 0 < getattr(options, name) < inf:
            raise UsageError(f"--{name.replace('_', '-')} is a number of seconds over 0")
    interval_s, timeout_s = options.heartbeat_interval, options.heartbeat_timeout
    times = timeout_s / interval_s
    # Not by the remainder: that of 1 and 0.1 is not 0.
    if times < 0.5 or abs(times - round(times)) > 1e-6:
        text = f"--heartbeat-timeout ({timeout_s:g}) is no multiple of --heartbeat-interval ({interval_s:g})"
        raise UsageError(text)


def _logging(options: argparse.Namespace) -> dict[str, Any]:
    settings = deepcopy(LOGGING)
    if options.config is not None:
        found = _load(options.config)
        unknown = sorted(str(name) for name in found if name != "logging")
        if unknown:
            raise UsageError(f"{options.config}: no such section: {', '.join(unknown)}; there is 'logging'")
        _merge(settings, found.get("logging") or {})
    if options.debug or options.verbose:
        level = "DEBUG" if options.debug else "INFO"
        _merge(settings, {"handlers": {"console": {"level": level}}, "root": {"level": level}})
    return settings


def _load(path: str) -> Mapping[Any, Any]:
    try:
        import yaml
    except ImportError:
        raise UsageError("--config needs PyYAML: pip install 'pyyaml>=6' (the extra 'majortomo')") from None
    try:
        with open(path, "rb") as file:
            found = yaml.safe_load(file)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
    if found is not None and not isinstance(found, Mapping):
        raise UsageError(f"{path}: sections are needed, and this is no mapping")
    return found or {}


def _merge(into: dict[Any, Any], other: Any) -> None:
    if not isinstance(other, Mapping):
        raise UsageError(f"a mapping is needed in the place of {other!r:.60}")
    for name, value in other.items():
        if isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


if __name__ == "__main__":
    # For logging's sake: a handler that sends its lines somewhere must not stop the router meanwhile.
    monkey.patch_all()
    main()
