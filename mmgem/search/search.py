"""Search an index of photos: exact, by the dot product of unit vectors.

Notable choices. The vectors stay on the disk, memory-mapped: opening costs the list of paths only, and the
system's page cache keeps the vectors between searches. One pass of a matrix product over all rows, then a
partial sort, is exact and fast enough for hundreds of thousands of photos. Equal scores are ordered by path,
then box, so the same search always gives the same list.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mmgem.errors import UsageError
from mmgem.search.places import Place
from mmgem.search.store import Box, Snapshot, check_fingerprint, read_store

# Queries scored at once: bounds the score matrix to 32 numbers per row of the index.
_QUERIES_AT_ONCE = 32
_PLACE_WEIGHT = np.float32(0.1)


@dataclass(frozen=True, slots=True)
class Hit:
    """One result: the photo, its cosine similarity and, for a region, the box in pixels (x0, y0, x1, y1)."""

    path: Path
    score: float
    box: Box | None = None


class PhotoIndex:
    """A read-only view of an index as it was when opened.

    Its entries are the things that can be found: a photo (or, with a box, a region of one) per entry, in a
    fixed order shared by :attr:`paths`, :attr:`boxes` and :attr:`vectors`.
    """

    def __init__(self, snapshot: Snapshot, folder: Path) -> None:
        self.folder = folder
        self.fingerprint = snapshot.fingerprint
        self.model = snapshot.model
        self.regions = snapshot.regions
        self._stored = snapshot.vectors
        self._places = snapshot.places
        self._entries = snapshot.entries
        self._rows = np.array([row for row, _, _ in snapshot.entries], np.int64)
        # Entries of row r are _starts[r] : _starts[r + 1]; none for a row no photo points to.
        self._starts = np.searchsorted(self._rows, np.arange(len(self._stored) + 1))
        self._dead = np.flatnonzero(np.diff(self._starts) == 0)
        boxed = self._rows[[box is not None for _, _, box in snapshot.entries]] if self.regions else ()
        self._boxed = np.zeros(len(self._stored), bool)
        self._boxed[np.asarray(boxed, np.int64)] = True

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], folder: Path | None = None, fingerprint: str | None = None
    ) -> PhotoIndex:
        """Open the index at ``path``; ``folder`` says where the photos are if they have moved since.

        Without ``folder`` they are where they were when indexed or, if that is gone, at the same place
        relative to the index. Raises SearchIndexError if the index is missing or damaged, or if
        ``fingerprint`` is given and the index was built by another model.
        """
        out = Path(path)
        snapshot = read_store(out)
        if fingerprint is not None:
            check_fingerprint(out, snapshot.fingerprint, fingerprint)
        return cls(snapshot, snapshot.folder if folder is None else Path(folder))

    def __len__(self) -> int:
        return len(self._entries)

    @cached_property
    def paths(self) -> list[Path]:
        """The photo of each entry."""
        return [self.folder / os.fsdecode(path) for _, path, _ in self._entries]

    @cached_property
    def photos(self) -> list[int]:
        """Which entries are whole photos."""
        return [number for number, (_, _, box) in enumerate(self._entries) if box is None]

    @cached_property
    def boxes(self) -> list[Box | None]:
        """The box of each entry in pixels of the upright photo; None where it is the whole photo."""
        return [_box(text) for _, _, text in self._entries]

    @property
    def vectors(self) -> np.ndarray:
        """The (len, D) float32 vector of each entry, read-only; memory-mapped if each row is an entry."""
        if np.array_equal(self._rows, np.arange(len(self._stored))):
            return self._stored
        return self._stored[self._rows]

    def vector_of(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Return the (D,) float32 vector of a photo in the index; raises UsageError if it is not in it."""
        wanted = Path(path)
        if wanted.is_absolute() and wanted.is_relative_to(self.folder):
            wanted = wanted.relative_to(self.folder)
        row = self._row_of_photo.get(os.fsencode(wanted.as_posix()))
        if row is None:
            raise UsageError(f"{path}: not in this index of {self.folder}")
        return self._stored[row]

    def search(self, vector: np.ndarray, k: int = 10) -> list[Hit]:
        """Return the ``k`` entries most similar to ``vector`` (D,), best first; all if there are fewer.

        ``vector`` is expected to have unit length: the scores are dot products. Raises UsageError if it has
        another shape, or if ``k`` is below 1.
        """
        return next(self._search(np.asarray(vector, np.float32)[None], k), [])

    def search_regions(self, vector: np.ndarray, k: int = 10, place: Place | None = None) -> list[Hit]:
        """Return the best box of each of the ``k`` photos with the best boxes for ``vector`` (D,).

        ``place``: only boxes there count, and the nearer to its middle the better: up to 0.1 is added to the
        cosine. Raises UsageError as :meth:`search` does, and if the index was made without regions.
        """
        if not self.regions:
            raise UsageError("this index has no regions; make one with: mmgem index DIR --regions 20")
        queries = self._checked(np.asarray(vector, np.float32)[None], k)
        scores = (queries @ self._stored.T)[0]
        out = ~self._boxed
        out[self._dead] = True
        if place is not None:
            assert self._places is not None
            scores = placed_scores(scores, self._places, place)
        scores[out] = -np.inf
        best: dict[bytes, Hit] = {}
        # Photos with several good boxes take more than k rows; look further until k photos are there.
        depth = 4 * k
        while True:
            rows = top_rows(scores, depth)
            hits = sorted(
                (-float(scores[row]), path, _box(box) or ())
                for row in rows
                for _, path, box in self._entries[self._starts[row] : self._starts[row + 1]]
            )
            best = {}
            for score, path, box in hits:
                best.setdefault(path, Hit(self.folder / os.fsdecode(path), -score, box or None))
            if len(best) >= k or len(rows) < depth:
                return list(best.values())[:k]
            depth *= 4

    def search_many(self, vectors: np.ndarray, k: int = 10) -> list[list[Hit]]:
        """Search for each row of ``vectors`` (q, D): as :meth:`search`, but faster than one at a time."""
        return list(self._search(np.asarray(vectors, np.float32), k))

    def _search(self, queries: np.ndarray, k: int) -> Iterator[list[Hit]]:
        self._checked(queries, k)
        if len(self) == 0:
            yield from ([] for _ in queries)
            return
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            scores = queries[start : start + _QUERIES_AT_ONCE] @ self._stored.T
            scores[:, self._dead] = -np.inf
            scores[:, self._boxed] = -np.inf
            yield from (self._best(row, k) for row in scores)

    def _checked(self, queries: np.ndarray, k: int) -> np.ndarray:
        if k < 1:
            raise UsageError(f"k must be at least 1, not {k}")
        if len(self) and (queries.ndim != 2 or queries.shape[1] != self._stored.shape[1]):
            raise UsageError(
                f"this index holds vectors of {self._stored.shape[1]} numbers, not {queries.shape[1:]}"
            )
        return queries

    def _best(self, scores: np.ndarray, k: int) -> list[Hit]:
        """Scores (R,) of the stored rows -> the k best entries."""
        found = []
        for row in top_rows(scores, k):
            score = float(scores[row])
            for entry in range(self._starts[row], self._starts[row + 1]):
                _, path, box = self._entries[entry]
                found.append((-score, path, _box(box) or ()))
        return [
            Hit(self.folder / os.fsdecode(path), -score, box or None)
            for score, path, box in sorted(found)[:k]
        ]

    @cached_property
    def _row_of_photo(self) -> dict[bytes, int]:
        return {path: row for row, path, box in self._entries if box is None}


def placed_scores(scores: np.ndarray, boxes: np.ndarray, place: Place) -> np.ndarray:
    """Scores ``(n,)`` of ``boxes`` ``(n, 4)`` (shares of their photo) for what is asked for at ``place``: the
    nearer to its middle the better, by up to 0.1; ``-inf`` outside."""
    fit = place.fit(boxes)
    return np.where(fit > 0, scores + _PLACE_WEIGHT * fit, -np.inf)


def top_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """Return where the ``k`` highest of ``scores`` (R,) are, in no order, and all that tie with the last.

    What scores ``-inf`` is left out: it is no result, and so many ties would make the selection slow."""
    rows = np.flatnonzero(scores > -np.inf)
    if k >= len(rows):
        return rows
    kept = scores[rows]
    return rows[kept >= np.partition(kept, len(kept) - k)[len(kept) - k]]


def _box(text: str | None) -> Box | None:
    return None if text is None else tuple(json.loads(text))
