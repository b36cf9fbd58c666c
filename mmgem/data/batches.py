"""Batches: which images, which of their views and captions, as token ids; a pure function of (seed, step).

Because a batch depends on nothing but the seed and its number, an interrupted run resumes exactly by
counting. Every image of a batch is a different one, and each caption of an image is used once before any is
used again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmgem.config import DataConfig
from mmgem.data.features import FeatureCache, PixelSource
from mmgem.data.records import Record
from mmgem.data.tokens import Tokenizer
from mmgem.data.transforms import mirror_text, view_geometry
from mmgem.errors import DataError


@dataclass
class Batch:
    """What a training step reads. Token lists stay on the CPU (they are packed there).

    ``features``: ``(B, h, w, c)`` float32 of the tower's lower part; where nothing is cached they are yet to
    be computed from ``pixels`` ``(B, 3, S, S)``. ``texts``: N sequences to embed,
    ``text_owner``: ``(N,)`` their image. ``captions``: M sequences to predict, ``caption_owner``: ``(M,)``,
    ``caption_targets``: ``(sum of n + 1,)`` tokens and end of text of each in turn. ``teacher_texts``:
    ``(N, E)`` unit rows or None. ``vocabulary``: ``(V',)`` tokens that occur in training captions.
    """

    features: Tensor
    texts: list[Tensor]
    text_owner: Tensor
    captions: list[Tensor]
    caption_owner: Tensor
    caption_targets: Tensor
    pixels: Tensor | None = None
    teacher_texts: Tensor | None = None
    vocabulary: Tensor | None = None


class Batches:
    """Indexable: ``batches[step]`` is the :class:`Batch` of that step, the same on every run."""

    def __init__(
        self,
        records: list[Record],
        source: FeatureCache | PixelSource,
        tokenizer: Tokenizer,
        config: DataConfig,
        size: int,
        seed: int,
        teacher: np.ndarray | None = None,
    ):
        """``teacher``: ``(total captions, E)`` float32 in the order of ``records``."""
        self.usable = [i for i in source.valid if records[i].captions]
        if not self.usable:
            raise DataError("no readable image has a caption")
        self.size = min(size, len(self.usable))
        self.per_epoch = len(self.usable) // self.size
        self.records, self.source, self.config, self.seed = records, source, config, seed
        self.end = tokenizer.end
        self.ids = [tokenizer.encode_all(r.captions) for r in records]
        self.mirrored = [
            tokenizer.encode_all([mirror_text(c) for c in r.captions]) if source.views > 1 else ids
            for r, ids in zip(records, self.ids, strict=True)
        ]
        used = np.unique(np.concatenate([np.asarray(t) for ids in (*self.ids, *self.mirrored) for t in ids]))
        self.vocabulary = torch.from_numpy(np.union1d(used, [self.end]))
        self.teacher = teacher
        self.first_caption = np.cumsum([0] + [len(r.captions) for r in records])

    def __getitem__(self, step: int) -> Batch:
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.usable))
        images = [self.usable[i] for i in order[place * self.size : (place + 1) * self.size]]
        rng = np.random.default_rng((self.seed, epoch, place))
        views = rng.integers(self.source.views, size=len(images)).tolist()
        tokens: list[Tensor] = []
        owners: list[int] = []
        rows: list[int] = []
        for b, (i, view) in enumerate(zip(images, views, strict=True)):
            flip = view_geometry(view, self.records[i].image.name, self.config.crop_scale).flip
            ids = (self.mirrored if flip else self.ids)[i]
            for c in self._captions(i, epoch, len(ids)):
                tokens.append(ids[c])
                owners.append(b)
                rows.append(int(self.first_caption[i]) + c)
        end = torch.tensor([self.end])
        owner = torch.tensor(owners)
        read = self.source.read(images, views)
        cached = isinstance(self.source, FeatureCache)
        return Batch(
            features=read if cached else read[:0],
            pixels=None if cached else read,
            texts=tokens,
            text_owner=owner,
            captions=tokens,
            caption_owner=owner,
            caption_targets=torch.cat([t for ids in tokens for t in (ids, end)]),
            teacher_texts=None if self.teacher is None else torch.from_numpy(self.teacher[rows]),
            vocabulary=self.vocabulary,
        )

    def _captions(self, image: int, epoch: int, count: int) -> list[int]:
        """Captions of ``image`` in ``epoch``: walks through shuffled rounds of all of them."""
        want = min(self.config.captions_per_image, count)
        picked: list[int] = []
        for at in range(epoch * want, (epoch + 1) * want):
            turn, place = divmod(at, count)
            order = np.random.default_rng((self.seed, image, turn)).permutation(count)
            picked.append(int(order[place]))
        return picked
