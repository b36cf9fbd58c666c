"""A batch as a process of a run will see it: tokens and places are real, pixels and features have no data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mmgem.config import Recipe
from mmgem.data.batches import Batch
from mmgem.distributed.partition import shard_slice
from mmgem.distributed.world import World
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.base import FakeBatch, FakeTensorFactory, StepSize
from mmgem.tasks.image_text.lengths import Captions

_TEACHER = 384  # the width of all-MiniLM-L6


def fake_batch(
    recipe: Recipe,
    network: MMGEMNetwork,
    captions: Captions,
    world: World,
    fake_tensor: FakeTensorFactory,
    taught: bool,
    sampled_softmax: int,
) -> FakeBatch:
    """The images, boxes and texts of one step on the process that ``world`` is.

    ``fake_tensor``: makes a float tensor of a shape. Texts are as long as the data's, each length as often.
    ``taught``: whether a teacher's embeddings come with them.
    """
    whole, on_image = _items(recipe, captions, world.rank, world.size)
    lengths = _whole_texts(recipe, captions, whole)
    lengths += [[n] for n in _drawn(captions.region_tokens or captions.tokens, sum(on_image), seed=1)]
    texts = [torch.ones(n, dtype=torch.long) for item in lengths for n in item]
    owner = torch.tensor([v for v, item in enumerate(lengths) for _ in item])
    batch = Batch(
        features=fake_tensor(0, 1, 1, 1),
        texts=texts,
        text_owner=owner,
        captions=texts,
        caption_owner=owner,
        caption_targets=torch.ones(sum(len(ids) + 1 for ids in texts), dtype=torch.long),
        photos=torch.arange(len(lengths)),
        text_keys=torch.arange(len(texts)),
        teacher_texts=fake_tensor(len(texts), _TEACHER) if taught else None,
        vocabulary=torch.arange(min(captions.words, network.llm.vocabulary)),
    )
    _add_images(batch, recipe, network, whole, on_image, fake_tensor)
    assert batch.vocabulary is not None
    width = len(batch.vocabulary) + sampled_softmax if sampled_softmax else network.llm.vocabulary
    return FakeBatch(batch, len(texts), len(lengths), frozenset({width}))


def step_size(recipe: Recipe, captions: Captions) -> StepSize:
    """Of all processes together, which need not have the same number."""
    whole, on_image = _items(recipe, captions, 0, 1)
    boxes = sum(on_image)
    pairs = sum(map(len, _whole_texts(recipe, captions, whole))) + boxes
    asked = round(recipe.train.batch_size * recipe.data.region_share)
    available, each = captions.images, recipe.train.batch_size - asked
    if not each:
        available, each = captions.boxed, -(-asked // recipe.data.boxes_per_image)
    per_epoch = None if available is None else available // min(each, available)
    return StepSize(pairs, whole + boxes, per_epoch)


def _items(recipe: Recipe, captions: Captions, rank: int, world_size: int) -> tuple[int, list[int]]:
    """How many whole images a process has in a step, and how many boxes on each of the images that have
    some."""
    boxes = round(recipe.train.batch_size * recipe.data.region_share)
    images = min(recipe.train.batch_size - boxes, captions.images or recipe.train.batch_size)
    on_image = _boxes(captions.regions, recipe.data.boxes_per_image, boxes)
    whole = len(range(images)[shard_slice(images, rank, world_size)])
    return whole, on_image[shard_slice(len(on_image), rank, world_size)]


def _whole_texts(recipe: Recipe, captions: Captions, whole: int) -> list[list[int]]:
    """Tokens of the texts of each whole image: some of one text that is several captions long."""
    each = min(recipe.data.captions_per_image, captions.each)
    most = captions.each
    long = round(whole * recipe.data.joined_caption_prob) if most > 1 else 0
    joined = list(_drawn(range(2, most + 1), long, seed=3))
    lengths = _drawn(captions.tokens, sum(joined) + (whole - long) * each, seed=0)
    said = [[sum(next(lengths) for _ in range(count))] for count in joined]
    return said + [[next(lengths) for _ in range(each)] for _ in range(whole - long)]


def _add_images(
    batch: Batch,
    recipe: Recipe,
    network: MMGEMNetwork,
    whole: int,
    on_image: Sequence[int],
    fake_tensor: FakeTensorFactory,
) -> None:
    """Give a batch what its images are seen by."""
    cached, side = recipe.data.cached, network.encoder.size

    def seen(count: int, side: int) -> Tensor:
        pixels = fake_tensor(count, 3, side, side)
        if not cached:
            return pixels
        with torch.no_grad():
            (_, *cell) = network.encoder.frozen_stem(pixels[:1]).shape
        return fake_tensor(count, *cell)

    if whole:
        read = seen(whole, side)
        batch.features, batch.pixels = (read, None) if cached else (batch.features, read)
    if on_image:
        read = seen(len(on_image), recipe.data.region_size or side)
        batch.box_features, batch.box_pixels = (read, None) if cached else (None, read)
        batch.boxes = torch.tensor([0.0, 0.0, side, side]).repeat(len(on_image), max(on_image), 1)
        batch.box_valid = torch.arange(max(on_image)) < torch.tensor(on_image)[:, None]


def _boxes(regions: Sequence[int], most: int, wanted: int) -> list[int]:
    """How many boxes are taken from each of the images that boxes are taken from."""
    found = [min(n, most) for n in _drawn(regions or [most], -(-wanted // most), seed=2)]
    before = np.cumsum([0, *found])[:-1]
    return [n for n in np.clip(wanted - before, 0, found).tolist() if n]


def _drawn(known: Sequence[int], count: int, seed: int) -> Iterator[int]:
    """``count`` of the ``known`` numbers, evenly from the least to the greatest, in random order."""
    at = (np.arange(count) + 0.5) * len(known) / max(1, count)
    return iter(np.random.default_rng(seed).permutation(np.sort(known)[at.astype(int)]).tolist())
