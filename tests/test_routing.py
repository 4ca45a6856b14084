"""The route table: who gets a path, which captures, and what the router is told about it."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butler_mesh import routing
from butler_mesh.errors import RouteCollision, UsageError
from butler_mesh.routing import Match, RouteKind, RouteTable

WEB, SERVICE = RouteKind.WEB, RouteKind.SERVICE


def table(*patterns: str) -> RouteTable:
    """A table of service routes whose target is their own pattern."""
    routes = RouteTable()
    for pattern in patterns:
        routes.add(pattern, pattern, SERVICE)
    return routes


def target(routes: RouteTable, path: str) -> str | None:
    found = routes.match(SERVICE, path)
    return found and found.target


def test_a_pattern_matches_at_the_start_of_the_path_and_ends_where_it_says() -> None:
    routes = table(r"^/exact$", r"^/open", "/no-anchor")
    assert target(routes, "/exact") == r"^/exact$"
    assert target(routes, "/exactly") is None
    assert target(routes, "/opener") == r"^/open"
    assert target(routes, "/no-anchor/x") == "/no-anchor"
    assert target(routes, "/x/open") is None


def test_a_web_request_never_reaches_a_service_handler_nor_the_other_way_round() -> None:
    routes = RouteTable()
    routes.add(r"^/both$", "web", WEB)
    routes.add(r"^/both$", "service", SERVICE)
    routes.add(r"^/reply$", "service", SERVICE)
    assert routes.match(WEB, "/both") == Match("web", (), {})
    assert routes.match(SERVICE, "/both") == Match("service", (), {})
    assert routes.match(WEB, "/reply") is None


@pytest.mark.parametrize("patterns", [(r"^/a/.*", r"^/a/b$"), (r"^/a/b$", r"^/a/.*"), (r"^/a/b", r"^/a/b$")])
def test_the_first_added_of_several_routes_wins(patterns: tuple[str, ...]) -> None:
    assert target(table(*patterns), "/a/b") == patterns[0]


def test_named_groups_become_keywords_and_the_others_positions() -> None:
    found = table(r"^/(\d+)/(?P<name>\w+)/(x)?").match(SERVICE, "/7/a/")
    assert found is not None
    assert (found.args, found.kwargs) == (("7", None), {"name": "a"})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"^/a$", r"^/a$"),
        (r"^/a$", r"/a$"),
        (r"^/a$", r"\A/a\Z"),
        (r"^/a\-b$", r"^/a-b$"),
        (r"^/a\.b", r"/a\.b"),
        (r"^/a/(\d+)", r"/a/(\d+)"),
    ],
)
def test_two_routes_that_claim_the_same_paths_collide_when_added(first: str, second: str) -> None:
    routes = table(first)
    with pytest.raises(RouteCollision, match=re.escape(repr(first))):
        routes.add(second, "other", SERVICE)
    routes.add(second, "other", WEB)
    assert target(routes, "/a") != "other"


@pytest.mark.parametrize(("first", "second"), [(r"^/a$", r"^/a"), (r"^/a.b$", r"^/a\.b$"), ("/a", "/A")])
def test_routes_that_only_look_alike_do_not_collide(first: str, second: str) -> None:
    assert len(list(table(first, second))) == 2


@pytest.mark.parametrize("pattern", ["(", "a**", "[", "(?P<1>x)", "x{99999999999999999999}", b"/bytes", None])
def test_a_pattern_that_is_no_regular_expression_is_refused_when_added(pattern: object) -> None:
    with pytest.raises(UsageError, match="route"):
        RouteTable().add(pattern, "target", SERVICE)  # type: ignore[arg-type]  # what is tested


def test_a_path_is_searched_once_and_then_remembered() -> None:
    routes = table(r"^/(\w+)$")
    assert routes.match(SERVICE, "/a") is routes.match(SERVICE, "/a")


def test_a_route_added_later_is_found_though_its_path_was_asked_for_before() -> None:
    routes = table(r"^/a$")
    assert target(routes, "/b") is None
    routes.add(r"^/b$", "b", SERVICE)
    assert target(routes, "/b") == "b"


def test_what_is_remembered_is_bounded_in_number_and_length() -> None:
    routes = table(r"^/.*")
    for number in range(3 * routing.REMEMBERED_PATHS):
        assert target(routes, f"/{number}") == r"^/.*"
    long_path = "/" + "x" * routing.LONGEST_REMEMBERED_PATH
    assert routes.match(SERVICE, long_path) is not routes.match(SERVICE, long_path)
    assert len(routes._remembered[SERVICE]) <= routing.REMEMBERED_PATHS


PREFIXES = [
    (r"^/service/slow$", "/service/slow"),
    (r"^/service/slow", "/service/slow"),
    (r"/service/slow\Z", "/service/slow"),
    (r"^/service/slow/?$", "/service/slow"),
    (r"^/service/slow/?x", "/service/"),
    (r"^/img/(\w+)", "/img/"),
    (r"^/img/thumb-(\d+)$", "/img/"),
    (r"^/a\.b/c\-d$", "/a.b/c-d"),
    (r"^/a\d/b", "/"),
    (r"^/a/bc*d", "/a/"),
    (r"^/a/b/?c", "/a/"),
    (r"^/a/b+", "/a/"),
    (r"^/a/+b", "/a/"),
    (r"^/a/b{2}", "/a/"),
    (r"^/a/b\b", "/a/"),
    (r"^/a/[|)]", "/a/"),
    (r"^/a/[]|]", "/a/"),
    (r"^/a/[^]\]|]x", "/a/"),
    (r"^/a/(b|c)", "/a/"),
    (r"^/a/\|", "/a/|"),
    (r"^/.*", "/"),
    (r"^/a|^/b", None),
    (r"^/a/[(]|/b", None),
    (r"^/a/\(|/b", None),
    (r"(?i)/a/b", None),
    (r"(?:/a)/b", None),
    (r"^/ab(?#why)*", None),
    (r".*", None),
    (r"", None),
    (r"relative/path", None),
]


@pytest.mark.parametrize(("pattern", "prefix"), PREFIXES)
def test_a_prefix_is_the_literal_head_up_to_the_end_of_a_segment(pattern: str, prefix: str | None) -> None:
    assert table(pattern).prefixes(SERVICE) == ([] if prefix is None else [prefix])


def test_prefixes_are_told_once_and_by_kind() -> None:
    routes = table(r"^/img/(\d+)", r"^/img/(\w+)", r"^/other$")
    routes.add(r"^/page$", "page", WEB)
    assert routes.prefixes(SERVICE) == ["/img/", "/other"]
    assert routes.prefixes(WEB) == ["/page"]


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


# Pieces rather than letters, so that valid patterns and matching paths are not rare.
pieces = ["/", "a", "b", r"\.", ".", r"\d", "(a|/b)", "(?P<n>a)", "[ab|]", "[]a]", "(?#(|)", "|", "$", r"\Z"]
quantifiers = ["", "", "", "?", "*", "+", "{2}", "{0}", "+?"]
patterns = st.lists(
    st.builds("{}{}".format, st.sampled_from(pieces), st.sampled_from(quantifiers)), max_size=6
)
regexes = st.builds("{}{}".format, st.sampled_from(["", "^", "/", "^/"]), patterns.map("".join)).filter(
    _compiles
)
asked = st.text(alphabet="/ab.1", max_size=6)


@given(st.lists(regexes, max_size=5), st.lists(asked, max_size=5))
def test_the_table_answers_as_trying_each_pattern_in_turn_would(
    patterns: list[str], paths: list[str]
) -> None:
    routes = RouteTable()
    for pattern in patterns:
        with suppress(RouteCollision):  # what collides matches nothing that an earlier one does not
            routes.add(pattern, pattern, SERVICE)
    for path in paths + paths:
        assert target(routes, path) == next((p for p in patterns if re.match(p, path)), None)


@given(regexes, asked)
def test_every_path_that_matches_begins_with_the_literal_head(pattern: str, path: str) -> None:
    head, _ = routing._literal_head(pattern)
    if re.match(pattern, path):
        assert path.startswith(head)
