"""The files in the folder of a photo index: their names, how they are opened, and what is wrong with them."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.errors import BusyError, MissingIndexError, SearchIndexError
from mmgem.utils.files import sync_folder
from mmgem.utils.locks import FileLock

FORMAT = 4
"""Of an index with short regions (:mod:`mmgem.search.region_rows`)."""
CLIPS_FORMAT = 3
"""Of one with clips."""
PHOTOS_FORMAT = 2
"""Of one with neither, which earlier versions read and write too; 1 has no checksums, no times of change."""
_DATABASE = "photos.sqlite3"


def database_file(out: Path) -> Path:
    """The manifest of the index ``out``; the file changes whenever the index does."""
    return out / _DATABASE


def existing_database(out: Path) -> Path:
    """:func:`database_file`. Raises MissingIndexError if it is not there."""
    database = database_file(out)
    if not database.is_file():
        raise MissingIndexError(f"{out}: no search index here; make one with: mmgem index DIR --out IDX")
    return database


def connect(path: Path, create: bool) -> sqlite3.Connection:
    """Open for writing if the disk allows (a reader too must roll back what a killed writer left)."""
    uri = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)


def write_lock(out: Path) -> FileLock:
    """Take the writer's lock of the index in the folder ``out``. Raises SearchIndexError if another process
    has it."""
    try:
        with errors_naming(out):
            return FileLock(out / "lock", out)
    except BusyError as error:
        raise SearchIndexError(f"{out}: another process is writing this index ({error.holder})") from error


def check_version(db: sqlite3.Connection, out: Path) -> int:
    """The format of a manifest, 0: nothing is in it yet. Raises SearchIndexError for one of a later mmgem."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if not 0 <= version <= FORMAT:
        raise SearchIndexError(
            f"{out}: index format {version}, this mmgem knows {FORMAT}; delete it and run mmgem index again"
        )
    return version


def raise_version(db: sqlite3.Connection, version: int) -> None:
    """Say, in a transaction, that it takes the format ``version`` or a later one to read a manifest."""
    if db.execute("PRAGMA user_version").fetchone()[0] < version:
        db.execute(f"PRAGMA user_version = {version}")


def read_meta(db: sqlite3.Connection, key: str) -> Any:
    """What the manifest says about the index as a whole, None if it does not."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def decode_path(stored: bytes | None) -> Path | None:
    """A path as the manifest keeps it."""
    return None if stored is None else Path(os.fsdecode(stored))


def photo_folder(db: sqlite3.Connection, out: Path) -> Path:
    """Where the photos are: as recorded or, if that is gone, at the same place relative to the index."""
    folder, relative = (
        decode_path(read_meta(db, "folder")),
        decode_path(read_meta(db, "folder_from_index")),
    )
    if folder is None:
        return out
    if relative is not None and not folder.is_dir() and (out / relative).is_dir():
        return (out / relative).resolve()
    return folder


def stored_folders(out: Path) -> list[Path]:
    """The folders that the index ``out`` is of, absolute, the first one first; none if there is no index that
    can be read."""
    try:
        with errors_naming(out), closing(connect(database_file(out), create=False)) as db:
            first = decode_path(read_meta(db, "folder"))
            further = json.loads(read_meta(db, "further_folders") or "[]")
    except SearchIndexError:
        return []
    return [*([] if first is None else [first]), *(decode_hex_path(folder) for folder in further)]


def stored_model(out: Path) -> str | None:
    """The name of the model that the index ``out`` was made with; None if there is none that can be read."""
    if not database_file(out).is_file():
        return None
    try:
        with errors_naming(out), closing(connect(database_file(out), create=False)) as db:
            return read_meta(db, "model") or None
    except SearchIndexError:
        return None


def decode_hex_path(folder: str) -> Path:
    """A path as the manifest keeps those of a list."""
    return Path(os.fsdecode(bytes.fromhex(folder)))


def count_rows(db: sqlite3.Connection) -> int:
    """How many rows of the vectors' file have been named; they are 0, 1, 2 …"""
    return db.execute("SELECT coalesce(max(row) + 1, 0) FROM rows").fetchone()[0]


def vectors_file(out: Path, generation: int) -> Path:
    """The vectors of a generation."""
    return out / f"vectors-{generation}.f32"


def regions_file(out: Path, generation: int) -> Path:
    """The short regions of a generation."""
    return out / f"regions-{generation}.u8"


def memmap(path: Path, rows: int, dim: int, dtype: str = "<f4") -> np.ndarray:
    """Memory-map ``rows`` rows of ``dim`` numbers, read-only; raises SearchIndexError if there are fewer."""
    if rows == 0:
        return np.zeros((0, dim), dtype)
    with errors_naming(path):
        if path.stat().st_size < rows * dim * np.dtype(dtype).itemsize:
            raise too_short(path)
        return np.asarray(np.memmap(path, dtype, "r", shape=(rows, dim)))


def append_rows(path: Path, first: int, rows: np.ndarray) -> None:
    """Write ``rows`` ``(n, w)`` after the first ``first`` of a file of such rows, in the place of whatever
    comes there, synced to disk. Raises SearchIndexError if the file has fewer."""
    start = first * rows.shape[1] * rows.itemsize
    new = not path.exists()
    with errors_naming(path), path.open("w+b" if new else "r+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell() < start:
            raise too_short(path)
        file.seek(start)
        file.write(rows.tobytes())
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)


def too_short(path: Path) -> SearchIndexError:
    """The error of a file of vectors that lacks some."""
    return SearchIndexError(
        f"{path}: shorter than its manifest says; delete {path.parent} and run mmgem index again, or let "
        "mmgem index --repair embed what is lost"
    )


@contextmanager
def errors_naming(path: Path, made_by: str = "mmgem index") -> Iterator[None]:
    """Turn what the disk or SQLite complains about into a SearchIndexError that names ``path``; ``made_by``:
    the command that makes it again."""
    try:
        yield
    except OSError as error:
        raise SearchIndexError(f"{path}: {error.strerror or error}") from error
    except sqlite3.Error as error:
        raise SearchIndexError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:  # SQLite quotes the damage
        raise SearchIndexError(f"{path}: damaged; delete it and run {made_by} again") from error
