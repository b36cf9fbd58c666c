"""What a run reads: records, their features or pixels, and the batches made of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Container, Sequence
from pathlib import Path

import torch

from mmgem.config import DataConfig, EncoderConfig, Preprocessing, Recipe
from mmgem.data.batches import Batches, distinct_texts
from mmgem.data.content_hashes import ContentHashes
from mmgem.data.features import ClipSource, FeatureCache, Joined, PixelSource, RecordSource, Source
from mmgem.data.held_out import hold_out
from mmgem.data.mosaics import FILE as MOSAICS
from mmgem.data.mosaics import make_mosaics
from mmgem.data.pictures import Picture, pictures_of
from mmgem.data.readers import load_dataset
from mmgem.data.readers.translations import add_captions
from mmgem.data.records import Record, read_jsonl
from mmgem.data.shards import find_shards, is_shards
from mmgem.data.shards.ahead import Ahead
from mmgem.data.shards.batches import StreamBatches
from mmgem.data.shards.stream import ShardStream
from mmgem.data.tokens import Tokenizer
from mmgem.distributed.world import SINGLE_PROCESS, World
from mmgem.encoders import encoder_class
from mmgem.encoders.feature_cache import HASHES, cache_features
from mmgem.errors import ConfigError, DataError, ImageError, UsageError
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.image_text.label_captions import with_label_captions
from mmgem.tasks.image_text.teacher import embed_captions
from mmgem.utils.files import cache_home
from mmgem.utils.progress import track

logger = logging.getLogger(__name__)

Dev = tuple[list[Record], RecordSource, list[str]]
"""Records, their features, and the class names that those with a label are told by."""


def check_files(data: DataConfig) -> None:
    """Raise ``ConfigError`` for a file that is to be learned from, or measured on, and is not there."""
    lists = ("extra_train", "translations", "texts")
    more = [(f"data.{name}", path) for name in lists for path in getattr(data, name)]
    for field, path in (("data.train", data.train), ("data.dev", data.dev), *more):
        shards = field == "data.train" and path is not None and is_shards(path)
        if path is not None and not shards and not path.exists():
            raise ConfigError(f"{field}: {path}: No such file")


def check_encoder(recipe: Recipe, encoder: EncoderConfig) -> None:
    """Raise ``ConfigError`` if an encoder is to train of which ``recipe`` caches the last map."""
    kind = encoder_class(encoder)
    if recipe.optim.lr_encoder > 0 and recipe.data.cached and not kind.trains_when_cached(encoder):
        raise ConfigError(
            "optim.lr_encoder: a cached encoder trains only above model.encoder.freeze_until (EfficientNet); "
            "set that, or data.cached = false"
        )


def read_batches(
    recipe: Recipe,
    teacher: tuple[str, str] | None,
    network: MMGEMNetwork,
    tokenizer: Tokenizer,
    world: World = SINGLE_PROCESS,
) -> tuple[Batches | Ahead, Dev | None]:
    """Training batches of images and boxes, and the dev images with their features. ``teacher``: a sentence
    encoder whose embeddings of the captions come along, and the field that names it."""
    train = recipe.data.train
    assert train is not None
    if is_shards(train):
        return _stream_batches(recipe, train, teacher, network, tokenizer, world)
    records, labels, extra = _load_train(recipe.data, train, world)
    check_encoder(recipe, network.config.encoder)
    source = world.main_process_first(
        lambda: image_source(recipe, network, tokenizer.prep, records, recipe.data.cached_augmentations)
    )
    box_records, box_source = world.main_process_first(
        lambda: _read_regions(recipe, network, tokenizer.prep, records, source, labels)
    )
    dev = _read_dev(recipe, network, tokenizer, world, records[: len(records) - extra])
    texts = distinct_texts(records + box_records, bool(recipe.data.translation_prob))
    teacher_texts = world.main_process_first(lambda: embed_captions(*teacher, texts) if teacher else None)
    size, seed = recipe.train.batch_size, recipe.train.seed
    regions = (box_records, box_source)
    batches = Batches(
        records,
        source,
        tokenizer,
        recipe.data,
        size,
        seed,
        teacher_texts,
        regions,
        world.rank,
        world.size,
        labels,
        extra,
    )
    return batches, dev


def _load_train(data: DataConfig, train: Path, world: World) -> tuple[list[Record], dict[str, str], int]:
    """The records of all sets that are learned, labels and translations as captions; which captions name
    which label; and how many records are of ``data.extra_train``."""
    with_regions = data.region_share > 0
    labels: dict[str, str] = {}
    records: list[Record] = []
    first = 0
    for path in (train, *data.extra_train):
        loaded = read_train(data) if path == train else _load(path, data.split, "data.split")
        if data.labels:
            loaded, named = with_label_captions(loaded)
            labels |= named
        records += _described(
            loaded, path, data.split, world, lambda r: bool(r.captions or (with_regions and r.regions))
        )
        first = first or len(records)
    for path in data.translations:
        records = add_captions(records, path)
    if data.translation_prob and not any(record.translations for record in records):
        raise ConfigError("data.translation_prob: no image of the data has a caption in another language")
    return records, labels, len(records) - first


def read_train(data: DataConfig) -> list[Record]:
    """The records of ``data.train`` that are learned: without ``data.dev_share`` of them, where that is
    measured on."""
    assert data.train is not None
    return _parted(data)[0] if data.dev_share else _load(data.train, data.split, "data.split")


def _parted(data: DataConfig) -> tuple[list[Record], list[Record]]:
    """The records of ``data.train`` that are learned, and those that are held out: its ``dev_split`` if it
    has one, else ``dev_share`` of the others; none where ``data.dev`` is measured on."""
    assert data.train is not None
    records = _load(data.train, None, "data.train")
    dev = [record for record in records if data.dev_split and record.split == data.dev_split]
    others = [record for record in records if not data.dev_split or record.split != data.dev_split]
    learned = [record for record in others if record.split == data.split] or others
    if dev or data.dev is not None or not data.dev_split:
        return learned, dev
    hashes = ContentHashes((data.cache or cache_home() / "features") / HASHES)
    identities = hashes.identities([record.media.path for record in learned])
    return hold_out(learned, [str(content or name) for name, _, content in identities], data.dev_share)


def _stream_batches(
    recipe: Recipe,
    train: Path,
    teacher: tuple[str, str] | None,
    network: MMGEMNetwork,
    tokenizer: Tokenizer,
    world: World,
) -> tuple[Ahead, Dev | None]:
    """Batches read from shards as they are needed, and the dev images, which are loose files."""
    data = recipe.data
    if teacher is not None:
        raise ConfigError(f"{teacher[1]}: a teacher needs loose files, not shards")
    if data.dev is None and data.dev_split:
        raise ConfigError('data.dev: needed where data.train is shards (loose files), or data.dev_split = ""')
    try:
        paths = find_shards(train, data.split or None)
    except UsageError as error:
        raise ConfigError(f"data.train: {error}") from error
    stream = world.main_process_first(lambda: ShardStream(paths, recipe.train.seed, data.window))
    batches = StreamBatches(stream, tokenizer, data, recipe.train.batch_size, world.rank, world.size)
    if world.is_main_process:
        for problem in stream.problems[:20]:
            logger.warning("%s", problem)
    return Ahead(batches, data.workers), _read_dev(recipe, network, tokenizer, world)


def _read_dev(
    recipe: Recipe,
    network: MMGEMNetwork,
    tokenizer: Tokenizer,
    world: World,
    learned: Sequence[Record] = (),
) -> Dev | None:
    """What is measured on; None: nothing. The labels of ``learned``, too, are names to tell images by."""
    data = recipe.data
    path = data.dev or data.train
    if path is None or not (data.dev or data.dev_split):
        return None
    if data.dev_share and data.dev is None:
        records = _parted(data)[1]
        if not records:
            logger.warning("data.dev_share: too few images to hold any out; nothing is measured")
            return None
    else:
        records = _load(path, data.dev_split, "data.dev_split")
    names: list[str] = []
    if data.labels:
        names = sorted({record.label for record in (*records, *learned) if record.label is not None})
    records = _described(
        records, path, data.dev_split, world, lambda r: bool(r.captions or (names and r.label))
    )
    records = records[: recipe.train.evaluate_images]
    tokenizer.encode_parts(distinct_texts(records))  # a text that is too long is said now
    source = world.main_process_first(
        lambda: image_source(recipe, network, tokenizer.prep, records, 1, "float32")
    )
    return records, source, names


def _load(path: Path, split: str | None, split_field: str) -> list[Record]:
    """Records of ``split`` (none, or "" in a recipe: all); ``split_field`` is its name in the recipe, for
    errors."""
    try:
        return load_dataset(path, split=split or None)
    except UsageError as error:
        raise ConfigError(f'{split_field}: {error} ("" for none)') from error


def _described(
    records: list[Record], path: Path, split: str | None, world: World, told: Callable[[Record], bool]
) -> list[Record]:
    """Those of which something is ``told``."""
    captioned = [record for record in records if told(record)]
    if not captioned:
        raise DataError(
            f"{path}: no captions in split {split!r}; photos need some, or with data.labels a folder a class"
        )
    if (left_out := len(records) - len(captioned)) and world.is_main_process:
        logger.warning("%s: %d of %d records have no captions and are left out", path, left_out, len(records))
    return captioned


def _read_regions(
    recipe: Recipe,
    network: MMGEMNetwork,
    prep: Preprocessing,
    records: list[Record],
    source: RecordSource,
    labels: Container[str] = (),
) -> tuple[list[Record], Source]:
    """What boxes are taken from: the ``records`` that have some, and canvases, made unless the cache has
    them: of photos with captions that are more than ``labels``."""
    data = recipe.data
    if not data.region_share:
        return [], source
    region_records = [r for r in records if any(region.captions for region in r.regions)]
    parts: list[RecordSource] = []
    sizes: list[int] = []
    if region_records and data.region_size in (0, prep.size):
        region_records, parts, sizes = records, [source], [len(records)]
    prep = dataclasses.replace(prep, size=data.region_size or prep.size)
    if region_records and not parts:
        parts = [image_source(recipe, network, prep, region_records, data.cached_augmentations)]
        sizes = [len(region_records)]
    if data.mosaics:
        images = [i for i in source.valid if records[i].media.kind == "image"]
        photos = [records[i] for i in images if not any(c in labels for c in records[i].captions[:1])]
        cache = data.cache or cache_home() / "features"
        identities = ContentHashes(cache / HASHES).identities([record.image for record in photos])
        identity = [prep.size, data.mosaics, recipe.train.seed, *identities]
        name = hashlib.blake2b(json.dumps(identity).encode(), digest_size=12).hexdigest()
        folder = cache.parent / "mosaics" / name
        if not (folder / MOSAICS).is_file():
            make_mosaics(photos, folder, data.mosaics, recipe.train.seed, prep.size)
        canvases = read_jsonl(folder / MOSAICS)
        parts.append(image_source(recipe, network, prep, canvases, data.mosaic_augmentations))
        sizes.append(len(canvases))
        region_records = region_records + canvases
    if not parts:
        raise DataError(
            f"data.region_share: {data.train} has no region with a caption, and data.mosaics is 0"
        )
    return region_records, parts[0] if len(parts) == 1 else Joined(parts, sizes)


def image_source(
    recipe: Recipe,
    network: MMGEMNetwork,
    prep: Preprocessing,
    records: list[Record],
    views: int,
    precision: str | None = None,
) -> RecordSource:
    """Cached features of ``records``, or their pixels where the whole encoder trains; says what it skips.
    ``precision``: what features are computed in; None: as ``train.precision``."""
    for kind in sorted({record.media.kind for record in records}):
        network.encoder.check_media(kind)
        if kind == "sound" and views > 1:
            raise ConfigError(
                "data.cached_augmentations: sounds are neither cropped nor mirrored; set it to 1"
            )
    if all(record.media.kind == "image" for record in records):
        source: RecordSource = _picture_source(
            recipe, network, prep, [r.image for r in records], views, precision
        )
    else:
        source = _clip_source(recipe, network, prep, records, views, precision)
    if skipped := len(records) - len(source.valid):
        logger.warning("%d of %d images skipped; the first: %s", skipped, len(records), source.problems[0])
    return source


def _clip_source(
    recipe: Recipe,
    network: MMGEMNetwork,
    prep: Preprocessing,
    records: list[Record],
    views: int,
    precision: str | None,
) -> ClipSource:
    """The pictures of ``records``, clips among them: each is opened to know its frames."""
    pictures: list[Picture] = []
    counts: list[int] = []
    problems: list[str] = []
    for record in track(records, "clips"):
        try:
            own = pictures_of(record.media)
        except ImageError as error:
            own = []
            problems.append(str(error))
        pictures += own
        counts.append(len(own))
    if not pictures:
        raise DataError(f"none of the {len(records)} records can be read; the first: {problems[0]}")
    source = _picture_source(recipe, network, prep, pictures, views, precision)
    return ClipSource(source, counts, problems)


def _picture_source(
    recipe: Recipe,
    network: MMGEMNetwork,
    prep: Preprocessing,
    pictures: Sequence[Picture],
    views: int,
    precision: str | None,
) -> FeatureCache | PixelSource:
    scale = recipe.data.crop_scale
    if not recipe.data.cached:
        return PixelSource(pictures, prep, views, scale)
    folder = recipe.data.cache or cache_home() / "features"
    dtype = getattr(torch, precision or recipe.train.precision)
    return cache_features(network.encoder.eval(), prep, pictures, folder, views, scale, dtype)
