"""What a search finds, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmgem.data.moments import Moment
from mmgem.data.records import Box
from mmgem.inference.calibration import MatchCalibration


@dataclass(frozen=True, slots=True)
class Hit:
    """One result: the photo, its cosine similarity and, for a region, the box in pixels (x0, y0, x1, y1).

    ``match``: the probability that it is what a text asked for (see :func:`with_match`), None if that cannot
    be said. ``copies``: how many copies of it were folded into it
    (:func:`mmgem.search.duplicates.fold_copies`). ``start`` and ``end``: of the moment that was found of a
    clip, in seconds; None for a photo.
    """

    path: Path
    score: float
    box: Box | None = None
    match: float | None = None
    copies: int = 0
    start: float | None = None
    end: float | None = None

    @property
    def moment(self) -> Moment | None:
        """``start`` and ``end`` of a moment; None: the hit is a photo."""
        return None if self.start is None or self.end is None else (self.start, self.end)


HitT = TypeVar("HitT", bound=Hit)


def with_match(
    hits: Sequence[HitT], calibration: MatchCalibration | None, query: np.ndarray, size: int
) -> list[HitT]:
    """``hits`` of whole photos, of ``size`` there are, with the probability that each is what a text of
    embedding ``query`` ``(D,)`` asked for, by its cosine; as they are without a calibration for texts."""
    cosines = np.array([getattr(hit, "cosine", hit.score) for hit in hits], np.float32)
    matches = calibration.probability(cosines, query, size) if calibration is not None and hits else None
    if matches is None:
        return list(hits)
    return [replace(hit, match=match) for hit, match in zip(hits, matches.tolist(), strict=True)]


def best_of_each_photo(best: Callable[[int], list[Hit]], k: int) -> list[Hit]:
    """The best hit of each of the first ``k`` photos; ``best(n)`` gives the n best hits or more, all of them
    if there are fewer."""
    depth = 4 * k  # photos with several good boxes take more than one
    while True:
        hits = best(depth)
        first: dict[Path, Hit] = {}
        for hit in hits:
            first.setdefault(hit.path, hit)
        if len(first) >= k or len(hits) < depth:
            return list(first.values())[:k]
        depth *= 4
