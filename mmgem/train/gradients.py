"""One training step's arithmetic: losses and gradients, in one pass or in chunks.

Gradient caching (Gao et al. 2021, arXiv 2101.06983), for the embeddings only: with
``train.grad_cache_chunk_size`` a batch is
embedded chunk by chunk without keeping activations, the contrastive loss is taken over all of it, and each
chunk is run again, with the same random numbers, against the gradient of its embeddings. The caption loss is
a sum over captions and needs no cache: it goes backward with the second run. So the negatives are those of
the whole batch and the memory is that of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmgem.config import ObjectiveConfig
from mmgem.data.batches import Batch
from mmgem.distributed.world import World
from mmgem.errors import DataError
from mmgem.models.network import MMGEMNetwork
from mmgem.self_retrieval.batches import CorpusBatch
from mmgem.self_retrieval.losses import naming, reading
from mmgem.tasks.image_text import OBJECTIVES
from mmgem.tasks.image_text.captioning import caption_loss
from mmgem.tasks.image_text.contrastive import contrastive_terms, embed_items

if TYPE_CHECKING:
    from mmgem.train.engine import Engine

Terms = dict[str, Tensor]


class Step(nn.Module):
    """What is called for every forward of the network: one module, whose inputs choose what is computed."""

    def __init__(self, network: MMGEMNetwork, config: ObjectiveConfig, world: World):
        super().__init__()
        self.network, self.config, self.world = network, config, world

    def forward(self, what: str, batch: Any, *more: Any) -> Terms:
        """``what``: ``images``, ``naming`` or ``reading``, the losses of a batch; ``embed``, ``again``: the
        two halves of gradient caching."""
        if what == "images":
            return OBJECTIVES[self.config.name](self.network, batch, self.config, self.world)
        if what == "naming":
            return naming(self.network, batch, self.config, self.world)
        if what == "reading":
            return reading(self.network, batch, self.config, self.world)
        return self._embed(batch) if what == "embed" else self._again(batch, *more)

    def _embed(self, batch: Batch) -> Terms:
        visual = embed_items(self.network, batch)[:, 0]
        return {"images": visual, "texts": self.network.run(texts=batch.texts)[0]}

    def _again(self, batch: Batch, images: Tensor | None, texts: Tensor | None, total: float) -> Terms:
        """Losses whose gradients are those of the whole batch's: ``images`` ``(V, D)`` and ``texts``
        ``(N, D)`` are the gradients of the contrastive loss, ``total`` the caption tokens of all ranks."""
        network, config = self.network, self.config
        # The same calls in the same order as in _embed, so that dropout draws the same numbers.
        visual = embed_items(network, batch)
        terms: Terms = {}
        if images is not None and texts is not None:
            embedded, _ = network.run(texts=batch.texts)
            terms["surrogate"] = (visual[:, 0] * images).sum() + (embedded * texts).sum()
        if total:
            prefixes = network.project_visual_prefix(visual[batch.caption_owner])
            _, states = network.run(captions=batch.captions, prefixes=prefixes)
            loss = caption_loss(network, states, batch, config, total)
            terms["caption_loss"] = config.caption_weight * loss
        return terms


def gradients(
    engine: Engine, parts: list[tuple[str, Any]], chunk: int, seed: Callable[[int], int], where: str
) -> dict[str, float]:
    """Add the gradients of a step's ``parts`` (each a loss of :class:`Step` and its batch), one after the
    other, so that one part's activations are alive at a time. Returns the losses of all ranks together.

    ``chunk``: items of an image batch that are alive at once, 0 for all. ``seed``: of the random numbers of
    chunk n. Raises ``DataError``, beginning with ``where``, for a loss that is no number.
    """
    told: dict[str, Tensor] = {}

    def tell(terms: Terms) -> None:
        for name, value in terms.items():
            if name != "surrogate":
                told[name] = told.get(name, 0.0) + value.detach()

    passes = [p for part in parts for p in _passes(engine, *part, chunk, seed, tell)]
    for n, run in enumerate(passes):
        last = n == len(passes) - 1
        with engine.sync(last):
            terms = run()
            tell(terms)
            engine.backward(whole_loss(terms), last)
    sums = engine.world.all_reduce_sum(*map(float, told.values()))
    values = dict(zip(told, sums, strict=True))
    for value in values.values():
        if not math.isfinite(value):
            raise DataError(f"{where}: the loss is {value}; lower the learning rates")
    return values


def corpus_parts(batch: CorpusBatch, config: ObjectiveConfig) -> list[str]:
    """Which losses of :class:`Step` a corpus's batch is for."""
    naming = config.retrieve_weight and batch.names
    reading = batch.reads and (config.ask_weight or config.assess_weight or config.embed_weight)
    return [what for what, wanted in (("naming", naming), ("reading", reading)) if wanted]


def whole_loss(terms: Terms) -> Tensor | None:
    """What goes backward of the ``terms`` of a forward pass; None if nothing does."""
    losses = [v for name, v in terms.items() if name.endswith("_loss") or name == "surrogate"]
    return torch.stack(losses).sum() if losses else None


