"""Filters as a condition of SQL, for stores that understand it."""

from __future__ import annotations

import math
import re
from pathlib import PurePath

from mmgem.search.filters import EARTH_RADIUS, Filters, parse_near, parse_period
from mmgem.search.index_metadata import folded, wall_seconds

_SHAPES = {"landscape": "width > height", "portrait": "width < height", "square": "width = height"}


def sql_text(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def sql_condition(filters: Filters) -> str:
    """What passes ``filters``, which are not ``changed`` or ``lacks``, of columns named as the fields of
    :class:`mmgem.search.stores.base.Payload`."""
    terms = []
    if filters.folder is not None:
        folder = filters.folder_below(None)
        column, below = "path" if PurePath(folder).is_absolute() else "below", folder.rstrip("/")
        first, after = sql_text(below + "/"), sql_text(below + "0")  # 0 comes after /
        inside = f"({column} >= {first} AND {column} < {after})"
        terms.append(inside if folder else f"NOT {inside}")  # all that is not absolute
    if filters.name is not None:
        pattern = _escaped(folded(filters.name)).replace("*", "%").replace("?", "_")
        terms.append(f"name LIKE {sql_text(pattern)} ESCAPE '\\'")
    if filters.date is not None:
        start, end = parse_period(filters.date)
        terms += [f"taken >= {wall_seconds(start)}"] if start is not None else []
        terms += [f"taken < {wall_seconds(end)}"] if end is not None else []
    if filters.camera is not None:
        part = sql_text(f"%{_escaped(filters.camera.lower())}%")
        terms.append(f"lower(camera) LIKE {part} ESCAPE '\\'")
    if filters.orientation is not None:
        terms.append(_SHAPES[filters.orientation])
    terms += [f"width >= {filters.min_width}"] if filters.min_width is not None else []
    terms += [f"height >= {filters.min_height}"] if filters.min_height is not None else []
    terms += [_near(*parse_near(filters.near))] if filters.near is not None else []
    return " AND ".join(terms)


def _near(latitude: float, longitude: float, distance: float) -> str:
    """Within ``distance`` metres: the haversine."""
    angle = distance / EARTH_RADIUS
    if angle >= math.pi:
        return "latitude IS NOT NULL AND longitude IS NOT NULL"
    half = math.pi / 360
    down, over = (f"sin(({name} - {value!r}) * {half!r})" for name, value in
                  (("latitude", latitude), ("longitude", longitude)))  # fmt: skip
    scale = f"{math.cos(math.radians(latitude))!r} * cos(latitude * {math.pi / 180!r})"
    return f"{down} * {down} + {scale} * {over} * {over} <= {math.sin(angle / 2) ** 2!r}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", text)
