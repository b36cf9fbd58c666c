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

from mmgem.serve.errors import APIError
from mmgem.serve.image_input import Upload

BodyModel = TypeVar("BodyModel", bound=BaseModel)

_REF = "#/components/schemas/{model}"
_FILE_FIELD = "image"
_MAX_FIELDS = 64
_MAX_VALUES = 1_000_000  # of a JSON body: reading more holds all other requests up
_documented: set[type[BaseModel]] = set()


def body_schema(model: type[BaseModel], form: bool = False) -> dict[str, Any]:
    """The ``openapi_extra`` of a route that reads ``model``; ``form``: from a form as well."""
    _documented.add(model)
    schema = {"schema": {"$ref": _REF.format(model=model.__name__)}}
    content: dict[str, Any] = {"application/json": schema}
    if form:
        described = model.model_json_schema(ref_template=_REF)
        fields = described["properties"] | {_FILE_FIELD: {"type": "string", "format": "binary"}}
        content["multipart/form-data"] = {
            "schema": {"type": "object", "properties": fields, "required": described.get("required", [])}
        }
    return {"requestBody": {"required": True, "content": content}}


async def parse_body(request: Request, model: type[BodyModel], form: bool = False) -> BodyModel:
    """The body as ``model``. Raises ``APIError``, and pydantic's ``ValidationError``."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        body = await request.body()
        if sum(map(body.count, (b",", b"[", b"{"))) > _MAX_VALUES:
            raise APIError(413, "too_large", f"the body holds more than {_MAX_VALUES} values")
        return model.model_validate_json(body, strict=True)
    if form and media_type == "multipart/form-data":
        return model.model_validate(await _form_fields(request, model))
    accepted = "application/json or multipart/form-data" if form else "application/json"
    raise APIError(415, "unsupported_media_type", f"Content-Type must be {accepted}")


async def _form_fields(request: Request, model: type[BaseModel]) -> dict[str, Any]:
    """What a form says: text as it is, everything else as JSON."""
    try:
        form = await request.form(max_files=1, max_fields=_MAX_FIELDS)
    except (MultiPartException, HTTPException) as error:
        message = getattr(error, "message", None) or getattr(error, "detail", "")
        raise APIError(400, "bad_form", f"the form cannot be read: {message}") from error
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise APIError(422, "invalid_value", f"{name}: given twice", name)
        if isinstance(value, UploadFile):
            if name != _FILE_FIELD:
                raise APIError(422, "invalid_value", f"{name}: only {_FILE_FIELD} is a file", name)
            fields[name] = Upload(await value.read())
        elif name in _string_fields(model):
            fields[name] = value
        else:
            fields[name] = _parse_json(value)
    return fields


@cache
def _string_fields(model: type[BaseModel]) -> set[str]:
    """The fields that may be texts."""
    properties = model.model_json_schema()["properties"].items()
    return {
        name
        for name, schema in properties
        if "string" in (schema_type.get("type") for schema_type in (schema, *schema.get("anyOf", [])))
    }


def _parse_json(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value  # for the model to refuse


def set_openapi(app: FastAPI) -> None:
    """Give ``app`` an OpenAPI document that knows the bodies of :func:`body_schema`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            documented: Any = [
                (model, "validation") for model in sorted(_documented, key=lambda m: m.__name__)
            ]
            _, bodies = models_json_schema(documented, ref_template=_REF)
            schema.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
