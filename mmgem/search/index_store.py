"""The files of a photo index, and the only code that reads or writes them.

    IDX/photos.sqlite3   the manifest: what was seen where, and which content owns which vectors
                         (.photos.sqlite3.crc32: its checksum, see :mod:`mmgem.search.index_checksums`)
    IDX/vectors-G.f32    generation G of the vectors: little-endian float32, row r at byte 4·dim·r
    IDX/regions-G.u8     that of regions, once they are many (:mod:`mmgem.search.region_rows`)
    IDX/lock             held by the one process that writes
    IDX/ann/             an HNSW index for fast search, if one is kept (:mod:`mmgem.search.hnsw`)

Notable choices. A vector belongs to a *content* (the hash of a file's bytes), a path merely points to one: so
a photo that moves or is stored twice is never embedded again, and a content may own several rows. Vectors are
appended and synced before the transaction that names their rows: killed at any moment, the index is as the
last transaction left it, and the next run overwrites the unnamed tail. The manifest keeps a rollback journal
rather than a write-ahead log, so that the folder can be copied and read from read-only media. Nothing is ever
changed in place under a reader's memory map: rows nobody points to are skipped, and go when
:meth:`IndexStore.compact` starts the next generation. Paths are bytes, relative to the folder of photos.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from mmgem.data.photo_metadata import PhotoMetadata
from mmgem.errors import SearchIndexError
from mmgem.search.index_checksums import (
    TABLE,
    VectorBlocks,
    append_crcs,
    block_crcs,
    forget_blocks,
    read_crcs,
    replace_crcs,
    verify_manifest,
    write_manifest_checksum,
)
from mmgem.search.index_files import (
    PHOTOS_FORMAT,
    append_rows,
    check_version,
    connect,
    count_rows,
    database_file,
    decode_hex_path,
    decode_path,
    errors_naming,
    existing_database,
    memmap,
    photo_folder,
    read_meta,
    regions_file,
    vectors_file,
    write_lock,
)
from mmgem.search.index_metadata import METADATA_TABLE, unread_contents, write_metadata
from mmgem.search.index_records import (
    HashedFile,
    IndexSnapshot,
    NewContent,
    StoredPhoto,
    add_moments,
    count_moments,
    read_moments,
    read_regions,
    read_sizes,
    write_rows,
)
from mmgem.search.region_lists import forget_damaged_lists, new_region_lists, read_lists_state
from mmgem.search.region_rows import (
    NewRegions,
    are_due,
    drop_damaged_regions,
    is_compaction_due,
    read_codec,
    read_short_regions,
    split_regions,
    write_generation,
)
from mmgem.utils.unit_vectors import not_unit_rows

_SCHEMA = (
    """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE contents (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, problem TEXT, width INTEGER, height INTEGER
);
CREATE TABLE photos (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    content INTEGER NOT NULL REFERENCES contents(id), ctime_ns INTEGER
) WITHOUT ROWID;
CREATE INDEX photos_content ON photos(content);
CREATE TABLE rows (row INTEGER PRIMARY KEY, content INTEGER NOT NULL REFERENCES contents(id), box TEXT);
CREATE INDEX rows_content ON rows(content);
"""
    + TABLE
)
# Compact when this many rows, and a quarter of all, belong to no photo.
_MIN_DEAD_ROWS = 1024


class IndexStore:
    """The one writer of an index folder; a context manager. Each call that changes something is atomic.

    Raises SearchIndexError if the folder cannot be written, is damaged, is being written by another process
    or was built by a model with another fingerprint.
    """

    def __init__(self, out: Path, fingerprint: str, regions: int | None = None) -> None:
        """``regions``: boxes a photo, at most; None: as the index has it, 0 if it is new."""
        self._out = out
        self._dropped = False  # whether rows are left that nobody can use
        self.shortened = False
        """Whether its regions have become short since it was opened."""
        if out.exists() and not out.is_dir():
            raise SearchIndexError(f"{out}: is a file; an index is a folder")
        with errors_naming(out):
            out.mkdir(parents=True, exist_ok=True)
        self._lock = write_lock(out)
        try:
            with errors_naming(out):
                self._db = connect(database_file(out), create=True)
                # Also the removal of the journal is on the disk when a transaction is done: else a power
                # failure could bring it back, and with it a generation of vectors that is removed by then.
                self._db.execute("PRAGMA synchronous = EXTRA")
                self._prepare(fingerprint, regions)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> IndexStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with errors_naming(self._out):
                write_manifest_checksum(self._db, database_file(self._out))
        finally:
            self._db.close()
            self._lock.close()

    @property
    def folder(self) -> Path | None:
        """Folder of the indexed photos as last recorded (absolute); None for a new index."""
        with errors_naming(self._out):
            return decode_path(read_meta(self._db, "folder"))

    @property
    def further_folders(self) -> list[Path]:
        """Folders of photos beside the first; their photos' paths are absolute."""
        with errors_naming(self._out):
            stored = json.loads(read_meta(self._db, "further_folders") or "[]")
            return [decode_hex_path(folder) for folder in stored]

    @property
    def exclude(self) -> tuple[str, ...]:
        """Patterns of files and folders that are left out."""
        with errors_naming(self._out):
            return tuple(json.loads(read_meta(self._db, "exclude") or "[]"))

    @property
    def regions(self) -> int:
        """Boxes a photo, at most."""
        with errors_naming(self._out):
            return int(read_meta(self._db, "regions"))

    def set_source(
        self, folder: Path, model: str, further: Sequence[Path] = (), exclude: Sequence[str] = ()
    ) -> None:
        """Record where the photos are (absolute, and relative to the index), ``further`` folders of them,
        what to leave out, and the model's name."""
        meta: dict[str, object] = {"folder": os.fsencode(folder), "model": model}
        more = [os.fsencode(path).hex() for path in further]
        for key, value in (("further_folders", more), ("exclude", list(exclude))):
            if value or read_meta(self._db, key) is not None:
                meta[key] = json.dumps(value)
        with suppress(ValueError):  # another drive on Windows: no relative path exists
            meta["folder_from_index"] = os.fsencode(os.path.relpath(folder, self._out.resolve()))
        if any(read_meta(self._db, key) != value for key, value in meta.items()):
            with self._transaction():
                self._set_meta(meta)

    def photos(self) -> dict[str, StoredPhoto]:
        """Return every recorded path, failed ones included."""
        with errors_naming(self._out):
            rows = self._db.execute("SELECT path, size, mtime_ns, content, ctime_ns FROM photos")
            return {os.fsdecode(path): StoredPhoto(*rest) for path, *rest in rows}

    def content(self, digest: bytes) -> int | None:
        """Return the number of the content with this hash, or None if it has not been seen."""
        with errors_naming(self._out):
            row = self._db.execute("SELECT id FROM contents WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else row[0]

    def problems(self) -> list[tuple[str, str]]:
        """Return (path, reason) of every recorded photo that cannot be embedded, sorted by path."""
        with errors_naming(self._out):
            rows = self._db.execute(
                "SELECT path, problem FROM photos JOIN contents ON contents.id = photos.content"
                " WHERE problem IS NOT NULL ORDER BY path"
            )
            return [(os.fsdecode(path), problem) for path, problem in rows]

    def forget_problems(self, paths: Iterable[str]) -> None:
        """Drop photos that :meth:`problems` lists and what is known of their contents, to be tried again."""
        keys = [(os.fsencode(path),) for path in paths]
        if keys:
            with self._transaction():
                self._db.executemany(
                    "DELETE FROM contents WHERE problem IS NOT NULL AND id IN"
                    " (SELECT content FROM photos WHERE path = ?)",
                    keys,
                )
                self._db.executemany("DELETE FROM photos WHERE path = ?", keys)

    def forget(self, paths: Iterable[str]) -> None:
        """Drop paths; what they pointed to stays until the next compaction, in case they come back."""
        keys = [(os.fsencode(path),) for path in paths]
        if keys:
            with self._transaction():
                self._db.executemany("DELETE FROM photos WHERE path = ?", keys)

    def record(self, contents: Sequence[NewContent], files: Sequence[HashedFile]) -> None:
        """Add contents and point files to contents (new or already there), in one transaction."""
        if not files:
            return
        with errors_naming(self._out):
            codec = read_codec(self._db) if contents else None
        wrong = sum(len(not_unit_rows(content.vectors)) for content in contents if len(content.vectors))
        if wrong:
            raise SearchIndexError(f"{self._out}: {wrong} vectors are not finite and of unit length")
        numbers: list[int] = []
        if codec is not None:
            split = [split_regions(content) for content in contents]
            contents = [whole for whole, _, _ in split]
            regions = NewRegions(
                self._db, self._out, codec, [(vectors, boxes) for _, vectors, boxes in split]
            )
        vectors = [content.vectors for content in contents if len(content.vectors)]
        new_rows = np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float32)
        row = self._append(new_rows) if vectors else 0
        with self._transaction():
            if any(content.moments for content in contents):
                add_moments(self._db)
            append_crcs(self._db, row, new_rows)
            for content in contents:
                number = self._db.execute(
                    "INSERT INTO contents (digest, problem, width, height) VALUES (?, ?, ?, ?)",
                    (content.digest, content.problem, *(content.size or (None, None))),
                ).lastrowid
                assert number is not None
                numbers.append(number)
                if content.metadata is not None:
                    write_metadata(self._db, content.digest, content.metadata)
                row = write_rows(self._db, row, number, content)
            if codec is not None:
                regions.name(numbers)
            self._db.executemany(
                "REPLACE INTO photos SELECT ?, ?, ?, id, ? FROM contents WHERE digest = ?",
                [(os.fsencode(f.path), f.size, f.mtime_ns, f.ctime_ns, f.digest) for f in files],
            )
        self._shorten_if_due()

    def clips(self) -> tuple[int, int]:
        """How many of the paths are clips, and how many moments they have."""
        with errors_naming(self._out):
            return count_moments(self._db)

    def without_metadata(self) -> dict[bytes, str]:
        """The digest of each content whose header has not been read, and a path of it."""
        with errors_naming(self._out):
            return {digest: os.fsdecode(path) for digest, path in unread_contents(self._db)}

    def record_metadata(self, metadata: Mapping[bytes, PhotoMetadata]) -> None:
        """Add what headers say to contents, by their digests."""
        if metadata:
            with self._transaction():
                for digest, found in metadata.items():
                    write_metadata(self._db, digest, found)

    def drop_damaged(self) -> list[str]:
        """Forget the photos with vectors that are damaged or missing, so that they are embedded again.

        Returns their paths, sorted."""
        with errors_naming(self._out):
            path, total = self._vectors_file(), self._row_count()
            if not total:
                return []
            size = total * int(read_meta(self._db, "dim")) * 4
            with path.open("r+b" if path.exists() else "w+b") as file:
                if file.seek(0, os.SEEK_END) < size:
                    file.truncate(size)
            dropped = self._drop(self._blocks(read_crcs(self._db)))
            if damaged := drop_damaged_regions(self._db, self._out, self._transaction):
                self._dropped = True
                dropped += damaged
            with self._transaction():
                forget_damaged_lists(self._db, self._out)
            return sorted(os.fsdecode(name) for name in dropped)

    def _drop(self, blocks: VectorBlocks) -> list[bytes]:
        """Forget the photos with rows in damaged ones of ``blocks``, whose checksums are then of what is
        there: nobody reads it any more, but the last may still get new rows."""
        damaged = blocks.damaged_blocks()
        if not damaged:
            return []
        self._dropped = True
        with self._transaction():
            if blocks.crcs is not None:
                replace_crcs(self._db, [(block, blocks.crc(block)) for block in damaged])
            return forget_blocks(self._db, damaged)

    def _blocks(self, crcs: dict[int, int] | None) -> VectorBlocks:
        """The blocks with rows that photos point to; ``crcs`` None: there are no checksums."""
        live = [row for (row,) in self._db.execute(_LIVE_ROWS)]
        dim = int(read_meta(self._db, "dim") or 0)
        vectors = memmap(self._vectors_file(), self._row_count(), dim)
        return VectorBlocks(self._vectors_file(), vectors, crcs, np.array(live, np.int64))

    def compact(self) -> None:
        """Leave out the rows no photo points to, if they are many or damaged: write the next generation of
        vectors. Regions of a large index that an earlier version made become short."""
        self._shorten_if_due()
        with errors_naming(self._out):
            due = self._dropped or is_compaction_due(self._db, _MIN_DEAD_ROWS)
        if due:
            self._next_generation()
        with errors_naming(self._out):
            lists = new_region_lists(self._db, self._out)
        if lists is not None:
            with self._transaction():
                lists.name(self._db)
            lists.sweep()

    def _shorten_if_due(self) -> None:
        with errors_naming(self._out):
            due = are_due(self._db, self._row_count())
        if due:
            self._next_generation(shorten=True)
            self.shortened = True

    def _next_generation(self, shorten: bool = False) -> None:
        """Write the rows that photos point to as the next generation of vectors, and of short regions; those
        in rows become short too if ``shorten``."""
        with errors_naming(self._out):
            live = [row for (row,) in self._db.execute(_LIVE_ROWS)]
            generation = int(read_meta(self._db, "generation"))
            name = write_generation(self._db, self._out, self._blocks(read_crcs(self._db)), live, shorten)
        with self._transaction():
            name()
        for old in (vectors_file(self._out, generation), regions_file(self._out, generation)):
            with suppress(OSError):  # Windows keeps a file that a reader has mapped; the next run tries again
                old.unlink()

    def _prepare(self, fingerprint: str, regions: int | None) -> None:
        """Make a new manifest, or check that this one is ours; sweep what a killed compaction left."""
        verify_manifest(self._db, database_file(self._out))
        version = check_version(self._db, self._out)
        if version == 1:
            self._add_checksums()
        if version == 0:
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._set_meta({"fingerprint": fingerprint, "generation": 0, "regions": regions or 0})
                self._db.execute(f"PRAGMA user_version = {PHOTOS_FORMAT}")
        self._db.execute(METADATA_TABLE)
        check_fingerprint(self._out, read_meta(self._db, "fingerprint"), fingerprint)
        if regions is not None and regions != (recorded := read_meta(self._db, "regions")):
            raise SearchIndexError(
                f"{self._out}: was made with {recorded} regions a photo, not {regions}; use another index"
            )
        ours = self._vectors_file(), regions_file(self._out, int(read_meta(self._db, "generation")))
        for stray in (*self._out.glob("vectors-*.f32"), *self._out.glob("regions-*.u8")):
            if stray not in ours:
                with suppress(OSError):
                    stray.unlink()

    def _add_checksums(self) -> None:
        """Bring an index of format 1 to this one, with the checksums of its rows as they are. Photos whose
        rows cannot be right are forgotten."""
        crcs: list[tuple[int, int]] = []
        if self._row_count():
            blocks = self._blocks(None)
            self._drop(blocks)
            crcs = block_crcs(blocks.vectors)
        with self._transaction():
            self._db.execute(TABLE)
            self._db.execute("ALTER TABLE photos ADD COLUMN ctime_ns INTEGER")
            replace_crcs(self._db, crcs)
            self._db.execute(f"PRAGMA user_version = {PHOTOS_FORMAT}")

    def _append(self, vectors: np.ndarray) -> int:
        """Write rows (n, D) float32 after the last named one, synced to disk; return the first's number."""
        dim = read_meta(self._db, "dim")
        if dim is None:
            with self._transaction():
                self._set_meta({"dim": vectors.shape[1]})
        elif dim != vectors.shape[1]:
            raise SearchIndexError(
                f"{self._out}: holds vectors of {dim} numbers, the model gives {vectors.shape[1]}"
            )
        first = self._row_count()
        append_rows(self._vectors_file(), first, vectors.astype("<f4"))
        return first

    def _row_count(self) -> int:
        """How many rows of the vectors' file have been named; they are 0, 1, 2 …"""
        return count_rows(self._db)

    def _vectors_file(self) -> Path:
        return vectors_file(self._out, int(read_meta(self._db, "generation")))

    def _set_meta(self, values: dict[str, object]) -> None:
        self._db.executemany("REPLACE INTO meta VALUES (?, ?)", list(values.items()))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with errors_naming(self._out):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


