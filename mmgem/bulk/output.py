"""The folder a collection's embeddings go to, and the only code that reads or writes it.

    OUT/bulk.json               what the partitions are made of: photos, model, options
    OUT/parts/000000.parquet    partition 0, a row a photo; partitions appear whole or not at all
    OUT/checksums/000000.crc32  those of its blocks, compared when it is read
    OUT/skipped.jsonl           photos that are in no partition, and why; written once all are there
    OUT/lock                    held by the one run that writes

What a partition skipped is in its parquet metadata, so a partition is all that has to be written at once.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmgem.data.shards.parquet import require_pyarrow, verify_footer
from mmgem.errors import BusyError, DataError, UsageError
from mmgem.utils.checksums import FileBlocks, write_block_checksums
from mmgem.utils.files import move_durably, write_atomic
from mmgem.utils.locks import FileLock
from mmgem.utils.unit_vectors import not_unit_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from mmgem.bulk.collection import Partition

_METADATA_KEY = b"mmgem.bulk"
_VERSION = 1
_MAX_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class PhotoRow:
    """A photo as a partition holds it, see :func:`schema`."""

    item: int
    key: str
    shard: str | None
    digest: bytes
    width: int
    height: int
    embedding: np.ndarray
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class SkippedPhoto:
    """A photo that is in no partition (``item`` and ``key``), or something of a shard that was left out
    before its photos were numbered (None). ``transient``: the next run tries the photo again."""

    item: int | None
    key: str | None
    shard: str | None
    reason: str
    transient: bool = False


def schema(dim: int, captions: bool) -> pa.Schema:
    """Columns of a partition. ``item``: number in the collection; ``key``: path in the folder, or key in the
    ``shard`` (null: no shard); ``digest``: BLAKE2b-128 of the photo's bytes; ``width``, ``height``: pixels of
    the upright photo; ``embedding``: ``dim`` float32 of unit length; ``caption``: only with ``captions``."""
    import pyarrow as pa

    columns = [
        ("item", pa.int64()),
        ("key", pa.string()),
        ("shard", pa.string()),
        ("digest", pa.binary(16)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("embedding", pa.list_(pa.float32(), dim)),
        ("caption", pa.string()),
    ]
    return pa.schema(columns if captions else columns[:-1])


class OutputFolder:
    """The folder ``out``. Raises UsageError from every method where it cannot be written."""

    def __init__(self, out: Path):
        self.out = out

    def partition_file(self, number: int) -> Path:
        """Where partition ``number`` is once it is written."""
        return self.out / "parts" / f"{number:06}.parquet"

    def exists(self) -> bool:
        """Whether the folder is there, as seen from here."""
        return (self.out / "bulk.json").is_file()

    def is_done(self, partition: Partition) -> bool:
        """Whether ``partition`` is there and lacks no photo that may be read now. A damaged one counts as
        done: :meth:`finish` says what is wrong with it."""
        if not self.partition_file(partition.number).exists():
            return False
        try:
            return not any(photo.transient for photo in self._read_footer(partition)[1])
        except DataError:
            return True

    def partition_files(self) -> list[Path]:
        """The partitions that are there."""
        return sorted(self.partition_file(0).parent.glob("[0-9]*.parquet"))

    def settings(self) -> dict[str, Any]:
        """What the partitions are made of. Raises UsageError if there is no such folder, DataError if
        damaged."""
        path = self.out / "bulk.json"
        try:
            settings = json.loads(path.read_text())
            if isinstance(settings, dict) and settings.keys() >= {"version", "model"}:
                return settings
            raise ValueError("not what mmgem writes")
        except FileNotFoundError as error:
            raise UsageError(f"{self.out}: nothing of mmgem bulk here") from error
        except ValueError as error:
            raise DataError(f"{path}: damaged ({error}); remove {self.out} and begin again") from error

    @contextmanager
    def locked(self, settings: dict[str, Any]) -> Iterator[None]:
        """Hold the folder for one run with ``settings``.

        Raises UsageError if its partitions are of other settings or another run is writing.
        """
        try:
            with _errors_naming(self.out):
                for file in (self.partition_file(0), checksums_of(self.partition_file(0))):
                    file.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self.out / "lock", self.out)
        except BusyError as error:
            raise UsageError(f"{self.out}: another run is writing here ({error.holder})") from error
        with lock:
            self._check_settings({"version": _VERSION, **settings})
            with _errors_naming(self.out):
                self._remove_leftovers()
            yield

    def _check_settings(self, settings: dict[str, Any]) -> None:
        if not self.exists():
            if self.partition_files():
                raise UsageError(f"{self.out}: has parts but no bulk.json that says of what")
            with _errors_naming(self.out):
                write_atomic(self.out / "bulk.json", json.dumps(settings, indent=1) + "\n")
            return
        recorded = self.settings()
        changed = [name for name in settings if recorded.get(name) != settings[name]]
        if changed:
            differ = ", ".join(f"{name} {recorded.get(name)} (now {settings[name]})" for name in changed)
            raise UsageError(f"{self.out}: its parts were made with {differ}; choose another folder")

    @contextmanager
    def temporary_file(self, partition: Partition) -> Iterator[Path]:
        """Try to make ``partition``: gives the file to :meth:`write` it to, named by host and process.

        A process that is killed leaves that behind; after five such, DataError: another try would only kill
        another. They count within a run.
        """
        path = self.partition_file(partition.number)
        with _errors_naming(path):
            if len(list(path.parent.glob(f".{path.name}.*.tmp"))) >= _MAX_ATTEMPTS:
                last = partition.first + len(partition) - 1
                photos = f"photos {partition.first} to {last}, from {partition.spans[0].file} on"
                raise DataError(f"{path}: {_MAX_ATTEMPTS} workers died making it ({photos})")
            temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
            temporary.touch()
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def write(
        self,
        partition: Partition,
        temporary: Path,
        rows: Sequence[PhotoRow],
        skipped: Sequence[SkippedPhoto],
        columns_schema: pa.Schema,
    ) -> None:
        """Write ``partition`` of the columns ``columns_schema``, with ``rows`` and what was ``skipped``: to
        ``temporary``, then in its place."""
        pq = require_pyarrow()
        import pyarrow as pa

        if rows and len(wrong := not_unit_rows(np.stack([row.embedding for row in rows]))):
            photo = rows[wrong[0]].key
            raise DataError(f"{self.out}: the embedding of {photo} is not finite and of unit length")
        values = np.concatenate([row.embedding for row in rows] or [np.empty(0, np.float32)])
        columns: dict[str, Any] = {f.name: [getattr(row, f.name) for row in rows] for f in fields(PhotoRow)}
        columns["key"] = [_valid_text(key) for key in columns["key"]]
        columns["shard"] = [None if shard is None else _valid_text(shard) for shard in columns["shard"]]
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(
            pa.array(values), columns_schema.field("embedding").type.list_size
        )
        metadata = {"skipped": [asdict(photo) for photo in skipped]}
        columns_schema = columns_schema.with_metadata({_METADATA_KEY: json.dumps(metadata)})
        table = pa.table({name: columns[name] for name in columns_schema.names}, schema=columns_schema)
        path = self.partition_file(partition.number)
        with _errors_naming(path):
            with temporary.open("wb") as file:
                pq.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            write_block_checksums(temporary, checksums_of(path))
            move_durably(temporary, path)

    def finish(
        self, partitions: Sequence[Partition], problems: Sequence[SkippedPhoto]
    ) -> tuple[int, list[SkippedPhoto], int]:
        """Check that ``partitions`` are all here and account for each of their photos; write
        ``skipped.jsonl``, ``problems`` first. Returns how many photos the partitions hold, what was skipped,
        and how many workers died in this run.

        Raises DataError for a partition that is missing or damaged.
        """
        photos, skipped = 0, list(problems)
        for partition in partitions:
            count, skipped_here = self._read_footer(partition)
            photos += count
            skipped += skipped_here
        with _errors_naming(self.out):
            died = self._remove_leftovers()
            lines = "".join(f"{json.dumps(asdict(photo))}\n" for photo in skipped)
            write_atomic(self.out / "skipped.jsonl", lines)
        return photos, skipped, died

    def _remove_leftovers(self) -> int:
        """Remove what killed workers left; returns how many did."""
        leftovers = list(self.partition_file(0).parent.glob(".*.tmp"))
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        return len(leftovers)

    def _read_footer(self, partition: Partition) -> tuple[int, list[SkippedPhoto]]:
        path = self.partition_file(partition.number)
        try:
            verify_footer(path, FileBlocks.open(path, sums=checksums_of(path)))
            footer = require_pyarrow().read_metadata(path)
            metadata = json.loads(footer.metadata[_METADATA_KEY])
            skipped = [SkippedPhoto(**entry) for entry in metadata["skipped"]]
            if footer.num_rows + len(skipped) != len(partition):
                raise ValueError(f"has {footer.num_rows + len(skipped)} photos of {len(partition)}")
            return footer.num_rows, skipped
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: damaged; remove it and run again ({_one_line(error)})") from error


def checksums_of(file: Path) -> Path:
    """Where the checksums of a partition are."""
    return file.parent.with_name("checksums") / f"{file.stem}.crc32"


def read_column(file: Path, name: str) -> pa.ChunkedArray:
    """A column of a partition. Raises DataError if the partition is damaged."""
    try:
        if (blocks := FileBlocks.open(file, sums=checksums_of(file))) is not None:
            blocks.verify()
        return require_pyarrow().read_table(file, columns=[name]).column(0)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: damaged ({_one_line(error)}); remove it and run mmgem bulk again"
        ) from error


def _valid_text(name: str) -> str:
    """A file name as valid text."""
    return name.encode("utf-8", "backslashreplace").decode()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    """Turn what the disk complains about into a UsageError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error
