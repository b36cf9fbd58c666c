"""Parquet shards: those of Hugging Face datasets, and our own.

One column holds the bytes of photos, as such or as HF's struct of ``bytes`` and ``path``; the others are the
fields of a record, or metadata. A row group is what is read at once, and the few last read are kept. Nothing
else stays open, and Arrow's threads are not used, so that worker processes may be forked at any time.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.data.records import Record
from mmgem.data.shards.fields import make_record
from mmgem.data.shards.index import Index, indexed
from mmgem.data.shards.shard import Sample, Shard, open_blocks
from mmgem.errors import DataError, UsageError, is_transient
from mmgem.utils.checksums import FileBlocks
from mmgem.utils.files import open_regular

PHOTOS = ("image", "jpg", "jpeg", "png", "webp", "img", "photo")
"""Columns that hold photos; without any of them, the only one of bytes."""
KEYS = ("key", "__key__")
OURS = b"mmgem"
"""Metadata of the schema by which our own files are known: regions and meta are JSON texts in them."""


class RowGroups:
    """The last ``max_groups`` row groups that were read, of whichever files."""

    def __init__(self, max_groups: int = 8):
        self.max_groups = max_groups
        self._cache: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def get(self, key: tuple[str, int], read: Callable[[], Any]) -> Any:
        """The group ``key``; ``read`` is called if it is not kept."""
        if key in self._cache:
            self._cache.move_to_end(key)
        else:
            while len(self._cache) >= self.max_groups:
                self._cache.popitem(last=False)
            self._cache[key] = read()
        return self._cache[key]


class ParquetShard(Shard):
    """A parquet file. Raises UsageError if it or pyarrow is missing, DataError if it is damaged or has no
    column of photos."""

    photos_only = False

    def __init__(self, path: Path, groups: RowGroups | None = None):
        self.groups = groups or RowGroups()
        self.checksums = open_blocks(path)
        scan = partial(_scan, photos_only=self.photos_only)
        super().__init__(path, indexed(path, 3, scan, "photos" if self.photos_only else ""))

    def read(self, i: int) -> Sample:
        """Sample number ``i``, its photo not decoded. Raises ``DataError`` if it can be read no longer."""
        _, group, row = self.index.rows[i].tolist()
        try:
            table, columns = self.groups.get((str(self.path), group), lambda: self._group(group))
            fields = {name: table.column(name)[row].as_py() for name in table.column_names}
            data, key, record = columns.sample(fields, self.index.names[i])
        except (OSError, ValueError, IndexError) as error:
            raise DataError(
                f"{self.path}: {self.index.names[i]}: {_one_line(error)}; has the file changed?"
            ) from error
        return Sample(key, data, record)

    def _group(self, number: int) -> tuple[Any, _Columns]:
        file = _open(self.path)
        try:
            columns = _Columns(self.path, file.schema_arrow, self.photos_only)
            if self.checksums is not None:
                start, size = _group_range(file.metadata.row_group(number))
                with self.path.open("rb") as raw:
                    self.checksums.read(raw, start, size)
            return file.read_row_group(number, columns=columns.all, use_threads=False), columns
        finally:
            file.close()


class ParquetPhotos(ParquetShard):
    """The photos of a parquet file, whatever is said of them; records are empty."""

    photos_only = True


class _Columns:
    """Which columns there are and what they hold; with ``photos_only`` nothing else but keys."""

    def __init__(self, path: Path, schema: Any, photos_only: bool):
        self.path, self.photos_only = path, photos_only
        binary = [field.name for field in schema if _has_bytes(field.type)]
        named = [name for name in PHOTOS if name in binary]
        if not named and len(binary) != 1:
            raise DataError(f"{path}: no column of photos ({', '.join(PHOTOS)}) that holds bytes")
        self.photo = named[0] if named else binary[0]
        texts = [name for name in schema.names if name not in binary]
        self.texts = [name for name in texts if name in KEYS] if photos_only else texts
        self.all = [*self.texts, self.photo]
        metadata = schema.metadata or {}
        self.ours = OURS in metadata
        self.labels = _label_names(metadata)
        self.struct = not _is_bytes(schema.field(self.photo).type)

    def record(self, row: dict[str, Any], name: str) -> tuple[str, Record]:
        """Key and record of a row of texts; ``name``: what the photo is called if they do not say."""
        fields = {key: value for key, value in row.items() if value is not None}
        key = next((str(fields.pop(k)) for k in KEYS if k in fields), name)
        if self.photos_only:
            return key, Record(self.path / name)
        if self.ours:
            fields |= json.loads(fields.pop("meta", "{}"))
            if "regions" in fields:
                fields["regions"] = json.loads(fields["regions"])
        elif isinstance(fields.get("json"), dict | str):
            inner = fields.pop("json")
            inner = json.loads(inner) if isinstance(inner, str) else inner
            fields = {**(inner if isinstance(inner, dict) else {"json": inner}), **fields}
        label = fields.pop("label", fields.pop("cls", None))
        if isinstance(label, int) and 0 <= label < len(self.labels):
            label = self.labels[label]
        return key, make_record(fields | {"label": label}, name, self.path)

    def sample(self, row: dict[str, Any], name: str) -> tuple[bytes, str, Record]:
        """Photo, key and record of a whole row."""
        photo = row.pop(self.photo)
        data = photo.get("bytes") if self.struct and photo else photo
        if not data:
            raise ValueError("no bytes of a photo")
        return data, *self.record(row, name)


def _scan(path: Path, photos_only: bool) -> Index:
    rows: list[list[int]] = []
    names: list[str] = []
    blocks: list[int] = []
    problems: list[str] = []
    file = _open(path)
    try:
        columns = _Columns(path, file.schema_arrow, photos_only)
        number = 0
        for group in range(file.num_row_groups):
            first_row = len(rows)
            try:
                table = file.read_row_group(group, columns=columns.texts, use_threads=False)
                absent, paths = _photos(file, group, columns)
            except (OSError, ValueError) as error:
                if is_transient(error):
                    raise  # no verdict on the row group, and none is kept
                problems.append(f"{path}: row group {group}: {_one_line(error)}")
                number += file.metadata.row_group(group).num_rows
                continue
            for row_number in range(file.metadata.row_group(group).num_rows):
                row = {name: table.column(name)[row_number].as_py() for name in table.column_names}
                name = paths[row_number] or f"{number:08}"
                try:
                    if row_number in absent:
                        raise ValueError("no bytes of a photo")
                    _, record = columns.record(row, name)
                    rows.append([int(bool(record.captions)), group, row_number])
                    names.append(name)
                except ValueError as error:
                    problems.append(f"{path}: row {number}: {error}")
                number += 1
            if len(rows) > first_row:
                blocks.append(len(rows) - first_row)
    finally:
        file.close()
    return Index(np.array(rows, np.int64).reshape(len(rows), 3), names, blocks, problems)


def _photos(file: Any, group: int, columns: _Columns) -> tuple[set[int], list[str | None]]:
    """Rows of a group without bytes of a photo, and what the photos are called. The bytes themselves are read
    only if the file says that some are absent, or does not say."""
    row_group = file.metadata.row_group(group)
    column_chunks = {
        row_group.column(c).path_in_schema: row_group.column(c) for c in range(row_group.num_columns)
    }
    leaf = f"{columns.photo}.bytes" if columns.struct else columns.photo
    statistics = column_chunks[leaf].statistics if leaf in column_chunks else None
    absent: set[int] = set()
    if statistics is None or not statistics.has_null_count or statistics.null_count:
        values = file.read_row_group(group, columns=[leaf], use_threads=False).column(columns.photo)
        for at, value in enumerate(values):
            data = value.as_py()
            if not (data.get("bytes") if isinstance(data, dict) else data):
                absent.add(at)
    paths: list[str | None] = [None] * row_group.num_rows
    if f"{columns.photo}.path" in column_chunks:
        read = file.read_row_group(group, columns=[f"{columns.photo}.path"], use_threads=False)
        paths = [(row or {}).get("path") for row in read.column(columns.photo).to_pylist()]
    return absent, paths


def _group_range(group: Any) -> tuple[int, int]:
    """Offset and size in bytes of a row group, its first column to its last."""
    chunks = [group.column(c) for c in range(group.num_columns)]
    starts = [
        min(at for at in (c.dictionary_page_offset, c.data_page_offset) if at is not None) for c in chunks
    ]
    ends = [at + c.total_compressed_size for at, c in zip(starts, chunks, strict=True)]
    return min(starts), max(ends) - min(starts)


def verify_footer(path: Path, blocks: FileBlocks | None) -> None:
    """Compare the checksums of the footer of a parquet file, if it has some. Raises ``ValueError``."""
    if blocks is not None:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(blocks.read(file, max(0, size - 8), 8)[:4], "little")
            blocks.read(file, max(0, size - 8 - length), min(size, 8 + length))


def _open(path: Path) -> Any:
    pq = require_pyarrow()
    try:
        open_regular(path).close()
        verify_footer(path, FileBlocks.open(path))
        return pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a whole parquet file ({_one_line(error)})") from error


def require_pyarrow() -> Any:
    """``pyarrow.parquet``. Raises UsageError if it is not installed."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError("parquet needs pyarrow: pip install 'mmgem[shards]'") from error
    return pq


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _has_bytes(kind: Any) -> bool:
    """Bytes, or a struct of them."""
    import pyarrow as pa

    return _is_bytes(kind) or (
        pa.types.is_struct(kind) and any(_is_bytes(kind.field(i).type) for i in range(kind.num_fields))
    )


def _label_names(metadata: dict[bytes, bytes]) -> list[str]:
    """What HF's metadata call the numbers of the column ``label``."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
