"""How far a score may be off because another sample of images could have been drawn: standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mmgem.errors import UsageError


def standard_error(values: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> float:
    """The standard error of the mean of ``values`` ``(n,)``. ``groups`` ``(n,)``: equal where values are not
    independent of each other, as the captions of one image (the cluster-robust estimate); None: all are
    independent. 0 for a single value, or group. Raises ``UsageError`` for lengths that differ, or none."""
    rows = np.asarray(values, np.float64)
    if rows.ndim != 1 or not len(rows):
        raise UsageError(f"values must be one number or more, not of shape {rows.shape}")
    of = np.arange(len(rows)) if groups is None else np.asarray(groups)
    if of.shape != rows.shape:
        raise UsageError(f"{len(rows)} values but groups of shape {of.shape}")
    _, index = np.unique(of, return_inverse=True)
    sums = np.bincount(index, rows - rows.mean())
    if len(sums) < 2:
        return 0.0
    return float(math.sqrt(np.square(sums).sum() * len(sums) / (len(sums) - 1)) / len(rows))


def jackknife_error(score: Callable[[npt.NDArray[np.int64]], float], count: int, parts: int = 20) -> float:
    """The standard error of ``score``, a function of the numbers of the items it is over (of ``count``), by
    leaving out one of ``parts`` parts at a time (the delete-a-group jackknife); 0 for fewer than two."""
    parts = min(parts, count)
    if parts < 2:
        return 0.0
    items = np.arange(count)
    values = np.array([score(items[items % parts != part]) for part in range(parts)])
    return float(math.sqrt((parts - 1) / parts * np.square(values - values.mean()).sum()))
