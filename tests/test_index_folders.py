"""Several folders in one index, what is left out of them, and the default place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_index import paint, update, vector

from mmgem.cli.inputs import note_left_out
from mmgem.cli.main import main
from mmgem.data import image_kinds
from mmgem.data.images import list_images, other_files
from mmgem.errors import UsageError
from mmgem.search.filters import Filters
from mmgem.search.index import update_index
from mmgem.search.search import PhotoIndex


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path, Path]:
    for seed in range(3):
        paint(tmp_path / "first" / f"{seed}.png", seed)
        paint(tmp_path / "second" / "deep" / f"{seed}.png", 10 + seed)
    return tmp_path / "first", tmp_path / "second", tmp_path / "idx"


def paths(out: Path) -> list[Path]:
    return sorted(PhotoIndex.open(out).paths)


def test_a_second_folder_is_added(two: tuple[Path, Path, Path]) -> None:
    first, second, out = two
    update(out, first)
    report, embedded = update(out, second)
    assert (report.photos, report.unchanged, sorted(embedded)) == (6, 3, ["0.png", "1.png", "2.png"])
    assert report.folders == (first, second)
    assert paths(out) == sorted([*first.rglob("*.png"), *second.rglob("*.png")])
    index = PhotoIndex.open(out)
    assert index.search(vector(11), 1)[0].path == second / "deep" / "1.png"
    assert len(index.filtered(Filters(folder=str(second)))) == 3
    assert len(index.filtered(Filters(folder=str(first)))) == 3
    assert index.vector_of(second / "deep" / "1.png") @ vector(11) == pytest.approx(1, abs=1e-5)
    # With no folder named all are looked at again.
    (second / "deep" / "0.png").unlink()
    report = update_index(out, [], lambda: pytest.fail("nothing is new"), "pixels-1")
    assert (report.photos, report.removed, report.embedded) == (5, 1, 0)


def test_a_folder_in_another_is_no_further_one(two: tuple[Path, Path, Path]) -> None:
    first, second, out = two
    update(out, second)
    assert update(out, second / "deep")[0].folders == (second,)
    report, embedded = update(out, second.parent / "first")
    assert report.folders == (second, first) and len(embedded) == 3


def test_a_folder_around_another_finds_each_photo_once(two: tuple[Path, Path, Path]) -> None:
    _, second, out = two
    update(out, second / "deep")
    paint(second / "new.png", 30)
    report, embedded = update(out, second)
    assert embedded == ["new.png"] and report.photos == 4
    assert paths(out) == sorted(second.rglob("*.png"))


def test_a_further_folder_that_is_away_keeps_its_photos(two: tuple[Path, Path, Path]) -> None:
    first, second, out = two
    update_index(out, [first, second], *_embedder())
    away = second.rename(second.with_name("away"))
    report, embedded = update(out, first)
    assert (report.photos, report.removed, embedded) == (6, 0, [])
    with pytest.raises(UsageError, match="no such folder"):
        update(out, second)
    away.rename(second)
    assert update(out, second)[0].unchanged == 6


def _embedder():
    from test_index import PixelEmbedder

    return PixelEmbedder, "pixels-1"


def test_patterns_leave_out_and_are_kept(two: tuple[Path, Path, Path]) -> None:
    first, second, out = two
    (first / "2.png").rename(first / "thumb_2.png")
    update_index(out, [first, second], *_embedder(), exclude=["thumb_*", "deep/1.*"])
    assert len(paths(out)) == 4
    assert update(out, first)[0].photos == 4
    assert update_index(out, [], *_embedder(), exclude=["deep"]).photos == 3
    assert update_index(out, [], *_embedder(), exclude=[]).photos == 6


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="say which folder"):
        update_index(tmp_path / "idx", [], *_embedder())
    assert not (tmp_path / "idx").exists()


def test_files_without_a_suffix_by_their_first_bytes(tmp_path: Path) -> None:
    shutil.move(paint(tmp_path / "a.png", 1), tmp_path / "0a1b2c")
    (tmp_path / "README").write_text("no photo")
    (tmp_path / "empty").touch()
    assert [path.name for path in list_images(tmp_path)] == ["0a1b2c"]


def test_what_is_left_out_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.wav", "b.WAV", "c.pdf", "d.heic", "e.png", ".hidden.pdf", "README"):
        (tmp_path / name).touch()
    monkeypatch.setattr(image_kinds, "_finds_heif", lambda: False)
    assert other_files(tmp_path) == ({".heic": 1}, {".wav": 2, ".pdf": 1})
    note_left_out([tmp_path, tmp_path])
    line = 'mmgem: 8 files left out: 2 .heic (pip install "mmgem[heif]"), 4 .wav, 2 .pdf\n'
    assert capsys.readouterr().err == line
    (tmp_path / "own.idx").mkdir()
    (tmp_path / "own.idx" / "photos.sqlite3").write_bytes(b"")
    assert ".sqlite3" not in other_files(tmp_path, tmp_path / "own.idx")[1]


def test_the_default_place(
    two: tuple[Path, Path, Path],
    tmp_path: Path,
    tiny_model_folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, out = two
    monkeypatch.setenv("MMGEM_INDEX", str(out))
    monkeypatch.chdir(tmp_path)
    (first / "song.wav").touch()
    assert main(["search", "a", "dog"]) == 2
    assert "no search index here" in capfd.readouterr().err
    assert main(["index", str(first), str(second), "--exclude", "0.*", "-m", str(tiny_model_folder)]) == 0
    told, err = capfd.readouterr()
    assert told.startswith(f"{out}: 4 photos") and "1 file left out: 1 .wav" in err
    assert main(["search", "a", "dog", "--json"]) == 0
    by_default = capfd.readouterr().out
    assert main(["search", str(out), "a dog", "--json"]) == 0
    assert capfd.readouterr().out == by_default and len(json.loads(by_default)["hits"]) == 4
