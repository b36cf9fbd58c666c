"""An HNSW index: finds what exact search finds, never what is gone, and is made anew if need be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from logs import warns

from mmgem.cli.main import main
from mmgem.errors import UsageError
from mmgem.inference.pca import pca_components
from mmgem.search import index_store as store_module
from mmgem.search.hnsw import QUANTIZATIONS, HNSWConfig, HNSWReport, drop_hnsw_index, update_hnsw_index
from mmgem.search.index_store import HashedFile, IndexStore, NewContent
from mmgem.search.search import PhotoIndex

DIM = 32


def units(count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors (count, DIM) of forty clusters, longer along some directions than along others."""
    scales = np.linspace(1.5, 0.1, DIM)
    centres = np.random.default_rng(99).standard_normal((40, DIM)) * scales
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 40, count)] + 0.6 * rng.standard_normal((count, DIM)) * scales
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def add(out: Path, vectors: np.ndarray, first: int = 0, boxes: int = 0) -> None:
    """Record vectors (n, DIM), a photo for every 1 + ``boxes`` of them."""
    rows = vectors.reshape(-1, 1 + boxes, DIM)
    shapes = (None, *((float(i), 0.0, i + 5.0, 5.0) for i in range(boxes)))
    numbers = range(first, first + len(rows))
    with IndexStore(out, "f", boxes) as store:
        store.set_source(out, "tiny")
        contents = [
            NewContent(n.to_bytes(16, "big"), photo_vectors, shapes, size=(20, 10))
            for n, photo_vectors in zip(numbers, rows, strict=True)
        ]
        store.record(contents, [HashedFile(f"{n:05}.jpg", 1, 1, n.to_bytes(16, "big")) for n in numbers])


def recall(out: Path, queries: np.ndarray, regions: bool = False) -> float:
    """The share of the exact first ten that the HNSW index finds too; it must be in use."""
    fast, exact = PhotoIndex.open(out), PhotoIndex.open(out, exact=True)
    assert fast.hnsw is not None and exact.hnsw is None
    shared = 0
    for query in queries:
        hits, expected = (i.search_regions(query) if regions else i.search(query) for i in (fast, exact))
        assert len(hits) == len(expected) == 10
        shared += len({hit.path for hit in hits} & {hit.path for hit in expected})
        scores = {(hit.path, hit.box): hit.score for hit in expected}
        for hit in hits:
            assert hit.score == pytest.approx(scores.get((hit.path, hit.box), hit.score), abs=1e-6)
    return shared / (10 * len(queries))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    add(tmp_path / "idx", units(2200))
    return tmp_path / "idx"


@pytest.mark.parametrize("kind", [*QUANTIZATIONS, "int8:16"])
def test_hnsw_finds_what_exact_search_finds(out: Path, kind: str) -> None:
    report = update_hnsw_index(out, HNSWConfig.parse(kind))
    assert report is not None and (str(report.config), report.rows, report.added) == (kind, 2200, 2200)
    assert report.bytes == sum(p.stat().st_size for p in (out / "ann").iterdir() if p.suffix != ".json")
    queries = units(30, seed=1)
    assert recall(out, queries) > (0.9 if kind == "binary" else 0.97)
    index = PhotoIndex.open(out)
    assert [[h.path for h in hits] for hits in index.search_many(queries)] == [
        [h.path for h in index.search(query)] for query in queries
    ]
    # Asked for a large part of the index, comparing all is better.
    assert len(index.search(queries[0], 2000)) == 2000


def test_new_rows_are_found_before_and_after_they_join(out: Path) -> None:
    update_hnsw_index(out, HNSWConfig())
    later = units(100, seed=5)
    add(out, later, first=2200)
    for _ in range(2):
        index = PhotoIndex.open(out)
        assert index.hnsw is not None
        assert [index.search(v, 1)[0].path.name for v in later] == [f"{n:05}.jpg" for n in range(2200, 2300)]
        report = update_hnsw_index(out)
        assert report is not None and report.rows == 2300
    assert report.added == 0


def test_what_is_gone_is_not_found(out: Path) -> None:
    update_hnsw_index(out, HNSWConfig())
    query = units(1, seed=3)[0]
    best = [hit.path.name for hit in PhotoIndex.open(out, exact=True).search(query, 200)]
    with IndexStore(out, "f") as store:
        store.forget(best[:50])
    index = PhotoIndex.open(out)
    assert index.hnsw is not None
    assert [hit.path.name for hit in index.search(query)] == best[50:60]
    with IndexStore(out, "f") as store:  # more than there are candidates
        store.forget(best[50:190])
    assert [hit.path.name for hit in PhotoIndex.open(out).search(query)] == best[190:200]


