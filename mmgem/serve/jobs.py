"""What the model's thread computes: one function a kind of work, a batch in, a result each out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmgem.api import MMGEM
from mmgem.data.records import Box
from mmgem.inference.captioning import describe
from mmgem.inference.images import encode_prepared, find_regions, heat, see
from mmgem.inference.texts import embed_pieces
from mmgem.search.places import Place
from mmgem.search.rerank import PAIRS, Rerank, log_probs
from mmgem.search.search import Hit, PhotoIndex
from mmgem.self_retrieval.retriever import Found
from mmgem.serve.batcher import Kind
from mmgem.serve.image_input import Opened
from mmgem.serve.limits import Limits

if TYPE_CHECKING:
    from mmgem.self_retrieval.model import Answer, SelfRetrieval

_ASSESS = 0.15  # MMGEM.caption's own
_PHOTOS = 8  # with boxes, at once: their maps at the largest sides are some 100 MB


@dataclass(frozen=True, slots=True)
class Query:
    """A search of an index; ``regions``: of its boxes, those at ``place``."""

    vector: np.ndarray
    k: int
    regions: bool = False
    place: Place | None = None


class Work:
    """The kinds of work of one model, and of a corpus if there is one."""

    def __init__(self, model: MMGEM, corpus: SelfRetrieval | None, limits: Limits) -> None:
        self.model, self.corpus = model, corpus
        self.network, self.prep = model.network, model.tokenizer.prep
        most = limits.batch
        few = min(most, _PHOTOS)
        self.texts: Kind[list[Tensor], np.ndarray] = Kind("text", self._texts, most, limits.tokens)
        """Token ids of a text's pieces -> unit vector ``(D,)``; costs tokens."""
        self.photos: Kind[list[np.ndarray], Tensor] = Kind("photo", self._photos, most)
        """A photo's squares -> visual embedding ``(1 + tiles, D)``, not normalised."""
        self.boxes: Kind[tuple[Opened, list[Box]], Tensor] = Kind("box", self._boxes, few)
        """A photo and boxes of it -> visual embeddings ``(n, 1 + tiles, D)``."""
        self.captions: Kind[tuple[Tensor, int, int], str] = Kind("caption", self._captions, most)
        """Visual embedding, beams, most tokens (both equal in a group) -> a sentence."""
        self.regions: Kind[tuple[Opened, int], list[Box]] = Kind("region", self._regions, few)
        """A photo, how many -> boxes of the photo."""
        self.heat: Kind[tuple[Opened, np.ndarray, int], np.ndarray] = Kind("heat", self._heat, 1)
        """A photo, a text's vector, cells -> cosines ``(cells, cells)``."""
        self.assess: Kind[tuple[np.ndarray, Tensor], np.ndarray] = Kind(
            "rerank", self._assess, most, 4 * PAIRS
        )
        """Unit vectors ``(n, D)``, a text's ids -> log P of it given each ``(n,)``; costs n."""
        self.passages: Kind[tuple[str, int], list[Found]] = Kind("passage", self._passages, min(most, 8))
        """A question, how many (equal in a group) -> passages."""
        self.answers: Kind[tuple[str, list[Found]], Answer] = Kind("answer", self._answers, 1)
        """A question and its passages -> an answer."""
        self.searches: Kind[tuple[PhotoIndex, Query], list[Hit]] = Kind("search", search, most)
        """A query of an index (one, and all with regions or none, in a group) -> hits."""

    @torch.inference_mode()
    def _texts(self, texts: list[list[Tensor]]) -> list[np.ndarray]:
        owners = [n for n, pieces in enumerate(texts) for _ in pieces]
        ids = [piece for pieces in texts for piece in pieces]
        rows = embed_pieces(self.network, ids, owners, len(texts), 4 * self.model.batch)
        return [row.copy() for row in rows]

    @torch.inference_mode()
    def _photos(self, photos: list[list[np.ndarray]]) -> Sequence[Tensor]:
        # Copies: a view that is remembered would keep its whole batch.
        return [visual.clone() for visual in encode_prepared(self.network, self.prep, photos)]

    @torch.inference_mode()
    def _boxes(self, photos: list[tuple[Opened, list[Box]]]) -> Sequence[Tensor]:
        inside = [[opened.inside(box) for box in boxes] for opened, boxes in photos]
        seen = see(self.network, self.prep, [opened.image for opened, _ in photos], inside)
        return seen.split([len(boxes) for _, boxes in photos])

    def _captions(self, wanted: list[tuple[Tensor, int, int]]) -> list[str]:
        _, beams, tokens = wanted[0]
        visual = torch.stack([v for v, _, _ in wanted])
        return describe(self.network, self.model.tokenizer, visual, beams, tokens, _ASSESS)

    @torch.inference_mode()
    def _regions(self, photos: list[tuple[Opened, int]]) -> list[list[Box]]:
        most = max(count for _, count in photos)
        found = find_regions(self.network, self.prep, [opened.image for opened, _ in photos], most)
        return [
            [opened.outside(box) for box in boxes[:count]]
            for (opened, count), (boxes, _) in zip(photos, found, strict=True)
        ]

    @torch.inference_mode()
    def _heat(self, wanted: list[tuple[Opened, np.ndarray, int]]) -> list[np.ndarray]:
        return [
            heat(self.network, self.prep, opened.image, self._tensor(vector[None]), cells)[0].cpu().numpy()
            for opened, vector, cells in wanted
        ]

    def _assess(self, wanted: list[tuple[np.ndarray, Tensor]]) -> list[np.ndarray]:
        vectors = np.concatenate([v for v, _ in wanted])
        ids = [tokens for v, tokens in wanted for _ in v]
        found = log_probs(self.network, vectors, ids, self.model.tokenizer.end, Rerank().length)
        return np.split(found, np.cumsum([len(v) for v, _ in wanted])[:-1])

    def _passages(self, wanted: list[tuple[str, int]]) -> list[list[Found]]:
        assert self.corpus is not None
        return self.corpus.search([question for question, _ in wanted], wanted[0][1])

    def _answers(self, wanted: list[tuple[str, list[Found]]]) -> list[Answer]:
        assert self.corpus is not None
        return [self.corpus.answer(question, hits) for question, hits in wanted]

    def _tensor(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self.network.emb_token.device)


def search(wanted: list[tuple[PhotoIndex, Query]]) -> list[list[Hit]]:
    """The hits of queries of one index, all with regions or all without: one matrix product for all."""
    index, first = wanted[0]
    most = max(query.k for _, query in wanted)
    vectors = np.stack([query.vector for _, query in wanted])
    if first.regions:
        found = index.search_regions_many(vectors, most, [query.place for _, query in wanted])
    else:
        found = index.search_many(vectors, most)
    return [hits[: query.k] for hits, (_, query) in zip(found, wanted, strict=True)]
