"""Round-trip consistency: a generated question is worth learning if its passage is found again by it (Alberti
et al. 2019, arXiv 1906.05416; as a filter of queries for retrieval: Dai et al. 2022, arXiv 2209.11755)."""

from __future__ import annotations

from collections.abc import Sequence

from mmgem.self_retrieval.baselines import Ranker
from mmgem.self_retrieval.passages import Passage, Query


def round_trip(
    queries: Sequence[Query], passages: Sequence[Passage], ranker: Ranker, depth: int
) -> list[Query]:
    """Those of ``queries`` one of whose positives is among the first ``depth`` passages that ``ranker``, over
    ``passages``, finds for them."""
    ranked = ranker.rank([query.query for query in queries], depth)
    return [
        query
        for query, hits in zip(queries, ranked, strict=True)
        if any(passages[n].id in query.positives for n, _ in hits)
    ]
