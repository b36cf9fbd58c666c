"""Place words: "a dog at the bottom left" is a dog, and a part of the photo to look in.

Only words at the end of a query (or before a colon at its start) name a place in the photo: "a man on the
left of a tree" is about the tree. A box is in a place by where its middle lies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmgem.errors import UsageError

_ACROSS = {"left": -1, "right": 1}
_DOWN = {"top": -1, "upper": -1, "bottom": 1, "lower": 1}
_MIDDLE = ("middle", "center", "centre")
_SIDE = r"(?:top|upper|bottom|lower|left|right|middle|center|centre)"
_PLACE = rf"{_SIDE}(?:[\s-]+{_SIDE})?"
_NOUN = r"(?:\s+(?:corner|side|edge|half|part|third))?"
_OF = r"(?:\s+of\s+(?:the|this|a)\s+(?:photo|picture|image|canvas|frame|scene))?"
_AT_END = re.compile(
    rf"^(?P<what>.*\S)\s*(?:,\s*|\s+)(?:(?:at|in|on|to|near|towards?)\s+(?:the\s+)?)(?P<place>{_PLACE}){_NOUN}{_OF}\s*[.!]?$",
    re.IGNORECASE | re.DOTALL,
)
_AT_START = re.compile(
    rf"^(?:(?:at|in|on)\s+(?:the\s+)?)?(?P<place>{_PLACE}){_NOUN}{_OF}\s*:\s*(?P<what>.*\S)\s*$", re.I | re.S
)


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a photo: ``across`` -1 left, 0 middle, 1 right, ``down`` -1 top, 0 middle, 1 bottom; None:
    anywhere along that axis."""

    across: int | None = None
    down: int | None = None

    def fit(self, boxes: npt.ArrayLike) -> np.ndarray:
        """How well boxes ``(n, 4)``, in shares of the photo, lie in the place: ``(n,)`` float32.

        1 for a middle in the middle of the place, falling to 0 at its edge; below 0 outside. A side is half
        of the photo, the middle its middle half.
        """
        box = np.asarray(boxes, np.float32).reshape(-1, 4)
        fits = [
            self._along(want, (box[:, low] + box[:, low + 2]) / 2)
            for want, low in ((self.across, 0), (self.down, 1))
            if want is not None
        ]
        return np.min(fits, axis=0) if fits else np.ones(len(box), np.float32)

    @staticmethod
    def _along(want: int, middle: np.ndarray) -> np.ndarray:
        return (1 - np.abs(middle - 0.5) * 4 if want == 0 else (middle - 0.5) * 4 * want).clip(-1, 1)


def parse_place(words: str) -> Place:
    """``bottom-left``, ``top``, ``right``, ``middle`` and the like. Raises UsageError for anything else."""
    parts = re.split(r"[\s-]+", words.strip().lower())
    across: int | None = None
    down: int | None = None
    for part in parts:
        if part in _ACROSS and across is None:
            across = _ACROSS[part]
        elif part in _DOWN and down is None:
            down = _DOWN[part]
        elif part not in _MIDDLE or len(parts) > 2:
            raise UsageError(
                f"{words!r} is no place; say top, bottom, left, right, middle, or two like top-left"
            )
    if any(part in _MIDDLE for part in parts):
        # "middle left" is left, half way down; "middle" alone is the middle both ways.
        across, down = 0 if across is None else across, 0 if down is None else down
    return Place(across, down)


def split_place(query: str) -> tuple[str, Place | None]:
    """What a query asks for, and where: ``"a dog at the bottom left"`` -> ``("a dog", Place(-1, 1))``.

    A query without place words comes back as it is, with None.
    """
    for pattern in (_AT_END, _AT_START):
        if found := pattern.match(query):
            try:
                return found["what"].rstrip(" ,"), parse_place(found["place"])
            except UsageError:  # "left right"
                continue
    return query, None
