"""Writes that are whole or not at all, whatever is killed or loses power; the user's cache, and config."""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar

from mmgem.errors import MMGEMError, UsageError
from mmgem.utils.disk import disk_errno
from mmgem.utils.locks import lock_folder

T = TypeVar("T")
NEW, OLD = ".mmgem-new", ".mmgem-old"  # siblings of a folder that is being replaced; nobody else's names
_READS = 20


def cache_home() -> Path:
    """``$MMGEM_CACHE``, or ``mmgem`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("MMGEM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmgem"


def user_config_file() -> Path:
    """``$MMGEM_CONFIG``, or ``mmgem/config.toml`` under ``$XDG_CONFIG_HOME`` or ``~/.config``."""
    if own := os.environ.get("MMGEM_CONFIG"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "mmgem" / "config.toml"


class IrregularFileError(OSError):
    """A pipe, a device or a socket where a file was looked for."""


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file to read its bytes. Raises ``OSError`` as ``open`` does, and :class:`IrregularFileError`
    for what is no regular file: a pipe or a device may hold who opens or reads it forever."""
    return open(path, "rb", opener=_open_descriptor)


def _open_descriptor(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise IrregularFileError(errno.EINVAL, "not a regular file", os.fspath(path))
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


class _PlainFile(io.FileIO):
    """A file that does not tell its number."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")

    def sync(self) -> None:
        """Wait until what has been written is on the disk."""
        os.fsync(super().fileno())


def create_file(path: Path) -> BinaryIO:
    """Open a new file to be written, so that a full disk is noticed.

    What libraries write past Python, to a file's number, may be cut without an error: NumPy does not hear of
    what C's buffers could not get rid of, nor Pillow of a write that took less than all. So this one has no
    number. Raises ``FileExistsError`` if it is there.
    """
    return io.BufferedWriter(_PlainFile(path, "x"))


@contextmanager
def atomic_file(path: Path, before_move: Callable[[Path], object] | None = None) -> Iterator[BinaryIO]:
    """A file to write, which becomes ``path`` when the block is left: readers see the old file or the new
    one, never a part, also after a power failure.

    It has a temporary name of its own until then, so two writers do not meet: the last one counts. If the
    block raises it is removed. ``before_move`` is called with its temporary name when all of it is on the
    disk. An ``OSError`` of the writing says the name ``path``.
    """
    temporary = _temporary(path)
    try:
        raw = _PlainFile(temporary, "x")
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            raw.sync()
        if before_move is not None:
            before_move(temporary)
        move_durably(temporary, path)
    except Exception as error:
        _raise_named(error, path, temporary)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) as :func:`atomic_file` does."""
    write_atomic_bytes(path, text.encode("utf-8"))


def write_atomic_bytes(path: Path, data: bytes) -> None:
    """:func:`write_atomic` of bytes."""
    with atomic_file(path) as file:
        file.write(data)


def move_durably(source: Path, target: Path) -> None:
    """Give a file or folder another name, in the place of a file that has it; a power failure does not undo
    it. What it holds has to be on the disk already."""
    source.replace(target)
    sync_folder(target.parent)


def sync_file(path: Path) -> None:
    """Wait until what has been written to a file, through whatever handle, is on the disk."""
    with path.open("rb+" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can tell."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives have no such thing
            raise
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a kill in between leaves nothing of its name."""
    old = folder.with_name(folder.name + OLD)
    if old.exists():
        shutil.rmtree(old)
    folder.rename(old)
    shutil.rmtree(old)


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write into a temporary sibling, then put it in ``folder``'s place.

    A kill or a power failure at any moment leaves the old folder or the new one under a name that is read: a
    folder is only ever renamed once it is complete. Leftovers of an earlier kill are removed, and what
    ``fill`` wrote if it raises. Other writers of the folder wait, as this one does for them (see
    :func:`mmgem.utils.locks.lock_folder`).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        _write_folder(folder, fill)


def _write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    new, old = folder.with_name(folder.name + NEW), folder.with_name(folder.name + OLD)
    for leftover in (new, old):
        if leftover.exists() and (leftover != old or folder.exists()):
            shutil.rmtree(leftover)
    if old.exists():
        old.rename(folder)
    try:
        new.mkdir()
        fill(new)
        for path in new.rglob("*"):
            if path.is_file():
                sync_file(path)
            elif path.is_dir():
                sync_folder(path)
        sync_folder(new)
    except Exception as error:
        shutil.rmtree(new, ignore_errors=True)
        _raise_named(error, folder, new)
    if folder.exists():
        folder.rename(old)
    move_durably(new, folder)  # the old one goes when the new one is sure to stay
    if old.exists():
        shutil.rmtree(old)


def is_folder(folder: Path) -> bool:
    """Whether ``folder`` is there, perhaps under its old name while it is being replaced."""
    return folder.is_dir() or folder.with_name(folder.name + OLD).is_dir() or folder.is_dir()


def read_again_if_replaced(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """``read`` of a folder, called again if the folder was replaced meanwhile: what it returns, or raises,
    is of one version."""

    @wraps(read)
    def reading(folder: Path) -> T:
        for _ in range(_READS):
            before = _version(folder)
            try:
                result = read(folder)
            except (MMGEMError, OSError):
                if _version(folder) == before:
                    raise
            else:
                if _version(folder) == before:
                    return result
        return read(folder)

    return reading


def _version(folder: Path) -> tuple[str, int, int] | None:
    for place in (folder, folder.with_name(folder.name + OLD)):
        with suppress(OSError):
            found = place.stat()
            return place.name, found.st_dev, found.st_ino
    return None


def replace_folder(
    folder: Path, fill: Callable[[Path], None], ours: Callable[[Path], bool], what: str
) -> None:
    """:func:`write_folder`, if ``folder`` is nothing yet, an empty folder, or ``ours``: ``what`` is written.

    Raises ``UsageError``, before anything is done, if it is something else: what people keep is never
    replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        _check_replaceable(folder, ours, what)
        _write_folder(folder, fill)


def _check_replaceable(folder: Path, ours: Callable[[Path], bool], what: str) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder}: is there, and no folder; name another")
    if folder.exists() and any(folder.iterdir()) and not ours(folder):
        raise UsageError(f"{folder}: holds other things than {what}; name another folder, or an empty one")


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are of one file; not if one of them is none."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def folder_bytes(folder: Path) -> int:
    """Size of all files of a folder and those below it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _raise_named(error: Exception, path: Path, temporary: Path) -> NoReturn:
    """Raise what went wrong while ``temporary`` was written: what the disk says, with the name it was for."""
    number = None if isinstance(error, MMGEMError) else disk_errno(error)
    if number is not None and not (isinstance(error, OSError) and error.errno):
        raise OSError(number, os.strerror(number), str(path)) from error
    if isinstance(error, OSError) and error.errno is not None:
        name = None if error.filename is None else os.fsdecode(error.filename)
        if name is None or Path(name).is_relative_to(temporary):
            error.filename, error.filename2 = str(path), None
    raise error


def _temporary(path: Path) -> Path:
    """A name beside ``path`` that nobody else writes to; within what file systems take."""
    return path.with_name(f"{temporary_stem(path)}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def temporary_stem(path: Path) -> str:
    """What the names of what :func:`atomic_file` writes for ``path`` begin with; a token and ``tmp`` follow,
    each after a full stop. What a killed process leaves is found by it."""
    return f".{path.name[:40]}"
