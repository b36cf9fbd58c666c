"""Photos in the order of their dates: EXIF's, else those of their files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from datetime import datetime

from mmgem.search.hits import Hit, HitT
from mmgem.search.index_metadata import wall_time
from mmgem.search.search import PhotoIndex


def hit_dates(index: PhotoIndex, hits: Sequence[Hit]) -> list[datetime | None]:
    """When the photos of ``hits`` of ``index`` were taken, by the clock on the wall; None: not known."""
    dates = index.photo_table.dates
    seconds = [dates.get(os.fsencode(index.name_of(hit.path))) for hit in hits]
    return [None if moment is None else wall_time(moment) for moment in seconds]


def newest_first(index: PhotoIndex, hits: Sequence[HitT]) -> list[HitT]:
    """``hits`` by date, the newest first; those of the same date as they are, those without one last."""
    pairs = list(zip(hit_dates(index, hits), hits, strict=True))
    return [hit for _, hit in sorted(pairs, key=lambda pair: pair[0] or datetime.min, reverse=True)]


def newest(index: PhotoIndex, k: int) -> list[Hit]:
    """The ``k`` newest photos and clips of ``index``, the newest first; their score is NaN, nothing being
    compared."""
    paths = index.paths
    hits = [Hit(path, math.nan) for path in sorted((paths[entry] for entry in index.files), key=os.fsencode)]
    return newest_first(index, hits)[:k]
