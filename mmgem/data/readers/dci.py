"""Densely Captioned Images (DCI): photos of SA-1B described at length, and every mask in them too.

One JSON file an image in ``complete/`` (with summaries by a language model) or ``annotations/``: ``{"image":
"sa_1.jpg", "short_caption", "extra_caption", "mask_data": {"0": {"bounds": {"topLeft": {"x", "y"},
"bottomRight": {"x", "y"}}, "label", "caption", "mask_quality"}}, "summaries"}``. ``splits.json`` beside the
folder lists the files of each split, under DCI's names (``train``, ``valid``, ``test``).

An image's caption is the short and the extra one joined, a long text; a mask's box is a region with the one
caption ``label: caption``. Masks marked unusable (``mask_quality`` 2) are no regions. Captions are what
people wrote; the summaries are kept in ``meta["summaries"]``.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmgem.data.readers.files import images_folder, tidy
from mmgem.data.readers.regions import LeftOut, Size, field, in_file, load_json, number, size_of, within
from mmgem.data.records import Box, Record, Region, image_path
from mmgem.errors import DataError, UsageError
from mmgem.utils.text_files import read_text

DCI_MARKS = frozenset({"image", "mask_data", "short_caption"})
_UNUSABLE = 2
_SPLITS = "splits.json"


def read_dci(folder: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> list[Record]:
    """Read a folder with ``complete`` or ``annotations`` in it, one of these itself, or one of its files.

    A region's ``meta["mask"]`` is the mask's key. ``images`` is the folder of the photos, looked for near the
    files (``photos``) if None. Boxes of no area or outside their image and masks without words are left out
    and counted in one warning. Raises DataError naming the file and the field that is wrong, UsageError if
    there are no files or the images folder is not found.
    """
    folder = Path(folder)
    files = [folder] if folder.is_file() else _files(folder)
    if not files:
        raise UsageError(f"{folder}: {'no JSON files in it' if folder.is_dir() else 'no such folder'}")
    left_out = LeftOut(folder)
    splits = _splits(files[0].parent)
    images_found = []
    for file in files:
        data = load_json(file)
        with in_file(file):
            images_found.append((file, *_image(data, left_out)))
    image_root, _ = images_folder(
        files[0],
        Path(images) if images is not None else None,
        [[name for _, name, *_ in images_found]],
        ["photos"],
    )
    left_out.warn()
    return [
        Record(image_path(image_root, name), captions, splits.get(file.name), regions=regions, meta=meta)
        for file, name, captions, regions, meta in images_found
    ]


def dci_folder(folder: Path) -> Path | None:
    """Return the folder of DCI's files that ``folder`` has or is, None if there is none; looks into one."""
    for file in _files(folder)[:1]:
        with suppress(DataError, UsageError):
            text = read_text(file)
            return file.parent if all(f'"{mark}"' in text for mark in DCI_MARKS) else None
    return None


def _files(folder: Path) -> list[Path]:
    """The annotation files of the first folder that has any."""
    for candidate in (folder / "complete", folder / "annotations", folder):
        if files := sorted(file for file in candidate.glob("*.json") if file.name != _SPLITS):
            return files
    return []


def _splits(folder: Path) -> dict[str, str]:
    """File name -> split, of ``splits.json`` beside the folder or in it."""
    for path in (folder.parent / _SPLITS, folder / _SPLITS):
        if path.is_file():
            data = load_json(path)
            with in_file(path):
                if type(data) is not dict:
                    raise ValueError("must be an object of lists of file names")
                lists = {split: field(data, split, list) for split in data}
                if not all(type(name) is str for names in lists.values() for name in names):
                    raise ValueError("must be an object of lists of file names")
            return {name: split for split, names in lists.items() for name in names}
    return {}


def _image(data: Any, left_out: LeftOut) -> tuple[str, tuple[str, ...], tuple[Region, ...], dict[str, Any]]:
    """The image's name, captions, regions and meta."""
    name = field(data, "image", str)
    if not name.strip():
        raise ValueError("image is empty")
    caption = tidy(f"{field(data, 'short_caption', str)} {field(data, 'extra_caption', str)}")
    size = size_of(data)
    regions = []
    for key, mask in field(data, "mask_data", dict).items():
        with within(f"mask_data[{key!r}]"):
            box, phrases = _mask(mask, size, left_out)
        if box is not None and phrases:
            regions.append(Region(box, phrases, {"mask": key}))
    meta = {"summaries": field(data, "summaries", dict)} if data.get("summaries") is not None else {}
    return name, (caption,) if caption else (), tuple(regions), meta


def _mask(mask: Any, size: Size | None, left_out: LeftOut) -> tuple[Box | None, tuple[str, ...]]:
    bounds = field(mask, "bounds", dict)
    if mask.get("mask_quality") == _UNUSABLE:
        return None, ()
    with within("bounds"):
        corners = [
            number(field(bounds, corner, dict), axis)
            for corner in ("topLeft", "bottomRight")
            for axis in "xy"
        ]
    box = left_out.box(corners[0], corners[1], corners[2], corners[3], size)
    if box is None:
        return None, ()
    words = filter(None, (tidy(_words(mask, "label")), tidy(_words(mask, "caption"))))
    return box, left_out.phrases([": ".join(words)])


def _words(entry: dict[str, Any], key: str) -> str:
    """A text that may be absent: masks of low quality have no caption."""
    return "" if entry.get(key) is None else str(field(entry, key, str))
