"""Captions from visual prefixes: greedy or beam search, batched, on the KV cache.

Every prefix has the same length, so a batch needs no padding and its members cannot influence each other; one
that is done leaves the batch.
Beam search keeps K live hypotheses an image and ranks finished ones by log P / length ** length_penalty
(Wu et al. 2016, arXiv 1609.08144, simplified); beams=1 is greedy decoding. :func:`choose_captions` then lets
the model choose among the finished ones by its own embedding of them: what is likely, and looks like the
picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from mmgem.data.tokens import Tokenizer
from mmgem.inference.caption_options import CAPTION_DEFAULTS, CaptionOptions
from mmgem.models.network import MMGEMNetwork


@dataclass(frozen=True)
class Caption:
    """Token ids without the end token, their summed log-probability (end token included), and the score by
    which beam search ranks."""

    ids: list[int]
    log_prob: float
    score: float = -torch.inf

    @property
    def finished(self) -> bool:
        """Whether it came to its end, and was not cut."""
        return self.score > -torch.inf


@dataclass(frozen=True, slots=True)
class DecodedCaption:
    """A caption as text, the number of tokens it was written in (without the end's), and whether it came to
    its end: if not, it was cut at ``max_tokens``."""

    text: str
    tokens: int
    finished: bool
    log_prob: float
    """log P(caption | image) per token, that of the end included, in nats."""
    confidence: float | None = None
    """The share of its words that people are expected to say of the image too; None: the model is not
    calibrated for captions."""


def generate_captions(
    network: MMGEMNetwork,
    prefixes: Tensor,
    end: int,
    beams: int = CAPTION_DEFAULTS.beams,
    max_tokens: int = CAPTION_DEFAULTS.max_tokens,
    length_penalty: float = CAPTION_DEFAULTS.length_penalty,
    no_repeat_ngram_size: int = CAPTION_DEFAULTS.no_repeat_ngram_size,
) -> list[Caption]:
    """Decode one caption per row of ``prefixes`` ``(B, P, H)``: the first of :func:`caption_candidates`."""
    candidates = caption_candidates(
        network, prefixes, end, beams, max_tokens, length_penalty, no_repeat_ngram_size
    )
    return [found[0] for found in candidates]


def describe(
    network: MMGEMNetwork, tokenizer: Tokenizer, visual: Tensor, options: CaptionOptions = CAPTION_DEFAULTS
) -> list[str]:
    """A sentence for each row of visual embeddings ``(B, 1 + tiles, D)``: what beam search finds, chosen by
    :func:`choose_captions`."""
    return [caption.text for caption in decode_captions(network, tokenizer, visual, options)]


def decode_captions(
    network: MMGEMNetwork,
    tokenizer: Tokenizer,
    visual: Tensor,
    options: CaptionOptions = CAPTION_DEFAULTS,
    abandoned: Callable[[int], bool] | None = None,
) -> list[DecodedCaption]:
    """:func:`describe`, with what else is known of each. ``abandoned``: as of :func:`caption_candidates`."""
    with torch.inference_mode():
        prefixes = network.project_visual_prefix(visual)
    candidates = caption_candidates(
        network,
        prefixes,
        tokenizer.end,
        options.beams,
        options.max_tokens,
        options.length_penalty,
        options.no_repeat_ngram_size,
        abandoned,
    )
    if not network.embeds:
        chosen = [found[0] for found in candidates]
    else:
        with torch.inference_mode():
            embedded = network.image_embeddings(visual)
        chosen = choose_captions(network, embedded, candidates, options.clip_rescore_weight)
    return [
        DecodedCaption(
            tokenizer.decode(c.ids), len(c.ids), c.finished, c.log_prob / max(1, len(c.ids) + c.finished)
        )
        for c in chosen
    ]


@torch.inference_mode()
def choose_captions(
    network: MMGEMNetwork, visual: Tensor, candidates: list[list[Caption]], weight: float, most: int = 10
) -> list[Caption]:
    """Choose a caption for each row of visual embeddings ``(B, D)`` by score + ``weight`` * cosine / T.

    T is the trained temperature. Only the ``most`` best by score are looked at. The idea is Self-Retrieval's
    (the model that retrieves assesses), turned to captions.
    """
    kept = [found[:most] for found in candidates]
    flat = [torch.tensor(c.ids) for found in kept for c in found if c.ids]
    if not flat or not weight:
        return [found[0] for found in kept]
    texts = F.normalize(network.encode_text(flat).float(), dim=-1)
    images = F.normalize(visual.float(), dim=-1)
    scale = weight * network.logit_scale.exp()
    chosen, at = [], 0
    for image, found in zip(images, kept, strict=True):
        scores = []
        for c in found:
            likeness = scale * (texts[at] @ image) if c.ids else torch.tensor(-torch.inf)
            at += bool(c.ids)
            scores.append(c.score + float(likeness))
        chosen.append(found[max(range(len(found)), key=scores.__getitem__)])
    return chosen


@torch.inference_mode()
def caption_candidates(
    network: MMGEMNetwork,
    prefixes: Tensor,
    end: int,
    beams: int = CAPTION_DEFAULTS.beams,
    max_tokens: int = CAPTION_DEFAULTS.max_tokens,
    length_penalty: float = CAPTION_DEFAULTS.length_penalty,
    no_repeat_ngram_size: int = CAPTION_DEFAULTS.no_repeat_ngram_size,
    abandoned: Callable[[int], bool] | None = None,
) -> list[list[Caption]]:
    """Finished captions of each row of ``prefixes`` ``(B, P, H)``, best first; at least one.

    ``end``: the end-of-text token. ``beams``: live hypotheses (1 = greedy). Where none ends within
    ``max_tokens`` the best is cut there. ``length_penalty``: length normalisation. ``no_repeat_ngram_size``:
    so many tokens in a row come once (0: however often; as transformers' setting of that name).
    ``abandoned``: asked at every step whether nobody waits for the caption of a row any more; it is cut
    there.
    """
    count = len(prefixes)
    device = prefixes.device
    llm = network.llm
    inputs = network.caption_start(prefixes)
    length = inputs.shape[1]
    positions = torch.arange(length, device=device).expand(count, -1)
    cache = DynamicCache()
    states = network.caption_states(inputs, positions, _causal(count, length, device), cache, prefixes)
    log_probs = llm.logits(states[:, -1]).float().log_softmax(-1)
    cache.batch_repeat_interleave(beams)

    vocabulary = log_probs.shape[-1]
    # All beams start equal: only the first may open, or they would all be the same.
    live = torch.full((count, beams), -torch.inf, device=device)
    live[:, 0] = 0.0
    log_probs = log_probs[:, None].expand(-1, beams, -1)
    tokens = torch.empty(count, beams, 0, dtype=torch.long, device=device)
    ended_ones: list[list[Caption]] = [[] for _ in range(count)]
    best_score = torch.full((count,), -torch.inf, device=device)
    images = list(range(count))  # those that are still open

    for step in range(max_tokens):
        scores = (live[..., None] + log_probs).flatten(1)
        # At most K of the 2K best can be the end token, so K live ones always remain.
        top, at = scores.topk(2 * beams if vocabulary > 1 else beams, dim=1)
        origin, token = at // vocabulary, at % vocabulary
        ended = token == end
        final = top / (step + 1) ** length_penalty
        # A hypothesis may end only from among the K best, as if the others were already pruned.
        final[:, beams:] = -torch.inf
        final = final.masked_fill(~ended, -torch.inf)
        for b, w in torch.nonzero(torch.isfinite(final)).tolist():
            ids = tokens[b, origin[b, w]].tolist()
            ended_ones[images[b]].append(Caption(ids, float(top[b, w]), float(final[b, w])))
        best_score = torch.maximum(best_score, final.amax(1))

        keep = top.masked_fill(ended, -torch.inf).topk(beams, dim=1)
        live, origin, token = keep.values, origin.gather(1, keep.indices), token.gather(1, keep.indices)
        tokens = torch.cat([tokens.gather(1, origin[..., None].expand(-1, -1, step)), token[..., None]], 2)
        # log P only falls; the best a live one can still score is at the greatest length.
        reachable = live[:, 0] / max_tokens**length_penalty
        open_ = best_score < reachable
        if beams == 1:
            open_ = open_ & ~torch.isfinite(best_score)
        if step + 1 == max_tokens:
            open_ = torch.zeros_like(open_)
        elif abandoned is not None:
            open_ &= ~torch.tensor([abandoned(image) for image in images], device=device)
        # Images that are done take no more: what is found must not depend on the others of the batch.
        for b in torch.nonzero(~open_)[:, 0].tolist():
            if not ended_ones[images[b]]:
                ended_ones[images[b]].append(Caption(tokens[b, 0].tolist(), float(live[b, 0])))
        (kept,) = open_.nonzero(as_tuple=True)
        if not len(kept):
            break
        images = [images[b] for b in kept.tolist()]
        live, token, tokens, best_score = live[kept], token[kept], tokens[kept], best_score[kept]
        cache.reorder_cache((kept[:, None] * beams + origin[kept]).flatten())
        at_position = torch.full((len(kept) * beams, 1), length + step, device=device)
        rows = torch.tensor(images, device=device).repeat_interleave(beams)
        inputs = llm.embed(token.reshape(-1, 1))
        states = network.caption_states(inputs, at_position, None, cache, prefixes, rows)
        log_probs = llm.logits(states[:, 0]).float().log_softmax(-1).view(len(kept), beams, -1)
        if no_repeat_ngram_size:
            log_probs = log_probs.masked_fill(_repeats(tokens, no_repeat_ngram_size, vocabulary), -torch.inf)

    for found in ended_ones:
        found.sort(key=lambda c: -c.score)
    return ended_ones


def _causal(count: int, length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().expand(count, -1, -1)


def _repeats(tokens: Tensor, size: int, vocabulary: int) -> Tensor:
    """Which token would end a second copy of ``size`` tokens in a row, of ``tokens`` ``(B, K, L)``:
    ``(B, K, vocabulary)`` bool."""
    batch, beams, length = tokens.shape
    banned = torch.zeros(batch, beams, vocabulary + 1, dtype=torch.bool, device=tokens.device)
    if length >= size:
        runs = tokens.unfold(2, size, 1)
        same = (runs[..., :-1] == tokens[..., None, length - size + 1 :]).all(-1)
        banned.scatter_(2, torch.where(same, runs[..., -1], vocabulary), True)
    return banned[..., :vocabulary]
