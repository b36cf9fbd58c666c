"""Write shards from the records of any dataset.

What goes into which shard is planned from the records and the sizes of their files alone, so a pack that was
stopped goes on where it was, and the same photos, records and options give the same bytes. Beside the shards
of a split, ``SPLIT.pack.json`` says what they were made of and which are done; it is there before the first
of them, so that what a killed pack leaves is known to be its own.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import Image

from mmgem.data.content_hashes import content_hash
from mmgem.data.image_kinds import IMAGE_SUFFIXES
from mmgem.data.images import image_size, open_image
from mmgem.data.records import Record, line_of
from mmgem.data.shards.fields import check_characters
from mmgem.data.shards.parquet import OURS, require_pyarrow
from mmgem.data.shards.shard import Sample
from mmgem.errors import DataError, ImageError, TransientImageError, UsageError, unreadable_image
from mmgem.utils.checksums import sidecar, write_block_checksums
from mmgem.utils.files import atomic_file, open_regular, temporary_stem, write_atomic
from mmgem.utils.locks import FileLock
from mmgem.utils.progress import track

Format = Literal["tar", "parquet"]

_VERSION = 1
_SHARD_MB = 256
_GROUP = 100  # rows: small groups are what a shuffle of several can hold in memory
_QUALITY = 90
_NO_SPLIT = "data"


@dataclass
class Packed:
    """What was written. ``kept``: shards that were there already; ``problems``: one line for each record left
    out."""

    shards: list[Path] = field(default_factory=list)
    samples: int = 0
    bytes: int = 0
    kept: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class _Row:
    """A sample to write: ``value`` is its record as JSON."""

    key: str
    suffix: str
    photo: bytes
    value: dict[str, Any]


def pack(
    records: Sequence[Record],
    out: Path,
    format: Format = "tar",
    per_shard: int = 0,
    shard_mb: float = 0,
    size: int = 0,
) -> Packed:
    """Write ``records`` to ``out/SPLIT-00000.tar`` and on (``data-00000.tar`` where no split is named).

    ``per_shard`` records go into each, or as many as have ``shard_mb`` megabytes of photos (default 256).
    Photos are copied as they are; with ``size``, those whose short side is above it are shrunk to it, with
    their boxes. Photos that cannot be decoded and records without caption, label or region are left out.

    Raises UsageError for options that cannot work and for an ``out`` with shards of other data or options,
    DataError if not a single sample can be written, BusyError if another process packs one of the splits.
    """
    if per_shard and shard_mb:
        raise UsageError("per_shard and shard_mb exclude each other")
    if min(per_shard, shard_mb, size) < 0:
        raise UsageError("per_shard, shard_mb and size must not be negative")
    if format == "parquet":
        require_pyarrow()
    splits: dict[str, list[Record]] = {}
    for record in records:
        name = _NO_SPLIT if record.split is None else record.split
        if name.startswith(".") or set(name) & set("/\\\0"):
            raise UsageError(f"split {name!r} cannot be part of a file name")
        splits.setdefault(name, []).append(record)
    if not splits:
        raise UsageError("no records to pack")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            for split in sorted(splits):
                locks.enter_context(FileLock(out / f"{split}.pack.lock", out / f"{split}.pack.json"))
            packs = [
                _Pack(out, split, rows, format, per_shard, shard_mb or _SHARD_MB, size)
                for split, rows in splits.items()
            ]
            todo = [(split_pack, number) for split_pack in packs for number in split_pack.missing()]
            sizes = [stop - start for start, stop in (split_pack.plan[number] for split_pack, number in todo)]
            for split_pack in {id(split_pack): split_pack for split_pack, _ in todo}.values():
                split_pack.begin()
            for split_pack, number in track(todo, "packing", sizes=sizes, unit=" photos"):
                split_pack.write(number)
    except OSError as error:
        raise UsageError(f"{error.filename or out}: {error.strerror}") from error
    report = Packed(kept=sum(len(split_pack.plan) for split_pack in packs) - len(todo))
    for split_pack in packs:
        split_pack.add_to(report)
    if not report.samples:
        raise DataError(f"{out}: nothing could be packed; the first: {report.problems[0]}")
    return report


class _Pack:
    """The shards of one split."""

    def __init__(
        self,
        out: Path,
        split: str,
        records: list[Record],
        format: Format,
        per_shard: int,
        shard_mb: float,
        size: int,
    ):
        self.out, self.split, self.records, self.format, self.size = out, split, records, format, size
        self.root = _common_folder(records)
        weights = [_file_size(record.image) for record in records]
        self.plan = _plan(weights, per_shard, shard_mb)
        digest = hashlib.blake2b(json.dumps([_VERSION, format, size, self.plan]).encode(), digest_size=16)
        for record, weight in zip(records, weights, strict=True):
            digest.update(self._json(record) + str(weight).encode())
        self.log = out / f"{split}.pack.json"
        self.log_entries: dict[str, Any] = {"input": digest.hexdigest(), "shards": {}}
        if self.log.exists():
            recorded = _read_log(self.log)
            if recorded["input"] == self.log_entries["input"]:
                self.log_entries = recorded
            elif recorded["shards"] or self._any_shard():
                raise UsageError(
                    f"{self.log}: the shards here are of other data or options; remove them or choose "
                    "another folder"
                )
        elif self._any_shard():
            raise UsageError(f"{out}: has shards of split {split!r} already, made by something else")

    def _any_shard(self) -> bool:
        return any(self.out.glob(f"{glob.escape(self.split)}-[0-9]*.{self.format}"))

    def begin(self) -> None:
        """Say that shards of this split are this pack's from now on; remove what a killed one was writing."""
        shards = [self.path(number) for number in range(len(self.plan))]
        ours = {temporary_stem(path) for path in (self.log, *shards, *map(sidecar, shards))}
        for leftover in self.out.glob(".*.tmp"):
            if leftover.name.rsplit(".", 2)[0] in ours:
                leftover.unlink(missing_ok=True)
        self._write_log()

    def path(self, number: int) -> Path:
        """Where shard ``number`` goes."""
        return self.out / f"{self.split}-{number:05}.{self.format}"

    def missing(self) -> list[int]:
        """Numbers of the shards that are not written yet."""
        return [n for n in range(len(self.plan)) if not self._done(n)]

    def _done(self, number: int) -> bool:
        path = self.path(number)
        shard_facts = self.log_entries["shards"].get(path.name)
        if shard_facts is None or shard_facts.get("transient"):  # a photo may be read by now
            return False
        if _file_size(path) != shard_facts["bytes"]:
            return False
        return shard_facts.get("photos") in (None, self._photos(number))

    def _photos(self, number: int) -> str:
        """Tells whether the photos of a shard have the bytes that they had when it was written."""
        digest = hashlib.blake2b(digest_size=16)
        for at in range(*self.plan[number]):
            digest.update(f"{content_hash(self.records[at].image)}\n".encode())
        return digest.hexdigest()

    def write(self, number: int) -> None:
        """Write a shard, then that it is written."""
        path = self.path(number)
        problems: list[str] = []
        count = transient = 0
        photos = self._photos(number)

        def rows() -> Iterator[_Row]:
            nonlocal count, transient
            for at in range(*self.plan[number]):
                try:
                    row = self._row(at)
                except (DataError, ValueError) as error:
                    problems.append(" ".join(str(error).split()))
                    transient += isinstance(error, TransientImageError)
                else:
                    count += 1
                    yield row

        with atomic_file(path, lambda written: write_block_checksums(written, sidecar(path))) as file:
            _WRITERS[self.format](file, rows())
        shard_facts = {"samples": count, "bytes": _file_size(path), "skipped": problems, "photos": photos}
        if transient:
            shard_facts["transient"] = transient
        self.log_entries["shards"][path.name] = shard_facts
        self.log_entries["shards"] = dict(sorted(self.log_entries["shards"].items()))
        self._write_log()

    def _write_log(self) -> None:
        write_atomic(self.log, json.dumps(self.log_entries, indent=1) + "\n")

    def add_to(self, report: Packed) -> None:
        """Add what was written to ``report``."""
        for number in range(len(self.plan)):
            path = self.path(number)
            shard_facts = self.log_entries["shards"][path.name]
            report.shards.append(path)
            report.samples += shard_facts["samples"]
            report.bytes += shard_facts["bytes"]
            report.problems += shard_facts["skipped"]

    def _row(self, at: int) -> _Row:
        record = self.records[at]
        if not (record.captions or record.label or any(region.captions for region in record.regions)):
            raise ValueError(f"{record.image}: no caption")
        try:
            check_characters(record)
            with open_regular(record.image) as file:
                photo = file.read()
            value = {"captions": [], **json.loads(self._json(record))}
            shrunk, scale = _shrink(photo, self.size)
        except (OSError, MemoryError) as error:
            raise unreadable_image(error, f"{record.image}: ") from error
        except (ImageError, ValueError) as error:
            error_type = TransientImageError if isinstance(error, TransientImageError) else ImageError
            raise error_type(f"{record.image}: {str(error).removeprefix('image bytes: ')}") from error
        for region in value.get("regions", []):
            region["box"] = [x * scale[i % 2] for i, x in enumerate(region["box"])]
        suffix = _suffix(record.image) if shrunk is photo else ".jpg"
        return _Row(f"{at:08}", suffix, shrunk, value)

    def _json(self, record: Record) -> bytes:
        try:
            return line_of(record, self.root)
        except (TypeError, ValueError) as error:
            raise DataError(f"{record.image}: meta: {error}") from error


