"""The one lock of what is written: a file that the system frees when its holder ends, however it ends.

    NAME.mmgem-lock    beside a folder that is replaced as a whole (:func:`lock_folder`)
    FOLDER/lock        inside one that grows (an index, a bulk output, a training run)

Notable choices. The lock is the system's (``flock``; on Windows a locked byte), so a killed process holds
nothing, and the file only says who has it, for the one who waits. It is removed when it is let go, so nothing
is left in people's folders; who then finds that the file he has locked is no longer the one of that name
takes the new one. A forked child does not keep its parent's locks.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmgem.errors import BusyError

logger = logging.getLogger(__name__)

SUFFIX = ".mmgem-lock"
_POLL = 0.05
_PATIENCE = 1.0  # seconds after which a waiter says whom it waits for
_GRACE = 0.15  # seconds after which one who does not wait is refused: the holder may only have looked
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS)

_held: dict[str, FileLock] = {}
"""Locks of this process by path."""


class FileLock:
    """The lock ``path``, held from the moment it is made until :meth:`close`.

    With ``wait`` it waits for another holder, and logs after a second for whom; else raises ``BusyError``,
    which says who holds it. ``what`` is what its holder writes, for these lines. Raises ``OSError`` if the
    file cannot be made. Where the file system has no locks there is a warning and no lock.
    """

    def __init__(self, path: Path, what: Path | None = None, wait: bool = False) -> None:
        self.path, self.owner = path, threading.get_ident()
        self._pid = os.getpid()
        self._descriptor = self._take(what or path, wait)
        _held[str(path)] = self

    def close(self) -> None:
        """Let go. Once is enough; of a lock taken before a fork only the parent can."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None or os.getpid() != self._pid:
            return
        _held.pop(str(self.path), None)
        with suppress(OSError):  # gone with its folder, or Windows, which removes nothing that is open
            self.path.unlink()
        os.close(descriptor)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, what: Path, wait: bool) -> int | None:
        began, told = time.monotonic(), not wait
        while True:
            descriptor = _open(self.path)
            try:
                if _lock(descriptor):
                    if _is_still(descriptor, self.path):
                        _sign(descriptor)
                        return descriptor
                    os.close(descriptor)
                    continue
                holder = _read_holder(descriptor)
            except OSError as error:
                os.close(descriptor)
                if error.errno not in _UNSUPPORTED:
                    raise
                logger.warning(
                    "%s: its file system has no locks; let only one process write here", self.path.parent
                )
                return None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            if not wait and time.monotonic() - began > _GRACE:
                raise BusyError(f"{what}: {holder} is writing here", holder)
            if not told and time.monotonic() - began > _PATIENCE:
                logger.info("waiting for %s, which is writing %s", holder, what)
                told = True
            time.sleep(_POLL)


def lock_file(folder: Path) -> Path:
    """The lock of a folder that is replaced as a whole: beside it, wherever links to it are."""
    folder = folder.resolve()
    return folder.with_name(folder.name + SUFFIX)


@contextmanager
def lock_folder(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold ``folder``, which may not exist yet, against all others that write it.

    Within a thread that holds it already this does nothing. Where nothing can be written beside the folder
    its lock is in it. Raises ``BusyError`` if another holds it and ``wait`` is not set, ``OSError`` if it
    cannot be locked.
    """
    with lock_path(lock_file(folder), folder, wait, otherwise=folder / SUFFIX):
        yield


@contextmanager
def lock_path(
    path: Path, what: Path | None = None, wait: bool = True, otherwise: Path | None = None
) -> Iterator[None]:
    """:class:`FileLock` as a block: nothing within a thread that holds it already; ``otherwise`` is where the
    lock is if ``path`` cannot be written."""
    for place in filter(None, (path, otherwise)):
        held = _held.get(str(place))
        if held is not None and held.owner == threading.get_ident() and wait:
            yield
            return
    try:
        lock = FileLock(path, what, wait)
    except OSError as error:
        if error.errno not in _NO_PLACE or otherwise is None or not otherwise.parent.is_dir():
            raise
        lock = FileLock(otherwise, what, wait)
    with lock:
        yield


def holder_of(path: Path) -> str | None:
    """Who holds the lock ``path``; None if nobody does, or it cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return None if _lock(descriptor) else _read_holder(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY)  # what another user's killed process left


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one of this name, and not one that its last holder has removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Say in the file who holds it. A full disk is no reason not to."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())


def _read_holder(descriptor: int) -> str:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        signed = json.loads(os.read(descriptor, 4096))
        return f"process {int(signed['pid'])} on {signed['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far behind what is written, which others read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True
else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        """Whether the lock could be taken at once. Raises ``OSError`` where there are none."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        return True

    def _let_go_in_child() -> None:
        """A child has its parent's open files, and would keep the lock when its parent is gone."""
        for lock in _held.values():
            if lock._descriptor is not None:
                with suppress(OSError):
                    os.close(lock._descriptor)
                lock._descriptor = None
        _held.clear()

    os.register_at_fork(after_in_child=_let_go_in_child)
