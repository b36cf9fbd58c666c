"""Passage retrieval: H@1, H@5 and MRR@5, of ranked lists of passage ids.

A query is a hit at k if one of its passages is among the k best; its reciprocal rank is 1 / the place of the
first of them, 0 beyond place 5. An id that is ranked again counts where it first stood, and takes no place.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mmgem.errors import UsageError

_DEPTH = 5


def ranking_scores(ranked: Sequence[Sequence[str]], positives: Sequence[Collection[str]]) -> dict[str, float]:
    """Return ``{"H@1", "H@5", "MRR@5"}`` in percent and ``"queries"``, an int.

    ``ranked``: for each query ids of passages, best first, of any number; ``positives``: the ids that are
    right. Raises ``UsageError`` without queries, if there are not as many of one as of the other, and for a
    query without positives.
    """
    if len(ranked) != len(positives) or not ranked:
        raise UsageError(f"{len(ranked)} rankings for {len(positives)} queries; there must be one each")
    places = []
    for n, (ids, right) in enumerate(zip(ranked, positives, strict=True)):
        if isinstance(ids, str) or isinstance(right, str):
            raise UsageError(f"query {n}: a ranking and its positives must be lists of ids, not one string")
        if not right:
            raise UsageError(f"query {n} has no positives; leave such queries out")
        best = list(dict.fromkeys(ids))[:_DEPTH]
        places.append(next((place for place, i in enumerate(best, 1) if i in right), 0))
    count = len(places)
    return {
        "H@1": 100 * places.count(1) / count,
        "H@5": 100 * (count - places.count(0)) / count,
        "MRR@5": 100 * sum(1 / place for place in places if place) / count,
        "queries": count,
    }
