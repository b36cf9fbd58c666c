"""Which scores are those of pairs that fit: a mixture of two Gaussians, one of which is known.

What wrong pairs score is measured on pairs put together at random. Of the mixture p(x) = w N(x; wrong) +
(1 - w) N(x; right) only w and the right component are fitted, by expectation maximisation (Dempster, Laird
and Rubin, 1977): with both free, clean data would be cut in two as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmgem.errors import DataError

MIN_PAIRS = 20
"""Of each kind, for a mixture to be fitted."""
_ROUNDS = 500
_TOLERANCE = 1e-8  # of the mean log-likelihood
_RIDGE = 1e-6  # of the variance, added to it


@dataclass(frozen=True, slots=True)
class Gaussian:
    """``mean`` ``(d,)`` and ``covariance`` ``(d, d)``, float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def fit(cls, points: np.ndarray, weights: np.ndarray) -> Gaussian:
        """The one of greatest likelihood for ``points`` ``(n, d)`` that count ``weights`` ``(n,)``."""
        total = weights.sum()
        mean = weights @ points / total
        centred = points - mean
        covariance = (weights[:, None] * centred).T @ centred / total
        return cls(mean, covariance + np.diag(_RIDGE * np.diag(covariance) + 1e-12))

    def marginal(self, column: int) -> Gaussian:
        """Of one of the coordinates."""
        return Gaussian(self.mean[[column]], self.covariance[np.ix_([column], [column])])

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """log N(x) ``(n,)`` of points ``(n, d)``."""
        half = np.linalg.solve(np.linalg.cholesky(self.covariance), (points - self.mean).T)
        log_determinant = np.linalg.slogdet(self.covariance)[1]
        return -0.5 * ((half**2).sum(0) + log_determinant + len(self.mean) * np.log(2 * np.pi))


@dataclass(frozen=True, slots=True)
class Mixture:
    """``share``: of wrong pairs, 0..1."""

    wrong: Gaussian
    right: Gaussian
    share: float

    def right_prob(self, points: np.ndarray) -> np.ndarray:
        """P(right | scores) ``(n,)`` of ``points`` ``(n, d)``. Scores count no further than the means of the
        two: the wider Gaussian would claim the best of the one and the worst of the other."""
        low, high = np.sort(np.stack([self.wrong.mean, self.right.mean]), axis=0)
        return 1 - _share_of_wrong(self, np.clip(points, low, high))[0]

    def marginal(self, column: int) -> Mixture:
        """The mixture of one of the scores alone."""
        return Mixture(self.wrong.marginal(column), self.right.marginal(column), self.share)


def fit_mixture(points: np.ndarray, wrong: np.ndarray) -> Mixture:
    """Fit the mixture to the scores ``points`` ``(n, d)``, higher being better, with what wrong pairs score,
    ``wrong`` ``(m, d)``. Raises ``DataError`` for fewer than 20 of either."""
    if min(len(points), len(wrong)) < MIN_PAIRS:
        raise DataError(
            f"{min(len(points), len(wrong))} pairs are too few to tell wrong from right; give a threshold"
        )
    points = points.astype(np.float64)
    known = Gaussian.fit(wrong.astype(np.float64), np.ones(len(wrong)))
    best = (points >= np.median(points, axis=0)).all(1).astype(np.float64)
    mixture = Mixture(known, Gaussian.fit(points, best if best.sum() > 1 else np.ones(len(points))), 0.5)
    before = -np.inf
    for _ in range(_ROUNDS):
        is_wrong, likelihood = _share_of_wrong(mixture, points)
        if likelihood - before < _TOLERANCE:
            break
        before = likelihood
        mixture = Mixture(known, Gaussian.fit(points, 1 - is_wrong + 1e-12), float(is_wrong.mean()))
    return mixture


def _share_of_wrong(mixture: Mixture, points: np.ndarray) -> tuple[np.ndarray, float]:
    """P(wrong | scores) ``(n,)``, and the mean log-likelihood."""
    with np.errstate(divide="ignore"):
        wrong = np.log(mixture.share) + mixture.wrong.log_density(points)
        right = np.log1p(-mixture.share) + mixture.right.log_density(points)
    both = np.logaddexp(wrong, right)
    return np.exp(wrong - both), float(both.mean())
