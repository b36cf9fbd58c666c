"""``mmgem watch``: what it keeps up to date is what ``mmgem index`` makes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny import save_photo, save_photos

from mmgem.cli.main import main
from mmgem.data.image_kinds import readable_suffixes
from mmgem.data.moments import VIDEO_SUFFIXES
from mmgem.search import watch as watch_module
from mmgem.search.index_files import stored_folders, stored_model, write_lock
from mmgem.search.search import PhotoIndex

pytest.importorskip("watchfiles")
ROOT = Path(__file__).parents[1]


def contents(out: Path) -> dict[str, np.ndarray]:
    """The vector of each photo by its path."""
    index = PhotoIndex.open(out)
    return {str(path): index.vectors[entry] for entry, path in enumerate(index.paths)}


class Watching:
    """A ``mmgem watch`` in a process of its own."""

    def __init__(self, *argv: object) -> None:
        code = (
            "import sys\nfrom mmgem.search import watch\n"
            "watch._DEBOUNCE_MS, watch.LOOK_SECONDS = 300, 0.4\n"
            "watch.watch_folders.__defaults__ = (None, 0.4)\n"
            "from mmgem.cli.main import main\nsys.exit(main(['watch', *sys.argv[1:]]))"
        )
        command = [sys.executable, "-c", code, *map(str, argv)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background processes ignore it, and so do those they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        self.out, self.err = list[str](), list[str]()
        self.readers = [
            threading.Thread(target=self._read, args=(stream, lines))
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self.readers:
            reader.start()

    def _read(self, stream: Iterator[str], lines: list[str]) -> None:
        lines.extend(line.rstrip("\n") for line in stream)

    def until(self, done: Callable[[], bool]) -> None:
        """Wait until something holds."""
        for _ in range(3000):
            if done():
                return
            assert self.process.poll() is None, self.err
            time.sleep(0.1)
        pytest.fail(f"{self.out} {self.err}")

    def said(self, text: str) -> bool:
        """Whether a line has been printed."""
        return any(text in line for line in [*self.out, *self.err])

    def interrupt(self) -> int:
        """Press Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(120)
        for reader in self.readers:
            reader.join(60)
        return code


@contextmanager
def watching(*argv: object) -> Iterator[Watching]:
    started = Watching(*argv)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    save_photos(tmp_path / "photos", 4)
    return tmp_path / "photos"


def test_what_it_keeps_is_what_index_makes(photos: Path, tmp_path: Path, tiny_model_folder: Path) -> None:
    out = tmp_path / "kept.idx"
    with watching(photos, "--out", out, "-m", tiny_model_folder) as process:
        process.until(lambda: process.said("stop with Ctrl-C"))
        assert process.out[0].endswith("4 embedded; 4 photos")
        save_photo(photos / "deep" / "new.png", 9)
        process.until(lambda: process.said(" 1 embedded; 5 photos"))
        (photos / "0000.png").rename(photos / "deep" / "moved.png")
        process.until(lambda: process.said(" 1 moved or copied; 5 photos"))
        save_photo(photos / "0001.png", 77)
        (photos / "0002.png").unlink()
        process.until(lambda: len(contents(out)) == 4 and process.said("removed; 4 photos"))
        (photos / "notes.txt").write_text("no photo")
        (photos / "bad.jpg").write_bytes(b"\xff\xd8\xff no photo")
        process.until(lambda: process.said(f"skipped {photos / 'bad.jpg'}: "))
        shutil.move(photos / "deep", tmp_path / "elsewhere")
        process.until(lambda: process.said("2 removed; 2 photos"))
        assert process.interrupt() == 0
    assert process.err[-1] == "mmgem: stopped watching"
    assert main(["index", str(photos), "--out", str(tmp_path / "new.idx"), "-m", str(tiny_model_folder)]) == 0
    kept, new = contents(out), contents(tmp_path / "new.idx")
    assert kept.keys() == new.keys() and len(new) == 2
    for path, vector in new.items():
        np.testing.assert_allclose(kept[path], vector, atol=1e-6)  # batches differ


def test_it_waits_for_another_writer_and_for_a_folder_that_is_gone(
    photos: Path, tmp_path: Path, tiny_model_folder: Path
) -> None:
    out = tmp_path / "kept.idx"
    with watching(photos, "--out", out, "-m", tiny_model_folder) as process:
        process.until(lambda: process.said("stop with Ctrl-C"))
        lock = write_lock(out)
        save_photo(photos / "new.png", 9)
        process.until(lambda: process.said("waiting: "))
        time.sleep(1)
        lock.close()
        process.until(lambda: process.said("1 embedded; 5 photos"))
        away = photos.rename(tmp_path / "away")
        process.until(lambda: sum("waiting: " in line for line in process.err) == 2)
        assert len(contents(out)) == 5
        save_photo(away / "newer.png", 10)
        away.rename(photos)
        process.until(lambda: process.said("1 embedded; 6 photos"))
        save_photo(photos / "newest.png", 11)
        process.until(lambda: process.said("1 embedded; 7 photos"))
        assert process.interrupt() == 0
    assert sum("waiting: " in line for line in process.err) == 2


def test_which_changes_count(tmp_path: Path) -> None:
    own, roots = tmp_path / "p" / "own.idx", [tmp_path / "p"]
    suffixes = readable_suffixes() + VIDEO_SUFFIXES
    (tmp_path / "p" / "a.folder").mkdir(parents=True)
    (tmp_path / "p" / "film.wav").touch()

    def counts(name: str, modified: bool = False) -> bool:
        return watch_module._counts(tmp_path / "p" / name, modified, own, roots, suffixes)

    assert counts("a.JPG") and counts("a.jpg", True) and counts("nameless") and counts("a.folder")
    assert counts("gone.folder") and counts("film.mp4", True)
    assert not counts("film.wav") and not counts("film.wav", True) and not counts("a.folder", True)
    assert not counts(".hidden/a.jpg") and not counts("own.idx/photos.sqlite3") and not counts("../b.jpg")


def test_what_an_index_is_of(photos: Path, tmp_path: Path, tiny_model_folder: Path) -> None:
    save_photo(tmp_path / "more" / "a.png")
    out, argv = tmp_path / "kept.idx", ["index", str(photos), str(tmp_path / "more")]
    assert stored_folders(out) == [] and stored_model(out) is None
    assert main([*argv, "--out", str(out), "-m", str(tiny_model_folder)]) == 0
    assert stored_folders(out) == [photos, tmp_path / "more"]
    assert stored_model(out) == str(tiny_model_folder)
    assert main(["index", "--out", str(out)]) == 0, "by the index's own model"
