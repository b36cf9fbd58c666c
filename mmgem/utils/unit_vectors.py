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
