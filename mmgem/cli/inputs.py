"""What commands are given: photos, boxes, models; bad photos among good ones are reported and skipped."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from mmgem.cli.output import note
from mmgem.cli.terms import note_terms
from mmgem.errors import ImageError, UsageError

if TYPE_CHECKING:
    from mmgem.api import MMGEM
    from mmgem.data.records import Box, Media
    from mmgem.inference.query_encoder import QueryEncoder

S = TypeVar("S", Path, "Path | Media")
T = TypeVar("T")

ModelOption = Annotated[
    str, typer.Option("--model", "-m", metavar="M", help="The packaged model, a model folder or a hub id.")
]
Precision = Literal["float32", "bfloat16"]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="Where the model runs: cpu, cuda, cuda:1, mps.")
]
PrecisionOption = Annotated[
    Precision,
    typer.Option("--precision", help="bfloat16 is faster on GPUs, and CPUs with AMX or AVX512-BF16."),
]
FilesArgument = Annotated[list[Path], typer.Argument(metavar="FILES", help="Photos, clips, or folders.")]
BoxOption = Annotated[
    str | None,
    typer.Option("--box", metavar="X0,Y0,X1,Y1", help="Only this box, in pixels of the upright photo."),
]
DimensionsOption = Annotated[
    int | None,
    typer.Option("--dimensions", min=1, metavar="D", help="Only the first D numbers of each vector."),
]
BeamsOption = Annotated[
    int, typer.Option("--beams", min=1, metavar="N", help="Beam search width; 1 is greedy.")
]


_KINDS = 8  # of files that are left out, by name


def default_index() -> Path:
    """The index of commands that are given none: ``$MMGEM_INDEX``, that of the user's config, or
    ``mmgem/photos.idx`` where programs keep what is the user's own."""
    from mmgem.config.user import load_user_config

    if own := os.environ.get("MMGEM_INDEX") or load_user_config().index:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "mmgem" / "photos.idx"


def default_model() -> str:
    """The model of commands that are given none: that of the user's config, or the packaged one."""
    from mmgem.config.user import load_user_config

    return load_user_config().model or "tiny"


def note_left_out(folders: Sequence[Path], skip: Path | None = None) -> None:
    """Tell the user on one line what is left out of ``folders``, by its kind: photos that cannot be read,
    with what to install where that helps, then what is no photo; ``skip``: a folder of our own that may lie
    in one."""
    from mmgem.data.image_kinds import install_hint
    from mmgem.data.images import other_files
    from mmgem.data.moments import VIDEO_SUFFIXES
    from mmgem.data.video import has_av

    foreign, others = Counter[str](), Counter[str]()
    for folder in folders:
        for counts, found in zip((foreign, others), other_files(folder, skip), strict=True):
            counts.update(found)
    videos = {suffix: others.pop(suffix) for suffix in list(others) if suffix in VIDEO_SUFFIXES}
    if not has_av():
        foreign.update(videos)
    if not foreign and not others:
        return
    kinds = []
    for suffix, count in [*foreign.most_common(), *others.most_common()]:
        hint = 'pip install "mmgem[video]"' if suffix in VIDEO_SUFFIXES else install_hint(suffix)
        kinds.append(f"{count} {suffix}" + (f" ({hint})" if hint else ""))
    shown = max(_KINDS, len(foreign))
    more = [f"{len(kinds) - shown} kinds more"] if len(kinds) > shown else []
    total = foreign.total() + others.total()
    note(f"{total} {'file' if total == 1 else 'files'} left out: {', '.join(kinds[:shown] + more)}")


def load_model(name: str, device: str = "cpu", precision: Precision = "float32") -> MMGEM:
    """Load a model, with the libraries' warnings and progress bars off the terminal. Raises UsageError for a
    ``device`` that is not there."""
    check_device(device)
    quiet_libraries()
    from mmgem.api import MMGEM

    note_terms(name)
    return MMGEM.from_pretrained(name, device, precision)


