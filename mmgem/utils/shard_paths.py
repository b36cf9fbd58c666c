"""Which paths name shards, told by their names alone."""

from __future__ import annotations

import os
from pathlib import Path

SHARD_SUFFIXES = (".tar", ".parquet")


def is_shards(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` names shards: such a file, a pattern of them, or a folder with some at its top."""
    path = Path(path)
    return path.suffix.lower() in SHARD_SUFFIXES or (path.is_dir() and bool(shards_at_top(path)))


def shards_at_top(folder: Path) -> list[Path]:
    """The shards in ``folder`` itself, sorted; hidden files are none."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SHARD_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
