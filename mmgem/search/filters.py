"""Filters: which photos a search may find, by what is known of their files.

One set of them for the command line, the library, the HTTP API and the vector stores, and one place that
turns them into SQL. A photo passes if it passes all that are given; what is not known of it does not pass.

Names are patterns with ``*`` and ``?``, cameras are parts of a name, neither looks at case. Dates are those
of EXIF, else of the file, by the clock on the wall. Distances are great circles on a sphere (haversine).
"""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path, PurePath
from typing import Literal, get_args

from mmgem.errors import UsageError
from mmgem.search.index_metadata import folded, wall_seconds

Orientation = Literal["landscape", "portrait", "square"]
Lacking = Literal["place", "camera", "date"]

EARTH_RADIUS = 6_371_008.8  # metres, the mean radius of IUGG
_MAX_STARS = 4  # of a pattern: with each more, comparing takes a name's length longer
_MAX_CHARS = 4096
_DATE = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?")
_NEAR = re.compile(r"\s*([-+]?[\d.]+)\s*,\s*([-+]?[\d.]+)\s*,\s*([\d.]+)\s*(km|m)\s*")
_SHAPES = {"landscape": "width > height", "portrait": "width < height", "square": "width = height"}

_LACKING = {"place": "latitude IS NULL", "camera": "camera IS NULL", "date": "NOT dated"}


