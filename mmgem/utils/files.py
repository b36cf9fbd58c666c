"""Atomic writes, the lock of a folder that is written, and the user's cache folder."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from mmgem.errors import UsageError

NEW, OLD = ".mmgem-new", ".mmgem-old"  # siblings of a folder that is being replaced; nobody else's names


def cache_home() -> Path:
    """``$MMGEM_CACHE``, or ``mmgem`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("MMGEM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmgem"


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) so that readers see the old file or the new one, never a part."""
    write_atomic_bytes(path, text.encode("utf-8"))


def write_atomic_bytes(path: Path, data: bytes) -> None:
    """:func:`write_atomic` of bytes."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write into a temporary sibling, then put it in ``folder``'s place.

    A kill at any moment leaves the old folder or the new one under a name that is read: a folder is only
    ever renamed once it is complete. Leftovers of an earlier kill are removed, and what ``fill`` wrote if it
    raises.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = folder.with_name(folder.name + NEW), folder.with_name(folder.name + OLD)
    for leftover in (new, old):
        if leftover.exists() and (leftover != old or folder.exists()):
            shutil.rmtree(leftover)
    if old.exists():
        old.rename(folder)
    new.mkdir()
    try:
        fill(new)
    except Exception:
        shutil.rmtree(new, ignore_errors=True)
        raise
    for file in new.rglob("*"):
        if file.is_file():
            with file.open("rb") as f:
                os.fsync(f.fileno())
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    if old.exists():
        shutil.rmtree(old)


def replace_folder(
    folder: Path, fill: Callable[[Path], None], ours: Callable[[Path], bool], what: str
) -> None:
    """:func:`write_folder`, if ``folder`` is nothing yet, an empty folder, or ``ours``: ``what`` is written.

    Raises ``UsageError``, before anything is done, if it is something else: what people keep is never
    replaced.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder}: is there, and no folder; name another")
    if folder.exists() and any(folder.iterdir()) and not ours(folder):
        raise UsageError(f"{folder}: holds other things than {what}; name another folder, or an empty one")
    write_folder(folder, fill)


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are of one file; not if one of them is none."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def folder_bytes(folder: Path) -> int:
    """Size of all files of a folder and those below it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def lock_folder(folder: Path) -> sqlite3.Connection | None:
    """Take ``folder/lock``: SQLite's own file lock, on every system, freed on close or when the process dies.

    None if another process holds it. Raises OSError or sqlite3.Error if it cannot be made.
    """
    lock = sqlite3.connect(folder / "lock", isolation_level=None, timeout=0)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        if "locked" in str(error):
            return None
        raise
    return lock