def load_query_model(
    name: str, images: Sequence[Path], device: str = "cpu", precision: Precision = "float32"
) -> MMGEM | QueryEncoder:
    """What embeds the texts of a query, and its ``images`` if it has some: without torch where that will
    do."""
    from mmgem.inference.query_encoder import QueryEncoder

    if not images and (device, precision) == ("cpu", "float32"):
        encoder = QueryEncoder.load(name)
        if encoder is not None:
            note_terms(name)
            return encoder
    return load_model(name, device, precision)


def check_device(device: str) -> None:
    """Raise UsageError unless torch has this device."""
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else "not here"
        raise UsageError(f"--device {device}: {reason}") from error


def quiet_libraries() -> None:
    """Keep transformers from printing anything but errors."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def find_photos(files: Sequence[Path], box: Box | None = None) -> list[Path]:
    """The photos that ``files`` (photos and folders) name, folders in the order of their paths.

    Raises UsageError for a folder without photos and if no file exists; and if it is one photo, what is wrong
    with it or with a ``box`` of it, before a model is loaded for it.
    """
    from mmgem.data.images import list_images

    photos: list[Path] = []
    for file in files:
        listed = list_images(file) if file.is_dir() else [file]
        if not listed:
            raise UsageError(f"{file}: no photos in this folder")
        photos += listed
    if not any(photo.exists() for photo in photos):
        raise UsageError(f"{photos[0]}: no such file")
    if len(photos) == 1:
        check_photo(photos[0], box)
    return photos


def check_photo(photo: Path, box: Box | None) -> None:
    """Raise ImageError if the header of a photo or clip cannot be read, UsageError if the box is not in it,
    and for a video without PyAV."""
    from mmgem.data.images import check_box, image_size
    from mmgem.data.moments import is_video

    if is_video(photo):
        from mmgem.data.clips import clip_metadata

        metadata = clip_metadata(photo)
        size = metadata.width, metadata.height
    else:
        size = image_size(photo)
    if box is not None:
        check_box(box, size)
        if box[0] < 0 or box[1] < 0 or box[2] > size[0] or box[3] > size[1]:
            note(
                f"warning: {photo}: the box reaches beyond its {size[0]} x {size[1]} pixels and is cut there"
            )


def parse_box(text: str | None) -> Box | None:
    """``x0,y0,x1,y1`` -> numbers. Raises UsageError for anything else, and for an empty box."""
    if text is None:
        return None
    try:
        x0, y0, x1, y1 = (float(number) for number in text.split(","))
    except ValueError as error:
        raise UsageError(f"--box {text}: must be four numbers x0,y0,x1,y1") from error
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise UsageError(f"--box {text}: must have x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


def map_photos(
    photos: Sequence[S],
    function: Callable[[list[S]], Sequence[T]],
    label: str,
    failed: list[tuple[S, str]],
    box: Box | None = None,
    batch: int = 16,
) -> Iterator[tuple[S, T]]:
    """Yield each photo, or clip of a dataset, and its result; ``function`` is given batches. Shows a bar.

    A photo that cannot be read, or that ``box`` is outside of, is noted on standard error and added to
    ``failed`` with the reason. Raises ImageError once all are done if none is left.
    """
    from mmgem.data.images import attempt
    from mmgem.utils.progress import track

    if not photos:
        return

    def checked(batch: list[S]) -> Sequence[T]:
        for photo in batch if box is not None else ():
            try:
                check_photo(photo if isinstance(photo, Path) else photo.path, box)
            except UsageError as error:
                raise ImageError(f"{photo}: {error}") from error
        return function(batch)

    chunks = [list(photos[at : at + batch]) for at in range(0, len(photos), batch)]
    for chunk in track(chunks, label, sizes=[len(chunk) for chunk in chunks], unit=" photos"):
        for photo, result in zip(chunk, attempt(checked, chunk), strict=True):
            if not isinstance(result, ImageError):
                yield photo, result
                continue
            if len(photos) == 1:
                raise result
            failed.append((photo, str(result).removeprefix(f"{photo}: ")))
            note(f"skipped {result}")
    if len(failed) == len(photos):
        raise ImageError(f"none of the {len(photos)} photos could be read")


def failed_json(failed: Sequence[tuple[Path, str]]) -> list[dict[str, str]]:
    """What ``--json`` says of the photos that were skipped."""
    return [{"file": str(photo), "reason": reason} for photo, reason in failed]
