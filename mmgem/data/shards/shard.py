"""What a shard is: many samples in one file, each read on its own by its number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmgem.data.records import Record
from mmgem.data.shards.index import Index
from mmgem.errors import DataError
from mmgem.utils.checksums import FileBlocks


@dataclass(frozen=True, slots=True)
class Sample:
    """One photo as the bytes of an image file, and what is said of it. ``record.image`` is the photo's name
    under the shard's path; no such file exists, but the name says which photo it is and seeds its crops."""

    key: str
    photo: bytes
    record: Record


def open_blocks(path: Path) -> FileBlocks | None:
    """The checksums of the blocks of a shard that :func:`mmgem.data.shards.pack` wrote; None for others.

    Raises ``DataError`` if they cannot be read."""
    try:
        return FileBlocks.open(path, any_size=True)
    except OSError:  # the shard itself is missing: whoever reads it says so
        return None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


class Shard:
    """A file of ``samples`` samples. ``problems``: what in it is broken and left out, one ``FILE: member:
    reason`` each. ``blocks``: how many samples lie together, in order: all of a tar, each row group of a
    parquet file. ``captioned``: ``(samples,)`` bool, which samples have captions of the whole image."""

    def __init__(self, path: Path, index: Index):
        self.path, self.index = path, index
        self.samples = len(index.rows)
        self.problems = index.problems
        self.blocks = index.blocks
        self.captioned: np.ndarray = index.rows[:, 0] > 0

    def __len__(self) -> int:
        return self.samples

    def read(self, i: int) -> Sample:
        """Sample number ``i``, its photo not decoded. Raises ``DataError`` if it can be read no longer."""
        raise NotImplementedError
