"""The one lock: others are refused by name or wait, and nobody waits for the dead."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mmgem.errors import BusyError
from mmgem.utils import locks
from mmgem.utils.files import replace_folder, write_folder
from mmgem.utils.locks import FileLock, holder_of, lock_file, lock_folder

HOLD = """
import os, sys, time
from pathlib import Path
from mmgem.utils.locks import FileLock
with FileLock(Path(sys.argv[1])):
    child = 0
    if len(sys.argv) > 2:
        child = os.fork() or time.sleep(600)
    print(child, flush=True)
    time.sleep(600)
"""


def holder(path: Path, *fork: str) -> tuple[subprocess.Popen[str], int]:
    """Another process that holds the lock ``path`` until it is killed; with ``fork`` it has a child, which
    lives longer. Returns it and the child's number."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *fork], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_another_process_is_named_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process, _ = holder(path)
    who = f"process {process.pid} on {socket.gethostname()}"
    try:
        with pytest.raises(BusyError, match=f"out: {who} is writing here") as refused:
            FileLock(path, Path("out"))
        assert refused.value.holder == who == holder_of(path)
    finally:
        process.kill()
        process.wait()
    assert holder_of(path) is None
    with FileLock(path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process, child = holder(path, "fork")
    try:
        process.kill()
        process.wait()
        os.kill(child, 0)  # lives
        FileLock(path).close()
    finally:
        os.kill(child, signal.SIGKILL)


def test_who_waits_says_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lock"
    first = FileLock(path)
    threading.Timer(1.5, first.close).start()
    with caplog.at_level(logging.INFO, "mmgem"), FileLock(path, Path("the-corpus"), wait=True):
        said = [record.getMessage() for record in caplog.records]
    who = f"process {os.getpid()} on {socket.gethostname()}"
    assert said == [f"waiting for {who}, which is writing the-corpus"]


def test_threads_take_turns_though_the_file_comes_and_goes(tmp_path: Path) -> None:
    count, inside, most = tmp_path / "count", [0], [0]
    count.write_text("0")

    def work() -> None:
        for _ in range(20):
            with lock_folder(tmp_path / "folder"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                number = int(count.read_text())
                time.sleep(0.0005)
                count.write_text(str(number + 1))
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (count.read_text(), most[0]) == ("120", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_thread_that_holds_a_folder_goes_on_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with lock_folder(folder):
        with lock_folder(folder):
            assert holder_of(lock_file(folder)) is not None
        assert holder_of(lock_file(folder)) is not None
        write_folder(folder, lambda new: (new / "a").write_text("a") and None)
        with pytest.raises(BusyError), lock_folder(folder, wait=False):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_link_and_its_folder_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert lock_file(tmp_path / "link") == lock_file(tmp_path / "folder")


def test_where_nothing_can_be_written_beside_it_the_lock_is_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain = tmp_path / "folder", locks._open
    folder.mkdir()

    def refusing(path: Path) -> int:
        if path.parent == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(locks, "_open", refusing)
    with lock_folder(folder), lock_folder(folder):
        assert [path.name for path in folder.iterdir()] == [".mmgem-lock"]
    assert list(folder.iterdir()) == []


def test_a_disk_without_locks_is_written_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(descriptor: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "_lock", unsupported)
    with FileLock(tmp_path / "lock"):
        pass
    assert "has no locks; let only one process write here" in caplog.text


def test_writers_of_a_folder_come_one_after_the_other(tmp_path: Path) -> None:
    """Before, both used one temporary folder, and one of them failed or took the other's files."""
    out, barrier, failed = tmp_path / "out", threading.Barrier(4), []

    def write(n: int) -> None:
        def fill(new: Path) -> None:
            for name in ("a", "b"):
                (new / name).write_text(str(n))
                time.sleep(0.01)

        barrier.wait()
        try:
            for _ in range(5):
                replace_folder(out, fill, lambda folder: True, "files")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert (out / "a").read_text() == (out / "b").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
