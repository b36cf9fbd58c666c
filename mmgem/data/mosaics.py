"""Mosaics: photos scaled and pasted on one canvas, so that captioned photos give regions with captions.

Two to four photos lie on a canvas at random places without touching; each is a region whose captions are
the photo's own. People without box labels can train regions on them, and regions can be measured on any
captioned set. A canvas depends on the seed, its number and the photos alone, so the same command gives the
same set on every machine. ``twins`` follows every canvas with another of the same photos in other places:
only where things are tells the two apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmgem.data.images import open_image
from mmgem.data.records import Box, Record, Region, write_jsonl
from mmgem.errors import DataError, ImageError, UsageError
from mmgem.utils.files import create_file, replace_folder
from mmgem.utils.progress import track

FILE = "mosaics.jsonl"
_MIN_PHOTOS, _MAX_PHOTOS = 2, 4
# Longest side of a photo as a share of the canvas, by how many there are.
_SHARES = {2: (0.4, 0.65), 3: (0.35, 0.55), 4: (0.3, 0.48)}
_TRIES, _SHRINK = 200, 0.93
_QUALITY = 92

Layout = list[tuple[float, float, float, float]]


def make_mosaics(
    records: Sequence[Record], out: Path, count: int, seed: int = 0, side: int = 320, twins: bool = False
) -> tuple[Path, list[str]]:
    """Write ``count`` canvases of ``side`` x ``side`` pixels and their dataset file to the folder ``out``.

    Only records with captions are used, each as often as any other. Returns the dataset file
    (``mosaics.jsonl``, readable by ``read_jsonl``) and one line for each photo that cannot be read and was
    left out. A region's meta says its ``photo``. A set that is there is replaced as a whole.

    Raises ``UsageError`` for less than two captioned records, impossible numbers, or a folder that holds
    other things than such a set; ``DataError`` if the photos cannot be read.
    """
    photos = [record for record in records if record.captions]
    if len(photos) < _MIN_PHOTOS:
        raise UsageError(f"{len(photos)} captioned photos are too few for mosaics; {_MIN_PHOTOS} are needed")
    if count < 1 or side < 32:
        raise UsageError("mosaics: count must be at least 1 and side at least 32 pixels")
    digits = max(6, len(str(count)))
    problems: dict[Path, str] = {}
    plans = list(_plans(len(photos), count, seed, twins))

    def fill(new: Path) -> None:
        (new / "images").mkdir()
        made: list[Record] = []
        for number, (chosen, rng) in enumerate(track(plans, "mosaics")):
            path = new / "images" / f"{number:0{digits}}.jpg"
            record = _canvas(path, [photos[i] for i in chosen], rng, side, problems)
            if record is not None:
                made.append(record)
        if not made:
            raise DataError(f"no mosaic can be made; first: {next(iter(problems.values()))}")
        write_jsonl(new / FILE, made)

    replace_folder(out, fill, _is_set, "mosaics")
    return out / FILE, list(problems.values())


def is_mosaic(record: Record) -> bool:
    """Whether a record is a canvas that :func:`make_mosaics` made."""
    return any("photo" in region.meta for region in record.regions)


def _is_set(folder: Path) -> bool:
    """Whether a folder holds a set of mosaics, and nothing else."""
    return {FILE, "images"} == {path.name for path in folder.iterdir()} and all(
        re.fullmatch(r"[0-9]{6,}\.jpg", path.name) for path in (folder / "images").iterdir()
    )


def _plans(
    photos: int, count: int, seed: int, twins: bool
) -> Iterator[tuple[list[int], np.random.Generator]]:
    """The photos of each canvas, and what draws its places: endless shuffled rounds of all photos."""
    deck: list[int] = []
    round_number = 0
    chosen: list[int] = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        if not (twins and number % 2):
            photo_count = min(
                photos, int(np.random.default_rng((seed, number, 1)).integers(_MIN_PHOTOS, _MAX_PHOTOS + 1))
            )
            chosen = []
            while len(chosen) < photo_count:
                at = next((i for i in reversed(range(len(deck))) if deck[i] not in chosen), None)
                if at is None:  # the next round, beneath what is left of this one
                    deck = np.random.default_rng((seed, round_number, 2)).permutation(photos).tolist() + deck
                    round_number += 1
                else:
                    chosen.append(deck.pop(at))
        yield list(chosen), rng


def _canvas(
    path: Path, photos: list[Record], rng: np.random.Generator, side: int, problems: dict[Path, str]
) -> Record | None:
    decoded: list[tuple[Record, Image.Image]] = []
    for photo in photos:
        try:
            decoded.append((photo, open_image(photo.image, min_side=side)))
        except ImageError as error:
            problems[photo.image] = str(error)
    if len(decoded) < _MIN_PHOTOS:
        return None
    layout = scatter(rng, [image.width / image.height for _, image in decoded])
    background = tuple(int(c) for c in rng.integers(40, 216, 3))
    canvas = Image.new("RGB", (side, side), background)
    regions = []
    for (photo, image), corners in zip(decoded, layout, strict=True):
        x0, y0, x1, y1 = (round(share * side) for share in corners)
        canvas.paste(image.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, reducing_gap=2), (x0, y0))
        box: Box = (float(x0), float(y0), float(x1), float(y1))
        regions.append(Region(box, photo.captions, {"photo": str(photo.image)}))
    with create_file(path) as file:
        canvas.save(file, "JPEG", quality=_QUALITY)
    return Record(path.resolve(), regions=tuple(regions), split=photos[0].split)


def scatter(rng: np.random.Generator, ratios: Sequence[float]) -> Layout:
    """Places that do not touch for photos of these width-to-height ``ratios``, as shares of the canvas."""
    low, high = _SHARES[len(ratios)]
    sides = rng.uniform(low, high, len(ratios))
    sizes = np.array([(s * min(1.0, r), s * min(1.0, 1 / r)) for s, r in zip(sides, ratios, strict=True)])
    while True:
        for _ in range(_TRIES):
            corners = rng.uniform(size=(len(ratios), 2)) * (1 - sizes)
            boxes = np.concatenate([corners, corners + sizes], 1)
            if not _touch(boxes):
                return [(float(a), float(b), float(c), float(d)) for a, b, c, d in boxes]
        sizes = sizes * _SHRINK


def _touch(boxes: np.ndarray) -> bool:
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = ((high - low) > 0).all(-1)
    np.fill_diagonal(overlap, False)
    return bool(overlap.any())
