"""The index of a folder: what is embedded and what is not, and what a killed run leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmgem.data.images import open_image
from mmgem.errors import SearchIndexError, UsageError
from mmgem.search import index as index_module
from mmgem.search import index_store as store_module
from mmgem.search.index import IndexReport, update_index
from mmgem.search.search import PhotoIndex


class PixelEmbedder:
    """The 4 x 4 thumbnail of a photo as its vector; remembers what it was given."""

    fingerprint = "pixels-1"
    dim = 48

    def __init__(self, during: Callable[[], object] = lambda: None) -> None:
        self.during = during
        self.embedded: list[str] = []

    def embed_images(self, images: Sequence[Path]) -> np.ndarray:
        self.during()
        thumbs = [np.asarray(open_image(path).resize((4, 4)), np.float32).ravel() for path in images]
        self.embedded += [path.name for path in images]
        vectors = np.stack(thumbs) - 127.5
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def paint(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((8, 8), Image.Resampling.NEAREST).save(path, "PNG")
    return path


def vector(seed: int) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        return PixelEmbedder().embed_images([paint(Path(folder, "x.png"), seed)])[0]


def update(
    out: Path, folder: Path, embedder: PixelEmbedder | None = None, batch: int = 4
) -> tuple[IndexReport, list[str]]:
    """Run an update; also return the names that went through the model, in order."""
    embedder = embedder or PixelEmbedder()
    report = update_index(out, folder, lambda: embedder, "pixels-1", model="tiny", batch=batch)
    return report, embedder.embedded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(10):
        paint(tmp_path / "photos" / f"{seed}.png", seed)
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "photos.idx"


def test_every_photo_is_found_by_its_own_vector(folder: Path, out: Path) -> None:
    report, embedded = update(out, folder)
    assert (report.photos, report.embedded, report.failed) == (10, 10, ())
    assert sorted(embedded) == [f"{seed}.png" for seed in range(10)]
    index = PhotoIndex.open(out)
    assert index.model == "tiny"
    for seed in range(10):
        best = index.search(vector(seed), k=1)[0]
        assert best.path == folder / f"{seed}.png"
        assert best.score == pytest.approx(1, abs=1e-5)


def test_nothing_new_needs_no_model(folder: Path, out: Path) -> None:
    update(out, folder)

    def no_model() -> PixelEmbedder:
        raise AssertionError("made a model although nothing changed")

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    report = update_index(out, folder, no_model, "pixels-1", model="tiny")
    assert (report.photos, report.unchanged, report.embedded) == (10, 10, 0)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_only_what_is_new_is_embedded(folder: Path, out: Path) -> None:
    update(out, folder)
    paint(folder / "deep" / "er" / "new.png", 77)
    paint(folder / "3.png", 33)
    report, embedded = update(out, folder)
    assert sorted(embedded) == ["3.png", "new.png"]
    assert (report.photos, report.embedded, report.unchanged) == (11, 2, 9)
    index = PhotoIndex.open(out)
    assert index.search(vector(77))[0].path == folder / "deep" / "er" / "new.png"
    assert index.search(vector(33))[0].path == folder / "3.png"
    assert index.search(vector(3))[0].score < 0.99  # what 3.png was is gone


def test_removed_moved_and_touched_files_need_no_model(folder: Path, out: Path) -> None:
    update(out, folder)
    (folder / "0.png").unlink()
    (folder / "sub").mkdir()
    (folder / "1.png").rename(folder / "sub" / "one.png")
    os.utime(folder / "2.png", (1, 1))
    report, embedded = update(out, folder)
    assert embedded == []
    assert (report.photos, report.reused, report.removed, report.unchanged) == (9, 2, 1, 7)
    index = PhotoIndex.open(out)
    assert set(index.paths) == {
        *(folder / f"{seed}.png" for seed in range(2, 10)),
        folder / "sub" / "one.png",
    }
    assert index.search(vector(1))[0].path == folder / "sub" / "one.png"


def test_copies_are_embedded_once_and_both_found(folder: Path, out: Path) -> None:
    shutil.copy(folder / "5.png", folder / "a copy.png")
    report, _ = update(out, folder)
    assert (report.photos, report.embedded, report.reused, report.unchanged) == (11, 10, 1, 0)
    shutil.copy(folder / "5.png", folder / "later copy.png")
    report, embedded = update(out, folder)
    assert (report.photos, report.reused, embedded) == (12, 1, [])
    index = PhotoIndex.open(out)
    best = index.search(vector(5), k=3)
    assert [hit.path.name for hit in best] == ["5.png", "a copy.png", "later copy.png"]
    assert len(index) == len(index.vectors) == len(index.paths) == 12


def test_bad_photos_are_reported_skipped_and_not_tried_again(folder: Path, out: Path) -> None:
    data = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(data[: len(data) // 2])
    (folder / "text.jpg").write_text("not a photo")
    report, embedded = update(out, folder, batch=32)
    assert [bad.path for bad in report.failed] == ["4.png", "text.jpg"]
    assert all(bad.reason and str(folder) not in bad.reason for bad in report.failed)
    assert (report.photos, report.embedded) == (9, 9)
    assert "4.png" not in embedded

    again, embedded = update(out, folder)
    assert (again.failed, again.unchanged, again.photos, embedded) == (report.failed, 9, 9, [])

    (folder / "4.png").write_bytes(data)
    mended, embedded = update(out, folder)
    assert embedded == ["4.png"]
    assert [bad.path for bad in mended.failed] == ["text.jpg"]
    assert (mended.photos, len(PhotoIndex.open(out))) == (10, 10)


def test_an_unreadable_file_is_reported_and_tried_again(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = index_module._hash_file

    def refuse(root: Path, path: str) -> store_module.HashedFile:
        if path == "6.png":
            raise PermissionError(13, "Permission denied")
        return read(root, path)

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "_hash_file", refuse)
        report, _ = update(out, folder)
    assert [(bad.path, bad.reason) for bad in report.failed] == [("6.png", "Permission denied")]
    assert report.photos == 9
    report, embedded = update(out, folder)
    assert (report.failed, report.photos, embedded) == ((), 10, ["6.png"])


def test_a_vector_that_is_not_finite_is_a_bad_photo(folder: Path, out: Path) -> None:
    class Broken(PixelEmbedder):
        def embed_images(self, images: Sequence[Path]) -> np.ndarray:
            vectors = super().embed_images(images)
            vectors[[path.name == "2.png" for path in images]] = np.nan
            return vectors

    report, _ = update(out, folder, Broken())
    assert [bad.path for bad in report.failed] == ["2.png"]
    assert np.isfinite(PhotoIndex.open(out).vectors).all()


def test_a_file_that_changes_while_it_is_embedded_waits_for_the_next_run(folder: Path, out: Path) -> None:
    report, _ = update(out, folder, PixelEmbedder(during=lambda: paint(folder / "0.png", 99)), batch=10)
    assert report.photos == 9
    report, embedded = update(out, folder)
    assert (report.photos, embedded) == (10, ["0.png"])
    assert PhotoIndex.open(out).search(vector(99))[0].path == folder / "0.png"


def test_the_index_can_be_searched_while_it_is_being_built(folder: Path, out: Path) -> None:
    sizes: list[int] = []
    update(out, folder, PixelEmbedder(during=lambda: sizes.append(len(PhotoIndex.open(out)))))
    assert sizes == [0, 4, 8]


def test_only_one_process_may_write(folder: Path, out: Path) -> None:
    def second_writer() -> None:
        with pytest.raises(SearchIndexError, match="another process is writing"):
            update(out, folder)

    report, _ = update(out, folder, PixelEmbedder(during=second_writer))
    assert report.photos == 10


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_index import PixelEmbedder, update
import mmgem.search.index_store as store

def die(): os.kill(os.getpid(), signal.SIGKILL)

def die_at(number, before, name, owner):
    call, calls = getattr(owner, name), [0]
    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number and before: die()
        result = call(*args, **kwargs)
        if calls[0] == number: die()
        return result
    setattr(owner, name, wrapped)

point, number, before = {point!r}, {number}, {before}
die_at(number, before, *dict(
    embed=("embed_images", PixelEmbedder), append=("_append", store.IndexStore),
    record=("record", store.IndexStore), compact=("compact", store.IndexStore),
)[point])
update(Path({out!r}), Path({folder!r}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills the process with SIGKILL")
@pytest.mark.parametrize(
    ("point", "number", "before", "recorded"),
    [
        ("embed", 1, False, 0),
        ("append", 2, False, 4),
        ("record", 2, False, 8),
        ("compact", 1, True, 10),
    ],
)
def test_a_killed_run_loses_at_most_one_batch(
    folder: Path, out: Path, point: str, number: int, before: bool, recorded: int
) -> None:
    code = CHILD.format(
        tests=str(Path(__file__).parent),
        point=point,
        number=number,
        before=before,
        out=str(out),
        folder=str(folder),
    )
    died = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(PhotoIndex.open(out)) == recorded
    report, embedded = update(out, folder)
    assert len(embedded) == 10 - recorded
    assert report.photos == 10
    index = PhotoIndex.open(out)
    assert all(index.search(vector(seed))[0].path == folder / f"{seed}.png" for seed in range(10))


class Crash(BaseException):
    """Stands for a kill inside the model."""


def crash_at(call: int) -> Callable[[], None]:
    left = [call]

    def count() -> None:
        if left[0] == 0:
            raise Crash
        left[0] -= 1

    return count


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "remove", "move", "change", "touch", "copy", "spoil", "run", "crash"]),
            st.integers(0, 5),
            st.integers(0, 5),
        ),
        max_size=25,
    )
)
def test_after_any_history_the_index_is_what_the_folder_holds(history: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "_MIN_DEAD_ROWS", 1)
        folder, out = Path(place, "photos"), Path(place, "idx")
        paint(folder / "anchor.png", 1000)
        clock = 10**9
        for action, a, b in history:
            file, other = folder / f"{a}.png", folder / f"{b}.png"
            if action == "add" or (action == "change" and file.exists()):
                paint(file, b)
            elif action == "spoil":
                file.write_bytes(b"nothing to see %d" % b)
            elif action == "crash":
                with suppress(Crash):
                    update(out, folder, PixelEmbedder(during=crash_at(b)), batch=1)
            elif action == "run":
                update(out, folder, batch=2)
            elif file.exists() and action == "remove":
                file.unlink()
            elif file.exists() and action == "move":
                file.replace(other)
            elif file.exists() and action == "copy" and a != b:
                shutil.copy(file, other)
            if file.exists():
                clock += 10**9
                os.utime(file, ns=(clock, clock))
        report, _ = update(out, folder)

        good = {}
        for path in folder.iterdir():
            if not path.read_bytes().startswith(b"nothing"):
                good[path.name] = PixelEmbedder().embed_images([path])[0]
        index = PhotoIndex.open(out)
        vector_by_name = {path.name: row for path, row in zip(index.paths, index.vectors, strict=True)}
        assert vector_by_name.keys() == good.keys()
        assert all(np.array_equal(vector_by_name[name], good[name]) for name in good)
        assert report.photos == len(good)
        assert len(report.failed) == len(list(folder.iterdir())) - len(good)


def test_rows_without_a_photo_are_compacted_away(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_MIN_DEAD_ROWS", 2)
    update(out, folder)
    reader = PhotoIndex.open(out)
    for seed in (1, 4, 6):
        (folder / f"{seed}.png").unlink()
    update(out, folder)
    assert [file.name for file in out.glob("vectors-*")] == ["vectors-1.f32"]
    assert (out / "vectors-1.f32").stat().st_size == 7 * 48 * 4
    assert reader.search(vector(4))[0].path.name == "4.png"  # as it was when opened
    index = PhotoIndex.open(out)
    assert [index.search(vector(s))[0].path.name for s in (0, 5, 9)] == ["0.png", "5.png", "9.png"]
    paint(folder / "4.png", 4)
    _, embedded = update(out, folder)
    assert embedded == ["4.png"]
    assert PhotoIndex.open(out).search(vector(4))[0].score == pytest.approx(1, abs=1e-5)


def test_vectors_of_a_killed_compaction_are_swept(folder: Path, out: Path) -> None:
    update(out, folder)
    (out / "vectors-1.f32").write_bytes(b"half a file")
    update(out, folder)
    assert [file.name for file in out.glob("vectors-*")] == ["vectors-0.f32"]


def test_another_models_index_is_refused_before_any_work(folder: Path, out: Path) -> None:
    update(out, folder)

    def no_model() -> PixelEmbedder:
        raise AssertionError("made a model")

    with pytest.raises(
        SearchIndexError, match=r"another model \(pixels-1, not other\).*delete .*photos\.idx"
    ):
        update_index(out, folder, no_model, "other")
    with pytest.raises(SearchIndexError, match="another model"):
        PhotoIndex.open(out, fingerprint="other")
    assert PhotoIndex.open(out, fingerprint="pixels-1").fingerprint == "pixels-1"


def test_a_model_that_is_not_the_announced_one_is_refused(folder: Path, out: Path) -> None:
    with pytest.raises(SearchIndexError, match="as announced"):
        update_index(out, folder, PixelEmbedder, "pixels-2")


def test_the_folder_may_move(folder: Path, out: Path, tmp_path: Path) -> None:
    update(out, folder)
    (tmp_path / "link").symlink_to(folder)
    assert update(out, tmp_path / "link")[0].unchanged == 10
    moved = folder.rename(tmp_path / "moved")
    report, embedded = update(out, moved)
    assert (report.unchanged, embedded) == (10, [])
    assert PhotoIndex.open(out).folder == moved


def test_where_the_photos_are(folder: Path, out: Path, tmp_path: Path) -> None:
    update(out, folder)
    assert PhotoIndex.open(out).search(vector(0))[0].path == folder / "0.png"
    assert PhotoIndex.open(out, folder=Path("/elsewhere")).search(vector(0))[0].path == Path(
        "/elsewhere/0.png"
    )
    disk = tmp_path / "another mount"
    disk.mkdir()
    folder.rename(disk / "photos")
    shutil.move(out, disk / "photos.idx")
    assert PhotoIndex.open(disk / "photos.idx").search(vector(0))[0].path == disk / "photos" / "0.png"


def test_an_empty_folder_does_not_empty_the_index(folder: Path, out: Path) -> None:
    update(out, folder)
    for photo in folder.iterdir():
        photo.unlink()
    with pytest.raises(SearchIndexError, match=r"no photos here, but .* holds 10"):
        update(out, folder)
    assert len(PhotoIndex.open(out)) == 10


def test_a_folder_without_photos_makes_an_empty_index(tmp_path: Path, out: Path) -> None:
    (tmp_path / "none").mkdir()
    assert update(out, tmp_path / "none")[0].photos == 0
    index = PhotoIndex.open(out)
    assert (len(index), index.search(vector(0)), index.paths) == (0, [], [])
    with pytest.raises(UsageError, match="no such folder"):
        update(out, tmp_path / "missing")


def test_names_are_any_bytes_the_disk_allows(folder: Path, out: Path) -> None:
    odd = ["new\nline.png", "quote'\".png", "Übung €.png"]
    if sys.platform == "linux":
        odd.append(os.fsdecode(b"\xff\xfe.png"))
    for seed, name in enumerate(odd):
        paint(folder / name, 50 + seed)
    update(out, folder)
    assert update(out, folder)[0].unchanged == 10 + len(odd)
    index = PhotoIndex.open(out)
    assert [index.search(vector(50 + seed))[0].path.name for seed in range(len(odd))] == odd


def test_an_index_inside_the_folder_of_photos(folder: Path) -> None:
    update(folder / ".mmgem", folder)
    assert update(folder / ".mmgem", folder)[0].unchanged == 10


def test_damage_is_told_from_absence(folder: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(SearchIndexError, match="no search index here; make one with: mmgem index"):
        PhotoIndex.open(out)
    update(out, folder)
    (out / "vectors-0.f32").write_bytes(b"short")
    with pytest.raises(SearchIndexError, match="shorter than its manifest says; delete"):
        PhotoIndex.open(out)
    paint(folder / "new.png", 70)
    with pytest.raises(SearchIndexError, match="shorter than its manifest says"):
        update(out, folder)
    (out / "vectors-0.f32").unlink()
    with pytest.raises(SearchIndexError, match=r"vectors-0\.f32: No such file"):
        PhotoIndex.open(out)
    (out / "photos.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(SearchIndexError, match="not a database"):
        PhotoIndex.open(out)
    with pytest.raises(SearchIndexError, match="not a database"):
        update(out, folder)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SearchIndexError, match="is a file; an index is a folder"):
        update(tmp_path / "file", folder)


def test_an_index_of_a_later_format_is_refused(folder: Path, out: Path) -> None:
    update(out, folder)
    db = sqlite3.connect(out / "photos.sqlite3")
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(SearchIndexError, match="index format 9"):
        PhotoIndex.open(out)


def test_progress_counts_what_is_not_as_recorded(folder: Path, out: Path) -> None:
    update(out, folder)
    paint(folder / "a.png", 60)
    paint(folder / "b.png", 61)
    progressed: list[str] = []

    def progress(paths: Iterable[str]) -> Iterator[str]:
        for path in paths:
            yield path
            progressed.append(path)

    update_index(out, folder, PixelEmbedder, "pixels-1", progress=progress)
    assert progressed == ["a.png", "b.png"]
