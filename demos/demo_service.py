"""The slow service of the demo: takes five seconds, then echoes RETURN_DATA.

    python demos/demo_service.py [--backend URL] [--credit N] [--seconds S]

Start it as often as you like: the router gives each call to an instance that is free.
"""

from __future__ import annotations

import argparse
import logging
import os

from butler_mesh import Application, ServiceConnection, ServiceMessageHandler, coro_sleep

SERVICE = "slow"
BACKEND = "tcp://127.0.0.1:5556"

log = logging.getLogger("demo.service")


class SlowEchoServiceHandler(ServiceMessageHandler):
    """A slow service."""

    seconds = 5.0

    def request(self):
        """Do something and take too long."""
        log.info("starting request %s", self.message.conn_id)
        coro_sleep(self.seconds)  # only this request waits, the instance goes on with others
        self.set_status(200, "Took a while, but I am back.")
        self.add_to_payload("RETURN_DATA", self.message.get_argument("RETURN_DATA", "NO DATA"))
        # Beside the echo: which call this answers, and who did. The page of the demo shows both.
        self.add_to_payload("CALL", self.message.get_argument("CALL"))
        self.add_to_payload("INSTANCE", os.getpid())
        self.headers = {"METHOD": "response"}
        log.info("done, sending back %s", self.message.conn_id)
        return self.render()


def main() -> None:
    parser = argparse.ArgumentParser(description="the slow service of the demo")
    parser.add_argument("--backend", default=os.environ.get("BUTLER_MESH_BACKEND", BACKEND), metavar="URL")
    parser.add_argument("--credit", type=int, default=64, help="how many requests at once (default 64)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long one takes (default 5)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    SlowEchoServiceHandler.seconds = options.seconds

    app = Application(
        msg_conn=ServiceConnection(f"{options.backend}#{SERVICE}", credit=options.credit),
        handler_tuples=[(r"^/service/slow", SlowEchoServiceHandler)],
    )
    log.info("serving %r behind %s", SERVICE, options.backend)
    app.run()


if __name__ == "__main__":
    main()
