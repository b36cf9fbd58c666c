"""One shape for everything that goes wrong: OpenAI's ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from mmgem.errors import DataError, ImageError, MMGEMError, UsageError
from mmgem.serve.replies import json_reply

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed"}


class APIError(Exception):
    """A request that is not answered as asked: HTTP status, a code for programs, a line for people.

    ``param``: the field at fault. ``retry_after``: seconds after which to try again.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None, retry_after: int = 0):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after = param, retry_after


class Problem(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(BaseModel):
    """The body of every reply that is not 2xx."""

    error: Problem


def error_json(error: APIError) -> dict[str, Any]:
    """The JSON of an error."""
    error_type = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    message = " ".join(error.message.split())
    return {"error": {"message": message, "type": error_type, "param": error.param, "code": error.code}}


def error_reply(error: APIError) -> Response:
    """The whole reply."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413, 431):
        headers["Connection"] = "close"  # the rest of the body is not read
    return json_reply(error_json(error), error.status, headers)


def to_api_error(error: Exception) -> APIError:
    """What an exception means to who asked; a bug is 500."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error.errors(include_url=False, include_context=False, include_input=False))
    if isinstance(error, ImageError):
        return APIError(422, "bad_image", str(error).removeprefix("image bytes: "), "image")
    if isinstance(error, UsageError | DataError):
        return APIError(422, "invalid_value", str(error))
    if isinstance(error, MMGEMError):
        return APIError(500, "internal", str(error))
    return APIError(500, "internal", "a bug in the server; its log has the details")


def handle_errors(app: FastAPI) -> None:
    """Give every error of ``app`` the one shape."""

    async def handle_error(_: Request, error: Exception) -> Response:
        return error_reply(to_api_error(error))

    async def handle_invalid_query(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_reply(_invalid(error.errors()))

    async def handle_http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, "invalid_value")
        reply = error_reply(APIError(error.status_code, code, str(error.detail)))
        reply.headers.update(error.headers or {})
        return reply

    app.add_exception_handler(APIError, handle_error)
    app.add_exception_handler(MMGEMError, handle_error)
    app.add_exception_handler(ValidationError, handle_error)
    app.add_exception_handler(RequestValidationError, handle_invalid_query)
    app.add_exception_handler(HTTPException, handle_http_error)
    app.add_exception_handler(Exception, handle_error)


def _invalid(errors: Sequence[Any]) -> APIError:
    first = errors[0]
    if first["type"] == "json_invalid":
        return APIError(400, "bad_json", f"the body is not JSON: {first['msg']}")
    field = ".".join(
        str(part) for part in first["loc"] if not str(part).startswith("(") and part not in ("query", "path")
    )
    message = str(first["msg"]).removeprefix("Value error, ")
    return APIError(422, "invalid_value", f"{field}: {message}" if field else message, field or None)
