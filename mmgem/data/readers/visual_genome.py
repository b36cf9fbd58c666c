"""Visual Genome region descriptions: ``region_descriptions.json``, 5.4 million phrases with boxes.

A JSON list with one object an image: ``{"id": 1, "regions": [{"phrase": "...", "x": 421, "y": 57, "width":
82, "height": 139}]}``; some versions write ``image_id`` for ``id``. Image 1 is ``1.jpg`` in ``VG_100K`` or in
``VG_100K_2``: the halves of the download, told apart only by looking. Phrases of one box of an image become
one region, each phrase once: as different texts of the same pixels they would be each other's negatives.
``image_data.json`` beside the file, if there, has the sizes that tell which boxes are outside. Visual Genome
has no splits of its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmgem.data.readers.files import images_folder, tidy
from mmgem.data.readers.regions import (
    LeftOut,
    Size,
    field,
    in_file,
    json_items,
    load_json,
    number,
    only_file,
    size_of,
    within,
)
from mmgem.data.records import Box, Record, Region, image_path
from mmgem.errors import DataError
from mmgem.utils.text_files import read_text

_HALVES = ("VG_100K", "VG_100K_2")
_SAMPLE = 20


def read_visual_genome(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None
) -> list[Record]:
    """Read ``region_descriptions.json``, or the folder it is in; ``meta["image_id"]`` is Visual Genome's.

    ``images`` is the folder that holds ``VG_100K`` and ``VG_100K_2`` or the images themselves, looked for
    near the file if None. Boxes of no area or outside their image and blank phrases are left out and counted
    in one warning; an image that has no region left is kept. Raises DataError naming the image and the field
    that is wrong, UsageError if the file or the images are not found.
    """
    path = Path(path)
    if path.is_dir():
        path = only_file(path, "region_descriptions*.json")
    return visual_genome_records(read_text(path), path, Path(images) if images is not None else None)


def visual_genome_records(text: str, path: Path, images: Path | None) -> list[Record]:
    """Turn the text of a region description file into records; ``path`` is where it came from."""
    left_out = LeftOut(path)
    sizes = _sizes(path.with_name("image_data.json"))
    entries: list[tuple[int | str, tuple[Region, ...]]] = []
    with in_file(path):
        for i, entry in enumerate(json_items(text)):
            with within(f"image {i} of the list"):
                image_id = _image_id(entry)
                region_entries = field(entry, "regions", list)
                entries.append((image_id, _regions(region_entries, sizes.get(image_id), left_out)))
    if not entries:
        raise DataError(f"{path}: no images in the file")
    folder, halves = _where(path, images, [f"{image_id}.jpg" for image_id, _ in entries])
    left_out.warn()
    return [
        Record(
            image_path(folder, halves.get(f"{image_id}.jpg", f"{_HALVES[0]}/{image_id}.jpg")),
            regions=regions,
            meta={"image_id": image_id},
        )
        for image_id, regions in entries
    ]


def _regions(region_entries: list[Any], size: Size | None, left_out: LeftOut) -> tuple[Region, ...]:
    phrases: dict[Box, dict[str, None]] = {}
    for i, entry in enumerate(region_entries):
        try:
            x, y = number(entry, "x"), number(entry, "y")
            width, height = number(entry, "width"), number(entry, "height")
            phrase = tidy(field(entry, "phrase", str))
        except ValueError as error:
            raise ValueError(f"regions[{i}]: {error}") from error
        box = left_out.box(x, y, x + width, y + height, size)
        if box is not None and phrase:
            phrases.setdefault(box, {})[phrase] = None
        elif box is not None:
            left_out.counts["blank"] += 1
    return tuple(Region(box, tuple(captions)) for box, captions in phrases.items())


def _sizes(path: Path) -> dict[int | str, Size]:
    """Image id -> size, of ``image_data.json`` if there is one."""
    if not path.is_file():
        return {}
    data = load_json(path)
    sizes = {}
    with in_file(path):
        if type(data) is not list:
            raise ValueError("must be a JSON list")
        for i, entry in enumerate(data):
            with within(f"image {i} of the list"):
                image_id, size = _image_id(entry), size_of(entry)
            if size is not None:
                sizes[image_id] = size
    return sizes


def _image_id(entry: Any) -> int | str:
    key = "image_id" if type(entry) is dict and "id" not in entry else "id"
    image_id: int | str = field(entry, key, int, str)
    return image_id


def _where(path: Path, images: Path | None, names: list[str]) -> tuple[str, dict[str, str]]:
    """The images' folder, and for each name that is in it or in one of the halves, the path from there."""
    layouts = [[f"{half}/{name}" for name in names[:_SAMPLE]] for half in _HALVES] + [names[:_SAMPLE]]
    folder, _ = images_folder(path, images, layouts, [])
    path_of_image: dict[str, str] = {}
    for half in (".", *_HALVES):
        half_folder = Path(folder, half)
        if half_folder.is_dir():
            path_of_image |= {entry.name: f"{half}/{entry.name}" for entry in half_folder.iterdir()}
    return folder, path_of_image
