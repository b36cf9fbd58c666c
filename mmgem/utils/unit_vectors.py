"""Whether embeddings are what every search relies on: finite, and of unit length."""

from __future__ import annotations

import numpy as np

TOLERANCE = 1e-3


def not_unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Numbers (int64, ascending) of the rows of ``vectors`` ``(n, D)`` float that are not finite or whose
    length is not 1 to within 1e-3."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float32)
        return np.flatnonzero(~(np.abs(np.sqrt(squares) - 1) <= TOLERANCE))


def embedding_problem(vectors: np.ndarray) -> str | None:
    """What is wrong with the embeddings ``(n, D)`` float of a photo and its boxes; None: nothing."""
    if not np.isfinite(vectors).all():
        return "its embedding is not finite"
    return "its embedding is not of unit length" if len(not_unit_rows(vectors)) else None


def unit_mean(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of ``vectors`` ``(n, D)`` float32 by ``weights`` ``(n,)``, of unit length: ``(D,)``; all
    weights 0 are as all 1."""
    weights = weights if weights.any() else np.ones_like(weights)
    total = weights @ vectors
    return np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), np.float32)
