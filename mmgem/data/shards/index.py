"""Where in a shard what is: found once by a scan, then kept beside the user's other caches.

A file of its own for every shard, number of columns and kind: one line of JSON, the numbers as raw int64, the
names. It counts only for the size, times and inode of the shard it was made of, and is replaced when the
shard changes.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.errors import DataError, UsageError
from mmgem.utils.checksums import sealed_json, unsealed_json
from mmgem.utils.files import atomic_file, cache_home

_VERSION = 2  # 1: tar members with dots in their names were left out


@dataclass
class Index:
    """``rows``: ``(samples, columns)`` int64, the first column 1 where there are captions; ``names``: one
    for each row; ``blocks``: samples that lie together; ``problems``: what was left out."""

    rows: np.ndarray
    names: list[str]
    blocks: list[int]
    problems: list[str]


def indexed(path: Path, columns: int, scan: Callable[[Path], Index], kind: str = "") -> Index:
    """The index of ``path``: the kept one, or that of ``scan``, which is then kept if the cache can be
    written. ``kind``: tells indexes of one file apart. Raises UsageError if there is no such file, DataError
    for what ``scan`` says."""
    path = path.absolute()
    try:
        stat = path.stat()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    stamp = [_VERSION, columns, os.fsdecode(path), stat.st_size, stat.st_mtime_ns]
    stamp += [stat.st_ctime_ns, stat.st_ino]
    digest = hashlib.blake2b(os.fsencode(path), digest_size=12).hexdigest()
    file = cache_home() / "shards" / f"{digest}-{columns}{kind}.index"
    index = _load(file, stamp, columns)
    if index is None:
        try:
            index = scan(path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error
        with suppress(OSError):
            _save(file, stamp, index)
    return index


def _load(file: Path, stamp: list[Any], columns: int) -> Index | None:
    try:
        line, _, rest = file.read_bytes().partition(b"\n")
        head = unsealed_json(line.decode())
        if head["stamp"] != stamp or head["rest"] != zlib.crc32(rest):
            return None
        end = head["samples"] * columns * 8
        rows = np.frombuffer(rest[:end], np.int64).reshape(head["samples"], columns)
        names = rest[end:].decode("utf-8", "surrogateescape").split("\0")[:-1]
        if len(names) != len(rows):
            return None
        return Index(rows, names, head["blocks"], head["problems"])
    except (OSError, ValueError, KeyError, TypeError):  # absent, or not ours: it is made again
        return None


def _save(file: Path, stamp: list[Any], index: Index) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    names = "".join(f"{name}\0" for name in index.names)
    rest = index.rows.astype(np.int64).tobytes() + names.encode("utf-8", "surrogateescape")
    head = {
        "stamp": stamp,
        "samples": len(index.rows),
        "blocks": index.blocks,
        "problems": index.problems,
        "rest": zlib.crc32(rest),
    }
    with atomic_file(file) as out:
        out.write(sealed_json(head).encode() + b"\n")
        out.write(rest)
