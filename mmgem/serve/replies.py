"""JSON replies that can always be encoded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response


def to_json(value: Any) -> bytes:
    """JSON of ``value``. File names and texts that are not valid Unicode come out with ``?`` in them."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
        "utf-8", "replace"
    )


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A reply with ``value`` as JSON."""
    return Response(to_json(value), status, headers, "application/json")
