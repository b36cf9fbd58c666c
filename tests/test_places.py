"""Place words: what they mean, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from mmgem.errors import UsageError
from mmgem.search.places import Place, parse_place, split_place


@pytest.mark.parametrize(
    ("query", "what", "place"),
    [
        ("a dog at the bottom left", "a dog", Place(-1, 1)),
        ("a dog, at bottom-left", "a dog", Place(-1, 1)),
        ("A dog in the top right corner of the photo.", "A dog", Place(1, -1)),
        ("two men on the left", "two men", Place(-1, None)),
        ("two men on the left side", "two men", Place(-1, None)),
        ("a kite at the top", "a kite", Place(None, -1)),
        ("a kite in the upper half of the image", "a kite", Place(None, -1)),
        ("a kite in the middle", "a kite", Place(0, 0)),
        ("a kite in the middle left", "a kite", Place(-1, 0)),
        ("a kite at the bottom centre", "a kite", Place(0, 1)),
        ("top left: a red car", "a red car", Place(-1, -1)),
        ("in the lower right corner: a red car", "a red car", Place(1, 1)),
        # Not places in the photo.
        ("a man on the left of a tree", "a man on the left of a tree", None),
        ("a man turning left", "a man turning left", None),
        ("a woman in a red top", "a woman in a red top", None),
        ("a bottom", "a bottom", None),
        ("top", "top", None),
        ("a dog on the left right", "a dog on the left right", None),
    ],
)
def test_queries(query: str, what: str, place: Place | None) -> None:
    assert split_place(query) == (what, place)


@pytest.mark.parametrize("words", ["", "north", "left right", "top bottom", "left-left", "middle top left"])
def test_no_places(words: str) -> None:
    with pytest.raises(UsageError, match="is no place"):
        parse_place(words)


def test_fit() -> None:
    near, far = (0, 0.4), (0.6, 1)
    ends = [(near, near), (far, near), (near, far), (far, far), ((0.4, 0.6), (0.4, 0.6))]
    corners = np.array([(x0, y0, x1, y1) for (x0, x1), (y0, y1) in ends])
    places = [Place(-1, -1), Place(1, -1), Place(-1, 1), Place(1, 1), Place(0, 0)]
    for best, place in enumerate(places):
        fits = place.fit(corners)
        assert int(fits.argmax()) == best
        assert (fits > 0).sum() == 1
    assert (Place(across=-1).fit(corners) > 0).tolist() == [True, False, True, False, False]
    assert Place().fit(corners).tolist() == [1] * 5
