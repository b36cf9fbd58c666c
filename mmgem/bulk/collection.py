"""What a collection is made of, and its photos by partitions.

A collection is a folder of photos, or shards. Its photos are numbered by the order of their files' paths and
their place in a shard, and a partition is so many of them in a row: known before any work is done, so who
makes a partition, when and how often does not change what is in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mmgem.data.images import list_images
from mmgem.data.shards import Shard, find_shards, is_shards, open_photos
from mmgem.data.shards.parquet import RowGroups
from mmgem.errors import DataError, ImageError, UsageError, unreadable_image
from mmgem.utils.files import IrregularFileError, open_regular
from mmgem.utils.progress import track

_UNREADABLE = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    IrregularFileError,
    MemoryError,
)
_OPEN_ROW_GROUPS = 2  # row groups of parquet held: a partition ends in the one where the next begins


@dataclass(frozen=True, slots=True)
class Span:
    """Photos ``start`` to ``stop`` of the shard ``file``, or the photo ``file`` itself (``stop`` 0); the path
    is relative to the collection's root."""

    file: str
    start: int = 0
    stop: int = 0

    def __len__(self) -> int:
        return self.stop - self.start if self.stop else 1


@dataclass(frozen=True, slots=True)
class Partition:
    """Photos ``first`` and on of a collection: those of ``spans``."""

    number: int
    first: int
    spans: list[Span]

    def __len__(self) -> int:
        return sum(map(len, self.spans))

    def to_json(self) -> str:
        """A text for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Partition:
        """What :meth:`to_json` was called on."""
        value = json.loads(text)
        return cls(value["number"], value["first"], [Span(**span) for span in value["spans"]])


@dataclass(frozen=True, slots=True)
class RawPhoto:
    """One photo as it lies there: ``item`` is its number in the collection; ``key`` its path in the folder,
    or what its shard calls it; ``data`` the bytes of the file, none if ``error`` says why."""

    item: int
    key: str
    shard: str | None
    data: bytes
    error: ImageError | None = None


@dataclass(frozen=True, slots=True)
class PhotoCollection:
    """``spans``: all photos, whole shards. ``digest``: tells collections apart by the names and sizes of
    their files. ``problems``: what of the shards is left out, ``(shard, reason)``."""

    root: Path
    spans: list[Span]
    digest: str
    problems: list[tuple[str, str]]

    def __len__(self) -> int:
        return sum(map(len, self.spans))

    def partitions(self, size: int) -> list[Partition]:
        """The photos in partitions of ``size``; the last may be smaller."""
        partitions: list[Partition] = []
        spans: list[Span] = []
        first = size_so_far = 0
        for span_of_file in self.spans:
            start = span_of_file.start
            while start < span_of_file.start + len(span_of_file):
                count = min(size - size_so_far, span_of_file.start + len(span_of_file) - start)
                spans.append(
                    Span(span_of_file.file, start, start + count) if span_of_file.stop else span_of_file
                )
                start, size_so_far = start + count, size_so_far + count
                if size_so_far == size:
                    partitions.append(Partition(len(partitions), first, spans))
                    first, spans, size_so_far = first + size, [], 0
        return [*partitions, Partition(len(partitions), first, spans)] if spans else partitions


def find_collection(source: str | os.PathLike[str]) -> PhotoCollection:
    """The collection ``source``: a folder of photos with its subfolders, or shards as
    :func:`mmgem.data.shards.find_shards` finds them; those that are new are scanned.

    Raises UsageError if there is nothing, or loose photos and shards in one folder.
    """
    if not is_shards(source):
        return _collect_photos(Path(source))
    if Path(source).is_dir() and list_images(source):
        raise UsageError(f"{source}: has photos and shards; name the shards, like {source}/*.tar")
    return _collect_shards(find_shards(source))


def _collect_photos(folder: Path) -> PhotoCollection:
    photos = list_images(folder)
    if not photos:
        raise UsageError(f"{folder}: no photos in this folder, and no shards")
    root = folder.absolute()
    spans = [Span(photo.absolute().relative_to(root).as_posix()) for photo in photos]
    return PhotoCollection(root, spans, _digest(root, spans), [])


def _collect_shards(paths: list[Path]) -> PhotoCollection:
    paths = [path.absolute() for path in paths]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    spans: list[Span] = []
    problems: list[tuple[str, str]] = []
    for path in track(paths, "Shards"):
        name = path.relative_to(root).as_posix()
        try:
            shard = open_photos(path)
        except DataError as error:
            problems.append((name, str(error).removeprefix(f"{path}: ")))
            continue
        problems += [(name, problem.removeprefix(f"{path}: ")) for problem in shard.problems]
        if len(shard):
            spans.append(Span(name, 0, len(shard)))
    if not spans:
        raise DataError(f"{paths[0]}: no photos{f', {problems[0][1]}' if problems else ''}")
    return PhotoCollection(root, spans, _digest(root, spans), problems)


def _digest(root: Path, spans: list[Span]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for span in spans:
        try:
            size = (root / span.file).stat().st_size
        except OSError:  # gone, or a link to nowhere: reading it will say so
            size = -1
        digest.update(json.dumps([span.file, len(span), size]).encode())
    return digest.hexdigest()


class PhotoReader:
    """Reads the photos of partitions; the last shard stays open."""

    def __init__(self, root: Path):
        self.root = root
        self._groups = RowGroups(_OPEN_ROW_GROUPS)
        self._shard: Shard | None = None

    def photos(self, partition: Partition) -> Iterator[RawPhoto]:
        """Every photo of ``partition``, in order.

        Raises DataError if the disk, or what it is mounted from, fails: that is not the photo's fault.
        """
        item = partition.first
        for span in partition.spans:
            for index in range(span.start, span.start + len(span)):
                yield (
                    self._read_from_shard(span.file, index, item)
                    if span.stop
                    else self._read_file(span.file, item)
                )
                item += 1

    def _read_file(self, file: str, item: int) -> RawPhoto:
        path = self.root / file
        try:
            with open_regular(path) as photo:
                return RawPhoto(item, file, None, photo.read())
        except _UNREADABLE as error:
            return RawPhoto(item, file, None, b"", unreadable_image(error))
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error

    def _read_from_shard(self, file: str, index: int, item: int) -> RawPhoto:
        path = self.root / file
        if self._shard is None or self._shard.path != path:
            self._shard = open_photos(path, self._groups)
        try:
            sample = self._shard.read(index)
        except DataError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno is not None:
                raise
            return RawPhoto(
                item,
                self._shard.index.names[index],
                file,
                b"",
                ImageError(str(error).removeprefix(f"{path}: ")),
            )
        return RawPhoto(item, sample.key, file, sample.photo)
