"""What a corpus can be searched with otherwise: BM25, and embeddings compared by their cosine.

Every ranker has ``rank(queries, k)``. BM25 is that of bm25s with its own defaults, not tuned on any queries:
Lucene's formula, k1 1.5, b 0.75, words of two letters or more in lower case, 33 English stop words left out,
no stemming.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mmgem.errors import UsageError
from mmgem.self_retrieval.passages import Passage

Floats = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Floats]
"""Texts to unit rows, (n, D) float32."""

_BLOCK_BYTES = 64 << 20


class Ranker(Protocol):
    """Anything that ranks passages for queries."""

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
        """For each query the numbers and scores of at most ``k`` passages, best first; equals in order."""
        ...


class BM25:
    """BM25 over titles and texts."""

    def __init__(self, passages: Sequence[Passage], k1: float = 1.5, b: float = 0.75):
        """Index ``passages``. Raises ``UsageError`` if bm25s is not installed."""
        try:
            import bm25s
        except ImportError as error:
            raise UsageError("BM25 needs bm25s: pip install 'mmgem[corpus]'") from error
        self._tokenize = bm25s.tokenize
        words = self._words([f"{p.title} {p.text}" for p in passages])
        self._index: Any = None
        if any(words):
            self._index = bm25s.BM25(k1=k1, b=b)
            self._index.index(words, show_progress=False)

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
        """For each query the numbers and scores of at most ``k`` passages, best first; equals in order.

        Passages that share no word with the query are left out, so there may be fewer, or none.
        """
        ranked = []
        for words in self._words(queries):
            if words and self._index is not None:
                hits = _top_k(self._index.get_scores(words), k)
                ranked.append([(n, score) for n, score in hits if score > 0])
            else:
                ranked.append([])
        return ranked

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        tokenized = self._tokenize(list(texts), stopwords="english", return_ids=False, show_progress=False)
        return [list(words) for words in tokenized]


class Dense:
    """Cosine of embeddings."""

    def __init__(self, vectors: Floats, embed: Embed):
        """``vectors``: unit rows (n, D) of the passages; ``embed``: the same of queries."""
        self._vectors = _unit_rows("passages", vectors)
        self._embed = embed

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
        """For each query the numbers and scores of the ``k`` best passages, best first; equals in order.

        Raises ``UsageError`` if the queries' vectors do not fit the passages' or are not of length 1.
        """
        if not queries:
            return []
        query_vectors = _unit_rows("queries", self._embed(list(queries)))
        count, dim = self._vectors.shape
        if query_vectors.shape != (len(queries), dim):
            raise UsageError(f"queries have vectors {query_vectors.shape}, expected {(len(queries), dim)}")
        block_rows = max(1, _BLOCK_BYTES // (4 * count))
        blocks = (
            query_vectors[start : start + block_rows] @ self._vectors.T
            for start in range(0, len(query_vectors), block_rows)
        )
        return [_top_k(scores, k) for block in blocks for scores in block]


def minilm_embedder() -> Embed:
    """all-MiniLM-L6-v2: unit rows (n, 384). Texts are cut at 256 tokens, the length it was trained on.

    Fetched first if it is not in the cache; raises ``DownloadError`` if it cannot be had.
    """
    from mmgem.checkpoints.download import base_folder
    from mmgem.models.sentence_encoder import sentence_encoder

    return sentence_encoder(base_folder("minilm"), max_tokens=256)


def _top_k(scores: Floats, k: int) -> list[tuple[int, float]]:
    """The ``k`` highest of ``scores`` (n,) with their places; of equals the first."""
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k] if k > 0 else np.inf
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(len(scores))
    order = candidates[np.argsort(-scores[candidates], kind="stable")][: max(0, k)]
    return [(int(n), float(scores[n])) for n in order]


def _unit_rows(what: str, rows: Floats) -> Floats:
    rows = np.asarray(rows, np.float32)
    if rows.ndim != 2 or not rows.size:
        raise UsageError(f"vectors of {what} must have the shape (number, dimensions), not {rows.shape}")
    not_unit = np.flatnonzero(~(np.abs(np.linalg.norm(rows, axis=1) - 1) < 0.01))
    if len(not_unit):
        raise UsageError(f"vectors of {what}: row {not_unit[0]} is not finite and of length 1")
    return rows
