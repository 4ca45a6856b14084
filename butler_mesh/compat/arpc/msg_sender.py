"""``python -m butler_mesh.compat.arpc.msg_sender KEY JSON``: arpc_msg_sender.py."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from butler_mesh.compat.arpc.caller import MGT, ServiceCaller
from butler_mesh.compat.arpc.operations import ADDRESS, AMQPOperations
from butler_mesh.errors import RequestFailed, UsageError

_log = logging.getLogger("msg_sender")


def main(arguments: Sequence[str] | None = None, passphrase: str | None = None) -> int:
    """Send a document and log each result; 0 when there was one, 1 where somebody failed, 2 for what cannot
    be. ``passphrase`` is the workers', where they have one."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stdout, format="%(name)s %(asctime)s %(levelname)s %(message)s")
    _log.setLevel(logging.INFO)
    try:
        document = json.loads(options.message)
    except ValueError as error:
        _log.error("The message is not JSON: %s", error)
        return 2
    is_well = True
    try:
        with AMQPOperations(address=options.address, passphrase=passphrase) as amqp:
            caller = ServiceCaller(amqp, options.key, want_replies=True)
            is_command = options.key.startswith(MGT)
            lazy = None if is_command else caller.send_lazy_request(document, options.timeout)
            _log.info("Message sent, waiting for response")
            answers: Iterable[tuple[str, Any]] = (
                caller.answers(document, options.timeout) if lazy is None else [("", lazy.get())]
            )
            for wid, result in answers:
                if isinstance(result, RequestFailed):
                    _log.error("%s: %d %s", wid, result.status, result)
                    is_well = False
                else:
                    _log.info("Result: <%r>", result)
    except RequestFailed as error:
        _log.error("%d %s", error.status, error)
        return 1
    except UsageError as error:
        _log.error("%s", error)
        return 2
    return 0 if is_well else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m butler_mesh.compat.arpc.msg_sender",
        description="Send a document to the workers of a routing key, or (mgt.KEY, mgt.WORKER-ID) a command.",
        epilog='For example: example \'{"c": "add", "x": 10, "y": 20}\', or: mgt.example \'{"c": "ping"}\'',
    )
    parser.add_argument("key", help="the routing key")
    parser.add_argument("message", help="the document, as JSON; its method or command is under c")
    parser.add_argument(
        "--address",
        default="",
        help=f"where the broker is, as in amqp://user@host (else the environment's {ADDRESS}, or localhost)",
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="how long to wait for results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
