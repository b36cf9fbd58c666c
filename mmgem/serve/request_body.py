"""Bodies: JSON, or a form with the photo as a file; and how the OpenAPI document tells of them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from mmgem.serve.errors import Refused
from mmgem.serve.image_input import Upload

Body = TypeVar("Body", bound=BaseModel)

_REF = "#/components/schemas/{model}"
_FILE = "image"
_FIELDS = 64
_documented: set[type[BaseModel]] = set()


def takes(model: type[BaseModel], form: bool = False) -> dict[str, Any]:
    """The ``openapi_extra`` of a route that reads ``model``; ``form``: from a form as well."""
    _documented.add(model)
    schema = {"schema": {"$ref": _REF.format(model=model.__name__)}}
    content: dict[str, Any] = {"application/json": schema}
    if form:
        described = model.model_json_schema(ref_template=_REF)
        fields = described["properties"] | {_FILE: {"type": "string", "format": "binary"}}
        content["multipart/form-data"] = {
            "schema": {"type": "object", "properties": fields, "required": described.get("required", [])}
        }
    return {"requestBody": {"required": True, "content": content}}


async def read(request: Request, model: type[Body], form: bool = False) -> Body:
    """The body as ``model``. Raises ``Refused``, and pydantic's ``ValidationError``."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return model.model_validate_json(await request.body(), strict=True)
    if form and kind == "multipart/form-data":
        return model.model_validate(await _fields(request, model))
    ways = "application/json or multipart/form-data" if form else "application/json"
    raise Refused(415, "unsupported_media_type", f"Content-Type must be {ways}")


async def _fields(request: Request, model: type[BaseModel]) -> dict[str, Any]:
    """What a form says: text as it is, everything else as JSON."""
    try:
        sent = await request.form(max_files=1, max_fields=_FIELDS)
    except (MultiPartException, HTTPException) as error:
        message = getattr(error, "message", None) or getattr(error, "detail", "")
        raise Refused(400, "bad_form", f"the form cannot be read: {message}") from error
    found: dict[str, Any] = {}
    for name, value in sent.multi_items():
        if name in found:
            raise Refused(422, "invalid_value", f"{name}: given twice", name)
        if isinstance(value, UploadFile):
            if name != _FILE:
                raise Refused(422, "invalid_value", f"{name}: only {_FILE} is a file", name)
            found[name] = Upload(await value.read())
        elif name in _texts(model):
            found[name] = value
        else:
            found[name] = _json(value)
    return found


@cache
def _texts(model: type[BaseModel]) -> set[str]:
    """The fields that may be texts."""
    properties = model.model_json_schema()["properties"].items()
    return {
        name
        for name, schema in properties
        if "string" in (kind.get("type") for kind in (schema, *schema.get("anyOf", [])))
    }


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value  # for the model to refuse


def document(app: FastAPI) -> None:
    """Give ``app`` an OpenAPI document that knows the bodies of :func:`takes`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            wanted: Any = [(model, "validation") for model in sorted(_documented, key=lambda m: m.__name__)]
            _, bodies = models_json_schema(wanted, ref_template=_REF)
            made.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
