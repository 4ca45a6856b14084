"""Status codes: HTTP's numbers with HTTP's meaning, in every direction.

A handler may answer any code from 100 to 599; these are the ones the mesh itself produces, or that
the seeds name.
"""

from __future__ import annotations

OK = 200
CREATED = 201
ACCEPTED = 202
MULTI = 207
BAD_REQUEST = 400
UNAUTHORIZED = 401
FORBIDDEN = 403
NOT_FOUND = 404
METHOD_NOT_ALLOWED = 405
REQUEST_TIMEOUT = 408
CONFLICT = 409
TOO_LARGE = 413
UNPROCESSABLE = 422
TOO_MANY = 429
CANCELLED = 499  # the caller gave up; nobody is left to read it
SERVER_ERROR = 500
NOT_IMPLEMENTED = 501
INSTANCE_LOST = 502
UNAVAILABLE = 503
DEADLINE_PASSED = 504

REFUSALS = frozenset({UNAUTHORIZED, UNAVAILABLE})
"""What an instance says to a request that it did not begin; a one-way one is told, too."""

REASONS: dict[int, str] = {
    OK: "OK",
    CREATED: "Created",
    ACCEPTED: "Accepted",
    MULTI: "Multi-Status",
    BAD_REQUEST: "Bad Request",
    UNAUTHORIZED: "Unauthorized",
    FORBIDDEN: "Forbidden",
    NOT_FOUND: "Not Found",
    METHOD_NOT_ALLOWED: "Method Not Allowed",
    REQUEST_TIMEOUT: "Request Timeout",
    CONFLICT: "Conflict",
    TOO_LARGE: "Content Too Large",
    UNPROCESSABLE: "Unprocessable Content",
    TOO_MANY: "Too Many Requests",
    CANCELLED: "Client Closed Request",
    SERVER_ERROR: "Internal Server Error",
    NOT_IMPLEMENTED: "Not Implemented",
    INSTANCE_LOST: "Instance Lost",
    UNAVAILABLE: "Service Unavailable",
    DEADLINE_PASSED: "Deadline Exceeded",
}


def is_success(status: int) -> bool:
    """Tell whether ``status`` is one of 200–299."""
    return 200 <= status < 300


def reason(status: int) -> str:
    """Return the standard phrase of a code ('' for a code without one)."""
    return REASONS.get(status, "")
