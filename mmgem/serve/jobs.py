"""What the model's thread computes: one function a type of jobs, a batch in, a result each out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmgem.api import MMGEM
from mmgem.data.records import Box
from mmgem.inference.caption_options import CAPTION_DEFAULTS, CaptionOptions
from mmgem.inference.captioning import DecodedCaption, decode_captions
from mmgem.inference.images import encode_images, encode_prepared, find_regions, text_heatmaps
from mmgem.inference.texts import embed_pieces
from mmgem.search.hits import Hit
from mmgem.search.rerank import RerankOptions, log_probs
from mmgem.search.search import PhotoIndex
from mmgem.search.spatial_filter import SpatialFilter
from mmgem.self_retrieval.retriever import ScoredPassage
from mmgem.serve.batcher import JobType
from mmgem.serve.image_input import DecodedPhoto
from mmgem.serve.limits import Limits

if TYPE_CHECKING:
    from mmgem.self_retrieval.model import Answer, SelfRetrieval

TEXT_JOB_TOKENS = 256  # of a long text in one item, about
RERANK_JOB_TOKENS = 512  # of the pairs in one item, about
_MAX_DECODED_PHOTOS = 8  # with boxes, at once: their maps at the largest sides are some 100 MB


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A search of an index; ``regions``: of its boxes, those that pass ``where``."""

    vector: np.ndarray
    k: int
    regions: bool = False
    where: SpatialFilter | None = None


