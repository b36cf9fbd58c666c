"""What the manifest of a photo index keeps of the photos' headers, and how it is asked about.

Facts belong to a content by its digest, so moved photos keep them. The table came later than the others: an
index without it, or with contents that are not in it, is brought up to date by the next ``mmgem index``,
which reads the headers only. Times are seconds since 1970 by the clock on the wall, of the camera or of this
machine, as if it were UTC: what a person means by a date.

Filters are asked of a copy in memory (:class:`PhotoTable`), one row a photo: names folded once, dates of
files turned into the clock on the wall, and no joins, so a query of 100,000 photos takes some milliseconds.
"""

from __future__ import annotations

import math
import os
import sqlite3
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.data.photo_metadata import PhotoMetadata
from mmgem.errors import SearchIndexError
from mmgem.search.index_files import database_file, errors_naming

METADATA_TABLE = (
    "CREATE TABLE IF NOT EXISTS metadata (digest BLOB PRIMARY KEY, taken INTEGER, camera TEXT, "
    "latitude REAL, longitude REAL) WITHOUT ROWID"
)
_EPOCH = datetime(1970, 1, 1)


def write_metadata(db: sqlite3.Connection, digest: bytes, metadata: PhotoMetadata) -> None:
    """Record what the header of the content ``digest`` says."""
    taken = None if metadata.taken is None else wall_seconds(metadata.taken)
    facts = (digest, taken, metadata.camera, metadata.latitude, metadata.longitude)
    db.execute("REPLACE INTO metadata VALUES (?, ?, ?, ?, ?)", facts)
    db.execute(
        "UPDATE contents SET width = ?, height = ? WHERE digest = ? AND width IS NULL",
        (metadata.width, metadata.height, digest),
    )


def unread_contents(db: sqlite3.Connection) -> Iterable[tuple[bytes, bytes]]:
    """The digest of each content that photos show and whose header has not been read, and a path of it."""
    return db.execute(
        "SELECT contents.digest, min(path) FROM contents JOIN photos ON content = id LEFT JOIN metadata USING"
        " (digest) WHERE metadata.digest IS NULL AND problem IS NULL GROUP BY id"
    )


def forget_metadata(db: sqlite3.Connection) -> None:
    """Forget the headers of contents that are gone."""
    db.execute("DELETE FROM metadata WHERE digest NOT IN (SELECT digest FROM contents)")


def wall_seconds(moment: datetime) -> int:
    """Seconds since 1970 of a clock without a zone, as if it were UTC."""
    return int((moment - _EPOCH).total_seconds())


def wall_time(seconds: int) -> datetime:
    """The moment of :func:`wall_seconds`."""
    return _EPOCH + timedelta(seconds=seconds)


