"""The gradient cache of images and texts: contrastive over the whole batch, captions part by part.

The caption loss is a sum over captions and needs no cache: it goes backward with the second run of each part.
So the negatives are those of the whole batch and the memory is that of one part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmgem.data.batches import Batch, DrawnTexts
from mmgem.distributed.world import World
from mmgem.models.network import MMGEMNetwork
from mmgem.models.packing import PackedOutput
from mmgem.tasks.base import Terms
from mmgem.tasks.image_text.items import (
    drawn_texts,
    embed_items,
    item_embeddings,
    split_drawn,
    text_states,
    text_tokens,
)
from mmgem.tasks.image_text.terms import EmbeddingTerm, TextTerm, TextTokenTerm, TokenTerm


class ImageTextGradCache:
    """Caches the losses of ``embedding_terms`` and ``text_terms`` over a batch; ``token_terms``, and the
    losses of text terms over tokens, are computed with each part; so are ``text_token_terms``."""

    def __init__(
        self,
        embedding_terms: Sequence[EmbeddingTerm],
        token_terms: Sequence[TokenTerm],
        text_terms: Sequence[TextTerm] = (),
        text_token_terms: Sequence[TextTokenTerm] = (),
    ):
        self.embedding_terms, self.token_terms, self.text_terms = embedding_terms, token_terms, text_terms
        self.text_token_terms = text_token_terms

    @property
    def over_embeddings(self) -> bool:
        """Whether there are embedding terms, or text terms."""
        return bool(self.embedding_terms or self.text_terms)

    def split(self, batch: Batch, size: int) -> list[Batch]:
        """See :func:`chunks`."""
        return list(chunks(batch, size))

    def sizes(self, part: Batch) -> dict[str, int]:
        """``images`` (boxes too), ``texts`` and ``drawn`` texts of a part."""
        boxes = 0 if part.box_valid is None else int(part.box_valid.sum())
        return {
            "images": part.whole_images + boxes,
            "texts": len(part.texts),
            "drawn": len(drawn_texts(part)),
        }

    def embed(self, network: MMGEMNetwork, part: Batch) -> dict[str, Tensor]:
        """``images`` ``(V, D)``, ``texts`` ``(N, D)`` and ``drawn`` texts ``(T, D)``, not normalised."""
        visual = embed_items(network, part)
        embedded = network.encode_text([*part.texts, *drawn_texts(part)])
        return {
            "images": item_embeddings(network, visual),
            "texts": embedded[: len(part.texts)],
            "drawn": embedded[len(part.texts) :],
        }

    def embedding_loss(
        self, network: MMGEMNetwork, embeddings: dict[str, Tensor], batch: Batch, world: World
    ) -> Terms:
        """The losses of the embedding terms and of the text terms."""
        terms: Terms = {}
        images, texts = embeddings["images"], embeddings["texts"]
        for term in self.embedding_terms:
            terms |= term.weighted(term.loss(network, images, texts, batch, world))
        drawn = split_drawn(embeddings["drawn"], batch)
        for text_term in self.text_terms:
            section = text_term.section
            own = drawn[section], batch.drawn[section]
            terms |= text_term.weighted(text_term.loss(network, images, texts, *own, batch, world))
        return terms

    def totals(self, batch: Batch, world: World) -> dict[str, float]:
        """``caption_tokens`` and ``text_tokens`` of all processes, as far as terms ask for them."""
        totals: dict[str, float] = {}
        if self.token_terms:
            (totals["caption_tokens"],) = world.all_reduce_sum(batch.caption_tokens)
        if self.text_token_terms:
            (totals["text_tokens"],) = world.all_reduce_sum(text_tokens(batch))
        return totals

    def replay(
        self,
        network: MMGEMNetwork,
        part: Batch,
        embedding_grads: dict[str, Tensor],
        totals: dict[str, float],
    ) -> Terms:
        """A part again, see :meth:`~mmgem.tasks.base.GradCache.replay`."""
        visual = embed_items(network, part)
        terms: Terms = {}
        if self.text_token_terms and part.texts and not embedding_grads:
            output = network.read(part.texts)
            terms |= self._text_token_losses(network, output, part, totals)
        if embedding_grads:
            images = item_embeddings(network, visual)
            output = network.read([*part.texts, *drawn_texts(part)])
            embedded = output.embeddings
            texts, own = embedded[: len(part.texts)], embedded[len(part.texts) :]
            products = images * embedding_grads["images"], texts * embedding_grads["texts"]
            terms["surrogate"] = products[0].sum() + products[1].sum()
            if len(own):
                terms["surrogate"] = terms["surrogate"] + (own * embedding_grads["drawn"]).sum()
            for section, rows in split_drawn(own, part).items():
                text_term = next(term for term in self.text_terms if term.section == section)
                if losses := text_term.token_loss(network, rows, part.drawn[section]):
                    terms |= text_term.weighted(losses)
            terms |= self._text_token_losses(network, output, part, totals)
        if self.token_terms and part.captions:
            states = network.read([], part.captions, visual[part.caption_owner]).prediction_states
            for term in self.token_terms:
                terms |= term.weighted(term.loss(network, states, part, totals["caption_tokens"]))
        return terms

    def _text_token_losses(
        self, network: MMGEMNetwork, output: PackedOutput, part: Batch, totals: dict[str, float]
    ) -> Terms:
        terms: Terms = {}
        for term in self.text_token_terms if part.texts else ():
            losses = term.loss(network, text_states(output, part), part, totals["text_tokens"])
            terms |= term.weighted(losses)
        return terms


def chunks(batch: Batch, size: int) -> Iterator[Batch]:
    """Parts of ``batch`` of at most ``size`` items (of one image more, where its boxes are), in its order. Of
    clips their frames count, but for one that has more."""
    images = batch.whole_images
    ends = np.cumsum([0, *(batch.frames or [1] * images)])
    stop = 0
    while stop < images:
        start = stop
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + size, side="right")) - 1)
        rows = slice(int(ends[start]), int(ends[stop]))
        pixels = None if batch.pixels is None else batch.pixels[rows]
        features = batch.features[rows] if batch.pixels is None else batch.features
        frames = None if batch.frames is None else batch.frames[start:stop]
        yield _part(batch, start, stop, features=features, pixels=pixels, frames=frames)
    no_features = batch.features[:0]
    for section, drawn in batch.drawn.items():
        for start in range(0, len(drawn.texts), size):
            rows = slice(start, start + size)
            part = DrawnTexts(drawn.texts[rows], drawn.of, rows)
            yield _part(batch, 0, 0, features=no_features, pixels=None, drawn={section: part})
    if batch.boxes is None or batch.box_valid is None:
        return
    first, boxed = images, max(1, size // batch.boxes.shape[1])
    for start in range(0, len(batch.boxes), boxed):
        rows = slice(start, start + boxed)
        valid = batch.box_valid[rows]
        fields = {
            name: value[rows]
            for name in ("boxes", "box_valid", "box_features", "box_pixels")
            if (value := getattr(batch, name)) is not None
        }
        count = int(valid.sum())
        yield _part(batch, first, first + count, features=no_features, pixels=None, **fields)
        first += count


def _part(batch: Batch, start: int, stop: int, **fields: Any) -> Batch:
    """The items ``start`` to ``stop`` and their texts, which lie in the items' order."""
    bounds = torch.tensor([start, stop], device=batch.text_owner.device)
    text_start, text_end = torch.searchsorted(batch.text_owner, bounds).tolist()
    lengths = [len(ids) + 1 for ids in batch.captions]
    caption_start, caption_end = torch.searchsorted(batch.caption_owner, bounds).tolist()
    tokens = slice(sum(lengths[:caption_start]), sum(lengths[:caption_end]))
    fields.setdefault("drawn", {})
    empty: dict[str, Any] = dict.fromkeys(
        ("frames", "boxes", "box_valid", "box_features", "box_pixels", "photos", "text_keys", "teacher_texts")
    )
    return replace(
        batch,
        texts=batch.texts[text_start:text_end],
        text_owner=batch.text_owner[text_start:text_end] - start,
        captions=batch.captions[caption_start:caption_end],
        caption_owner=batch.caption_owner[caption_start:caption_end] - start,
        caption_targets=batch.caption_targets[tokens],
        **(empty | fields),
    )
