"""Which files are shards, and which reader opens one."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from mmgem.data.shards.parquet import ParquetPhotos, ParquetShard, RowGroups
from mmgem.data.shards.shard import Shard
from mmgem.data.shards.tar import TarPhotos, TarShard
from mmgem.errors import UsageError
from mmgem.utils.shard_paths import SHARD_SUFFIXES, shards_at_top


def open_shard(path: str | os.PathLike[str], groups: RowGroups | None = None) -> Shard:
    """Open the shard ``path`` by its suffix; the first time it is scanned, then its index is in the cache.

    ``groups``: where row groups of parquet files are kept, to be shared by several. Raises UsageError if it
    is missing or no shard by its name, DataError if it is not what its name says.
    """
    return TarShard(Path(path)) if _is_tar(path) else ParquetShard(Path(path), groups)


def open_photos(path: str | os.PathLike[str], groups: RowGroups | None = None) -> Shard:
    """As :func:`open_shard`, but only for the photos: all of them, whatever is said of them or not, and
    records that are empty."""
    return TarPhotos(Path(path)) if _is_tar(path) else ParquetPhotos(Path(path), groups)


def _is_tar(path: str | os.PathLike[str]) -> bool:
    suffix = Path(path).suffix.lower()
    if suffix not in SHARD_SUFFIXES:
        raise UsageError(f"{path}: not a shard, its name must end in {' or '.join(SHARD_SUFFIXES)}")
    return suffix == ".tar"


def named_by(path: Path) -> list[Path]:
    """What ``path`` is the name of, or else a pattern for (``*``, ``?``, ``[...]``), sorted."""
    return [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path)))]  # noqa: PTH207


def find_shards(path: str | os.PathLike[str], split: str | None = None) -> list[Path]:
    """The shards that ``path`` names, sorted: a file, a pattern (``*``, ``?``, ``[...]``), or a folder.

    Of a folder, ``split`` takes those named after it, like ``train-00000.tar`` or
    ``train-00000-of-00042.parquet``; a pattern or a file has said already which. Raises UsageError if there
    is none.
    """
    path = Path(path)
    if not path.is_dir():
        shards = [file for file in named_by(path) if file.suffix.lower() in SHARD_SUFFIXES]
        if not shards:
            raise UsageError(f"{path}: no such shard")
        return shards
    shards = shards_at_top(path)
    if not shards:
        raise UsageError(f"{path}: no shards in this folder ({', '.join(SHARD_SUFFIXES)})")
    if split:
        named = re.compile(re.escape(split) + r"(?:[-_.]?\d.*)?", re.DOTALL)
        selected = [file for file in shards if named.fullmatch(file.stem)]
        if not selected:
            raise UsageError(f"{path}: no shards of split {split!r}; the first is {shards[0].name}")
        return selected
    return shards
