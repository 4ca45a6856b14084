"""A job's progress, shown while the job is running: a service streams it, a page sends it on as events.

    python demos/progress.py                   # http://127.0.0.1:6767/; --port 0 for any free port
    FRONT=mongrel2 python demos/progress.py    # behind the Mongrel2 of demos/mongrel2.conf

Service, router and page are one process here; with other addresses they are as many as you like. Close the
browser's tab while a job runs: the job stops, and says so.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator

from butler_mesh import Application, Client, Mongrel2Connection, Service, WebMessageHandler, WSGIConnection
from butler_mesh import coro_sleep as sleep
from butler_mesh.errors import UsageError
from butler_mesh.web.mongrel2 import RECV_SPEC, SEND_SPEC
from butler_mesh.web.streaming import Event

ADDRESS = "memory://demo#bakery"
STEPS = ("weigh the flour", "warm the milk", "knead", "let it rise", "knead again", "shape", "bake", "cool")

PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>A job in progress</title>
<style>
  body { font: 17px/1.5 system-ui, sans-serif; max-width: 36rem; margin: 10vh auto; padding: 0 1rem }
  h1 { font-size: 1.8rem }
  button { font: inherit; padding: .5rem 1.2rem; border: 0; border-radius: .4rem }
  button:enabled { background: #0b6; color: #fff }
  progress { width: 100%; height: 1.2rem; margin: 1.2rem 0 .6rem; accent-color: #0b6 }
  li { padding: .15rem 0 }
  time { color: #888; float: right; font-variant-numeric: tabular-nums }
</style>
<h1>A job in progress</h1>
<p>Each line comes when the service has done that step, over one request that stays open.</p>
<button id="start">Bake a loaf</button>
<progress id="bar" value="0" max="1"></progress>
<p id="state">not begun</p>
<ol id="steps"></ol>
<script>
"use strict";
const $ = id => document.getElementById(id);
$("start").onclick = () => {
  $("start").disabled = true;
  $("steps").replaceChildren();
  const began = performance.now(), job = new EventSource("/progress");
  const end = text => { job.close(); $("state").textContent = text; $("start").disabled = false; };
  job.onopen = () => { $("state").textContent = "under way"; };
  job.onmessage = event => {
    const {step, of, done} = JSON.parse(event.data);
    const line = document.createElement("li"), time = document.createElement("time");
    time.textContent = ((performance.now() - began) / 1000).toFixed(2) + " s";
    line.append(done, time);
    $("steps").append(line);
    $("bar").value = step / of;
  };
  job.addEventListener("done", event => end(event.data));
  job.addEventListener("failure", event => end("failed: " + JSON.parse(event.data).message));
  // EventSource would ask again by itself, and begin another job.
  job.onerror = () => end("the connection was lost");
};
</script>
</html>
"""

log = logging.getLogger("demo.progress")
client = Client(ADDRESS)


def bake(seconds: float) -> Iterator[dict[str, object]]:
    """Do the steps, so many seconds each; tell of each when it is done."""
    log.info("a loaf is begun")
    done = 0
    try:
        for done, step in enumerate(STEPS, 1):
            sleep(seconds)
            yield {"step": done, "of": len(STEPS), "done": step}
    finally:
        log.info("a loaf ends after %d of %d steps", done, len(STEPS))


class Page(WebMessageHandler):
    """The page with the button."""

    def get(self):
        return PAGE


class Progress(WebMessageHandler):
    """A job, and the events of it."""

    seconds = 0.5

    def get(self):
        return self.stream_events(self.events())

    def events(self):
        # When the browser leaves, this generator is closed: that ends the stream, and the service stops.
        with client.request_stream(None, "/bake", {"seconds": self.seconds}) as parts:
            for part in parts:
                yield Event(part, id=str(part["step"]))
        yield Event("the loaf is ready", event="done")


def main() -> None:
    parser = argparse.ArgumentParser(description="a job's progress, shown while the job is running")
    parser.add_argument("--front", choices=("wsgi", "mongrel2"), default=os.environ.get("FRONT", "wsgi"))
    parser.add_argument("--port", type=int, default=6767, help="of the page, without Mongrel2")
    parser.add_argument("--send-spec", default=SEND_SPEC, help="of Mongrel2's Handler")
    parser.add_argument("--recv-spec", default=RECV_SPEC, help="of Mongrel2's Handler")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long a step takes (default 0.5)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    Progress.seconds = options.seconds

    if options.front == "mongrel2":
        connection = Mongrel2Connection(options.send_spec, options.recv_spec)
    else:
        connection = WSGIConnection(port=options.port)
    with Service(ADDRESS) as service:
        service.register_function(bake)
        try:
            Application(connection, [("^/$", Page), ("^/progress$", Progress)]).run()
        except UsageError as error:
            parser.exit(2, f"progress: {error}\n")


if __name__ == "__main__":
    main()
