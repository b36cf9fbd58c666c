"""Decoded pixels of any mode and depth -> RGB of 8 bits, as the file itself says they are meant.

Notable choices. What a file states counts: bits and format of the samples and whether 0 is black or white
(TIFF), the largest value (PNG, PGM: always scaled to 16 bits by Pillow). Only where nothing states a range,
as of 32-bit integers and floats, the values themselves tell. Pillow leaves to its callers: TIFF of 12 and 16
bits, of signed integers and of grey that is white at 0; the transparent value of PNG that is not 8 bits deep;
CIELAB.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO = 0
_UNSIGNED, _SIGNED = 1, 2
_SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")  # what Pillow makes of their grey over 8 bits


def raw_mode(image: Image.Image) -> str:
    """How the samples of an image that is not loaded yet lie in its file, in Pillow's words (``"L;4"``);
    empty if it is loaded or the format does not say."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    if isinstance(arguments, tuple) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else ""


def to_rgb(image: Image.Image, raw: str = "") -> Image.Image:
    """Convert a loaded image of any mode to a new one of mode RGB, transparent pixels becoming white.

    ``raw``: :func:`raw_mode` of it before it was loaded. Grey of n bits is divided by 2^n - 1 and by 255
    multiplied, signed grey of 16 bits by 32767; integer or float grey without a stated range is divided by
    the first of 1 (float only), 255, 65535 and its own maximum that no pixel exceeds. Values below black are
    black. Colours of 16 bits lose their lower 8. Raises ValueError for an image without pixels.
    """
    if 0 in image.size:
        raise ValueError("has no pixels")
    if image.mode == "LAB":
        return _from_lab(image)
    if image.mode[0] in "IF":
        image = _deep_grey(image)
    elif "transparency" in image.info and (shallow := _in_eight_bits(image.info["transparency"], raw)):
        image = image.copy()
        image.info["transparency"] = shallow[0]
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    rgb = Image.new("RGB", image.size, "white")
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    return rgb


def _in_eight_bits(transparent: Any, raw: str) -> list[Any]:
    """The transparent value of a PNG in the depth that Pillow gives its pixels; none: it is so already."""
    if raw in ("L;2", "L;4") and isinstance(transparent, int):
        return [transparent * (85 if raw == "L;2" else 17)]
    if raw == "RGB;16B" and isinstance(transparent, tuple):
        return [tuple(value >> 8 for value in transparent)]
    return []


def _deep_grey(image: Image.Image) -> Image.Image:
    """Image of a mode I;16*, I or F -> mode L; see :func:`to_rgb` for the scaling."""
    stored = np.asarray(image)
    white, inverted = _stated_range(image)
    if stored.dtype.kind == "i" and _sample_format(image) == _UNSIGNED and stored.dtype.itemsize == 4:
        stored = stored.view(np.uint32)  # Pillow has no mode for them
    values = stored.astype(np.float32)
    if white is None:
        peak = float(np.where(np.isfinite(values), values, 0).max())
        values = np.nan_to_num(values, nan=0.0, posinf=peak, neginf=0.0)
        whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((w for w in whites if peak <= w), peak)
    if inverted:
        values = white - values
    grey = np.clip(values * (255.0 / white) + 0.5, 0, 255).astype(np.uint8)
    if image.has_transparency_data:
        grey[stored == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _stated_range(image: Image.Image) -> tuple[float | None, bool]:
    """The value that is white and whether 0 is white instead, as the file says; None: it does not."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        bits, inverted = tags.get(_BITS, (1,))[0], tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        sample_format = _sample_format(image)
        if sample_format not in (_UNSIGNED, _SIGNED) or bits > 16:
            return None, inverted
        return float(2 ** (bits - (sample_format == _SIGNED)) - 1), inverted
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        return 65535.0, False
    return None, False


def _sample_format(image: Image.Image) -> int:
    """TIFF's SampleFormat: 1 unsigned, 2 signed, 3 float; 0 if it is no TIFF."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    return image.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0]


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    converted = ImageCms.applyTransform(image, _lab_to_srgb())
    assert converted is not None
    return converted


@cache
def _lab_to_srgb() -> Any:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
