"""How many images a run has and how long their texts are: read from the data if it is there, else assumed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mmgem.config import DataConfig
from mmgem.data.clips import MAX_FRAMES, frame_count
from mmgem.data.readers.translations import add_captions
from mmgem.data.records import Media, Record
from mmgem.data.shards import find_shards, is_shards
from mmgem.data.shards.find import named_by, open_shard
from mmgem.data.text_corpus import read_texts
from mmgem.data.tokens import Tokenizer
from mmgem.data.word_tokens import TOKENS_PER_WORD, WordTokens
from mmgem.tasks.image_text.data import read_train
from mmgem.tasks.image_text.label_captions import with_label_captions

ASSUMED_TOKENS = 16
ASSUMED_WORDS = 8192
"""Of the vocabulary that occur in the captions."""
_SAMPLE = 20_000


@dataclass
class CaptionStats:
    """What is said of the images of a run, as far as it is known; of many, of a sample.

    ``images``: that are trained on, None if unknown; ``boxed``: of which boxes are taken; ``tokens``: lengths
    of captions; ``each``: captions of an image; ``regions``: described boxes of an image that has some;
    ``region_tokens``: lengths of their captions; ``translation_tokens``: of captions in other languages, of
    which a share ``translated`` of the images has some; ``frames``: pictures of each image, some being
    clips; ``words``: different tokens in use; ``assumed``: what was not to be read, in words.
    """

    images: int | None = None
    boxed: int | None = None
    tokens: list[int] = field(default_factory=lambda: [ASSUMED_TOKENS])
    each: int = 5
    regions: list[int] = field(default_factory=list)
    region_tokens: list[int] = field(default_factory=list)
    translation_tokens: list[int] = field(default_factory=list)
    translated: float = 0.0
    frames: list[int] = field(default_factory=lambda: [1])
    words: int = ASSUMED_WORDS
    assumed: str = ""


@dataclass
class TextStats:
    """What is said of texts without images: ``count`` of them, None if unknown; ``tokens``: lengths, of many
    of a sample; ``words``: different tokens in use; ``assumed``: what was not to be read, in words."""

    count: int | None = None
    tokens: list[int] = field(default_factory=lambda: [ASSUMED_TOKENS])
    words: int = ASSUMED_WORDS
    assumed: str = ""


def read_text_stats(data: DataConfig, tokenizer: Tokenizer | None, tokens: int | None = None) -> TextStats:
    """The texts of ``data.texts``. ``tokens``: the length of all of them, said by the user.

    Raises ``DataError`` or ``UsageError`` for files that cannot be read.
    """
    stats = TextStats()
    if missing := [path for path in data.texts if not path.exists()]:
        stats.assumed = f"{missing[0]} is not here: texts of {tokens or ASSUMED_TOKENS} tokens"
    else:
        texts = list(read_texts(data.texts, data.split or None))
        stats.count = len(texts)
        token_ids = (tokenizer or WordTokens()).encode_all(_evenly_spaced(texts))
        stats.tokens = list(map(len, token_ids))
        if tokenizer is None:
            stats.assumed = f"the tokenizer is not here: {TOKENS_PER_WORD} tokens a word"
        else:
            stats.words = len(torch.cat(token_ids).unique()) + 1
    if tokens:
        stats.tokens = [tokens]
    return stats


def read_caption_stats(
    data: DataConfig, tokenizer: Tokenizer | None, tokens: int | None = None
) -> CaptionStats:
    """The captions ``data`` will train on. ``tokens``: the length of all of them, said by the user.

    Raises ``DataError`` for data that cannot be read and texts that are too long to train on.
    """
    assert data.train is not None
    stats = CaptionStats()
    if not named_by(data.train):
        stats.assumed = f"{data.train} is not here: texts of {tokens or ASSUMED_TOKENS} tokens"
    else:
        token_counter = tokenizer or WordTokens()
        records = _read_first_shard(stats, data) if is_shards(data.train) else _read_loose(stats, data)
        texts = [caption for record in records for caption in record.captions]
        token_ids = token_counter.encode_all(_evenly_spaced(texts))
        stats.tokens = list(map(len, token_ids)) or stats.tokens
        stats.each = round(len(texts) / max(1, sum(bool(r.captions) for r in records)))
        captioned_regions = [[g for g in record.regions if g.captions] for record in records]
        stats.regions = [len(regions) for regions in captioned_regions if regions]
        region_captions = [
            caption for regions in captioned_regions for region in regions for caption in region.captions
        ]
        region_token_ids = token_counter.encode_all(_evenly_spaced(region_captions))
        stats.region_tokens = list(map(len, region_token_ids))
        translated = [record.translations for record in records if record.captions]
        texts = [text for told in translated for some in told.values() for text in some]
        stats.translation_tokens = list(map(len, token_counter.encode_all(_evenly_spaced(texts))))
        stats.translated = sum(map(bool, translated)) / max(1, len(translated))
        if tokenizer is None:
            stats.assumed = f"the tokenizer is not here: {TOKENS_PER_WORD} tokens a word"
        else:
            stats.words = len(torch.cat([*token_ids, *region_token_ids]).unique()) + 1
    if tokens:
        stats.tokens, stats.region_tokens, stats.translation_tokens = [tokens], [tokens], [tokens]
    _add_mosaics(stats, data)
    return stats


def _read_loose(stats: CaptionStats, data: DataConfig) -> list[Record]:
    assert data.train is not None
    records = read_train(data)
    if data.labels:
        records, _ = with_label_captions(records)
    stats.images = sum(bool(r.captions) for r in records)
    stats.boxed = sum(any(g.captions for g in r.regions) for r in records)
    stats.frames = [_frames(record.media) for record in records if record.captions] or stats.frames
    for path in data.translations if data.translation_prob else ():
        if path.exists():
            records = add_captions(records, path)
    return records


def _frames(media: Media) -> int:
    """How many pictures are looked at of an image or a clip, which is not opened."""
    if media.kind != "video":
        return 1
    return MAX_FRAMES if media.moment is None else frame_count(media.moment[1] - media.moment[0])


def _read_first_shard(stats: CaptionStats, data: DataConfig) -> list[Record]:
    """Records of the first shard, taken for those of all."""
    assert data.train is not None
    paths = find_shards(data.train, data.split or None)
    first = open_shard(paths[0])
    numbers = np.flatnonzero(first.captioned).tolist()
    stats.images, stats.boxed = len(numbers) * len(paths), 0
    if len(paths) > 1:
        stats.assumed = f"{len(paths)} shards like {Path(paths[0]).name}"
    return [first.read(i).record for i in _evenly_spaced(numbers, 200)]


def _add_mosaics(stats: CaptionStats, data: DataConfig) -> None:
    """Canvases of two to four photos, as often each, with the photos' captions."""
    if data.region_share and data.mosaics:
        boxed = stats.boxed or 0
        canvases = [2, 3, 4] * max(1, round(len(stats.regions) * data.mosaics / max(1, boxed) / 3))
        stats.boxed, stats.regions = boxed + data.mosaics, stats.regions + canvases
        stats.region_tokens = stats.region_tokens + stats.tokens


def _evenly_spaced(items: list, max_items: int = _SAMPLE) -> list:
    """At most ``max_items`` of ``items``, evenly spaced."""
    return [items[i * len(items) // max_items] for i in range(max_items)] if len(items) > max_items else items
