"""Photos and what is said of them, one by one, of every form of data that mmgem reads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmgem.data.readers import load_dataset
from mmgem.data.records import Record, line_of
from mmgem.data.shards import Shard, find_shards, is_shards, open_shard
from mmgem.data.shards.parquet import RowGroups
from mmgem.errors import DataError, ImageError, unreadable_image
from mmgem.utils.files import open_regular


@dataclass(frozen=True, slots=True)
class Pair:
    """A photo and its record. ``number``: its place in the data; ``name``: what messages call it; ``key``:
    of its shard's sample; ``data``: the bytes of the file, none if ``error`` says why."""

    number: int
    name: str
    record: Record
    data: bytes
    error: ImageError | None = None
    key: str = ""


class PairData:
    """The data set at ``path``, any that :func:`mmgem.data.readers.load_dataset` or
    :func:`mmgem.data.shards.find_shards` finds; ``split``: only this one.

    ``digest`` tells data apart, by records and by sizes and times of files. ``problems``: what of shards is
    broken and left out, a line each. Raises as these do.
    """

    def __init__(self, path: str | os.PathLike[str], split: str | None = None):
        self.path = Path(path)
        self.shards = find_shards(path, split) if is_shards(path) else []
        self.records = [] if self.shards else load_dataset(path, split=split)
        self.problems: list[str] = []
        self._groups = RowGroups(2)
        digest = hashlib.blake2b(digest_size=16)
        if self.shards:
            self._sizes = []
            for file in self.shards:
                shard = self._open(file)
                self.problems += shard.problems
                self._sizes.append(len(shard))
                digest.update(json.dumps([file.name, len(shard), *_stamp(file)]).encode())
            if not sum(self._sizes):
                raise DataError(f"{path}: no pairs{f'; {self.problems[0]}' if self.problems else ''}")
        for record in self.records:
            try:
                digest.update(line_of(record, "/"))
            except (TypeError, ValueError) as error:
                raise DataError(f"{record.image}: meta: {error}") from error
            digest.update(json.dumps(_stamp(record.image)).encode())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return sum(self._sizes) if self.shards else len(self.records)

    def pairs(self, start: int = 0) -> Iterator[Pair]:
        """All photos from number ``start`` on, in order, their bytes read. Holds one of them, and of parquet
        two row groups."""
        if not self.shards:
            for number in range(start, len(self.records)):
                yield _read(number, self.records[number])
            return
        number = 0
        for shard, size in enumerate(self._sizes):
            if start < number + size:
                yield from self.shard_pairs(shard, max(0, start - number))
            number += size

    def shard_pairs(self, number: int, start: int = 0) -> Iterator[Pair]:
        """Those of shard ``number``, from its own number ``start`` on."""
        shard = self._open(file := self.shards[number])
        first = sum(self._sizes[:number])
        for at in range(start, self._sizes[number]):
            yield _sample(first + at, file, shard, at)

    def _open(self, file: Path) -> Shard:
        return open_shard(file, self._groups)


def _read(number: int, record: Record) -> Pair:
    name = str(record.image)
    try:
        with open_regular(record.image) as file:
            return Pair(number, name, record, file.read())
    except (OSError, MemoryError) as error:
        return Pair(number, name, record, b"", unreadable_image(error))


def _sample(number: int, file: Path, shard: Shard, at: int) -> Pair:
    name = f"{file.name}: {shard.index.names[at]}"
    try:
        sample = shard.read(at)
    except DataError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno is not None:
            raise
        reason = str(error).removeprefix(f"{shard.path}: ")
        return Pair(number, name, Record(file / shard.index.names[at]), b"", ImageError(reason))
    return Pair(number, name, sample.record, sample.photo, None, sample.key)


def _stamp(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError:
        return [-1, 0]
    return [stat.st_size, stat.st_mtime_ns]
