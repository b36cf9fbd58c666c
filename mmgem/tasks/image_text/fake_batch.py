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
from mmgem.tasks.image_text.lengths import CaptionStats

TEACHER_WIDTH = 384
"""Of the embeddings of all-MiniLM-L6 and multilingual-e5-small."""


def fake_batch(
    recipe: Recipe,
    network: MMGEMNetwork,
    captions: CaptionStats,
    world: World,
    fake_tensor: FakeTensorFactory,
    has_teacher: bool,
    sampled_softmax: int,
) -> FakeBatch:
    """The images, boxes and texts of one step on the process that ``world`` is.

    ``fake_tensor``: makes a float tensor of a shape. Texts are as long as the data's, each length as often.
    ``has_teacher``: whether a teacher's embeddings come with them.
    """
    images, boxes_per_image = _step_items(recipe, captions, world.rank, world.size)
    lengths = _image_text_lengths(recipe, captions, images)
    lengths += [
        [n] for n in _spread_sample(captions.region_tokens or captions.tokens, sum(boxes_per_image), seed=1)
    ]
    captions_only = [torch.ones(n, dtype=torch.long) for item in lengths for n in item]
    caption_owner = torch.tensor([v for v, item in enumerate(lengths) for _ in item])
    translated = _translations(recipe, captions, images)
    texts = captions_only + [torch.ones(n, dtype=torch.long) for n in translated]
    owner = torch.cat([caption_owner, torch.arange(len(translated))])
    batch = Batch(
        features=fake_tensor(0, 1, 1, 1),
        texts=texts,
        text_owner=owner,
        captions=captions_only,
        caption_owner=caption_owner,
        caption_targets=torch.ones(sum(len(ids) + 1 for ids in captions_only), dtype=torch.long),
        photos=torch.arange(len(lengths)),
        text_keys=torch.arange(len(texts)),
        teacher_texts=fake_tensor(len(texts), TEACHER_WIDTH) if has_teacher else None,
        vocabulary=torch.arange(min(captions.words, network.llm.vocabulary)),
    )
    _add_images(batch, recipe, network, captions, images, boxes_per_image, fake_tensor)
    assert batch.vocabulary is not None
    width = len(batch.vocabulary) + sampled_softmax if sampled_softmax else network.llm.vocabulary
    return FakeBatch(batch, len(texts), len(lengths), frozenset({width}))


def step_size(recipe: Recipe, captions: CaptionStats) -> StepSize:
    """Of all processes together, which need not have the same number."""
    images, boxes_per_image = _step_items(recipe, captions, 0, 1)
    boxes = sum(boxes_per_image)
    pairs = sum(map(len, _image_text_lengths(recipe, captions, images))) + boxes
    pairs += len(_translations(recipe, captions, images))
    requested_boxes = round(recipe.train.batch_size * recipe.data.region_share)
    available, per_step = captions.images, recipe.train.batch_size - requested_boxes
    if recipe.data.extra_train:  # an epoch is of data.train alone
        per_step -= round(per_step * recipe.data.extra_share)
    if not per_step:
        available, per_step = captions.boxed, -(-requested_boxes // recipe.data.boxes_per_image)
    per_epoch = None if available is None else available // min(per_step, available)
    return StepSize(pairs, images + boxes, per_epoch)


def _step_items(recipe: Recipe, captions: CaptionStats, rank: int, world_size: int) -> tuple[int, list[int]]:
    """How many whole images a process has in a step, and how many boxes on each of the images that have
    some."""
    boxes = round(recipe.train.batch_size * recipe.data.region_share)
    images = min(recipe.train.batch_size - boxes, captions.images or recipe.train.batch_size)
    boxes_per_image = _boxes_per_image(captions.regions, recipe.data.boxes_per_image, boxes)
    whole_images = len(range(images)[shard_slice(images, rank, world_size)])
    return whole_images, boxes_per_image[shard_slice(len(boxes_per_image), rank, world_size)]


def _image_text_lengths(recipe: Recipe, captions: CaptionStats, images: int) -> list[list[int]]:
    """Tokens of the texts of each whole image: some of one text that is several captions long."""
    per_image = min(recipe.data.captions_per_image, captions.each)
    max_joined = captions.each
    joined_images = round(images * recipe.data.joined_caption_prob) if max_joined > 1 else 0
    joined = list(_spread_sample(range(2, max_joined + 1), joined_images, seed=3))
    lengths = _spread_sample(captions.tokens, sum(joined) + (images - joined_images) * per_image, seed=0)
    joined_lengths = [[sum(next(lengths) for _ in range(count))] for count in joined]
    return joined_lengths + [[next(lengths) for _ in range(per_image)] for _ in range(images - joined_images)]


def _translations(recipe: Recipe, captions: CaptionStats, images: int) -> list[int]:
    """Tokens of the captions in other languages that come with some of the whole images, one each."""
    share = recipe.data.translation_prob * captions.translated
    if recipe.data.extra_train:
        share *= 1 - recipe.data.extra_share
    return list(_spread_sample(captions.translation_tokens, round(images * share), seed=4))


def _add_images(
    batch: Batch,
    recipe: Recipe,
    network: MMGEMNetwork,
    captions: CaptionStats,
    images: int,
    boxes_per_image: Sequence[int],
    fake_tensor: FakeTensorFactory,
) -> None:
    """Give a batch what its images are seen by."""
    cached, side = recipe.data.cached, network.encoder.size

    def encoder_input(count: int, side: int) -> Tensor:
        pixels = fake_tensor(count, 3, side, side)
        if not cached:
            return pixels
        with torch.no_grad():
            (_, *cell) = network.encoder.frozen_stem(pixels[:1]).shape
        return fake_tensor(count, *cell)

    if images:
        frames = list(_spread_sample(captions.frames, images, seed=5))
        inputs = encoder_input(sum(frames), side)
        batch.frames = frames if sum(frames) > images else None
        batch.features, batch.pixels = (inputs, None) if cached else (batch.features, inputs)
    if boxes_per_image:
        inputs = encoder_input(len(boxes_per_image), recipe.data.region_size or side)
        batch.box_features, batch.box_pixels = (inputs, None) if cached else (None, inputs)
        batch.boxes = torch.tensor([0.0, 0.0, side, side]).repeat(
            len(boxes_per_image), max(boxes_per_image), 1
        )
        batch.box_valid = torch.arange(max(boxes_per_image)) < torch.tensor(boxes_per_image)[:, None]


def _boxes_per_image(regions: Sequence[int], max_boxes: int, total: int) -> list[int]:
    """How many boxes are taken from each of the images that boxes are taken from."""
    counts = [
        min(n, max_boxes) for n in _spread_sample(regions or [max_boxes], -(-total // max_boxes), seed=2)
    ]
    before = np.cumsum([0, *counts])[:-1]
    return [n for n in np.clip(total - before, 0, counts).tolist() if n]


def _spread_sample(values: Sequence[int], count: int, seed: int) -> Iterator[int]:
    """``count`` of the ``values`` numbers, evenly from the least to the greatest, in random order."""
    positions = (np.arange(count) + 0.5) * len(values) / max(1, count)
    return iter(np.random.default_rng(seed).permutation(np.sort(values)[positions.astype(int)]).tolist())
