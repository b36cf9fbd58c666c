from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgem.errors import UsageError
from mmgem.evaluate import retrieval
from mmgem.evaluate.retrieval import (
    ranks,
    ranks_from_matrix,
    retrieval_scores,
    retrieval_scores_from_matrix,
)


def units(count: int, dim: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_ranks(scores: np.ndarray, owner: np.ndarray) -> tuple[list[int], list[int]]:
    """By sorting each row and column, wrong items first among equals."""
    image_ranks = [
        1
        + [owner[t] == i for t in sorted(range(len(owner)), key=lambda t: (-row[t], owner[t] == i))].index(
            True
        )
        for i, row in enumerate(scores)
    ]
    text_ranks = [
        1 + sorted(range(len(scores)), key=lambda i: (-column[i], i == owner[t])).index(owner[t])
        for t, column in enumerate(scores.T)
    ]
    return image_ranks, text_ranks


def test_perfect_embeddings_and_the_shape_of_the_answer() -> None:
    images = np.eye(20, dtype=np.float32)
    owner = np.repeat(np.arange(20), 5)
    scores = retrieval_scores(images, images[owner], owner)
    full = {"R@1": 100.0, "R@5": 100.0, "R@10": 100.0}
    assert scores == {"i2t": full, "t2i": full, "images": 20, "texts": 100}


def test_any_text_of_the_image_is_a_hit() -> None:
    # Image 0 finds its second text first; that text and the first one find image 0 and 1.
    scores = np.array([[0.1, 0.9, 0.2], [0.8, 0.0, 0.7]])
    found = retrieval_scores_from_matrix(scores, [0, 0, 1])
    assert found["i2t"]["R@1"] == 50
    assert found["t2i"]["R@1"] == pytest.approx(200 / 3)
    assert (found["images"], found["texts"]) == (2, 3)


@settings(deadline=None)
@given(st.data())
def test_ranks_equal_sorting(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 8))
    extra = data.draw(st.lists(st.integers(0, n - 1), max_size=12))
    owner = np.array(data.draw(st.permutations([*range(n), *extra])))
    flat = data.draw(st.lists(st.integers(-2, 2), min_size=n * len(owner), max_size=n * len(owner)))
    scores = np.array(flat, np.float32).reshape(n, len(owner))
    image_ranks, text_ranks = ranks_from_matrix(scores, owner)
    assert (image_ranks.tolist(), text_ranks.tolist()) == slow_ranks(scores, owner)


def test_embeddings_and_their_matrix_agree_in_any_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    images, owner = units(30, 16), np.random.default_rng(1).permutation(np.arange(90) % 30)
    texts = units(90, 16, seed=2) + 0.5 * images[owner]
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    expected = slow_ranks(images @ texts.T, owner)
    for size in (1, 4 * 90 * 7, 1 << 20):
        monkeypatch.setattr(retrieval, "_BLOCK_BYTES", size)
        for found in (ranks(images, texts, owner), ranks_from_matrix(images @ texts.T, owner)):
            assert (found[0].tolist(), found[1].tolist()) == expected


def test_constant_embeddings_find_nothing() -> None:
    same = np.repeat(units(1, 384), 200, axis=0)
    owner = np.arange(1000) // 5
    scores = retrieval_scores(same, same.repeat(5, axis=0), owner)
    nothing = {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0}
    assert (scores["i2t"], scores["t2i"]) == (nothing, nothing)
    scores = retrieval_scores_from_matrix(np.zeros((200, 1000), np.int64), owner)
    assert (scores["i2t"], scores["t2i"]) == (nothing, nothing)


def test_the_matrix_is_left_as_it_was() -> None:
    scores = units(4, 4)
    before = scores.copy()
    retrieval_scores_from_matrix(scores, [0, 1, 2, 3])
    assert np.array_equal(scores, before)


def test_half_precision() -> None:
    images, texts, owner = units(10, 64), units(20, 64, 1), np.arange(20) % 10
    half = retrieval_scores(images.astype(np.float16), texts.astype(np.float16), owner)
    assert half["texts"] == 20


def broken(rows: np.ndarray, value: float) -> np.ndarray:
    rows = rows.copy()
    rows[1, 0] = value
    return rows


@pytest.mark.parametrize(
    ("images", "texts", "owner", "message"),
    [
        (units(3, 4), units(4, 4), [0, 1, 0, 1], r"1 of 3 images have no text, the first is images\[2\]"),
        (units(2, 4), units(3, 4), [0, 1], "image_of_text must be 3 integers"),
        (units(2, 4), units(2, 4), [0.0, 1.0], "image_of_text must be 2 integers"),
        (units(2, 4), units(2, 4), [0, 2], "from 0 to 1"),
        (units(2, 4), units(2, 4), [0, -1], "from 0 to 1"),
        (units(2, 4), units(2, 5), [0, 1], "images have 4 dimensions, texts 5"),
        (units(2, 4)[:0], units(2, 4), [0, 1], r"images must have the shape"),
        (units(2, 4), 3 * units(2, 4), [0, 1], r"texts\[0\] has length 3;"),
        (broken(units(2, 4), np.nan), units(2, 4), [0, 1], r"images\[1\] has length nan"),
    ],
)
def test_errors(images: np.ndarray, texts: np.ndarray, owner: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        retrieval_scores(images, texts, owner)


def test_matrix_errors() -> None:
    with pytest.raises(UsageError, match="not finite"):
        retrieval_scores_from_matrix(broken(np.zeros((2, 2)), np.inf), [0, 1])
    with pytest.raises(UsageError, match="shape"):
        retrieval_scores_from_matrix(np.zeros(3), [0, 1, 2])
