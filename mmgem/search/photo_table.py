"""What filters ask of the photos of an index: columns in memory, one row a photo.

The manifest is read once, in one transaction, and a filter is an expression over whole columns, so one of
100,000 photos takes a millisecond; a pattern of names, which is compared with each, ten. What is known of a
photo's header belongs to its content, so columns of contents are spread over the photos by their numbers.
"""

from __future__ import annotations

import fnmatch
import math
import os
import re
import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.search.filters import EARTH_RADIUS, Filters, Period, parse_near, parse_period
from mmgem.search.index_files import connect, errors_naming, existing_database
from mmgem.search.index_metadata import folded, wall_seconds

_PHOTOS = "photos WHERE content NOT IN (SELECT id FROM contents WHERE problem IS NOT NULL) ORDER BY path"
_HEADERS = "metadata CROSS JOIN contents USING (digest)"  # both in the order of the digests: no page twice


class PhotoTable:
    """The photos of an index as filters see them, sorted by path.

    ``paths`` are bytes, relative to the folder. Columns ``(n,)``: ``modified`` and ``bytes`` of the files,
    int64, in seconds since 1970 the first; ``taken``, wall seconds of EXIF, ``width`` and ``height`` in
    pixels, ``latitude`` and ``longitude`` in degrees, float64, NaN where not known; ``camera``, its int64
    place in ``cameras``, 0 where not known. ``unread``: whether the headers of some have not been read.
    """

    def __init__(self, out: Path) -> None:
        """Read the index ``out``. Raises SearchIndexError if it is missing or damaged."""
        database = existing_database(out)
        with errors_naming(out), closing(connect(database, create=False)) as db:
            db.execute("BEGIN")
            self.paths = [path for (path,) in db.execute(f"SELECT path FROM {_PHOTOS}")]
            facts_of_files = ("content", "mtime_ns", "size")
            content, modified, self.bytes = _numbers(db, facts_of_files, _PHOTOS, np.int64)
            ids, *sizes = _numbers(db, ("id", "width", "height"), "contents")
            headers: list[tuple[Any, ...]] = []
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'metadata'").fetchone():
                facts = "id, taken, camera, latitude, longitude"
                headers = db.execute(f"SELECT {facts} FROM {_HEADERS}").fetchall()
        read, taken, cameras, *place = zip(*headers, strict=True) if headers else [()] * 5
        contents = int(max(content.max(initial=0), ids.max(initial=0))) + 1

        def of_photos(known: object, values: object, missing: float = math.nan) -> np.ndarray:
            """``values`` of the contents with the numbers ``known``, as a column of photos."""
            of_contents = np.full(contents, missing)
            of_contents[np.asarray(known, np.int64)] = np.asarray(values, np.float64)
            return np.asarray(of_contents[content])

        self.modified = modified // 10**9
        self.width, self.height = (of_photos(ids, size) for size in sizes)
        self.taken = of_photos(read, taken)
        self.latitude, self.longitude = (of_photos(read, degrees) for degrees in place)
        number_by_camera: dict[str | None, int] = {None: 0}
        numbers = [number_by_camera.setdefault(name, len(number_by_camera)) for name in cameras]
        self.cameras, camera = list(number_by_camera), of_photos(read, numbers, -1)
        self.unread = bool((camera < 0).any())
        self.camera = np.maximum(camera, 0).astype(np.int64)

    def select(self, filters: Filters, root: Path) -> np.ndarray:
        """Which photos pass, ``(n,)`` bool, of an index of the folder ``root``. Raises UsageError for a
        folder outside of it."""
        terms = [np.ones(len(self.paths), bool)]
        if filters.folder is not None:
            terms.append(self._in_folder(filters.folder_below(root)))
        if filters.date is not None:
            period = parse_period(filters.date)
            of_file = _within(self.modified, period, _clock_seconds)
            terms.append(np.where(np.isnan(self.taken), of_file, _within(self.taken, period, wall_seconds)))
        if filters.changed is not None:
            terms.append(_within(self.modified, parse_period(filters.changed, "changed"), _clock_seconds))
        if filters.camera is not None:
            part = filters.camera.lower()
            terms.append(np.array([part in (name or "").lower() for name in self.cameras])[self.camera])
        if filters.orientation is not None:
            compare = {"landscape": np.greater, "portrait": np.less, "square": np.equal}
            terms.append(compare[filters.orientation](self.width, self.height))
        if filters.min_width is not None:
            terms.append(self.width >= filters.min_width)
        if filters.min_height is not None:
            terms.append(self.height >= filters.min_height)
        if filters.near is not None:
            terms.append(self._near(*parse_near(filters.near)))
        if filters.lacks is not None:
            lacking = {"place": self.latitude, "date": self.taken, "camera": self.camera}
            column = lacking[filters.lacks]
            terms.append(column == 0 if filters.lacks == "camera" else np.isnan(column))
        if filters.name is not None:
            pattern = fnmatch.translate(folded(filters.name).replace("[", "[[]"))
            matches = map(re.compile(pattern).match, self._names)
            terms.append(np.fromiter(map(bool, matches), bool, len(self.paths)))
        return np.asarray(np.logical_and.reduce(terms))

    def date(self, path: bytes) -> int | None:
        """When a photo was taken, by EXIF or its file, in wall seconds; None: not known."""
        number = self.number_by_path.get(path)
        return None if number is None else self._date(number)

    def known(self, path: bytes) -> dict[str, Any]:
        """What is known of one photo: ``bytes``, ``width``, ``height``, ``taken`` (as :meth:`date`), whether
        EXIF says so (``dated``), ``camera``, ``latitude`` and ``longitude``. Empty for a path that is not
        here."""
        number = self.number_by_path.get(path)
        if number is None:
            return {}
        width, height, latitude, longitude = (
            None if math.isnan(value := column[number]) else float(value)
            for column in (self.width, self.height, self.latitude, self.longitude)
        )
        return {
            "bytes": int(self.bytes[number]),
            "width": None if width is None else int(width),
            "height": None if height is None else int(height),
            "taken": self._date(number),
            "dated": not math.isnan(self.taken[number]),
            "camera": self.cameras[self.camera[number]],
            "latitude": latitude,
            "longitude": longitude,
        }

    def camera_counts(self) -> list[tuple[str, int]]:
        """Each camera and how many photos it took, the busiest first."""
        counts = np.bincount(self.camera, minlength=len(self.cameras)).tolist()
        known = [(name, count) for name, count in zip(self.cameras, counts, strict=True) if name and count]
        return sorted(known, key=lambda camera: (-camera[1], camera[0]))

    def facts(self) -> dict[bytes, dict[str, Any]]:
        """``name`` (folded), ``taken`` (as :meth:`date`), ``camera``, ``latitude`` and ``longitude`` of each
        path; None where not known."""
        places = zip(self.latitude.tolist(), self.longitude.tolist(), strict=True)
        return {
            path: {
                "name": name,
                "taken": self._date(number),
                "camera": self.cameras[self.camera[number]],
                "latitude": None if math.isnan(latitude) else latitude,
                "longitude": None if math.isnan(longitude) else longitude,
            }
            for number, (path, name, (latitude, longitude)) in enumerate(
                zip(self.paths, self._names, places, strict=True)
            )
        }

    @cached_property
    def number_by_path(self) -> dict[bytes, int]:
        """Where each path is in ``paths``."""
        return {path: number for number, path in enumerate(self.paths)}

    @cached_property
    def _names(self) -> list[str]:
        """The folded name of each photo: folded together, since a slash is in none and stays what it is."""
        names = b"/".join(path.rpartition(b"/")[2] for path in self.paths)
        return folded(os.fsdecode(names)).split("/") if self.paths else []

    @cached_property
    def _points(self) -> np.ndarray:
        """The photos' places on the unit sphere ``(3, n)``, NaN where not known."""
        return _on_sphere(self.latitude, self.longitude)

    def _near(self, latitude: float, longitude: float, distance: float) -> np.ndarray:
        """Which photos are within ``distance`` metres: the square of the chord is four haversines."""
        angle = distance / EARTH_RADIUS
        chord = math.inf if angle >= math.pi else 2 * math.sin(angle / 2)
        squares = ((self._points - _on_sphere(latitude, longitude)[:, None]) ** 2).sum(0)
        return np.asarray(squares <= chord**2 + 1e-30)  # of rounding, some nanometres

    def _in_folder(self, folder: str) -> np.ndarray:
        """Which photos lie in a folder or below, as :meth:`Filters.folder_below` has it: they follow each
        other. Empty: all whose paths are not absolute."""
        below = os.fsencode(folder.rstrip("/"))
        inside = np.zeros(len(self.paths), bool)
        first, after = below + b"/", below + b"0"  # 0 comes after /
        inside[bisect_left(self.paths, first) : bisect_left(self.paths, after)] = True
        return inside if folder else ~inside

    def _date(self, number: int) -> int | None:
        if not math.isnan(taken := self.taken[number]):
            return int(taken)
        with suppress(ValueError, OverflowError, OSError):
            return wall_seconds(datetime.fromtimestamp(int(self.modified[number])))
        return None


