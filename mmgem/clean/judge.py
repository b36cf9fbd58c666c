"""Which pairs are kept: by the data's own mixture, by a share of them, or by a cosine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmgem.clean.mixture import Mixture, fit_mixture
from mmgem.clean.scores import ScoredPairs, Scores
from mmgem.errors import DataError, UsageError

_RIGHT = 0.5  # P(right | scores)


@dataclass(frozen=True, slots=True)
class Judge:
    """Keeps pairs whose :meth:`values` are ``least`` or more. ``what``: the name of the values. One of
    ``mixture`` and ``scale`` (mean and deviation of cosine and gain, ``(2, 2)``) or neither: the cosine
    alone."""

    what: str
    least: float
    mixture: Mixture | None = None
    columns: tuple[int, ...] = ()
    scale: np.ndarray | None = None

    def values(self, scores: Scores) -> np.ndarray:
        """``(n,)`` float64, higher being better; NaN for a pair that has no score."""
        table = scores.columns().astype(np.float64)
        if self.mixture is not None:
            return self._right_prob(self.mixture, table[:, self.columns])
        if self.scale is not None:
            return _mean_of_known((table - self.scale[0]) / self.scale[1])
        return table[:, 0]

    def keeps(self, scores: Scores) -> np.ndarray:
        """``(n,)`` bool."""
        return self.values(scores) >= self.least

    def reason(self, value: float) -> str:
        """Why a pair with this value goes."""
        if np.isnan(value):
            return "no score: empty or too long for the model"
        return f"{self.what} {value:.3f} below {self.least:.3f}"

    @staticmethod
    def _right_prob(mixture: Mixture, points: np.ndarray) -> np.ndarray:
        values = np.full(len(points), np.nan)
        known = ~np.isnan(points)
        whole = known.all(1)
        if whole.any():
            values[whole] = mixture.right_prob(points[whole])
        for column in range(points.shape[1]):
            alone = known[:, column] & (known.sum(1) == 1) & ~whole
            if alone.any():
                values[alone] = mixture.marginal(column).right_prob(points[alone][:, [column]])
        return values


def make_judge(pairs: ScoredPairs, keep: float | None = None, min_cosine: float | None = None) -> Judge:
    """The judge of ``pairs``: their mixture; or, with ``keep``, the best so many of them (0..1) by the mean
    of cosine and gain, each over its deviation; or those of at least ``min_cosine``.

    Raises ``UsageError`` for both, a share outside 0..1, and a cosine of a model that does not embed;
    ``DataError`` for too few pairs.
    """
    if keep is not None and min_cosine is not None:
        raise UsageError("give one of keep and min_cosine")
    table = pairs.scores.columns().astype(np.float64)
    if not len(table) or np.isnan(table).all():
        raise DataError("no pair could be scored")
    used = tuple(column for column in range(2) if not np.isnan(table[:, column]).all())
    if min_cosine is not None:
        if 0 not in used:
            raise UsageError("a model that does not embed has no cosines")
        return Judge("cosine", min_cosine)
    if keep is not None:
        if not 0 < keep < 1:
            raise UsageError(f"the share that is kept must be between 0 and 1, not {keep}")
        scale = np.array([[0.0, 0.0], [1.0, 1.0]])
        for column in used:
            scale[:, column] = np.nanmean(table[:, column]), max(np.nanstd(table[:, column]), 1e-9)
        judge = Judge("score", -np.inf, scale=scale)
        values = np.sort(judge.values(pairs.scores))  # those without a score last
        values = values[~np.isnan(values)]
        first = len(values) - max(1, round(keep * len(table)))
        return Judge("score", float(values[max(0, first)]), scale=scale)
    wrong = pairs.wrong.columns().astype(np.float64)[:, used]
    points = table[:, used]
    mixture = fit_mixture(points[~np.isnan(points).any(1)], wrong[~np.isnan(wrong).any(1)])
    return Judge("P(right)", _RIGHT, mixture, used)


def _mean_of_known(table: np.ndarray) -> np.ndarray:
    """The mean of each row without its NaN; NaN where all are."""
    known = ~np.isnan(table)
    count = known.sum(1)
    total = np.where(known, table, 0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
