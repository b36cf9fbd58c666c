"""Region scores against plain loops, and the pointing game."""

from __future__ import annotations

import numpy as np
import pytest

from mmgem.errors import UsageError
from mmgem.evaluate.regions import place_scores, pointing, quarter, region_scores
from mmgem.evaluate.retrieval import retrieval_scores
from mmgem.search.spatial_filter import parse_spatial_filter


def unit(n: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, 6)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_equals_a_loop() -> None:
    regions, texts = unit(40, 0), unit(60, 1)
    rng = np.random.default_rng(2)
    of_region = np.concatenate([np.arange(20), rng.integers(0, 20, 20)])
    of_text = np.concatenate([np.arange(20), rng.integers(0, 20, 40)])
    found = region_scores(regions, texts, of_region, of_text)
    assert (found["regions"], found["texts"]) == (40, 60)
    for key, asked, other, a, b in (
        ("r2t", regions, texts, of_region, of_text),
        ("t2r", texts, regions, of_text, of_region),
    ):
        for k in (1, 5, 10):
            hits = 0
            for i in range(len(asked)):
                scores = [(float(asked[i] @ other[j]), b[j] == a[i]) for j in range(len(other))]
                best = max(score for score, own in scores if own)
                hits += sum(score > best for score, own in scores if not own) < k
            assert found[key][f"R@{k}"] == pytest.approx(100 * hits / len(asked))  # type: ignore[literal-required]


def test_one_region_a_thing_is_image_retrieval() -> None:
    regions, texts, owner = unit(12, 0), unit(36, 1), np.repeat(np.arange(12), 3)
    plain = retrieval_scores(regions, texts, owner)
    found = region_scores(regions, texts, np.arange(12), owner)
    assert found["r2t"] == plain["i2t"]
    assert found["t2r"] == plain["t2i"]


def test_the_same_for_everything_finds_nothing() -> None:
    same = np.tile(unit(1, 0), (20, 1))
    found = region_scores(same, same, np.arange(20), np.arange(20))
    assert set(found["r2t"].values()) | set(found["t2r"].values()) == {0.0}


def test_things_without_a_text_are_refused() -> None:
    with pytest.raises(UsageError, match="thing 2 has no text or no region"):
        region_scores(unit(3, 0), unit(2, 1), [0, 1, 2], [0, 1])
    with pytest.raises(UsageError, match="one thing a region"):
        region_scores(unit(3, 0), unit(2, 1), [0, 1], [0, 1])


def test_pointing() -> None:
    heat = np.zeros((3, 4, 8), np.float32)
    heat[0, 1, 6] = heat[1, 0, 0] = heat[2, 3, 7] = 1
    boxes = [(120.0, 20.0, 140.0, 40.0), (0.0, 0.0, 5.0, 5.0), (150.0, 70.0, 170.0, 90.0)]
    found = pointing(heat, boxes, [(160, 80)] * 3)
    # Cells are 20 pixels a side: peaks at (130, 30), (10, 10) and (150, 70); the last on the box's edge.
    assert found["pointing"] == pytest.approx(100 * 2 / 3)
    assert found["chance"] == pytest.approx(100 * (400 + 25 + 100) / (3 * 160 * 80))
    with pytest.raises(UsageError, match="2 boxes"):
        pointing(heat, boxes[:2], [(160, 80)] * 3)


def test_things_are_found_where_they_are() -> None:
    vectors = unit(4, 3)
    boxes = np.array([[0, 0, 0.2, 0.2], [0.8, 0.8, 1, 1]])
    found = [(vectors[:2], boxes), (vectors[:2], boxes[::-1]), (vectors[2:], boxes[:0])]
    found[2] = (found[2][0][:0], found[2][1])  # nothing found in it
    top_left, bottom_right = parse_spatial_filter("top left"), parse_spatial_filter("bottom right")
    asked = [(vectors[0], top_left, 0, 1), (vectors[0], bottom_right, 0, 1), (vectors[1], bottom_right, 0, 2)]
    told = place_scores(asked, found)
    assert told["place"] == pytest.approx(100 * 2 / 3)
    assert told["questions"] == 3
    assert place_scores([(vectors[0], top_left, 0, 0)], found)["place"] == 0  # a draw
    with pytest.raises(UsageError, match="mosaic --twins"):
        place_scores([], found)


@pytest.mark.parametrize("x,y,words", [(0, 0, "top left"), (60, 0, "top right"), (60, 30, "bottom right")])
def test_quarter_of_a_box(x: float, y: float, words: str) -> None:
    assert quarter((x, y, x + 40.0, y + 20.0), (100, 50)) == words