def _passes(
    engine: Engine,
    what: str,
    batch: Any,
    chunk: int,
    seed: Callable[[int], int],
    tell: Callable[[Terms], None],
) -> Iterator[Callable[[], Terms]]:
    if what != "images" or not chunk:
        yield lambda: engine.module(what, batch)
        return
    config = engine.step.config
    pieces = list(chunks(batch, chunk))
    count = len(pieces)
    pieces += pieces[-1:] * (max(engine.world.all_gather_sizes(count)) - count)
    slopes: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * len(pieces)
    if config.name != "captioning":
        slopes = _slopes(engine, batch, pieces, count, seed, tell)
    total = 0.0
    if config.name != "contrastive":
        (total,) = engine.world.all_reduce_sum(len(batch.caption_targets))

    def again(n: int) -> Callable[[], Terms]:
        def run() -> Terms:
            torch.manual_seed(seed(n))
            terms = engine.module("again", pieces[n], *slopes[n], total)
            # A piece more than this rank has: it runs along, for the others, and adds nothing.
            return {name: value * (n < count) for name, value in terms.items()}

        return run

    yield from map(again, range(len(pieces)))


def _slopes(
    engine: Engine,
    batch: Batch,
    pieces: list[Batch],
    count: int,
    seed: Callable[[int], int],
    tell: Callable[[Terms], None],
) -> list[tuple[Tensor | None, Tensor | None]]:
    """Gradients of the contrastive loss at the embeddings of each piece, of which the first ``count`` make up
    the batch."""
    embedded = []
    with torch.no_grad():
        for n, piece in enumerate(pieces):
            torch.manual_seed(seed(n))
            embedded.append(engine.module("embed", piece))
    images = torch.cat([e["images"] for e in embedded[:count]]).requires_grad_()
    texts = torch.cat([e["texts"] for e in embedded[:count]]).requires_grad_()
    network = engine.network
    terms = contrastive_terms(network, images, texts, batch, engine.step.config, engine.world)
    tell(terms)
    scalars = [p for p in (network.logit_scale, network.logit_bias) if p.requires_grad]
    wanted = [images, texts, *scalars]
    found = torch.autograd.grad(terms["contrastive_loss"], wanted, allow_unused=True)
    for p, gradient in zip(scalars, found[2:], strict=True):
        if gradient is not None:
            gradient = gradient * engine.world.size  # as everything that goes backward: it will be averaged
            p.grad = gradient if p.grad is None else p.grad + gradient
    by_images = found[0].split([len(e["images"]) for e in embedded[:count]])
    by_texts = found[1].split([len(e["texts"]) for e in embedded[:count]])
    slopes: list[tuple[Tensor | None, Tensor | None]] = list(zip(by_images, by_texts, strict=True))
    return slopes + slopes[-1:] * (len(pieces) - count)


def chunks(batch: Batch, size: int) -> Iterator[Batch]:
    """Parts of ``batch`` of at most ``size`` items (of one image more, where its boxes are), in its order."""
    seen = batch.features if batch.pixels is None else batch.pixels
    for at in range(0, len(seen), size):
        rows = slice(at, min(at + size, len(seen)))
        pixels = None if batch.pixels is None else batch.pixels[rows]
        features = batch.features[rows] if batch.pixels is None else batch.features
        yield _part(batch, rows.start, rows.stop, features=features, pixels=pixels)
    if batch.boxes is None or batch.box_valid is None:
        return
    first, none = len(seen), batch.features[:0]
    images = max(1, size // batch.boxes.shape[1])
    for at in range(0, len(batch.boxes), images):
        rows = slice(at, at + images)
        valid = batch.box_valid[rows]
        inside = {
            name: value[rows]
            for name in ("boxes", "box_valid", "box_features", "box_pixels")
            if (value := getattr(batch, name)) is not None
        }
        count = int(valid.sum())
        yield _part(batch, first, first + count, features=none, pixels=None, **inside)
        first += count


def _part(batch: Batch, start: int, stop: int, **own: Any) -> Batch:
    """The items ``start`` to ``stop`` and their texts, which lie in the items' order."""
    bounds = torch.tensor([start, stop], device=batch.text_owner.device)
    a, b = torch.searchsorted(batch.text_owner, bounds).tolist()
    lengths = [len(ids) + 1 for ids in batch.captions]
    c, d = torch.searchsorted(batch.caption_owner, bounds).tolist()
    tokens = slice(sum(lengths[:c]), sum(lengths[:d]))
    empty: dict[str, Any] = dict.fromkeys(
        ("boxes", "box_valid", "box_features", "box_pixels", "photos", "text_keys", "teacher_texts")
    )
    return replace(
        batch,
        texts=batch.texts[a:b],
        text_owner=batch.text_owner[a:b] - start,
        captions=batch.captions[c:d],
        caption_owner=batch.caption_owner[c:d] - start,
        caption_targets=batch.caption_targets[tokens],
        **(empty | own),
    )
