"""Place words: what they mean, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from mmgem.errors import UsageError
from mmgem.search.spatial_filter import SpatialFilter, parse_spatial_filter, split_query


@pytest.mark.parametrize(
    ("query", "what", "place"),
    [
        ("a dog at the bottom left", "a dog", SpatialFilter(-1, 1)),
        ("a dog, at bottom-left", "a dog", SpatialFilter(-1, 1)),
        ("A dog in the top right corner of the photo.", "A dog", SpatialFilter(1, -1)),
        ("two men on the left", "two men", SpatialFilter(-1, None)),
        ("two men on the left side", "two men", SpatialFilter(-1, None)),
        ("a kite at the top", "a kite", SpatialFilter(None, -1)),
        ("a kite in the upper half of the image", "a kite", SpatialFilter(None, -1)),
        ("a kite in the middle", "a kite", SpatialFilter(0, 0)),
        ("a kite in the middle left", "a kite", SpatialFilter(-1, 0)),
        ("a kite at the bottom centre", "a kite", SpatialFilter(0, 1)),
        ("top left: a red car", "a red car", SpatialFilter(-1, -1)),
        ("in the lower right corner: a red car", "a red car", SpatialFilter(1, 1)),
        # Not places in the photo.
        ("a man on the left of a tree", "a man on the left of a tree", None),
        ("a man turning left", "a man turning left", None),
        ("a woman in a red top", "a woman in a red top", None),
        ("a bottom", "a bottom", None),
        ("top", "top", None),
        ("a dog on the left right", "a dog on the left right", None),
    ],
)
def test_queries(query: str, what: str, place: SpatialFilter | None) -> None:
    assert split_query(query) == (what, place)


@pytest.mark.parametrize("words", ["", "north", "left right", "top bottom", "left-left", "middle top left"])
def test_no_places(words: str) -> None:
    with pytest.raises(UsageError, match="is no place"):
        parse_spatial_filter(words)


def test_fit() -> None:
    near, far = (0, 0.4), (0.6, 1)
    ends = [(near, near), (far, near), (near, far), (far, far), ((0.4, 0.6), (0.4, 0.6))]
    corners = np.array([(x0, y0, x1, y1) for (x0, x1), (y0, y1) in ends])
    places = [
        SpatialFilter(-1, -1),
        SpatialFilter(1, -1),
        SpatialFilter(-1, 1),
        SpatialFilter(1, 1),
        SpatialFilter(0, 0),
    ]
    for best, place in enumerate(places):
        fits = place.scores(corners)
        assert int(fits.argmax()) == best
        assert (fits > 0).sum() == 1
    assert (SpatialFilter(across=-1).scores(corners) > 0).tolist() == [True, False, True, False, False]
    assert SpatialFilter().scores(corners).tolist() == [1] * 5
