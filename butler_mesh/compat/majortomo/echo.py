"""``python -m butler_mesh.compat.majortomo.echo``: a worker that says what it is told, and its client."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from butler_mesh.compat.majortomo.client import Client
from butler_mesh.compat.majortomo.error import Error
from butler_mesh.compat.majortomo.worker import Worker, WorkerRequestsIterator

BROKER_URL = "tcp://127.0.0.1:5555"
SERVICE = "mdp-echo"
GREEN = 32
RED = 31


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command: the worker until a signal, the client for as many messages as it was told."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    try:
        if options.command == "worker":
            _work(options)
        else:
            _ask(options)
    except (Error, ValueError) as error:
        parser.exit(1 if isinstance(error, Error) else 2, f"{parser.prog}: {error}\n")


def garbled(frames: Sequence[bytes]) -> list[bytes]:
    """Return frames that are not those: both their order and their bytes reversed."""
    return [frame[::-1] for frame in reversed(frames)]


def _work(options: argparse.Namespace) -> None:
    worker = Worker(options.broker_url, options.service_name, heartbeat_interval=options.heartbeat_interval)
    requests = WorkerRequestsIterator(worker)
    requests.stop_on_signal()
    for frames in requests:
        time.sleep(options.delay)
        requests.send_reply_final(garbled(frames) if options.garbage else frames)


def _ask(options: argparse.Namespace) -> None:
    message = options.message.encode()
    with Client(options.broker_url) as client:
        for n in range(options.repeat):
            time.sleep(options.delay if n else 0.0)
            client.send(options.service_name, message)
            response = client.recv_all_as_list(timeout=options.timeout)
            color = GREEN if response == [message] else RED
            sys.stdout.write(f"\x1b[{color}mGot response: {response}\x1b[0m\n")
            sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m butler_mesh.compat.majortomo.echo",
        description="Try a broker out: a worker that says what it is told, and a client for it.",
    )
    parser.add_argument("-b", "--broker_url", "--broker-url", metavar="URL", default=BROKER_URL)
    parser.add_argument("-n", "--service-name", metavar="NAME", default=SERVICE)
    parser.add_argument("--debug", action="store_true", help="log everything")
    commands = parser.add_subparsers(dest="command", required=True)
    worker = commands.add_parser("worker", help="answer until a signal")
    worker.add_argument("-d", "--delay", metavar="S", type=float, default=0.0, help="seconds for each answer")
    worker.add_argument("-i", "--heartbeat-interval", metavar="S", type=float, default=2.5, help="not needed")
    worker.add_argument("-f", "--garbage", action="store_true", help="answer something else")
    client = commands.add_parser("client", help="ask, and print the answers: green those that are right")
    client.add_argument("-m", "--message", required=True, help="what to say")
    client.add_argument("-r", "--repeat", metavar="N", type=int, default=1, help="how often")
    client.add_argument("-d", "--delay", metavar="S", type=float, default=0.5, help="seconds between two")
    client.add_argument("-t", "--timeout", metavar="S", type=float, help="seconds to wait for an answer")
    return parser


if __name__ == "__main__":
    main()
