"""The request that some work is done for: what shares are counted by."""

from __future__ import annotations

from contextvars import ContextVar


class RequestScope:
    """One request. It has no content: threads and pools are shared evenly among these."""

    __slots__ = ("__weakref__",)


_current: ContextVar[RequestScope | None] = ContextVar("mmgem_request", default=None)


def enter_request() -> None:
    """Let what this task does, and the tasks it starts, belong to a new request."""
    _current.set(RequestScope())


def current_request() -> RequestScope:
    """The request this task belongs to; one of its own outside all requests."""
    return _current.get() or RequestScope()
