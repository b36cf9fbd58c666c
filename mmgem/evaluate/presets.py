"""Standard test sets for people who have the data: which files, which split, which figure.

Nothing is downloaded. :data:`PRESETS` says what each preset expects below the folder it is given;
:func:`load_preset` reads it with the dataset readers. Annotations are the files their authors give out, so a
preset works on an unpacked download.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmgem.data.readers import load_dataset, read_class_folders
from mmgem.data.records import Record
from mmgem.errors import DataError, UsageError
from mmgem.utils.text_files import read_text


@dataclass(frozen=True, slots=True)
class Preset:
    """One test set and how it is scored. Names of files and folders are relative to the data folder."""

    name: str
    task: str  # "retrieval", "caption", "classify" or "longtext": the verb of `mmgem eval`
    source: tuple[str, ...]  # annotation file or folder of class folders; the first that exists is read
    metric: str
    notes: str
    split: str | None = None
    images: tuple[str, ...] = ()  # image folders, the first that exists; none exists: looked for
    classes: tuple[str, ...] = ()  # class-name files, the first that exists
    captions: int | None = None  # only so many captions of an image, the first ones
    count: int | None = None  # images in the published set


_KARPATHY = "Split of Karpathy and Fei-Fei (2015), file dataset_{}.json."
_RETRIEVAL = (
    " All images and all texts of the split are one pool; the first five captions of an image are its texts."
)
_CAPTION = " One caption an image against all its references."
_RECALLS = "R@1, R@5, R@10 both ways"
_CAPTION_METRIC = "BLEU@4, ROUGE-L, CIDEr-D"
_FLICKR8K = ("dataset_flickr8k.json", "Flickr8k.token.txt")
_FLICKR8K_IMAGES = ("Flicker8k_Dataset", "Flickr8k_Dataset", "flickr8k-images", "images", "Images")
_FLICKR30K_IMAGES = ("flickr30k-images", "flickr30k_images", "images", "Images")

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="coco-retrieval",
            task="retrieval",
            source=("dataset_coco.json", "annotations/dataset_coco.json"),
            split="test",
            captions=5,
            count=5000,
            metric=_RECALLS,
            notes=_KARPATHY.format("coco") + _RETRIEVAL + " COCO 5K: 5,000 images, 25,000 texts; val2014/.",
        ),
        Preset(
            name="coco-caption",
            task="caption",
            source=("dataset_coco.json", "annotations/dataset_coco.json"),
            split="test",
            count=5000,
            metric=_CAPTION_METRIC,
            notes=_KARPATHY.format("coco") + _CAPTION + " Five to seven references; val2014/.",
        ),
        Preset(
            name="flickr30k-retrieval",
            task="retrieval",
            source=("dataset_flickr30k.json",),
            images=_FLICKR30K_IMAGES,
            split="test",
            captions=5,
            count=1000,
            metric=_RECALLS,
            notes=_KARPATHY.format("flickr30k") + _RETRIEVAL + " Flickr30K 1K: 1,000 images, 5,000 texts.",
        ),
        Preset(
            name="flickr30k-caption",
            task="caption",
            source=("dataset_flickr30k.json",),
            images=_FLICKR30K_IMAGES,
            split="test",
            count=1000,
            metric=_CAPTION_METRIC,
            notes=_KARPATHY.format("flickr30k") + _CAPTION,
        ),
        Preset(
            name="flickr8k-retrieval",
            task="retrieval",
            source=_FLICKR8K,
            images=_FLICKR8K_IMAGES,
            split="test",
            captions=5,
            count=1000,
            metric=_RECALLS,
            notes="The authors' own test list, which dataset_flickr8k.json has too." + _RETRIEVAL,
        ),
        Preset(
            name="flickr8k-caption",
            task="caption",
            source=_FLICKR8K,
            images=_FLICKR8K_IMAGES,
            split="test",
            count=1000,
            metric=_CAPTION_METRIC,
            notes="The authors' own test list, which dataset_flickr8k.json has too." + _CAPTION,
        ),
        Preset(
            name="nocaps",
            task="caption",
            source=("nocaps_val_4500_captions.json", "annotations/nocaps_val_4500_captions.json"),
            images=("validation", "val", "val_imgs", "images/val", "images"),
            count=4500,
            metric="CIDEr-D of in-domain, near-domain, out-domain and all",
            notes="Agrawal et al. (2019), validation: 4,500 Open Images photos, ten references each. "
            'meta["domain"] is the domain; each is scored as a set of its own.',
        ),
        Preset(
            name="imagenet",
            task="classify",
            source=("val", "validation", "ILSVRC2012_val"),
            classes=("classnames.txt", "LOC_synset_mapping.txt", "imagenet_class_index.json"),
            count=50000,
            metric="top-1, top-5",
            notes="ILSVRC 2012 validation: a folder for each WordNet id, and a file that gives the id's "
            "class name. Names decide a good part of the figure: say which file was used.",
        ),
        Preset(
            name="l-dci",
            task="longtext",
            source=("complete", "annotations"),
            images=("photos", "images"),
            metric=_RECALLS,
            notes="Densely Captioned Images (Urbanek et al. 2023): the whole description people wrote of a "
            "photo is its one text. All photos there are; MM-GEM does not state which it took.",
        ),
        Preset(
            name="class-folders",
            task="classify",
            source=("test", "val", "valid", "validation", "dev", "."),
            classes=("classnames.txt",),
            metric="top-1, mean per class",
            notes="One folder for each class, as ELEVATER's sets (Li et al. 2022) can be unpacked; the "
            "folder names are the class names unless classnames.txt gives better ones. ELEVATER reports the "
            "mean per class for some sets (FGVC Aircraft, Oxford Pets, Oxford Flowers, Caltech 101) and "
            "top-1 for most.",
        ),
    )
}


def load_preset(name: str, root: str | os.PathLike[str]) -> list[Record]:
    """Read the preset's test set from the folder ``root``, cut to the captions that count.

    NoCaps records have their domain in ``meta["domain"]``; the ``label`` of classification records is a key
    of :func:`preset_classes`. Raises UsageError for an unknown preset or missing files (naming the expected
    ones), DataError for files that are not what they should be.
    """
    preset, folder = _preset(name), Path(root)
    source = _expected(preset, folder, preset.source, "data")
    if preset.task == "classify":
        class_names = preset_classes(name, root)
        records = read_class_folders(source)
        for record in records:
            if record.split is not None:
                raise UsageError(f"{source}: has {record.split}/ but none of {', '.join(preset.source[:-1])}")
            if record.label not in class_names:
                raise DataError(f"{record.media}: its class {record.label} is not in the class-name file")
        return records
    images = next((path for sub in preset.images if (path := folder / sub).is_dir()), None)
    records = load_dataset(source, split=preset.split, images=images)
    if preset.captions is not None:
        records = [replace(record, captions=record.captions[: preset.captions]) for record in records]
    if preset.task == "longtext":
        records = [record for record in records if record.captions]
    if name == "nocaps":
        domains = _domains(source)
        records = [
            replace(record, meta={**record.meta, "domain": domains[record.meta["image_id"]]})
            for record in records
        ]
    return records


def preset_classes(name: str, root: str | os.PathLike[str]) -> dict[str, str]:
    """Return the class name to embed for each label, in label order; all of them are candidates.

    Of several comma-separated names in a class-name file the first counts. Raises UsageError if the preset
    has no classes or needs a class-name file that is missing, DataError for a line that is wrong.
    """
    preset, folder = _preset(name), Path(root)
    if preset.task != "classify":
        raise UsageError(f"{name}: a {preset.task} preset has no classes")
    names_file = next((path for file in preset.classes if (path := folder / file).is_file()), None)
    if names_file is not None:
        return dict(sorted(_read_classes(names_file).items()))
    if name == "imagenet":
        _expected(preset, folder, preset.classes, "class names")
    source = _expected(preset, folder, preset.source, "data")
    return {label: label for label in sorted({str(record.label) for record in read_class_folders(source)})}


def preset_mismatch(name: str, records: Sequence[Record]) -> str | None:
    """Say in one line why figures on ``records`` are not comparable with published ones, None if they are."""
    preset = _preset(name)
    if preset.count is None or len(records) == preset.count:
        return None
    return (
        f"{name}: {len(records):,} images instead of {preset.count:,}: not comparable with published figures"
    )


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def _expected(preset: Preset, folder: Path, names: Sequence[str], what: str) -> Path:
    """The first of ``names`` that exists in ``folder``, or a UsageError that lists them."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UsageError(f"{folder}: preset {preset.name} needs its {what} there: {' or '.join(names)}")


