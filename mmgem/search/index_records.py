"""What a photo index says of its photos: as they are recorded, and as they are read."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmgem.data.moments import Moment
from mmgem.data.photo_metadata import PhotoMetadata
from mmgem.data.records import Box
from mmgem.search.index_checksums import VectorBlocks
from mmgem.search.index_files import CLIPS_FORMAT, raise_version
from mmgem.search.region_records import ListsState, ShortRegions


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A photo file as it was read: ``path`` relative to the folder, ``size`` in bytes, times of modification
    and of change, and its hash."""

    path: str
    size: int
    mtime_ns: int
    digest: bytes
    ctime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class StoredPhoto:
    """What the manifest holds of a path; ``content`` is its content's number; ``ctime_ns`` is None if an
    earlier version recorded it."""

    size: int
    mtime_ns: int
    content: int
    ctime_ns: int | None = None

    def unchanged(self, stat: tuple[int, int, int]) -> bool:
        """Whether a file of this size, time of modification and time of change (the one that no program can
        set) is as it was recorded."""
        recorded = self.size, self.mtime_ns, self.ctime_ns
        return recorded[:2] == stat[:2] and self.ctime_ns in (None, stat[2])


@dataclass(frozen=True, slots=True, eq=False)
class NewContent:
    """A content to record: ``vectors`` (m, D) float32 with a box or None (whole image) each, or a problem.

    ``size`` (width, height) in pixels is that of the upright photo; needed where there are boxes, and may be
    left to ``metadata``, what the photo's header says. ``moments``: when each vector is shown, of a clip."""

    digest: bytes
    vectors: np.ndarray
    boxes: Sequence[Box | None] = ()
    problem: str | None = None
    size: tuple[int, int] | None = None
    metadata: PhotoMetadata | None = None
    moments: Sequence[Moment] = ()


@dataclass(frozen=True, slots=True, eq=False)
class IndexSnapshot:
    """One consistent state of an index.

    ``vectors`` (R, D) float32 is memory-mapped and may hold rows that no photo points to. ``entries`` are
    (row, path, box as JSON or None), sorted by row, then path. ``regions`` is how many boxes a photo has at
    most; where there are any, ``is_region`` (R,) bool says which rows are boxes, and ``relative_boxes``
    (R, 4) float32 where, in shares of their photo. ``generation`` changes when rows get other numbers.
    ``sizes`` (R, 2) int32, if asked for, is the width and height of the upright photo in pixels, 0 where it
    is not known. ``manifest_verified``: the manifest has a checksum for its last change, and agrees.
    ``moments``: of the rows that are moments of a clip, by row. ``short_regions``: those of an index in which
    boxes are no rows, and ``lists_state``: which file says where to look among them.
    """

    fingerprint: str
    model: str
    folder: Path
    vectors: np.ndarray
    entries: list[tuple[int, bytes, str | None]]
    regions: int = 0
    is_region: np.ndarray | None = None
    relative_boxes: np.ndarray | None = None
    generation: int = 0
    sizes: np.ndarray | None = None
    blocks: VectorBlocks | None = None
    manifest_verified: bool = False
    moments: Mapping[int, Moment] = field(default_factory=dict)
    short_regions: ShortRegions | None = None
    lists_state: ListsState | None = None

    def verify(self, rows: np.ndarray | None = None) -> None:
        """Compare the checksums of ``rows`` ``(n,)`` int (None: all that photos point to), those of a block
        once. To be called before they are used; raises SearchIndexError if they are damaged."""
        if self.blocks is not None:
            self.blocks.verify(rows)


def read_regions(db: sqlite3.Connection, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are boxes, (rows,) bool, and the box of each in shares of its photo, (rows, 4) float32;
    0, 0, 1, 1 for a whole photo."""
    is_region, relative_boxes = np.zeros(rows, bool), np.tile(np.array([0, 0, 1, 1], np.float32), (rows, 1))
    region_rows = db.execute(
        "SELECT row, box, width, height FROM rows JOIN contents ON contents.id = content"
        " WHERE box IS NOT NULL"
    )
    for row, box, width, height in region_rows:
        x0, y0, x1, y1 = json.loads(box)
        is_region[row], relative_boxes[row] = True, (x0 / width, y0 / height, x1 / width, y1 / height)
    return is_region, relative_boxes


def write_rows(db: sqlite3.Connection, row: int, number: int | None, content: NewContent) -> int:
    """Record what the vectors of a content show, from the row ``row`` on; its number is ``number``. Returns
    the row after them."""
    for at, box in enumerate(content.boxes):
        columns = "row, content, box"
        values: list[object] = [row + at, number, None if box is None else json.dumps(box)]
        if content.moments:
            columns += ', "start", "end"'
            values += content.moments[at]
        db.execute(f"INSERT INTO rows ({columns}) VALUES ({', '.join('?' * len(values))})", values)
    return row + len(content.boxes)


def add_moments(db: sqlite3.Connection) -> None:
    """Make room for moments; an index of photos alone has none."""
    if not has_moments(db):
        for column in ("start", "end"):
            db.execute(f'ALTER TABLE rows ADD COLUMN "{column}" REAL')
        raise_version(db, CLIPS_FORMAT)


def count_moments(db: sqlite3.Connection) -> tuple[int, int]:
    """How many paths are clips, and how many moments they have."""
    if not has_moments(db):
        return 0, 0
    clips, moments = db.execute(
        "SELECT count(DISTINCT path), count(*) FROM photos JOIN rows USING (content)"
        ' WHERE "start" IS NOT NULL'
    ).fetchone()
    return clips, moments


def has_moments(db: sqlite3.Connection) -> bool:
    """Whether rows of the index may be moments of clips."""
    return any(name == "start" for _, name, *_ in db.execute("PRAGMA table_info(rows)"))


def read_moments(db: sqlite3.Connection) -> dict[int, Moment]:
    """When each row that is a moment of a clip starts and ends, in seconds."""
    if not has_moments(db):
        return {}
    rows = db.execute('SELECT row, "start", "end" FROM rows WHERE "start" IS NOT NULL')
    return {row: (start, end) for row, start, end in rows}


def read_sizes(db: sqlite3.Connection, rows: int) -> np.ndarray:
    """Width and height in pixels of the upright photo of each row, (rows, 2) int32; 0 where not known."""
    sizes = np.zeros((rows, 2), np.int32)
    size_rows = db.execute(
        "SELECT row, width, height FROM rows JOIN contents ON contents.id = content WHERE width IS NOT NULL"
    )
    for row, *size in size_rows:
        sizes[row] = size
    return sizes
