"""Training batches from shards: what :class:`mmgem.data.batches.Batches` is for loose files.

Step n is a slice of the stream's order, and a rank has its part of it, so neither the number of ranks nor
that of workers changes what is seen, and a run resumes by counting. Photos are decoded and captions tokenised
at the step. A sample that cannot be used gives its place to the next one of the step, so that nothing else
moves; the pair is then there twice, and ``photos`` and ``text_keys`` say so. Whole images only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmgem.config import DataConfig
from mmgem.data.batches import Batch, name_of
from mmgem.data.images import open_image
from mmgem.data.mirror import mirror_text
from mmgem.data.sampling import round_robin_sample
from mmgem.data.shards.shard import Sample
from mmgem.data.shards.stream import ShardPosition, ShardStream
from mmgem.data.tokens import Tokenizer
from mmgem.data.transforms import join_sentences, normalise, to_square, view_geometry
from mmgem.distributed.partition import check_enough, shard_slice
from mmgem.errors import ConfigError, DataError, ImageError

Broken = tuple[ShardPosition, str]


@dataclass
class StreamBatch(Batch):
    """``broken``: samples of the step that could not be used (or not all of their captions), and why."""

    broken: list[Broken] = field(default_factory=list)


@dataclass
class _Item:
    """A decoded photo ``(S, S, 3)`` uint8, its texts as tokens, and the names of both."""

    pixels: np.ndarray
    texts: list[Tensor]
    photo: int
    keys: list[int]


class StreamBatches:
    """Indexable: ``batches[step]`` is this rank's part of that step's :class:`StreamBatch`.

    ``per_epoch``: steps, not whole where the last batch of an epoch is carried over. Equal numbers in
    ``photos`` and ``text_keys`` mean the same on every rank."""

    def __init__(
        self,
        stream: ShardStream,
        tokenizer: Tokenizer,
        config: DataConfig,
        size: int,
        rank: int = 0,
        world_size: int = 1,
        tail: Literal["carry", "drop"] = "carry",
    ):
        """``size``: images in a step over all ranks; ``rank`` of ``world_size`` processes. ``tail``: samples
        that fill no batch at the end of an epoch begin the first batch of the next, where one may then be
        twice; or they are dropped, others in every epoch.

        Raises ``ConfigError`` for fields that shards have no use for, or too few samples for every rank.
        """
        if config.cached:
            raise ConfigError("data.cached: features of shards are not cached; set data.cached = false")
        for name in ("region_share", "mosaics"):
            if getattr(config, name):
                raise ConfigError(f"data.{name}: shards give no boxes; use a dataset of loose files")
        self.stream, self.tokenizer, self.config, self.tail = stream, tokenizer, config, tail
        self.rank, self.world_size = rank, world_size
        self.fingerprint = stream.fingerprint
        self.size = min(size, stream.samples)
        check_enough(self.size, "images", world_size)
        whole = stream.samples // self.size
        self.per_epoch: float = whole if tail == "drop" else stream.samples / self.size
        self._broken: dict[int, dict[ShardPosition, str]] = {}

    def places(self, step: int) -> list[ShardPosition]:
        """The samples of all ranks in ``step``."""
        start = self._start(step)
        return self.stream.places(start, start + self.size)

    def _start(self, step: int) -> int:
        if self.tail == "carry":
            return step * self.size
        epoch, place = divmod(step, self.stream.samples // self.size)
        return epoch * self.stream.samples + place * self.size

    def __getitem__(self, step: int) -> StreamBatch:
        start, places = self._start(step), self.places(step)
        broken: list[Broken] = []
        decoded: dict[int, _Item | None] = {}

        def item(at: int) -> _Item | None:
            if at not in decoded:
                decoded[at] = self._item(places[at], start + at, broken)
            return decoded[at]

        items: list[_Item] = []
        for position_in_step in range(self.size)[shard_slice(self.size, self.rank, self.world_size)]:
            candidates = (item((position_in_step + next_) % self.size) for next_ in range(self.size))
            usable = next((candidate for candidate in candidates if candidate is not None), None)
            if usable is None:
                raise DataError(f"step {step}: none of its samples can be used; the first: {broken[0][1]}")
            items.append(usable)
        self.count(broken)
        return self._assemble(items, broken)

    @property
    def problems(self) -> list[str]:
        """What was broken: the shards' own problems, then a line for each shard with samples that could not
        be used since."""
        lines = list(self.stream.problems)
        for shard, reasons in sorted(self._broken.items()):
            first = next(iter(reasons.values())).removeprefix(f"{self.stream.paths[shard].absolute()}: ")
            lines.append(f"{self.stream.paths[shard]}: {len(reasons)} unusable; the first: {first}")
        return lines

    def count(self, broken: Sequence[Broken]) -> None:
        """Take note of what a batch made elsewhere found broken; each sample counts once."""
        for place, why in broken:
            self._broken.setdefault(place.shard, {}).setdefault(place, why)

    def _item(self, place: ShardPosition, position: int, broken: list[Broken]) -> _Item | None:
        """The sample at a position of the order in one of its views, or None if it cannot be used."""
        try:
            sample = self.stream.read(place)
            where = f"{self.stream.paths[place.shard].absolute()}: {sample.key}"
            rng = np.random.default_rng((self.stream.order.seed, position, 5))
            view = int(rng.integers(self.config.cached_augmentations))
            geometry = view_geometry(view, sample.record.image.name, self.config.crop_scale)
            texts, keys, refused = self._texts(sample, place, position, rng, geometry.flip)
            if refused:
                broken.append((place, f"{where}: {refused}"))
            if not texts:
                return None
            prep = self.tokenizer.prep
            try:
                image = open_image(sample.photo, min_side=2 * prep.size)
            except ImageError as error:
                raise ImageError(f"{where}: {str(error).removeprefix('image bytes: ')}") from error
            photo = name_of(f"{place.shard}/{place.sample}")
            return _Item(to_square(image, prep, geometry), texts, photo, keys)
        except DataError as error:
            broken.append((place, str(error)))
            return None

    def _texts(
        self, sample: Sample, place: ShardPosition, position: int, rng: np.random.Generator, mirrored: bool
    ) -> tuple[list[Tensor], list[int], str]:
        """Tokens and names of the texts of a sample, and why some of its captions could not be among them."""
        captions = sample.record.captions
        refused = ""
        long = self.config.joined_caption_prob and rng.random() < self.config.joined_caption_prob
        if long and len(captions) > 1:
            count = int(rng.integers(2, len(captions) + 1))
            joined = join_sentences([captions[c] for c in rng.permutation(len(captions))[:count]])
            try:
                return [self._tokens(joined, mirrored)], [name_of(joined)], ""
            except DataError as error:
                refused = str(error)
        want = min(self.config.captions_per_image, len(captions))
        texts: list[Tensor] = []
        keys: list[int] = []
        for c in self._turn(place, position // self.stream.samples, len(captions), want):
            try:
                texts.append(self._tokens(captions[c], mirrored))
                keys.append(name_of(captions[c]))
            except DataError as error:
                refused = str(error)
            if len(texts) == want:
                break
        return texts, keys, refused

    def _tokens(self, text: str, mirrored: bool) -> Tensor:
        (ids,) = self.tokenizer.encode_all([mirror_text(text) if mirrored else text])
        return ids

    def _turn(self, position: ShardPosition, epoch: int, count: int, want: int) -> list[int]:
        """All captions of a sample, those first whose turn it is: ``want`` an epoch, in shuffled rounds."""
        picked = round_robin_sample((self.stream.order.seed, *position), epoch, count, want)
        return picked + [c for c in range(count) if c not in picked]

    def _assemble(self, items: list[_Item], broken: list[Broken]) -> StreamBatch:
        pixels = normalise(np.stack([item.pixels for item in items]), self.tokenizer.prep)
        texts = [ids for item in items for ids in item.texts]
        owner = torch.tensor([v for v, item in enumerate(items) for _ in item.texts])
        end = torch.tensor([self.tokenizer.end])
        return StreamBatch(
            features=pixels[:0],
            pixels=pixels,
            texts=texts,
            text_owner=owner,
            captions=texts,
            caption_owner=owner,
            caption_targets=torch.cat([t for ids in texts for t in (ids, end)]),
            photos=torch.tensor([item.photo for item in items]),
            text_keys=torch.tensor([key for item in items for key in item.keys]),
            broken=broken,
        )