def folded(name: str) -> str:
    """A name as it is compared: without case, composed, and without bytes that are no text."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return unicodedata.normalize("NFC", text.casefold()).replace("\0", "")


class PhotoTable:
    """The photos of an index as filters see them: ``paths`` in order, and a table to ask.

    Columns: ``path`` (bytes, relative to the folder), ``name`` (folded), ``taken`` (wall seconds, of EXIF or
    the file), ``dated`` (whether EXIF says so), ``camera``, ``width``, ``height``, ``bytes``, ``latitude``,
    ``longitude``.
    """

    def __init__(self, out: Path) -> None:
        """Read the index ``out``. Raises SearchIndexError if it is missing or damaged."""
        database = database_file(out)
        if not database.is_file():
            raise SearchIndexError(f"{out}: no search index here; make one with: mmgem index DIR --out IDX")
        with errors_naming(out):
            self._db = sqlite3.connect(":memory:", uri=True, isolation_level=None, check_same_thread=False)
            self._db.execute("ATTACH ? AS stored", (f"{database.absolute().as_uri()}?mode=rw",))
            self._db.create_function("folded_name", 1, _folded_name, deterministic=True)
            self._db.create_function("wall", 1, _wall_of_file, deterministic=True)
            _add_functions(self._db)
            tables = self._db.execute("SELECT name FROM stored.sqlite_master").fetchall()
            facts = "m.taken, m.camera, m.latitude, m.longitude, m.digest IS NULL"
            join = "LEFT JOIN stored.metadata m ON m.digest = c.digest"
            if ("metadata",) not in tables:
                facts, join = "NULL, NULL, NULL, NULL, 1", ""
            self._db.execute(
                "CREATE TABLE photo (path BLOB, name TEXT, bytes INTEGER, mtime_ns INTEGER, width INTEGER,"
                " height INTEGER, taken INTEGER, camera TEXT, latitude REAL, longitude REAL, unread INTEGER,"
                " dated INTEGER)"
            )
            self._db.execute(
                "INSERT INTO photo SELECT path, folded_name(path), size, mtime_ns, width, height,"
                f" {facts}, 0 FROM stored.photos p JOIN stored.contents c ON c.id = p.content {join}"
                " WHERE c.problem IS NULL ORDER BY path"
            )
            self._db.execute("DETACH stored")
            self._db.execute("UPDATE photo SET dated = taken IS NOT NULL")
            self._db.execute("UPDATE photo SET taken = wall(mtime_ns) WHERE NOT dated")
            self.paths = [path for (path,) in self._db.execute("SELECT path FROM photo ORDER BY rowid")]
            (self.unread,) = self._db.execute("SELECT total(unread) FROM photo").fetchone()

    def select(self, condition: str) -> np.ndarray:
        """Which photos an SQL condition is true of, ``(n,)`` bool."""
        chosen = np.zeros(len(self.paths) + 1, bool)
        query = f"SELECT group_concat(rowid) FROM photo WHERE {condition}"
        (rows,) = self._db.execute(query).fetchone()
        if rows is not None:  # one text is several times as fast as so many rows
            chosen[np.fromstring(rows, np.int64, sep=",")] = True
        return chosen[1:]

    @cached_property
    def dates(self) -> dict[bytes, int]:
        """``taken`` of each path that has one."""
        return dict(self._db.execute("SELECT path, taken FROM photo WHERE taken IS NOT NULL"))

    def known(self, path: bytes) -> dict[str, Any]:
        """What is known of one photo: its columns but ``name``. Empty for a path that is not here."""
        cursor = self._db.execute(
            "SELECT bytes, width, height, taken, dated, camera, latitude, longitude FROM photo"
            " WHERE path = ?",
            (path,),
        )
        row = cursor.fetchone()
        return {} if row is None else dict(zip((name for name, *_ in cursor.description), row, strict=True))

    def cameras(self) -> list[tuple[str, int]]:
        """Each camera and how many photos it took, the busiest first."""
        return self._db.execute(
            "SELECT camera, count(*) FROM photo WHERE camera IS NOT NULL GROUP BY camera"
            " ORDER BY count(*) DESC, camera"
        ).fetchall()

    def facts(self) -> dict[bytes, dict[str, Any]]:
        """``name``, ``taken``, ``camera``, ``latitude`` and ``longitude`` of each path."""
        names = ("name", "taken", "camera", "latitude", "longitude")
        rows = self._db.execute(f"SELECT path, {', '.join(names)} FROM photo")
        return {path: dict(zip(names, rest, strict=True)) for path, *rest in rows}


def _folded_name(path: bytes) -> str:
    return folded(os.fsdecode(path).rpartition("/")[2])


def _wall_of_file(mtime_ns: int) -> int | None:
    with suppress(ValueError, OverflowError, OSError):
        return wall_seconds(datetime.fromtimestamp(mtime_ns / 1e9))
    return None


def _add_functions(db: sqlite3.Connection) -> None:
    """Sines and cosines, which not every SQLite has."""
    try:
        db.execute("SELECT sin(0), cos(0)")
    except sqlite3.OperationalError:
        for function in (math.sin, math.cos):
            db.create_function(function.__name__, 1, function, deterministic=True)
