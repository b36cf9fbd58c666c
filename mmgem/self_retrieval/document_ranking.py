"""Documents as a whole: all passages under one title, their scores added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmgem.self_retrieval.retriever import ScoredPassage


@dataclass(frozen=True)
class ScoredDocument:
    """A document that was retrieved: its score is the sum of those of its ``passages``, ids, best first."""

    title: str
    score: float
    passages: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain form, as commands print it."""
        return {**asdict(self), "passages": list(self.passages)}


def rank_documents(hits: Sequence[ScoredPassage]) -> list[ScoredDocument]:
    """The documents of ``hits`` (best first), highest sum of scores first, of equals the one whose first
    passage comes first."""
    passages: dict[str, list[ScoredPassage]] = {}
    for hit in hits:
        passages.setdefault(hit.title, []).append(hit)
    documents = [
        ScoredDocument(title, sum(hit.score for hit in of_title), tuple(hit.id for hit in of_title))
        for title, of_title in passages.items()
    ]
    return sorted(documents, key=lambda document: -document.score)
