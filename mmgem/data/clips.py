"""Whatever moves: videos and animated pictures alike, as shots and as frames at wanted times.

A live photo is a photo with a short video beside it, which is a clip as any other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmgem.data import animation, video
from mmgem.data.moments import Moment, is_video
from mmgem.data.photo_metadata import PhotoMetadata, read_metadata
from mmgem.data.shots import FRAME_SIDE, Shot, build_shots
from mmgem.errors import MomentError

_SECONDS_A_FRAME = 2.0
MAX_FRAMES = 8
"""Of a moment."""
_SECONDS_UNKNOWN = 1.0  # where a video does not say how long it is


def is_clip(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video, by its suffix, or a picture of several frames."""
    return is_video(path) or animation.is_animated(path)


def find_shots(path: str | os.PathLike[str]) -> Iterator[Shot]:
    """The shots of a clip, in order: where each starts and ends in seconds, and up to four pictures of it.

    A cut is where two frames in a row are different pictures; a shot is 0.4 to 30 seconds long. Works as the
    clip is read, so that a long one needs no more memory than a short one. Raises ImageError for a file that
    cannot be read, UsageError for a video without PyAV (``pip install 'mmgem[video]'``).
    """
    path = Path(path)
    samples = video.read_samples(path) if is_video(path) else animation.animation_samples(path)
    return build_shots(samples)


def read_frames(
    path: str | os.PathLike[str], times: Sequence[float], side: int = FRAME_SIDE
) -> list[Image.Image]:
    """The frame of a clip that is shown at each of ``times`` (seconds), upright RGB, its shorter side at most
    ``side`` pixels. Raises as :func:`find_shots`."""
    read = video.read_frames if is_video(path) else animation.animation_frames
    return read(Path(path), times, side)


def middle_frame(path: str | os.PathLike[str], moment: Moment, side: int = FRAME_SIDE) -> Image.Image:
    """The picture of a moment of a clip: its middle frame, as :func:`read_frames`."""
    return read_frames(path, [(moment[0] + moment[1]) / 2], side)[0]


def frames_of(path: str | os.PathLike[str], moment: Moment | None = None) -> list[Image.Image]:
    """The frames of a clip at its :func:`frame_times`. Raises as they do."""
    return read_frames(path, frame_times(path, moment))


def frame_times(path: str | os.PathLike[str], moment: Moment | None = None) -> list[float]:
    """The seconds at which a moment of a clip (None: all of it) is looked at: spread evenly,
    :func:`frame_count` of them. Raises as :func:`find_shots`, and MomentError for a moment after its end."""
    seconds = clip_seconds(path)
    start, end = moment if moment is not None else (0.0, seconds or _SECONDS_UNKNOWN)
    check_start(path, start, seconds)
    end = max(start, end if seconds is None else min(end, seconds))
    count = frame_count(end - start)
    times: list[float] = (start + (np.arange(count) + 0.5) * (end - start) / count).tolist()
    return times


def frame_count(seconds: float) -> int:
    """How many frames are looked at of so many seconds: one in two, eight at most and one at least."""
    return min(MAX_FRAMES, max(1, round(seconds / _SECONDS_A_FRAME)))


def check_start(path: str | os.PathLike[str], start: float, seconds: float | None) -> None:
    """Raise MomentError if a clip that is ``seconds`` long (None: nobody knows) is over at ``start``."""
    if seconds is not None and start > seconds:
        raise MomentError(f"{os.fspath(path)}: is {seconds:.1f} seconds long, and has no second {start:g}")


def clip_seconds(path: str | os.PathLike[str]) -> float | None:
    """How long a clip is; None: its header does not say. Raises as :func:`find_shots`."""
    path = Path(path)
    return video.video_seconds(path) if is_video(path) else animation.animation_seconds(path)


def clip_metadata(path: Path) -> PhotoMetadata:
    """What a clip says of itself, as :func:`mmgem.data.photo_metadata.read_metadata` does of a photo."""
    if is_video(path):
        return video.video_metadata(path)
    return read_metadata(path)
