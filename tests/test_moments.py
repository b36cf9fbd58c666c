"""Clips in an index: embedded once, found by their seconds, kept and dropped as photos are."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import films
import numpy as np
import pytest
import torch
from PIL import Image
from test_index import PixelEmbedder, paint

from mmgem.api import MMGEM, open_index
from mmgem.cli.main import main
from mmgem.data import video
from mmgem.data.clips import find_shots, frames_of
from mmgem.errors import UsageError
from mmgem.models.pooling import axis_weights, pool_segments
from mmgem.search.by_date import newest
from mmgem.search.check_index import check_index
from mmgem.search.duplicates import find_duplicates, fold_copies
from mmgem.search.filters import Filters
from mmgem.search.index import IndexReport, update_index
from mmgem.search.index_files import database_file
from mmgem.search.search import PhotoIndex
from mmgem.search.stores import open_store
from mmgem.search.stores.base import search_store
from mmgem.search.stores.push import push


class FilmEmbedder(PixelEmbedder):
    """Thumbnails of photos, and the mean thumbnail of the frames of a moment."""

    def embed_videos(self, videos: Sequence[Sequence[Image.Image]]) -> np.ndarray:
        self.embedded += ["moment"] * len(videos)
        rows = [np.mean([pixels(frame) for frame in frames], axis=0) for frames in videos]
        return np.stack(rows) / np.linalg.norm(rows, axis=1, keepdims=True)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((4, 4)), np.float32).ravel() - 127.5


def query(seed: int) -> np.ndarray:
    row = pixels(films.scene(seed, 0.5))
    return row / np.linalg.norm(row)


def update(out: Path, folder: Path) -> tuple[IndexReport, list[str]]:
    embedder = FilmEmbedder()
    return update_index(out, folder, lambda: embedder, "pixels-1", model="tiny"), embedder.embedded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(3):
        paint(tmp_path / "photos" / f"{seed}.png", seed)
    films.save_film(tmp_path / "photos" / "holiday" / "film.mp4", (1, 2, 3))
    films.save_gif(tmp_path / "photos" / "b.gif", (4, 5))
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "idx"


def test_text_to_second(folder: Path, out: Path) -> None:
    report, embedded = update(out, folder)
    assert (report.photos, report.clips, report.moments, report.embedded) == (5, 2, 5, 5)
    assert embedded.count("moment") == 5
    index = PhotoIndex.open(out)
    for seed, (name, start, end) in {
        1: ("holiday/film.mp4", 0, 2),
        2: ("holiday/film.mp4", 2, 4),
        3: ("holiday/film.mp4", 4, 6),
        5: ("b.gif", 1, 2),
    }.items():
        (hit,) = index.search(query(seed), 1)
        assert hit.path == folder / name and hit.score > 0.98
        assert hit.moment == pytest.approx((start, end), abs=0.1)
    photo = index.search(FilmEmbedder().embed_images([folder / "1.png"])[0], 1)[0]
    assert photo.path == folder / "1.png" and photo.moment is None
    assert len(index) == len(index.photos) == 8 and len(index.files) == 5
    assert (
        check_index(out).counts == {"photos": 5, "vectors": 8, "moments": 5} and not check_index(out).problems
    )


def test_a_clip_is_embedded_once(folder: Path, out: Path) -> None:
    update(out, folder)
    assert update(out, folder)[1] == []
    (folder / "holiday" / "film.mp4").rename(folder / "moved.mp4")
    report, embedded = update(out, folder)
    assert embedded == [] and (report.reused, report.removed, report.clips) == (1, 0, 2)
    assert PhotoIndex.open(out).search(query(2), 1)[0].path == folder / "moved.mp4"
    films.save_film(folder / "moved.mp4", (6, 7))
    report, embedded = update(out, folder)
    assert embedded == ["moment"] * 2 and (report.clips, report.moments) == (2, 4)
    index = PhotoIndex.open(out)
    assert index.search(query(7), 1)[0].start == pytest.approx(2, abs=0.1)
    assert index.search(query(2), 1)[0].score < 0.9
    (folder / "moved.mp4").unlink()
    (folder / "b.gif").unlink()
    report, _ = update(out, folder)
    assert (report.photos, report.clips, report.moments, report.removed) == (3, 0, 0, 2)
    assert all(hit.moment is None for hit in PhotoIndex.open(out).search(query(7), 10))


def test_an_index_of_photos_alone_is_as_it_was(tmp_path: Path, out: Path) -> None:
    paint(tmp_path / "photos" / "a.png", 1)
    update(out, tmp_path / "photos")
    with sqlite3.connect(database_file(out)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        assert [name for _, name, *_ in db.execute("PRAGMA table_info(rows)")] == ["row", "content", "box"]
    films.save_gif(tmp_path / "photos" / "b.gif")
    update(out, tmp_path / "photos")
    with sqlite3.connect(database_file(out)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
    assert {hit.start for hit in PhotoIndex.open(out).search(query(1), 9)} == {None, 0.0, 1.0}


def test_moments_survive_a_compaction(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update(out, folder)
    before = [(hit.path, hit.moment) for hit in PhotoIndex.open(out).search(query(3), 9)]
    monkeypatch.setattr("mmgem.search.index_store._MIN_DEAD_ROWS", 1)
    for name in ("0.png", "1.png", "2.png"):
        (folder / name).unlink()
    update(out, folder)
    index = PhotoIndex.open(out)
    after = [(hit.path, hit.moment) for hit in index.search(query(3), 9)]
    assert after == [pair for pair in before if pair[0].suffix != ".png"]
    assert len(index) == len(index.row_vectors(range(5))) == 5


def test_a_damaged_clip_among_many(folder: Path, out: Path) -> None:
    (folder / "bad.mp4").write_bytes(b"x" * 4000)
    report, _ = update(out, folder)
    assert [bad.path for bad in report.failed] == ["bad.mp4"] and (report.photos, report.clips) == (5, 2)
    assert update(out, folder)[1] == []  # its bytes are known
    films.save_film(folder / "bad.mp4", (8,))
    report, embedded = update(out, folder)
    assert not report.failed and embedded == ["moment"]


def test_without_pyav_videos_stay_as_they_are(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(out, folder)
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    shutil.copy(folder / "holiday" / "film.mp4", folder / "new.mp4")
    report, embedded = update(out, folder)
    assert embedded == [] and (report.photos, report.clips, report.removed) == (5, 2, 0)
    assert PhotoIndex.open(out).search(query(2), 1)[0].path == folder / "holiday" / "film.mp4"


def test_vectors_of_clips(folder: Path, out: Path) -> None:
    update(out, folder)
    index, film = PhotoIndex.open(out), folder / "holiday" / "film.mp4"
    rows = [
        index.vector_of(film, start)
        for start in (index.moments[e][0] for e in range(8) if index.paths[e] == film)
    ]
    assert len(rows) == 3 and np.allclose(
        rows @ index.vector_of(film), index.vector_of(film) @ np.stack(rows).T
    )
    mean = np.sum([2 * row for row in rows], axis=0)
    assert index.vector_of(film) == pytest.approx(mean / np.linalg.norm(mean), abs=0.02)
    with pytest.raises(UsageError, match="no moment of it starts at 1 s"):
        index.vector_of(film, 1.0)


def test_filters_and_dates(folder: Path, out: Path) -> None:
    update(out, folder)
    index = PhotoIndex.open(out)
    inside = index.filtered(Filters(folder="holiday"))
    assert [hit.path.name for hit in inside.search(query(5), 10)] == ["film.mp4"] * 3 and len(
        inside.files
    ) == 1
    assert {hit.path.name for hit in index.filtered(Filters(name="*.gif")).search(query(1), 9)} == {"b.gif"}
    assert len(index.filtered(Filters(date="today")).search(query(1), 20)) == 8
    assert len(index.filtered(Filters(min_width=100)).files) == 2
    assert len(newest(index, 10)) == 5  # a clip is one file


def test_copies_of_clips(folder: Path, out: Path) -> None:
    shutil.copy(folder / "holiday" / "film.mp4", folder / "copy.mp4")
    update(out, folder)
    index = PhotoIndex.open(out)
    (group,) = find_duplicates(index)
    assert {path.name for path in group.paths} == {"copy.mp4", "film.mp4"} and all(group.exact)
    hits = fold_copies(index, lambda count: index.search(query(2), count), 10)
    assert len(hits) == 8 and [hit.copies for hit in hits if hit.path.suffix == ".mp4"] == [1, 1, 1]


def test_a_store_keeps_seconds(folder: Path, out: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    update(out, folder)
    with open_store(f"lance:{tmp_path / 'store'}", "mmgem", create=True) as store:
        assert push(out, store).points == 8 and push(out, store).added == 0
        expected = PhotoIndex.open(out).search(query(3), 8)
        found = search_store(store, query(3), 8)
    assert [(h.path, h.moment) for h in found] == [(h.path, h.moment) for h in expected]


# The model -------------------------------------------------------------------------------------------------


def test_pooling_over_time_is_roi_align_over_time() -> None:
    frames = torch.randn(8, 5)
    pooled = pool_segments(frames, [3, 5])
    assert torch.allclose(pooled, torch.stack([frames[:3].mean(0), frames[3:].mean(0)]))
    weights = axis_weights(torch.tensor([0.0]), torch.tensor([8.0]), 8)  # a box that is the whole row
    assert torch.allclose(weights @ frames, pool_segments(frames, [8]), atol=1e-6)


def test_a_moment_is_the_mean_of_its_frames(model: MMGEM, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    films.save_film(path, (1, 2), 4)
    frames = frames_of(path, (0.0, 4.0))
    assert len(frames) == 2
    from_path, from_frames = model.embed_videos([path, frames], [(0.0, 4.0), None])
    assert from_path == pytest.approx(from_frames, abs=1e-6)
    one = model.embed_videos([[frames[0]]])
    assert one == pytest.approx(model.embed_images([frames[0]]), abs=1e-6)
    visual = torch.cat(list(model._visual(frames, None)))
    mean = model.network.image_embeddings(visual.mean(0, keepdim=True))[0].detach().numpy()
    assert from_frames == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert model.embed_videos([path], ["0-4"]) == pytest.approx(from_path[None], abs=1e-6)
    assert model.embed_videos([]).shape == (0, model.dim)
    many = model.embed_videos([frames, frames[:1]] * 20)
    assert many[::2] == pytest.approx(np.stack([from_frames] * 20), abs=1e-5)
    assert len(model.caption_videos([path, frames], beams=1)) == 2
    for videos, times in (([path], [None, None]), (path, None), ([[]], None), ([frames], ["1"])):
        with pytest.raises(UsageError):
            model.embed_videos(videos, times)  # type: ignore[arg-type]


def test_the_library_finds_seconds(model: MMGEM, folder: Path, out: Path) -> None:
    index = model.index(folder, out)
    hits = index.search_text("a dog", 20)
    assert len(hits) == 8 and sum(hit.start is not None for hit in hits) == 5
    shot = list(find_shots(folder / "holiday" / "film.mp4"))[1]
    best = open_index(out, model).search_image(shot.frames[0], 1)[0]
    assert best.moment == (shot.start, shot.end)


# The command line ------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main([str(word) for word in argv])
    done = capsys.readouterr()
    return code, done.out, done.err


@pytest.fixture
def indexed(folder: Path, out: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    code, told, _ = run(capsys, "index", folder, "--out", out, "-m", tiny_model_folder)
    assert code == 0 and "5 photos, 2 of them clips of 5 moments" in told
    return out


def test_search_tells_seconds_in_every_form(
    indexed: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told, _ = run(capsys, "search", indexed, "a dog", "-k", 20, "--json")
    hits = json.loads(told)["hits"]
    assert code == 0 and len(hits) == 8
    moments = {(hit["file"], hit["start"], hit["end"]) for hit in hits}
    assert (str(folder / "0.png"), None, None) in moments
    found = PhotoIndex.open(indexed).search(np.ones(8, np.float32), 20)
    assert moments == {(str(hit.path), hit.start, hit.end) for hit in found}
    lines = [
        json.loads(line)
        for line in run(capsys, "search", indexed, "a dog", "-k", 20, "--jsonl")[1].splitlines()
    ]
    assert lines == hits
    rows = [row.split("\t") for row in run(capsys, "search", indexed, "a dog", "-k", 20)[1].splitlines()]
    for row, hit in zip(rows, hits, strict=True):
        assert row[1] == hit["file"] and len(row) == (2 if hit["start"] is None else 3)
        if hit["start"] is not None:
            assert [float(t) for t in row[2].split("-")] == pytest.approx([hit["start"], hit["end"]])
    paths = run(capsys, "search", indexed, "a dog", "-k", 20, "--paths")[1].splitlines()
    assert sorted(paths) == sorted({hit["file"] for hit in hits})


def test_a_page_shows_the_frames(indexed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, told = run(capsys, "search", indexed, "a dog", "-k", 20, "--html", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert code == 0 and "left blank" not in told
    assert page.count('class="moment"') == 5 and "0:02–0:04" in page


def test_a_frame_is_a_query(indexed: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = folder / "holiday" / "film.mp4"
    code, told, _ = run(capsys, "search", indexed, "--image", film, "--time", "3", "--json", "-k", 3)
    assert code == 0 and json.loads(told)["query"]["time"] == [3, 3]
    code, told, _ = run(capsys, "search", indexed, "--image", film, "--time", "3", "--box", "0,0,80,96")
    assert code == 0
    for wrong in (["--time", "99"], ["--time", "x"], ["--time", "3", "--box", "500,0,600,9"]):
        code, _, error = run(capsys, "search", indexed, "--image", film, *wrong)
        assert code == 2 and error.count("\n") == 1
    assert run(capsys, "search", indexed, "a dog", "--time", "3")[0] == 2


def test_moments_are_captioned_and_embedded(
    folder: Path, model: MMGEM, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film, photo, m = folder / "holiday" / "film.mp4", folder / "0.png", ("-m", tiny_model_folder)
    _, told, _ = run(capsys, "embed", film, photo, "--json", *m)
    rows = json.loads(told)["embeddings"]
    assert rows[0]["vector"] == pytest.approx(model.embed_videos([film])[0], abs=1e-5)
    assert rows[1]["vector"] == pytest.approx(model.embed_images([photo])[0], abs=1e-5)
    _, told, _ = run(capsys, "embed", film, "--time", "0:02-0:04", "--json", *m)
    vector = json.loads(told)["embeddings"][0]["vector"]
    assert vector == pytest.approx(model.embed_videos([film], [(2, 4)])[0], abs=1e-5)
    _, told, _ = run(capsys, "embed", film, "--time", "3", "--box", "0,0,80,96", "--json", *m)
    assert len(json.loads(told)["embeddings"]) == 1
    code, told, error = run(capsys, "caption", film, photo, "--time", "1", "--json", *m)
    assert code == 0 and "0.png: does not move, and has no --time" in error
    (row,) = json.loads(told)["captions"]
    (made,) = model.caption_videos_with_confidence([film], ["1"])
    assert (row["file"], row["caption"]) == (str(film), model.caption_videos([film], ["1"])[0])
    assert row["caption"] == made.text and row["log_prob"] == pytest.approx(made.log_prob, abs=1e-5)
    assert run(capsys, "caption", film, "--time", "99", *m)[0] == 2
    assert run(capsys, "embed", "--text", "x", "--time", "1", *m)[0] == 2


def test_without_pyav_a_line_names_the_extra(
    folder: Path,
    out: Path,
    tiny_model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    code, told, error = run(capsys, "index", folder, "--out", out, "-m", tiny_model_folder)
    assert code == 0 and "4 photos, 1 of them clips" in told
    assert '1 file left out: 1 .mp4 (pip install "mmgem[video]")' in error
    code, _, error = run(capsys, "caption", folder / "holiday" / "film.mp4", "-m", tiny_model_folder)
    assert code == 2 and "pip install 'mmgem[video]'" in error and error.count("\n") == 1
