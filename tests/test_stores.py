"""Vector stores: what is pushed comes back equal, and is found as the index finds it."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from test_hnsw import DIM, add, units

from mmgem.cli.main import main
from mmgem.errors import SearchIndexError, UsageError
from mmgem.search.hits import Hit
from mmgem.search.index_store import HashedFile, IndexStore, NewContent
from mmgem.search.search import PhotoIndex
from mmgem.search.stores import STORES, open_store
from mmgem.search.stores.base import search_store, search_store_regions
from mmgem.search.stores.push import push


@pytest.fixture
def out(tmp_path: Path) -> Path:
    add(tmp_path / "idx", units(120), boxes=3)
    return tmp_path / "idx"


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}:{tmp_path / 'store'}"


def bring(out: Path, place: str) -> tuple[int, int, int]:
    with open_store(place, "t", create=True) as store:
        done = push(out, store)
    return done.points, done.added, done.removed


def same(hits: list[Hit], expected: list[Hit]) -> None:
    assert [(hit.path, hit.box) for hit in hits] == [(hit.path, hit.box) for hit in expected]
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-6)


def one_vector(out: Path, vector: np.ndarray, names: Sequence[str], fingerprint: str = "f") -> None:
    """An index of photos that are copies of one, whose vector is (1, D)."""
    with IndexStore(out, fingerprint) as store:
        store.set_source(out, "tiny")
        contents = [NewContent(bytes(16), vector, (None,))]
        store.record(contents, [HashedFile(name, 1, 1, bytes(16)) for name in names])


def test_round_trip(out: Path, place: str) -> None:
    assert bring(out, place) == (120, 120, 0)
    index = PhotoIndex.open(out)
    with open_store(place, "t") as store:
        back = {
            (payload.path, payload.box): (vector, payload)
            for points in store.read()
            for vector, payload in zip(points.vectors, points.payloads, strict=True)
        }
        assert len(back) == 120 and store.photos() == 30
        for path, box, vector in zip(index.paths, index.boxes, index.vectors, strict=True):
            stored_vector, payload = back[str(path), box]
            assert stored_vector.dtype == np.float32 and np.array_equal(stored_vector, vector)
            assert (payload.width, payload.height, payload.region) == (20, 10, box is not None)
            assert (payload.fingerprint, payload.model, payload.folder) == ("f", "tiny", str(out))
        for query in units(4, seed=1):
            for exact in (False, True):
                same(search_store(store, query, 7, exact), index.search(query, 7))
                same(search_store_regions(store, query, 7, exact), index.search_regions(query, 7))
        assert len(search_store(store, query, 500)) == 30
        assert len(search_store_regions(store, query, 500)) == 30


def test_short_regions_are_pushed_as_their_codes_say(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "idx"
    monkeypatch.setattr("mmgem.search.region_rows.SHORT_FROM", 100)
    rows = units(5 * 40).reshape(40, 5, DIM)
    for start, stop in ((0, 30), (30, 40)):
        with IndexStore(out, "f", 4) as store:
            store.set_source(out, "tiny")
            for number in range(start, stop):
                boxes = [None, *((float(n), 1.0, n + 30.5, 40.0) for n in range(4))]
                digest = number.to_bytes(16, "big")
                made = NewContent(digest, rows[number], boxes, size=(100, 80))
                store.record([made], [HashedFile(f"{number}.jpg", 1, 1, digest)])
        assert bring(out, place) == (5 * stop, 5 * (stop - start), 0)
    assert bring(out, place) == (200, 0, 0)
    index = PhotoIndex.open(out, exact=True)
    assert index.boxes_of(index.folder / "7.jpg") == [(n, 1, n + 30.5, 40) for n in range(4)]
    with open_store(place, "t") as store:
        for query in rows[::7, 2]:
            found, expected = (
                search_store_regions(store, query, 1, True)[0],
                index.search_regions(query, 1)[0],
            )
            assert (found.path, found.box) == (expected.path, expected.box)
            assert found.score == pytest.approx(expected.score, abs=0.02)
        sizes = {(payload.width, payload.height) for points in store.read() for payload in points.payloads}
    assert sizes == {(100, 80)}


def test_equal_scores_are_in_the_order_of_the_index(tmp_path: Path, place: str) -> None:
    out, vector = tmp_path / "it's an index", units(1)
    one_vector(out, vector, ("3.jpg", "1.jpg", "2.jpg"))
    bring(out, place)
    with open_store(place, "t") as store:
        same(search_store(store, vector[0], 2), PhotoIndex.open(out).search(vector[0], 2))
        (points,) = store.read()
        assert {(payload.width, payload.height) for payload in points.payloads} == {(None, None)}


def test_a_push_sends_what_is_new_and_removes_what_is_gone(out: Path, place: str) -> None:
    bring(out, place)
    assert bring(out, place) == (120, 0, 0)
    add(out, units(8, seed=2), first=100, boxes=3)
    with IndexStore(out, "f") as index:
        index.forget(["00000.jpg"])
    assert bring(out, place) == (124, 8, 4)
    # The index of another folder in the same collection is left alone.
    other = out.with_name("other")
    add(other, units(4, seed=4))
    assert bring(other, place) == (4, 4, 0)
    assert bring(out, place) == (124, 0, 0)
    with open_store(place, "t") as store:
        assert store.photos() == 31 + 4
        assert search_store(store, units(4, seed=4)[2], 1)[0].path == other / "00002.jpg"


def test_a_push_that_was_stopped_goes_on(out: Path, place: str) -> None:
    def stopped(parts: Sequence[slice]) -> Iterator[slice]:
        yield from parts[:2]
        raise KeyboardInterrupt

    with open_store(place, "t", create=True) as store:
        store.batch = 25
        with pytest.raises(KeyboardInterrupt):
            push(out, store, stopped)
    assert bring(out, place) == (120, 70, 0)


def test_vectors_of_another_model_are_refused(out: Path, place: str, tmp_path: Path) -> None:
    bring(out, place)
    one_vector(tmp_path / "b", units(1), ["a.jpg"], "g")
    with pytest.raises(SearchIndexError, match=r"\(t\): holds vectors of another model \(f, not g\)"):
        bring(tmp_path / "b", place)
    one_vector(tmp_path / "c", np.ones((1, 1), np.float32), ["a.jpg"])
    with pytest.raises(SearchIndexError, match=f"holds vectors of {DIM} numbers, .* of 1"):
        bring(tmp_path / "c", place)


def test_names_that_are_not_text_are_left_out(tmp_path: Path, place: str) -> None:
    one_vector(tmp_path / "idx", units(1), ("fine.jpg", "caf\udce9.jpg"))
    with open_store(place, "t", create=True) as store:
        done = push(tmp_path / "idx", store)
    assert (done.points, done.skipped) == (1, ("caf\udce9.jpg",))


def test_no_store(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("faiss:x", "qdrant", "lance:"):
        with pytest.raises(UsageError, match="is no store; give lance:WHERE or qdrant:WHERE"):
            open_store(wrong, "t")
    with pytest.raises(SearchIndexError, match="no such folder"):
        open_store(place, "t")
    assert not (tmp_path / "store").exists()
    with open_store(place, "t", create=True) as store:
        assert store.dim() is None
    kind = place.partition(":")[0]
    monkeypatch.setitem(sys.modules, {"qdrant": "qdrant_client", "lance": "lancedb"}[kind], None)
    with pytest.raises(UsageError, match=rf"{kind}: needs .*pip install 'mmgem\[{kind}\]'"):
        open_store(place, "t")


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with open_store(f"qdrant:{url}", "t") as store, pytest.raises(SearchIndexError, match=url):
            store.dim()


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def command(*argv: object) -> tuple[int, str, str]:
        capfd.readouterr()
        return (main([str(part) for part in argv]), *capfd.readouterr())

    return command


def test_commands(
    run: Callable[..., tuple[int, str, str]],
    place: str,
    tmp_path: Path,
    tiny_photos: list[Path],
    tiny_model_folder: Path,
    model_copy: Path,
) -> None:
    idx = tmp_path / "idx"
    indexed = run("index", tiny_photos[0].parent, "--out", idx, "--regions", 2, "--model", tiny_model_folder)
    assert indexed[0] == 0, indexed
    code, out, err = run("store", "push", idx, place, "--json")
    assert code == 0, err
    counts = {"points": 18, "added": 18, "removed": 0, "skipped": []}
    assert json.loads(out) | counts == json.loads(out) and err == ""
    for query in (
        ["a red dog"],
        ["a red dog", "--regions"],
        ["--image", tiny_photos[2]],
        ["--image", tiny_photos[1], "--box", "2,2,30,30", "--regions"],
    ):
        for form in ([], ["--json"]):
            code, out, err = run("store", "search", place, *query, "-k", 3, *form)
            assert code == 0, err
            assert out == run("search", idx, *query, "-k", 3, *form)[1]
    (model_copy / "preprocessor.json").write_text("{}")
    code, _, err = run("store", "search", place, "a dog", "--model", model_copy)
    assert code == 1 and "holds vectors of another model" in err
    code, _, err = run("store", "search", place, "a dog", "--name", "other")
    assert code == 2 and "holds no photos; push an index with: mmgem store push" in err
