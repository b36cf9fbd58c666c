"""Pixels for an encoder: resize, normalise, and the augmented views of training.

A view is a number: 0 is the plain picture, 1 its mirror, 2 and up random crops (half of them mirrored),
drawn from the view number and the image's own path, so a view is the same picture on every run and machine.
"""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmgem.config import Preprocessing
from mmgem.data.records import Box
from mmgem.data.scripts import FULL_STOPS, SENTENCE_MARKS

if TYPE_CHECKING:
    from torch import Tensor

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Geometry:
    """What a view does to a picture: cut ``crop`` (shares of width and height, x0 y0 x1 y1), then mirror."""

    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False


def view_geometry(view: int, key: str, crop_scale: float = 0.5) -> Geometry:
    """Geometry of view number ``view`` of the image called ``key``; crops keep at least ``crop_scale`` of
    the area and a side ratio within 4:5."""
    if view < 2:
        return Geometry(flip=view == 1)
    seed = hashlib.blake2b(f"{view}/{key}".encode(), digest_size=8).digest()
    rng = random.Random(seed)
    side, ratio = rng.uniform(crop_scale, 1.0) ** 0.5, rng.uniform(0.8, 1.25) ** 0.5
    width, height = min(1.0, side * ratio), min(1.0, side / ratio)
    x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return Geometry((x, y, x + width, y + height), rng.random() < 0.5)


def to_square(image: Image.Image, prep: Preprocessing, geometry: Geometry | None = None) -> np.ndarray:
    """RGB picture -> ``(size, size, 3)`` uint8, squashed or centre-cropped, after ``geometry`` if given."""
    if prep.resize == "shortest":  # first scaled, then cut: that rounds as CLIP's processors do
        left, top, width, height = _cropped(image.size, geometry)
        short = min(width, height)
        sides = _scaled(width, short, prep), _scaled(height, short, prep)
        cut_left, cut_top = ((side - prep.size) // 2 for side in sides)
        box = (left, top, left + width, top + height)
        out = image.resize(sides, _FILTERS[prep.interpolation], box=box)
        out = out.crop((cut_left, cut_top, cut_left + prep.size, cut_top + prep.size))
    else:
        left, top, width, height = shown_part(image.size, prep, geometry)
        box = (left, top, left + width, top + height)
        out = image.resize((prep.size, prep.size), _FILTERS[prep.interpolation], box=box)
    if geometry is not None and geometry.flip:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(out)


def place_box(
    box: Box, image: tuple[int, int], prep: Preprocessing, geometry: Geometry | None = None
) -> tuple[Box, float]:
    """Where :func:`to_square` puts a box.

    ``box``: pixels of the upright stored image of size ``image`` (width, height). Returns the box in pixels
    of the square, which it may cross, and the share of its area that the square shows (0 to 1).
    """
    left, top, width, height = shown_part(image, prep, geometry)
    across, down = prep.size / width, prep.size / height
    x0, y0 = (box[0] - left) * across, (box[1] - top) * down
    x1, y1 = (box[2] - left) * across, (box[3] - top) * down
    if geometry is not None and geometry.flip:
        x0, x1 = prep.size - x1, prep.size - x0
    seen_x = max(0.0, min(x1, prep.size) - max(x0, 0.0))
    seen_y = max(0.0, min(y1, prep.size) - max(y0, 0.0))
    return (x0, y0, x1, y1), seen_x * seen_y / ((x1 - x0) * (y1 - y0))


def shown_part(
    image: tuple[int, int], prep: Preprocessing, geometry: Geometry | None = None
) -> tuple[float, float, float, float]:
    """The part of a picture of size ``image`` (width, height) that becomes the square: left, top, width and
    height in pixels."""
    left, top, across, down = _cropped(image, geometry)
    if prep.resize != "squash":
        short = min(across, down)
        left, across = _centre(left, across, short, prep)
        top, down = _centre(top, down, short, prep)
    return left, top, across, down


def _cropped(image: tuple[int, int], geometry: Geometry | None) -> tuple[float, float, float, float]:
    """What ``geometry`` cuts out of a picture: left, top, width and height in pixels."""
    width, height = image
    x0, y0, x1, y1 = geometry.crop if geometry is not None else (0.0, 0.0, 1.0, 1.0)
    return x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height


def _scaled(side: float, short: float, prep: Preprocessing) -> int:
    """Pixels of an axis of length ``side`` when the shorter one, ``short``, has become ``prep.size``."""
    return max(prep.size, int(prep.size * side / short))


def _centre(start: float, side: float, short: float, prep: Preprocessing) -> tuple[float, float]:
    """Start and length of what is cut out of an axis of length ``side``, the shorter one being ``short``."""
    if prep.resize == "crop":
        return start + (side - short) / 2, short
    scaled = _scaled(side, short, prep)
    return start + (scaled - prep.size) // 2 / scaled * side, prep.size / scaled * side


def normalise(pixels: np.ndarray, prep: Preprocessing) -> Tensor:
    """``(B, S, S, 3)`` uint8 -> ``(B, 3, S, S)`` float32, ``(x / 255 - mean) / std``."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
    mean = torch.tensor(prep.mean).view(3, 1, 1) * 255
    std = torch.tensor(prep.std).view(3, 1, 1) * 255
    return (x - mean) / std


def join_sentences(texts: Sequence[str]) -> str:
    """One text of several captions, a full stop between them."""
    return ". ".join(text.strip().rstrip(f" {FULL_STOPS}") for text in texts)


def normalise_text(text: str, prep: Preprocessing) -> str:
    """The form of ``text`` the model reads: letters and their marks composed (NFC), white space collapsed, no
    space before punctuation; where the preprocessing says so lower case without the final full stop of any
    script, and the prefix in front."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    text = re.sub(rf"\s+([,;:{SENTENCE_MARKS}\u3001\uff0c\u060c])", r"\1", text)
    if prep.lowercase:
        text = text.lower().rstrip(f" {FULL_STOPS}")
    return prep.text_prefix + text