def sql_text(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True, slots=True)
class Filters:
    """What a photo must be; None: anything. Raises UsageError for what is no such thing.

    ``folder``: it lies there or below, a path in the folder that was indexed, or an absolute one. ``name``: a
    pattern of its file's name, ``IMG_*``. ``date``: ``2021``, ``2021-05``, ``2021-05-17``, ``today``,
    ``yesterday``, or from one to another, both included: ``2021-06..2021-08``, ``2021..``, ``..2019``.
    ``camera``: part of its make and model. ``orientation`` as it is shown. ``min_width``, ``min_height`` in
    pixels as it is shown. ``near``: within a distance of a place, ``48.1,11.5,10km`` (latitude, longitude in
    degrees; ``km`` or ``m``). ``changed``: its file was last modified then, in the words of ``date``.
    ``lacks``: EXIF says nothing of its ``place``, ``camera`` or ``date``.
    """

    folder: str | None = None
    name: str | None = None
    date: str | None = None
    camera: str | None = None
    orientation: Orientation | None = None
    min_width: int | None = None
    min_height: int | None = None
    near: str | None = None
    changed: str | None = None
    lacks: Lacking | None = None

    def __post_init__(self) -> None:
        for field in ("folder", "name", "camera"):
            value = getattr(self, field)
            if value is not None and (not value.strip() or "\0" in value or len(value) > _MAX_CHARS):
                raise UsageError(f"{field} {value[:80]!r}: must be some text")
        if self.name is not None and self.name.count("*") > _MAX_STARS:
            raise UsageError(f"name {self.name!r}: at most {_MAX_STARS} * can be in a pattern")
        if self.orientation is not None and self.orientation not in _SHAPES:
            known = ", ".join(get_args(Orientation))
            raise UsageError(f"orientation {self.orientation!r}: must be one of {known}")
        for field in ("min_width", "min_height"):
            value = getattr(self, field)
            if value is not None and not 1 <= value < 2**31:
                raise UsageError(f"{field} {value}: must be pixels, 1 or more")
        if self.lacks is not None and self.lacks not in _LACKING:
            raise UsageError(f"lacks {self.lacks!r}: must be one of {', '.join(get_args(Lacking))}")
        if self.date is not None:
            parse_period(self.date)
        if self.changed is not None:
            parse_period(self.changed, "changed")
        if self.near is not None:
            parse_near(self.near)

    def __bool__(self) -> bool:
        return bool(self.given)

    @property
    def given(self) -> list[str]:
        """The names of those that are set."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    @property
    def needs_metadata(self) -> bool:
        """Whether they ask for more than the path of a photo."""
        return not {"folder", "name"}.issuperset(self.given)

    def folder_below(self, root: PurePath | None) -> str:
        """``folder`` with forward slashes, as photos below ``root`` have it: relative to it, empty for
        itself; or absolute. None: of any root. Raises UsageError if it leaves the root."""
        assert self.folder is not None
        given = PurePath(self.folder)
        if given.is_absolute():
            given = PurePath(os.path.normpath(given))
            if root is None or not given.is_relative_to(root):
                return given.as_posix()
            given = given.relative_to(root)
        path = posixpath.normpath(given.as_posix())
        if path == ".." or path.startswith("../"):
            raise UsageError(f"folder {self.folder!r}: must lie in the folder that was indexed")
        return "" if path == "." else path

    def sql(
        self,
        root: Path | None = None,
        path_literal: Callable[[str], str] = sql_text,
        relative: str = "path",
    ) -> str:
        """The condition, of columns ``path``, ``name`` (folded), ``taken`` (wall seconds), ``camera``,
        ``width``, ``height``, ``latitude`` and ``longitude``; of ``mtime_ns`` for ``changed`` and ``dated``
        for ``lacks``.

        Folders below ``root`` are looked for in the column ``relative``, others in ``path``, see
        :meth:`folder_below`; ``path_literal`` writes a part of one."""
        terms = []
        if self.folder is not None:
            folder = self.folder_below(root)
            column, below = "path" if PurePath(folder).is_absolute() else relative, folder.rstrip("/")
            first, after = path_literal(below + "/"), path_literal(below + "0")  # 0 comes after /
            inside = f"({column} >= {first} AND {column} < {after})"
            terms.append(inside if folder else f"NOT {inside}")  # all that is not absolute
        if self.name is not None:
            terms.append(f"name LIKE {sql_text(_like(folded(self.name)))} ESCAPE '\\'")
        if self.date is not None:
            start, end = parse_period(self.date)
            terms += [f"taken >= {wall_seconds(start)}"] if start is not None else []
            terms += [f"taken < {wall_seconds(end)}"] if end is not None else []
        if self.changed is not None:
            start, end = parse_period(self.changed, "changed")
            terms += [f"mtime_ns >= {_nanoseconds(start)}"] if start is not None else []
            terms += [f"mtime_ns < {_nanoseconds(end)}"] if end is not None else []
        if self.lacks is not None:
            terms.append(_LACKING[self.lacks])
        if self.camera is not None:
            terms.append(
                f"lower(camera) LIKE {sql_text('%' + _escaped(self.camera.lower()) + '%')} ESCAPE '\\'"
            )
        if self.orientation is not None:
            terms.append(_SHAPES[self.orientation])
        terms += [f"width >= {self.min_width}"] if self.min_width is not None else []
        terms += [f"height >= {self.min_height}"] if self.min_height is not None else []
        terms += [_near_sql(*parse_near(self.near))] if self.near is not None else []
        return " AND ".join(terms) or "1 = 1"


NO_FILTERS = Filters()


def shape(width: int, height: int) -> Orientation:
    """The orientation of a photo of this size."""
    return "square" if width == height else "landscape" if width > height else "portrait"


def sqlite_bytes(path: str) -> str:
    """A path as the bytes it is, as a literal of SQLite."""
    return f"X'{os.fsencode(path).hex()}'"


def parse_period(text: str, field: str = "date") -> tuple[datetime | None, datetime | None]:
    """The first moment of a period as :class:`Filters` has it, and the first after it; None: no such end.
    Raises UsageError for anything else."""
    first, dots, last = text.strip().partition("..")
    try:
        start = _day_span(first)[0] if first.strip() else None
        end = _day_span(last if dots else first)[1] if last.strip() or not dots else None
        if (start is None and end is None) or (start and end and start >= end):
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{field} {text!r}: must be 2021, 2021-05, 2021-05-17, today, yesterday, or a span of two: "
            "2021-06..2021-08"
        ) from error
    return start, end


def _day_span(text: str) -> tuple[datetime, datetime]:
    """The first moment of a year, month or day, and of the next. Raises ValueError."""
    text = text.strip().lower()
    if text in ("today", "yesterday"):
        midnight = datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)
        start = midnight - timedelta(days=text == "yesterday")
        return start, start + timedelta(days=1)
    found = _DATE.fullmatch(text)
    if found is None:
        raise ValueError(text)
    year, month, day = (None if part is None else int(part) for part in found.groups())
    assert year is not None
    start = datetime(year, month or 1, day or 1)
    if day is not None:
        return start, start + timedelta(days=1)
    months = 12 * year + (0 if month is None else month - 1) + (12 if month is None else 1)
    return start, datetime(months // 12, months % 12 + 1, 1)


def parse_near(text: str) -> tuple[float, float, float]:
    """Latitude and longitude in degrees and a distance in metres of ``48.1,11.5,10km``. Raises UsageError."""
    found = _NEAR.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        latitude, longitude, distance = (float(number) for number in found.groups()[:3])
        if abs(latitude) > 90 or abs(longitude) > 180:
            raise ValueError
    except ValueError as error:
        raise UsageError(
            f"near {text!r}: must be latitude, longitude and a distance like 48.1,11.5,10km"
        ) from error
    return latitude, longitude, distance * (1000 if found[4] == "km" else 1)


def _near_sql(latitude: float, longitude: float, distance: float) -> str:
    """Within ``distance`` metres: the haversine, after a box around the circle that leaves most out."""
    angle = distance / EARTH_RADIUS
    if angle >= math.pi:
        return "latitude IS NOT NULL AND longitude IS NOT NULL"
    reach = math.degrees(angle) * (1 + 1e-9) + 1e-9
    terms = [f"latitude BETWEEN {latitude - reach!r} AND {latitude + reach!r}"]
    if abs(latitude) + reach < 90:
        across = math.degrees(math.asin(min(1, math.sin(angle) / math.cos(math.radians(latitude))))) + 1e-7
        if abs(longitude) + across < 180:
            terms.append(f"longitude BETWEEN {longitude - across!r} AND {longitude + across!r}")
    half = math.pi / 360
    down, over = (f"sin(({name} - {value!r}) * {half!r})" for name, value in
                  (("latitude", latitude), ("longitude", longitude)))  # fmt: skip
    scale = f"{math.cos(math.radians(latitude))!r} * cos(latitude * {math.pi / 180!r})"
    terms.append(f"{down} * {down} + {scale} * {over} * {over} <= {math.sin(angle / 2) ** 2!r}")
    return " AND ".join(terms)


def _nanoseconds(moment: datetime) -> int:
    """Since 1970, of a moment by the clock on the wall here."""
    return round(moment.timestamp()) * 10**9


def _like(pattern: str) -> str:
    """A pattern of ``*`` and ``?`` as one of SQL's LIKE, escaped by a backslash."""
    return _escaped(pattern).replace("*", "%").replace("?", "_")


def _escaped(text: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", text)
