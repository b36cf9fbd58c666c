"""``/docs``: the OpenAPI document as a plain page. No script, nothing from another host."""

from __future__ import annotations

from html import escape
from typing import Any


def render_api_docs(openapi: dict[str, Any]) -> str:
    """HTML of an OpenAPI document: every route, what it takes and what it gives."""
    schemas = openapi["components"]["schemas"]
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(openapi['info']['title'])}: HTTP API</title>",
        f"<h1>{escape(openapi['info']['title'])} {escape(openapi['info']['version'])}</h1>",
        f"<p>{escape(openapi['info']['description'])} For programs: ",
        "<a href='openapi.json'>openapi.json</a>.</p>",
    ]
    for path, methods in openapi["paths"].items():
        for method, route in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(route.get('description', ''))}</p>")
            parts.append(_fields("Query", route.get("parameters", [])))
            for media_type, content in route.get("requestBody", {}).get("content", {}).items():
                parts.append(f"<p>Takes <code>{escape(media_type)}</code> {_type(content['schema'])}</p>")
            for media_type, content in route["responses"].get("200", {}).get("content", {}).items():
                parts.append(
                    f"<p>Gives <code>{escape(media_type)}</code> {_type(content.get('schema', {}))}</p>"
                )
    parts.append("<h1>Objects</h1>")
    for name, schema in sorted(schemas.items()):
        parts.append(
            f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(schema.get("description", ""))}</p>'
        )
        required = schema.get("required", [])
        rows = [
            {"name": field, "schema": value, "required": field in required}
            for field, value in schema.get("properties", {}).items()
        ]
        parts.append(_fields("Field", rows))
    return "\n".join(parts)


def _fields(head: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    lines = [f"<table><tr><th>{head}<th>Type<th>Default</tr>"]
    for row in rows:
        default = "required" if row["required"] else escape(repr(row["schema"].get("default")))
        lines.append(
            f"<tr><td><code>{escape(row['name'])}</code><td>{_type(row['schema'])}<td>{default}</tr>"
        )
    return "\n".join([*lines, "</table>"])


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(_type(one) for one in schema[union])
    if "prefixItems" in schema:
        return "[" + ", ".join(_type(one) for one in schema["prefixItems"]) + "]"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if "enum" in schema:
        return " or ".join(escape(repr(value)) for value in schema["enum"])
    bounds = [
        f"{word} {schema[key]}"
        for key, word in (
            ("minimum", "from"),
            ("maximum", "to"),
            ("minLength", "length from"),
            ("maxLength", "to"),
        )
        if key in schema
    ]
    return escape(" ".join([str(schema.get("const", schema.get("type", ""))), *bounds]))
