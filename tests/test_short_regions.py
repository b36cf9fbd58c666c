"""Short regions: whatever was recorded is found as a comparison with all stored codes finds it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import mmgem.search.index_store as store_module
import mmgem.search.region_lists as lists_module
import mmgem.search.region_rows as rows_module
import mmgem.search.region_search as search_module
from mmgem.errors import SearchIndexError
from mmgem.search.check_index import check_index
from mmgem.search.filters import Filters
from mmgem.search.index_files import CLIPS_FORMAT, FORMAT, PHOTOS_FORMAT
from mmgem.search.index_store import HashedFile, IndexStore, NewContent, read_index
from mmgem.search.region_codes import RegionCodec, pixel_box
from mmgem.search.search import PhotoIndex
from mmgem.search.spatial_filter import SpatialFilter, apply_spatial_filter, parse_spatial_filter

DIM, BOXES, SIZE = 32, 4, (640, 480)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that happens to large indexes happens to these."""
    monkeypatch.setattr(rows_module, "SHORT_FROM", 100)
    monkeypatch.setattr(lists_module, "LISTS_FROM", 50)
    monkeypatch.setattr(lists_module, "_MIN_PROBED", 60)
    monkeypatch.setattr(search_module, "_COMPARED", 0)
    monkeypatch.setattr(search_module, "_CANDIDATES", 16)
    monkeypatch.setattr(search_module, "_CANDIDATES_A_REGION", 1)
    monkeypatch.setattr(store_module, "_MIN_DEAD_ROWS", 8)
    yield


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length."""
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def content(number: int) -> tuple[NewContent, HashedFile]:
    """A photo of regions that look like it, and its file."""
    rng = np.random.default_rng([3, number])
    scales = 1 / (1 + np.arange(DIM) / 4)
    centre = rng.standard_normal(DIM) * scales
    vectors = unit(centre + 0.7 * rng.standard_normal((1 + BOXES, DIM)) * scales)
    corners = np.sort(rng.uniform(size=(BOXES, 2, 2)), axis=1) * SIZE
    boxes = [None, *(tuple(map(float, c.ravel().round(1))) for c in corners)]
    digest = number.to_bytes(16, "big")
    folder = "even" if number % 2 == 0 else "odd"
    made = NewContent(digest, vectors, boxes, size=SIZE)  # type: ignore[arg-type]
    return made, HashedFile(f"{folder}/{number:03}.jpg", 1, 1, digest, 1)


def write(out: Path, numbers: range, batch: int = 7) -> None:
    """Add photos to an index, as ``mmgem index`` does."""
    with IndexStore(out, "f", BOXES) as store:
        store.set_source(out, "")
        for at in range(numbers.start, numbers.stop, batch):
            made = [content(number) for number in numbers[at - numbers.start : at - numbers.start + batch]]
            store.record([c for c, _ in made], [f for _, f in made])
        store.compact()


def brute(
    out: Path, query: np.ndarray, k: int, where: SpatialFilter | None = None, part: str = ""
) -> list[tuple[str, float, tuple[float, ...]]]:
    """The best box of each of the ``k`` best photos, by decoding every record."""
    snapshot = read_index(out)
    regions = snapshot.short_regions
    assert regions is not None
    scores = regions.codec.decode(regions.records) @ query
    shares = RegionCodec.boxes(regions.records)
    if where is not None:
        scores = apply_spatial_filter(scores, shares, where)
    names: dict[int, list[str]] = {}
    for row, path, _ in snapshot.entries:
        names.setdefault(row, []).append(path.decode())
    found = []
    for first, count, row in zip(regions.first, regions.count, regions.photo_rows, strict=True):
        best = max(range(first, first + count), key=lambda n: scores[n])
        if scores[best] > -np.inf:
            box = pixel_box(shares[best].tolist(), *SIZE)
            found += [(name, float(scores[best]), box) for name in names[row] if name.startswith(part)]
    return sorted(found, key=lambda hit: -hit[1])[:k]


def agree(index: PhotoIndex, found: list, expected: list) -> None:
    """The same photos with the same boxes and scores."""
    assert [(index.name_of(hit.path), hit.box) for hit in found] == [(name, box) for name, _, box in expected]
    np.testing.assert_allclose([hit.score for hit in found], [score for _, score, _ in expected], atol=1e-5)


@pytest.mark.parametrize("change", ["as made", "more", "fewer", "repaired"])
def test_search_is_that_of_all_codes(tmp_path: Path, change: str) -> None:
    out = tmp_path / "idx"
    write(out, range(90))
    if change == "more":
        write(out, range(90, 97))
    if change == "fewer":
        with IndexStore(out, "f") as store:
            store.forget([content(number)[1].path for number in range(40)])
            store.compact()
    if change == "repaired":
        damage(out / f"regions-{read_index(out).generation}.u8", 3000)
        with IndexStore(out, "f") as store:
            assert store.drop_damaged()
            store.compact()
    index, exact = PhotoIndex.open(out), PhotoIndex.open(out, exact=True)
    assert index._short is not None and index._short.lists is not None
    rng = np.random.default_rng(0)
    recalled = []
    for number in range(12):
        query = unit(content(41 + number)[0].vectors[1] + 0.1 * rng.standard_normal(DIM))
        for where in (None, parse_spatial_filter("left"), parse_spatial_filter("bottom right")):
            expected = brute(out, query, 5, where)
            agree(exact, exact.search_regions(query, 5, where), expected)
            found = index.search_regions(query, 5, where)
            right = {(name, box) for name, _, box in expected}
            recalled.append(len(right & {(index.name_of(hit.path), hit.box) for hit in found}) / len(right))
            scores = {name: score for name, score, _ in brute(out, query, 200, where)}
            for hit in found:
                assert hit.score <= scores[index.name_of(hit.path)] + 1e-5
        part = index.filtered(Filters(folder="odd"))
        everything = exact.filtered(Filters(folder="odd"))
        agree(everything, everything.search_regions(query, 5), brute(out, query, 5, part="odd/"))
        assert all(index.name_of(hit.path).startswith("odd/") for hit in part.search_regions(query, 5))
    assert np.mean(recalled) > 0.8  # of 16 candidates in a sixth of the lists


def test_scores_and_boxes_are_near_the_float_ones(tmp_path: Path) -> None:
    write(tmp_path / "idx", range(60))
    index = PhotoIndex.open(tmp_path / "idx")
    assert (len(index), index.regions) == (60, BOXES)
    for number in (0, 13, 59):
        made, file = content(number)
        assert index.boxes_of(index.folder / file.path) == list(made.boxes[1:])
        assert np.array_equal(index.vector_of(index.folder / file.path), made.vectors[0])
        for box, vector in zip(made.boxes[1:], made.vectors[1:], strict=True):
            (hit,) = index.search_regions(vector, 1)
            assert (index.name_of(hit.path), hit.box) == (file.path, box)
            assert hit.score == pytest.approx(1, abs=0.02)


def test_a_small_index_stays_exact(tmp_path: Path) -> None:
    out = tmp_path / "idx"
    write(out, range(15))
    assert read_index(out).short_regions is None and version(out) == PHOTOS_FORMAT
    query = content(3)[0].vectors[2]
    hit = PhotoIndex.open(out).search_regions(query, 1)[0]
    assert hit.score == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("more", [0, 7])
def test_a_large_index_of_an_earlier_version_is_searched_as_it_is_and_becomes_short_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    out = tmp_path / "idx"
    with monkeypatch.context() as before:
        before.setattr(rows_module, "SHORT_FROM", 10**9)
        write(out, range(60))
    assert version(out) == PHOTOS_FORMAT
    exact = [PhotoIndex.open(out).search_regions(content(n)[0].vectors[1], 5) for n in range(60)]
    assert all(hits[0].score == pytest.approx(1, abs=1e-6) for hits in exact)
    with IndexStore(out, "f") as store:
        made = [content(number) for number in range(60, 60 + more)]
        store.record([c for c, _ in made], [f for _, f in made])
        assert store.shortened == bool(more)
        store.compact()
        assert store.shortened
    assert version(out) == FORMAT and not check_index(out).problems
    write(out, range(0))
    with IndexStore(out, "f") as store:
        store.compact()
        assert not store.shortened
    whole = PhotoIndex.open(out, exact=True)
    assert len(whole) == 60 + more
    for number, hits in enumerate(exact):
        found = whole.search_regions(content(number)[0].vectors[1], 5)
        assert (found[0].path, found[0].box) == (hits[0].path, hits[0].box)
        assert np.array_equal(whole.vector_of(found[0].path), content(number)[0].vectors[0])
        assert whole.boxes_of(found[0].path) == list(content(number)[0].boxes[1:])
        assert found[0].score == pytest.approx(1, abs=0.02)


def clip(number: int) -> tuple[NewContent, HashedFile]:
    """A clip of three moments, and its file."""
    rng = np.random.default_rng([4, number])
    spans = [(0.0, 1.5), (1.5, 4.0), (4.0, 4.5)]
    digest = (10**6 + number).to_bytes(16, "big")
    made = NewContent(digest, unit(rng.standard_normal((3, DIM))), [None] * 3, size=SIZE, moments=spans)
    return made, HashedFile(f"clips/{number}.mp4", 1, 1, digest, 1)


@pytest.mark.parametrize("first", [True, False])
def test_moments_and_short_regions_live_in_one_index(tmp_path: Path, first: bool) -> None:
    out = tmp_path / "idx"
    made = [clip(number) for number in range(6)]

    def add_clips() -> None:
        with IndexStore(out, "f", BOXES) as store:
            store.set_source(out, "")
            store.record([c for c, _ in made], [f for _, f in made])
            store.compact()

    if first:
        add_clips()
        assert version(out) == CLIPS_FORMAT
    write(out, range(60))
    if not first:
        assert version(out) == FORMAT
        add_clips()
    assert version(out) == FORMAT and not check_index(out).problems
    with IndexStore(out, "f") as store:  # leaves rows and records behind
        store.forget([clip(0)[1].path, *(content(number)[1].path for number in range(30))])
        store.compact()
        assert store.clips() == (5, 15)
    assert not check_index(out).problems
    index = PhotoIndex.open(out)
    assert (len(index), len(index.files)) == (30 + 15, 35)
    for moments, file in made[1:]:
        assert index.boxes_of(index.folder / file.path) == []
        for vector, span in zip(moments.vectors, moments.moments, strict=True):
            hit = index.search(vector, 1)[0]
            assert (index.name_of(hit.path), hit.moment, hit.box) == (file.path, span, None)
            assert np.array_equal(index.vector_of(hit.path, span[0]), vector)
            assert all(hit.moment is None and hit.box for hit in index.search_regions(vector, 40))
    query = content(45)[0].vectors[2]
    exact = PhotoIndex.open(out, exact=True)
    agree(exact, exact.search_regions(query, 5), brute(out, query, 5))
    assert exact.filtered(Filters(folder="clips")).search_regions(query, 5) == []


def test_the_files_are_short_and_checked(tmp_path: Path) -> None:
    out = tmp_path / "idx"
    write(out, range(90))
    assert version(out) == FORMAT
    snapshot = read_index(out)
    assert snapshot.short_regions is not None and len(snapshot.vectors) == 90
    width = snapshot.short_regions.codec.record_bytes
    assert {f.name for f in out.iterdir() if f.suffix in (".f32", ".u8")} == {"vectors-1.f32", "regions-1.u8"}
    assert (out / "regions-1.u8").stat().st_size == 90 * BOXES * width <= 90 * BOXES * (12 * DIM // 8 + 8)
    found = check_index(out)
    assert not found.problems and found.counts == {"photos": 90, "vectors": 90, "regions": 360}


@pytest.mark.parametrize("name", ["regions-1.u8", "region-lists-1.bin"])
@pytest.mark.parametrize("where", [20, 2000, -20])
def test_damage_is_seen_and_repaired(tmp_path: Path, name: str, where: int) -> None:
    out = tmp_path / "idx"
    write(out, range(90))
    assert sorted(out.glob("region-lists-*"))
    name = name if name.startswith("regions") else sorted(out.glob("region-lists-*"))[-1].name
    damage(out / name, where)
    assert any(name in str(problem) for problem in check_index(out).problems)
    with pytest.raises(SearchIndexError, match=r"damaged.*--repair"):
        index = PhotoIndex.open(out)
        for number in range(90):
            index.search_regions(content(number)[0].vectors[1], 5)
        if index._short is not None and index._short.lists is None:
            raise SearchIndexError("damaged lists are not used: --repair")
    with IndexStore(out, "f") as store:
        lost = store.drop_damaged()
        assert bool(lost) == name.startswith("regions")
        known = store.photos()
        made = [content(number) for number in range(90) if content(number)[1].path not in known]
        assert len(made) == len(lost)
        store.record([c for c, _ in made], [f for _, f in made])
        store.compact()
    assert not check_index(out).problems
    index = PhotoIndex.open(out, exact=True)
    query = content(7)[0].vectors[1]
    agree(index, index.search_regions(query, 5), brute(out, query, 5))


def damage(path: Path, where: int) -> None:
    """Flip bits of a byte."""
    data = bytearray(path.read_bytes())
    data[where] ^= 0x55
    path.write_bytes(data)


def version(out: Path) -> int:
    """The format of an index."""
    with sqlite3.connect(out / "photos.sqlite3") as db:
        return db.execute("PRAGMA user_version").fetchone()[0]


@pytest.mark.parametrize("dim", [5, 16, 96])
def test_codes_are_as_near_as_their_bits_allow(dim: int) -> None:
    rng = np.random.default_rng(1)
    vectors = unit(rng.standard_normal((400, dim)) / (1 + np.arange(dim)))
    boxes = rng.uniform(size=(400, 4)).astype(np.float32)
    errors = []
    for code_bytes in (dim // 4, dim // 2, dim):
        codec = RegionCodec.from_bytes(RegionCodec.fit(vectors, code_bytes).to_bytes())
        records = codec.encode(vectors, boxes)
        assert records.shape == (400, codec.record_bytes) and codec.record_bytes <= 8 + code_bytes
        assert np.abs(codec.boxes(records) - boxes).max() < 1e-5
        query, offset = codec.project(vectors[:3])
        products = query @ codec.units(records).T + offset[:, None]
        np.testing.assert_allclose(products, vectors[:3] @ codec.decode(records).T, atol=1e-5)
        for axes in (1, 3, dim):
            assert np.array_equal(codec.units(records, axes), codec.units(records)[:, :axes])
        errors.append(np.square(codec.decode(records) - vectors).sum(1).mean())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3


def test_stopped_while_regions_become_short_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "idx"
    write(out, range(14))
    with monkeypatch.context() as broken:
        broken.setattr(RegionCodec, "encode", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            write(out, range(14, 28))
    assert read_index(out).short_regions is None and version(out) == PHOTOS_FORMAT
    assert len(read_index(out).entries) == 21 * (1 + BOXES)
    write(out, range(21, 35))
    snapshot = read_index(out)
    assert snapshot.short_regions is not None and len(snapshot.entries) == 35
    assert {f.name for f in out.iterdir() if f.suffix in (".f32", ".u8")} == {"vectors-1.f32", "regions-1.u8"}
    index = PhotoIndex.open(out, exact=True)
    for number in range(35):
        hit = index.search_regions(content(number)[0].vectors[1], 1)[0]
        assert index.name_of(hit.path) == content(number)[1].path
    # What was appended and not named is overwritten.
    with (out / "regions-1.u8").open("ab") as file:
        file.write(b"\x07" * 1000)
    write(out, range(35, 40))
    assert not check_index(out).problems


def test_copies_of_a_photo_share_its_regions(tmp_path: Path) -> None:
    out = tmp_path / "idx"
    write(out, range(40))
    made, file = content(5)
    with IndexStore(out, "f") as store:
        store.record([], [HashedFile("copy.jpg", 1, 1, file.digest, 1)])
    index = PhotoIndex.open(out, exact=True)
    hits = index.search_regions(made.vectors[1], 3)
    assert {index.name_of(hit.path) for hit in hits[:2]} == {"copy.jpg", file.path}
    assert hits[0].score == hits[1].score and hits[0].box == hits[1].box == made.boxes[1]
    agree(index, index.search_regions(made.vectors[1], 3)[2:], brute(out, made.vectors[1], 3)[2:])


@pytest.mark.parametrize("count", [1, 16, 100, 900, 5000])
def test_the_highest_scores_are_those_of_a_sort(count: int) -> None:
    rng = np.random.default_rng(count)
    for scores in (rng.standard_normal(3000), np.sort(rng.standard_normal(3000)), np.full(3000, -np.inf)):
        scores = scores.astype(np.float32)
        scores[::3] = -np.inf
        expected = np.argsort(-scores)[: min(count, int((scores > -np.inf).sum()))]
        found = lists_module._highest(scores, count)
        assert sorted(scores[found].tolist()) == sorted(scores[expected].tolist())
