"""Copies among photos: the same bytes, and the same picture resized, compressed again, cropped or brightened.

Same bytes share a row of the index. Near copies are found in two steps. Their embeddings are close, which a
matrix product finds; but so are those of two photos of one burst, and how close depends on the model. So the
pictures of such pairs are then looked at (:mod:`mmgem.data.near_copies`). Files are read for pairs that are
close only, so nothing has to be kept for this.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from mmgem.data.near_copies import crops, is_copy, small_picture
from mmgem.errors import ImageError
from mmgem.search.hits import Hit
from mmgem.search.search import PhotoIndex
from mmgem.utils.disjoint_sets import DisjointSets

MIN_COSINE = 0.8
"""Of two photos whose pictures are looked at."""
_BLOCK = 1024  # photos compared with all others at once
_FOLD_DEPTH = 4


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Photos that show the same, the largest file first; ``exact`` says of each whether another of them has
    the same bytes."""

    paths: tuple[Path, ...]
    exact: tuple[bool, ...]


def find_duplicates(
    index: PhotoIndex, near: bool = True, progress: Callable[[Iterable[int]], Iterable[int]] = iter
) -> list[DuplicateGroup]:
    """The groups of copies among the files of ``index``, the largest groups first; ``near``: also photos
    that are not the same byte for byte.

    Compares each photo with all others: some minutes for 100,000. ``progress`` is handed the blocks of photos
    and gives them back one by one, showing a bar. A photo that cannot be read is no near copy.
    """
    entries, paths = index.files, index.paths
    by_row: dict[int, list[Path]] = defaultdict(list)
    for entry in entries:
        by_row[index.row_of(entry)].append(paths[entry])
    rows = list(by_row)
    sets = DisjointSets(len(rows))
    still = np.array([not index.is_moment(row) for row in rows], bool)
    if near and rows:
        vectors = index.row_vectors(rows)
        for start in progress(range(0, len(rows), _BLOCK)):
            cosines = vectors[start : start + _BLOCK] @ vectors[start:].T
            both_still = still[start : start + _BLOCK, None] & still[None, start:]
            for a, b in np.argwhere(np.triu((cosines >= MIN_COSINE) & both_still, 1)).tolist():
                one, two = start + a, start + b
                known = sets.root(one) == sets.root(two)
                if not known and are_copies(by_row[rows[one]][0], by_row[rows[two]][0]):
                    sets.join(one, two)
    groups: dict[int, list[Path]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[sets.root(number)] += by_row[row]
    same = {path for copies in by_row.values() if len(copies) > 1 for path in copies}
    found = [sorted(group, key=_largest_first) for group in groups.values() if len(group) > 1]
    found.sort(key=lambda group: (-len(group), os.fsencode(group[0])))
    return [DuplicateGroup(tuple(group), tuple(path in same for path in group)) for group in found]


def fold_copies(index: PhotoIndex, find: Callable[[int], Sequence[Hit]], k: int) -> list[Hit]:
    """The first ``k`` of what ``find(count)`` finds that are no copies of one before, with the number of
    copies of each (among what was looked at) as its ``copies``.

    Hits of whole photos and moments of ``index``; boxes are not folded. Two moments show the same if they are
    the same one of clips of the same bytes."""
    depth = k + _FOLD_DEPTH
    while True:
        hits = find(depth)
        if any(hit.box is not None for hit in hits):
            return list(hits[:k])
        vectors = np.stack([index.vector_of(hit.path, hit.start) for hit in hits] or [np.zeros(1)])
        groups: list[int] = []  # of each hit: the number of the first that shows the same
        for number, hit in enumerate(hits):
            same: set[int] = set()
            for n in np.flatnonzero(vectors[:number] @ vectors[number] >= MIN_COSINE).tolist():
                if groups[n] not in same and _same_picture(index, hits[n], hit):
                    same.add(groups[n])
            first = min(same, default=number)
            groups = [first if group in same else group for group in groups] + [first]
        counts = Counter(groups)
        if len(counts) >= k or len(hits) < depth:
            return [replace(hits[n], copies=count - 1) for n, count in sorted(counts.items())[:k]]
        depth *= 2


def _same_picture(index: PhotoIndex, one: Hit, two: Hit) -> bool:
    if one.start is not None or two.start is not None:
        return one.start == two.start and index.same_content(one.path, two.path)
    return index.same_content(one.path, two.path) or are_copies(one.path, two.path)


def are_copies(one: Path, two: Path) -> bool:
    """Whether two files are the same picture, at most a tenth of it cut off; False if one cannot be read."""
    try:
        return is_copy(_crops(one), _crops(two))
    except ImageError:
        return False


@lru_cache(maxsize=256)
def _crops(path: Path) -> np.ndarray:
    return crops(np.asarray(small_picture(path))[None])[0]


def _largest_first(path: Path) -> tuple[int, bytes]:
    try:
        return -path.stat().st_size, os.fsencode(path)
    except OSError:
        return 0, os.fsencode(path)
