"""What the header of a video says of its making, by the names that phones and cameras use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from mmgem.data.photo_metadata import PhotoMetadata

_APPLE = "com.apple.quicktime."
_PLACE = re.compile(r"([+-]\d{1,2}(?:\.\d+)?)([+-]\d{1,3}(?:\.\d+)?)")  # ISO 6709, degrees
_FIRST_YEAR = 1971  # earlier ones are placeholders: containers count from 1904 or 1970
_NAME_CHARS = 100


def made_by(header: Mapping[str, str], width: int, height: int) -> PhotoMetadata:
    """Date, camera and place of a video of ``width`` by ``height`` pixels; what is missing or damaged is not
    known. A date is by the clock on the wall: of the camera where the header has its zone, else of this
    machine."""
    make, model = (" ".join(header.get(_APPLE + key, "").split()) for key in ("make", "model"))
    brand = "" if make and model.lower().startswith(make.lower()) else make
    camera = f"{brand} {model}".strip()[:_NAME_CHARS].rstrip() or None
    place = _place(header.get(_APPLE + "location.ISO6709") or header.get("location") or "")
    return PhotoMetadata(width, height, _taken(header), camera, *(place or (None, None)))


def _taken(header: Mapping[str, str]) -> datetime | None:
    for key, keeps_zone in ((_APPLE + "creationdate", True), ("creation_time", False)):
        try:
            moment = datetime.fromisoformat(header[key])
            if not keeps_zone and moment.tzinfo is not None:  # containers count in UTC
                moment = moment.astimezone()
        except (KeyError, ValueError, OverflowError, OSError):
            continue
        if moment.year >= _FIRST_YEAR:
            return moment.replace(tzinfo=None)
    return None


def _place(text: str) -> tuple[float, float] | None:
    found = _PLACE.match(text)
    if found is None:
        return None
    latitude, longitude = float(found[1]), float(found[2])
    real = abs(latitude) <= 90 and abs(longitude) <= 180
    return (latitude, longitude) if real and (latitude or longitude) else None