class ModelJobs:
    """The types of jobs of one model, and of a corpus if there is one."""

    def __init__(self, model: MMGEM, corpus: SelfRetrieval | None, limits: Limits) -> None:
        self.model, self.corpus = model, corpus
        self.network, self.prep = model.network, model.tokenizer.prep
        max_batch_size = limits.batch
        max_decoded = min(max_batch_size, _MAX_DECODED_PHOTOS)
        self.texts: JobType[list[Tensor], np.ndarray] = JobType(
            "text", self._texts, max_batch_size, limits.tokens
        )
        """Token ids of some n pieces of a text -> their unit vectors ``(n, D)``; costs tokens."""
        self.photos: JobType[list[np.ndarray], Tensor] = JobType("photo", self._photos, max_batch_size)
        """A photo's pixels -> visual embedding ``(1 + tiles, D)``, not normalised."""
        self.boxes: JobType[tuple[DecodedPhoto, list[Box]], Tensor] = JobType("box", self._boxes, max_decoded)
        """A photo and boxes of it -> visual embeddings ``(n, 1 + tiles, D)``."""
        self.captions: JobType[tuple[Tensor, CaptionOptions], DecodedCaption] = JobType(
            "caption", self._captions, max_batch_size, CAPTION_DEFAULTS.beams * max_batch_size, True
        )
        """Visual embedding, how to decode (equal in a group) -> a sentence; costs beams."""
        self.regions: JobType[tuple[DecodedPhoto, int], list[Box]] = JobType(
            "region", self._regions, max_decoded
        )
        """A photo, how many -> boxes of the photo."""
        self.heatmaps: JobType[tuple[DecodedPhoto, np.ndarray, int], np.ndarray] = JobType(
            "heat", self._heatmaps, 1
        )
        """A photo, a text's vector, cells -> cosines ``(cells, cells)``."""
        self.rerank: JobType[tuple[np.ndarray, Tensor], np.ndarray] = JobType(
            "rerank", self._rerank, max_batch_size, max(limits.tokens, RERANK_JOB_TOKENS)
        )
        """Unit vectors ``(n, D)``, a text's ids -> log P of it given each ``(n,)``; costs tokens."""
        self.passages: JobType[tuple[str, int], list[ScoredPassage]] = JobType(
            "passage", self._passages, min(max_batch_size, 8), interruptible=True
        )
        """A question, how many (equal in a group) -> passages."""
        self.answers: JobType[tuple[str, list[ScoredPassage]], Answer] = JobType(
            "answer", self._answers, 1, interruptible=True
        )
        """A question and its passages -> an answer."""
        self.searches: JobType[tuple[PhotoIndex, SearchQuery], list[Hit]] = JobType(
            "search", run_searches, max_batch_size
        )
        """A query of an index (one, and all with regions or none, in a group) -> hits."""

    @torch.inference_mode()
    def _texts(self, texts: list[list[Tensor]]) -> list[np.ndarray]:
        ids = [piece for pieces in texts for piece in pieces]
        rows = embed_pieces(self.network, ids, range(len(ids)), len(ids), 4 * self.model.batch)
        return [part.copy() for part in np.split(rows, np.cumsum([len(pieces) for pieces in texts])[:-1])]

    @torch.inference_mode()
    def _photos(self, photos: list[list[np.ndarray]]) -> Sequence[Tensor]:
        # Copies: a view that is remembered would keep its whole batch.
        return [visual.clone() for visual in encode_prepared(self.network, self.prep, photos)]

    @torch.inference_mode()
    def _boxes(self, photos: list[tuple[DecodedPhoto, list[Box]]]) -> Sequence[Tensor]:
        input_boxes = [[decoded.to_decoded(box) for box in boxes] for decoded, boxes in photos]
        embeddings = encode_images(
            self.network, self.prep, [decoded.image for decoded, _ in photos], input_boxes
        )
        return embeddings.split([len(boxes) for _, boxes in photos])

    def _captions(
        self, requests: list[tuple[Tensor, CaptionOptions]], abandoned: Callable[[int], bool]
    ) -> list[DecodedCaption]:
        visual = torch.stack([v for v, _ in requests])
        return decode_captions(self.network, self.model.tokenizer, visual, requests[0][1], abandoned)

    @torch.inference_mode()
    def _regions(self, photos: list[tuple[DecodedPhoto, int]]) -> list[list[Box]]:
        max_count = max(count for _, count in photos)
        regions = find_regions(self.network, self.prep, [decoded.image for decoded, _ in photos], max_count)
        return [
            [decoded.to_original(box) for box in boxes[:count]]
            for (decoded, count), (boxes, _) in zip(photos, regions, strict=True)
        ]

    @torch.inference_mode()
    def _heatmaps(self, requests: list[tuple[DecodedPhoto, np.ndarray, int]]) -> list[np.ndarray]:
        return [
            text_heatmaps(self.network, self.prep, decoded.image, self._tensor(vector[None]), cells)[0]
            .cpu()
            .numpy()
            for decoded, vector, cells in requests
        ]

    def _rerank(self, requests: list[tuple[np.ndarray, Tensor]]) -> list[np.ndarray]:
        vectors = np.concatenate([v for v, _ in requests])
        ids = [tokens for v, tokens in requests for _ in v]
        log_likelihoods = log_probs(
            self.network, vectors, ids, self.model.tokenizer.end, RerankOptions().embedding_norm
        )
        return np.split(log_likelihoods, np.cumsum([len(v) for v, _ in requests])[:-1])

    def _passages(
        self, requests: list[tuple[str, int]], abandoned: Callable[[int], bool]
    ) -> list[list[ScoredPassage]]:
        assert self.corpus is not None
        return self.corpus.search([question for question, _ in requests], requests[0][1], abandoned)

    def _answers(
        self, requests: list[tuple[str, list[ScoredPassage]]], abandoned: Callable[[int], bool]
    ) -> list[Answer]:
        assert self.corpus is not None
        return [
            self.corpus.answer(question, hits, partial(abandoned, n))
            for n, (question, hits) in enumerate(requests)
        ]

    def _tensor(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self.network.emb_token.device)


def run_searches(requests: list[tuple[PhotoIndex, SearchQuery]]) -> list[list[Hit]]:
    """The hits of queries of one index, all with regions or all without: one matrix product for all."""
    index, first = requests[0]
    max_k = max(query.k for _, query in requests)
    vectors = np.stack([query.vector for _, query in requests])
    if first.regions:
        results = index.search_regions_many(vectors, max_k, [query.where for _, query in requests])
    else:
        results = index.search_many(vectors, max_k)
    return [hits[: query.k] for hits, (_, query) in zip(results, requests, strict=True)]
