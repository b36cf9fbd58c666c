"""Flickr30k Entities: the captions of Flickr30k with their phrases tied to boxes.

``Sentences/ID.txt`` has a caption a line, in which ``[/EN#283585/people An older man]`` is a phrase for the
entity 283585 (of one type or several); ``Annotations/ID.xml`` has for each object the entities it belongs to
and its box, 1-based and inclusive: here ``(xmin - 1, ymin - 1, xmax, ymax)``. The image is ``ID.jpg``.

An image's captions are its sentences without the markup. An entity with a box is a region, the phrases for it
its captions, each once. **An entity with several boxes** ("two guys") **is one region, the smallest box that
holds them all**: a phrase for all of them describes none alone. Entities without a box (the whole scene, or
nothing visible) and 0 (not visual) are no regions. Splits are those of ``train.txt``, ``val.txt`` ("dev") and
``test.txt`` beside the two folders, if there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

from mmgem.data.readers.files import images_folder, tidy
from mmgem.data.readers.regions import LeftOut, in_file, pixels, within
from mmgem.data.records import Box, Record, Region, image_path
from mmgem.errors import DataError, UsageError
from mmgem.utils.text_files import read_text

_PHRASE = re.compile(r"\[/EN#([^/\s\]]+)(?:/[^\s\]]*)?(?:\s([^\]]*))?\]")
_SPLITS = {"train.txt": "train", "val.txt": "dev", "test.txt": "test"}
_FOLDERS = ("flickr30k-images", "flickr30k_images", "flickr30k_images/flickr30k_images")


def read_flickr30k_entities(
    folder: str | os.PathLike[str], images: str | os.PathLike[str] | None = None
) -> list[Record]:
    """Read the folder that holds ``Annotations`` and ``Sentences``; a region's ``meta["entity"]`` is its id.

    ``images`` is the images folder, looked for near the two if None. Boxes of no area or outside their image,
    blank phrases, entities with a box that no sentence names, and images that lack one of their two files
    are left out and counted in one warning. Raises DataError naming the file (and the line, or the object)
    that is wrong, UsageError if a folder is not found.
    """
    folder = Path(folder)
    left_out = LeftOut(folder)
    with_sentences, with_boxes = _names(folder / "Sentences", ".txt"), _names(folder / "Annotations", ".xml")
    names = sorted(with_sentences & with_boxes)
    left_out.counts["half"] = len(with_sentences ^ with_boxes)
    if not names:
        raise DataError(f"{folder}: no image has both a text in Sentences and an XML file in Annotations")
    splits = _splits(folder)
    image_root, _ = images_folder(
        folder / "Sentences",
        Path(images) if images is not None else None,
        [[f"{name}.jpg" for name in names]],
        _FOLDERS,
    )
    records = []
    for name in names:
        captions, phrases = _sentences(folder / "Sentences" / f"{name}.txt", left_out)
        boxes = _boxes(folder / "Annotations" / f"{name}.xml", left_out)
        left_out.counts["unnamed"] += len(boxes.keys() - phrases.keys())
        regions = tuple(
            Region(box, tuple(phrases[entity]), {"entity": entity})
            for entity, box in boxes.items()
            if phrases.get(entity)
        )
        records.append(
            Record(image_path(image_root, f"{name}.jpg"), captions, splits.get(name), regions=regions)
        )
    left_out.warn()
    return records


def entities_folder(folder: Path) -> Path | None:
    """Return ``folder`` if it has the two folders, its parent if it is ``Sentences``, None otherwise."""
    for candidate in [folder.parent, folder] if folder.name == "Sentences" else [folder]:
        if (candidate / "Annotations").is_dir() and (candidate / "Sentences").is_dir():
            return candidate
    return None


def _names(folder: Path, suffix: str) -> set[str]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    return {file.stem for file in folder.glob(f"*{suffix}")}


def _splits(folder: Path) -> dict[str, str]:
    return {
        line.strip().removesuffix(".jpg"): split
        for listing, split in _SPLITS.items()
        if (folder / listing).is_file()
        for line in read_text(folder / listing).split("\n")
    }


def _sentences(path: Path, left_out: LeftOut) -> tuple[tuple[str, ...], dict[str, dict[str, None]]]:
    """The captions without markup, and entity -> its phrases."""
    captions: list[str] = []
    phrases: dict[str, dict[str, None]] = {}
    for row, line in enumerate(read_text(path).split("\n"), 1):
        for entity, phrase in _PHRASE.findall(line):
            if entity != "0":
                phrases.setdefault(entity, {}).update(dict.fromkeys(left_out.phrases([phrase])))
        plain = _PHRASE.sub(r"\2", line)
        if "[/EN#" in plain:
            raise DataError(f"{path}:{row}: a phrase must be [/EN#id/type words], not {line[:60]!r}")
        if caption := tidy(plain):
            captions.append(caption)
    return tuple(captions), phrases


def _boxes(path: Path, left_out: LeftOut) -> dict[str, Box]:
    """Entity -> the smallest box that holds all of its own."""
    text = read_text(path)
    if "<!ENTITY" in text:
        raise DataError(f"{path}: XML that defines entities is not read")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not valid XML: {error}") from error
    boxes: dict[str, Box] = {}
    with in_file(path):
        size_element = root.find("size")
        size = (
            (0.0, 0.0)
            if size_element is None
            else (_pixels(size_element, "width"), _pixels(size_element, "height"))
        )
        for i, annotated_object in enumerate(root.findall("object")):
            with within(f"object {i}"):
                names = [tidy(name.text or "") for name in annotated_object.findall("name")]
                if not all(names) or not names:
                    raise ValueError("name must be an entity's number, one or more")
                bndbox = annotated_object.find("bndbox")
                if bndbox is None:
                    if annotated_object.find("nobndbox") is None and annotated_object.find("scene") is None:
                        raise ValueError("must have bndbox, or nobndbox and scene")
                    continue
                x0, y0, x1, y1 = (_pixels(bndbox, side) for side in ("xmin", "ymin", "xmax", "ymax"))
            if box := left_out.box(x0 - 1, y0 - 1, x1, y1, size if min(size) > 0 else None):
                for name in names:
                    boxes[name] = _around(boxes[name], box) if name in boxes else box
    return boxes


def _pixels(parent: ElementTree.Element, tag: str) -> float:
    text = tidy(parent.findtext(tag) or "")
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{tag} must be a number, not {text[:40]!r}") from None
    return pixels(value, tag)


def _around(a: Box, b: Box) -> Box:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])
