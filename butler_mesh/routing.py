"""The route table of an Application: which target a path of each kind belongs to.

A pattern is a regular expression that is matched at the start of the path, as ``re.match`` does:
``^/service/slow`` takes ``/service/slower`` too, ``^/service/slow$`` does not. Of several routes
that match, the first added wins. Which methods a target has is the target's business: "no such
path" (404) and "no such method" (405) are different answers.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from butler_mesh.errors import RouteCollision, UsageError

METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "connect", "request", "response")

REMEMBERED_PATHS = 1_024  # matches kept per kind; a service has tens of paths, a scanner has millions
LONGEST_REMEMBERED_PATH = 256  # characters, so that what a stranger makes us remember stays under 1 MiB

# What is not a literal where an atom may stand. A stray "]" or "}" would be one; no path has it.
_SPECIAL = frozenset(".^$*+?{}[]()|")
_ENDS = ("", "$", r"\Z")  # what follows the literal head of a pattern that is all literal


class RouteKind(enum.IntEnum):
    """Who may ask for a route. Were the kinds one, a browser could forge a service's reply."""

    WEB = 0  # requests of web clients
    SERVICE = 1  # requests that a service gets, and the replies that come back to its caller


@dataclass(frozen=True, slots=True)
class Route:
    """``target`` answers the paths of ``kind`` that ``pattern`` matches."""

    pattern: str
    target: Any
    kind: RouteKind


class Match(NamedTuple):
    """The target of a path, and what the pattern captured in it; shared between requests."""

    target: Any
    args: tuple[str | None, ...]  # the unnamed groups
    kwargs: Mapping[str, str | None]  # the named groups


class RouteTable:
    """Routes of both kinds; iterating gives them in the order in which they were added."""

    def __init__(self) -> None:
        # By kind and claim (the pattern in its normal form), in order of addition: dicts keep it.
        self._routes: dict[tuple[RouteKind, str], Route] = {}
        # By kind: the patterns that need a regex, each with its position among all routes.
        self._regexes: tuple[list[tuple[int, re.Pattern[str], Route]], ...] = ([], [])
        # By kind and path: the patterns that are one whole literal path, with their position.
        self._literals: tuple[dict[str, tuple[int, Match]], ...] = ({}, {})
        # By kind and path: what was found before. Misses are not kept: they cost memory, not time.
        self._remembered: tuple[dict[str, Match], ...] = ({}, {})

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())

    def add(self, pattern: str, target: Any, kind: RouteKind) -> Route:
        """Add a route.

        Raises RouteCollision if a route of that kind claims the same paths, UsageError if
        ``pattern`` is no regular expression.
        """
        regex = _compile(pattern)
        literal, rest = _literal_head(pattern)
        claim = (kind, _normal_form(pattern, literal, rest))
        if claim in self._routes:
            raise RouteCollision(
                f"{pattern!r} for {target!r} claims what {self._routes[claim].pattern!r} gave to "
                f"{self._routes[claim].target!r}"
            )
        position = len(self._routes)
        route = self._routes[claim] = Route(pattern, target, kind)
        if rest in _ENDS and rest:
            self._literals[kind][literal] = position, Match(target, (), {})
        else:
            self._regexes[kind].append((position, regex, route))
        # What is remembered stays true: an earlier route wins over this one.
        return route

    def match(self, kind: RouteKind, path: str) -> Match | None:
        """Return the first route of ``kind`` that matches ``path``, or None."""
        remembered = self._remembered[kind]
        found = remembered.get(path)
        if found is None:
            found = self._search(kind, path)
            if found is not None and len(path) <= LONGEST_REMEMBERED_PATH:
                if len(remembered) >= REMEMBERED_PATHS:
                    remembered.clear()  # simpler than LRU, and as good where the paths in use fit
                remembered[path] = found
        return found

    def prefixes(self, kind: RouteKind) -> list[str]:
        """Return the path prefixes that a router needs to know to route by path, without doubles.

        A prefix is the literal head of a pattern, up to its end where a segment may end there, else
        up to its last '/'. A pattern whose head is not a path (``(?i)/x``, ``/a|/b``, ``.*``) has
        none: it is reached through the name of its service only.
        """
        found = (_prefix(route.pattern) for route in self if route.kind is kind)
        return list(dict.fromkeys(prefix for prefix in found if prefix))

    def _search(self, kind: RouteKind, path: str) -> Match | None:
        literal_position, literal = self._literals[kind].get(path, (len(self._routes), None))
        for position, regex, route in self._regexes[kind]:
            if position > literal_position:
                break
            found = regex.match(path)
            if found is not None:
                named = regex.groupindex
                unnamed = (i for i in range(1, regex.groups + 1) if i not in named.values())
                return Match(route.target, tuple(found[i] for i in unnamed), found.groupdict())
        return literal


def _compile(pattern: str) -> re.Pattern[str]:
    if not isinstance(pattern, str):
        raise UsageError(f"the pattern of a route is text, not {pattern!r}")
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"the route {pattern!r} is no regular expression: {error}") from error


def _normal_form(pattern: str, literal: str, rest: str) -> str:
    """Return a text that is equal for patterns which differ in spelling only."""
    if rest in _ENDS:
        return re.escape(literal) + ("$" if rest else "")
    return _without_anchor(pattern)


def _prefix(pattern: str) -> str:
    literal, rest = _literal_head(pattern)
    if not literal.startswith("/"):
        return ""
    if rest.removeprefix("/?") in _ENDS:  # in "/a/?$" a segment ends after "/a", slash or not
        return literal
    return literal[: literal.rindex("/") + 1]


def _without_anchor(pattern: str) -> str:
    while pattern.startswith(("^", r"\A")):
        pattern = pattern.removeprefix("^").removeprefix(r"\A")
    return pattern


def _literal_head(pattern: str) -> tuple[str, str]:
    r"""Split a valid pattern into the text that every match begins with and the remaining pattern.

    ``^/a\.b/(\d+)`` gives ``/a.b/`` and ``(\d+)``. Where in doubt the head is too short, never too
    long. ``re``'s own parser would know, but is private.
    """
    pattern = _without_anchor(pattern)
    if "(?#" in pattern or _has_top_level_alternation(pattern):
        return "", pattern  # a comment may stand between a letter and its quantifier
    head: list[str] = []
    at = 0
    while at < len(pattern):
        is_escaped = pattern[at] == "\\"
        letter = pattern[at + 1] if is_escaped else pattern[at]
        if (letter.isascii() and letter.isalnum()) if is_escaped else letter in _SPECIAL:
            break  # \d, \b, \Z and kin; or a group, a class, an anchor
        after = at + 1 + is_escaped
        if pattern[after : after + 1] in ("*", "?", "{"):
            break  # the quantifier may take this letter back
        head.append(letter)
        at = after
        if pattern[after : after + 1] == "+":
            break  # one is sure, what follows it is not
    return "".join(head), pattern[at:]


def _has_top_level_alternation(pattern: str) -> bool:
    depth = 0
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        if letter == "\\":
            at += 1
        elif letter == "[":
            at = _end_of_class(pattern, at)
        elif letter == "|" and depth == 0:
            return True
        else:
            depth += (letter == "(") - (letter == ")")
        at += 1
    return False


def _end_of_class(pattern: str, at: int) -> int:
    """Return where the class that begins at ``at`` has its closing bracket."""
    at += 2 if pattern.startswith("[^", at) else 1
    if pattern.startswith("]", at):
        at += 1  # a bracket in the first place stands for itself
    while pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at
