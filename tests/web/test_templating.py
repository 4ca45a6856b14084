"""Templates: found at start, escaped, and for errors too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from werkzeug.wrappers import Response

from butler_mesh.errors import BadRequest, UsageError
from butler_mesh.web.templating import Jinja2Rendering, load_jinja2_env
from tests.web.fronts import answer, made


class Page(Jinja2Rendering):
    """Renders the template that is asked for."""

    def get(self) -> Response:
        if self.get_argument("fail"):
            raise BadRequest("not <you>", status=403)
        return self.render_template("page.html", name=self.get_argument("name", "you"))

    def post(self) -> Response:
        self.set_status(201)
        return self.render_template("page.html", name="you")

    def put(self) -> Response:
        return self.render_template("page.html", _status_code=202, name="you")

    def delete(self) -> Response:
        return self.render_template("missing.html")


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    tmp_path.joinpath("page.html").write_text("Hello {{ name }}!")
    return tmp_path


def get(templates: Path, path: str = "/", method: str = "GET", **options: Any) -> Response:
    return answer(Page, made(path, method), template_loader=load_jinja2_env(templates, **options))


def test_a_template_is_rendered_with_its_context(templates: Path) -> None:
    response = get(templates)
    assert (response.status_code, response.data) == (200, b"Hello you!")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"


def test_values_are_escaped_unless_the_application_wants_otherwise(templates: Path) -> None:
    assert get(templates, "/?name=<script>").data == b"Hello &lt;script&gt;!"
    assert get(templates, "/?name=<script>", autoescape=False).data == b"Hello <script>!"


def test_the_environments_options_are_jinjas(templates: Path) -> None:
    templates.joinpath("page.html").write_text("Hello [[ name ]]!")
    response = get(templates, variable_start_string="[[", variable_end_string="]]")
    assert response.data == b"Hello you!"


def test_a_template_has_the_status_that_was_set_or_is_given(templates: Path) -> None:
    assert get(templates, method="POST").status_code == 201
    assert get(templates, method="PUT").status_code == 202


def test_a_missing_directory_is_told_at_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no directory of templates at .*nowhere"):
        load_jinja2_env(tmp_path / "nowhere")


def test_a_missing_template_is_a_fault_of_the_handler(templates: Path) -> None:
    assert get(templates, method="DELETE").status_code == 500


def test_an_application_without_templates_says_so_in_its_log(caplog: pytest.LogCaptureFixture) -> None:
    assert answer(Page).status_code == 500
    assert "no template_loader" in caplog.text


def test_errors_have_the_template_error_html(templates: Path) -> None:
    templates.joinpath("error.html").write_text("{{ code }} {{ reason }}: {{ message }}")
    response = get(templates, "/?fail=1")
    assert (response.status_code, response.data) == (403, b"403 Forbidden: not &lt;you&gt;")


def test_without_that_template_errors_have_the_plain_page(templates: Path) -> None:
    response = get(templates, "/?fail=1")
    assert response.status_code == 403
    assert b"<h1>403 Forbidden</h1>" in response.data


def test_an_error_template_that_fails_itself_is_replaced_by_the_plain_page(
    templates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    templates.joinpath("error.html").write_text("{{ code.nothing.at_all }}")
    response = get(templates, "/?fail=1")
    assert response.status_code == 403
    assert b"<h1>403 Forbidden</h1>" in response.data
    assert "error-template-failed" in caplog.text


def test_an_error_template_that_does_not_parse_is_replaced_as_well(templates: Path) -> None:
    templates.joinpath("error.html").write_text("{% nonsense %}")
    response = get(templates, "/?fail=1")
    assert response.status_code == 403
    assert b"<h1>403 Forbidden</h1>" in response.data


@pytest.mark.parametrize(
    "text", ["{{ nothing.at_all }}", "{{ 1 / 0 }}", "{% nonsense %}", "{% include 'no.html' %}"]
)
def test_a_template_that_fails_is_a_500_that_only_the_log_names(
    templates: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    templates.joinpath("page.html").write_text(text)
    response = get(templates)
    assert response.status_code == 500
    assert b"page.html" not in response.data
    assert b"<h1>500 Internal Server Error</h1>" in response.data
    (record,) = caplog.records
    assert record.message == "web-handler-failed get '/'"
    assert "in the template 'page.html'" in caplog.text


def test_a_page_that_failed_has_the_error_template_without_a_word_of_why(templates: Path) -> None:
    templates.joinpath("page.html").write_text("{{ nothing.at_all }}")
    templates.joinpath("error.html").write_text("our {{ code }}:{{ message }}")
    assert get(templates).data == b"our 500:"


def test_cookies_and_headers_go_with_a_template(templates: Path) -> None:
    class Handler(Page):
        def get(self) -> Response:
            self.set_cookie("a", "b")
            self.headers["X-Mood"] = "good"
            return super().get()

    response = answer(Handler, template_loader=load_jinja2_env(templates))
    assert (response.headers["Set-Cookie"], response.headers["X-Mood"]) == ("a=b; Path=/", "good")
