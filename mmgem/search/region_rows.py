"""The short regions of a photo index: their file, and what the manifest says of them.

    IDX/regions-G.u8     generation G of the regions: a record of :mod:`mmgem.search.region_codes` each

An index with regions starts with float32 rows for all. Once it has 250,000, those of regions become records,
also where an earlier version made it. Whole photos and moments of clips stay as they are, and the manifest
names a span of records a photo instead of a row a box. Records are appended, checked, compacted and forgotten
as vectors are (:mod:`mmgem.search.index_store`): all of it holds for them too. The manifest keeps the codec,
which is fitted on the regions that become short first and stays.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmgem.inference.pca import fit_sample
from mmgem.search.index_checksums import (
    BLOCK_ROWS,
    VectorBlocks,
    append_crcs,
    block_crcs,
    forget_blocks,
    read_crcs,
    replace_crcs,
)
from mmgem.search.index_files import (
    FORMAT,
    append_rows,
    count_rows,
    errors_naming,
    memmap,
    raise_version,
    read_meta,
    regions_file,
    vectors_file,
)
from mmgem.search.index_metadata import forget_metadata
from mmgem.search.index_records import NewContent, read_regions
from mmgem.search.region_codes import RegionCodec
from mmgem.search.region_records import ShortRegions
from mmgem.utils.files import sync_folder

SHORT_FROM = 250_000
"""Rows, of photos and regions, from which on regions are short."""
_CRCS = "region_checksums"
_SCHEMA = (
    # Of contents with regions: their first record, and how many come with it.
    "CREATE TABLE region_spans (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, content INTEGER NOT NULL)",
    f"CREATE TABLE {_CRCS} (block INTEGER PRIMARY KEY, crc INTEGER NOT NULL)",
)
_CODEC = "region_codec"
_LIVE = "content IN (SELECT content FROM photos)"
_ROWS_AT_ONCE = 8192


def read_codec(db: sqlite3.Connection) -> RegionCodec | None:
    """The codec of the regions of an index; None: they are float32, or there are none."""
    data = read_meta(db, _CODEC)
    return None if data is None else RegionCodec.from_bytes(data)


def are_due(db: sqlite3.Connection, rows: int) -> bool:
    """Whether the regions of an index of so many ``rows`` are to become short now."""
    return rows >= SHORT_FROM and bool(read_meta(db, "regions")) and read_meta(db, _CODEC) is None


def count_records(db: sqlite3.Connection) -> int:
    """How many records have been named; they are 0, 1, 2 …"""
    last = db.execute("SELECT first + count FROM region_spans ORDER BY first DESC LIMIT 1").fetchone()
    return 0 if last is None else last[0]


def is_compaction_due(db: sqlite3.Connection, min_dead: int) -> bool:
    """Whether at least ``min_dead`` rows, and a quarter of all, belong to no photo; or records."""
    (dead,) = db.execute(
        "SELECT (SELECT count(*) FROM contents)"
        " - (SELECT count(*) FROM (SELECT content FROM photos GROUP BY content))"
    ).fetchone()
    if not dead:  # which is found faster
        return False
    totals = [(count_rows(db), "count(*) FROM rows")]
    if read_meta(db, _CODEC) is not None:
        totals.append((count_records(db), "coalesce(sum(count), 0) FROM region_spans"))
    for total, live_rows in totals:
        (live,) = db.execute(f"SELECT {live_rows} WHERE {_LIVE}").fetchone()
        if total - live >= min_dead and (total - live) * 4 >= total:
            return True
    return False


def split_regions(content: NewContent) -> tuple[NewContent, np.ndarray, np.ndarray]:
    """A content without its boxes, and their vectors (n, D) float32 and places (n, 4) float32, in shares of
    the photo."""
    whole = [number for number, box in enumerate(content.boxes) if box is None]
    if len(whole) == len(content.boxes):
        return content, content.vectors[:0], np.zeros((0, 4), np.float32)
    regions = [number for number, box in enumerate(content.boxes) if box is not None]
    assert content.size is not None
    boxes = np.array([content.boxes[number] for number in regions], np.float64) / (content.size * 2)
    wholes = replace(content, vectors=content.vectors[whole], boxes=(None,) * len(whole))
    return wholes, content.vectors[regions], boxes.astype(np.float32)


class NewRegions:
    """The records of contents that are to be recorded: on the disk, and not yet named."""

    def __init__(
        self,
        db: sqlite3.Connection,
        out: Path,
        codec: RegionCodec,
        regions: Sequence[tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """``regions``: vectors and places of each content."""
        self._db, self._counts = db, [len(vectors) for vectors, _ in regions]
        self._first = count_records(db)
        self._records = np.zeros((0, codec.record_bytes), np.uint8)
        if any(self._counts):
            vectors, boxes = (np.concatenate([pair[n] for pair in regions if len(pair[0])]) for n in (0, 1))
            self._records = codec.encode(vectors, boxes)
            file = regions_file(out, int(read_meta(db, "generation")))
            append_rows(file, self._first, self._records)

    def name(self, contents: Sequence[int]) -> None:
        """Say, within a transaction, which ``contents`` own them."""
        append_crcs(self._db, self._first, self._records, _CRCS)
        first = self._first
        for content, count in zip(contents, self._counts, strict=True):
            if count:
                self._db.execute("INSERT INTO region_spans VALUES (?, ?, ?)", (first, count, content))
            first += count


def read_short_regions(db: sqlite3.Connection, out: Path) -> ShortRegions | None:
    """The short regions of photos; None: the index has none."""
    codec = read_codec(db)
    if codec is None:
        return None
    spans = db.execute(
        "SELECT first, count, min(row), width, height FROM region_spans JOIN rows USING (content)"
        f" JOIN contents ON contents.id = content WHERE {_LIVE} GROUP BY first ORDER BY first"
    )
    table = np.fromiter((n for span in spans for n in span), np.int64).reshape(-1, 5)
    path = regions_file(out, int(read_meta(db, "generation")))
    first, count = table[:, 0], table[:, 1]
    records = memmap(path, count_records(db), codec.record_bytes, "u1")
    blocks = VectorBlocks(path, records, read_crcs(db, _CRCS), _one_a_block(first, count))
    return ShortRegions(codec, records, first, count, table[:, 2], table[:, 3:], blocks)


def _one_a_block(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """A row of each block that has rows of spans."""
    if not len(first):
        return first
    first_block, last_block = first // BLOCK_ROWS, (first + count - 1) // BLOCK_ROWS
    changes = np.zeros(int(last_block.max()) + 2, np.int64)
    np.add.at(changes, first_block, 1)
    np.add.at(changes, last_block + 1, -1)
    return np.flatnonzero(np.cumsum(changes)[:-1]) * BLOCK_ROWS


def drop_damaged_regions(
    db: sqlite3.Connection, out: Path, transaction: Callable[[], AbstractContextManager[None]]
) -> list[bytes]:
    """Take out the photos with damaged or missing records, in a ``transaction``; returns their paths."""
    codec = read_codec(db)
    if codec is None or not (total := count_records(db)):
        return []
    path, size = regions_file(out, int(read_meta(db, "generation"))), total * codec.record_bytes
    with path.open("r+b" if path.exists() else "w+b") as file:
        if file.seek(0, os.SEEK_END) < size:
            file.truncate(size)
    regions = read_short_regions(db, out)
    assert regions is not None
    damaged = regions.blocks.damaged_blocks()
    if not damaged:
        return []
    with transaction():
        replace_crcs(db, [(block, regions.blocks.crc(block)) for block in damaged], _CRCS)
        return forget_blocks(
            db, damaged, "SELECT content FROM region_spans WHERE ?1 < first + count AND first <= ?2"
        )


def write_generation(
    db: sqlite3.Connection, out: Path, vectors: VectorBlocks, live: Sequence[int], shorten: bool
) -> Callable[[], None]:
    """Write the files of the next generation: the rows ``live`` of ``vectors``, of which those of regions
    become records if ``shorten``, and the records that photos own. Returns what names them, to be called in a
    transaction. Raises SearchIndexError if the vectors are damaged."""
    generation = int(read_meta(db, "generation")) + 1
    vectors.verify()
    naming: list[Callable[[], None]] = []
    kept = list(live)
    if shorten:
        is_region = read_regions(db, len(vectors.vectors))[0]
        kept = [row for row in live if not is_region[row]]
        naming.append(_shorten(db, out, generation, vectors.vectors, is_region))
    elif (regions := read_short_regions(db, out)) is not None:
        naming.append(_copy(db, out, generation, regions))
    blocks = (vectors.vectors[kept[at : at + _ROWS_AT_ONCE]] for at in range(0, len(kept), _ROWS_AT_ONCE))
    crcs = _write_blocks(vectors_file(out, generation), blocks)

    def name() -> None:
        for step in naming:
            step()
        db.execute(f"DELETE FROM rows WHERE NOT {_LIVE}")
        db.execute("DELETE FROM contents WHERE id NOT IN (SELECT content FROM photos)")
        forget_metadata(db)
        # In ascending order no new number meets an old one: each is at most the one it replaces.
        db.executemany("UPDATE rows SET row = ? WHERE row = ?", list(enumerate(kept)))
        db.execute("DELETE FROM checksums")
        replace_crcs(db, crcs)
        db.execute("REPLACE INTO meta VALUES ('generation', ?)", (generation,))

    return name


def _shorten(
    db: sqlite3.Connection, out: Path, generation: int, vectors: np.ndarray, is_region: np.ndarray
) -> Callable[[], None]:
    """Write the regions among ``vectors`` that photos own as records; returns what names them."""
    owners = db.execute(
        f"SELECT row, content FROM rows WHERE box IS NOT NULL AND {_LIVE} ORDER BY content, row"
    )
    table = np.fromiter((n for pair in owners for n in pair), np.int64).reshape(-1, 2)
    rows, contents = table[:, 0], table[:, 1]
    boxes = read_regions(db, len(vectors))[1][rows]
    codec = RegionCodec.fit(vectors[np.sort(fit_sample(rows))])
    blocks = (
        codec.encode(vectors[rows[at : at + _ROWS_AT_ONCE]], boxes[at : at + _ROWS_AT_ONCE])
        for at in range(0, len(rows), _ROWS_AT_ONCE)
    )
    crcs = _write_blocks(regions_file(out, generation), blocks)
    owner, first, count = np.unique(contents, return_index=True, return_counts=True)

    def name() -> None:
        for statement in _SCHEMA:
            db.execute(statement)
        db.executemany(
            "INSERT INTO region_spans VALUES (?, ?, ?)",
            zip(first.tolist(), count.tolist(), owner.tolist(), strict=True),
        )
        replace_crcs(db, crcs, _CRCS)
        db.execute("REPLACE INTO meta VALUES (?, ?)", (_CODEC, codec.to_bytes()))
        db.execute("DELETE FROM rows WHERE box IS NOT NULL")
        raise_version(db, FORMAT)

    return name


def _copy(db: sqlite3.Connection, out: Path, generation: int, regions: ShortRegions) -> Callable[[], None]:
    """Write the records that photos own; returns what names them."""
    regions.blocks.verify()
    width = regions.records.shape[1]
    spans = zip(regions.first.tolist(), regions.count.tolist(), strict=True)
    pieces = (regions.records[first : first + count] for first, count in spans)
    crcs = _write_blocks(regions_file(out, generation), _in_blocks(pieces, width))
    starts = np.cumsum(regions.count) - regions.count

    def name() -> None:
        db.execute(f"DELETE FROM region_spans WHERE NOT {_LIVE}")
        db.executemany(
            "UPDATE region_spans SET first = ? WHERE first = ?",
            zip(starts.tolist(), regions.first.tolist(), strict=True),
        )
        db.execute(f"DELETE FROM {_CRCS}")
        replace_crcs(db, crcs, _CRCS)

    return name


def _in_blocks(pieces: Iterable[np.ndarray], width: int) -> Iterator[np.ndarray]:
    """The rows of ``pieces`` (n, width) uint8 in whole blocks, the last one apart."""
    waiting, rows = [np.zeros((0, width), np.uint8)], 0
    for piece in pieces:
        waiting.append(piece)
        rows += len(piece)
        if rows >= _ROWS_AT_ONCE:
            joined = np.concatenate(waiting)
            whole = rows // BLOCK_ROWS * BLOCK_ROWS
            yield joined[:whole]
            waiting, rows = [joined[whole:]], rows - whole
    yield np.concatenate(waiting)


def _write_blocks(path: Path, pieces: Iterable[np.ndarray]) -> list[tuple[int, int]]:
    """Write ``pieces`` of rows, all but the last of whole blocks, synced; returns their checksums."""
    crcs: list[tuple[int, int]] = []
    block = 0
    with errors_naming(path), path.open("wb") as file:
        for rows in pieces:
            crcs += [(block + number, crc) for number, crc in block_crcs(rows)]
            block += len(rows) // BLOCK_ROWS
            file.write(rows.tobytes())
        file.flush()
        os.fsync(file.fileno())
        sync_folder(path.parent)
    return crcs