def _numbers(
    db: sqlite3.Connection, names: Sequence[str], source: str, dtype: type = np.float64
) -> list[np.ndarray]:
    """Columns of whole numbers, NaN where there is none; one text of each is twice as fast as rows."""
    texts = ", ".join(f"group_concat(ifnull({name}, 'nan'))" for name in names)
    (row,) = db.execute(f"SELECT {texts} FROM (SELECT {', '.join(names)} FROM {source})")
    return [np.fromstring(text or "", dtype, sep=",") for text in row]


def _within(seconds: np.ndarray, period: Period, clock: Callable[[datetime], int]) -> np.ndarray:
    """Which of ``seconds`` are in a period, whose ends are in seconds by ``clock``."""
    start, end = (None if moment is None else clock(moment) for moment in period)
    passed = ~np.isnan(seconds)
    if start is not None:
        passed &= seconds >= start
    return passed if end is None else passed & (seconds < end)


def _clock_seconds(moment: datetime) -> int:
    """Seconds since 1970 when the clock on the wall here shows a moment, as files' times have them."""
    try:
        return round(moment.timestamp())
    except (ValueError, OverflowError, OSError):  # years that the system's clock does not know
        return wall_seconds(moment)


def _on_sphere(latitude: np.ndarray | float, longitude: np.ndarray | float) -> np.ndarray:
    """Places in degrees ``(...)`` as points of the unit sphere ``(3, ...)``."""
    down, over = np.radians(latitude), np.radians(longitude)
    return np.stack([np.cos(down) * np.cos(over), np.cos(down) * np.sin(over), np.sin(down)])
