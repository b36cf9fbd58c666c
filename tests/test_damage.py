"""Damage is seen: no file with flipped bits, a torn end or impossible numbers is read as if it were whole."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from damage import TORN, flip_bits, lengthen
from logs import warns
from test_hnsw import DIM, add, units
from test_index import PixelEmbedder, paint, update

from mmgem.errors import DataError, SearchIndexError
from mmgem.search.hits import Hit
from mmgem.search.hnsw import HNSWConfig, update_hnsw_index
from mmgem.search.index import update_index
from mmgem.search.index_store import HashedFile, IndexStore, NewContent
from mmgem.search.search import PhotoIndex

SEEDS = range(40)
VECTORS, MANIFEST = "vectors-0.f32", "photos.sqlite3"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "idx"
    add(out, units(90), boxes=2)
    add(out, units(60, 1), first=30, boxes=2)  # the second run begins inside a block
    return out


def copied(whole: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(whole, to))


def searched(out: Path, queries: np.ndarray, exact: bool = True) -> list[list[Hit]]:
    index = PhotoIndex.open(out, folder=Path("photos"), exact=exact)
    return index.search_many(queries, 5) + index.search_regions_many(queries, 5)


def test_flipped_bits_of_vectors_are_never_a_result(whole: Path, tmp_path: Path) -> None:
    queries = units(3, 7)
    expected = searched(whole, queries)
    for seed in SEEDS:
        out = copied(whole, tmp_path / "idx")
        flip_bits(out / VECTORS, seed)
        with pytest.raises(SearchIndexError, match=rf"{VECTORS}: rows \d+.* damaged; mmgem index --repair"):
            searched(out, queries)
    assert searched(copied(whole, tmp_path / "idx"), queries) == expected


def test_only_what_is_read_is_compared(whole: Path, tmp_path: Path) -> None:
    out = copied(whole, tmp_path / "idx")
    flip_bits(out / VECTORS, 0, start=0, stop=32 * DIM * 4)
    index = PhotoIndex.open(out)
    assert index.vector_of("00049.jpg") @ units(1)[0] <= 1.001
    with pytest.raises(SearchIndexError, match="rows 0-31 are damaged"):
        index.vector_of("00000.jpg")
    for read in (lambda: index.vectors, lambda: index.search(units(1)[0]), lambda: index.search(units(1)[0])):
        with pytest.raises(SearchIndexError, match="rows 0-31 are damaged"):
            read()


def test_flipped_bits_of_the_manifest_are_never_a_result(whole: Path, tmp_path: Path) -> None:
    queries = units(2, 7)
    for seed in SEEDS:
        out = copied(whole, tmp_path / "idx")
        flip_bits(out / MANIFEST, seed)
        with pytest.raises(SearchIndexError):
            searched(out, queries)
        with pytest.raises(SearchIndexError), IndexStore(out, "f"):
            pass


def test_a_manifest_that_changed_since_its_checksum_is_read(whole: Path, tmp_path: Path) -> None:
    """After a kill, and while a run is writing."""
    out = copied(whole, tmp_path / "idx")
    with IndexStore(out, "f") as store:
        store.forget(["00000.jpg"])
        assert len(PhotoIndex.open(out)) == len(PhotoIndex.open(whole)) - 3
    (out / f".{MANIFEST}.crc32").unlink()
    assert len(PhotoIndex.open(out)) == len(PhotoIndex.open(whole)) - 3


@pytest.mark.parametrize("quantization", ["int8", "binary"])
def test_a_damaged_hnsw_index_is_not_used(tmp_path: Path, quantization: str) -> None:
    pytest.importorskip("usearch")
    add(tmp_path / "whole", units(1500), boxes=2)
    update_hnsw_index(tmp_path / "whole", HNSWConfig(quantization, 16))
    queries = units(3, 7)
    expected = searched(tmp_path / "whole", queries)
    names = sorted(path.name for path in (tmp_path / "whole" / "ann").iterdir())
    assert len(names) == 4
    for name in names:
        for seed in range(5):
            out = copied(tmp_path / "whole", tmp_path / "idx")
            flip_bits(out / "ann" / name, seed)
            with warns("HNSW|graph.json"):
                assert searched(out, queries, exact=False) == expected
    report = update_hnsw_index(out)
    assert report is not None and report.added == report.rows == 1500
    assert PhotoIndex.open(out).hnsw is not None


@pytest.mark.parametrize("tear", TORN)
def test_torn_files_of_an_index_are_seen(whole: Path, tmp_path: Path, tear: Callable[[Path], None]) -> None:
    out = copied(whole, tmp_path / "idx")
    tear(out / MANIFEST)
    if tear is lengthen:  # SQLite knows where its pages end
        assert searched(out, units(1)) == searched(whole, units(1))
        return
    with pytest.raises(SearchIndexError):
        searched(out, units(1))


def zeros(rows: np.ndarray) -> None:
    rows[:] = 0


def not_a_number(rows: np.ndarray) -> None:
    rows[0, 3] = np.nan


def huge(rows: np.ndarray) -> None:
    rows[0, 3] = 1e30


WRONG = pytest.mark.parametrize("spoil", [zeros, not_a_number, huge])


@WRONG
def test_impossible_vectors_are_refused_when_written(
    whole: Path, tmp_path: Path, spoil: Callable[[np.ndarray], None]
) -> None:
    out = copied(whole, tmp_path / "idx")
    vectors = units(2)
    spoil(vectors)
    with IndexStore(out, "f", 2) as store:
        contents = [NewContent(b"new", vectors, (None, (0.0, 0.0, 1.0, 1.0)), size=(9, 9))]
        with pytest.raises(SearchIndexError, match="not finite and of unit length"):
            store.record(contents, [HashedFile("new.jpg", 1, 1, b"new")])
    assert len(PhotoIndex.open(out)) == len(PhotoIndex.open(whole))


@WRONG
def test_impossible_vectors_are_seen_when_read(
    whole: Path, tmp_path: Path, spoil: Callable[[np.ndarray], None]
) -> None:
    for before in (False, True):
        out = copied(whole, tmp_path / "idx")
        if before:
            as_of_before(out)
        stored = np.memmap(out / VECTORS, "<f4", "r+", shape=(150, DIM))
        spoil(stored[40:42])
        stored.flush()
        with pytest.raises(SearchIndexError, match="rows 32-63 are damaged"):
            searched(out, units(1))


def as_of_before(out: Path) -> None:
    """Make an index one of format 1."""
    with sqlite3.connect(out / MANIFEST) as db:
        db.execute("DROP TABLE checksums")
        db.execute("ALTER TABLE photos DROP COLUMN ctime_ns")
        db.execute("PRAGMA user_version = 1")
    db.close()
    (out / f".{MANIFEST}.crc32").unlink()


def test_an_index_of_the_version_before_goes_on_and_gets_checksums(whole: Path, tmp_path: Path) -> None:
    queries = units(3, 7)
    out = copied(whole, tmp_path / "idx")
    as_of_before(out)
    assert searched(out, queries) == searched(whole, queries)
    with IndexStore(out, "f"):
        pass
    assert searched(out, queries) == searched(whole, queries)
    flip_bits(out / VECTORS, 0)
    with pytest.raises(SearchIndexError, match="damaged"):
        searched(out, queries)


def photos(folder: Path, count: int = 70) -> Path:
    for seed in range(count):
        paint(folder / f"{seed:02}.png", seed)
    return folder


def test_damage_is_repaired_by_embedding_what_it_hit(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos"), tmp_path / "idx"
    update(out, folder, batch=32)
    queries = np.stack([PhotoIndex.open(out).vector_of(f"{n:02}.png") for n in (0, 40, 69)])
    expected = [hit.path for hits in PhotoIndex.open(out).search_many(queries, 3) for hit in hits]
    flip_bits(out / VECTORS, 1, start=32 * 48 * 4, stop=64 * 48 * 4)
    assert update(out, folder)[1] == []  # nothing is read that need not be
    embedder = PixelEmbedder()
    report = update_index(out, folder, lambda: embedder, "pixels-1", repair=True)
    assert sorted(embedder.embedded) == [f"{n:02}.png" for n in range(32, 64)]
    assert (report.photos, report.failed) == (70, ())
    assert [hit.path for hits in PhotoIndex.open(out).search_many(queries, 3) for hit in hits] == expected
    next(out.glob("vectors-*.f32")).write_bytes(b"")
    with pytest.raises(SearchIndexError, match="shorter than its manifest says"):
        PhotoIndex.open(out)
    report = update_index(out, folder, PixelEmbedder, "pixels-1", repair=True)
    assert (report.embedded, report.photos) == (70, 70)
    assert [hit.path for hits in PhotoIndex.open(out).search_many(queries, 3) for hit in hits] == expected


def test_compaction_keeps_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = photos(tmp_path / "photos"), tmp_path / "idx"
    update(out, folder)
    monkeypatch.setattr("mmgem.search.index_store._MIN_DEAD_ROWS", 1)
    for number in range(40, 70):
        (folder / f"{number}.png").unlink()
    flip_bits(out / VECTORS, 1, start=0, stop=32 * 48 * 4)
    with pytest.raises(SearchIndexError, match="rows 0-31 are damaged"):
        update(out, folder)
    update_index(out, folder, PixelEmbedder, "pixels-1", repair=True)
    assert (len(PhotoIndex.open(out)), len(PhotoIndex.open(out).vectors)) == (40, 40)
    assert (out / "vectors-1.f32").stat().st_size == 40 * 48 * 4


def test_vectors_of_another_length_are_a_bad_photo(tmp_path: Path) -> None:
    class Long(PixelEmbedder):
        def embed_images(self, images: Sequence[Path]) -> np.ndarray:
            vectors = super().embed_images(images)
            vectors[[path.name == "03.png" for path in images]] *= 1.01
            return vectors

    report, _ = update(tmp_path / "idx", photos(tmp_path / "photos", 5), Long())
    assert [(bad.path, bad.reason) for bad in report.failed] == [
        ("03.png", "its embedding is not of unit length")
    ]


def test_a_photo_written_over_with_its_size_and_time_is_embedded_again(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", 3), tmp_path / "idx"
    update(out, folder)
    stat = (folder / "01.png").stat()
    other = paint(tmp_path / "other.png", 99).read_bytes()
    longest = max(len(other), stat.st_size)
    # PNG readers stop at the end of the image.
    (folder / "01.png").write_bytes(other.ljust(longest, b"\0"))
    os.utime(folder / "01.png", ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    with sqlite3.connect(out / MANIFEST) as db:
        db.execute("UPDATE photos SET size = ? WHERE path = ?", (longest, b"01.png"))
    db.close()
    assert update(out, folder)[1] == ["01.png"]


def test_damaged_stores_are_seen(tmp_path: Path) -> None:
    from mmgem.search.stores import base

    class Store:
        place, lossless, points = "toy:", True, None

        def nearest(self, *_: object) -> base.Points:
            assert self.points is not None
            return self.points

    vectors = units(2)
    payloads = [
        base.Payload(f"/p/{n}.jpg", "/p", box, box is not None, 9, 9, "f", "tiny")
        for n, box in enumerate([None, (1.0, 2.0, 3.0, 4.0)])
    ]
    ids = [
        base.point_id("/p", "0.jpg", None, "f", vectors[0]),
        base.point_id("/p", "1.jpg", "[1, 2, 3, 4]", "f", vectors[1]),
    ]
    store = Store()
    store.points = base.Points(ids, vectors, payloads)
    assert len(base.search_store(store, vectors[0], 2)) == 2
    for spoiled in (vectors.copy(), vectors.copy(), vectors.copy()):
        flat = spoiled.view(np.uint32)
        flat[1, 5] ^= 1
        store.points = base.Points(ids, spoiled, payloads)
        with pytest.raises(SearchIndexError, match=r"toy:: damaged, 1 of the points found.*1.jpg"):
            base.search_store(store, vectors[0], 2)
    store.lossless = False
    spoiled[0] = 0
    with pytest.raises(SearchIndexError, match="damaged, 1 of"):
        base.search_store(store, vectors[0], 2)


def test_damage_of_a_whole_folder_is_named(tmp_path: Path) -> None:
    from mmgem.utils.checksums import folder_problems, verify_file, write_checksums

    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 300)
    (tmp_path / "README.md").write_text("people edit this")
    write_checksums(tmp_path)
    (tmp_path / "README.md").write_text("edited")
    assert folder_problems(tmp_path) == []
    kept = (tmp_path / "a.bin").read_bytes()
    for seed in SEEDS:
        (tmp_path / "a.bin").write_bytes(kept)
        flip_bits(tmp_path / "a.bin", seed)
        with pytest.raises(DataError, match=r"a.bin: damaged; make it anew \(its checksum"):
            verify_file(tmp_path / "a.bin", "make it anew", DataError)
    for tear in TORN:
        (tmp_path / "a.bin").write_bytes(kept)
        tear(tmp_path / "a.bin")
        assert "bytes instead of 76800" in folder_problems(tmp_path)[0][1]
    (tmp_path / "checksums.json").write_text("{")
    assert folder_problems(tmp_path)[0][0] == tmp_path / "checksums.json"
