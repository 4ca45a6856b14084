"""A Flask application whose answers come from a service of the mesh.

    butler-mesh router                                  # each in a terminal of its own
    python demos/flask_service.py
    gunicorn -k gevent -w 2 demos.flask_app:app

Then open http://127.0.0.1:8000/, kill the service, look, and start it again. As with all of Flask's settings
the environment may say otherwise: FLASK_BUTLER_MESH_ADDRESS where the mesh is (tcp://127.0.0.1:5555),
FLASK_BUTLER_MESH_TIMEOUT_S how long a page may take.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from flask import Flask, Response, render_template_string, request
from flask.views import MethodView
from werkzeug.exceptions import HTTPException

from butler_mesh import ServiceClientMixin, ServiceMessageHandler
from butler_mesh.web.flask import Mesh

SERVICE = "prices"
ITEMS = ("tea", "coffee", "cocoa", "caviar")  # the service sells no caviar

app = Flask(__name__)
app.config.from_mapping(BUTLER_MESH_ADDRESS="tcp://127.0.0.1:5555", BUTLER_MESH_TIMEOUT_S=10.0)
app.config.from_prefixed_env()
# Opens nothing yet: each worker makes its own connection when it first calls a service.
mesh = Mesh(app)


@app.get("/")
def home() -> str:
    return page()


class Quote(ServiceClientMixin, MethodView):
    """What so many pieces cost. The mixin's calls are the same in handlers of the mesh's own."""

    application = mesh.application
    address = f"{app.config['BUTLER_MESH_ADDRESS']}#{SERVICE}"

    def get(self) -> str:
        arguments = {
            "item": request.args["item"],
            "quantity": request.args.get("quantity", 1, type=int),
            "think_s": request.args.get("think_s", 0.0, type=float),
        }
        asked = self.create_service_request("/quote", "request", arguments)
        response, sentence = self.send_service_request(self.address, asked)
        # Whatever went wrong becomes the page of its status: 404 and 422 from the service, 503 without
        # one, 502 when it dies meanwhile, 504 when it takes longer than the page may.
        response.raise_for_status()
        return page(quote=sentence, instance=response.body["instance"])


class QuoteReply(ServiceMessageHandler):
    """The replies to ``/quote`` come through here; what it returns is handed to who called."""

    def response(self) -> str:
        if not self.message.is_success:
            return "no quote"
        arguments = self.message.get_argument
        return f"{arguments('quantity')} × {arguments('item')}: {arguments('total'):.2f}"


app.add_url_rule("/quote", view_func=Quote.as_view("quote"))
mesh.application.add_handler(r"^/quote$", QuoteReply)


@app.get("/price/<item>")
def price(item: str) -> Response:
    """The same without the mixin: call a function of the service, return what it returns."""
    return app.json.response(mesh.rpc(SERVICE).quote(item))


@app.get("/watch/<item>")
def watch(item: str) -> Response:
    """Server-Sent Events, one for each part of the service's reply."""
    parts = mesh.request_stream(SERVICE, "/watch", {"item": item})
    first = next(parts)  # fails here, while there can still be a page for it

    def events() -> Iterator[str]:
        yield f"data: {json.dumps(first)}\n\n"
        for part in parts:
            yield f"data: {json.dumps(part)}\n\n"

    response = Response(events(), mimetype="text/event-stream", headers={"Cache-Control": "no-store"})
    response.call_on_close(parts.close)  # the browser has left: the service stops
    return response


@app.errorhandler(HTTPException)
def problem(error: HTTPException) -> tuple[str, int]:
    """Any error, of the mesh or not, as a page."""
    return page(problem=f"{error.code} {error.name}", description=error.description), error.code or 500


PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Prices</title>
<style>
  body { font: 16px/1.6 system-ui, sans-serif; max-width: 38rem; margin: 8vh auto; padding: 0 1rem }
  .quote, .problem { padding: .6rem 1rem; border-radius: .4rem; background: #e8f4ea }
  .problem { background: #fbe9e7 }
  small { color: #666 }
</style>
<h1>Prices</h1>
{% if quote %}<p class="quote">{{ quote }} <small>says instance {{ instance }}</small></p>{% endif %}
{% if problem %}<p class="problem"><b>{{ problem }}</b><br>{{ description }}</p>{% endif %}
<form action="{{ url_for('quote') }}">
  <select name="item" aria-label="item">
    {% for item in items %}<option>{{ item }}</option>{% endfor %}
  </select>
  <input name="quantity" type="number" value="1" min="1" size="4" aria-label="quantity">
  <label>think it over for <input name="think_s" type="number" value="0" min="0" size="3"> s</label>
  <button>Quote</button>
</form>
<p>The price of tea: <b id="price">…</b> <small id="at"></small></p>
<p><small>This page was made by worker {{ worker }}.</small></p>
<script>
  // Connects anew by itself when the service, or all of this, was gone for a while.
  new EventSource("{{ url_for('watch', item='tea') }}").onmessage = (event) => {
    const told = JSON.parse(event.data);
    document.getElementById("price").textContent = told.price.toFixed(2);
    document.getElementById("at").textContent = told.at;
  };
</script>
</html>
"""


def page(**what: object) -> str:
    return render_template_string(PAGE, items=ITEMS, worker=os.getpid(), **what)
