"""Searching an index: exact, in a fixed order, whatever the rows hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgem.errors import UsageError
from mmgem.search.index_store import IndexSnapshot
from mmgem.search.search import PhotoIndex

FOLDER = Path("/photos")


def make(vectors: np.ndarray, entries: list[tuple[int, str, list[float] | None]]) -> PhotoIndex:
    stored = sorted(
        (row, path.encode(), None if box is None else json.dumps(box)) for row, path, box in entries
    )
    return PhotoIndex(IndexSnapshot("f", "tiny", FOLDER, vectors.astype(np.float32), stored), FOLDER)


def simple(vectors: np.ndarray) -> PhotoIndex:
    return make(vectors, [(row, f"{row:04}.jpg", None) for row in range(len(vectors))])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(0, 30),
    owners=st.lists(st.integers(0, 29), max_size=40),
    k=st.integers(1, 50),
)
def test_same_as_sorting_everything(seed: int, rows: int, owners: list[int], k: int) -> None:
    """Against a plain sort, with copies (several paths a row), dead rows and many exact ties."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (rows, 3)).astype(np.float32)
    query = rng.integers(-1, 2, 3).astype(np.float32)
    entries = [(row, f"{number}.jpg", None) for number, row in enumerate(owners) if row < rows]
    expected = sorted((-float(vectors[row] @ query), path) for row, path, _ in entries)[:k]
    hits = make(vectors, entries).search(query, k)
    assert [(-hit.score, hit.path.name) for hit in hits] == expected


def test_many_queries_are_the_same_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    index = simple(rng.normal(size=(200, 16)))
    queries = rng.normal(size=(70, 16))
    for query, hits in zip(queries, index.search_many(queries, 5), strict=True):
        alone = index.search(query, 5)
        assert [hit.path for hit in hits] == [hit.path for hit in alone]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], abs=1e-4)
    assert index.search_many(queries[:0]) == []


def test_regions_come_with_their_boxes() -> None:
    vectors = np.eye(3)
    index = make(vectors, [(0, "a.jpg", None), (1, "a.jpg", [0, 0, 4.5, 5]), (2, "b.jpg", None)])
    best = index.search(vectors[1], 1)[0]
    assert (best.path, best.box) == (FOLDER / "a.jpg", (0, 0, 4.5, 5))
    assert index.boxes == [None, (0, 0, 4.5, 5), None]
    assert len(index) == 3
    assert np.array_equal(index.vector_of("a.jpg"), vectors[0])


def test_entries_paths_and_vectors_are_aligned() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    index = make(vectors, [(2, "b.jpg", None), (0, "z.jpg", None), (2, "a.jpg", None)])
    assert [path.name for path in index.paths] == ["z.jpg", "a.jpg", "b.jpg"]
    assert np.array_equal(index.vectors, vectors[[0, 2, 2]])


def test_vector_of_a_photo_by_either_path() -> None:
    index = simple(np.eye(4))
    assert np.array_equal(index.vector_of(FOLDER / "0002.jpg"), np.eye(4)[2])
    assert np.array_equal(index.vector_of("0002.jpg"), np.eye(4)[2])
    with pytest.raises(UsageError, match=r"/else/0002\.jpg: not in this index"):
        index.vector_of("/else/0002.jpg")


def test_what_cannot_be_searched_for() -> None:
    index = simple(np.eye(4))
    with pytest.raises(UsageError, match=r"vectors of 4 numbers, not \(3,\)"):
        index.search(np.zeros(3))
    with pytest.raises(UsageError, match="k must be at least 1"):
        index.search(np.zeros(4), k=0)