_LIVE_ROWS = "SELECT row FROM rows WHERE content IN (SELECT content FROM photos) ORDER BY row"


def read_index(out: Path, sizes: bool = False) -> IndexSnapshot:
    """Read an index folder, also while another process adds to it; ``sizes``: those of the photos too.

    Raises SearchIndexError if it is missing, unfinished or damaged.
    """
    database = existing_database(out)
    with errors_naming(out), closing(connect(database, create=False)) as db:
        version = check_version(db, out)
        if version == 0:
            raise SearchIndexError(f"{out}: an index that was never finished; run mmgem index again")
        # Within one transaction: no writer can remove this generation of vectors before it is mapped.
        db.execute("BEGIN")
        verified = verify_manifest(db, database)
        entries = db.execute(
            "SELECT row, path, box FROM rows JOIN photos ON photos.content = rows.content ORDER BY row, path"
        ).fetchall()
        generation, regions, rows = (
            int(read_meta(db, "generation")),
            int(read_meta(db, "regions")),
            count_rows(db),
        )
        short_regions = read_short_regions(db, out)
        in_rows = regions and short_regions is None
        is_region, relative_boxes = read_regions(db, rows) if in_rows else (None, None)
        file = vectors_file(out, generation)
        vectors = memmap(file, rows, int(read_meta(db, "dim") or 0))
        live = np.fromiter((row for row, _, _ in entries), np.int64, len(entries))
        crcs = read_crcs(db) if version > 1 else None
        return IndexSnapshot(
            fingerprint=read_meta(db, "fingerprint"),
            model=read_meta(db, "model") or "",
            folder=photo_folder(db, out),
            vectors=vectors,
            entries=entries,
            regions=regions,
            is_region=is_region,
            relative_boxes=relative_boxes,
            generation=generation,
            sizes=read_sizes(db, rows) if sizes else None,
            blocks=VectorBlocks(file, vectors, crcs, live),
            manifest_verified=verified,
            moments=read_moments(db),
            short_regions=short_regions,
            lists_state=read_lists_state(db),
        )


def check_fingerprint(out: Path, indexed: str, expected: str) -> None:
    """Raise SearchIndexError unless the index was built by the model that is about to use it."""
    if indexed != expected:
        raise SearchIndexError(
            f"{out}: was built by another model ({indexed}, not {expected}); use that model, "
            f"or rebuild: delete {out} and run mmgem index again"
        )
