"""A moment: a box in time, from one second of a clip to another; how people write one."""

from __future__ import annotations

import math
import os
import re

from mmgem.errors import UsageError

Moment = tuple[float, float]
"""Start and end in seconds from the beginning of the clip; equal: an instant."""

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".m2ts"),
    *(".3gp", ".3g2", ".wmv", ".flv", ".ogv"),
)

SOUND_COLUMNS, SOUND_BANDS = 100, 128
"""A sound's picture (:mod:`mmgem.data.sound`): columns a second, and rows."""

_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d{1,3}):)?(\d+(?:\.\d*)?)")


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video by its suffix, in any case."""
    return os.fspath(path).lower().endswith(VIDEO_SUFFIXES)


def parse_moment(text: str) -> Moment:
    """``12-15``, ``12``, ``1:02-1:10``, ``1:02:03.5`` -> start and end in seconds. Raises UsageError for
    anything else, and for an end before its start."""
    first, dash, last = text.strip().partition("-")
    start = _seconds(first)
    end = _seconds(last) if dash else start
    if start is None or end is None or end < start:
        raise UsageError(f"time {text!r}: must be seconds or a clock, 12, 12-15 or 1:02-1:10")
    return start, end


def to_moment(time: str | float | tuple[float, float]) -> Moment:
    """A moment as :func:`parse_moment` reads it, an instant in seconds, or a start and an end. Raises
    UsageError for what is none."""
    if isinstance(time, str):
        return parse_moment(time)
    try:
        start, end = (float(time), float(time)) if isinstance(time, int | float) else map(float, time)
    except (TypeError, ValueError) as error:
        raise UsageError(f"time {time!r}: must be seconds, or a start and an end in seconds") from error
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start <= end):
        raise UsageError(f"time {time!r}: must not be negative, nor end before it starts")
    return start, end


def moment_box(moment: Moment) -> tuple[float, float, float, float]:
    """A moment of a sound as a box in its picture, all pitches of it."""
    start, end = moment
    return SOUND_COLUMNS * start, 0.0, SOUND_COLUMNS * end, float(SOUND_BANDS)


def format_moment(moment: Moment) -> str:
    """Start and end in seconds as :func:`parse_moment` reads them, to a thousandth: ``12-15.04``."""
    return "-".join(f"{seconds:.3f}".rstrip("0").rstrip(".") for seconds in moment)


def clock(seconds: float) -> str:
    """Seconds as a clock shows them, ``1:02`` or ``1:00:07``; parts of a second are cut off."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _seconds(text: str) -> float | None:
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        return None
    hours, minutes, seconds = found.groups()
    return 3600 * int(hours or 0) + 60 * int(minutes or 0) + float(seconds)
