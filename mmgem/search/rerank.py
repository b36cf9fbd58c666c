"""Retrieve, then assess: what embeddings found, ordered again by how likely the text is given each image.

The weights that embed also caption, so a pair has two scores, both of them log-probabilities: the cosine
over the trained temperature, and log P(text | image) less its mean over the images nearest to the text: what
the image says of the text, not how easily the text is said of anything like it (the mean image for a prior
would favour long and rare texts where texts are compared for one image). They are added.

Notable choices. V_in is made from the stored unit vector at a typical length, not from the photo: no file is
read, and a search costs what the LLM needs for a dozen or two short sequences. They are packed into rows,
with the head at text positions only, and do not see each other: a score does not depend on the other
candidates. Networks whose captions see more than the embedding (``captions_from_embedding``) read the photos
of the candidates; one with a head for matching (BLIP's ITM) is asked by it, and its logit is added to the
cosine as its authors do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.data.clips import middle_frame
from mmgem.data.tokens import Tokenizer
from mmgem.errors import UsageError
from mmgem.inference.calibration import MatchCalibration
from mmgem.inference.images import encode_images
from mmgem.inference.texts import embed_texts
from mmgem.models.network import MMGEMNetwork
from mmgem.search.hits import Hit, with_match
from mmgem.search.search import PhotoIndex

PAIR_BATCH_SIZE = 32  # in one pass of the LLM
_LOGIT_ROWS = 512  # text positions whose logits exist at once: 100 MB where there are 50,000 tokens


@dataclass(frozen=True, slots=True)
class RerankOptions:
    """How the second look is taken; the defaults were fitted on Flickr8k dev, for the ``tiny`` of version
    0.1.0."""

    candidates: int = 16
    """The first of a search that are assessed, if no more are wanted."""
    weight: float = 0.4
    """Of log P(text | image) less its mean (nats), beside cosine / temperature."""
    embedding_norm: float = 5.6
    """Of the vectors V_in is made from: the mean length of that model's image embeddings before they are
    normalised. Twice it does as well."""

    def scores(
        self,
        cosines: np.ndarray,
        log_prob: np.ndarray,
        baseline_log_prob: np.ndarray | float,
        temperature: float,
        matching: np.ndarray | None = None,
    ) -> np.ndarray:
        """The scores that order, in units of cosine, of pairs with these ``cosines`` and ``log_prob``, log
        P(text | image); ``baseline_log_prob``: its mean over the images nearest to the text. Sums in nats;
        all ``(n,)``. ``matching``: logits of a head for matching, which are added in the place of that."""
        if matching is not None:
            return cosines + matching
        return cosines + self.weight * temperature * (log_prob - baseline_log_prob)


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankedHit(Hit):
    """A hit whose score is one of :meth:`RerankOptions.scores`, with its cosine and log P(text | image) a
    token, end of text included, in nats."""

    cosine: float
    log_prob: float


class Reranker:
    """Finds photos of ``index`` for ``text`` by cosine and orders them by :meth:`RerankOptions.scores`, equal
    ones as they were found. An image is assessed once, however often and deep it is asked.

    ``calibration``: the model's, for the probability that they match, by their cosines: log P adds nothing
    to that. Raises ``DataError`` for an empty text or one over ``max_text_tokens``.
    """

    def __init__(
        self,
        network: MMGEMNetwork,
        tokenizer: Tokenizer,
        index: PhotoIndex,
        text: str,
        options: RerankOptions | None = None,
        calibration: MatchCalibration | None = None,
    ) -> None:
        self._network, self._tokenizer, self._index = network, tokenizer, index
        self._options, self._calibration = options or RerankOptions(), calibration
        (self._ids,) = tokenizer.encode_all([text])
        self._query = embed_texts(network, tokenizer, tokenizer.query_texts([text]), PAIR_BATCH_SIZE)[0]
        self._assessed: dict[tuple[Path, float | None], tuple[float, float | None]] = {}

    def __call__(self, k: int = 10) -> list[RerankedHit]:
        """The ``k`` best photos, best first, of at least ``options.candidates``.

        Raises ``UsageError`` for ``k`` below 1 and as :func:`log_probs` does."""
        hits = self._index.search(self._query, max(k, self._options.candidates) if k > 0 else k)
        if not hits:
            return []
        self._assess([hit for hit in hits if (hit.path, hit.start) not in self._assessed])
        scores = [self._assessed[hit.path, hit.start] for hit in hits]
        log_prob = np.array([score for score, _ in scores], np.float32)
        logits = [logit for _, logit in scores if logit is not None]
        matching = np.array(logits, np.float32) if logits else None
        hits = with_match(hits, self._calibration, self._query, len(self._index.photos))
        temperature = 1 / self._network.logit_scale.detach().exp().item()
        return rerank_hits(hits, log_prob, len(self._ids), temperature, self._options, matching)[:k]

    def _assess(self, hits: Sequence[Hit]) -> None:
        """Ask the network about the photos of ``hits``."""
        if not hits:
            return
        network, tokenizer, ids = self._network, self._tokenizer, [self._ids] * len(hits)
        logits: Iterable[float | None] = repeat(None)
        if network.captions_from_embedding:
            vectors = np.stack([self._index.vector_of(hit.path, hit.start) for hit in hits])
            log_prob = log_probs(network, vectors, ids, tokenizer.end, self._options.embedding_norm)
        else:
            with torch.inference_mode():
                pictures = [middle_frame(hit.path, hit.moment) if hit.moment else hit.path for hit in hits]
                visual = encode_images(network, tokenizer.prep, pictures)
            log_prob, matching = photo_scores(network, visual, ids, tokenizer.end)
            logits = logits if matching is None else matching.tolist()
        for hit, score, logit in zip(hits, log_prob.tolist(), logits, strict=False):
            self._assessed[hit.path, hit.start] = score, logit


def rerank_hits(
    hits: Sequence[Hit],
    log_prob: np.ndarray,
    tokens: int,
    temperature: float,
    options: RerankOptions,
    matching: np.ndarray | None = None,
) -> list[RerankedHit]:
    """``hits`` of a text of so many ``tokens``, whose log P given each is ``log_prob`` ``(n,)`` (and whose
    logits of a head for matching are ``matching``), ordered by :meth:`RerankOptions.scores`."""
    cosines = np.array([hit.score for hit in hits], np.float32)
    scores = options.scores(cosines, log_prob, log_prob.mean(), temperature, matching)
    return [
        RerankedHit(
            hits[i].path,
            float(scores[i]),
            match=hits[i].match,
            start=hits[i].start,
            end=hits[i].end,
            cosine=hits[i].score,
            log_prob=float(log_prob[i]) / (tokens + 1),
        )
        for i in np.argsort(-scores, kind="stable")
    ]


@torch.inference_mode()
def photo_scores(
    network: MMGEMNetwork, visual: Tensor, ids: Sequence[Tensor], end: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """log P(text, end | image) ``(n,)`` of ``visual`` ``(n, ..., W)`` (``encode_image``) and a token sequence
    each, and the logits ``(n,)`` of the network's head for matching; None: it has none."""
    log_prob, matching = [torch.empty(0)], []
    for at in range(0, len(ids), PAIR_BATCH_SIZE):
        some, texts = visual[at : at + PAIR_BATCH_SIZE], ids[at : at + PAIR_BATCH_SIZE]
        log_prob.append(text_log_probs(network, network.project_visual_prefix(some), texts, end))
        if (logits := network.match_scores(some, texts)) is not None:
            matching.append(logits.float().cpu())
    return torch.cat(log_prob).numpy(), torch.cat(matching).numpy() if matching else None


