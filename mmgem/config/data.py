"""What a run reads: the ``[data]`` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmgem.config.fields import setting
from mmgem.config.needs import IMAGES, LOOSE_FILES, REGIONS, SHARDS, TEXTS


@dataclass
class DataConfig:
    """What a run reads."""

    train: Path | None = setting(
        None,
        help="Image-text pairs in any form that `mmgem eval` reads, or shards (`.tar`, `.parquet`: a file, "
        "a folder, a pattern); none: only a corpus is learned.",
    )
    split: str | None = setting("train", help='Records of `train` that are learned; "": all.')
    extra_train: list[Path] = setting(
        default_factory=list,
        help="More sets that are learned together with `train`, each in any form that it may have; a set "
        "that is listed twice is drawn twice as often.",
        needs=(IMAGES, LOOSE_FILES),
    )
    extra_share: float = setting(
        0.0,
        help="Share of the whole images of a step that are of `extra_train`; 0: as many as there are.",
        low=0,
        below=1,
        needs=(IMAGES, LOOSE_FILES),
    )
    labels: bool = setting(
        False,
        help="Learn from the `label` of images too, in sentences that name it; the captioner learns their "
        "own captions, and where there are none the name and its end (`a big cat.`).",
        needs=(IMAGES, LOOSE_FILES),
    )
    caption_labels: bool = setting(
        True,
        help="The captioner learns the name of images that have a label and no captions of their own; false: "
        "it learns nothing of them, the name is embedded only.",
        needs=(IMAGES, LOOSE_FILES),
    )
    translations: list[Path] = setting(
        default_factory=list,
        help='Captions of the same images in other languages, by file name (`{"image": ..., "de": ...}`); '
        "those in the sets themselves (`captions_de`) count as well. They are embedded, not predicted.",
        needs=(IMAGES, LOOSE_FILES),
    )
    translation_prob: float = setting(
        0.0,
        help="Share of whole images that come with one caption in another language beside their own.",
        low=0,
        high=1,
        needs=(IMAGES, LOOSE_FILES),
    )
    texts: list[Path] = setting(
        default_factory=list,
        help="Captions without images, JSON lines or one a line of `.txt`, also `.gz`; "
        "`[image_text.text_only]` and `[text_distillation]` learn from them.",
        needs=TEXTS,
    )
    dev: Path | None = setting(
        None, help="Evaluated during training; none: `train`'s own `dev_split`.", needs=IMAGES
    )
    dev_split: str | None = setting(
        "dev", help='Records of `train` that are evaluated during training; "": none.'
    )
    dev_share: float = setting(
        0.0,
        help="Share of the images of `train` that are evaluated and not learned, of each label as many, "
        "where it has no `dev_split`. Where it has no `split` either, all the others are learned.",
        low=0,
        below=1,
        needs=(IMAGES, LOOSE_FILES),
    )
    cached_augmentations: int = setting(
        1, help="Cached versions of each image: the plain one, its mirror, then random crops.", low=1
    )
    crop_scale: float = setting(
        0.5, help="Smallest share of the image's area in a random crop.", above=0, high=1
    )
    cached: bool = setting(
        True, help="Compute the encoder's lower part once and keep it; false reads pixels at every step."
    )
    cache: Path | None = setting(
        None, help="Where feature maps are cached; none: under the user's cache folder."
    )
    captions_per_image: int = setting(
        1, help="Texts of an image in one batch; they share the contrastive target.", low=1
    )
    hard_negatives: int = setting(
        0,
        help="How many images with similar captions, as the teacher of `[image_text.contrastive]` sees them, "
        "come in the batch of every image of `train` that is drawn at random; 0: all are drawn at random.",
        low=0,
        needs=(IMAGES, LOOSE_FILES),
    )
    joined_caption_prob: float = setting(
        0.0,
        help="Share of whole images whose text is two or more of their captions, joined in random order.",
        low=0,
        high=1,
        needs=IMAGES,
    )
    region_share: float = setting(
        0.0,
        help="Share of a batch that is boxes with captions instead of whole images (stage 2).",
        low=0,
        high=1,
        needs=IMAGES,
    )
    region_size: int = setting(
        0,
        help="Input side in pixels of the images boxes are taken from, 32 or more; 0: `preprocessing.size`.",
        low=0,
        needs=(IMAGES, REGIONS),
    )
    boxes_per_image: int = setting(
        4, help="Most boxes taken from one image in a batch; they share its feature map.", low=1
    )
    mosaic_share: float = setting(
        0.0,
        help="Share of mosaics among the images boxes are taken from, where there are others too; 0: as many "
        "as there are.",
        low=0,
        below=1,
        needs=(IMAGES, REGIONS),
    )
    mosaics: int = setting(
        0,
        help="Canvases of 2 to 4 training photos each to take boxes from, made once and kept in the cache.",
        low=0,
        needs=(IMAGES, REGIONS),
    )
    mosaic_augmentations: int = setting(
        2, help="Cached versions of each canvas, as `cached_augmentations`.", low=1
    )
    window: int = setting(
        8,
        help="Of shards: how many tars, or row groups of parquet, are shuffled together.",
        low=1,
        needs=SHARDS,
    )
    workers: int = setting(
        0,
        help="Of shards: processes that decode photos ahead; 0: none.",
        low=0,
        needs=(IMAGES, SHARDS),
        free_on_resume=True,
    )
