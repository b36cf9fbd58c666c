"""The axes along which embeddings are long. Turned to them, vectors lose little when they are cut to their
first numbers, as if trained for it (Matryoshka, arXiv 2205.13147). Needs no torch."""

from __future__ import annotations

import numpy as np

from mmgem.errors import UsageError

MAX_FIT_ROWS = 50_000
"""Rows, at most, that axes are found from."""


def fit_sample(rows: np.ndarray) -> np.ndarray:
    """Evenly spaced ones of ``rows`` ``(n, ...)``: all, or about :data:`MAX_FIT_ROWS`."""
    return rows[:: max(1, len(rows) // MAX_FIT_ROWS)]


def pca_components(vectors: np.ndarray, dims: int) -> np.ndarray:
    """The ``dims`` orthogonal directions (D, dims) float32 in which rows (n, D) are longest, the longest
    first: eigenvectors of their second moments."""
    sample = np.asarray(fit_sample(vectors), np.float32)
    eigenvectors = np.linalg.eigh((sample.T @ sample).astype(np.float64))[1]  # the shortest first
    return np.ascontiguousarray(eigenvectors[:, : -dims - 1 : -1], np.float32)


def check_dimensions(dimensions: int | None, dim: int) -> None:
    """Raise ``UsageError`` unless embeddings of ``dim`` numbers have so many; None: all of them."""
    if dimensions is not None and not 1 <= dimensions <= dim:
        raise UsageError(f"dimensions must be from 1 to {dim}, not {dimensions}")
