"""Spatial words: "a dog at the bottom left" is a dog, and a filter of where in the photo it may be.

Only words at the end of a query (or before a colon at its start) name a position in the photo: "a man on the
left of a tree" is about the tree. A box passes by where its centre lies. German, French, Czech and Korean
words are in :mod:`mmgem.search.place_words`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmgem.errors import UsageError
from mmgem.search.place_words import PLACE_WORDS

SPATIAL_WEIGHT = np.float32(0.1)
"""Of how well a box passes a filter, beside its cosine."""
_HORIZONTAL = {"left": -1, "right": 1}
_VERTICAL = {"top": -1, "upper": -1, "bottom": 1, "lower": 1}
_MIDDLE = ("middle", "center", "centre")
_POSITION_WORD = r"(?:top|upper|bottom|lower|left|right|middle|center|centre)"
_POSITION = rf"{_POSITION_WORD}(?:[\s-]+{_POSITION_WORD})?"
_NOUN = r"(?:\s+(?:corner|side|edge|half|part|third))?"
_OF = r"(?:\s+of\s+(?:the|this|a)\s+(?:photo|picture|image|canvas|frame|scene))?"
_AT_END = re.compile(
    rf"^(?P<what>.*\S)\s*(?:,\s*|\s+)(?:(?:at|in|on|to|near|towards?)\s+(?:the\s+)?)(?P<position>{_POSITION}){_NOUN}{_OF}\s*[.!]?$",
    re.IGNORECASE | re.DOTALL,
)
_AT_START = re.compile(
    rf"^(?:(?:at|in|on)\s+(?:the\s+)?)?(?P<position>{_POSITION}){_NOUN}{_OF}\s*:\s*(?P<what>.*\S)\s*$",
    re.I | re.S,
)


@dataclass(frozen=True, slots=True)
class SpatialFilter:
    """Where in a photo a box must be: ``across`` -1 left, 0 middle, 1 right, ``down`` -1 top, 0 middle,
    1 bottom; None: anywhere along that axis."""

    across: int | None = None
    down: int | None = None

    def scores(self, boxes: npt.ArrayLike) -> np.ndarray:
        """How well boxes ``(n, 4)``, in shares of the photo, pass the filter: ``(n,)`` float32.

        1 for a centre in the middle of the area, falling to 0 at its edge; below 0 outside. A side is half
        of the photo, the middle its middle half.
        """
        box = np.asarray(boxes, np.float32).reshape(-1, 4)
        scores = [
            self._axis_scores(side, (box[:, low] + box[:, low + 2]) / 2)
            for side, low in ((self.across, 0), (self.down, 1))
            if side is not None
        ]
        return np.min(scores, axis=0) if scores else np.ones(len(box), np.float32)

    @staticmethod
    def _axis_scores(side: int, centres: np.ndarray) -> np.ndarray:
        return (1 - np.abs(centres - 0.5) * 4 if side == 0 else (centres - 0.5) * 4 * side).clip(-1, 1)


def apply_spatial_filter(scores: np.ndarray, boxes: np.ndarray, where: SpatialFilter) -> np.ndarray:
    """Scores ``(n,)`` of ``boxes`` ``(n, 4)`` (shares of their photo) for what passes ``where``: the
    nearer to its middle the better, by up to 0.1; ``-inf`` outside."""
    bonus = where.scores(boxes)
    return np.where(bonus > 0, scores + SPATIAL_WEIGHT * bonus, -np.inf)


def parse_spatial_filter(words: str) -> SpatialFilter:
    """``bottom-left``, ``top``, ``right``, ``middle`` and the like, also ``unten links``, ``en haut à
    gauche``, ``vlevo dole``, ``왼쪽 위``. Raises UsageError for anything else."""
    normalised = unicodedata.normalize("NFC", words).strip().lower()
    for language in PLACE_WORDS.values():
        if language.place.fullmatch(normalised) and (found := _from_sides(language.sides_in(normalised))):
            return found
    parts = re.split(r"[\s-]+", normalised)
    across: int | None = None
    down: int | None = None
    for part in parts:
        if part in _HORIZONTAL and across is None:
            across = _HORIZONTAL[part]
        elif part in _VERTICAL and down is None:
            down = _VERTICAL[part]
        elif part not in _MIDDLE or len(parts) > 2:
            raise UsageError(
                f"{words!r} is no place; say top, bottom, left, right, middle, or two like top-left"
            )
    if any(part in _MIDDLE for part in parts):
        # "middle left" is left, half way down; "middle" alone is the middle both ways.
        across, down = 0 if across is None else across, 0 if down is None else down
    return SpatialFilter(across, down)


def _from_sides(sides: Sequence[str]) -> SpatialFilter | None:
    """The filter of ``left``, ``top`` and the like; None if there are none or they exclude each other."""
    across = {_HORIZONTAL[side] for side in sides if side in _HORIZONTAL}
    down = {_VERTICAL[side] for side in sides if side in _VERTICAL}
    middle = "middle" in sides
    if not sides or len(across) > 1 or len(down) > 1 or (across and down and middle):
        return None
    rest = 0 if middle else None
    return SpatialFilter(across.pop() if across else rest, down.pop() if down else rest)


def split_query(query: str) -> tuple[str, SpatialFilter | None]:
    """What a query asks for, and where: ``"a dog at the bottom left"`` is
    ``("a dog", SpatialFilter(-1, 1))``.

    English, German, French, Czech and Korean: ``"개가 왼쪽에 있다"`` is ``("개", SpatialFilter(-1))``. A
    query without spatial words comes back as it is, with None.
    """
    for pattern in (_AT_END, _AT_START):
        if match := pattern.match(query):
            try:
                return match["what"].rstrip(" ,"), parse_spatial_filter(match["position"])
            except UsageError:  # "left right"
                continue
    normalised = unicodedata.normalize("NFC", query)
    for language in PLACE_WORDS.values():
        for what, sides in language.splits(normalised):
            if (found := _from_sides(sides)) is not None:
                return what, found
    return query, None
