"""Where cleaned data goes, in the form it came in, with a list of what is not in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmgem.clean.pairs import PairData
from mmgem.data.records import Record, write_jsonl
from mmgem.data.shards.shard import Sample
from mmgem.data.shards.write import write_shard
from mmgem.errors import DataError, UsageError
from mmgem.utils.files import atomic_file, same_file

T = TypeVar("T")

Change = Callable[[int, Record], Record | None]
"""What becomes of a record, given its number: another, or nothing."""


def prepare_jsonl(out: Path, data: Path) -> None:
    """Make the folder of the file ``out``. Raises ``UsageError`` for a name that does not end in ``.jsonl``,
    for the ``data`` itself, and where no folder can be made."""
    if out.suffix.lower() != ".jsonl" or out.is_dir():
        raise UsageError(f"{out}: must be a file that ends in .jsonl")
    if same_file(out, data):
        raise _is_the_data(data)
    _make_folder(out.parent, out)


def _is_the_data(place: Path) -> UsageError:
    return UsageError(f"{place}: is the data itself; name another place")


def _make_folder(folder: Path, out: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class CleanOutput:
    """The file ``out`` (``.jsonl``) of loose photos, or the folder ``out`` of shards named as those of
    ``data``. Raises ``UsageError`` for a name that cannot be, and for the data itself."""

    data: PairData
    out: Path

    def __post_init__(self) -> None:
        if self.data.shards:
            if self.out.suffix.lower() in (".jsonl", ".tar", ".parquet"):
                raise UsageError(f"{self.out}: shards become shards, name a folder for them")
            clash = [file for file in self.data.shards if same_file(self.out / file.name, file)]
            if clash:
                raise _is_the_data(clash[0])
            _make_folder(self.out, self.out)
        else:
            prepare_jsonl(self.out, self.data.path)

    def work_file(self, kind: str) -> Path:
        """What a killed run goes on with."""
        return self.out / f".{kind}" if self.data.shards else self.out.with_name(f".{self.out.name}.{kind}")

    @property
    def dropped_file(self) -> Path:
        """The list of what went."""
        if self.data.shards:
            return self.out / "dropped.jsonl"
        return self.out.with_name(f"{self.out.stem}.dropped.jsonl")

    def write(self, change: Change) -> int:
        """Write what ``change`` makes of each record; returns how many there are. Raises ``DataError`` if
        there is none."""
        count = 0

        def records() -> Iterator[Record]:
            nonlocal count
            for number, record in enumerate(self.data.records):
                if (changed := change(number, record)) is not None:
                    count += 1
                    yield changed

        if not self.data.shards:
            first = next(made := records(), None)
            if first is None:
                raise DataError(f"{self.data.path}: nothing is left")
            write_jsonl(self.out, _again(first, made))
            return count
        for number, file in enumerate(self.data.shards):
            samples = self._samples(number, change)
            if (sample := next(samples, None)) is None:
                (self.out / file.name).unlink(missing_ok=True)
            else:
                count += write_shard(self.out / file.name, _again(sample, samples), file)
        if not count:
            raise DataError(f"{self.data.path}: nothing is left")
        return count

    def _samples(self, shard: int, change: Change) -> Iterator[Sample]:
        for pair in self.data.shard_pairs(shard):
            if pair.error is None and (record := change(pair.number, pair.record)) is not None:
                yield Sample(pair.key, pair.data, record)

    def write_dropped(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write what went, a JSON line each."""
        with atomic_file(self.dropped_file) as file:
            for row in rows:
                file.write(json.dumps(row).encode() + b"\n")


def with_captions(record: Record, captions: Sequence[str]) -> Record | None:
    """``record`` with these captions; None if nothing is said of the photo then."""
    if not (captions or record.label or any(r.captions for r in record.regions) or record.translations):
        return None
    return Record(
        record.media,
        tuple(captions),
        record.split,
        record.label,
        record.regions,
        record.meta,
        record.translations,
    )


def name_of(record: Record, folder: Path) -> str:
    """What the list of what went calls a photo: its path in ``folder``, where it is in it."""
    image = os.fspath(record.image)
    root = os.path.normpath(folder.absolute())
    return image.removeprefix(root + os.sep)


def _again(first: T, rest: Iterator[T]) -> Iterator[T]:
    yield first
    yield from rest
