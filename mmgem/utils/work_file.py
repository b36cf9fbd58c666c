"""A file of results that grows, a JSON line each, and is gone on with after a kill.

Lines are appended in blocks and waited for on the disk; what a kill cut off is dropped when the file is
opened again. Its first line says of what the results are: those of something else are begun again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmgem.errors import DataError
from mmgem.utils.files import write_atomic
from mmgem.utils.locks import FileLock


class WorkFile:
    """Results in ``path`` of what ``head`` describes (JSON); ``count``: how many are there already.

    Held against other processes until :meth:`close`. Raises ``BusyError`` if one has it, ``DataError`` for a
    file of that name that is no such file, ``OSError`` if it cannot be written.
    """

    def __init__(self, path: Path, head: dict[str, Any]):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path.with_name(f"{path.name}.lock"), path)
        try:
            self.count = self._open(json.loads(json.dumps(head)))
        except BaseException:
            self._lock.close()
            raise

    def _open(self, head: dict[str, Any]) -> int:
        if self.path.exists():
            with self.path.open("rb") as file:
                first = file.readline()
                if not _is_head(first):
                    raise DataError(f"{self.path}: is there, and not what mmgem writes; name another")
                if json.loads(first)["of"] == head:
                    count, end = 0, len(first)
                    for line in file:
                        if not _is_whole(line):
                            break
                        count, end = count + 1, end + len(line)
                    os.truncate(self.path, end)
                    return count
        write_atomic(self.path, json.dumps({"of": head}) + "\n")
        return 0

    def keep(self, count: int) -> None:
        """Drop all but the first ``count`` results."""
        if count < self.count:
            with self.path.open("rb") as file:
                for _ in range(1 + count):
                    file.readline()
                end = file.tell()
            os.truncate(self.path, end)
            self.count = count

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add results; they are on the disk when this returns."""
        lines = [json.dumps(row).encode() + b"\n" for row in rows]
        with self.path.open("ab") as file:
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self.count += len(lines)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All results, in order."""
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                yield json.loads(line)

    def close(self) -> None:
        """Let others have it."""
        self._lock.close()

    def __enter__(self) -> WorkFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_head(line: bytes) -> bool:
    try:
        return list(json.loads(line)) == ["of"]
    except (ValueError, TypeError):
        return False


def _is_whole(line: bytes) -> bool:
    """Whether a line was not cut: an object and its end."""
    if not line.endswith(b"}\n"):
        return False
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
