"""The service behind demos/flask_app.py: quotes prices, and tells how they move.

    python demos/flask_service.py [--backend URL]

Start it as often as you like: the router gives each call to an instance that is free.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import time
from collections.abc import Iterator

from butler_mesh import Service, coro_sleep
from butler_mesh.errors import BadRequest

NAME = "prices"
BACKEND = "tcp://127.0.0.1:5556"
PRICES = {"tea": 4.20, "coffee": 6.50, "cocoa": 8.90}
DISCOUNT_FROM = 10  # pieces

log = logging.getLogger("demo.prices")


class Prices:
    """Every public method is a function of the service: ``/quote``, ``/watch``."""

    def quote(self, item: str, quantity: int = 1, think_s: float = 0.0) -> dict[str, object]:
        """Return what so many pieces cost; thinking it over takes ``think_s`` seconds."""
        if item not in PRICES:
            raise BadRequest(f"we sell {', '.join(PRICES)}: no {item}", status=404)
        if not 1 <= quantity <= 1000:
            raise BadRequest("we sell from 1 to 1000 pieces", status=422)
        try:
            coro_sleep(think_s)  # only this call waits
        except BaseException:
            log.info("nobody waits for this quote any more")  # its deadline passed, or its caller gave up
            raise
        discount = 0.1 if quantity >= DISCOUNT_FROM else 0.0
        total = round(PRICES[item] * quantity * (1 - discount), 2)
        return {"item": item, "quantity": quantity, "total": total, "instance": os.getpid()}

    def watch(self, item: str, every_s: float = 0.5) -> Iterator[dict[str, object]]:
        """Yield the price of the day, again and again; the call is a stream until its reader leaves."""
        price = PRICES.get(item, 1.0)
        log.info("somebody watches the price of %s", item)
        try:
            while True:
                price = round(max(0.1, price + random.uniform(-0.2, 0.2)), 2)
                yield {"item": item, "price": price, "at": time.strftime("%H:%M:%S")}
                coro_sleep(every_s)
        finally:
            log.info("nobody watches the price of %s any more", item)


def main() -> None:
    parser = argparse.ArgumentParser(description="the service of the Flask demo")
    parser.add_argument("--backend", default=os.environ.get("BUTLER_MESH_BACKEND", BACKEND), metavar="URL")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    service = Service(options.backend, NAME)
    service.register(Prices())
    log.info("serving %r behind %s", NAME, options.backend)
    service.run()


if __name__ == "__main__":
    main()
