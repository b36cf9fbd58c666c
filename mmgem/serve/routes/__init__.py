"""The routes, a file a subject."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from mmgem.serve.errors import ErrorReply
from mmgem.serve.service import Service

_ERROR_DESCRIPTIONS = {
    400: "The body cannot be read.",
    401: "No token, or a wrong one.",
    403: "Asked by a page of another site, or by a name that is not this server's.",
    404: "No such photo or model, or nothing of the kind is served.",
    408: "The body did not arrive in time.",
    413: "Too large.",
    415: "Not JSON (nor a form, where one is taken).",
    422: "A field is wrong, or the photo cannot be decoded.",
    429: "Busy: see Retry-After.",
    431: "The head is too large.",
    503: "Shutting down.",
    504: "It took too long.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": description}
    for status, description in _ERROR_DESCRIPTIONS.items()
}
"""What any route may reply instead; for the OpenAPI document."""


def service_of(request: Request) -> Service:
    """The service behind the routes."""
    service: Service = request.app.state.service
    return service