@torch.inference_mode()
def log_probs(
    network: MMGEMNetwork, vectors: np.ndarray, ids: Sequence[Tensor], end: int, length: float
) -> np.ndarray:
    """log P(text, end | image) in nats, summed over tokens, of pairs: ``(n,)`` float32.

    ``vectors``: ``(n, D)`` float32, embeddings of length 1. ``ids``: n token sequences, 1-D int64. Raises
    ``UsageError`` for a model whose captions see more of an image than its embedding.
    """
    if not network.captions_from_embedding:
        raise network.refuse("captions the map of a photo, and reranks by photos, not by embeddings alone")
    if network.config.visual_grid > 1:
        raise UsageError("rerank needs a model with visual_grid = 1: an index holds no tiles of photos")
    visual = torch.from_numpy(length * vectors).to(network.emb_token.device)[:, None]
    return photo_scores(network, visual, ids, end)[0]


@torch.inference_mode()
def text_log_probs(network: MMGEMNetwork, prefixes: Tensor, ids: Sequence[Tensor], end: int) -> Tensor:
    """log P(text, end | prefix) in nats, summed over tokens: ``(n,)`` float32 on the CPU, for n prefixes
    ``(n, P, H)`` and a token sequence each; one pass of the LLM."""
    states = network.forward_packed(network.caption_segments(ids, prefixes)).prediction_states
    end_token = torch.tensor([end])
    targets = torch.cat([t for tokens in ids for t in (tokens, end_token)]).to(states.device)
    losses = [
        F.cross_entropy(network.llm.logits(state_rows).float(), target_ids, reduction="none")
        for state_rows, target_ids in zip(states.split(_LOGIT_ROWS), targets.split(_LOGIT_ROWS), strict=True)
    ]
    return torch.stack(
        [-token_losses.sum() for token_losses in torch.cat(losses).split([len(t) + 1 for t in ids])]
    ).cpu()
