"""RefCOCO, RefCOCO+ and RefCOCOg: expressions that refer to one object of a COCO image.

They come as ``instances.json`` (COCO's images and annotations) and ``refs(unc).p``, ``refs(google).p`` or
``refs(umd).p``. The latter is a pickle, which can run any program when it is opened, so it is never read; its
JSON form, ``refs(unc).json``, has the same fields: ``[{"ref_id", "ann_id", "image_id", "split", "sentences":
[{"sent"}]}]``.

A ref is a region, its sentences (``sent``, as published figures count them) the region's captions. An image
is one record *per split*: RefCOCOg's google version splits objects, so an image may be in two. ``file_name``
of a ref names no file; the image's own is taken, with or without COCO 2014's ``COCO_train2014_`` before it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmgem.data.readers.files import images_folder
from mmgem.data.readers.regions import (
    LeftOut,
    Size,
    field,
    in_file,
    load_json,
    only_file,
    pixels,
    size_of,
    within,
)
from mmgem.data.records import Box, Record, Region, image_path
from mmgem.errors import DataError

PICKLES = frozenset({".p", ".pkl", ".pickle"})
_FOLDERS = tuple(
    f"{base}{year}"
    for year in ("train2014", "train2017")
    for base in ("", "images/", "coco/", "mscoco/", "mscoco/images/", "images/mscoco/images/")
)


def read_refcoco(path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> list[Record]:
    """Read ``refs(*).json``, or the folder it is in, with the ``instances.json`` beside it.

    ``meta`` keeps ``image_id``, that of a region ``ref_id`` and ``ann_id``. ``images`` is the images folder
    (COCO's train2014, or train2017), looked for near the file if None. Refs of crowds, boxes of no area or
    outside their image and blank sentences are left out and counted in one warning; a record that has no
    region left is kept. Raises DataError for a pickle, with the way to convert it, and for an entry that is
    wrong, naming it; UsageError if a file or the images folder is not found.
    """
    path = Path(path)
    if path.is_dir():
        refuse_pickles(path)
        path = only_file(path, "refs*.json")
    if path.suffix.lower() in PICKLES:
        raise DataError(pickle_refused(path))
    return _records(load_json(path), path, Path(images) if images is not None else None)


def refuse_pickles(folder: Path) -> None:
    """Raise DataError if the refs in ``folder`` are there as a pickle only."""
    pickles = sorted(file for file in folder.glob("refs*") if file.suffix.lower() in PICKLES)
    if pickles and not any(folder.glob("refs*.json")):
        raise DataError(pickle_refused(pickles[0]))


def pickle_refused(path: Path) -> str:
    """Say on one line why the pickle ``path`` is not read, and what to do."""
    name = path.with_suffix(".json").name
    return (
        f"{path}: a pickle can run any program, so it is never read; if you trust it, make {name} of it: "
        f"python -c \"import json, pickle; json.dump(pickle.load(open('{path.name}', 'rb')), "
        f"open('{name}', 'w'))\""
    )


def _records(refs: Any, path: Path, images: Path | None) -> list[Record]:
    left_out = LeftOut(path)
    instances = path.with_name("instances.json")
    pictures, annotations = _instances(instances)
    regions_by_image: dict[tuple[int, str], list[Region]] = {}
    with in_file(path):
        if type(refs) is not list or not refs:
            raise ValueError("must be a JSON list of refs, and not empty")
        for i, ref in enumerate(refs):
            with within(f"ref {i} of the list"):
                image_id, ann_id = field(ref, "image_id", int), field(ref, "ann_id", int)
                split = field(ref, "split", str)
                if not split.strip():
                    raise ValueError("split is empty")
                captions = _sentences(ref)
                if image_id not in pictures or annotations.get(ann_id, {}).get("image_id") != image_id:
                    raise ValueError(f"no image {image_id} with an annotation {ann_id} in {instances.name}")
                with in_file(instances), within(f"annotation {ann_id}"):
                    box = _box(annotations[ann_id], pictures[image_id][1], left_out)
                regions = regions_by_image.setdefault((image_id, split), [])
                if box is not None and (phrases := left_out.phrases(captions)):
                    meta = {"ref_id": field(ref, "ref_id", int), "ann_id": ann_id}
                    regions.append(Region(box, phrases, meta))
    names = [pictures[image_id][0] for image_id, _ in regions_by_image]
    later = [name.rpartition("_")[2] for name in names]
    folder, layout = images_folder(path, images, [names, later], _FOLDERS)
    left_out.warn()
    return [
        Record(image_path(folder, name), split=split, regions=tuple(regions), meta={"image_id": image_id})
        for ((image_id, split), regions), name in zip(
            regions_by_image.items(), (names, later)[layout], strict=True
        )
    ]


def _sentences(ref: dict[str, Any]) -> list[str]:
    captions = []
    for i, sentence in enumerate(field(ref, "sentences", list)):
        with within(f"sentences[{i}]"):
            captions.append(field(sentence, "sent", str))
    return captions


def _box(annotation: dict[str, Any], size: Size | None, left_out: LeftOut) -> Box | None:
    """The box of an annotation; None, counted, if it cannot be used."""
    if annotation.get("iscrowd") is not None and field(annotation, "iscrowd", int):
        left_out.counts["crowd"] += 1
        return None
    bbox = field(annotation, "bbox", list)
    if len(bbox) != 4:
        raise ValueError(f"bbox must be [x, y, width, height], not a list of {len(bbox)}")
    x, y, width, height = (pixels(value, f"bbox[{i}]") for i, value in enumerate(bbox))
    return left_out.box(x, y, x + width, y + height, size)


def _instances(path: Path) -> tuple[dict[int, tuple[str, Size | None]], dict[int, dict[str, Any]]]:
    """Image id -> file name and size, and annotation id -> annotation."""
    data = load_json(path)
    pictures, annotations = {}, {}
    with in_file(path):
        for i, entry in enumerate(field(data, "images", list)):
            with within(f"images[{i}]"):
                name = field(entry, "file_name", str)
                if not name.strip():
                    raise ValueError("file_name is empty")
                pictures[field(entry, "id", int)] = name, size_of(entry)
        for i, entry in enumerate(field(data, "annotations", list)):
            with within(f"annotations[{i}]"):
                annotations[field(entry, "id", int)] = entry
    return pictures, annotations
