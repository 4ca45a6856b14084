"""What goes wrong between a client, a broker and a worker.

::

    Error (RuntimeError)      has ``.status``
    ├── ProtocolError         the request was refused, or its handler failed: the same again will fail again
    ├── Disconnected          used before ``connect`` or after ``close``, or closed by somebody meanwhile
    ├── StateError            not now: a reply is unread, or nobody waits for one
    └── Timeout               no reply in time, or none any more (also TimeoutError): may be tried again
"""

from __future__ import annotations


class Error(RuntimeError):
    """Root of what this package raises. ``status`` is the mesh's code where it has one to tell, else 0."""

    def __init__(self, message: str = "", *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ProtocolError(Error):
    """The request could not be put so, or was answered with a failure."""


class Disconnected(Error):
    """There is no connection to use."""


class StateError(Error):
    """The call does not fit what came before it."""


class Timeout(Error, TimeoutError):
    """There is no reply: not yet (``status`` 0), or not any more (502, 504).

    The request may have been carried out all the same.
    """
