"""Animated pictures (GIF, WebP, PNG) as clips: their frames and seconds. Pillow suffices.

Frames are made one after the other, as each is drawn over the one before; what is damaged ends the picture,
as it does a video. A frame that is to be shown for 10 ms or less is shown for 100, as browsers do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from mmgem.data.images import header, image_header
from mmgem.data.pixels import raw_mode, to_rgb
from mmgem.data.shots import CHUNK, FRAME_SIDE, KEPT_STEP, SMALL, Sample, find_cuts
from mmgem.errors import ImageError, is_transient

_SUFFIXES = (".gif", ".webp", ".apng")
_MAX_FRAMES = 20_000


def is_animated(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a picture of several frames; only suffixes of formats that are often so are looked
    into. False for what cannot be read."""
    if not os.fspath(path).lower().endswith(_SUFFIXES):
        return False
    try:
        with header(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except ImageError:
        return False


def animation_samples(path: Path) -> Iterator[Sample]:
    """The frames of an animated picture that say where it changes, for
    :func:`mmgem.data.shots.build_shots`. Raises ImageError if there is none."""
    chunk: list[Sample] = []
    kept, end = -KEPT_STEP, 0.0
    first = True
    for time, until, frame in _frames(path):
        end = until
        small = np.asarray(frame.resize(SMALL, Image.Resampling.BILINEAR, reducing_gap=2.0))
        image = None
        if time - kept >= KEPT_STEP:
            image, kept = _reduced(frame, FRAME_SIDE), time
        chunk.append(Sample(time, small, image))
        if len(chunk) == CHUNK:
            yield from _with_cuts(chunk, first)
            chunk, first = chunk[-1:], False
    if chunk:
        yield from _with_cuts(chunk, first)
        yield Sample(end, chunk[-1].small)


def animation_frames(path: Path, times: Sequence[float], side: int = FRAME_SIDE) -> list[Image.Image]:
    """The frame of an animated picture that is shown at each of ``times`` (seconds), RGB, its shorter side at
    most ``side`` pixels; beyond its end, the last one. Raises ImageError if there is none."""
    frames: dict[float, Image.Image] = {}
    waiting = sorted(set(times))
    last: Image.Image | None = None
    for time, end, frame in _frames(path):
        last = frame
        while waiting and time <= waiting[0] < end:
            frames[waiting.pop(0)] = _reduced(frame, side)
        if not waiting:
            break
    if last is None:
        raise ImageError(f"{path}: no frame of it can be decoded")
    frames |= dict.fromkeys(waiting, _reduced(last, side))
    return [frames[time] for time in times]


def animation_seconds(path: Path) -> float:
    """How long an animated picture is; all of it is decoded for that. Raises ImageError."""
    return max((end for _, end, _ in _frames(path)), default=0.0)


def _with_cuts(chunk: list[Sample], first: bool) -> Iterator[Sample]:
    """The samples of a chunk, without its first unless it is the ``first`` of all."""
    cuts = set(find_cuts(np.stack([sample.small for sample in chunk])))
    for number, sample in enumerate(chunk):
        if number or first:
            yield Sample(sample.time, sample.small, sample.image, number in cuts)


def _frames(path: Path) -> Iterator[tuple[float, float, Image.Image]]:
    """Start and end in seconds of each frame, and the frame as RGB on white."""
    image_header(path)  # an ImageError for what is none
    time = 0.0
    with header(path) as image:
        try:
            for number, frame in enumerate(ImageSequence.Iterator(image)):
                if number >= _MAX_FRAMES:
                    return
                raw = raw_mode(frame)
                frame.load()
                milliseconds = frame.info.get("duration") or 0
                end = time + (milliseconds if milliseconds > 10 else 100) / 1000
                yield time, end, to_rgb(frame, raw)
                time = end
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            if time == 0 or is_transient(error):
                raise


def _reduced(frame: Image.Image, side: int) -> Image.Image:
    small = frame.copy()
    scale = side / min(frame.size)
    if scale < 1:
        size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
        small = frame.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    small.info = {}
    return small
