"""Batches: which images and boxes, which of their views and captions, as token ids; a pure function of
(seed, step).

Because a batch depends on nothing but the seed and its number, an interrupted run resumes exactly by
counting. Every image of a batch is a different one, and each caption is used once before any is used again.

An *item* is what is embedded: a whole image, or a box of one. Stage 1 has whole images only; with
``region_share`` a part of every batch is boxes, several of one image on one feature map.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmgem.config import DataConfig
from mmgem.data.features import ClipSource, Source
from mmgem.data.mirror import mirror_text
from mmgem.data.mosaics import is_mosaic
from mmgem.data.pictures import media_size
from mmgem.data.records import Box, Record
from mmgem.data.sampling import group_similar, round_robin_sample
from mmgem.data.tokens import Tokenizer
from mmgem.data.transforms import Geometry, join_sentences, place_box, view_geometry
from mmgem.distributed.partition import check_enough, shard_slice
from mmgem.errors import DataError

T = TypeVar("T")

_SEEN = 0.6  # a box of which a view shows a smaller share is no longer what its captions say


@dataclass
class DrawnTexts:
    """Texts of no image that a term draws for a step: token ids, each 1-D int64 on the CPU. ``of``: whatever
    else the term has to know of all texts of the step, these being its ``rows`` of them."""

    texts: list[Tensor]
    of: Any = None
    rows: slice = field(default_factory=lambda: slice(None))


@dataclass
class Batch:
    """What a training step reads. Token lists stay on the CPU (they are packed there).

    ``features``: ``(B, h, w, c)`` float32 of the encoder's lower part, of the whole images; where nothing is
    cached they are yet to be computed from ``pixels`` ``(B, 3, S, S)``. ``frames``: how many of the B each
    whole image has, in turn, some being clips; None: one each. ``box_features`` and ``box_pixels``:
    the same of the R images that boxes are taken from, perhaps of another side. The V items are the whole
    images, then the boxes: ``boxes`` ``(R, K, 4)`` in pixels of the encoder's own input side, ``box_valid``
    ``(R, K)`` says which of them are items, in reading order; None: there are no boxes.
    ``texts``: N sequences to embed, ``text_owner``: ``(N,)`` their item. ``captions``: M sequences to
    predict, ``caption_owner``: ``(M,)``, ``caption_targets``: ``(sum of n + 1,)`` tokens and end of text of
    each in turn. ``photos`` ``(V,)`` and ``text_keys`` ``(N,)``: equal numbers show the same photo, say the
    same words. ``teacher_texts``: ``(N, E)`` unit rows or None. ``vocabulary``: ``(V',)`` tokens that occur
    in training captions. ``drawn``: texts that a term wants embedded beside, by the term's section.
    """

    features: Tensor
    texts: list[Tensor]
    text_owner: Tensor
    captions: list[Tensor]
    caption_owner: Tensor
    caption_targets: Tensor
    pixels: Tensor | None = None
    frames: list[int] | None = None
    box_features: Tensor | None = None
    box_pixels: Tensor | None = None
    boxes: Tensor | None = None
    box_valid: Tensor | None = None
    photos: Tensor | None = None
    text_keys: Tensor | None = None
    teacher_texts: Tensor | None = None
    vocabulary: Tensor | None = None
    drawn: dict[str, DrawnTexts] = field(default_factory=dict)

    @property
    def caption_tokens(self) -> int:
        """How many tokens are predicted."""
        return len(self.caption_targets)

    @property
    def whole_images(self) -> int:
        """How many of the items are whole images, or clips."""
        rows = self.features if self.pixels is None else self.pixels
        return len(rows) if self.frames is None else len(self.frames)

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on ``device``; token lists stay where they are."""
        moved: dict[str, Any] = {n: x.to(device) for n, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **moved)


@dataclass
class _Item:
    """An image (by its place in the batch) or a box of it; ``said``: numbers of its captions, in one text
    or several; ``translated``: numbers of texts that are embedded only; ``predicted``: the caption that is
    predicted where one of ``said`` only names the label."""

    photo: str
    said: list[list[int]]
    mirrored: bool
    box: Box | None = None
    translated: list[int] = field(default_factory=list)
    predicted: int | None = None


def name_of(what: str) -> int:
    """A number for ``what``, the same on every rank: 63 bits of a hash."""
    return int.from_bytes(hashlib.blake2b(what.encode(), digest_size=8).digest(), "big") >> 1


def ended(sequences: Sequence[Tensor], end: int) -> Tensor:
    """All token ids of ``sequences``, each followed by the token ``end``: ``(sum of n + 1,)`` int64."""
    mark = torch.tensor([end])
    return torch.cat([mark[:0], *(part for ids in sequences for part in (ids, mark))])


def distinct_texts(records: Iterable[Record], translations: bool = False) -> list[str]:
    """Every caption of images and regions once, in the order of ``records``; with ``translations`` those in
    other languages too."""
    return list(
        dict.fromkeys(
            caption
            for record in records
            for captions in (
                record.captions,
                *(region.captions for region in record.regions),
                *(record.translations.values() if translations else ()),
            )
            for caption in captions
        )
    )


class Batches:
    """Indexable: ``batches[step]`` is the :class:`Batch` of that step, the same on every run."""

    def __init__(
        self,
        records: list[Record],
        source: Source,
        tokenizer: Tokenizer,
        config: DataConfig,
        size: int,
        seed: int,
        teacher: np.ndarray | None = None,
        boxed: tuple[list[Record], Source] | None = None,
        rank: int = 0,
        world_size: int = 1,
        labels: Mapping[str, str] | None = None,
        extra: int = 0,
    ):
        """``boxed``: what boxes are taken from, and its features; None: ``records`` and ``source``.
        ``extra``: how many of the last ``records`` are ``data.extra_train``. ``labels``: which captions only
        name a label, and the sentence that is predicted in their place. ``teacher``: ``(texts, E)`` float32,
        rows in the order of :func:`distinct_texts` of ``records`` and, if given, those of ``boxed``. ``rank``
        of ``world_size`` processes; each has its own part of every batch."""
        self.records, self.source, self.config, self.seed = records, source, config, seed
        self.rank, self.world_size = rank, world_size
        self.labels = labels or {}
        self.boxed, self.box_source = boxed or (records, source)
        self.tokenizer, self.end, self.teacher = tokenizer, tokenizer.end, teacher
        self.usable = [i for i in source.valid if records[i].captions]
        self.regional: list[int] = []
        boxes = round(size * config.region_share)
        if boxes:
            usable = self.box_source.valid
            self.regional = [i for i in usable if any(r.captions for r in self.boxed[i].regions)]
            if not self.regional:
                raise DataError("data.region_share: no readable image has a region with a caption")
            self.sizes = {i: media_size(self.boxed[i].media) for i in self.regional}
        if boxes < size and not self.usable:
            raise DataError("no readable image has a caption")
        self.extra: list[int] = []
        self.size = min(size - boxes, len(self.usable))
        self.extra_size = 0
        if config.extra_share and extra:
            first = len(records) - extra
            self.usable, self.extra = (
                [i for i in self.usable if (i >= first) == more] for more in (False, True)
            )
            self.extra_size = min(round(self.size * config.extra_share), len(self.extra))
            self.size = min(self.size - self.extra_size, len(self.usable))
        self.boxes = boxes
        # Images a step takes boxes from; at the end of a batch there may be fewer boxes of the last one.
        self.box_images = min(-(-boxes // config.boxes_per_image), len(self.regional))
        self.mosaics = [i for i in self.regional if is_mosaic(self.boxed[i])]
        if config.mosaic_share and len(self.mosaics) < len(self.regional):
            self.photos = sorted(set(self.regional) - set(self.mosaics))
        else:
            self.photos = self.mosaics = []
        whole = self.size + self.extra_size
        for count, what in ((whole, "images"), (self.box_images, "images to take boxes from")):
            if count:
                check_enough(count, what, world_size)
        walked, each = (self.usable, self.size) if self.size else (self.regional, self.box_images)
        self.per_epoch = len(walked) // each
        self._read_texts(tokenizer, records if boxed is None else records + boxed[0])
        if config.joined_caption_prob:
            self._check_long_texts()
        if config.hard_negatives:
            self.last_order: tuple[int, np.ndarray] = (-1, np.empty(0))
            self.caption_means = self._mean_teacher_rows()

    @property
    def fingerprint(self) -> str:
        """Tells whether two runs learn from the same photos, captions and boxes; folders may have moved."""
        digest = hashlib.blake2b(digest_size=16)
        whole = self.usable + self.extra
        for records, used in ((self.records, whole), (self.boxed, self.regional)):
            for record in (records[i] for i in used):
                boxes = [(region.box, region.captions) for region in record.regions]
                digest.update(json.dumps([record.media.name, record.captions, boxes]).encode())
                if self.config.translation_prob and record.translations:
                    digest.update(json.dumps(record.translations).encode())
        return digest.hexdigest()

    def _read_texts(self, tokenizer: Tokenizer, records: list[Record]) -> None:
        texts = distinct_texts(records, bool(self.config.translation_prob))
        texts += sorted(set(self.labels.values()).difference(texts))  # after those that have a teacher's row
        self.number = {text: n for n, text in enumerate(texts)}
        self.texts, self.ids = texts, tokenizer.encode_all(texts)
        flips = max(self.source.views, self.box_source.views) > 1
        self.mirrored = self.ids
        if flips:
            turned = [text if text in self.labels else mirror_text(text) for text in texts]
            self.mirrored = tokenizer.encode_all(turned)
        captions = [self.number[self.labels.get(text, text)] for text in distinct_texts(records)]
        read = [np.asarray(ids[n]) for ids in (self.ids, self.mirrored) for n in captions]
        self.vocabulary = torch.from_numpy(np.union1d(np.unique(np.concatenate(read)), [self.end]))

    def _named_by_label(self, record: Record) -> bool:
        """Whether the captions of a record only name its label."""
        return bool(record.captions) and record.captions[0] in self.labels

    def _check_long_texts(self) -> None:
        """Raise ``DataError`` if the captions of an image, all in one text, may be too long: said now, not at
        the step that draws them."""
        limit = self.tokenizer.prep.max_text_tokens
        for record in (self.records[i] for i in self.usable):
            if self._named_by_label(record):
                continue
            # Joined, each is followed by a full stop, and a word that was the first may take a token more.
            most = sum(len(self.ids[self.number[c]]) + 2 for c in record.captions)
            if len(record.captions) > 1 and most > limit:
                raise DataError(
                    f"data.joined_caption_prob: the captions of {record.media} are up to {most} tokens "
                    f"in one text, over preprocessing.max_text_tokens = {limit}"
                )

    def __getitem__(self, step: int) -> Batch:
        images, views, items = (self._own(rows) for rows in self._whole(step))
        box_images, box_views, boxed = (self._own(rows) for rows in self._regions(step))
        batch = self._assemble(items, boxed)
        if images:
            read = self.source.read(images, views)
            batch.features, batch.pixels = (read, None) if self.source.cached else (read[:0], read)
            batch.frames = self.source.frames(images) if isinstance(self.source, ClipSource) else None
        if box_images:
            read = self.box_source.read(box_images, box_views)
            batch.box_features, batch.box_pixels = (read, None) if self.box_source.cached else (None, read)
        return batch

    def _own(self, rows: list[T]) -> list[T]:
        return rows[shard_slice(len(rows), self.rank, self.world_size)]

    def _whole(self, step: int) -> tuple[list[int], list[int], list[_Item]]:
        if not self.size:
            return [], [], []
        epoch, place = divmod(step, self.per_epoch)
        order = self._order(epoch)
        images = [self.usable[i] for i in order[place * self.size : (place + 1) * self.size]]
        turns = [epoch] * len(images)
        if self.extra_size:
            turn, at = divmod(step, len(self.extra) // self.extra_size)
            order = np.random.default_rng((self.seed, turn, 19)).permutation(len(self.extra))
            images += [self.extra[i] for i in order[at * self.extra_size : (at + 1) * self.extra_size]]
            turns += [turn] * self.extra_size
        rng = np.random.default_rng((self.seed, epoch, place))
        views = rng.integers(self.source.views_of(images)).tolist()
        long = (
            rng.random(len(images)) < self.config.joined_caption_prob
            if self.config.joined_caption_prob
            else None
        )
        items = []
        for b, (i, view) in enumerate(zip(images, views, strict=True)):
            record = self.records[i]
            joins = long is not None and long[b] and len(record.captions) > 1
            if joins and not self._named_by_label(record):
                count = int(rng.integers(2, len(record.captions) + 1))
                said = [rng.permutation(len(record.captions))[:count].tolist()]
            else:
                said = [[c] for c in self._captions((i,), turns[b], len(record.captions))]
            numbers = [[self.number[record.captions[c]] for c in text] for text in said]
            flip = self._geometry(record, view).flip
            translated = self._translated(record, epoch, place, b)
            predicted = self._predicted(record, epoch, place, b)
            items.append(_Item(str(record.media), numbers, flip, None, translated, predicted))
        return images, views, items

    def _order(self, epoch: int) -> np.ndarray:
        """The order in which an epoch walks through the usable images that are not extra."""
        rng = np.random.default_rng((self.seed, epoch))
        if not self.config.hard_negatives:
            return rng.permutation(len(self.usable))
        if self.last_order[0] != epoch:
            self.last_order = epoch, group_similar(rng, self.caption_means, self.config.hard_negatives)
        return self.last_order[1]

    def _mean_teacher_rows(self) -> np.ndarray:
        """Of every usable image the mean of the teacher's rows of its captions: ``(images, E)`` unit rows."""
        assert self.teacher is not None, "task.check refuses it"
        numbers = ([self.number[text] for text in self.records[i].captions] for i in self.usable)
        means = np.stack([self.teacher[n].mean(0) for n in numbers])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def _predicted(self, record: Record, epoch: int, place: int, b: int) -> int | None:
        """One of the captions that a record with a label has beside the sentences that name it, if any."""
        if not self._named_by_label(record):
            return None
        own = [caption for caption in record.captions if caption not in self.labels]
        if not own:
            return None
        return self.number[own[np.random.default_rng((self.seed, epoch, place, b, 6)).integers(len(own))]]

    def _translated(self, record: Record, epoch: int, place: int, b: int) -> list[int]:
        """One caption of an image in another language, or none."""
        if not self.config.translation_prob or not record.translations:
            return []
        rng = np.random.default_rng((self.seed, epoch, place, b, 5))
        if rng.random() >= self.config.translation_prob:
            return []
        language = sorted(record.translations)[rng.integers(len(record.translations))]
        texts = record.translations[language]
        return [self.number[texts[rng.integers(len(texts))]]]

    def _boxed_image(self, at: int) -> tuple[int, int, int]:
        """The image that the ``at``-th place of the run takes boxes from, and its turn and place in it."""
        pool, salt = self.regional, 3
        if self.photos:
            share = self.config.mosaic_share
            mosaics = math.floor((at + 1) * share) - math.floor(at * share)
            before = math.floor(at * share)
            pool, at, salt = (self.mosaics, before, 3) if mosaics else (self.photos, at - before, 6)
        turn, place = divmod(at, len(pool))
        return pool[np.random.default_rng((self.seed, turn, salt)).permutation(len(pool))[place]], turn, place

    def _regions(self, step: int) -> tuple[list[int], list[int], list[list[_Item]]]:
        """Images, their views, and the items on each: boxes that the view shows well enough."""
        images: list[int] = []
        views: list[int] = []
        items: list[list[_Item]] = []
        wanted = self.boxes
        for at in range(step * self.box_images, (step + 1) * self.box_images):
            i, turn, place = self._boxed_image(at)
            rng = np.random.default_rng((self.seed, turn, place, 3))
            view = int(rng.integers(self.box_source.views_of([i])[0]))
            found = self._boxes(i, view, turn, rng)
            if not found:
                view, found = 0, self._boxes(i, 0, turn, rng)
            images.append(i)
            views.append(view)
            items.append(found[:wanted])
            wanted -= len(items[-1])
        return images, views, items

    def _boxes(self, i: int, view: int, turn: int, rng: np.random.Generator) -> list[_Item]:
        record = self.boxed[i]
        geometry = self._geometry(record, view)
        regions = [r for r in range(len(record.regions)) if record.regions[r].captions]
        items: list[_Item] = []
        for r in rng.permutation(regions).tolist():
            region = record.regions[r]
            box, seen = place_box(region.box, self.sizes[i], self.tokenizer.prep, geometry)
            if seen >= _SEEN and len(items) < self.config.boxes_per_image:
                (c,) = self._captions((i, r), turn, len(region.captions), 1)
                photo = region.meta.get("photo", f"{record.media} {region.box}")
                items.append(_Item(str(photo), [[self.number[region.captions[c]]]], geometry.flip, box))
        return items

    def _assemble(self, whole: list[_Item], boxed: list[list[_Item]]) -> Batch:
        """The batch but for its features."""
        items = whole + [item for row in boxed for item in row]
        texts: list[Tensor] = []
        owners: list[int] = []
        keys: list[int] = []
        rows: list[np.ndarray] = []
        captions: list[Tensor] = []
        caption_owners: list[int] = []
        for v, item in enumerate(items):
            for n, said in enumerate([*item.said, *([number] for number in item.translated)]):
                ids = self._tokens(said, item.mirrored)
                caption = self._caption(said, ids, item) if n < len(item.said) else None
                if caption is not None:
                    captions.append(caption)
                    caption_owners.append(v)
                texts.append(ids)
                owners.append(v)
                keys.append(self._key(said))
                if self.teacher is not None:
                    mean = self.teacher[said].mean(0)
                    rows.append(mean if len(said) == 1 else mean / np.linalg.norm(mean))
        boxes, valid = self._pad(boxed)
        vocabulary = self.vocabulary
        if self.config.joined_caption_prob:  # where sentences meet, tokens of their own may arise
            vocabulary = torch.cat([vocabulary, *texts]).unique()
        return Batch(
            features=torch.empty(0),
            boxes=boxes,
            box_valid=valid,
            texts=texts,
            text_owner=torch.tensor(owners),
            captions=captions,
            caption_owner=torch.tensor(caption_owners, dtype=torch.int64),
            caption_targets=ended(captions, self.end),
            photos=torch.tensor([name_of(item.photo) for item in items]),
            text_keys=torch.tensor(keys),
            teacher_texts=None if self.teacher is None else torch.from_numpy(np.stack(rows)),
            vocabulary=vocabulary,
        )

    def _key(self, said: list[int]) -> int:
        """The same number for the same words, and for sentences that name the same label."""
        if len(said) == 1 and (caption := self.labels.get(self.texts[said[0]])):
            return name_of(f"label {caption}")
        return name_of(" ".join(map(str, said)))

    def _caption(self, said: list[int], ids: Tensor, item: _Item) -> Tensor | None:
        """The tokens that are predicted where ``said``, with the tokens ``ids``, is embedded; None where
        nothing is."""
        if len(said) == 1 and (caption := self.labels.get(self.texts[said[0]])):
            if item.predicted is not None:
                return self._tokens([item.predicted], item.mirrored)
            return self.ids[self.number[caption]] if self.config.caption_labels else None
        return ids

    def _tokens(self, said: list[int], mirrored: bool) -> Tensor:
        if len(said) == 1:
            return (self.mirrored if mirrored else self.ids)[said[0]]
        joined = join_sentences([self.texts[n] for n in said])
        (ids,) = self.tokenizer.encode_all([mirror_text(joined) if mirrored else joined])
        return ids

    @staticmethod
    def _pad(boxed: list[list[_Item]]) -> tuple[Tensor | None, Tensor | None]:
        if not boxed:
            return None, None
        most = max(1, *map(len, boxed))
        boxes, valid = torch.zeros(len(boxed), most, 4), torch.zeros(len(boxed), most, dtype=torch.bool)
        for row, items in enumerate(boxed):
            for k, item in enumerate(items):
                assert item.box is not None
                boxes[row, k], valid[row, k] = torch.tensor(item.box), True
        return boxes, valid

    def _geometry(self, record: Record, view: int) -> Geometry:
        return view_geometry(view, record.media.path.name, self.config.crop_scale)

    def _captions(self, key: tuple[int, ...], turn: int, count: int, want: int | None = None) -> list[int]:
        """Captions of an image or region in its ``turn``: walks through shuffled rounds of all of them."""
        want = min(want or self.config.captions_per_image, count)
        return round_robin_sample((self.seed, *key), turn, count, want)
