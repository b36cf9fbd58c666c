"""The folder a collection's embeddings go to, and the only code that reads or writes it.

    OUT/bulk.json               what the parts are made of: photos, model, options
    OUT/parts/000000.parquet    part 0, a row a photo; parts appear whole or not at all
    OUT/skipped.jsonl           photos that are in no part, and why; written once all parts are there
    OUT/lock                    held by the one run that writes

What a part skipped is in its parquet metadata, so a part is all that has to be written at once.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmgem.data.shards.parquet import require_pyarrow
from mmgem.errors import DataError, UsageError
from mmgem.utils.files import lock_folder, write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

    from mmgem.bulk.collection import Part

_FACTS = b"mmgem.bulk"
_VERSION = 1
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Row:
    """A photo as a part holds it, see :func:`schema`."""

    item: int
    key: str
    shard: str | None
    digest: bytes
    width: int
    height: int
    embedding: np.ndarray
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A photo that is in no part (``item`` and ``key``), or something of a shard that was left out before
    its photos were numbered (None)."""

    item: int | None
    key: str | None
    shard: str | None
    reason: str


def schema(dim: int, captions: bool) -> pa.Schema:
    """Columns of a part. ``item``: number in the collection; ``key``: path in the folder, or key in the
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


class Output:
    """The folder ``out``. Raises UsageError from every method where it cannot be written."""

    def __init__(self, out: Path):
        self.out = out

    def part(self, number: int) -> Path:
        """Where part ``number`` is once it is written."""
        return self.out / "parts" / f"{number:06}.parquet"

    def begun(self) -> bool:
        """Whether the folder is there, as seen from here."""
        return (self.out / "bulk.json").is_file()

    def parts(self) -> list[Path]:
        """The parts that are there."""
        return sorted(self.part(0).parent.glob("[0-9]*.parquet"))

    def settings(self) -> dict[str, Any]:
        """What the parts are made of. Raises UsageError if there is no such folder, DataError if damaged."""
        path = self.out / "bulk.json"
        try:
            found = json.loads(path.read_text())
            if isinstance(found, dict) and found.keys() >= {"version", "model"}:
                return found
            raise ValueError("not what mmgem writes")
        except FileNotFoundError as error:
            raise UsageError(f"{self.out}: nothing of mmgem bulk here") from error
        except ValueError as error:
            raise DataError(f"{path}: damaged ({error}); remove {self.out} and begin again") from error

    @contextmanager
    def opened(self, settings: dict[str, Any]) -> Iterator[None]:
        """Hold the folder for one run with ``settings``.

        Raises UsageError if its parts are of other settings or another run is writing.
        """
        with _named(self.out):
            self.part(0).parent.mkdir(parents=True, exist_ok=True)
            lock = lock_folder(self.out)
        if lock is None:
            raise UsageError(f"{self.out}: another run is writing here")
        with closing(lock):
            self._agree({"version": _VERSION, **settings})
            with _named(self.out):
                self._tidy()
            yield

    def _agree(self, settings: dict[str, Any]) -> None:
        if not self.begun():
            if self.parts():
                raise UsageError(f"{self.out}: has parts but no bulk.json that says of what")
            with _named(self.out):
                write_atomic(self.out / "bulk.json", json.dumps(settings, indent=1) + "\n")
            return
        found = self.settings()
        changed = [name for name in settings if found.get(name) != settings[name]]
        if changed:
            differ = ", ".join(f"{name} {found.get(name)} (now {settings[name]})" for name in changed)
            raise UsageError(f"{self.out}: its parts were made with {differ}; choose another folder")

    @contextmanager
    def attempt(self, part: Part) -> Iterator[Path]:
        """Try to make ``part``: gives the file to :meth:`write` it to, named by host and process.

        A process that is killed leaves that behind; after five such, DataError: another try would only kill
        another. They count within a run.
        """
        path = self.part(part.number)
        with _named(path):
            if len(list(path.parent.glob(f".{path.name}.*.tmp"))) >= _TRIES:
                photos = f"photos {part.first} to {part.first + len(part) - 1}, from {part.spans[0].file} on"
                raise DataError(f"{path}: {_TRIES} workers died making it ({photos})")
            temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
            temporary.touch()
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def write(
        self, part: Part, temporary: Path, rows: Sequence[Row], skipped: Sequence[Skipped], shape: pa.Schema
    ) -> None:
        """Write ``part`` of the columns ``shape``, with ``rows`` and what was ``skipped``: to ``temporary``,
        then in its place."""
        pq = require_pyarrow()
        import pyarrow as pa

        flat = np.concatenate([row.embedding for row in rows] or [np.empty(0, np.float32)])
        columns: dict[str, Any] = {f.name: [getattr(row, f.name) for row in rows] for f in fields(Row)}
        columns["key"] = [_text(key) for key in columns["key"]]
        columns["shard"] = [None if shard is None else _text(shard) for shard in columns["shard"]]
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(
            pa.array(flat), shape.field("embedding").type.list_size
        )
        facts = {"skipped": [asdict(one) for one in skipped]}
        shape = shape.with_metadata({_FACTS: json.dumps(facts)})
        table = pa.table({name: columns[name] for name in shape.names}, schema=shape)
        path = self.part(part.number)
        with _named(path):
            with temporary.open("wb") as file:
                pq.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)

    def finish(self, parts: Sequence[Part], problems: Sequence[Skipped]) -> tuple[int, list[Skipped], int]:
        """Check that ``parts`` are all here and account for each of their photos; write ``skipped.jsonl``,
        ``problems`` first. Returns how many photos the parts hold, what was skipped, and how many workers
        died in this run.

        Raises DataError for a part that is missing or damaged.
        """
        photos, skipped = 0, list(problems)
        for part in parts:
            held, left_out = self._facts(part)
            photos += held
            skipped += left_out
        with _named(self.out):
            died = self._tidy()
            lines = "".join(f"{json.dumps(asdict(one))}\n" for one in skipped)
            write_atomic(self.out / "skipped.jsonl", lines)
        return photos, skipped, died

    def _tidy(self) -> int:
        """Remove what killed workers left; returns how many did."""
        leftovers = list(self.part(0).parent.glob(".*.tmp"))
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        return len(leftovers)

    def _facts(self, part: Part) -> tuple[int, list[Skipped]]:
        path = self.part(part.number)
        try:
            footer = require_pyarrow().read_metadata(path)
            facts = json.loads(footer.metadata[_FACTS])
            skipped = [Skipped(**one) for one in facts["skipped"]]
            if footer.num_rows + len(skipped) != len(part):
                raise ValueError(f"has {footer.num_rows + len(skipped)} photos of {len(part)}")
            return footer.num_rows, skipped
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: damaged; remove it and run again ({_line(error)})") from error


def read_column(part: Path, name: str) -> pa.ChunkedArray:
    """A column of a part. Raises DataError if the part is damaged."""
    try:
        return require_pyarrow().read_table(part, columns=[name]).column(0)
    except (OSError, ValueError) as error:
        raise DataError(f"{part}: damaged ({_line(error)})") from error


def _text(name: str) -> str:
    """A file name as valid text."""
    return name.encode("utf-8", "backslashreplace").decode()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what the disk complains about into a UsageError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error
    except sqlite3.Error as error:
        raise UsageError(f"{path}: cannot be locked: {error}") from error
