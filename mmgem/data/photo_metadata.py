"""What a photo's header says of it: when and where it was taken, by what camera, and how large it is.

EXIF is written by everything and checked by nothing, so each field is read by itself: what is damaged, out of
range or obviously a placeholder is not known, and the others are. A date is the clock of the camera, which
rarely says in what zone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from PIL import ExifTags, Image

from mmgem.data.images import ImageSource, header, upright_size
from mmgem.errors import is_transient

T = TypeVar("T")

_DATE = re.compile(r"\s*(\d{4})[:\-/.](\d{1,2})[:\-/.](\d{1,2})[ T](\d{1,2}):(\d{1,2}):(\d{1,2})")
_FIRST_YEAR = 1826  # of the oldest photo there is; smaller ones are placeholders
_NAME_CHARS = 100


@dataclass(frozen=True, slots=True)
class PhotoMetadata:
    """``width`` and ``height`` in pixels of the upright photo; ``taken``: EXIF's DateTimeOriginal, without a
    zone; ``camera``: make and model; ``latitude`` and ``longitude`` in degrees, north and east positive.
    None: not known."""

    width: int
    height: int
    taken: datetime | None = None
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None


def read_metadata(source: ImageSource) -> PhotoMetadata:
    """The metadata of a photo, from its header. Raises ``ImageError`` where that cannot be read, as
    :func:`mmgem.data.images.image_size` does; damaged EXIF is no error."""
    with header(source) as image:
        exif = _attempt(lambda: image.getexif())
        tags = _ifd(exif, ExifTags.IFD.Exif)
        gps = _ifd(exif, ExifTags.IFD.GPSInfo)
        place = _attempt(lambda: _place(gps))
        return PhotoMetadata(
            *upright_size(image),
            _attempt(lambda: _date(tags.get(ExifTags.Base.DateTimeOriginal))),
            _attempt(lambda: _camera(exif)),
            *(place or (None, None)),
        )


def _attempt(read: Callable[[], T]) -> T | None:
    """What ``read`` gives; None where EXIF is damaged: its parser raises many built-in exceptions then."""
    try:
        return read()
    except Exception as error:
        if is_transient(error):
            raise
        return None


def _ifd(exif: Image.Exif | None, number: int) -> dict[int, Any]:
    tags = None if exif is None else _attempt(lambda: exif.get_ifd(number))
    return tags if isinstance(tags, dict) else {}


def _date(value: Any) -> datetime | None:
    found = _DATE.match(_text(value))
    if found is None:
        return None
    date = datetime(*map(int, found.groups()))  # type: ignore[arg-type]
    return date if date.year >= _FIRST_YEAR else None


def _camera(exif: Image.Exif | None) -> str | None:
    if exif is None:
        return None
    make, model = (_text(exif.get(tag)) for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    brand = make.split(" ")[0]
    if brand and model.lower().startswith(brand.lower()):
        make = ""  # "Canon" and "Canon EOS 80D"
    return f"{make} {model}".strip()[:_NAME_CHARS].rstrip() or None


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return ""
    value = value.partition("\0")[0].encode("utf-8", "replace").decode("utf-8", "replace")
    return " ".join("".join(char if char.isprintable() else " " for char in value).split())


def _place(gps: dict[int, Any]) -> tuple[float, float] | None:
    latitude = _degrees(gps[ExifTags.GPS.GPSLatitude], gps.get(ExifTags.GPS.GPSLatitudeRef), "S")
    longitude = _degrees(gps[ExifTags.GPS.GPSLongitude], gps.get(ExifTags.GPS.GPSLongitudeRef), "W")
    real = abs(latitude) <= 90 and abs(longitude) <= 180
    return (latitude, longitude) if real and (latitude or longitude) else None  # 0, 0: no fix


def _degrees(value: Any, reference: Any, negative: str) -> float:
    """Degrees, or degrees, minutes and seconds. Raises ValueError for what are none."""
    parts = [float(part) for part in (value if isinstance(value, tuple | list) else (value,))]
    if not 1 <= len(parts) <= 3 or not all(map(math.isfinite, parts)):
        raise ValueError("no degrees")
    degrees = sum(part / 60**power for power, part in enumerate(parts))
    return -degrees if _text(reference).upper().startswith(negative) else degrees