def _domains(path: Path) -> dict[Any, str]:
    """Image id -> domain, of a NoCaps annotation file that the reader has accepted."""
    domains = {}
    for i, entry in enumerate(json.loads(read_text(path))["images"]):
        domain = entry.get("domain")
        if not isinstance(domain, str) or not domain:
            raise DataError(f"{path}: images[{i}].domain must be a string, not {json.dumps(domain)[:40]}")
        domains[entry["id"]] = domain
    return domains


def _read_classes(path: Path) -> dict[str, str]:
    """Label -> class name, of lines ``label name`` or of JSON ``{"0": ["label", "name"], ...}``."""
    text = read_text(path)
    if path.suffix == ".json":
        try:
            return {label: name.replace("_", " ") for label, name in json.loads(text).values()}
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(f'{path}: must be {{"0": ["label", "name"], ...}}: {error}') from error
    classes: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        label, _, names = line.strip().partition("\t" if "\t" in line else " ")
        name = names.partition(",")[0].strip()
        if not name:
            raise DataError(
                f"{path}:{number}: must be a label, a blank and a name, not {line.strip()[:60]!r}"
            )
        if label in classes:
            raise DataError(f"{path}:{number}: {label} is there twice")
        classes[label] = name
    if not classes:
        raise DataError(f"{path}: no class names")
    return classes
