"""Photos indexed and searched from Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import toys
from logs import logged
from tiny import save_photos, save_tiny_model

import mmgem
from mmgem import MMGEM, ImageError, SearchIndexError, UsageError
from mmgem.cli.main import main
from mmgem.search.search import PhotoIndex


@pytest.fixture
def photos(tiny_photos: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_photos[0].parent, tmp_path / "photos"))


def test_a_folder_is_indexed_and_searched(
    model: MMGEM, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = model.index(str(photos), str(tmp_path / "idx"))
    files = sorted(photos.iterdir())
    assert len(index) == 6 and capsys.readouterr() == ("", "")
    text = "a dog runs on the beach"
    hits = index.search_text(text, k=3)
    assert hits == index.search(model.embed_queries([text])[0], 3) and len(hits) == 3
    like = index.search_image(files[0], k=5)
    assert files[0] not in {hit.path for hit in like} and len(like) == 5
    assert index.search_image(files[0].read_bytes(), k=1)[0].path == files[0]
    box = (2.0, 3.0, 20.0, 25.0)
    wanted = index.search(model.embed_images([files[1]], [box])[0], 6)
    assert index.search_image(str(files[1]), k=5, box=box) == [h for h in wanted if h.path != files[1]]
    with pytest.raises(UsageError, match="k must be at least 1"):
        index.search_text(text, k=0)
    with pytest.raises(UsageError, match="has no regions"):
        index.search_text(text, regions=True)


def test_what_changed_is_brought_up_to_date(model: MMGEM, photos: Path, tmp_path: Path) -> None:
    before = model.index(photos, tmp_path / "idx")
    save_photos(photos / "more", 2)
    sorted(photos.iterdir())[0].unlink()
    (photos / "broken.jpg").write_bytes(b"x")
    (photos / "new.heic").write_bytes(b"x")
    with logged() as records:
        after = model.index(photos, tmp_path / "idx")
    first, second = (record.getMessage() for record in records)
    assert "skipped" in first and "broken.jpg" in first and ".heic" in second
    assert (len(before), len(after)) == (6, 7)


def test_regions_are_found(model: MMGEM, photos: Path, tmp_path: Path) -> None:
    index = model.index(photos, tmp_path / "idx", regions=3)
    hits = index.search_text("a dog", k=2, regions=True)
    assert len(hits) == 2 and all(hit.box is not None for hit in hits)
    like = index.search_image(sorted(photos.iterdir())[0], k=2, regions=True)
    assert len(like) == 2 and all(hit.box is not None for hit in like)


def test_an_index_knows_its_model(
    tiny_model_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "idx")
    assert main(["index", str(photos), "--out", out, "--model", str(tiny_model_folder)]) == 0
    loaded = []
    load = MMGEM.from_pretrained
    monkeypatch.setattr(MMGEM, "from_pretrained", lambda name: loaded.append(name) or load(name))
    index = mmgem.open_index(out)
    assert len(index) == 6 and not loaded
    hits = index.search_text("a dog")
    assert index.search_text("the sea") and loaded == [str(tiny_model_folder)]
    moved = Path(shutil.copytree(tiny_model_folder, tmp_path / "moved"))
    assert mmgem.open_index(out, moved).search_text("a dog") == hits
    assert loaded[1:] == [moved]
    there = shutil.copytree(photos, tmp_path / "there")
    assert mmgem.open_index(out, folder=there).search_text("a dog")[0].path.parent == tmp_path / "there"


def test_what_cannot_be_opened_or_made(model: MMGEM, photos: Path, tmp_path: Path) -> None:
    index, other = tmp_path / "idx", save_tiny_model(tmp_path / "other", seed=1)
    model.index(photos, index)
    for wrong in (other, MMGEM.from_pretrained(other)):
        with pytest.raises(SearchIndexError, match="another model"):
            mmgem.open_index(index, wrong)
    with pytest.raises(SearchIndexError):
        mmgem.open_index(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"opened without a model; open it with mmgem\.open_index"):
        PhotoIndex.open(index).search_text("a dog")
    with pytest.raises(UsageError, match="save_pretrained"):
        MMGEM(toys.network(), toys.tokenizer()).index(photos, tmp_path / "new")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty: no photos in this folder"):
        model.index(tmp_path / "empty", tmp_path / "new")
    (tmp_path / "empty" / "a.jpg").write_bytes(b"x")
    with pytest.raises(ImageError, match="none of the 1 photos could be read"):
        model.index(tmp_path / "empty", tmp_path / "newer")


def test_an_index_moves_with_home(
    model: MMGEM, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    index = model.index("~/photos", "~/idx")
    assert np.array_equal(mmgem.open_index("~/idx").vectors, index.vectors)
