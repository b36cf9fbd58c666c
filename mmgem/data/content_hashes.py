"""Hashes of the whole content of files, remembered while the files stay as they are.

A hash is remembered by path, size, modification time, time of change and inode; the time of change is one
that no program can set, so a file that was written again is read again. Copying or touching files costs one
more read of them, never another hash.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mmgem.utils.checksums import sealed_json, unsealed_json
from mmgem.utils.files import open_regular, write_atomic

_THREADS = 4
SETTLED_NS = 2_000_000_000
"""A file that changed less long ago is not remembered: another change might have the same time."""

Identity = list[str | int]


def content_hash(path: Path) -> str:
    """BLAKE2b-128 of all bytes of a file, in hex; "" if it cannot be read."""
    try:
        with open_regular(path) as file:
            return _hash(file)
    except OSError:
        return ""


def content_digest(file: BinaryIO) -> bytes:
    """BLAKE2b-128 of all bytes of an open file."""
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()  # type: ignore[arg-type]


def _hash(file: BinaryIO) -> str:
    return content_digest(file).hex()


class ContentHashes:
    """What is remembered in ``file`` (JSON), which is made when there is something to remember."""

    def __init__(self, file: Path):
        self.file = file
        self.known: dict[str, list[int | str]] = {}
        with suppress(OSError, ValueError, AttributeError):
            self.known = dict(unsealed_json(file.read_text(encoding="utf-8"))["files"])

    def identities(self, paths: Sequence[Path]) -> list[Identity]:
        """Name (it seeds the crops), size in bytes and hash of all bytes of each file; size -1 for one that
        cannot be read."""
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(self._identify, paths))
        fresh = {key: entry for _, key, entry in found if entry is not None and self.known.get(key) != entry}
        if fresh:
            self.known |= fresh
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.file, sealed_json({"files": self.known}))
        return [identity for identity, _, _ in found]

    def _identify(self, path: Path) -> tuple[Identity, str, list[int | str] | None]:
        """The identity of a file, its key and, if it is to be remembered, its entry."""
        key = str(path.absolute())
        try:
            with open_regular(path) as file:
                stat = os.fstat(file.fileno())
                stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
                entry = self.known.get(key)
                if entry is not None and entry[:-1] == stamp:
                    return [path.name, stat.st_size, str(entry[-1])], key, None
                digest = _hash(file)
        except OSError:
            return [path.name, -1, ""], key, None
        settled = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > SETTLED_NS
        return [path.name, stat.st_size, digest], key, [*stamp, digest] if settled else None
