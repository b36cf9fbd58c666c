"""Search among short regions: candidates from inverted lists, scored by all bits of their records.

Notable choices. Scores are dot products of the float32 query with the vectors that records stand for. Where
filters leave few regions, or so many are wanted that lists do not help, all that pass are compared; so are
the newest, which lists do not have yet. A place counts in the lists already, by the centres of their boxes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from mmgem.data.records import Box
from mmgem.errors import SearchIndexError
from mmgem.search.hits import Hit
from mmgem.search.index_records import IndexSnapshot
from mmgem.search.region_lists import RegionLists
from mmgem.search.region_records import ShortRegions
from mmgem.search.spatial_filter import SpatialFilter, apply_spatial_filter

_log = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1024
_CANDIDATES = 4096  # of the lists, at least
_CANDIDATES_A_REGION = 3  # times the regions that the photos that are wanted may have
_COMPARED = 20_000  # regions of photos that pass a filter, up to which all of them are compared


class RegionSearcher:
    """Finds the best of ``regions``, of the photos whose rows ``passed`` (R,) bool."""

    def __init__(
        self, regions: ShortRegions, lists: RegionLists | None, passed: np.ndarray, per_photo: int
    ) -> None:
        """``lists``: None: every search compares all. ``per_photo``: regions that a photo may have."""
        self.regions, self.lists, self._per_photo = regions, lists, per_photo
        self._spans = passed[regions.photo_rows]
        """Which spans pass."""

    @classmethod
    def open(
        cls, snapshot: IndexSnapshot, out: Path | None, passed: np.ndarray, exact: bool
    ) -> RegionSearcher | None:
        """That of an index in the folder ``out``; None: it has no short regions. ``exact``: without lists."""
        regions, state = snapshot.short_regions, snapshot.lists_state
        if regions is None:
            return None
        lists = None
        try:
            lists = None if exact or out is None or state is None else RegionLists(out, state, regions)
        except SearchIndexError as problem:
            _log.warning("%s; comparing all regions until then", problem)
        return cls(regions, lists, passed, snapshot.regions)

    def filtered(self, passed: np.ndarray) -> RegionSearcher:
        """This one for other photos that pass."""
        return RegionSearcher(self.regions, self.lists, passed, self._per_photo)

    @cached_property
    def _passed_rows(self) -> np.ndarray:
        """Which records pass, (R,) bool."""
        changes = np.zeros(len(self.regions.records) + 1, np.int8)
        changes[self.regions.first[self._spans]] += 1
        stops = (self.regions.first + self.regions.count)[self._spans]
        changes[stops] -= 1
        return np.cumsum(changes[:-1], dtype=np.int8).astype(bool)

    @cached_property
    def _passed_count(self) -> int:
        return int(self.regions.count[self._spans].sum())

    def ranked(self, query: np.ndarray, k: int, where: SpatialFilter | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n,) int64 and scores (n,) float32 of regions, among which are the best of each of the ``k``
        best photos for ``query`` (D,) float32 in a place. Raises SearchIndexError if what is read is
        damaged."""
        projected, offset = self.regions.codec.project(query[None])
        rows = self._candidates(projected[0], k, where)
        if rows is None:
            rows = np.flatnonzero(self._passed_rows)
        self.regions.blocks.verify(rows)
        scores = np.empty(len(rows), np.float32)
        for at in range(0, len(rows), _ROWS_AT_ONCE):
            block = slice(at, at + _ROWS_AT_ONCE)
            records = self.regions.records[rows[block]]
            scores[block] = self.regions.codec.units(records) @ projected[0] + offset[0]
            if where is not None:
                scores[block] = apply_spatial_filter(scores[block], self.regions.codec.boxes(records), where)
        found = scores > -np.inf
        return rows[found], scores[found]

    def boxes_of(self, photo_row: int) -> list[Box]:
        """The boxes of a photo in its pixels, as they were recorded."""
        regions = self.regions
        rows = [
            np.arange(regions.first[span], regions.first[span] + regions.count[span])
            for span in np.flatnonzero(regions.photo_rows == photo_row)
        ]
        return regions.places(np.concatenate(rows))[1] if rows else []

    def finder(
        self, query: np.ndarray, k: int, where: SpatialFilter | None, photos_at: Callable[[int], list[Path]]
    ) -> Callable[[int], list[Hit]]:
        """What gives the best n regions or more for ``query`` (D,) in a place, n at a time, with those of the
        best ``k`` photos among them; ``photos_at``: the photos that pass, by row."""
        rows, scores = self.ranked(query, k, where)

        def best(count: int) -> list[Hit]:
            top = top_rows(scores, count)
            found = zip(scores[top].tolist(), *self.regions.places(rows[top]), strict=True)
            hits = [Hit(path, score, box) for score, row, box in found for path in photos_at(row)]
            return sorted(hits, key=lambda hit: (-hit.score, os.fsencode(hit.path), hit.box or ()))

        return best

    def _candidates(self, query: np.ndarray, k: int, where: SpatialFilter | None) -> np.ndarray | None:
        """The rows to compare with ``query`` (d,), projected; None: all that pass."""
        count = max(_CANDIDATES, _CANDIDATES_A_REGION * k * self._per_photo)
        if self.lists is None or self._passed_count <= max(_COMPARED, 4 * count):
            return None
        everything = self._passed_count == len(self.regions.records)
        passed = None if everything else self._passed_rows
        rows = np.sort(self.lists.candidates(query, count, passed, where))
        new = np.arange(self.lists.rows, len(self.regions.records))
        return np.concatenate([rows, new if passed is None else new[passed[new]]])


def top_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """Return where the ``k`` highest of ``scores`` (R,) are, in no order, and all that tie with the last.

    What scores ``-inf`` is left out: it is no result, and so many ties would make the selection slow."""
    rows = np.flatnonzero(scores > -np.inf)
    if k >= len(rows):
        return rows
    finite = scores[rows]
    return rows[finite >= np.partition(finite, len(finite) - k)[len(finite) - k]]
