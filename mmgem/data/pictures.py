"""What is looked at of media: a photo itself, frames of a clip, the spectrogram of a sound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from mmgem.data.clips import frame_times, read_frames
from mmgem.data.images import image_size, open_image
from mmgem.data.records import Media
from mmgem.data.sound import picture_size, read_spectrogram, sound_seconds
from mmgem.errors import ImageError


@dataclass(frozen=True, slots=True)
class Frame:
    """What a clip shows at ``time`` (seconds), or all of a sound (0), as one picture among others."""

    media: Media
    time: float

    @property
    def path(self) -> Path:
        """The file."""
        return self.media.path

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    def __str__(self) -> str:
        return str(self.path)


Picture = Path | Frame
"""A photo, or a frame of something else."""


def pictures_of(media: Media) -> list[Picture]:
    """What is looked at of media. Images are not looked into; of others the header is. Raises ImageError, and
    as :func:`mmgem.data.clips.frame_times`."""
    if media.kind == "image":
        return [media.path]
    if media.kind == "sound":
        sound_seconds(media.path)
        return [Frame(media, 0.0)]
    return [Frame(media, time) for time in frame_times(media.path, media.moment)]


def media_size(media: Media) -> tuple[int, int]:
    """Width and height in pixels of the picture that boxes are of: an upright image, or a sound's. Raises
    ImageError."""
    return picture_size(sound_seconds(media.path)) if media.kind == "sound" else image_size(media.path)


def decode_frames(media: Media, times: Sequence[float]) -> list[Image.Image]:
    """What a clip shows at ``times``, or as often what a sound looks like. Raises ImageError, and UsageError
    for a video without PyAV."""
    if media.kind == "sound":
        return [read_spectrogram(media.path)] * len(times)
    return read_frames(media.path, times)


def open_pictures(
    pictures: Sequence[Picture], min_side: int | None = None
) -> Iterator[Image.Image | ImageError]:
    """Each picture as :func:`mmgem.data.images.open_image` and :func:`decode_frames` decode it, or its error,
    in order, when it is asked for. Frames of one clip that follow each other are decoded together, so that it
    is read once. ``min_side``: of photos. Raises UsageError for a video without PyAV."""
    for source, same in groupby(pictures, _decoded_with):
        group = list(same)
        times = [picture.time for picture in group if isinstance(picture, Frame)]
        decoded: Sequence[Image.Image | ImageError]
        try:
            decoded = decode_frames(source, times) if times else [open_image(source, min_side)] * len(group)
        except ImageError as error:
            decoded = [error] * len(group)
        yield from decoded


def _decoded_with(picture: Picture) -> Any:
    return picture.media if isinstance(picture, Frame) else picture
