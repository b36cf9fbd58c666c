"""What a disk complains about when it takes no more, in whatever words a library passes it on."""

from __future__ import annotations

import errno
import re
import sqlite3
from collections.abc import Iterator

_KINDS = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk full (quota exceeded)",
    errno.EROFS: "read-only file system",
    errno.EFBIG: "file too large for this disk or its limits",
    errno.EIO: "disk full, over its quota or failing",
}
_NOT_WRITTEN = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_TRUNCATE)
_PHRASES = {
    # In turn: the C library and what passes its words on, Rust, SQLite, NumPy, Windows.
    errno.ENOSPC: r"no space left on device|os error 28\b|database or disk is full"
    r"|\d+ requested and \d+ written|not enough space on the disk",
    errno.EDQUOT: r"disk quota exceeded|os error 122\b",
    errno.EROFS: r"read-only file system|os error 30\b",
    errno.EFBIG: r"file too large|os error 27\b",
    errno.EIO: r"failed to serialize into stream",  # usearch
}
_FULL = {number: re.compile(rf"(?:\[errno \d+\] )?(?:{p})", re.IGNORECASE) for number, p in _PHRASES.items()}
_UNSAID = re.compile("disk I/O error")  # SQLite, of reading as well: what it was, its code tells
_LEFT = re.compile(r"(?:[:\s(]|\bcannot be (?:written|locked)|\bI/O error|\bWinError \d+)+$", re.IGNORECASE)


def disk_errno(error: BaseException) -> int | None:
    """ENOSPC, EDQUOT, EROFS or EFBIG if that is what ``error`` itself says, by number or in words; EIO for
    what could not be written and does not say why."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _KINDS and error.errno != errno.EIO else None
    if getattr(error, "sqlite_errorcode", None) in _NOT_WRITTEN:
        return errno.EIO
    return next((number for number, phrase in _FULL.items() if phrase.search(str(error))), None)


def disk_problem(error: BaseException) -> str | None:
    """``disk full: PATH``, or another such line, if that is what ``error`` or what it comes from says; None
    if they say something else."""
    chain = list(_chain(error))
    number = next((number for each in chain if (number := disk_errno(each)) is not None), None)
    if number is None:
        return None
    names = (each.filename for each in chain if isinstance(each, OSError) and each.filename is not None)
    place = next(names, None) or next(filter(None, map(_before_complaint, chain)), None)
    return _KINDS[number] + (f": {place}" if place else "")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _before_complaint(error: BaseException) -> str:
    """What a message says before the complaint: the name of a file, as our own errors begin."""
    text = " ".join(str(error).split())
    phrases = (*_FULL.values(), _UNSAID)
    found = next((match for phrase in phrases if (match := phrase.search(text))), None)
    return _LEFT.sub("", text[: found.start()]) if found else ""
