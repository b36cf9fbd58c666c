"""Checksums of a photo index: of its vectors, a block of rows at a time, and of its manifest.

The manifest holds a CRC-32 of every 32 rows (table ``checksums``), written in the transaction that names the
rows. A block is compared the first time one of its rows is read; blocks of which no photo has a row any more
are not. Rows of an index without checksums (format 1) are looked at instead: they must be finite and of unit
length. The manifest's own checksum lies beside it, with SQLite's count of changes: after a kill the count is
another, and the checksum is of no use until the next writer is done.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mmgem.errors import SearchIndexError
from mmgem.utils.checksums import sealed_json, sidecar, unsealed_json
from mmgem.utils.files import write_atomic
from mmgem.utils.unit_vectors import not_unit_rows

BLOCK_ROWS = 32
TABLE = "CREATE TABLE checksums (block INTEGER PRIMARY KEY, crc INTEGER NOT NULL)"
_BLOCKS_A_TASK = 2048  # checked by one thread at once
_THREADS = 4
_COUNTER, _VERSION_VALID_FOR = slice(24, 28), slice(92, 96)  # of SQLite's header, equal after every change
_LISTED = 3


class VectorBlocks:
    """The checksums of ``vectors`` ``(R, D)`` float32 (or of short regions, ``(R, w)`` uint8) of the file
    ``path``, with the blocks seen so far."""

    def __init__(
        self, path: Path, vectors: np.ndarray, crcs: dict[int, int] | None, live: np.ndarray | None = None
    ) -> None:
        """``crcs``: CRC-32 by block, None: there are none. ``live`` ``(n,)`` int: rows that are of use."""
        self.path, self.vectors, self.crcs = path, vectors, crcs
        self._raw = vectors.reshape(-1).view(np.uint8).data
        blocks = -(-len(vectors) // BLOCK_ROWS)
        self._unseen = np.ones(blocks, bool)
        if live is not None:
            self._unseen[:] = False
            self._unseen[np.asarray(live) // BLOCK_ROWS] = True

    def verify(self, rows: np.ndarray | None = None) -> None:
        """Compare the blocks of ``rows`` ``(n,)`` int (None: all) that have not been. Raises
        SearchIndexError, naming the rows, if any is damaged."""
        if rows is None:
            blocks = np.flatnonzero(self._unseen)
        else:
            blocks = np.asarray(rows) // BLOCK_ROWS
            blocks = np.unique(blocks[self._unseen[blocks]])
        if not len(blocks):
            return
        if damaged := self.damaged_blocks(blocks.tolist()):
            raise SearchIndexError(f"{self.path}: {self._damage(damaged)}")
        self._unseen[blocks] = False

    def damaged_blocks(self, blocks: list[int] | None = None) -> list[int]:
        """Which of ``blocks`` (None: all that are of use) are damaged."""
        if blocks is None:
            blocks = np.flatnonzero(self._unseen).tolist()
        tasks = [blocks[at : at + _BLOCKS_A_TASK] for at in range(0, len(blocks), _BLOCKS_A_TASK)]
        check = self._by_length if self.crcs is None else self._by_checksum
        if len(tasks) == 1:
            return check(tasks[0])
        with ThreadPoolExecutor(_THREADS) as pool:
            return [block for damaged in pool.map(check, tasks) for block in damaged]

    def _by_checksum(self, blocks: list[int]) -> list[int]:
        assert self.crcs is not None
        return [block for block in blocks if self.crc(block) != self.crcs.get(block)]

    def crc(self, block: int) -> int:
        """CRC-32 of a block as it is on the disk."""
        size = BLOCK_ROWS * self.vectors.shape[1] * self.vectors.itemsize
        return zlib.crc32(self._raw[block * size : (block + 1) * size])

    def _by_length(self, blocks: list[int]) -> list[int]:
        starts = np.array(blocks, np.int64) * BLOCK_ROWS
        rows = (starts[:, None] + np.arange(BLOCK_ROWS)).ravel()
        rows = rows[rows < len(self.vectors)]
        return np.unique(rows[not_unit_rows(self.vectors[rows])] // BLOCK_ROWS).tolist()

    def _damage(self, blocks: list[int]) -> str:
        last = len(self.vectors) - 1
        spans = [f"{n * BLOCK_ROWS}-{min((n + 1) * BLOCK_ROWS - 1, last)}" for n in blocks[:_LISTED]]
        more = f" and {len(blocks) - _LISTED} more blocks" if len(blocks) > _LISTED else ""
        return (
            f"rows {', '.join(spans)}{more} are damaged; mmgem index --repair embeds their photos again "
            "(mmgem check lists them)"
        )


def block_crcs(vectors: np.ndarray) -> list[tuple[int, int]]:
    """(block, CRC-32) of ``vectors`` ``(n, w)``, the first of which is row 0 of a file."""
    return [
        (at // BLOCK_ROWS, zlib.crc32(_raw(vectors[at : at + BLOCK_ROWS])))
        for at in range(0, len(vectors), BLOCK_ROWS)
    ]


def append_crcs(db: sqlite3.Connection, first: int, vectors: np.ndarray, table: str = "checksums") -> None:
    """Record the checksums of new rows ``first`` and on: ``vectors`` ``(n, w)``. The block that was not full
    goes on from its recorded checksum, so what is on the disk is not trusted."""
    at = 0
    while at < len(vectors):
        block, inside = divmod(first + at, BLOCK_ROWS)
        rows = vectors[at : at + BLOCK_ROWS - inside]
        crc = 0
        if inside:
            (crc,) = db.execute(f"SELECT crc FROM {table} WHERE block = ?", (block,)).fetchone()
        db.execute(f"REPLACE INTO {table} VALUES (?, ?)", (block, zlib.crc32(_raw(rows), crc)))
        at += len(rows)


def replace_crcs(db: sqlite3.Connection, crcs: Iterable[tuple[int, int]], table: str = "checksums") -> None:
    """Record the (block, CRC-32) of blocks as they are now."""
    db.executemany(f"REPLACE INTO {table} VALUES (?, ?)", crcs)


def forget_blocks(
    db: sqlite3.Connection,
    blocks: Iterable[int],
    contents: str = "SELECT content FROM rows WHERE row BETWEEN ? AND ?",
) -> list[bytes]:
    """Take out the photos that have rows in ``blocks``, and make what they showed unknown; returns their
    paths. ``contents`` selects the contents with rows between two, both included."""
    paths: list[bytes] = []
    for block in blocks:
        span = block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS - 1
        photos = db.execute(f"SELECT path FROM photos WHERE content IN ({contents})", span)
        paths += [path for (path,) in photos]
        db.execute(f"DELETE FROM photos WHERE content IN ({contents})", span)
        # No file has such a digest: what comes with the old one is new.
        db.execute(f"UPDATE contents SET digest = 'x' || id WHERE id IN ({contents})", span)
    return paths


def read_crcs(db: sqlite3.Connection, table: str = "checksums") -> dict[int, int]:
    """CRC-32 of each block."""
    return dict(db.execute(f"SELECT block, crc FROM {table}"))


def _raw(vectors: np.ndarray) -> bytes:
    return (vectors if vectors.dtype == np.uint8 else vectors.astype("<f4")).tobytes()


def write_manifest_checksum(db: sqlite3.Connection, path: Path) -> None:
    """Write the checksum of the manifest ``path``, unless it has not changed since the last."""
    data = _pages(db)
    if data is None or _recorded(path).get("changes") == _changes(data):
        return
    facts = {"changes": _changes(data), "bytes": len(data), "manifest": zlib.crc32(data)}
    write_atomic(sidecar(path), sealed_json(facts) + "\n")


def verify_manifest(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the manifest ``path``, as ``db`` sees it, has a checksum and agrees with it.

    False if there is none for this state of it. Raises SearchIndexError if it is damaged.
    """
    data = _pages(db)
    if data is None:
        return False
    expected = _recorded(path)
    damaged = data[_COUNTER] != data[_VERSION_VALID_FOR]
    if not damaged:
        if expected.get("changes") != _changes(data):
            return False
        damaged = (expected["bytes"], expected["manifest"]) != (len(data), zlib.crc32(data))
    if damaged:
        raise SearchIndexError(
            f"{path}: damaged, its checksum does not match; delete {path.parent} and run mmgem index again"
        )
    return True


def _pages(db: sqlite3.Connection) -> bytes | None:
    """The manifest's pages, within the transaction of ``db``; None where this SQLite cannot tell."""
    serialize = getattr(db, "serialize", None)
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    return serialize() if pages and serialize is not None else None


def _changes(data: bytes) -> int:
    return int.from_bytes(data[_COUNTER], "big")


def _recorded(path: Path) -> dict[str, int]:
    try:
        facts = unsealed_json(sidecar(path).read_text(encoding="utf-8"))
        return facts if {"changes", "bytes", "manifest"} <= facts.keys() else {}
    except (OSError, ValueError):
        return {}