def test_rows_numbered_anew_need_another_hnsw_index(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update_hnsw_index(out, HNSWConfig("float16"))
    monkeypatch.setattr(store_module, "_MIN_DEAD_ROWS", 1)
    with IndexStore(out, "f") as store:
        store.forget([f"{n:05}.jpg" for n in range(1000)])
        store.compact()
    with warns(match=r"numbered anew; mmgem index makes it again; searching all"):
        assert PhotoIndex.open(out).hnsw is None
    report = update_hnsw_index(out)
    assert report is not None and (report.config.quantization, report.added) == ("float16", 1200)
    assert recall(out, units(10, seed=1)) > 0.97


def test_regions_have_an_hnsw_index_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "idx"
    add(out, units(4400), boxes=3)
    update_hnsw_index(out, HNSWConfig())
    assert recall(out, units(20, seed=1), regions=True) > 0.97
    assert recall(out, units(20, seed=1)) > 0.97
    assert all(hit.box is None for hit in PhotoIndex.open(out).search(units(1, seed=1)[0]))


def test_one_of_fewer_dimensions_is_made_again_when_the_index_has_grown(tmp_path: Path) -> None:
    out = tmp_path / "idx"
    add(out, units(40))
    update_hnsw_index(out, HNSWConfig("int8", 8))
    add(out, units(60, seed=1), first=40)
    report = update_hnsw_index(out)
    assert report is not None and report.added == 60
    add(out, units(1900, seed=2), first=100)
    report = update_hnsw_index(out)
    assert report is not None and report.added == 2000


def test_the_axes_keep_what_matters() -> None:
    vectors = units(500)
    axes = pca_components(vectors, DIM)
    np.testing.assert_allclose(axes.T @ axes, np.eye(DIM), atol=1e-5)
    lengths = np.square(vectors @ axes).sum(0)
    assert (np.diff(lengths) <= 1e-3).all()
    np.testing.assert_allclose(
        (vectors[:9] @ axes) @ (vectors[:9] @ axes).T, vectors[:9] @ vectors[:9].T, atol=1e-5
    )


def test_a_damaged_hnsw_index_is_not_used(out: Path) -> None:
    update_hnsw_index(out, HNSWConfig())
    (file,) = (out / "ann").glob("photos-*.usearch")
    file.write_bytes(bytes(file.stat().st_size))
    with warns(match="its HNSW index cannot be read"):
        assert PhotoIndex.open(out).hnsw is None
    file.write_bytes(bytes(1000))
    with warns(match="its HNSW index is damaged"):
        index = PhotoIndex.open(out)
    assert index.hnsw is None and len(index.search(units(1)[0])) == 10
    report = update_hnsw_index(out)
    assert report is not None and report.added == 2200
    (out / "ann" / "graph.json").write_text("{")
    with warns(match="cannot be read"):
        assert PhotoIndex.open(out).hnsw is None
    assert isinstance(update_hnsw_index(out, HNSWConfig()), HNSWReport)
    assert recall(out, units(5, seed=1)) > 0.97


def test_killed_while_it_is_made(out: Path) -> None:
    """The index opens, says what is unfinished, and the next update goes on from where it was saved."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom mmgem.search import hnsw\n"
        "hnsw._SAVE_EVERY = hnsw._BATCH_ROWS = 250\n"
        "def slow(parts):\n    for part in parts:\n        yield part\n        print(part.stop, flush=True)\n"
        "        time.sleep(60 if part.stop > 700 else 0)\n"
        "hnsw.update_hnsw_index(Path(sys.argv[1]), hnsw.HNSWConfig(), progress=slow)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, out], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) > 700:
            break
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with warns(match=r"HNSW index is of (500|750) of 2200 vectors; mmgem index goes on"):
        index = PhotoIndex.open(out)
    assert index.hnsw is None and len(index.search(units(1)[0])) == 10
    report = update_hnsw_index(out)
    assert report is not None and report.added in (1450, 1700)
    assert recall(out, units(10, seed=1)) > 0.97
    assert len(list((out / "ann").iterdir())) == 2


def test_without_usearch_the_search_is_exact(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update_hnsw_index(out, HNSWConfig())
    monkeypatch.setitem(sys.modules, "usearch", None)
    with warns(match=r"pip install 'mmgem\[index\]'"):
        assert PhotoIndex.open(out).hnsw is None
    with pytest.raises(UsageError, match=r"pip install 'mmgem\[index\]'"):
        update_hnsw_index(out, HNSWConfig())


def test_what_cannot_be_kept(out: Path) -> None:
    for wrong in ("int9", "int8:", "int8:0", "int8:x"):
        with pytest.raises(UsageError, match=f"no HNSW index '{wrong}'; there are int8, float16"):
            HNSWConfig.parse(wrong)
    with pytest.raises(UsageError, match=r"--hnsw int8:64: the vectors of .* have 32 numbers"):
        update_hnsw_index(out, HNSWConfig("int8", 64))
    assert update_hnsw_index(out) is None
    update_hnsw_index(out, HNSWConfig())
    drop_hnsw_index(out)
    assert update_hnsw_index(out) is None and not (out / "ann").exists()


def test_commands(
    tmp_path: Path,
    tiny_photos: list[Path],
    tiny_model_folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idx = str(tmp_path / "idx")
    index = ["index", str(tiny_photos[0].parent), "--out", idx, "--model", str(tiny_model_folder)]
    assert main([*index, "--hnsw", "int8:4", "--json"]) == 0
    hnsw = json.loads(capfd.readouterr().out)["graph"]
    assert (hnsw["kind"], hnsw["vectors"], hnsw["added"]) == ("int8:4", 6, 6)
    assert main(index) == 0
    assert "int8:4 HNSW index of 6 vectors (0 added)" in capfd.readouterr().out
    assert main(["search", idx, "a dog"]) == main(["search", idx, "a dog", "--exact"]) == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 12 and err == ""
    monkeypatch.setitem(sys.modules, "usearch", None)
    assert main(["search", idx, "a dog"]) == 0
    assert "warning: an HNSW index (--hnsw) needs usearch" in capfd.readouterr().err
    assert main(index) == 0
    assert "the HNSW index stays as it was: an HNSW index (--hnsw) needs usearch" in capfd.readouterr().err
    assert main([*index, "--hnsw", "int8"]) == main([*index, "--ann", "int8"]) == 2
    assert main([*index, "--ann", "none"]) == 0  # its name before
    assert not (tmp_path / "idx" / "ann").exists()
