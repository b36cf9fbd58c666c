"""What commands are given of clips: a moment, and files of which some move and some do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mmgem.data.moments import parse_moment
from mmgem.errors import ImageError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from mmgem.data.moments import Moment
    from mmgem.data.records import Box

T = TypeVar("T")

TimeOption = Annotated[
    str | None,
    typer.Option("--time", metavar="S-E", help="Only these seconds of a clip: 12-15, 12 or 1:02-1:10."),
]

_FULL = 1 << 16  # pixels: as large as it is


def parse_time(text: str | None) -> Moment | None:
    """The moment that ``--time`` names. Raises UsageError for what is none."""
    return None if text is None else parse_moment(text)


def full_frame(clip: Path, moment: Moment | None) -> Image.Image:
    """The middle frame of a moment of a clip, or of all of it, in its own size. Raises ImageError, and
    UsageError for a moment after its end."""
    from mmgem.data.clips import check_start, clip_seconds, middle_frame

    seconds = clip_seconds(clip)
    moment = moment or (0.0, seconds or 0.0)
    check_start(clip, moment[0], seconds)
    return middle_frame(clip, moment, _FULL)


def look_at(
    files: Sequence[Path],
    moment: Moment | None,
    box: Box | None,
    photos: Callable[[Sequence[Path | Image.Image], Sequence[Box | None]], Sequence[T]],
    clips: Callable[[Sequence[Path], Sequence[Moment | None]], Sequence[T]],
) -> list[T]:
    """What ``photos`` makes of the pictures among ``files`` (and a box of each) and ``clips`` of those that
    move (and a moment of each), in the order of ``files``; a box is one of a clip's middle frame. Raises
    ImageError for a file that has no such moment."""
    from mmgem.data.clips import is_clip

    moving = [is_clip(file) for file in files]
    if moment is not None and not all(moving):
        raise ImageError(f"{files[moving.index(False)]}: does not move, and has no --time")
    try:
        if box is not None:
            pictures = [
                full_frame(file, moment) if moves else file for file, moves in zip(files, moving, strict=True)
            ]
            return list(photos(pictures, [box] * len(files)))
        still = [file for file, moves in zip(files, moving, strict=True) if not moves]
        results = iter(photos(still, [None] * len(still)) if still else ())
        clip_files = [file for file, moves in zip(files, moving, strict=True) if moves]
        clip_results = iter(clips(clip_files, [moment] * len(clip_files)) if clip_files else ())
        return [next(clip_results if moves else results) for moves in moving]
    except UsageError as error:
        if len(files) > 1:
            raise ImageError(str(error)) from error
        raise
