"""Passage retrieval: H@1, H@5, H@20 and MRR@5, of ranked lists of passage ids, with their standard errors.

A query is a hit at k if one of its passages is among the k best; its reciprocal rank is 1 / the place of the
first of them, 0 beyond place 5. An id that is ranked again counts where it first stood, and takes no place.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from mmgem.errors import UsageError
from mmgem.evaluate.standard_error import standard_error

_DEPTHS = (1, 5, 20)
_MRR_DEPTH = 5


def ranking_scores(ranked: Sequence[Sequence[str]], positives: Sequence[Collection[str]]) -> dict[str, float]:
    """Return ``{"H@1", "H@5", "H@20", "MRR@5"}`` and of each its standard error over queries (``"H@1
    error"``), in percent, and ``"queries"``, an int.

    ``ranked``: for each query ids of passages, best first, of any number; ``positives``: the ids that are
    right. Raises ``UsageError`` without queries, if there are not as many of one as of the other, and for a
    query without positives.
    """
    if len(ranked) != len(positives) or not ranked:
        raise UsageError(f"{len(ranked)} rankings for {len(positives)} queries; there must be one each")
    places = np.full(len(ranked), np.inf)
    for n, (ids, right) in enumerate(zip(ranked, positives, strict=True)):
        if isinstance(ids, str) or isinstance(right, str):
            raise UsageError(f"query {n}: a ranking and its positives must be lists of ids, not one string")
        if not right:
            raise UsageError(f"query {n} has no positives; leave such queries out")
        best = list(dict.fromkeys(ids))[: max(_DEPTHS)]
        places[n] = next((place for place, i in enumerate(best, 1) if i in right), np.inf)
    values = {f"H@{depth}": 100.0 * (places <= depth) for depth in _DEPTHS}
    values[f"MRR@{_MRR_DEPTH}"] = np.where(places <= _MRR_DEPTH, 100 / places, 0.0)
    scores = {name: float(of.mean()) for name, of in values.items()}
    errors = {f"{name} error": standard_error(of) for name, of in values.items()}
    return {**scores, **errors, "queries": len(places)}
