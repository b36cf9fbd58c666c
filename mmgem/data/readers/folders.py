"""Folders of pictures: captions in a ``.txt`` beside each, or one folder per class."""

from __future__ import annotations

import os
from pathlib import Path

from mmgem.data.images import list_images
from mmgem.data.readers.files import tidy
from mmgem.data.records import Record
from mmgem.errors import UsageError
from mmgem.utils.text_files import read_text

_SPLITS = frozenset({"train", "val", "valid", "validation", "dev", "test"})


def read_caption_folder(folder: str | os.PathLike[str]) -> list[Record]:
    """Read every image under ``folder``; ``a.txt`` beside ``a.jpg`` holds its captions, one a line.

    Blank lines are ignored and white space is tidied. An image without such a file gets no captions. Raises
    UsageError for a missing folder or one without images, DataError for a text that is not UTF-8.
    """
    _, images = _images(folder)
    texts: dict[Path, tuple[str, ...]] = {}
    for image in images:
        text = image.with_suffix(".txt")
        if text not in texts:
            lines = read_text(text).split("\n") if text.is_file() else []
            texts[text] = tuple(caption for line in lines if (caption := tidy(line)))
    return [Record(image, texts[image.with_suffix(".txt")]) for image in images]


def read_class_folders(folder: str | os.PathLike[str]) -> list[Record]:
    """Read ``folder/daisy/**/*.jpg`` as images with the label ``daisy``.

    If all folders at the top have the name of a split (train, val, valid, validation, dev, test), they are
    the splits and the labels are one level below. Raises UsageError for a missing folder, one without
    images, and images that are in no class folder.
    """
    root, images = _images(folder)
    parts = [image.relative_to(root).parts[:-1] for image in images]
    split_level = all(part and part[0] in _SPLITS for part in parts)
    records = []
    for image, part in zip(images, parts, strict=True):
        if len(part) <= split_level:
            raise UsageError(f"{image}: not in a class folder; class folders are {root}/CLASS/IMAGE")
        records.append(
            Record(image, split=part[0] if split_level else None, label=part[1 if split_level else 0])
        )
    return records


def _images(folder: str | os.PathLike[str]) -> tuple[Path, list[Path]]:
    """The absolute folder and its images; UsageError if there are none."""
    root = Path(folder).resolve()
    images = list_images(root)
    if not images:
        raise UsageError(f"{folder}: no images in the folder")
    return root, images
