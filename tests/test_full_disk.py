"""A disk that takes no more is said to be full, whoever noticed it first."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from tiny import save_photos, save_tiny_model

from mmgem.cli.main import main
from mmgem.errors import DataError, SearchIndexError, UsageError
from mmgem.utils.disk import disk_problem
from mmgem.utils.files import atomic_file, write_folder

C, RUST, SQLITE = (
    "No space left on device",
    "No space left on device (os error 28)",
    "database or disk is full",
)
UNSAID = "disk full, over its quota or failing"
FULL = OSError(errno.ENOSPC, "No space left on device", "/big/file")


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


def not_written() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FULL, "disk full: /big/file"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/q"), "disk full (quota exceeded): /q"),
        (OSError(errno.EROFS, "Read-only file system", "/ro"), "read-only file system: /ro"),
        (OSError(errno.EFBIG, "File too large", "/f"), "file too large for this disk or its limits: /f"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk full"),
        (OSError("4096 requested and 1024 written"), "disk full"),  # np.save
        (SafetensorError(f"I/O error: {RUST}"), "disk full"),
        (Exception(RUST), "disk full"),  # tokenizers
        (caused(SearchIndexError(f"/idx: {SQLITE}"), sqlite3.OperationalError(SQLITE)), "disk full: /idx"),
        (caused(UsageError(f"/out: cannot be written: {C}"), OSError(errno.ENOSPC, C)), "disk full: /out"),
        (caused(UsageError("/out: cannot be written: x"), FULL), "disk full: /big/file"),
        (caused(SearchIndexError("/idx: disk I/O error"), not_written()), f"{UNSAID}: /idx"),
        (RuntimeError(f"/idx/a.usearch: [Errno 28] {C}"), "disk full: /idx/a.usearch"),
        (SearchIndexError("/a.usearch: Failed to serialize into stream"), f"{UNSAID}: /a.usearch"),
        (SearchIndexError("/idx: disk I/O error"), None),  # of reading
        (OSError(errno.EIO, "Input/output error", "/x"), None),
        (OSError(errno.ENOENT, "No such file or directory", "/gone"), None),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), None),
        (DataError("captions.jsonl:3: box is missing"), None),
    ],
)
def test_all_words_for_it(error: Exception, said: str | None) -> None:
    assert disk_problem(error) == said


def test_what_was_dealt_with_is_not_said_again() -> None:
    try:
        try:
            raise FULL
        except OSError:
            raise DataError("a.jsonl: empty") from None
    except DataError as error:
        assert disk_problem(error) is None


def test_a_short_write_of_an_array_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, atomic_file(tmp_path / "v.npy"):
        raise OSError("4096 requested and 1024 written")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "v.npy"))


def test_a_library_that_finds_the_disk_full_names_the_folder(tmp_path: Path) -> None:
    def fill(new: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError) as caught:
        write_folder(tmp_path / "model", fill)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


@needs_full
def test_output_to_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mmgem", "--version"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "mmgem: error: disk full\n")


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from mmgem.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
@pytest.mark.parametrize("command", ["index", "export", "embed"])
def test_files_that_may_not_grow_are_one_line(command: str, model: Path, tmp_path: Path) -> None:
    """The command's files stop in the middle: an error of one line, and nothing of them left."""
    out = tmp_path / "out.npy"
    count = 300 if command == "embed" else 3
    photos = save_photos(tmp_path / "photos", count)
    argv, limit = {
        "index": (["index", str(tmp_path / "photos"), "--out", str(out), "--model", str(model)], 9000),
        "export": (["export", str(model), str(out)], 4000),
        "embed": (["embed", *map(str, photos), "--out", str(out), "--model", str(model)], 9000),
    }[command]
    environment = os.environ | {"MMGEM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *argv], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mmgem: error")]
    assert ("file too large" in line or "disk full" in line) and str(out) in line
    assert command == "index" or sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    assert main(argv) == 0
    assert np.load(out).shape == (count, 8) if command == "embed" else out.is_dir()
