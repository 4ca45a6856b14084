"""Status codes: the mesh's own have a name and HTTP's meaning."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from butler_mesh import status

OWN_WORDS = {
    status.CANCELLED: "no HTTP code: nginx' 499",
    status.INSTANCE_LOST: "Bad Gateway says less",
    status.DEADLINE_PASSED: "Gateway Timeout says less",
    status.TOO_LARGE: "RFC 9110's name; http has the older one",
    status.UNPROCESSABLE: "RFC 9110's name; http has the older one",
}


def test_every_named_code_has_a_phrase() -> None:
    named = {value for name, value in vars(status).items() if name.isupper() and isinstance(value, int)}
    assert named == status.REASONS.keys()


@pytest.mark.parametrize("code", sorted(status.REASONS.keys() - OWN_WORDS.keys()))
def test_a_phrase_is_the_one_http_uses(code: int) -> None:
    assert status.reason(code) == HTTPStatus(code).phrase


def test_a_code_without_a_phrase_has_an_empty_one() -> None:
    assert status.reason(599) == ""


@pytest.mark.parametrize(
    ("code", "expected"), [(199, False), (200, True), (299, True), (300, False), (500, False)]
)
def test_success_is_200_to_299(code: int, expected: bool) -> None:
    assert status.is_success(code) is expected