def _plan(weights: list[int], per_shard: int, shard_mb: float) -> list[tuple[int, int]]:
    """First and last + 1 of the records of each shard."""
    if per_shard:
        return [(at, min(at + per_shard, len(weights))) for at in range(0, len(weights), per_shard)]
    starts, megabytes_held = [0], 0.0
    for at, weight in enumerate(weights):
        if megabytes_held and megabytes_held + weight > shard_mb * 1e6:
            starts.append(at)
            megabytes_held = 0.0
        megabytes_held += weight
    return list(zip(starts, [*starts[1:], len(weights)], strict=True))


def _shrink(photo: bytes, size: int) -> tuple[bytes, tuple[float, float]]:
    """The photo, smaller if its short side is above ``size``, and by how much its sides changed. Raises
    ``ImageError`` if it cannot be decoded."""
    width, height = image_size(photo)
    if not size or min(width, height) <= size:
        open_image(photo, min_side=1)
        return photo, (1.0, 1.0)
    ratio = size / min(width, height)
    new = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    image = open_image(photo, min_side=2 * size).resize(new, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue(), (new[0] / width, new[1] / height)


def _suffix(image: Path) -> str:
    """What the photo is called by in a tar."""
    suffix = image.suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES and suffix not in (".jpe", ".jfif") else ".jpg"


def write_shard(path: Path, samples: Iterable[Sample], source: Path) -> int:
    """Write ``samples`` of the shard ``source``, as they are, to the shard ``path``, of the format its suffix
    says, with checksums; whole or not at all. Returns how many there were. Raises ``UsageError`` if parquet
    needs pyarrow, ``OSError`` if it cannot be written."""
    root = os.path.normpath(source.absolute())
    format = path.suffix.lower().removeprefix(".")
    if format == "parquet":
        require_pyarrow()
    count = 0

    def rows() -> Iterator[_Row]:
        nonlocal count
        for sample in samples:
            count += 1
            value = {"captions": [], **json.loads(line_of(sample.record, root))}
            yield _Row(sample.key, _suffix(sample.record.image), sample.photo, value)

    with atomic_file(path, lambda written: write_block_checksums(written, sidecar(path))) as file:
        _WRITERS[format](file, rows())
    return count


def _write_tar(file: BinaryIO, rows: Iterator[_Row]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for row in rows:
            caption_lines = "".join(f"{' '.join(caption.split())}\n" for caption in row.value["captions"])
            members = [(row.suffix, row.photo), (".json", json.dumps(row.value).encode())]
            if caption_lines:
                members.append((".txt", caption_lines.encode()))
            for suffix, data in members:
                member = tarfile.TarInfo(row.key + suffix)  # the time is 0, the owner nobody
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _write_parquet(file: BinaryIO, rows: Iterator[_Row]) -> None:
    pq = require_pyarrow()
    import pyarrow as pa

    photo = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = ("split", "label", "regions", "meta")
    schema = pa.schema(
        [("key", pa.string()), ("image", photo), ("captions", pa.list_(pa.string()))]
        + [(name, pa.string()) for name in texts],
        # By the second, HF datasets show photos as such.
        {OURS: b"1", b"huggingface": b'{"info": {"features": {"image": {"_type": "Image"}}}}'},
    )
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        while group := list(islice(rows, _GROUP)):
            writer.write_table(pa.Table.from_pylist([_parquet_row(row) for row in group], schema))


def _parquet_row(row: _Row) -> dict[str, Any]:
    value = dict(row.value)
    path = value.pop("image").encode("utf-8", "backslashreplace").decode()
    columns = {"key": row.key, "image": {"bytes": row.photo, "path": path}}
    columns |= {name: value.pop(name, None) for name in ("captions", "split", "label")}
    regions = value.pop("regions", None)
    return columns | {
        "regions": regions and json.dumps(regions),
        "meta": json.dumps(value) if value else None,
    }


_WRITERS = {"tar": _write_tar, "parquet": _write_parquet}


def _common_folder(records: Sequence[Record]) -> str:
    parents = {str(record.image.absolute().parent) for record in records}
    try:
        return os.path.commonpath(parents)
    except ValueError:  # several drives
        return str(Path.cwd())


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _read_log(path: Path) -> dict[str, Any]:
    try:
        log = json.loads(path.read_text())
        if isinstance(log["input"], str) and isinstance(log["shards"], dict):
            return log
        raise ValueError("not what mmgem writes")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); remove it and the shards of its split") from error
